//! Prompts as the wire spells them: text, token ids, or a list of either.

use sconce::Prompt;
use serde_json::Value;

use super::value::FieldValue;
use crate::http::ApiError;

/// Texts of a request for their vectors, at most.
pub(super) const MAX_INPUTS: usize = 2048;

/// One prompt: text, or a list of token ids.
pub(super) fn one_prompt(v: FieldValue) -> Result<Prompt, ApiError> {
    match &v.value {
        Value::String(_) => Ok(Prompt::Text(non_empty(v)?.read()?)),
        Value::Array(_) => Ok(Prompt::Tokens(non_empty(v)?.read()?)),
        _ => Err(v.expected("a string or a list of token ids")),
    }
}

/// One prompt, or a list of prompts: of strings or of lists of token ids.
pub(super) fn prompts(v: FieldValue) -> Result<Vec<Prompt>, ApiError> {
    match &v.value {
        Value::Array(items) if items.first().is_some_and(|first| !first.is_number()) => {
            v.list("a list")?.map(one_prompt).collect()
        }
        Value::String(_) | Value::Array(_) => Ok(vec![one_prompt(v)?]),
        _ => Err(v.expected("a string, a list of token ids, or a list of such prompts")),
    }
}

/// The same, of which there may not be more than [`MAX_INPUTS`].
pub(super) fn inputs(v: FieldValue) -> Result<Vec<Prompt>, ApiError> {
    let is_list = |items: &Vec<Value>| items.first().is_some_and(|first| !first.is_number());
    match v.value.as_array().filter(|items| is_list(items)).map(Vec::len) {
        Some(len) if len > MAX_INPUTS => {
            Err(v.refuse(format_args!("has {len} texts, and at most {MAX_INPUTS} are taken")))
        }
        _ => prompts(v),
    }
}

fn non_empty(v: FieldValue) -> Result<FieldValue, ApiError> {
    let is_empty = match &v.value {
        Value::String(s) => s.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    if is_empty { Err(v.refuse("must not be empty")) } else { Ok(v) }
}
