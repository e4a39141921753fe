//! Tools that a model may call: `tools`, `tool_choice`, `parallel_tool_calls`, and the calls in messages.

#[cfg(test)]
mod tests;

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::messages::is_nothing;
use super::value::FieldValue;
use crate::http::ApiError;

/// Most tools of one request, as OpenAI has it.
pub(super) const MAX_TOOLS: usize = 128;
const MAX_NAME_BYTES: usize = 64;

/// Which tools an answer calls.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ToolChoice {
    /// None, and the model is not told of any.
    None,
    /// Those that the model likes to.
    #[default]
    Auto,
    /// One at least.
    Required,
    /// This one.
    Named(String),
}

/// What a request says of tools.
#[derive(Debug, Clone)]
pub struct Tools {
    /// Each as templates take it: `{"type": "function", "function": {...}}`, without what only says how to answer.
    pub list: Vec<Value>,
    /// Which are called.
    pub choice: ToolChoice,
    /// Whether there may be several calls.
    pub is_parallel: bool,
}

impl Default for Tools {
    fn default() -> Self {
        Self { list: Vec::new(), choice: ToolChoice::Auto, is_parallel: true }
    }
}

impl Tools {
    /// Whether the model is to know of them.
    pub fn is_any(&self) -> bool {
        !self.list.is_empty() && self.choice != ToolChoice::None
    }

    /// The tools' names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.list.iter().filter_map(|tool| tool["function"]["name"].as_str())
    }

    /// Checks the choice against the list.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        let refuse = |name: &str, what: &str| Err(ApiError::invalid(name, format!("{name}: {what}")));
        match &self.choice {
            ToolChoice::None | ToolChoice::Auto => Ok(()),
            _ if self.list.is_empty() => refuse("tool_choice", "needs tools"),
            ToolChoice::Named(name) if !self.names().any(|tool| tool == name) => {
                refuse("tool_choice", &format!("{name:?} is not among tools"))
            }
            _ => Ok(()),
        }
    }
}

/// `tools`: functions, no two of the same name.
pub(super) fn tools(v: FieldValue) -> Result<Vec<Value>, ApiError> {
    each_tool(v, |v| function_of(v, Kind::Tool, function))
}

/// Tools, each of which `read` brings into the form of a chat's.
pub(super) fn each_tool(
    v: FieldValue,
    read: impl Fn(FieldValue) -> Result<Value, ApiError>,
) -> Result<Vec<Value>, ApiError> {
    if let Some(num) = v.value.as_array().map(Vec::len).filter(|&num| num > MAX_TOOLS) {
        return Err(v.refuse(format_args!("at most {MAX_TOOLS} tools are taken, found {num}")));
    }
    let mut names = HashSet::new();
    let mut tool = |v: FieldValue| {
        let twice = v.refuse("another tool has the same name");
        let tool = read(v)?;
        let name = tool["function"]["name"].as_str().unwrap_or_default();
        if names.insert(name.to_owned()) { Ok(tool) } else { Err(twice) }
    };
    v.list("a list of tools")?.map(&mut tool).collect()
}

/// What an object with a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tool,
    Choice,
    Call,
}

/// `{"type": "function", "function": ...}`, whose function `read` reads. With an `id`, where it is a call.
fn function_of(v: FieldValue, kind: Kind, read: fn(FieldValue) -> Result<Value, ApiError>) -> Result<Value, ApiError> {
    let (no_type, no_function, no_id) = (v.refuse("has no type"), v.refuse("has no function"), v.refuse("has no id"));
    let mut members = Map::new();
    for (key, value) in v.members("an object with type and function")? {
        match key.as_str() {
            "type" if value.value == "function" => drop(members.insert(key, value.value)),
            "type" => return Err(value.expected("\"function\"")),
            "function" => drop(members.insert(key, read(value)?)),
            "id" if kind == Kind::Call => drop(members.insert(key, Value::String(value.read()?))),
            _ if is_nothing(&value.value) => {}
            // As a stream has it, and clients that put one together.
            "index" if kind == Kind::Call => drop(value.read::<usize>()?),
            _ => return Err(value.refuse("unknown field")),
        }
    }
    let has = |key: &str| members.contains_key(key);
    match kind {
        _ if !has("type") => Err(no_type),
        _ if !has("function") => Err(no_function),
        Kind::Call if !has("id") => Err(no_id),
        _ => Ok(Value::Object(members)),
    }
}

