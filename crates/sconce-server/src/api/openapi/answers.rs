//! [`OBJECTS`]: what answers consist of. The tests of the Python clients hold real answers against it.

use crate::wire::Schema::{self, AnyOf, Bool, Int, List, Map, Number, OneOf, Only, OrNull, Ref, Text};
use crate::wire::{Member, Object, Rest, may, must};

pub(super) const COUNT: Schema = Int(0, i64::MAX);
const NUMBER: Schema = Number(f64::NEG_INFINITY, f64::INFINITY);
const LOGPROB: Schema = NUMBER;
const FINISH: Schema = OrNull(&OneOf(&["stop", "length", "abort"]));
const CHAT_FINISH: Schema = OrNull(&OneOf(&["stop", "length", "tool_calls", "abort"]));
const TEXTS: Schema = many(&Text);
const COUNTS: Schema = many(&COUNT);
const LOGPROBS: Schema = many(&Ref("TokenLogprobs"));
/// The first token of a prompt has none.
const PROMPT_LOGPROBS: Schema = many(&OrNull(&Ref("TokenLogprobs")));

/// What answers consist of.
#[rustfmt::skip]
pub(super) static OBJECTS: &[Object] = &[
    object("GenerateAnswer", "The answer of /generate, best first. Each text is prompt and output, or the output of messages.", &[
        must("text", TEXTS), must("outputs", many(&Ref("Output"))), must("model", Text), must("id", Text),
        must("usage", Ref("Usage")), may("prompt_logprobs", PROMPT_LOGPROBS),
    ]),
    object("GenerateRecord", "All of the answer so far; the last record is the answer.", &[
        must("text", TEXTS), must("outputs", many(&Ref("Output"))), must("model", Text), must("id", Text),
        may("usage", Ref("Usage")), may("prompt_logprobs", PROMPT_LOGPROBS),
    ]),
    object("Output", "One of the n answers. What is not known before it has ended is null.", &[
        must("index", COUNT), must("text", Text), must("token_ids", COUNTS), must("finish_reason", FINISH),
        must("stop_reason", AnyOf(&[Text, COUNT, Only("null")])), must("cumulative_logprob", OrNull(&LOGPROB)),
        must("logprobs", OrNull(&LOGPROBS)), may("beam_score", LOGPROB),
    ]),
    object("TokenLogprobs", "A token, its log-probability and rank, and the most probable ones in its place.", &[
        must("token_id", COUNT), must("token", Text), must("logprob", LOGPROB), must("rank", COUNT),
        must("top_logprobs", many(&Ref("TokenLogprob"))),
    ]),
    object("TokenLogprob", "A token, its log-probability and rank.", &[
        must("token_id", COUNT), must("token", Text), must("logprob", LOGPROB), must("rank", COUNT),
    ]),
    object("Usage", "Numbers of tokens.", &[
        must("prompt_tokens", COUNT), must("completion_tokens", COUNT), must("total_tokens", COUNT),
        must("prompt_tokens_details", Ref("PromptDetails")), may("completion_tokens_details", Ref("CompletionDetails")),
    ]),
    object("PromptDetails", "Tokens of the prompt that had been computed before.", &[must("cached_tokens", COUNT)]),
    object("CompletionDetails", "Tokens of the prediction that were right, and that were not; tokens of the reasoning, where there may be some.", &[
        may("accepted_prediction_tokens", COUNT), may("rejected_prediction_tokens", COUNT), may("reasoning_tokens", COUNT),
    ]),
    object("Completion", "The answer of /v1/completions: n choices for each prompt.", &[
        must("id", Text), must("object", Only("\"text_completion\"")), must("created", COUNT), must("model", Text),
        must("choices", many(&Ref("CompletionChoice"))), must("usage", Ref("Usage")),
    ]),
    object("CompletionChunk", "What the answer has grown by. Usage comes last, where it is asked for.", &[
        must("id", Text), must("object", Only("\"text_completion\"")), must("created", COUNT), must("model", Text),
        must("choices", many(&Ref("CompletionChoice"))), may("usage", OrNull(&Ref("Usage"))),
    ]),
    object("CompletionChoice", "One answer, or what it has grown by.", &[
        must("index", COUNT), must("text", Text), must("logprobs", OrNull(&Ref("CompletionLogprobs"))),
        must("finish_reason", FINISH), may("prompt_logprobs", PROMPT_LOGPROBS),
    ]),
    object("CompletionLogprobs", "Four lists with an entry for each token.", &[
        must("tokens", TEXTS), must("token_logprobs", many(&OrNull(&LOGPROB))),
        must("top_logprobs", many(&OrNull(&Map(&LOGPROB)))), must("text_offset", COUNTS),
    ]),
    object("ChatCompletion", "The answer of /v1/chat/completions.", &[
        must("id", Text), must("object", Only("\"chat.completion\"")), must("created", COUNT), must("model", Text),
        must("choices", many(&Ref("ChatChoice"))), must("usage", Ref("Usage")), may("prompt_logprobs", PROMPT_LOGPROBS),
    ]),
    object("ChatChoice", "One answer.", &[
        must("index", COUNT), must("message", Ref("ChatMessage")), must("logprobs", OrNull(&Ref("ChatLogprobs"))),
        must("finish_reason", CHAT_FINISH),
    ]),
    object("ChatMessage", "The model's message. Its content is null where there is nothing but reasoning and calls. Reasoning goes by two names.", &[
        must("role", Only("\"assistant\"")), must("content", OrNull(&Text)), must("refusal", Only("null")),
        may("reasoning_content", Text), may("reasoning", Text), may("tool_calls", List(&Ref("ToolCall"), 1, usize::MAX)),
    ]),
    object("ToolCall", "A call of a tool.", &[
        must("id", Text), must("type", Only("\"function\"")), must("function", Ref("FunctionCall")),
    ]),
    object("FunctionCall", "A function and its arguments: a JSON object, as text.", &[must("name", Text), must("arguments", Text)]),
    object("ChatLogprobs", "Log-probabilities of an answer's tokens.", &[
        must("content", many(&Ref("ChatTokenLogprobs"))), must("refusal", Only("null")),
    ]),
    object("ChatTokenLogprobs", "A token, its log-probability, and the most probable ones in its place.", &[
        must("token", Text), must("logprob", LOGPROB), must("bytes", COUNTS),
        must("top_logprobs", many(&Ref("ChatTokenLogprob"))),
    ]),
    object("ChatTokenLogprob", "A token and its log-probability.", &[
        must("token", Text), must("logprob", LOGPROB), must("bytes", COUNTS),
    ]),
    object("ChatCompletionChunk", "What the answer has grown by. Usage comes last, where it is asked for.", &[
        must("id", Text), must("object", Only("\"chat.completion.chunk\"")), must("created", COUNT), must("model", Text),
        must("choices", many(&Ref("ChatChunkChoice"))), may("usage", OrNull(&Ref("Usage"))),
    ]),
    object("ChatChunkChoice", "What one answer has grown by.", &[
        must("index", COUNT), must("delta", Ref("ChatDelta")), must("logprobs", OrNull(&Ref("ChatLogprobs"))),
        must("finish_reason", CHAT_FINISH),
    ]),
    object("ChatDelta", "The role, in the first chunk, and text, reasoning or calls.", &[
        may("role", Only("\"assistant\"")), may("content", Text), may("reasoning_content", Text), may("reasoning", Text),
        may("tool_calls", many(&Ref("ToolCallDelta"))),
    ]),
    object("ToolCallDelta", "Which call of an answer it is, its id and name when it begins, and more of its arguments.", &[
        must("index", COUNT), may("id", Text), may("type", Only("\"function\"")), must("function", Ref("FunctionCallDelta")),
    ]),
    object("FunctionCallDelta", "The function, when a call begins, and more of its arguments' text.", &[
        may("name", Text), must("arguments", Text),
    ]),
    object("Embeddings", "The answer of /v1/embeddings: a vector for each text.", &[
        must("object", Only("\"list\"")), must("data", many(&Ref("Embedding"))), must("model", Text),
        must("usage", Ref("EmbeddingUsage")),
    ]),
    object("Embedding", "A vector, as a list of numbers or in base64.", &[
        must("object", Only("\"embedding\"")), must("index", COUNT), must("embedding", AnyOf(&[many(&NUMBER), Text])),
    ]),
    object("EmbeddingUsage", "Numbers of tokens.", &[must("prompt_tokens", COUNT), must("total_tokens", COUNT)]),
    object("Tokens", "A prompt's tokens, and how many the model takes.", &[
        must("count", COUNT), must("max_model_len", COUNT), must("tokens", COUNTS),
    ]),
    object("DecodedText", "The text.", &[must("prompt", Text)]),
    object("Models", "The served models, once under each of their names, and their adapters.", &[
        must("object", Only("\"list\"")), must("data", many(&Ref("Model"))),
    ]),
    object("Model", "A served model, whose root is its first name, or an adapter (LoRA) of one, its parent, whose root is where it is from.", &[
        must("id", Text), must("object", Only("\"model\"")), must("created", COUNT), must("owned_by", Text),
        must("root", Text), must("parent", OrNull(&Text)), must("max_model_len", COUNT),
    ]),
    object("Health", "Whether requests are answered, or why not.", &[
        must("status", OneOf(&["ok", "loading", "draining", "stuck"])),
    ]),
    object("Version", "The program's version.", &[must("version", Text)]),
    object("ModelInfo", "What a model is, in the words that routers know.", &[
        must("model_path", Text), must("tokenizer_path", Text), must("served_model_name", Text), must("is_generation", Bool),
        must("max_model_len", COUNT), must("context_length", COUNT), must("max_total_num_tokens", COUNT),
        must("max_queued_and_running_requests", COUNT), must("page_size", COUNT), must("kv_cache_dtype", Text),
        must("device", Text),
    ]),
    object("ServerInfo", "How the server runs, and all of its models.", &[
        must("version", Text), must("tp_size", COUNT), must("dp_size", COUNT), must("models", many(&Ref("ModelInfo"))),
    ]),
    object("Load", "How much a model has to do.", &[
        must("dp_rank", COUNT), must("model", Text), must("num_reqs", COUNT), must("num_waiting_reqs", COUNT),
        must("num_tokens", COUNT),
    ]),
    object("Error", "An error. Once a stream has begun it is its last record or event.", &[must("error", Ref("ErrorDetail"))]),
    object("ErrorDetail", "What was expected and found, and the field that it is about.", &[
        must("message", Text), must("type", Text), must("param", OrNull(&Text)), must("code", OrNull(&Text)),
    ]),
];

pub(super) const fn object(name: &'static str, doc: &'static str, members: &'static [Member]) -> Object {
    Object { name, doc, members, rest: Rest::Unsaid }
}

/// A list of any length.
pub(super) const fn many(element: &'static Schema) -> Schema {
    List(element, 0, usize::MAX)
}
