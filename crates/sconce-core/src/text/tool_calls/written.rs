//! Calls whose arguments are written one by one, each as text, which is typed by the tool's schema.

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{ToolCall, tool};

pub(super) const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";
/// References that are followed from one schema to another, and alternatives within alternatives.
pub(super) const MAX_REFERENCES: usize = 8;
/// So many alternatives and values are looked at to find out of what kinds they are: alternatives can refer to each other.
const MAX_ALTERNATIVES: usize = 1024;

/// Where a function's text ends, or may: `num_seen` of its bytes have been looked at, which are more afterwards. What stands in a value is
/// no end.
pub(super) fn end(text: &str, num_seen: &mut usize) -> Option<usize> {
    while let Some(at) = text[*num_seen..].find(FUNCTION_END).map(|at| at + *num_seen) {
        *num_seen = at + FUNCTION_END.len();
        let before = text[..at].trim_end();
        // Without parameters, or with an object in their place.
        let is_bare = !before.contains(PARAMETER);
        if is_bare || before.ends_with(PARAMETER_END) {
            return Some(*num_seen);
        }
    }
    let mut seen = (text.len() + 1).saturating_sub(FUNCTION_END.len()).max(*num_seen);
    while !text.is_char_boundary(seen) {
        seen -= 1;
    }
    *num_seen = seen;
    None
}

/// The call that such a text is.
pub(super) fn call(text: &str, tools: &[Value]) -> Option<ToolCall> {
    let inner = text.strip_prefix(FUNCTION)?.strip_suffix(FUNCTION_END)?;
    let (name, body) = inner.split_once('>')?;
    let function = tool(tools, name)?;
    let mut rest = body.trim();
    // As some write it: the arguments as an object.
    if rest.starts_with('{') {
        let arguments: &RawValue = serde_json::from_str(rest).ok()?;
        return Some(ToolCall { name: name.to_owned(), arguments: arguments.get().to_owned() });
    }
    let empty = Map::new();
    let schema = function["parameters"].as_object().unwrap_or(&empty);
    let mut members = Vec::new();
    while !rest.is_empty() {
        let (key, value) = rest.strip_prefix(PARAMETER)?.split_once('>')?;
        let (value, behind) = parameter(value)?;
        let own = schema.get("properties").map_or(&Value::Null, |properties| &properties[key]);
        members.push(format!("{}: {}", Value::from(key), typed(value, own, schema)));
        rest = behind;
    }
    Some(ToolCall { name: name.to_owned(), arguments: format!("{{{}}}", members.join(", ")) })
}

/// A parameter's value, and what follows: another parameter or nothing. A tag that ends a value and is followed by something else
/// is part of it.
fn parameter(text: &str) -> Option<(&str, &str)> {
    text.match_indices(PARAMETER_END).find_map(|(at, _)| {
        let behind = text[at + PARAMETER_END.len()..].trim_start();
        let is_end = behind.is_empty() || behind.starts_with(PARAMETER);
        is_end.then(|| (text[..at].strip_prefix('\n').unwrap_or(&text[..at]), behind))
    })
}

/// A value as JSON: what its schema takes of number, object and the like if it is one, else text.
fn typed(value: &str, schema: &Value, root: &Map<String, Value>) -> String {
    let value = value.strip_suffix('\n').unwrap_or(value);
    let kinds = Kinds::of(resolved(schema, root), root);
    let trimmed = value.trim();
    let word = match trimmed {
        // As Python writes them.
        "True" => "true",
        "False" => "false",
        "None" => "null",
        other => other,
    };
    match serde_json::from_str::<&RawValue>(word) {
        Ok(json) if kinds.takes(json.get()) => json.get().to_owned(),
        _ => Value::from(value).to_string(),
    }
}

/// The kinds of values that a schema takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Kinds {
    bits: u8,
}

const TEXT: u8 = 1;
const NUMBER: u8 = 2;
const BOOLEAN: u8 = 4;
const NULL: u8 = 8;
const OBJECT: u8 = 16;
const ARRAY: u8 = 32;

impl Kinds {
    /// Those that its own words name, and those of its alternatives. One that says nothing takes text.
    pub(super) fn of(schema: &Value, root: &Map<String, Value>) -> Self {
        let bits = kinds(schema, root, MAX_REFERENCES, &mut { MAX_ALTERNATIVES });
        Self { bits: if bits == 0 { TEXT } else { bits } }
    }

    /// Whether text is among them.
    pub(super) fn has_text(self) -> bool {
        self.bits & TEXT != 0
    }

    /// Whether there is nothing else but null.
    pub(super) fn is_text_or_null(self) -> bool {
        self.bits & !NULL == TEXT
    }

    /// Whether a JSON value that is no text is of such a kind.
    fn takes(self, json: &str) -> bool {
        let kind = match json.as_bytes().first() {
            Some(b'{') => OBJECT,
            Some(b'[') => ARRAY,
            Some(b't' | b'f') => BOOLEAN,
            Some(b'n') => NULL,
            Some(b'"') | None => return false,
            Some(_) => NUMBER,
        };
        self.bits & kind != 0
    }
}

/// `num_references`: that are followed in a row; `num_left`: alternatives that are looked at in all.
fn kinds(schema: &Value, root: &Map<String, Value>, num_references: usize, num_left: &mut usize) -> u8 {
    let list = |key: &str| schema[key].as_array().into_iter().flatten();
    let named = |name: &Value| match name.as_str() {
        Some("string") => TEXT,
        Some("integer" | "number") => NUMBER,
        Some("boolean") => BOOLEAN,
        Some("null") => NULL,
        Some("object") => OBJECT,
        Some("array") => ARRAY,
        _ => 0,
    };
    let of_value = |value: &Value| match value {
        Value::String(_) => TEXT,
        Value::Number(_) => NUMBER,
        Value::Bool(_) => BOOLEAN,
        Value::Null => NULL,
        Value::Object(_) => OBJECT,
        Value::Array(_) => ARRAY,
    };
    let own = list("type").fold(named(&schema["type"]), |bits, name| bits | named(name));
    if own != 0 || num_references == 0 {
        return own;
    }
    let values = list("enum").take(MAX_ALTERNATIVES).chain(schema.get("const"));
    let mut bits = values.fold(0, |bits, value| bits | of_value(value));
    for alternative in ["anyOf", "oneOf", "allOf"].into_iter().flat_map(list) {
        let Some(rest) = num_left.checked_sub(1) else { break };
        *num_left = rest;
        bits |= kinds(resolved(alternative, root), root, num_references - 1, num_left);
    }
    bits
}

/// A schema, or what it refers to within `root`.
pub(super) fn resolved<'a>(schema: &'a Value, root: &'a Map<String, Value>) -> &'a Value {
    let mut schema = schema;
    for _ in 0..MAX_REFERENCES {
        let Some(path) = schema["$ref"].as_str().and_then(|path| path.strip_prefix("#/")) else { break };
        let Some((first, rest)) = path.split_once('/') else { break };
        match root.get(first).and_then(|value| value.pointer(&format!("/{rest}"))) {
            Some(found) => schema = found,
            None => break,
        }
    }
    schema
}