/// A function that can be called.
pub(super) fn function(v: FieldValue) -> Result<Value, ApiError> {
    let no_name = v.refuse("has no name");
    let mut function = Map::new();
    for (key, value) in v.members("an object with a name")? {
        match key.as_str() {
            "name" => drop(function.insert(key, name(value)?)),
            _ if is_nothing(&value.value) => {}
            "description" => drop(function.insert(key, Value::String(value.read()?))),
            "parameters" => drop(function.insert(key, parameters(value)?)),
            // It is kept to wherever a call has to come, strict or not; the model is not told.
            "strict" => drop(value.read::<bool>()?),
            _ => return Err(value.refuse("unknown field of a function")),
        }
    }
    if function.contains_key("name") { Ok(Value::Object(function)) } else { Err(no_name) }
}

/// Whether a function can have this name.
pub(super) fn is_name(name: &str) -> bool {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.chars().all(is_of_name)
}

pub(super) fn name(v: FieldValue) -> Result<Value, ApiError> {
    match v.value.as_str() {
        Some(name) if is_name(name) => Ok(v.value),
        _ => Err(v.expected("1 to 64 letters, digits, underscores, points and hyphens")),
    }
}

/// The schema of a function's arguments.
fn parameters(v: FieldValue) -> Result<Value, ApiError> {
    match (&v.value, v.value.get("type")) {
        (Value::Object(_), None) => Ok(v.value),
        (Value::Object(_), Some(kind)) if kind == "object" => Ok(v.value),
        (Value::Object(_), Some(_)) => Err(v.refuse("must be the schema of an object: its type is another")),
        _ => Err(v.expected("a JSON Schema, an object")),
    }
}

/// `tool_choice`: a word, or the name of a function.
pub(super) fn tool_choice(v: FieldValue) -> Result<ToolChoice, ApiError> {
    if let Some(choice) = choice_in_a_word(&v) {
        return Ok(choice);
    }
    if !v.value.is_object() {
        return Err(v.expected("\"none\", \"auto\", \"required\", or an object with type and function"));
    }
    let choice = function_of(v, Kind::Choice, only_name)?;
    Ok(ToolChoice::Named(choice["function"].as_str().unwrap_or_default().to_owned()))
}

/// A choice that is no function's name.
pub(super) fn choice_in_a_word(v: &FieldValue) -> Option<ToolChoice> {
    match v.value.as_str()? {
        "none" => Some(ToolChoice::None),
        "auto" => Some(ToolChoice::Auto),
        "required" => Some(ToolChoice::Required),
        _ => None,
    }
}

/// The name in an object that has nothing else.
pub(super) fn only_name(v: FieldValue) -> Result<Value, ApiError> {
    let no_name = v.refuse("has no name");
    let mut chosen = None;
    for (key, value) in v.members("an object with a name")? {
        match key.as_str() {
            "name" => chosen = Some(name(value)?),
            _ => return Err(value.refuse("unknown field")),
        }
    }
    chosen.ok_or(no_name)
}

/// `tool_calls` of an assistant's message.
pub(super) fn tool_calls(v: FieldValue) -> Result<Value, ApiError> {
    v.list("a list of calls")?.map(|v| function_of(v, Kind::Call, called_function)).collect()
}

/// A function that was called. That its arguments are JSON is checked where templates need them.
fn called_function(v: FieldValue) -> Result<Value, ApiError> {
    let (no_name, no_arguments) = (v.refuse("has no name"), v.refuse("has no arguments"));
    let mut function = Map::new();
    for (key, value) in v.members("an object with name and arguments")? {
        match key.as_str() {
            "name" => drop(function.insert(key, name(value)?)),
            "arguments" => drop(function.insert(key, Value::String(value.read()?))),
            // The same as the official client has read them.
            "parsed_arguments" if value.value.is_object() => {}
            _ if is_nothing(&value.value) => {}
            _ => return Err(value.refuse("unknown field of a function")),
        }
    }
    match (function.contains_key("name"), function.contains_key("arguments")) {
        (false, _) => Err(no_name),
        (_, false) => Err(no_arguments),
        _ => Ok(Value::Object(function)),
    }
}
