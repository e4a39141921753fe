//! Bodies of `/v1/responses`, where they are not a chat's: items of a conversation, tools without a `function` around them, and
//! how the answer is written. Nothing is stored, so that the input is the whole conversation.

#[cfg(test)]
mod tests;

use serde_json::{Map, Value, json};

use super::fields::{Endpoint, FIELDS, effort, only};
use super::format;
use super::messages::{is_nothing, role};
use super::request::WireRequest;
use super::schema::parse;
use super::tools::{ToolChoice, choice_in_a_word, each_tool, function, name, only_name};
use super::value::{FieldValue, describe};
use crate::http::ApiError;

/// Log-probabilities of the text's tokens.
const LOGPROBS: &str = "message.output_text.logprobs";
/// What can be included in an answer.
pub(super) const INCLUDABLE: &[&str] = &[LOGPROBS, "reasoning.encrypted_content"];

/// Parts of a message that are text.
pub(super) const TEXT_PARTS: &[&str] = &["input_text", "output_text", "text"];

/// Fields that the answer repeats, as they were given or by default.
const REPEATED: &[&str] = &[
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "parallel_tool_calls",
    "reasoning",
    "safety_identifier",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "truncation",
    "user",
];

/// What the answer to `body` repeats of it.
pub(super) fn repeated(body: &Map<String, Value>) -> Map<String, Value> {
    let of = |&name: &&str| {
        let given = body.get(name).filter(|value| !value.is_null()).cloned();
        let default = || FIELDS.iter().find(|f| f.name == name && f.is_of(Endpoint::Responses))?.default.map(parse);
        (name.to_owned(), given.or_else(default).unwrap_or_default())
    };
    REPEATED.iter().map(of).collect()
}

/// `input`: what the user says, or the items of a conversation.
pub(super) fn input(v: FieldValue) -> Result<Vec<Value>, ApiError> {
    if let Some(text) = v.value.as_str().filter(|text| !text.is_empty()) {
        return Ok(vec![json!({"role": "user", "content": text})]);
    }
    let empty = v.refuse("must not be empty");
    let mut items = v.list("a string that is not empty, or a list of items")?.peekable();
    if items.peek().is_none() {
        return Err(empty);
    }
    let mut conversation = Conversation::default();
    items.try_for_each(|item| conversation.push(item))?;
    Ok(conversation.finish())
}

/// Messages, as chat templates take them, of items: what the assistant thought, said and called in one turn is one message.
#[derive(Default)]
struct Conversation {
    messages: Vec<Value>,
    /// What was thought before the item to come.
    thoughts: Option<String>,
}

impl Conversation {
    fn push(&mut self, v: FieldValue) -> Result<(), ApiError> {
        match v.value.get("type").filter(|kind| !kind.is_null()).map_or(Some("message"), Value::as_str) {
            Some("message") => {
                let message = message(v)?;
                if message["role"] != "assistant" {
                    self.end_thoughts();
                }
                self.add(message);
            }
            Some("function_call") => {
                let call = call(v)?;
                match self.messages.last_mut() {
                    Some(last) if self.thoughts.is_none() && last["role"] == "assistant" => {
                        match &mut last["tool_calls"] {
                            Value::Array(calls) => calls.push(call),
                            none => *none = json!([call]),
                        }
                    }
                    _ => self.add(json!({"role": "assistant", "tool_calls": [call]})),
                }
            }
            Some("function_call_output") => {
                let result = result(v)?;
                self.end_thoughts();
                self.messages.push(result);
            }
            Some("reasoning") => {
                let thoughts = thoughts(v)?;
                if !thoughts.is_empty() {
                    self.thoughts.get_or_insert_default().push_str(&thoughts);
                }
            }
            Some("item_reference") => {
                return Err(v.refuse("nothing is stored here: send the item itself in place of a reference"));
            }
            _ => {
                let kinds = "an item of the type message, function_call, function_call_output or reasoning";
                return Err(v.refuse(format_args!("expected {kinds}, found the type {}", describe(&v.value["type"]))));
            }
        }
        Ok(())
    }

    /// A message, with what was thought before it where it is the assistant's.
    fn add(&mut self, mut message: Value) {
        if let Some(thoughts) = self.thoughts.take() {
            message["reasoning_content"] = thoughts.into();
        }
        self.messages.push(message);
    }

    /// Nothing was said after thinking.
    fn end_thoughts(&mut self) {
        if self.thoughts.is_some() {
            self.add(json!({"role": "assistant", "content": ""}));
        }
    }

    fn finish(mut self) -> Vec<Value> {
        self.end_thoughts();
        self.messages
    }
}

