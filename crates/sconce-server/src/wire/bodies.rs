//! The request bodies as JSON Schemas: from the table of fields, and from the objects that some fields hold.

use serde_json::{Map, Value, json};

use super::fields::{EFFORTS, Endpoint, FIELDS, Field};
use super::responses::TEXT_PARTS;
use super::schema::Schema::{AnyOf, List, OneOf, Only, Ref, SomeText, Text};
use super::schema::{Object, Rest, Schema, may, must, object, or_null, parse};

/// The id of a token.
pub(super) const TOKEN_ID: Schema = Schema::Int(0, u32::MAX as i64);
/// One prompt.
pub(super) const PROMPT: Schema = AnyOf(&[SomeText, List(&TOKEN_ID, 1, usize::MAX)]);
/// A JSON Schema, as it is or as text.
pub(super) const JSON_SCHEMA: Schema = AnyOf(&[Schema::Any, Text]);
/// Text, whole or in parts.
const CONTENT: Schema = AnyOf(&[Text, List(&Ref("TextPart"), 0, usize::MAX)]);

/// An item of a conversation.
pub(super) const ITEM: Schema =
    AnyOf(&[Ref("InputMessage"), Ref("FunctionCallItem"), Ref("FunctionResultItem"), Ref("ReasoningItem")]);
/// Text of an item, whole or in parts.
const ITEM_CONTENT: Schema = AnyOf(&[Text, List(&Ref("ItemTextPart"), 0, usize::MAX)]);
const ITEM_STATUS: Schema = Schema::OrNull(&OneOf(&["in_progress", "completed", "incomplete"]));

/// A message of a conversation.
pub(super) const MESSAGE: Schema = AnyOf(&[
    Ref("Message"),
    Ref("AssistantMessage"),
    Ref("MessageWithCalls"),
    Ref("ReasoningMessage"),
    Ref("ToolMessage"),
]);

