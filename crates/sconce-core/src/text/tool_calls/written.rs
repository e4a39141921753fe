//! Calls whose arguments are written one by one, each as text, which is typed by the tool's schema.

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::scan::{Header, MAX_HEADER_BYTES, is_of_name, trim_start};
use super::{END_TAG, ToolCall, tool};

pub(super) const FUNCTION: &str = "<function=";
/// References that are followed from one schema to another, and alternatives within alternatives.
pub(super) const MAX_REFERENCES: usize = 8;
/// So many alternatives and values are looked at to find out of what kinds they are: alternatives can refer to each other.
const MAX_ALTERNATIVES: usize = 1024;

/// What stands around a call's name and its arguments.
#[derive(Debug)]
pub(super) struct Tags {
    /// Before and behind the name.
    pub(super) name: [&'static str; 2],
    /// Before and behind an argument's name.
    pub(super) key: [&'static str; 2],
    /// Before and behind its value.
    pub(super) value: [&'static str; 2],
    /// Behind the last one.
    pub(super) end: &'static str,
    /// What a value has around it that is no part of it.
    pub(super) line: &'static str,
}

/// Those of Qwen's models that code.
pub(super) static FUNCTIONS: Tags = Tags {
    name: [FUNCTION, ">"],
    key: ["<parameter=", ">"],
    value: ["", "</parameter>"],
    end: "</function>",
    line: "\n",
};
/// GLM's.
pub(super) static KEYS: Tags = Tags {
    name: ["", ""],
    key: ["<arg_key>", "</arg_key>"],
    value: ["<arg_value>", "</arg_value>"],
    end: END_TAG,
    line: "",
};

impl Tags {
    /// The name that a call begins with, and where what follows it begins.
    pub(super) fn header<'a>(&self, text: &'a str) -> (&'a str, Header) {
        let [before, behind] = self.name;
        let inner = &text[before.len()..];
        if behind.is_empty() {
            let len = inner.find(|c| !is_of_name(c)).unwrap_or(inner.len());
            let rest = trim_start(&inner[len..]);
            let marks = [self.key[0], self.end];
            let follows = if len == 0 || len > MAX_HEADER_BYTES {
                Header::Other
            } else if marks.iter().any(|mark| rest.starts_with(mark)) {
                Header::Arguments(text.len() - rest.len())
            } else if marks.iter().any(|mark| mark.starts_with(rest)) {
                Header::Unknown
            } else {
                Header::Other
            };
            return (&inner[..len], follows);
        }
        match inner.split_once(behind) {
            Some((name, rest)) => (name, Header::Arguments(text.len() - rest.len())),
            None => ("", Header::of_part(inner)),
        }
    }
}

/// Where such a text ends, or may: `num_seen` of its bytes have been looked at, which are more afterwards. What stands in a value is
/// no end.
pub(super) fn end(text: &str, tags: &Tags, num_seen: &mut usize) -> Option<usize> {
    while let Some(at) = text[*num_seen..].find(tags.end).map(|at| at + *num_seen) {
        *num_seen = at + tags.end.len();
        let before = text[..at].trim_end();
        // Without arguments, or with an object in their place.
        let is_bare = !before.contains(tags.key[0]);
        if is_bare || before.ends_with(tags.value[1]) {
            return Some(*num_seen);
        }
    }
    let mut seen = (text.len() + 1).saturating_sub(tags.end.len()).max(*num_seen);
    while !text.is_char_boundary(seen) {
        seen -= 1;
    }
    *num_seen = seen;
    None
}

/// The call that such a text is.
pub(super) fn call(text: &str, tags: &Tags, tools: &[Value]) -> Option<ToolCall> {
    let (name, Header::Arguments(at)) = tags.header(text) else { return None };
    let function = tool(tools, name)?;
    let mut rest = text[at..].strip_suffix(tags.end)?.trim();
    // As some write it: the arguments as an object.
    if rest.starts_with('{') {
        let arguments: &RawValue = serde_json::from_str(rest).ok()?;
        return Some(ToolCall { name: name.to_owned(), arguments: arguments.get().to_owned() });
    }
    let empty = Map::new();
    let schema = function["parameters"].as_object().unwrap_or(&empty);
    let mut members = Vec::new();
    while !rest.is_empty() {
        let (key, value) = rest.strip_prefix(tags.key[0])?.split_once(tags.key[1])?;
        let value = if tags.value[0].is_empty() { value } else { value.trim_start().strip_prefix(tags.value[0])? };
        let (value, behind) = argument(value, tags)?;
        let own = schema.get("properties").map_or(&Value::Null, |properties| &properties[key]);
        members.push(format!("{}: {}", Value::from(key), typed(value, own, schema)));
        rest = behind;
    }
    Some(ToolCall { name: name.to_owned(), arguments: format!("{{{}}}", members.join(", ")) })
}

/// An argument's value, and what follows: another one or nothing. A tag that ends a value and is followed by something else is part of it.
fn argument<'a>(text: &'a str, tags: &Tags) -> Option<(&'a str, &'a str)> {
    let end = tags.value[1];
    text.match_indices(end).find_map(|(at, _)| {
        let behind = text[at + end.len()..].trim_start();
        let is_end = behind.is_empty() || behind.starts_with(tags.key[0]);
        let own = text[..at].strip_prefix(tags.line).unwrap_or(&text[..at]);
        is_end.then(|| (own.strip_suffix(tags.line).unwrap_or(own), behind))
    })
}

/// A value as JSON: what its schema takes of number, object and the like if it is one, else text.
fn typed(value: &str, schema: &Value, root: &Map<String, Value>) -> String {
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