/// Reads the members of an item but those that only say where it came from: its type, id and status.
fn members(v: FieldValue, mut read: impl FnMut(String, FieldValue) -> Result<(), ApiError>) -> Result<(), ApiError> {
    for (key, value) in v.members("an item, which is an object")? {
        match key.as_str() {
            "content" | "output" => read(key, value)?,
            _ if is_nothing(&value.value) => {}
            "type" => {}
            "id" => drop(value.read::<String>()?),
            "status" => only(value, "\"in_progress\", \"completed\" or \"incomplete\"", |status: &String| {
                matches!(status.as_str(), "in_progress" | "completed" | "incomplete")
            })?,
            _ => read(key, value)?,
        }
    }
    Ok(())
}

fn unknown(value: &FieldValue) -> ApiError {
    value.refuse("unknown or unsupported field of an item")
}

fn message(v: FieldValue) -> Result<Value, ApiError> {
    let (no_role, no_content) = (v.refuse("has no role"), v.refuse("has no content"));
    let mut message = Map::new();
    members(v, |key, value| {
        match key.as_str() {
            "role" if value.value == "tool" => {
                return Err(value.expected("\"system\", \"developer\", \"user\" or \"assistant\""));
            }
            "role" => drop(message.insert(key, role(value)?)),
            "content" => drop(message.insert(key, content(value)?)),
            // Whether it was the answer or said on the way there: templates know no such difference.
            "phase" => only(value, "\"commentary\" or \"final_answer\"", |phase: &String| {
                matches!(phase.as_str(), "commentary" | "final_answer")
            })?,
            _ => return Err(unknown(&value)),
        }
        Ok(())
    })?;
    match (message.contains_key("role"), message.contains_key("content")) {
        (false, _) => Err(no_role),
        (_, false) => Err(no_content),
        _ => Ok(Value::Object(message)),
    }
}

/// A call, as a chat's messages have it.
fn call(v: FieldValue) -> Result<Value, ApiError> {
    let missing = ["call_id", "name", "arguments"].map(|name| v.refuse(format_args!("has no {name}")));
    let [no_id, no_name, no_arguments] = missing;
    let (mut id, mut function, mut arguments) = (None, None, None);
    members(v, |key, value| {
        match key.as_str() {
            "call_id" => id = Some(value.read::<String>()?),
            "name" => function = Some(name(value)?),
            "arguments" => arguments = Some(value.read::<String>()?),
            // The same as the official client has read them.
            "parsed_arguments" if value.value.is_object() => {}
            _ => return Err(unknown(&value)),
        }
        Ok(())
    })?;
    let (name, arguments) = (function.ok_or(no_name)?, arguments.ok_or(no_arguments)?);
    Ok(json!({"id": id.ok_or(no_id)?, "type": "function", "function": {"name": name, "arguments": arguments}}))
}

/// Text, whole or in parts, as a chat's messages have it.
fn content(v: FieldValue) -> Result<Value, ApiError> {
    if v.value.is_string() {
        return Ok(v.value);
    }
    let part = |part: FieldValue| {
        let no_text = part.refuse("expected {\"type\": \"input_text\", \"text\": ...}");
        let (mut has_type, mut text) = (false, None);
        for (key, value) in part.members("an object with type and text")? {
            match key.as_str() {
                "type" if TEXT_PARTS.contains(&value.value.as_str().unwrap_or_default()) => has_type = true,
                "type" => {
                    return Err(value.expected("\"input_text\" or \"output_text\": no other content is supported"));
                }
                "text" => text = Some(value.read::<String>()?),
                // What an answer says of its text.
                "annotations" | "logprobs" if value.value.is_array() => {}
                // The text as the official client has read it.
                "parsed" if value.value.is_object() => {}
                _ if is_nothing(&value.value) => {}
                _ => return Err(value.refuse("unknown field of a text part")),
            }
        }
        match text {
            Some(text) if has_type => Ok(json!({"type": "text", "text": text})),
            _ => Err(no_text),
        }
    };
    Ok(Value::Array(v.list("a string or a list of text parts")?.map(part).collect::<Result<_, _>>()?))
}

/// The result of a call.
fn result(v: FieldValue) -> Result<Value, ApiError> {
    let (no_id, no_output) =
        (v.refuse("has no call_id, which says of what call it is the result"), v.refuse("has no output"));
    let (mut id, mut output) = (None, None);
    members(v, |key, value| {
        match key.as_str() {
            "call_id" => id = Some(value.read::<String>()?),
            "output" => output = Some(content(value)?),
            "name" => drop(name(value)?),
            _ => return Err(unknown(&value)),
        }
        Ok(())
    })?;
    Ok(json!({"role": "tool", "content": output.ok_or(no_output)?, "tool_call_id": id.ok_or(no_id)?}))
}

