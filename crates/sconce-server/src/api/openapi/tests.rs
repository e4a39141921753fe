//! The document as a whole; `wire` tests that bodies are described as they are read, the Python clients that answers are.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::document;
use crate::http;

/// Calls `visit` with every object in `value`.
fn each_object(value: &Value, visit: &mut impl FnMut(&serde_json::Map<String, Value>)) {
    match value {
        Value::Object(map) => {
            visit(map);
            map.values().for_each(|v| each_object(v, visit));
        }
        Value::Array(list) => list.iter().for_each(|v| each_object(v, visit)),
        _ => {}
    }
}

#[test]
fn references_lead_somewhere_and_no_schema_is_forgotten() {
    let document = document();
    let mut referred = BTreeSet::new();
    each_object(&document, &mut |map| {
        if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
            let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference} leads out"));
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
            referred.insert(reference.to_owned());
        }
    });
    for kind in ["schemas", "responses"] {
        for name in document["components"][kind].as_object().unwrap().keys() {
            let reference = format!("#/components/{kind}/{name}");
            assert!(referred.contains(&reference), "nothing refers to {reference}");
        }
    }
}

#[test]
fn every_path_is_there_with_its_method() {
    let document = document();
    let mut expected: BTreeSet<&str> = http::paths().collect();
    expected.extend(["/", "/v1/models/{id}"]);
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected);
    let mut ids = BTreeSet::new();
    for (path, methods) in paths {
        let methods = methods.as_object().unwrap();
        assert_eq!(methods.len(), 1, "{path}");
        for (method, operation) in methods {
            assert_eq!(method == "post", operation.get("requestBody").is_some(), "{path}");
            assert!(ids.insert(operation["operationId"].to_string()), "{path}");
            let is_open = operation["security"] == json!([]);
            assert_eq!(is_open, http::is_open(path), "{path}");
            assert_eq!(is_open, operation["responses"].get("401").is_none(), "{path}");
        }
    }
}

#[test]
fn streams_have_content_types_of_their_own() {
    let document = document();
    for (path, content_type, chunk) in [
        ("/generate", "application/octet-stream", "GenerateRecord"),
        ("/v1/completions", "text/event-stream", "CompletionChunk"),
        ("/v1/chat/completions", "text/event-stream", "ChatCompletionChunk"),
    ] {
        let streamed = &document["paths"][path]["post"]["responses"]["200"]["content"][content_type]["schema"];
        let expected = json!({"$ref": format!("#/components/schemas/{chunk}")});
        assert_eq!(streamed["contentSchema"]["anyOf"][0], expected);
    }
}
