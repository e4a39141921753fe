//! `GET /v1/models` and `GET /v1/models/{id}`.

use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use crate::http::{self, ApiError, Body};
use crate::state::{Served, State};

/// Every served model, once under each of its names, and behind it its adapters.
pub fn list(state: &State) -> Result<Response<Body>, ApiError> {
    if state.models().is_empty() {
        return Err(ApiError::loading());
    }
    let entries = state.models().iter().flat_map(|m| m.all_names().map(|name| entry(m, name)));
    let data: Vec<Value> = entries.collect();
    Ok(http::json(StatusCode::OK, &json!({"object": "list", "data": data})))
}

/// The model whose name stands in the path, where `/` may be escaped or not.
pub fn one(state: &State, escaped_name: &str) -> Result<Response<Body>, ApiError> {
    let name = unescape(escaped_name);
    let served = state.model(Some(&name))?;
    Ok(http::json(StatusCode::OK, &entry(served, &name)))
}

fn entry(served: &Served, name: &str) -> Value {
    let adapter = served.adapters().iter().find(|adapter| adapter.name == name);
    json!({
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "sconce",
        "root": adapter.map_or(served.id(), |adapter| &adapter.origin),
        "parent": adapter.map(|_| served.id()),
        "max_model_len": served.engine.handle().info().max_model_len,
    })
}

/// Resolves `%2F` and the like.
fn unescape(escaped: &str) -> String {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped_byte = match rest {
            [b'%', high, low, ..] => hex(*high).zip(hex(*low)).map(|(h, l)| h * 16 + l),
            _ => None,
        };
        bytes.push(escaped_byte.unwrap_or(*first));
        rest = if escaped_byte.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    (digit as char).to_digit(16).map(|d| d as u8)
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn names_in_paths_are_unescaped() {
        for (escaped, expected) in
            [("a/b", "a/b"), ("a%2fb%2Fc", "a/b/c"), ("100%", "100%"), ("%zz%4", "%zz%4"), ("%C3%A9", "é"), ("", "")]
        {
            assert_eq!(unescape(escaped), expected, "{escaped}");
        }
    }
}