/// What was thought: all of it where it is there, and a summary elsewhere.
fn thoughts(v: FieldValue) -> Result<String, ApiError> {
    let (mut whole, mut summary) = (None, None);
    members(v, |key, value| {
        match key.as_str() {
            "content" if is_nothing(&value.value) => {}
            "content" => whole = Some(texts(value, "reasoning_text")?),
            "summary" => summary = Some(texts(value, "summary_text")?),
            "encrypted_content" => return Err(value.refuse("cannot be read here: send what was thought as content")),
            _ => return Err(unknown(&value)),
        }
        Ok(())
    })?;
    Ok(whole.or(summary).unwrap_or_default())
}

/// The texts of parts of one kind, joined.
fn texts(v: FieldValue, kind: &str) -> Result<String, ApiError> {
    let mut joined = String::new();
    for part in v.list("a list of parts")? {
        let no_text = part.refuse(format_args!("expected {{\"type\": {kind:?}, \"text\": ...}}"));
        let (mut has_type, mut text) = (false, None);
        for (key, value) in part.members("an object with type and text")? {
            match key.as_str() {
                "type" if value.value == kind => has_type = true,
                "text" => text = Some(value.read::<String>()?),
                _ => return Err(no_text),
            }
        }
        joined += &text.filter(|_| has_type).ok_or(no_text)?;
    }
    Ok(joined)
}

/// `tools`: functions, no two of the same name. They come out as chats have them.
pub(super) fn flat_tools(v: FieldValue) -> Result<Vec<Value>, ApiError> {
    each_tool(v, |v| Ok(json!({"type": "function", "function": function(without_type(v)?)?})))
}

/// `tool_choice`.
pub(super) fn flat_tool_choice(v: FieldValue) -> Result<ToolChoice, ApiError> {
    if let Some(choice) = choice_in_a_word(&v) {
        return Ok(choice);
    }
    if !v.value.is_object() {
        return Err(v.expected("\"none\", \"auto\", \"required\", or an object with type and name"));
    }
    let name = only_name(without_type(v)?)?;
    Ok(ToolChoice::Named(name.as_str().unwrap_or_default().to_owned()))
}

/// An object whose type is "function", without it.
fn without_type(mut v: FieldValue) -> Result<FieldValue, ApiError> {
    let no_type = v.refuse("has no type");
    let Value::Object(members) = &mut v.value else { return Err(v.expected("an object with type and name")) };
    match members.shift_remove("type") {
        Some(kind) if kind == "function" => Ok(v),
        Some(kind) => {
            let found = describe(&kind);
            Err(v.refuse(format_args!("expected the type \"function\", found {found}: no other tools are supported")))
        }
        None => Err(no_type),
    }
}

/// `text`: the form of the answer.
pub(super) fn text(request: &mut WireRequest, v: FieldValue) -> Result<(), ApiError> {
    for (key, value) in v.members("an object with a format")? {
        match key.as_str() {
            _ if value.value.is_null() => {}
            "format" => {
                if let Some(grammar) = format::flat_format(value)? {
                    request.set_grammar("text", grammar)?;
                }
            }
            "verbosity" => only(value, "\"medium\": models here know no other", |v: &String| v == "medium")?,
            _ => return Err(value.refuse("unknown field")),
        }
    }
    Ok(())
}

/// `reasoning`: how much is thought.
pub(super) fn reasoning(request: &mut WireRequest, v: FieldValue) -> Result<(), ApiError> {
    for (key, value) in v.members("an object with an effort")? {
        match key.as_str() {
            _ if value.value.is_null() => {}
            "effort" => request.reasoning_effort = Some(("reasoning", effort(value)?)),
            "summary" | "generate_summary" => {
                only(value, "\"auto\": what is thought comes as it is, without a summary", |s: &String| s == "auto")?;
            }
            _ => return Err(value.refuse("unknown field")),
        }
    }
    Ok(())
}

/// `include`.
pub(super) fn include(request: &mut WireRequest, v: FieldValue) -> Result<(), ApiError> {
    for what in v.list("a list of what is to be included")? {
        match what.value.as_str() {
            Some(LOGPROBS) => request.chat_logprobs = true,
            Some(name) if INCLUDABLE.contains(&name) => {}
            _ => return Err(what.expected("\"message.output_text.logprobs\" or \"reasoning.encrypted_content\"")),
        }
    }
    Ok(())
}

/// `stream_options`.
pub(super) fn plain_stream(v: FieldValue) -> Result<(), ApiError> {
    for (key, value) in v.members("an object")? {
        match key.as_str() {
            _ if value.value.is_null() => {}
            "include_obfuscation" => only(value, "false: events are not padded", |on: &bool| !on)?,
            _ => return Err(value.refuse("unknown field")),
        }
    }
    Ok(())
}
