//! What an answer has to match: `response_format` of OpenAI's API, and vLLM's names for more than JSON.

use sconce::Grammar;
use serde_json::Value;

use super::request::WireRequest;
use super::value::FieldValue;
use crate::http::ApiError;

/// `response_format`: text, any JSON object, or JSON by a schema.
pub(super) fn response_format(request: &mut WireRequest, v: FieldValue) -> Result<(), ApiError> {
    let (no_type, no_schema) = (v.refuse("has no type"), v.refuse("has no json_schema"));
    let misplaced = v.refuse("schema goes with the type json_object, and json_schema with json_schema");
    let (mut kind, mut own_schema, mut named_schema) = (None, None, None);
    for (key, value) in v.members("an object with a type")? {
        match key.as_str() {
            "type" => kind = Some(format_type(value)?),
            _ if value.value.is_null() => {}
            "schema" => own_schema = Some(schema(value)?),
            "json_schema" => named_schema = Some(json_schema(value)?),
            _ => return Err(value.refuse("unknown field")),
        }
    }
    let grammar = match (kind.as_deref(), own_schema, named_schema) {
        (None, _, _) => return Err(no_type),
        (Some("text"), None, None) => return Ok(()),
        (Some("json_object"), None, None) => Grammar::JsonObject,
        // As llama.cpp has it.
        (Some("json_object"), Some(schema), None) | (Some("json_schema"), None, Some(schema)) => schema,
        (Some("json_schema"), ..) => return Err(no_schema),
        _ => return Err(misplaced),
    };
    request.set_grammar("response_format", grammar)
}

/// The format in `text` of `/v1/responses`, where name and schema stand beside the type. None where it is any text.
pub(super) fn flat_format(v: FieldValue) -> Result<Option<Grammar>, ApiError> {
    let (no_type, misplaced) =
        (v.refuse("has no type"), v.refuse("name, schema and strict go with the type json_schema"));
    let no_schema = v.refuse("has no schema");
    let (mut kind, mut grammar, mut is_described) = (None, None, false);
    for (key, value) in v.members("an object with a type")? {
        match key.as_str() {
            "type" => kind = Some(format_type(value)?),
            _ if value.value.is_null() => {}
            "schema" => grammar = Some(schema(value)?),
            "name" | "description" => is_described = value.read::<String>().map(|_| true)?,
            "strict" => is_described = value.read::<bool>().map(|_| true)?,
            _ => return Err(value.refuse("unknown field")),
        }
    }
    match (kind.ok_or(no_type)?.as_str(), grammar) {
        ("json_schema", None) => Err(no_schema),
        ("json_schema", schema) => Ok(schema),
        (_, grammar) if grammar.is_some() || is_described => Err(misplaced),
        ("json_object", _) => Ok(Some(Grammar::JsonObject)),
        _ => Ok(None),
    }
}

/// The type of a format.
fn format_type(v: FieldValue) -> Result<String, ApiError> {
    match v.value.as_str() {
        Some("text" | "json_object" | "json_schema") => v.read(),
        _ => Err(v.expected("\"text\", \"json_object\" or \"json_schema\"")),
    }
}

/// The schema in `json_schema`. It is always kept to, whatever `strict` says.
fn json_schema(v: FieldValue) -> Result<Grammar, ApiError> {
    let no_schema = v.refuse("has no schema");
    let mut grammar = None;
    for (key, value) in v.members("an object with name and schema")? {
        match key.as_str() {
            _ if value.value.is_null() => {}
            "schema" => grammar = Some(schema(value)?),
            "name" | "description" => drop(value.read::<String>()?),
            "strict" => drop(value.read::<bool>()?),
            _ => return Err(value.refuse("unknown field")),
        }
    }
    grammar.ok_or(no_schema)
}

/// A JSON Schema.
fn schema(v: FieldValue) -> Result<Grammar, ApiError> {
    match v.value {
        Value::Object(_) => Ok(Grammar::JsonSchema(v.value.to_string())),
        _ => Err(v.expected("a JSON Schema, an object")),
    }
}

/// A JSON Schema, or its text.
pub(super) fn guided_json(v: FieldValue) -> Result<Grammar, ApiError> {
    if v.value.is_string() { v.read().map(Grammar::JsonSchema) } else { schema(v) }
}

/// `structured_outputs`: one of vLLM's kinds.
pub(super) fn structured_outputs(request: &mut WireRequest, v: FieldValue) -> Result<(), ApiError> {
    let one = v.refuse("needs just one of json, json_object, regex, choice and grammar");
    let mut grammars = Vec::new();
    for (key, value) in v.members("an object")? {
        grammars.push(match key.as_str() {
            _ if value.value.is_null() => continue,
            "json" => guided_json(value)?,
            "json_object" if value.value == true => Grammar::JsonObject,
            "json_object" => return Err(value.expected("true")),
            "regex" => Grammar::Regex(value.read()?),
            "choice" => Grammar::Choice(value.read()?),
            "grammar" => Grammar::Lark(value.read()?),
            _ => return Err(value.refuse("unknown field")),
        });
    }
    match (grammars.pop(), grammars.is_empty()) {
        (Some(grammar), true) => request.set_grammar("structured_outputs", grammar),
        _ => Err(one),
    }
}
