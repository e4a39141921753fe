//! Messages as users send them, checked and brought into the form that templates take.

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::text::tokenizer::ControlTokens;

/// Roles that templates know. Some make the turn mark of the role's name (`<|user|>`).
const ROLES: [&str; 10] =
    ["system", "developer", "user", "assistant", "model", "tool", "function", "ipython", "environment", "observation"];

/// What a message's reasoning is called: by OpenAI's clients, and by templates.
const REASONING: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

/// What a template takes as a message's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContentForm {
    /// A string.
    Text,
    /// A string or a list of parts.
    Parts,
}

/// `messages` as a template takes them.
pub(super) fn prepare(messages: &[Value], form: ContentForm, control: &ControlTokens) -> Result<Vec<Value>> {
    if messages.is_empty() {
        return Err(Error::invalid("messages", "messages must not be empty"));
    }
    let prepare = |(i, message): (usize, &Value)| {
        let Value::Object(message) = message else {
            return Err(invalid(format!("messages[{i}]"), "must be an object"));
        };
        let mut message = message.clone();
        let role = check_role(i, &message, control)?;
        prepare_reasoning(i, &mut message)?;
        prepare_content(i, role, &mut message, form)?;
        parse_arguments(i, &mut message)?;
        Ok(Value::Object(message))
    };
    messages.iter().enumerate().map(prepare).collect()
}

/// `tools`, each an object.
pub(super) fn check_tools(tools: &[Value]) -> Result<&[Value]> {
    match tools.iter().position(|tool| !tool.is_object()) {
        Some(i) => Err(invalid(format!("tools[{i}]"), "must be an object")),
        None => Ok(tools),
    }
}

fn invalid(param: String, what: &str) -> Error {
    let message = format!("{param}: {what}");
    Error::invalid(param, message)
}

/// Whether a message is the assistant's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Author {
    Assistant,
    Other,
}

fn check_role(i: usize, message: &Map<String, Value>, control: &ControlTokens) -> Result<Author> {
    let bad = |what: &str| invalid(format!("messages[{i}].role"), what);
    let role = match message.get("role") {
        None => return Err(bad("is missing")),
        Some(role) => role.as_str().ok_or_else(|| bad("must be a string"))?,
    };
    let word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | ' ');
    if role.is_empty() || role.len() > 64 || !role.chars().all(word) {
        return Err(bad("must be 1 to 64 letters, digits, underscores, hyphens or spaces"));
    }
    // A template that writes `<|` + role + `|>` would make it a control token.
    if !ROLES.contains(&role) && control.any_named(role) {
        return Err(bad(&format!("{role:?} is the name of a control token")));
    }
    Ok(if role == "assistant" { Author::Assistant } else { Author::Other })
}

/// Reasoning goes by several names: a template finds it under whichever it knows.
fn prepare_reasoning(i: usize, message: &mut Map<String, Value>) -> Result<()> {
    let Some(name) = REASONING.into_iter().find(|name| message.get(*name).is_some_and(|value| !value.is_null())) else {
        return Ok(());
    };
    let text = message[name].clone();
    if !text.is_string() {
        return Err(invalid(format!("messages[{i}].{name}"), "must be a string"));
    }
    for name in REASONING {
        message.insert(name.into(), text.clone());
    }
    Ok(())
}

