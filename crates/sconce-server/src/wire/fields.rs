//! [`FIELDS`]: every field of every request body, one entry each: how it is read, and what `/openapi.json` says of it. A field
//! that is not here is refused.

use sconce::{BeamLength, EarlyStopping, Grammar, SamplingParams};

use super::bodies::{ITEM, JSON_SCHEMA, MESSAGE, PROMPT, TOKEN_ID};
use super::format::{guided_json, response_format, structured_outputs};
use super::messages::{messages, prediction};
use super::prompt::{MAX_INPUTS, inputs, one_prompt, prompts};
use super::request::WireRequest;
use super::responses::{INCLUDABLE, flat_tool_choice, flat_tools, include, input, plain_stream, reasoning, text};
use super::schema::Schema::{
    self, Any, AnyOf, Bool, Int, List, Number, OfTokens, OneOf, Only, Positive, Ref, SomeText, Text,
};
use super::tools::{MAX_TOOLS, tool_choice, tools};
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
    /// `POST /v1/responses`.
    Responses = 32,
    /// `POST /v1/embeddings`.
    Embeddings = 64,
}

impl Endpoint {
    /// Every endpoint.
    pub const ALL: [Self; 7] = [
        Self::Generate,
        Self::Completions,
        Self::Chat,
        Self::Responses,
        Self::Embeddings,
        Self::Tokenize,
        Self::Detokenize,
    ];

    /// The path under which it is reached.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Generate => "/generate",
            Self::Completions => "/v1/completions",
            Self::Chat => "/v1/chat/completions",
            Self::Responses => "/v1/responses",
            Self::Embeddings => "/v1/embeddings",
            Self::Tokenize => "/tokenize",
            Self::Detokenize => "/detokenize",
        }
    }

    /// The fields that say what is asked about: exactly one of them must be there.
    pub const fn subjects(self) -> &'static [&'static str] {
        match self {
            Self::Generate | Self::Tokenize => &["prompt", "messages"],
            Self::Completions => &["prompt"],
            Self::Chat => &["messages"],
            Self::Responses | Self::Embeddings => &["input"],
            Self::Detokenize => &["tokens"],
        }
    }
}

/// One field of a request body.
pub struct Field {
    /// Its name on the wire.
    pub name: &'static str,
    /// The endpoints that take it, as a sum of [`Endpoint`]s.
    endpoints: u8,
    /// What it takes.
    pub schema: Schema,
    /// What its absence means, as JSON, where a value says the same.
    pub default: Option<&'static str>,
    /// What it is for, in a sentence.
    pub doc: &'static str,
    /// Reads it into the request. Never called with null, which means absent.
    set: fn(&mut WireRequest, FieldValue) -> Result<(), ApiError>,
}

const GENERATE: u8 = Endpoint::Generate as u8;
const COMPLETIONS: u8 = Endpoint::Completions as u8;
const CHAT: u8 = Endpoint::Chat as u8;
const TOKENIZE: u8 = Endpoint::Tokenize as u8;
const DETOKENIZE: u8 = Endpoint::Detokenize as u8;
const RESPONSES: u8 = Endpoint::Responses as u8;
const EMBEDDINGS: u8 = Endpoint::Embeddings as u8;
const OPENAI: u8 = COMPLETIONS | CHAT;
const SAMPLED: u8 = GENERATE | OPENAI;
/// Where an answer is generated, one or several.
const ANSWERED: u8 = SAMPLED | RESPONSES;
const TEMPLATED: u8 = GENERATE | CHAT | TOKENIZE;
const ALL: u8 = ANSWERED | EMBEDDINGS | TOKENIZE | DETOKENIZE;

/// Words for how much to think.
pub(super) const EFFORTS: &[&str] = &["none", "minimal", "low", "medium", "high", "xhigh"];