/// The objects that fields hold.
pub static OBJECTS: &[Object] = &[
    Object {
        name: "Message",
        doc: "One message of a conversation. Other members may be there where they are null or empty lists.",
        members: &[
            must("role", OneOf(&["system", "developer", "user", "assistant"])),
            must("content", CONTENT),
            may("name", Schema::OrNull(&Text)),
        ],
        rest: Rest::Nothing,
    },
    Object {
        name: "AssistantMessage",
        doc: "The assistant's message with its reasoning, of which reasoning is another name.",
        members: &[
            must("role", Only("\"assistant\"")),
            must("content", CONTENT),
            may("reasoning_content", Schema::OrNull(&Text)),
            may("reasoning", Schema::OrNull(&Text)),
            may("name", Schema::OrNull(&Text)),
        ],
        rest: Rest::Nothing,
    },
    Object {
        name: "ReasoningMessage",
        doc: "The assistant's message where it only thought.",
        members: &[
            must("role", Only("\"assistant\"")),
            must("reasoning_content", Text),
            may("reasoning", Schema::OrNull(&Text)),
            may("content", Schema::OrNull(&CONTENT)),
            may("name", Schema::OrNull(&Text)),
        ],
        rest: Rest::Nothing,
    },
    Object {
        name: "MessageWithCalls",
        doc: "The assistant's message where it called tools.",
        members: &[
            must("role", Only("\"assistant\"")),
            must("tool_calls", List(&Ref("CallOfTool"), 1, usize::MAX)),
            may("content", Schema::OrNull(&CONTENT)),
            may("reasoning_content", Schema::OrNull(&Text)),
            may("reasoning", Schema::OrNull(&Text)),
            may("parsed", Schema::OrNull(&Schema::Any)),
            may("name", Schema::OrNull(&Text)),
        ],
        rest: Rest::Nothing,
    },
    Object {
        name: "CallOfTool",
        doc: "A call of a tool.",
        members: &[
            must("id", Text),
            must("type", Only("\"function\"")),
            must("function", Ref("CalledFunction")),
            may("index", Schema::OrNull(&Schema::Int(0, i64::MAX))),
        ],
        rest: Rest::Nothing,
    },
    Object {
        name: "CalledFunction",
        doc: "A function and its arguments: a JSON object, as text.",
        members: &[
            must("name", Schema::Name),
            must("arguments", Text),
            may("parsed_arguments", Schema::OrNull(&Schema::Any)),
        ],
        rest: Rest::Nothing,
    },
    Object {
        name: "ToolMessage",
        doc: "The result of a call.",
        members: &[
            must("role", Only("\"tool\"")),
            must("content", CONTENT),
            must("tool_call_id", Text),
            may("name", Schema::OrNull(&Text)),
        ],
        rest: Rest::Nothing,
    },
    Object {
        name: "Tool",
        doc: "A tool. No two have the same name.",
        members: &[must("type", Only("\"function\"")), must("function", Ref("Function"))],
        rest: Rest::Nothing,
    },
    Object {
        name: "Function",
        doc: "A function that can be called. Its parameters are a JSON Schema of an object; without them it takes no arguments.",
        members: &[
            must("name", Schema::Name),
            may("description", Schema::OrNull(&Text)),
            may("parameters", Schema::OrNull(&Schema::Any)),
            may("strict", Schema::OrNull(&Schema::Bool)),
        ],
        rest: Rest::Nothing,
    },
    Object {
        name: "NamedToolChoice",
        doc: "The tool that is to be called.",
        members: &[must("type", Only("\"function\"")), must("function", Ref("NamedFunction"))],
        rest: Rest::Nothing,
    },
    Object {
        name: "NamedFunction",
        doc: "The name of one of the tools.",
        members: &[must("name", Schema::Name)],
        rest: Rest::Refused,
    },
    Object {
        name: "TextPart",
        doc: "A part of a message's text.",
        members: &[must("type", Only("\"text\"")), must("text", Text)],
        rest: Rest::Nothing,
    },
    Object {
        name: "Prediction",
        doc: "What the answer will be for the most part.",
        members: &[must("type", Only("\"content\"")), must("content", CONTENT)],
        rest: Rest::Refused,
    },
    Object {
        name: "TextFormat",
        doc: "Text of any form.",
        members: &[must("type", Only("\"text\""))],
        rest: Rest::Refused,
    },
    Object {
        name: "JsonObjectFormat",
        doc: "A JSON object, by a schema if there is one.",
        members: &[must("type", Only("\"json_object\"")), may("schema", Schema::OrNull(&Schema::Any))],
        rest: Rest::Refused,
    },
    Object {
        name: "JsonSchemaFormat",
        doc: "JSON by a schema.",
        members: &[must("type", Only("\"json_schema\"")), must("json_schema", Ref("NamedJsonSchema"))],
        rest: Rest::Refused,
    },
    Object {
        name: "NamedJsonSchema",
        doc: "A JSON Schema, which is kept to whether it is strict or not.",
        members: &[
            must("schema", Schema::Any),
            may("name", Schema::OrNull(&Text)),
            may("description", Schema::OrNull(&Text)),
            may("strict", Schema::OrNull(&Schema::Bool)),
        ],
        rest: Rest::Refused,
    },
    Object { name: "ByJson", doc: "JSON by a schema.", members: &[must("json", JSON_SCHEMA)], rest: Rest::Refused },
    Object {
        name: "ByJsonObject",
        doc: "Any JSON object.",
        members: &[must("json_object", Only("true"))],
        rest: Rest::Refused,
    },
    Object {
        name: "ByRegex",
        doc: "What a regular expression matches as a whole.",
        members: &[must("regex", Text)],
        rest: Rest::Refused,
    },
    Object {
        name: "ByChoice",
        doc: "One of some texts.",
        members: &[must("choice", List(&Text, 0, usize::MAX))],
        rest: Rest::Refused,
    },
    Object {
        name: "ByGrammar",
        doc: "A text of a grammar in Lark's notation.",
        members: &[must("grammar", Text)],
        rest: Rest::Refused,
    },
    Object {
        name: "InputMessage",
        doc: "A message, of whoever says something or of an earlier answer.",
        members: &[
            may("type", Schema::OrNull(&Only("\"message\""))),
            must("role", OneOf(&["system", "developer", "user", "assistant"])),
            must("content", ITEM_CONTENT),
            may("id", Schema::OrNull(&Text)),
            may("status", ITEM_STATUS),
            may("phase", Schema::OrNull(&OneOf(&["commentary", "final_answer"]))),
        ],
        rest: Rest::Nothing,
    },
    Object {
        name: "ItemTextPart",
        doc: "A part of a message's text, or of a call's result.",
        members: &[
            must("type", OneOf(TEXT_PARTS)),
            must("text", Text),
            may("annotations", Schema::OrNull(&List(&Schema::Any, 0, usize::MAX))),
            may("logprobs", Schema::OrNull(&List(&Schema::Any, 0, usize::MAX))),
            may("parsed", Schema::OrNull(&Schema::Any)),
        ],
        rest: Rest::Nothing,
    },
    Object {
        name: "FunctionCallItem",
        doc: "A call of a function in an earlier answer. Its arguments are a JSON object, as text.",
        members: &[
            must("type", Only("\"function_call\"")),
            must("call_id", Text),
            must("name", Schema::Name),
            must("arguments", Text),
            may("id", Schema::OrNull(&Text)),
            may("status", ITEM_STATUS),
            may("parsed_arguments", Schema::OrNull(&Schema::Any)),
        ],
        rest: Rest::Nothing,
    },
    Object {
        name: "FunctionResultItem",
        doc: "The result of a call.",
        members: &[
            must("type", Only("\"function_call_output\"")),
            must("call_id", Text),
            must("output", ITEM_CONTENT),
            may("id", Schema::OrNull(&Text)),
            may("name", Schema::OrNull(&Schema::Name)),
            may("status", ITEM_STATUS),
        ],
        rest: Rest::Nothing,
    },
    Object {
        name: "ReasoningItem",
        doc: "What was thought in an earlier answer: all of it where it is there, else its summary.",
        members: &[
            must("type", Only("\"reasoning\"")),
            may("id", Schema::OrNull(&Text)),
            may("status", ITEM_STATUS),
            may("content", Schema::OrNull(&List(&Ref("ReasoningText"), 0, usize::MAX))),
            may("summary", Schema::OrNull(&List(&Ref("SummaryText"), 0, usize::MAX))),
        ],
        rest: Rest::Nothing,
    },
    Object {
        name: "ReasoningText",
        doc: "What was thought.",
        members: &[must("type", Only("\"reasoning_text\"")), must("text", Text)],
        rest: Rest::Refused,
    },
    Object {
        name: "SummaryText",
        doc: "What was thought, in short.",
        members: &[must("type", Only("\"summary_text\"")), must("text", Text)],
        rest: Rest::Refused,
    },
    Object {
        name: "FlatTool",
        doc: "A function that can be called. Its parameters are a JSON Schema of an object; without them it takes no arguments. \
            No two have the same name.",
        members: &[
            must("type", Only("\"function\"")),
            must("name", Schema::Name),
            may("description", Schema::OrNull(&Text)),
            may("parameters", Schema::OrNull(&Schema::Any)),
            may("strict", Schema::OrNull(&Schema::Bool)),
        ],
        rest: Rest::Nothing,
    },
    Object {
        name: "FlatToolChoice",
        doc: "The function that is to be called.",
        members: &[must("type", Only("\"function\"")), must("name", Schema::Name)],
        rest: Rest::Refused,
    },
    Object {
        name: "TextConfig",
        doc: "The form of an answer. Models here know no other verbosity.",
        members: &[
            may(
                "format",
                Schema::OrNull(&AnyOf(&[Ref("TextFormat"), Ref("AnyJsonObjectFormat"), Ref("FlatJsonSchemaFormat")])),
            ),
            may("verbosity", Schema::OrNull(&Only("\"medium\""))),
        ],
        rest: Rest::Refused,
    },
    Object {
        name: "AnyJsonObjectFormat",
        doc: "A JSON object.",
        members: &[must("type", Only("\"json_object\""))],
        rest: Rest::Refused,
    },
    Object {
        name: "FlatJsonSchemaFormat",
        doc: "JSON by a schema, which is kept to whether it is strict or not.",
        members: &[
            must("type", Only("\"json_schema\"")),
            must("schema", Schema::Any),
            may("name", Schema::OrNull(&Text)),
            may("description", Schema::OrNull(&Text)),
            may("strict", Schema::OrNull(&Schema::Bool)),
        ],
        rest: Rest::Refused,
    },
    Object {
        name: "ReasoningConfig",
        doc: "How much is thought. There are no summaries: what is thought comes as it is.",
        members: &[
            may("effort", Schema::OrNull(&OneOf(EFFORTS))),
            may("summary", Schema::OrNull(&Only("\"auto\""))),
            may("generate_summary", Schema::OrNull(&Only("\"auto\""))),
        ],
        rest: Rest::Refused,
    },
    Object {
        name: "ResponseStreamOptions",
        doc: "How a stream is written.",
        members: &[may("include_obfuscation", Schema::OrNull(&Only("false")))],
        rest: Rest::Refused,
    },
    Object {
        name: "StreamOptions",
        doc: "What a stream holds beside the answer.",
        members: &[
            may("include_usage", Schema::OrNull(&Schema::Bool)),
            may("include_obfuscation", Schema::OrNull(&Only("false"))),
        ],
        rest: Rest::Refused,
    },
];

/// The schema of the bodies that `endpoint` takes.
pub fn body(endpoint: Endpoint) -> Value {
    let subjects = endpoint.subjects();
    let properties: Map<String, Value> = FIELDS
        .iter()
        .filter(|field| field.is_of(endpoint))
        .map(|field| (field.name.to_owned(), property(field, subjects.contains(&field.name))))
        .collect();
    let is_one_of = subjects.len() > 1;
    let mut json = object(properties, if is_one_of { Vec::new() } else { subjects.to_vec() });
    if is_one_of {
        json["oneOf"] = subjects.iter().map(|name| json!({"required": [name]})).collect();
    }
    json["additionalProperties"] = false.into();
    json
}

/// Null means absent, but where the field is what the request is about.
fn property(field: &Field, is_subject: bool) -> Value {
    let schema = field.schema.to_json();
    let mut json = if is_subject { schema } else { or_null(schema) };
    json["description"] = field.doc.into();
    if let Some(default) = field.default {
        json["default"] = parse(default);
    }
    json
}

#[cfg(test)]
mod tests;