fn prepare_content(i: usize, author: Author, message: &mut Map<String, Value>, form: ContentForm) -> Result<()> {
    let bad = |what: &str| invalid(format!("messages[{i}].content"), what);
    match message.get("content") {
        Some(Value::String(_)) => {}
        Some(Value::Array(parts)) => {
            let texts = parts.iter().map(|part| match (&part["type"], &part["text"]) {
                (Value::String(kind), Value::String(text)) if kind == "text" => Ok(text.as_str()),
                (Value::String(kind), _) if kind == "text" => {
                    Err(bad("a part of type \"text\" needs a string in text"))
                }
                (Value::String(kind), _) => {
                    Err(bad(&format!("parts of type {kind:?} are not supported, only \"text\"")))
                }
                _ => Err(bad("each part must be an object with a type")),
            });
            let texts: Vec<&str> = texts.collect::<Result<_>>()?;
            if form == ContentForm::Text {
                let joined = texts.join("\n");
                message.insert("content".into(), joined.into());
            }
        }
        // An assistant that was cut off while it thought has said nothing.
        None | Some(Value::Null)
            if author == Author::Assistant && message.contains_key(REASONING[0]) && !has_calls(message) =>
        {
            message.insert("content".into(), "".into());
        }
        // One that called tools need not have said anything.
        None | Some(Value::Null) if author == Author::Assistant => {
            if !has_calls(message) {
                return Err(bad("is missing"));
            }
            message.insert("content".into(), Value::Null);
        }
        None => return Err(bad("is missing")),
        Some(_) => return Err(bad("must be a string or a list of parts")),
    }
    Ok(())
}

fn has_calls(message: &Map<String, Value>) -> bool {
    message.get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty())
}

/// OpenAI's clients send the arguments of a tool call as JSON in a string; templates take the object.
fn parse_arguments(i: usize, message: &mut Map<String, Value>) -> Result<()> {
    let calls = match message.get_mut("tool_calls") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Array(calls)) => calls,
        Some(_) => return Err(invalid(format!("messages[{i}].tool_calls"), "must be a list")),
    };
    for (j, call) in calls.iter_mut().enumerate() {
        let Some(arguments) = call.get_mut("function").and_then(|function| function.get_mut("arguments")) else {
            continue;
        };
        if let Value::String(text) = arguments {
            let param = || format!("messages[{i}].tool_calls[{j}].function.arguments");
            match serde_json::from_str(if text.is_empty() { "{}" } else { text }) {
                Ok(object @ Value::Object(_)) => *arguments = object,
                Ok(_) => return Err(invalid(param(), "must be a JSON object")),
                Err(e) => return Err(invalid(param(), &format!("must be a JSON object: {e}"))),
            }
        }
    }
    Ok(())
}

/// The first message with calls of tools.
pub(super) fn first_with_calls(messages: &[Value]) -> Option<usize> {
    messages.iter().position(|message| message["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty()))
}

/// `messages` without calls of tools.
pub(super) fn without_calls(messages: &[Value]) -> Vec<Value> {
    let mut messages = messages.to_vec();
    for message in messages.iter_mut().filter_map(Value::as_object_mut) {
        message.shift_remove("tool_calls");
    }
    messages
}

/// `messages` with an empty text where one has none.
pub(super) fn with_text(messages: &[Value]) -> Vec<Value> {
    let mut messages = messages.to_vec();
    for message in messages.iter_mut().filter(|message| message["content"].is_null()) {
        message["content"] = "".into();
    }
    messages
}

/// Appends `mark` and a space to the last message, which must be the assistant's.
pub(super) fn mark_end(messages: &mut [Value], mark: char) -> Result<()> {
    let bad = |what: &str| Err(Error::invalid("continue_final_message", format!("continue_final_message: {what}")));
    let last = messages.last_mut().expect("invariant: prepared messages are not empty");
    if last["role"] != "assistant" {
        return bad("the last message must be the assistant's");
    }
    let text = match &mut last["content"] {
        Value::Array(parts) => parts.last_mut().map(|part| &mut part["text"]),
        content => Some(content),
    };
    match text {
        Some(Value::String(text)) => {
            text.push(mark);
            // Whether it is still there tells whether the template trims.
            text.push(' ');
            Ok(())
        }
        _ => bad("the last message has no text to continue"),
    }
}

/// `text` up to the end of the last message, as transformers cuts it: a template that trims messages has the text
/// trimmed here as well.
pub(super) fn cut_at_end_mark(mut text: String, mark: char) -> Result<String> {
    let Some(at) = text.rfind(mark) else {
        let message = "continue_final_message: the chat template does not write the last message";
        return Err(Error::invalid("continue_final_message", message));
    };
    let kept = text[at + mark.len_utf8()..].starts_with(' ');
    text.truncate(at);
    if !kept {
        text.truncate(text.trim_end().len());
    }
    Ok(text)
}
