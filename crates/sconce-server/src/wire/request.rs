//! [`WireRequest`]: a request body, read field by field and checked as a whole.

use sconce::{
    BeamLength, BeamParams, ChatInput, EarlyStopping, EmbeddingRequest, GenerationRequest, Grammar, Marks, Prompt,
    SamplingParams,
};
use serde_json::{Map, Value, json};

use super::fields::{Endpoint, FIELDS};
use super::messages::text_of;
use super::responses::repeated;
use super::tools::Tools;
use super::value::FieldValue;
use crate::http::ApiError;

/// Tokens generated for a prompt where the request does not say how many. A conversation gets the rest of the context.
const DEFAULT_MAX_TOKENS: usize = 16;

/// A request body of any endpoint. What the endpoint has no field for keeps its default.
#[derive(Debug)]
pub struct WireRequest {
    /// The model asked for.
    pub model: Option<String>,
    /// The adapter of it that this is, if it is one.
    pub adapter: Option<String>,
    /// How to continue.
    pub params: SamplingParams,
    /// Answer while tokens are generated.
    pub stream: bool,
    /// `stream_options.include_usage`, where there are stream options.
    pub stream_usage: Option<bool>,
    /// Begin the answer with the prompt.
    pub echo: bool,
    /// Token ids to decode.
    pub tokens: Option<Vec<u32>>,
    /// Tools that may be called.
    pub tools: Tools,
    /// How much the model is to think, in a word, and the field that says so.
    pub reasoning_effort: Option<(&'static str, String)>,
    /// Whether the answer tells what the model thought.
    pub include_reasoning: bool,
    /// Whether vectors come in base64.
    pub is_base64: bool,
    /// What the answer repeats of the request.
    pub repeated: Map<String, Value>,
    pub(super) prompts: Option<Vec<Prompt>>,
    pub(super) messages: Option<Vec<Value>>,
    /// What the system says in front of the messages.
    pub(super) instructions: Option<String>,
    pub(super) template_kwargs: Map<String, Value>,
    pub(super) add_generation_prompt: Option<bool>,
    pub(super) continue_final_message: bool,
    pub(super) add_special_tokens: Option<bool>,
    pub(super) truncate_prompt_tokens: Option<usize>,
    pub(super) dimensions: Option<usize>,
    pub(super) prediction: Option<String>,
    /// What the answer has to match, and the field that says so.
    pub(super) grammar: Option<(&'static str, Grammar)>,
    /// Whether that is of the reasoning too.
    binds_reasoning: bool,
    pub(super) max_completion_tokens: Option<usize>,
    pub(super) chat_logprobs: bool,
    pub(super) top_logprobs: Option<usize>,
    pub(super) use_beam_search: bool,
    pub(super) length_penalty: f32,
    pub(super) early_stopping: EarlyStopping,
    pub(super) beam_length: BeamLength,
}

impl WireRequest {
    fn new(endpoint: Endpoint) -> Self {
        // A decoded text shows all of its tokens unless the request says otherwise; a generated one does not.
        let skip_special_tokens = endpoint != Endpoint::Detokenize;
        Self {
            model: None,
            adapter: None,
            params: SamplingParams { skip_special_tokens, ..SamplingParams::default() },
            stream: false,
            stream_usage: None,
            echo: false,
            tokens: None,
            tools: Tools::default(),
            reasoning_effort: None,
            include_reasoning: true,
            is_base64: false,
            repeated: Map::new(),
            prompts: None,
            messages: None,
            instructions: None,
            template_kwargs: Map::new(),
            add_generation_prompt: None,
            continue_final_message: false,
            add_special_tokens: None,
            truncate_prompt_tokens: None,
            dimensions: None,
            prediction: None,
            grammar: None,
            binds_reasoning: false,
            max_completion_tokens: None,
            chat_logprobs: false,
            top_logprobs: None,
            use_beam_search: false,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::default(),
            beam_length: BeamLength::default(),
        }
    }

    /// Reads the body of a request to `endpoint`. Every error names the field.
    pub fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Self, ApiError> {
        let mut request = Self::new(endpoint);
        let body = json_object(body)?;
        if endpoint == Endpoint::Responses {
            request.repeated = repeated(&body);
        }
        for (name, value) in body {
            let field = FIELDS.iter().find(|f| f.name == name && f.is_of(endpoint)).ok_or_else(|| {
                ApiError::invalid(name.clone(), format!("{name}: unknown field of {}", endpoint.path()))
            })?;
            if !value.is_null() {
                field.set(&mut request, FieldValue::new(name, value))?;
            }
        }
        request.check(endpoint)?;
        Ok(request)
    }

    /// Checks the fields against each other, and settles those that say the same thing twice.
    fn check(&mut self, endpoint: Endpoint) -> Result<(), ApiError> {
        if endpoint == Endpoint::Detokenize {
            return if self.tokens.is_some() { Ok(()) } else { Err(missing("tokens")) };
        }
        match (&self.prompts, &self.messages) {
            (Some(_), Some(_)) => return Err(ApiError::invalid("prompt", "prompt: cannot stand beside messages")),
            (None, None) if endpoint == Endpoint::Chat => return Err(missing("messages")),
            (None, None) if endpoint == Endpoint::Completions => return Err(missing("prompt")),
            (None, None) if endpoint.subjects() == ["input"] => return Err(missing("input")),
            (None, None) => return Err(ApiError::invalid("prompt", "prompt: either prompt or messages is required")),
            _ => {}
        }
        self.put_instructions();
        self.check_template()?;
        self.check_tools()?;
        self.check_special_tokens()?;
        self.check_lengths()?;
        self.check_logprobs(endpoint)?;
        self.check_beams()?;
        if self.stream_usage.is_some() && !self.stream {
            return Err(ApiError::invalid("stream_options", "stream_options: needs stream to be true"));
        }
        Ok(())
    }

    /// Puts the instructions in front of the conversation. Many templates know one message of the system's: what it says there is
    /// said behind them.
    fn put_instructions(&mut self) {
        let (Some(instructions), Some(messages)) = (self.instructions.take(), &mut self.messages) else { return };
        let num_system = messages.iter().take_while(|message| message["role"] == "system").count();
        let mut text = instructions;
        for message in messages.drain(..num_system) {
            text.push_str("\n\n");
            text.push_str(&text_of(&message["content"]));
        }
        messages.insert(0, json!({"role": "system", "content": text}));
    }

    /// Checks the fields of a conversation's template, and makes those that are variables there such.
    fn check_template(&mut self) -> Result<(), ApiError> {
        const ADD: &str = "add_generation_prompt";
        const EFFORT: &str = "reasoning_effort";
        let given = [
            ("chat_template_kwargs", !self.template_kwargs.is_empty()),
            (ADD, self.add_generation_prompt.is_some()),
            ("continue_final_message", self.continue_final_message),
            ("tools", !self.tools.list.is_empty()),
            (EFFORT, self.reasoning_effort.is_some()),
        ];
        if let (None, Some((name, _))) = (&self.messages, given.iter().find(|(_, is_given)| *is_given)) {
            return Err(ApiError::invalid(*name, format!("{name}: needs messages")));
        }
        let add = self.add_generation_prompt.map(|add| (ADD, add.into()));
        let effort = self.reasoning_effort.clone().map(|(field, effort)| (field, effort.into()));
        for (name, given) in [(ADD, add), (EFFORT, effort)] {
            let Some((field, value)): Option<(_, Value)> = given else { continue };
            match self.template_kwargs.insert(name.into(), value.clone()) {
                Some(other) if other != value => {
                    let message = format!("{field}: is {value}, but {other} in chat_template_kwargs");
                    return Err(ApiError::invalid(field, message));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// An answer that has to match something else cannot call tools.
    fn check_tools(&self) -> Result<(), ApiError> {
        self.tools.check()?;
        match self.grammar {
            Some((name, _)) if self.tools.is_any() => {
                let message = format!("{name}: cannot stand beside tools, unless tool_choice is \"none\"");
                Err(ApiError::invalid(name, message))
            }
            _ => Ok(()),
        }
    }

    /// They can be added to text. A template adds its own, and token ids are taken as they are.
    fn check_special_tokens(&self) -> Result<(), ApiError> {
        const ADD: &str = "add_special_tokens";
        let is_ids = |prompt: &Prompt| matches!(prompt, Prompt::Tokens(_));
        let refused = match &self.prompts {
            None => Some("messages, whose template has its own"),
            Some(prompts) if prompts.iter().any(is_ids) => Some("token ids, which are taken as they are"),
            Some(_) => None,
        };
        match refused.filter(|_| self.add_special_tokens == Some(true)) {
            Some(what) => Err(ApiError::invalid(ADD, format!("{ADD}: cannot be true for {what}"))),
            None => Ok(()),
        }
    }

    fn check_lengths(&mut self) -> Result<(), ApiError> {
        if self.max_completion_tokens == Some(0) {
            let message = "max_completion_tokens: must be at least 1, found 0";
            return Err(ApiError::invalid("max_completion_tokens", message));
        }
        let params = &mut self.params;
        match (params.max_tokens, self.max_completion_tokens) {
            (Some(a), Some(b)) if a != b => {
                let message = format!("max_completion_tokens: is {b}, but max_tokens, its older name, is {a}");
                return Err(ApiError::invalid("max_completion_tokens", message));
            }
            (None, newer) => params.max_tokens = newer,
            _ => {}
        }
        if params.max_tokens.is_none() && self.messages.is_none() {
            // A request for at least so many tokens is one for as many, rather than a contradiction.
            params.max_tokens = Some(DEFAULT_MAX_TOKENS.max(params.min_tokens));
        }
        Ok(())
    }

    fn check_logprobs(&mut self, endpoint: Endpoint) -> Result<(), ApiError> {
        if self.stream && endpoint != Endpoint::Generate && self.params.prompt_logprobs.is_some() {
            return Err(ApiError::invalid("prompt_logprobs", "prompt_logprobs: cannot be streamed"));
        }
        if let Some(found) = self.top_logprobs.filter(|&k| k > SamplingParams::MAX_LOGPROBS) {
            let most = SamplingParams::MAX_LOGPROBS;
            let message = format!("top_logprobs: must be from 0 to {most}, found {found}");
            return Err(ApiError::invalid("top_logprobs", message));
        }
        if self.chat_logprobs {
            self.params.logprobs = Some(self.top_logprobs.unwrap_or(0));
        } else if self.top_logprobs.is_some_and(|k| k > 0) {
            let needs = match endpoint {
                Endpoint::Responses => "include to have \"message.output_text.logprobs\"",
                _ => "logprobs to be true",
            };
            return Err(ApiError::invalid("top_logprobs", format!("top_logprobs: needs {needs}")));
        }
        // An echoed prompt has logprobs like the rest of the text.
        if self.echo && self.params.prompt_logprobs.is_none() {
            self.params.prompt_logprobs = self.params.logprobs;
        }
        Ok(())
    }

    /// Makes the fields of a beam search one, or refuses them where there is none.
    fn check_beams(&mut self) -> Result<(), ApiError> {
        let Self { params, length_penalty, early_stopping, beam_length, .. } = self;
        if self.use_beam_search {
            params.beam = Some(BeamParams {
                width: params.best_of.unwrap_or(params.n),
                length_penalty: *length_penalty,
                early_stopping: *early_stopping,
                length: *beam_length,
            });
            return Ok(());
        }
        let neutral = [
            ("length_penalty", "1", *length_penalty == 1.0),
            ("early_stopping", "false", *early_stopping == EarlyStopping::False),
            ("beam_length", "\"hf\"", *beam_length == BeamLength::Generated),
        ];
        for (name, value, is_neutral) in neutral {
            if !is_neutral {
                return Err(ApiError::invalid(name, format!("{name}: must be {value} without use_beam_search")));
            }
        }
        Ok(())
    }

    /// Whether it holds a conversation rather than a prompt.
    pub fn has_messages(&self) -> bool {
        self.messages.is_some()
    }

    /// The request to the engine, where the endpoint takes one prompt.
    pub fn take_request(&mut self) -> Result<GenerationRequest, ApiError> {
        self.take_requests().next().ok_or_else(|| missing("prompt"))
    }

    /// How many requests to the engine it makes.
    pub fn num_requests(&self) -> usize {
        if self.has_messages() { 1 } else { self.prompts.as_ref().map_or(0, Vec::len) }
    }

    /// The requests to the engine: one, or one a prompt.
    pub fn take_requests(&mut self) -> impl Iterator<Item = GenerationRequest> + use<'_> {
        let prompts = match self.messages.take() {
            Some(messages) => vec![Prompt::Chat(ChatInput {
                messages,
                tools: self.tools.is_any().then(|| std::mem::take(&mut self.tools.list)),
                template_kwargs: std::mem::take(&mut self.template_kwargs),
                continue_final_message: self.continue_final_message,
            })],
            None => self.prompts.take().unwrap_or_default(),
        };
        prompts.into_iter().map(|prompt| GenerationRequest {
            prompt,
            params: self.params.clone(),
            adapter: self.adapter.clone(),
            truncate_prompt_tokens: self.truncate_prompt_tokens,
            add_special_tokens: self.add_special_tokens.unwrap_or(true),
            prediction: self.prediction.clone(),
            grammar: self.grammar.as_ref().map(|(_, grammar)| grammar.clone()),
            binds_reasoning: self.binds_reasoning,
            marks: Marks::default(),
        })
    }

    /// The request to the engine, where vectors are wanted.
    pub fn take_embeddings(&mut self) -> EmbeddingRequest {
        EmbeddingRequest {
            inputs: self.prompts.take().unwrap_or_default(),
            adapter: self.adapter.clone(),
            dimensions: self.dimensions,
            truncate_prompt_tokens: self.truncate_prompt_tokens,
            add_special_tokens: self.add_special_tokens.unwrap_or(true),
        }
    }

    /// Takes what the answer has to match from the field `name`.
    pub(super) fn set_grammar(&mut self, name: &'static str, grammar: Grammar) -> Result<(), ApiError> {
        match self.grammar.replace((name, grammar)) {
            Some((other, _)) => Err(ApiError::invalid(name, format!("{name}: cannot stand beside {other}"))),
            None => Ok(()),
        }
    }

    /// The answer has to match what calls of the tools match, the reasoning before it too if `binds_reasoning`.
    pub fn require_calls(&mut self, (grammar, binds_reasoning): (Grammar, bool)) {
        (self.grammar, self.binds_reasoning) = (Some(("tools", grammar)), binds_reasoning);
    }

    /// The field that says what the answer has to match.
    pub fn grammar_field(&self) -> Option<&'static str> {
        self.grammar.as_ref().map(|&(name, _)| name)
    }
}

fn missing(name: &'static str) -> ApiError {
    ApiError::invalid(name, format!("{name}: is required"))
}

/// The members of a JSON object. The error says where the body stops being one.
fn json_object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    if let Err(e) = std::str::from_utf8(body) {
        return Err(ApiError::bad_body(format!("the body is not UTF-8: invalid byte at offset {}", e.valid_up_to())));
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(value) => {
            let body = FieldValue::new("the body", value);
            Err(ApiError::bad_body(body.expected("a JSON object").message))
        }
        Err(e) => Err(ApiError::bad_body(format!("the body is not JSON: {e}"))),
    }
}
