//! [`FIELDS`]: every field of every request body, one line each. A field that is not here is refused.

use sconce::{BeamLength, EarlyStopping};

use super::messages::{messages, no_tools, only_text_format, prediction, tool_choice};
use super::prompt::{one_prompt, prompts};
use super::request::WireRequest;
use super::value::{FieldValue, FromField};
use crate::http::ApiError;

/// An endpoint that takes a JSON body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Endpoint {
    /// `POST /generate`.
    Generate = 1,
    /// `POST /v1/completions`.
    Completions = 2,
    /// `POST /v1/chat/completions`.
    Chat = 4,
    /// `POST /tokenize`.
    Tokenize = 8,
    /// `POST /detokenize`.
    Detokenize = 16,
}

impl Endpoint {
    /// The path under which it is reached.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Generate => "/generate",
            Self::Completions => "/v1/completions",
            Self::Chat => "/v1/chat/completions",
            Self::Tokenize => "/tokenize",
            Self::Detokenize => "/detokenize",
        }
    }
}

/// One field of a request body.
pub struct Field {
    /// Its name on the wire.
    pub name: &'static str,
    /// The endpoints that take it, as a sum of [`Endpoint`]s.
    endpoints: u8,
    /// Reads it into the request. Never called with null, which means absent.
    set: fn(&mut WireRequest, FieldValue) -> Result<(), ApiError>,
}

const GENERATE: u8 = Endpoint::Generate as u8;
const COMPLETIONS: u8 = Endpoint::Completions as u8;
const CHAT: u8 = Endpoint::Chat as u8;
const TOKENIZE: u8 = Endpoint::Tokenize as u8;
const DETOKENIZE: u8 = Endpoint::Detokenize as u8;
const OPENAI: u8 = COMPLETIONS | CHAT;
const SAMPLED: u8 = GENERATE | OPENAI;
const TEMPLATED: u8 = GENERATE | CHAT | TOKENIZE;
const ALL: u8 = SAMPLED | TOKENIZE | DETOKENIZE;

/// Every field of every request body.
#[rustfmt::skip]
pub static FIELDS: &[Field] = &[
    field("model", ALL, |r, v| v.store(&mut r.model)),
    // What is to be continued.
    field("prompt", GENERATE | TOKENIZE, |r, v| one_prompt(v).map(|p| r.prompts = Some(vec![p]))),
    field("prompt", COMPLETIONS, |r, v| prompts(v).map(|p| r.prompts = Some(p))),
    field("messages", TEMPLATED, |r, v| messages(v).map(|m| r.messages = Some(m))),
    field("tokens", DETOKENIZE, |r, v| v.store(&mut r.tokens)),
    field("chat_template_kwargs", TEMPLATED, |r, v| object(v).map(|o| r.template_kwargs = o)),
    field("add_generation_prompt", TEMPLATED, |r, v| v.store(&mut r.add_generation_prompt)),
    field("continue_final_message", TEMPLATED, |r, v| v.store(&mut r.continue_final_message)),
    field("add_special_tokens", COMPLETIONS | TOKENIZE, |r, v| v.store(&mut r.add_special_tokens)),
    field("prediction", CHAT, |r, v| prediction(v).map(|text| r.prediction = Some(text))),
    field("truncate_prompt_tokens", SAMPLED, |r, v| at_least_one(v).map(|n| r.truncate_prompt_tokens = Some(n))),
    // How long.
    field("max_tokens", SAMPLED, |r, v| v.store(&mut r.params.max_tokens)),
    field("max_completion_tokens", CHAT, |r, v| v.store(&mut r.max_completion_tokens)),
    field("min_tokens", SAMPLED, |r, v| v.store(&mut r.params.min_tokens)),
    field("stop", SAMPLED, |r, v| stop(v).map(|s| r.params.stop = s)),
    field("stop_token_ids", SAMPLED, |r, v| v.store(&mut r.params.stop_token_ids)),
    field("include_stop_str_in_output", SAMPLED, |r, v| v.store(&mut r.params.include_stop_str_in_output)),
    field("ignore_eos", SAMPLED, |r, v| v.store(&mut r.params.ignore_eos)),
    // How many.
    field("n", SAMPLED, |r, v| v.store(&mut r.params.n)),
    field("best_of", SAMPLED, |r, v| v.store(&mut r.params.best_of)),
    field("use_beam_search", SAMPLED, |r, v| v.store(&mut r.use_beam_search)),
    field("length_penalty", SAMPLED, |r, v| v.store(&mut r.length_penalty)),
    field("early_stopping", SAMPLED, |r, v| early_stopping(v).map(|when| r.early_stopping = when)),
    field("beam_length", SAMPLED, |r, v| beam_length(v).map(|length| r.beam_length = length)),
    // Which tokens.
    field("temperature", SAMPLED, |r, v| v.store(&mut r.params.temperature)),
    field("top_p", SAMPLED, |r, v| v.store(&mut r.params.top_p)),
    field("top_k", SAMPLED, |r, v| top_k(v).map(|k| r.params.top_k = k)),
    field("min_p", SAMPLED, |r, v| v.store(&mut r.params.min_p)),
    field("presence_penalty", SAMPLED, |r, v| v.store(&mut r.params.presence_penalty)),
    field("frequency_penalty", SAMPLED, |r, v| v.store(&mut r.params.frequency_penalty)),
    field("repetition_penalty", SAMPLED, |r, v| v.store(&mut r.params.repetition_penalty)),
    field("logit_bias", SAMPLED, |r, v| logit_bias(v).map(|b| r.params.logit_bias = b)),
    field("seed", SAMPLED, |r, v| v.store(&mut r.params.seed)),
    // What comes back.
    field("stream", SAMPLED, |r, v| v.store(&mut r.stream)),
    field("stream_options", OPENAI, |r, v| stream_options(v).map(|usage| r.stream_usage = Some(usage))),
    field("echo", COMPLETIONS, |r, v| v.store(&mut r.echo)),
    field("logprobs", GENERATE | COMPLETIONS, |r, v| v.store(&mut r.params.logprobs)),
    field("logprobs", CHAT, |r, v| v.store(&mut r.chat_logprobs)),
    field("top_logprobs", CHAT, |r, v| v.store(&mut r.top_logprobs)),
    field("prompt_logprobs", SAMPLED, |r, v| v.store(&mut r.params.prompt_logprobs)),
    field("logprobs_mode", SAMPLED, |r, v| v.store(&mut r.params.logprobs_mode)),
    field("skip_special_tokens", SAMPLED | DETOKENIZE, |r, v| v.store(&mut r.params.skip_special_tokens)),
    field("spaces_between_special_tokens", SAMPLED, |r, v| v.store(&mut r.params.spaces_between_special_tokens)),
    // Accepted where they ask for nothing that is not done anyway.
    field("suffix", COMPLETIONS, |_, v| only(v, "no suffix", |s: &String| s.is_empty())),
    field("response_format", CHAT, |_, v| only_text_format(v)),
    field("tools", CHAT, |_, v| no_tools(v)),
    field("tool_choice", CHAT, |_, v| tool_choice(v)),
    field("parallel_tool_calls", CHAT, |_, v| only(v, "true or false", |_: &bool| true)),
    field("modalities", CHAT, |_, v| only(v, "[\"text\"]", |m: &Vec<String>| *m == ["text"])),
    field("store", CHAT, |_, v| only(v, "false: nothing is stored", |store: &bool| !store)),
    field("service_tier", CHAT, |_, v| only(v, "\"auto\" or \"default\"", |t: &String| matches!(t.as_str(), "auto" | "default"))),
    field("metadata", CHAT, |_, v| object(v).map(drop)),
    field("user", OPENAI, |_, v| v.read::<String>().map(drop)),
    field("safety_identifier", CHAT, |_, v| v.read::<String>().map(drop)),
    field("prompt_cache_key", CHAT, |_, v| v.read::<String>().map(drop)),
];

