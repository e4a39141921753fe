//! [`OBJECTS`]: what answers of `/v1/responses` consist of, and [`EVENTS`], what their streams do.

use super::answers::{COUNT, many, object};
use crate::wire::Schema::{self, Any, AnyOf, Bool, Number, OneOf, Only, OrNull, Ref, Text};
use crate::wire::{Object, may, must};

const STATUS: Schema = OneOf(&["in_progress", "completed", "incomplete"]);
const ITEM: Schema = AnyOf(&[Ref("OutputMessage"), Ref("OutputReasoning"), Ref("OutputCall")]);
const PART: Schema = AnyOf(&[Ref("OutputText"), Ref("ReasoningText")]);
const LOGPROBS: Schema = many(&Ref("ChatTokenLogprobs"));

/// What streams consist of.
pub(super) const EVENTS: &[Schema] = &[
    Ref("ResponseEvent"),
    Ref("ItemEvent"),
    Ref("PartEvent"),
    Ref("DeltaEvent"),
    Ref("TextEvent"),
    Ref("ArgumentsEvent"),
];

/// What answers consist of.
#[rustfmt::skip]
pub(super) static OBJECTS: &[Object] = &[
    object("Response", "The answer of /v1/responses, and fields of its request.", &[
        must("id", Text), must("object", Only("\"response\"")), must("created_at", COUNT), must("completed_at", OrNull(&COUNT)),
        must("status", OneOf(&["in_progress", "completed", "incomplete", "cancelled", "failed"])),
        must("error", OrNull(&Ref("ResponseError"))), must("incomplete_details", OrNull(&Ref("IncompleteDetails"))),
        must("model", Text), must("output", many(&ITEM)), must("usage", OrNull(&Ref("ResponseUsage"))),
        must("background", Bool), must("previous_response_id", Only("null")), must("service_tier", Text), must("store", Bool),
        must("instructions", OrNull(&Text)), must("max_output_tokens", OrNull(&COUNT)), must("max_tool_calls", OrNull(&COUNT)),
        must("metadata", Any), must("parallel_tool_calls", Bool), must("reasoning", Any), must("safety_identifier", OrNull(&Text)),
        must("temperature", Number(0.0, f64::INFINITY)), must("text", Any), must("tool_choice", AnyOf(&[Text, Any])),
        must("tools", many(&Any)), must("top_logprobs", OrNull(&COUNT)), must("top_p", Number(0.0, 1.0)), must("truncation", Text),
        must("user", OrNull(&Text)),
    ]),
    object("ResponseError", "What has ended an answer that had begun.", &[must("code", Only("\"server_error\"")), must("message", Text)]),
    object("IncompleteDetails", "Why an answer is not whole.", &[must("reason", Only("\"max_output_tokens\""))]),
    object("ResponseUsage", "Numbers of tokens.", &[
        must("input_tokens", COUNT), must("input_tokens_details", Ref("InputDetails")), must("output_tokens", COUNT),
        must("output_tokens_details", Ref("OutputDetails")), must("total_tokens", COUNT),
    ]),
    object("InputDetails", "Tokens of the input that had been computed before; none are written for a price.", &[
        must("cached_tokens", COUNT), must("cache_write_tokens", Only("0")),
    ]),
    object("OutputDetails", "Tokens of the output that are reasoning.", &[must("reasoning_tokens", COUNT)]),
    object("OutputMessage", "What the model says.", &[
        must("id", Text), must("type", Only("\"message\"")), must("status", STATUS), must("role", Only("\"assistant\"")),
        must("content", many(&Ref("OutputText"))),
    ]),
    object("OutputText", "Its text.", &[
        must("type", Only("\"output_text\"")), must("text", Text), must("annotations", many(&Any)), must("logprobs", LOGPROBS),
    ]),
    object("OutputReasoning", "What the model thinks before it answers.", &[
        must("id", Text), must("type", Only("\"reasoning\"")), must("status", STATUS), must("summary", many(&Any)),
        must("content", many(&Ref("ReasoningText"))),
    ]),
    object("OutputCall", "A call of a function. Its arguments are a JSON object, as text.", &[
        must("id", Text), must("type", Only("\"function_call\"")), must("status", STATUS), must("call_id", Text), must("name", Text),
        must("arguments", Text),
    ]),
    object("ResponseEvent", "The response as it stands when it begins and ends.", &[
        must("type", OneOf(&["response.created", "response.in_progress", "response.completed", "response.incomplete", "response.failed"])),
        must("sequence_number", COUNT), must("response", Ref("Response")),
    ]),
    object("ItemEvent", "An item begins or is whole.", &[
        must("type", OneOf(&["response.output_item.added", "response.output_item.done"])), must("sequence_number", COUNT),
        must("output_index", COUNT), must("item", ITEM),
    ]),
    object("PartEvent", "The text of an item begins or is whole.", &[
        must("type", OneOf(&["response.content_part.added", "response.content_part.done"])), must("sequence_number", COUNT),
        must("item_id", Text), must("output_index", COUNT), must("content_index", COUNT), must("part", PART),
    ]),
    object("DeltaEvent", "More text, or all arguments of a call.", &[
        must("type", OneOf(&["response.output_text.delta", "response.reasoning_text.delta", "response.function_call_arguments.delta"])),
        must("sequence_number", COUNT), must("item_id", Text), must("output_index", COUNT), may("content_index", COUNT),
        must("delta", Text), may("logprobs", LOGPROBS),
    ]),
    object("TextEvent", "The whole text of an item.", &[
        must("type", OneOf(&["response.output_text.done", "response.reasoning_text.done"])), must("sequence_number", COUNT),
        must("item_id", Text), must("output_index", COUNT), must("content_index", COUNT), must("text", Text), may("logprobs", LOGPROBS),
    ]),
    object("ArgumentsEvent", "The whole arguments of a call.", &[
        must("type", Only("\"response.function_call_arguments.done\"")), must("sequence_number", COUNT), must("item_id", Text),
        must("output_index", COUNT), must("arguments", Text),
    ]),
];
