//! Conversations as OpenAI's clients send them.

use serde_json::{Map, Value};

use super::tools::tool_calls;
use super::value::FieldValue;
use crate::http::ApiError;

/// A conversation: at least one message, each with a role and text, or calls of tools.
pub(super) fn messages(v: FieldValue) -> Result<Vec<Value>, ApiError> {
    let empty = v.refuse("must not be empty");
    let messages: Vec<Value> = v.list("a list of messages")?.map(message).collect::<Result<_, _>>()?;
    if messages.is_empty() { Err(empty) } else { Ok(messages) }
}

fn message(v: FieldValue) -> Result<Value, ApiError> {
    let (no_role, no_content) = (v.refuse("has no role"), v.refuse("has no content"));
    let two_reasonings = v.refuse("reasoning and reasoning_content are two names of one thing, and differ");
    let no_call_id = v.refuse("has no tool_call_id, which says of what call it is the result");
    let (mut misplaced, mut message) = (None, Map::new());
    let author = v.value["role"].as_str().unwrap_or_default().to_owned();
    for (key, value) in v.members("an object with role and content")? {
        match key.as_str() {
            "role" => drop(message.insert(key, role(value)?)),
            // What the official client sends back of an earlier answer: content, refusal, tool_calls, annotations, audio.
            _ if value.value.is_null() => {}
            "content" => drop(message.insert(key, content(value)?)),
            "name" => drop(message.insert(key, Value::String(value.read()?))),
            _ if is_nothing(&value.value) => {}
            // The content as the official client has read it.
            "parsed" if author == "assistant" && value.value.is_object() => {}
            "reasoning_content" | "reasoning" if author == "assistant" => {
                drop(message.insert(key, Value::String(value.read()?)));
            }
            "tool_calls" if author == "assistant" => drop(message.insert(key, tool_calls(value)?)),
            "tool_call_id" if author == "tool" => drop(message.insert(key, Value::String(value.read()?))),
            // Said once it is known that there is a role.
            "reasoning_content" | "reasoning" => {
                misplaced = Some(value.refuse("only a message with the role \"assistant\" has reasoning"));
            }
            "tool_calls" => misplaced = Some(value.refuse("only a message with the role \"assistant\" has calls")),
            "tool_call_id" => {
                misplaced = Some(value.refuse("only a message with the role \"tool\" is a call's result"))
            }
            _ => return Err(value.refuse("unknown or unsupported field of a message")),
        }
    }
    let has = |key: &str| message.contains_key(key);
    match misplaced {
        _ if !has("role") => Err(no_role),
        Some(error) => Err(error),
        None if !["content", "tool_calls", "reasoning_content"].into_iter().any(has) => Err(no_content),
        None if has("reasoning")
            && has("reasoning_content")
            && message["reasoning"] != message["reasoning_content"] =>
        {
            Err(two_reasonings)
        }
        None if author == "tool" && !has("tool_call_id") => Err(no_call_id),
        None => Ok(Value::Object(message)),
    }
}

/// Null, or an empty list.
pub(super) fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

pub(super) fn role(v: FieldValue) -> Result<Value, ApiError> {
    match v.value.as_str() {
        // The newer name of the same role; chat templates know the older one.
        Some("developer") => Ok("system".into()),
        Some("system" | "user" | "assistant" | "tool") => Ok(v.value),
        _ => Err(v.expected("\"system\", \"developer\", \"user\", \"assistant\" or \"tool\"")),
    }
}

fn content(v: FieldValue) -> Result<Value, ApiError> {
    if v.value.is_string() {
        return Ok(v.value);
    }
    let parts = v.list("a string or a list of text parts")?;
    Ok(Value::Array(parts.map(part).collect::<Result<_, _>>()?))
}

fn part(v: FieldValue) -> Result<Value, ApiError> {
    let no_text = v.refuse("expected {\"type\": \"text\", \"text\": ...}");
    let mut part = Map::new();
    for (key, value) in v.members("an object with type and text")? {
        match key.as_str() {
            "type" if value.value == "text" => drop(part.insert(key, value.value)),
            "type" => return Err(value.expected("\"text\": no other content is supported")),
            "text" => drop(part.insert(key, Value::String(value.read()?))),
            _ if is_nothing(&value.value) => {}
            _ => return Err(value.refuse("unknown field of a text part")),
        }
    }
    if part.len() == 2 { Ok(Value::Object(part)) } else { Err(no_text) }
}

/// `prediction`: the text that the answer will be for the most part.
pub(super) fn prediction(v: FieldValue) -> Result<String, ApiError> {
    let (no_type, no_content) = (v.refuse("has no type"), v.refuse("has no content"));
    let (mut has_type, mut text) = (false, None);
    for (key, value) in v.members("an object with type and content")? {
        match key.as_str() {
            "type" if value.value == "content" => has_type = true,
            "type" => return Err(value.expected("\"content\"")),
            "content" => text = Some(text_of(&content(value)?)),
            _ => return Err(value.refuse("unknown field")),
        }
    }
    if has_type { text.ok_or(no_content) } else { Err(no_type) }
}

/// All of a message's text.
pub(super) fn text_of(content: &Value) -> String {
    match content {
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        content => content.as_str().unwrap_or_default().to_owned(),
    }
}