const fn field(
    name: &'static str,
    endpoints: u8,
    set: fn(&mut WireRequest, FieldValue) -> Result<(), ApiError>,
) -> Field {
    Field { name, endpoints, set }
}

impl Field {
    /// Whether `endpoint` takes it.
    pub fn is_of(&self, endpoint: Endpoint) -> bool {
        self.endpoints & endpoint as u8 != 0
    }

    /// Reads `value` into `request`.
    pub(super) fn set(&self, request: &mut WireRequest, value: FieldValue) -> Result<(), ApiError> {
        (self.set)(request, value)
    }
}

/// A field with one acceptable meaning.
pub(super) fn only<T: FromField>(v: FieldValue, expected: &str, accepts: fn(&T) -> bool) -> Result<(), ApiError> {
    let error = v.expected(expected);
    if accepts(&v.read()?) { Ok(()) } else { Err(error) }
}

fn object(v: FieldValue) -> Result<serde_json::Map<String, serde_json::Value>, ApiError> {
    match v.value {
        serde_json::Value::Object(map) => Ok(map),
        _ => Err(v.expected("an object")),
    }
}

fn at_least_one(v: FieldValue) -> Result<usize, ApiError> {
    let error = v.expected("an integer, at least 1");
    match v.read()? {
        0 => Err(error),
        n => Ok(n),
    }
}

fn stop(v: FieldValue) -> Result<Vec<String>, ApiError> {
    if v.value.is_string() {
        Ok(vec![v.read()?])
    } else {
        v.list("a string or a list of strings")?.map(FieldValue::read).collect()
    }
}

fn top_k(v: FieldValue) -> Result<Option<usize>, ApiError> {
    let error = v.expected("-1 or 0 (off), or an integer, at least 1");
    match v.read::<i64>()? {
        -1 | 0 => Ok(None),
        k => usize::try_from(k).map(Some).map_err(|_| error),
    }
}

fn early_stopping(v: FieldValue) -> Result<EarlyStopping, ApiError> {
    match (v.value.as_bool(), v.value.as_str()) {
        (Some(false), _) => Ok(EarlyStopping::False),
        (Some(true), _) => Ok(EarlyStopping::True),
        (_, Some("never")) => Ok(EarlyStopping::Never),
        _ => Err(v.expected("true, false or \"never\"")),
    }
}

fn beam_length(v: FieldValue) -> Result<BeamLength, ApiError> {
    match v.value.as_str() {
        Some("hf") => Ok(BeamLength::Generated),
        Some("vllm") => Ok(BeamLength::PromptAndGenerated),
        _ => Err(v.expected("\"hf\" or \"vllm\"")),
    }
}

fn logit_bias(v: FieldValue) -> Result<Vec<(u32, f32)>, ApiError> {
    let bias = |(key, value): (String, FieldValue)| {
        let id = key.parse().map_err(|_| value.refuse("the name must be a token id"))?;
        Ok((id, value.read()?))
    };
    v.members("an object of token ids and biases")?.map(bias).collect()
}

/// Whether usage is to be sent at the end of the stream.
fn stream_options(v: FieldValue) -> Result<bool, ApiError> {
    let mut include_usage = false;
    for (key, value) in v.members("an object")? {
        match key.as_str() {
            _ if value.value.is_null() => {}
            "include_usage" => value.store(&mut include_usage)?,
            "include_obfuscation" => only(value, "false: chunks are not padded", |on: &bool| !on)?,
            _ => return Err(value.refuse("unknown field")),
        }
    }
    Ok(include_usage)
}
