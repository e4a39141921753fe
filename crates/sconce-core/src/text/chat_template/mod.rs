//! [`ChatTemplate`]: a conversation to a prompt, by the model's own Jinja template.

mod jinja;
mod json;
mod mask;
mod messages;
mod strftime;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;

use minijinja::Environment;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::text::Tokenizer;
use crate::text::tokenizer::read_object;
use crate::weights::GgufMetadata;

use mask::Mask;
use messages::ContentForm;

/// Templates are a few kilobytes; this is far beyond any.
const MAX_SOURCE_BYTES: usize = 1 << 20;

/// A conversation and what its template may ask for.
#[derive(Debug, Clone, Default)]
pub struct ChatInput {
    /// A list of `{"role", "content", ...}` objects, as OpenAI's clients send them. `content` is a string, null, or a
    /// list of `{"type": "text", "text"}` parts.
    pub messages: Vec<serde_json::Value>,
    /// Tools that the template presents to the model, in OpenAI's form.
    pub tools: Option<Vec<serde_json::Value>>,
    /// More variables for the template. `add_generation_prompt` is one: true unless `continue_final_message`.
    pub template_kwargs: serde_json::Map<String, serde_json::Value>,
    /// Whether the last message is an assistant's to be continued rather than answered.
    pub continue_final_message: bool,
}

/// A rendered conversation, which remembers what users wrote.
#[derive(Debug, Clone)]
pub struct RenderedChat {
    text: String,
    /// The text with stand-ins, where users wrote what must not be taken for a control token.
    masked: Option<(String, Mask)>,
}

impl RenderedChat {
    fn new(masked: String, mask: Mask) -> Self {
        let text = mask.unmask(&masked);
        let masked = (text != masked).then_some((masked, mask));
        Self { text, masked }
    }

    /// The prompt as text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text with stand-ins for the beginnings of control tokens that users wrote, and what each stands for. None
    /// if they wrote none.
    pub(in crate::text) fn masked(&self) -> Option<(&str, impl Fn(char) -> char)> {
        self.masked.as_ref().map(|(text, mask)| (text.as_str(), |c| mask.original(c)))
    }
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    content_form: ContentForm,
    /// What stands for it where there are tools, if the model has two templates.
    with_tools: Option<Box<Self>>,
}