/// Bounds of integers and lists.
const MAX: i64 = i64::MAX;
const MANY: usize = usize::MAX;
const MAX_N: i64 = SamplingParams::MAX_N as i64;
const MAX_LOGPROBS: i64 = SamplingParams::MAX_LOGPROBS as i64;
const MAX_STOP: usize = SamplingParams::MAX_STOP;
const INFINITY: f64 = f64::INFINITY;

/// Every field of every request body.
#[rustfmt::skip]
pub static FIELDS: &[Field] = &[
    field("model", ALL, Text, |r, v| v.store(&mut r.model),
        "The name of a served model, or of one of its adapters (LoRA); may be absent where one model is served."),
    // What is to be continued.
    field("prompt", GENERATE | TOKENIZE, PROMPT, |r, v| one_prompt(v).map(|p| r.prompts = Some(vec![p])),
        "Formatted text, or token ids, taken as they stand."),
    field("prompt", COMPLETIONS, AnyOf(&[PROMPT, List(&PROMPT, 1, MANY)]), |r, v| prompts(v).map(|p| r.prompts = Some(p)),
        "One prompt or several, each text or token ids."),
    field("messages", TEMPLATED, List(&MESSAGE, 1, MANY), |r, v| messages(v).map(|m| r.messages = Some(m)),
        "A conversation, to which the model's chat template is applied."),
    field("input", RESPONSES, AnyOf(&[SomeText, List(&ITEM, 1, MANY)]), |r, v| input(v).map(|m| r.messages = Some(m)),
        "What the user says, or a conversation: messages, calls of functions and their results, and what was thought before them."),
    field("input", EMBEDDINGS, AnyOf(&[PROMPT, List(&PROMPT, 1, MAX_INPUTS)]), |r, v| inputs(v).map(|p| r.prompts = Some(p)),
        "One text or several, at most 2048, each text or token ids."),
    field("encoding_format", EMBEDDINGS, OneOf(&["float", "base64"]), |r, v| encoding_format(v).map(|is_base64| r.is_base64 = is_base64),
        "Whether vectors come as lists of numbers or in base64, of little-endian numbers of 32 bits.").or("\"float\""),
    field("dimensions", EMBEDDINGS, Int(1, MAX), |r, v| at_least_one(v).map(|n| r.dimensions = Some(n)),
        "Keep so many first numbers of each vector, normalised anew, where the model's config says that it is trained for that."),
    field("instructions", RESPONSES, Text, |r, v| v.store(&mut r.instructions),
        "What the system says; in front of the system's messages that input begins with."),
    field("tokens", DETOKENIZE, List(&TOKEN_ID, 0, MANY), |r, v| v.store(&mut r.tokens),
        "Token ids to decode."),
    field("tools", CHAT | TOKENIZE, List(&Ref("Tool"), 0, MAX_TOOLS), |r, v| tools(v).map(|t| r.tools.list = t),
        "Functions that the model may call; needs messages, and a chat template that knows tools.").or("[]"),
    field("tools", RESPONSES, List(&Ref("FlatTool"), 0, MAX_TOOLS), |r, v| flat_tools(v).map(|t| r.tools.list = t),
        "Functions that the model may call; needs a chat template that knows tools.").or("[]"),
    field("tool_choice", CHAT, AnyOf(&[OneOf(&["none", "auto", "required"]), Ref("NamedToolChoice")]), |r, v| tool_choice(v).map(|c| r.tools.choice = c),
        "Which tools are called: none, of which the model is told none then; those that it likes to; one at least; or the one named. \
        Where a call has to come it matches its schema; otherwise arguments are as the model writes them, strict or not.").or("\"auto\""),
    field("tool_choice", RESPONSES, AnyOf(&[OneOf(&["none", "auto", "required"]), Ref("FlatToolChoice")]), |r, v| flat_tool_choice(v).map(|c| r.tools.choice = c),
        "Which functions are called: none, those that the model likes to, one at least, or the one named. \
        Where a call has to come it matches its schema; otherwise arguments are as the model writes them, strict or not.").or("\"auto\""),
    field("max_tool_calls", RESPONSES, Int(1, MAX), |_, v| at_least_one(v).map(drop),
        "The most calls of tools that the server itself has, of which there are none."),
    field("parallel_tool_calls", CHAT | RESPONSES, Bool, |r, v| v.store(&mut r.tools.is_parallel),
        "Whether an answer may have several calls; if not, what the model writes behind the first call is left out.").or("true"),
    field("chat_template_kwargs", TEMPLATED | RESPONSES, Any, |r, v| object(v).map(|o| r.template_kwargs = o),
        "Further variables of the chat template; needs messages, or input.").or("{}"),
    field("reasoning_effort", CHAT | TOKENIZE, OneOf(EFFORTS), |r, v| effort(v).map(|e| r.reasoning_effort = Some(("reasoning_effort", e))),
        "How much the model is to think before it answers; needs messages, and a chat template that knows it."),
    field("include_reasoning", CHAT, Bool, |r, v| v.store(&mut r.include_reasoning),
        "Whether the answer tells what the model thought, where it thinks: as reasoning_content, and the same as reasoning.").or("true"),
    field("add_generation_prompt", TEMPLATED, Bool, |r, v| v.store(&mut r.add_generation_prompt),
        "Whether the chat template opens the answer, as it does unless told otherwise; needs messages."),
    field("continue_final_message", TEMPLATED, Bool, |r, v| v.store(&mut r.continue_final_message),
        "Continue the last message in place of answering it; needs messages.").or("false"),
    field("add_special_tokens", COMPLETIONS | EMBEDDINGS | TOKENIZE, Bool, |r, v| v.store(&mut r.add_special_tokens),
        "Whether text gets the special tokens that the model's tokenizer adds, as it does unless told otherwise."),
    field("prediction", CHAT, Ref("Prediction"), |r, v| prediction(v).map(|text| r.prediction = Some(text)),
        "What the answer will be for the most part, which makes it faster and never other; needs a server that drafts."),
    field("truncate_prompt_tokens", ANSWERED | EMBEDDINGS, Int(1, MAX), |r, v| at_least_one(v).map(|n| r.truncate_prompt_tokens = Some(n)),
        "Keep so many tokens of the prompt, the last ones."),
    // How long.
    field("max_tokens", SAMPLED, Int(1, MAX), |r, v| at_least_one(v).map(|n| r.params.max_tokens = Some(n)),
        "The most tokens to generate; absent: 16 for a prompt, the rest of the context for messages."),
    field("max_completion_tokens", CHAT, Int(1, MAX), |r, v| at_least_one(v).map(|n| r.max_completion_tokens = Some(n)),
        "The newer name of max_tokens."),
    field("max_output_tokens", RESPONSES, Int(1, MAX), |r, v| at_least_one(v).map(|n| r.params.max_tokens = Some(n)),
        "The most tokens to generate; absent: the rest of the context."),
    field("min_tokens", ANSWERED, Int(0, MAX), |r, v| v.store(&mut r.params.min_tokens),
        "Neither an end token nor a stop text counts before so many tokens; at most max_tokens, or max_output_tokens.").or("0"),
    field("stop", ANSWERED, AnyOf(&[SomeText, List(&SomeText, 0, MAX_STOP)]), |r, v| stop(v).map(|s| r.params.stop = s),
        "Texts that end an answer, each of at most 4096 bytes.").or("[]"),
    field("stop_token_ids", ANSWERED, List(&TOKEN_ID, 0, MAX_STOP), |r, v| v.store(&mut r.params.stop_token_ids),
        "Tokens that end an answer.").or("[]"),
    field("include_stop_str_in_output", ANSWERED, Bool, |r, v| v.store(&mut r.params.include_stop_str_in_output),
        "Whether the stop text that ended an answer stays in it.").or("false"),
    field("ignore_eos", ANSWERED, Bool, |r, v| v.store(&mut r.params.ignore_eos),
        "Whether the model's end tokens are generated like any other.").or("false"),
    // How many.
    field("n", SAMPLED, Int(1, MAX_N), |r, v| v.store(&mut r.params.n),
        "Answers to return.").or("1"),
    field("best_of", ANSWERED, Int(1, MAX_N), |r, v| v.store(&mut r.params.best_of),
        "Answers to generate, of which the n best are returned: at least n, and n where absent."),
    field("use_beam_search", ANSWERED, Bool, |r, v| v.store(&mut r.use_beam_search),
        "Beam search in place of sampling, with best_of, else n, beams: at least 2.").or("false"),
    field("length_penalty", ANSWERED, Number(-INFINITY, INFINITY), |r, v| v.store(&mut r.length_penalty),
        "The exponent of the length by which a beam's log-probability is divided; needs beam search.").or("1"),
    field("early_stopping", ANSWERED, AnyOf(&[Bool, OneOf(&["never"])]), |r, v| early_stopping(v).map(|when| r.early_stopping = when),
        "When a beam search ends, once enough beams have: at once (true), when no other is better as it stands (false), or when none can become so.").or("false"),
    field("beam_length", ANSWERED, OneOf(&["hf", "vllm"]), |r, v| beam_length(v).map(|length| r.beam_length = length),
        "Which length a beam has: its generated tokens, as in transformers, or those of the prompt too, as in vLLM.").or("\"hf\""),
    // Which tokens.
    field("temperature", ANSWERED, Number(0.0, INFINITY), |r, v| v.store(&mut r.params.temperature),
        "What logits are divided by; 0 always takes the most probable token.").or("1"),
    field("top_p", ANSWERED, Positive(1.0), |r, v| v.store(&mut r.params.top_p),
        "Draw from the fewest tokens whose probabilities reach this sum.").or("1"),
    field("top_k", ANSWERED, Int(-1, MAX), |r, v| top_k(v).map(|k| r.params.top_k = k),
        "Draw from so many tokens, the most probable; -1 and 0: from all.").or("-1"),
    field("min_p", ANSWERED, Number(0.0, 1.0), |r, v| v.store(&mut r.params.min_p),
        "Draw from tokens with at least this share of the greatest probability.").or("0"),
    field("presence_penalty", ANSWERED, Number(-2.0, 2.0), |r, v| v.store(&mut r.params.presence_penalty),
        "Subtracted once from the logit of a token that was generated before.").or("0"),
    field("frequency_penalty", ANSWERED, Number(-2.0, 2.0), |r, v| v.store(&mut r.params.frequency_penalty),
        "Subtracted from a token's logit as often as it was generated before.").or("0"),
    field("repetition_penalty", ANSWERED, Positive(2.0), |r, v| v.store(&mut r.params.repetition_penalty),
        "Divides positive logits of tokens seen in prompt or answer, and multiplies negative ones.").or("1"),
    field("logit_bias", ANSWERED, OfTokens(&Number(-100.0, 100.0)), |r, v| logit_bias(v).map(|b| r.params.logit_bias = b),
        "Added to the logits of tokens, by their ids.").or("{}"),
    field("seed", ANSWERED, Int(i64::MIN, MAX), |r, v| v.store(&mut r.params.seed),
        "64 bits, signed or not, that make the answer the same each time; absent: drawn."),
    // What the answer has to match.
    field("response_format", SAMPLED, AnyOf(&[Ref("TextFormat"), Ref("JsonObjectFormat"), Ref("JsonSchemaFormat")]), response_format,
        "The form of the answer: text, any JSON object, or JSON by a schema."),
    field("text", RESPONSES, Ref("TextConfig"), text,
        "The form of the answer: text, any JSON object, or JSON by a schema.").or("{\"format\": {\"type\": \"text\"}}"),
    field("structured_outputs", ANSWERED, AnyOf(&[Ref("ByJson"), Ref("ByJsonObject"), Ref("ByRegex"), Ref("ByChoice"), Ref("ByGrammar")]), structured_outputs,
        "The form of the answer in vLLM's words: JSON by a schema, any JSON object, a regular expression, one of some texts, or a grammar in Lark's notation."),
    field("guided_json", ANSWERED, JSON_SCHEMA, |r, v| guided_json(v).and_then(|g| r.set_grammar("guided_json", g)),
        "JSON Schema of the answer, as an object or as text."),
    field("guided_regex", ANSWERED, Text, |r, v| v.read().and_then(|regex| r.set_grammar("guided_regex", Grammar::Regex(regex))),
        "Regular expression that matches the answer as a whole."),
    field("guided_choice", ANSWERED, List(&Text, 0, MANY), |r, v| v.read().and_then(|texts| r.set_grammar("guided_choice", Grammar::Choice(texts))),
        "Texts of which the answer is one."),
    field("guided_grammar", ANSWERED, Text, |r, v| v.read().and_then(|lark| r.set_grammar("guided_grammar", Grammar::Lark(lark))),
        "Grammar of the answer in Lark's notation."),
    // What comes back.
    field("stream", ANSWERED, Bool, |r, v| v.store(&mut r.stream),
        "Answer while tokens are generated.").or("false"),
    field("stream_options", OPENAI, Ref("StreamOptions"), |r, v| stream_options(v).map(|usage| r.stream_usage = Some(usage)),
        "What a stream holds beside the answer; needs stream."),
    field("stream_options", RESPONSES, Ref("ResponseStreamOptions"), |_, v| plain_stream(v),
        "How a stream is written.").or("{}"),
    field("include", RESPONSES, List(&OneOf(INCLUDABLE), 0, MANY), include,
        "What the answer holds beside what it always does: log-probabilities of the text's tokens. What was thought is there anyway, \
        as text, so that its encrypted form is not needed.").or("[]"),
    field("echo", COMPLETIONS, Bool, |r, v| v.store(&mut r.echo),
        "Whether the answer begins with the prompt.").or("false"),
    field("logprobs", GENERATE | COMPLETIONS, Int(0, MAX_LOGPROBS), |r, v| v.store(&mut r.params.logprobs),
        "Report each token's log-probability, and those of so many most probable ones."),
    field("logprobs", CHAT, Bool, |r, v| v.store(&mut r.chat_logprobs),
        "Report each token's log-probability.").or("false"),
    field("top_logprobs", RESPONSES, Int(0, MAX_LOGPROBS), |r, v| v.store(&mut r.top_logprobs),
        "Report those of so many most probable tokens too; above 0 it needs message.output_text.logprobs to be included."),
    field("top_logprobs", CHAT, Int(0, MAX_LOGPROBS), |r, v| v.store(&mut r.top_logprobs),
        "Report those of so many most probable tokens too; above 0 it needs logprobs."),
    field("prompt_logprobs", SAMPLED, Int(0, MAX_LOGPROBS), |r, v| v.store(&mut r.params.prompt_logprobs),
        "The same as logprobs is for an answer, for the prompt's tokens; not streamed but by /generate."),
    field("logprobs_mode", ANSWERED, OneOf(&["raw", "processed"]), |r, v| v.store(&mut r.params.logprobs_mode),
        "Whether log-probabilities are the model's own, or those after penalties, temperature and filters.").or("\"raw\""),
    field("skip_special_tokens", ANSWERED, Bool, |r, v| v.store(&mut r.params.skip_special_tokens),
        "Whether special tokens are left out of the text.").or("true"),
    field("skip_special_tokens", DETOKENIZE, Bool, |r, v| v.store(&mut r.params.skip_special_tokens),
        "Whether special tokens are left out of the text.").or("false"),
    field("spaces_between_special_tokens", ANSWERED, Bool, |r, v| v.store(&mut r.params.spaces_between_special_tokens),
        "Whether special tokens that stay in the text are set apart by spaces.").or("true"),
    // Accepted where they ask for nothing that is not done anyway.
    field("suffix", COMPLETIONS, Only("\"\""), |_, v| only(v, "no suffix", |s: &String| s.is_empty()),
        "What follows the answer: nothing else is supported."),
    field("modalities", CHAT, Only("[\"text\"]"), |_, v| only(v, "[\"text\"]", |m: &Vec<String>| *m == ["text"]),
        "What an answer consists of."),
    field("reasoning", RESPONSES, Ref("ReasoningConfig"), reasoning,
        "How much is thought before the answer, where the chat template has a word for that (`reasoning_effort`).")
        .or("{\"effort\": null, \"summary\": null}"),
    field("background", RESPONSES, Only("false"), |_, v| only(v, "false: answers are waited for", |background: &bool| !background),
        "Whether the answer is to be asked for later, which none is."),
    field("previous_response_id", RESPONSES, Only("null"), |_, v| Err(v.refuse("nothing is stored here: send the whole conversation as input")),
        "An earlier answer to go on from: none is stored, and input has to hold the whole conversation."),
    field("conversation", RESPONSES, Only("null"), |_, v| Err(v.refuse("nothing is stored here: send the whole conversation as input")),
        "A conversation to go on with: none is stored, and input has to hold it."),
    field("prompt", RESPONSES, Only("null"), |_, v| Err(v.refuse("no prompts are stored here: send the text as input and instructions")),
        "A stored prompt, of which there are none."),
    field("truncation", RESPONSES, OneOf(&["disabled"]), |_, v| only(v, "\"disabled\"", |t: &String| t == "disabled"),
        "What is done with an input that is too long: it is refused; truncate_prompt_tokens shortens it.").or("\"disabled\""),
    field("store", CHAT | RESPONSES, Only("false"), |_, v| only(v, "false: nothing is stored", |store: &bool| !store),
        "Whether the answer is stored, which none is."),
    field("service_tier", CHAT | RESPONSES, OneOf(&["auto", "default"]), |_, v| only(v, "\"auto\" or \"default\"", |t: &String| matches!(t.as_str(), "auto" | "default")),
        "There is one."),
    field("metadata", CHAT | RESPONSES, Any, |_, v| object(v).map(drop),
        "What the client wants to note: nothing is done with it.").or("{}"),
    field("user", OPENAI | RESPONSES | EMBEDDINGS, Text, |_, v| v.read::<String>().map(drop),
        "Who asks: nothing is done with it."),
    field("safety_identifier", CHAT | RESPONSES, Text, |_, v| v.read::<String>().map(drop),
        "Who asks: nothing is done with it."),
    field("prompt_cache_key", CHAT | RESPONSES, Text, |_, v| v.read::<String>().map(drop),
        "Which requests begin alike: nothing is done with it, for that is found out anyway."),
];

const fn field(
    name: &'static str,
    endpoints: u8,
    schema: Schema,
    set: fn(&mut WireRequest, FieldValue) -> Result<(), ApiError>,
    doc: &'static str,
) -> Field {
    Field { name, endpoints, schema, default: None, doc, set }
}

impl Field {
    /// The same, where `default` says what its absence says.
    const fn or(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }

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

/// How much to think.
pub(super) fn effort(v: FieldValue) -> Result<String, ApiError> {
    match v.value.as_str() {
        Some(effort) if EFFORTS.contains(&effort) => v.read(),
        _ => Err(v.expected("\"none\", \"minimal\", \"low\", \"medium\", \"high\" or \"xhigh\"")),
    }
}

fn at_least_one(v: FieldValue) -> Result<usize, ApiError> {
    let error = v.expected("an integer, at least 1");
    v.read().ok().filter(|&n| n > 0).ok_or(error)
}

/// Whether it is base64.
fn encoding_format(v: FieldValue) -> Result<bool, ApiError> {
    match v.value.as_str() {
        Some("float") => Ok(false),
        Some("base64") => Ok(true),
        _ => Err(v.expected("\"float\" or \"base64\"")),
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