impl ChatTemplate {
    /// From chat_template.jinja or tokenizer_config.json in `dir`. None if there is none.
    pub fn from_dir(dir: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let path = dir.join("chat_template.jinja");
        match std::fs::read_to_string(&path) {
            Ok(source) => return Self::compile(&path, source, tokenizer).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(path, e)),
        }
        let path = dir.join("tokenizer_config.json");
        let config = read_object(&path)?.unwrap_or_default();
        let bad = |what: &str| Error::file(&path, format!("chat_template: {what}"));
        let list = match config.get("chat_template") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(source)) => return Self::compile(&path, source.to_owned(), tokenizer).map(Some),
            Some(Value::Array(list)) => list,
            Some(_) => return Err(bad("expected a string, or a list of objects with name and template")),
        };
        let named = |name: &str| list.iter().find(|entry| entry["name"] == name)?["template"].as_str();
        let source = named("default").ok_or_else(|| bad("the list has no template named \"default\""))?;
        Self::compile_both(&path, source, named("tool_use"), tokenizer).map(Some)
    }

    /// From a GGUF's `tokenizer.chat_template`, and the one for tools behind `tokenizer.chat_template.tool_use`. None if
    /// there is none. `path` is for error messages.
    pub fn from_gguf(path: &Path, metadata: &GgufMetadata, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let source = metadata.string("tokenizer.chat_template")?;
        let with_tools = metadata.string("tokenizer.chat_template.tool_use")?;
        source.map(|source| Self::compile_both(path, source, with_tools, tokenizer)).transpose()
    }

    fn compile_both(path: &Path, source: &str, with_tools: Option<&str>, tokenizer: &Tokenizer) -> Result<Self> {
        let mut template = Self::compile(path, source.to_owned(), tokenizer)?;
        if let Some(source) = with_tools {
            template.with_tools = Some(Box::new(Self::compile(path, source.to_owned(), tokenizer)?));
        }
        Ok(template)
    }

    fn compile(path: &Path, source: String, tokenizer: &Tokenizer) -> Result<Self> {
        if source.len() > MAX_SOURCE_BYTES {
            let message = format!("chat template: {} bytes, but at most {MAX_SOURCE_BYTES} are read", source.len());
            return Err(Error::file(path, message));
        }
        let environment = jinja::environment(&source).map_err(|e| Error::file(path, format!("chat template: {e}")))?;
        let mut template = Self { environment, source, content_form: ContentForm::Text, with_tools: None };
        if template.takes_parts(tokenizer) {
            template.content_form = ContentForm::Parts;
        }
        Ok(template)
    }

    /// Whether the template writes the texts of a list of parts, rather than failing on it or writing the list.
    fn takes_parts(&self, tokenizer: &Tokenizer) -> bool {
        let probe = "a part of a message";
        let user = json!({
            "messages": [{"role": "user", "content": [{"type": "text", "text": probe}]}],
            "tools": null,
            "template_kwargs": {},
        });
        let rendered = self.run(user, true, tokenizer);
        rendered.is_ok_and(|text| text.contains(probe) && !text.contains("'type'") && !text.contains("\"type\""))
    }

    /// The prompt. Errors: `InvalidRequest` at `messages`, with the template's own words where it refuses.
    ///
    /// A list of text parts reaches a template that handles lists as it is, any other joined by newlines. Tool calls'
    /// `arguments` reach the template as objects, also where they were sent as JSON in a string. Tools, and calls of
    /// them, that the template takes no notice of are refused at `tools` and `messages[i].tool_calls`.
    pub fn render(&self, input: &ChatInput, tokenizer: &Tokenizer) -> Result<RenderedChat> {
        match &self.with_tools {
            Some(template) if input.tools.is_some() => template.render_own(input, tokenizer),
            // Calls of earlier turns may be for it too.
            Some(template) => self.render_own(input, tokenizer).or_else(|error| match error.param() {
                Some(param) if param.ends_with(".tool_calls") => template.render_own(input, tokenizer),
                _ => Err(error),
            }),
            None => self.render_own(input, tokenizer),
        }
    }

    fn render_own(&self, input: &ChatInput, tokenizer: &Tokenizer) -> Result<RenderedChat> {
        let control = tokenizer.control_tokens();
        let mut messages = messages::prepare(&input.messages, self.content_form, control)?;
        let tools = input.tools.as_deref().map(messages::check_tools).transpose()?;
        let mut kwargs = input.template_kwargs.clone();
        let add_generation_prompt = generation_prompt(&mut kwargs, input.continue_final_message)?;

        let user = |messages| json!({"messages": messages, "tools": tools, "template_kwargs": kwargs});
        if tools.is_some() || messages::first_with_calls(&messages).is_some() {
            self.check_use_of_tools(&user(messages.clone()), &messages, add_generation_prompt, tokenizer)?;
        }
        let mask = Mask::new(&user(messages.clone()), &self.source, control)?;
        if input.continue_final_message {
            messages::mark_end(&mut messages, mask.end_mark())?;
        }
        let user = user(messages);
        let run = |user| {
            let rendered = self.run(user, add_generation_prompt, tokenizer);
            let text = rendered.map_err(|refusal| Error::invalid("messages", mask.unmask(&refusal)))?;
            if input.continue_final_message { messages::cut_at_end_mark(text, mask.end_mark()) } else { Ok(text) }
        };
        let mut text = run(mask.hide_tokens(&user, control))?;
        if mask.any_first_char() {
            // A template can cut and join what users sent. Here no character of theirs can begin a control token: if
            // that leaves other control tokens than before, some were put together from users' text.
            let certain = run(mask.hide_first_chars(&user))?;
            let spellings = |text| control.find(text).map(|(_, spelling)| spelling);
            if !spellings(&text).eq(spellings(&certain)) {
                text = certain;
            }
        }
        Ok(RenderedChat::new(text, mask))
    }

    /// Refuses tools and calls that the template says nothing of: without them it writes the same.
    fn check_use_of_tools(
        &self,
        user: &Value,
        messages: &[Value],
        add_generation_prompt: bool,
        tokenizer: &Tokenizer,
    ) -> Result<()> {
        let run = |name: &str, value: Value| {
            let mut user = user.clone();
            user[name] = value;
            self.run(user, add_generation_prompt, tokenizer)
        };
        if user["tools"].is_array()
            && let Ok(without) = run("tools", Value::Null)
        {
            let message = match self.run(user.clone(), add_generation_prompt, tokenizer) {
                Ok(with) if with != without => None,
                Ok(_) => Some("the model's chat template knows no tools".to_owned()),
                Err(words) => Some(format!("the model's chat template refuses them: {words}")),
            };
            if let Some(message) = message {
                return Err(Error::invalid("tools", format!("tools: {message}")));
            }
        }
        // Some show them only where there is no text, and some cannot do without one.
        let shows_calls = |messages: &[Value]| {
            let without = run("messages", messages::without_calls(messages).into());
            without.is_err() || run("messages", messages.into()) != without
        };
        if let Some(i) = messages::first_with_calls(messages)
            && !shows_calls(&messages::with_text(messages))
            && run("messages", messages.into()) == run("messages", messages::without_calls(messages).into())
        {
            let param = format!("messages[{i}].tool_calls");
            let message = format!("{param}: the model's chat template knows no calls of tools");
            return Err(Error::invalid(param, message));
        }
        Ok(())
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The source of what renders conversations with tools: a template of their own, or the same one.
    pub fn source_with_tools(&self) -> &str {
        self.with_tools.as_ref().map_or(&self.source, |template| &template.source)
    }

    /// Renders `user` (`messages`, `tools`, `template_kwargs`). The error is the reason in words.
    fn run(&self, user: Value, add_generation_prompt: bool, tokenizer: &Tokenizer) -> Result<String, String> {
        let mut variables = Map::new();
        variables.extend(tokenizer.named_tokens().map(|(name, token)| (name.to_owned(), token.into())));
        variables.insert("documents".into(), Value::Null);
        let mut user = match user {
            Value::Object(user) => user,
            _ => Map::new(),
        };
        if let Some(Value::Object(kwargs)) = user.remove("template_kwargs") {
            variables.extend(kwargs);
        }
        variables.extend(user);
        variables.insert("add_generation_prompt".into(), add_generation_prompt.into());
        jinja::render(&self.environment, &variables)
    }
}

/// Takes `add_generation_prompt` out of `kwargs`, and refuses what is not a variable of the caller's.
fn generation_prompt(kwargs: &mut Map<String, Value>, continue_final_message: bool) -> Result<bool> {
    let param = |name: &str| format!("chat_template_kwargs.{name}");
    for name in ["messages", "tools"] {
        if kwargs.contains_key(name) {
            return Err(Error::invalid(param(name), format!("chat_template_kwargs.{name}: give {name} as a field")));
        }
    }
    match kwargs.shift_remove("add_generation_prompt") {
        None => Ok(!continue_final_message),
        Some(Value::Bool(true)) if continue_final_message => Err(Error::invalid(
            "add_generation_prompt",
            "add_generation_prompt cannot be true where continue_final_message is",
        )),
        Some(Value::Bool(add)) => Ok(add),
        Some(other) => Err(Error::invalid(
            "add_generation_prompt",
            format!("add_generation_prompt must be true or false, not {other}"),
        )),
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}
