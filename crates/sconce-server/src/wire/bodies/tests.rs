//! The table of fields against the parser: what a schema admits is accepted, and what it does not is refused.

use serde_json::{Value, json};

use super::super::schema::Schema::{self, AllOf, Any, AnyOf, Bool, Int, List, Map, Number, OfTokens, OneOf, Only};
use super::super::schema::Schema::{Name, OrNull, Positive, Ref, SomeText, Text};
use super::super::schema::{Object, Rest, parse};
use super::super::tools::is_name;
use super::super::{Endpoint, FIELDS, Field, WireRequest};
use super::{OBJECTS, body};

/// Larger than every token id that tests use.
const VOCAB_SIZE: usize = 1 << 33;

/// Parses a body, and checks it as the engine would.
fn read(endpoint: Endpoint, body: &Value) -> Result<WireRequest, String> {
    let mut request = WireRequest::parse(endpoint, body.to_string().as_bytes()).map_err(|e| e.message)?;
    request.params.validate(VOCAB_SIZE).map_err(|e| e.to_string())?;
    let _ = request.take_requests().count();
    WireRequest::parse(endpoint, body.to_string().as_bytes()).map_err(|e| e.message)
}

/// The shortest body that `endpoint` accepts beside `field`, with what the field needs beside it.
fn beside(endpoint: Endpoint, field: &str) -> Value {
    let needs_messages =
        ["chat_template_kwargs", "add_generation_prompt", "continue_final_message", "tools", "reasoning_effort"]
            .contains(&field);
    let mut body = match endpoint {
        _ if endpoint.subjects().contains(&field) => json!({}),
        Endpoint::Detokenize => json!({"tokens": [1]}),
        Endpoint::Responses | Endpoint::Embeddings => json!({"input": "a"}),
        Endpoint::Chat => json!({"messages": [{"role": "user", "content": "a"}]}),
        _ if needs_messages => json!({"messages": [{"role": "user", "content": "a"}]}),
        _ => json!({"prompt": "a"}),
    };
    match field {
        "top_logprobs" if endpoint == Endpoint::Responses => body["include"] = json!(["message.output_text.logprobs"]),
        "top_logprobs" => body["logprobs"] = true.into(),
        "stream_options" => body["stream"] = true.into(),
        "tool_choice" if endpoint == Endpoint::Responses => {
            body["tools"] = json!([{"type": "function", "name": "f"}]);
        }
        "tool_choice" => body["tools"] = json!([{"type": "function", "function": {"name": "f"}}]),
        "use_beam_search" => body["best_of"] = 2.into(),
        "length_penalty" | "early_stopping" | "beam_length" => {
            body["best_of"] = 2.into();
            body["use_beam_search"] = true.into();
        }
        _ => {}
    }
    body
}

/// Whether `value` is as `schema` says.
fn admits(schema: Schema, value: &Value) -> bool {
    let number = value.as_f64().filter(|x| (*x as f32).is_finite());
    match schema {
        Bool => value.is_boolean(),
        Text => value.is_string(),
        Name => value.as_str().is_some_and(is_name),
        SomeText => value.as_str().is_some_and(|text| !text.is_empty()),
        Int(min, max) => number.is_some_and(|x| x.fract() == 0.0 && (min as f64..=max as f64).contains(&x)),
        Number(min, max) => number.is_some_and(|x| (min..=max).contains(&x)),
        Positive(max) => number.is_some_and(|x| x > 0.0 && x <= max),
        OneOf(names) => value.as_str().is_some_and(|name| names.contains(&name)),
        Only(only) => *value == parse(only),
        List(element, min, max) => value
            .as_array()
            .is_some_and(|list| (min..=max).contains(&list.len()) && list.iter().all(|v| admits(*element, v))),
        OfTokens(bias) => value
            .as_object()
            .is_some_and(|map| map.iter().all(|(id, v)| id.bytes().all(|b| b.is_ascii_digit()) && admits(*bias, v))),
        Map(member) => value.as_object().is_some_and(|map| map.values().all(|v| admits(*member, v))),
        Any => value.is_object(),
        AnyOf(schemas) => schemas.iter().any(|s| admits(*s, value)),
        AllOf(schemas) => schemas.iter().all(|s| admits(*s, value)),
        OrNull(schema) => value.is_null() || admits(*schema, value),
        Ref(name) => OBJECTS.iter().find(|o| o.name == name).is_some_and(|object| is_object(object, value)),
    }
}

/// The same element, under a name of its own where it is a tool's.
fn distinct(element: &Value, i: usize) -> Value {
    let mut element = element.clone();
    for path in ["/function/name", "/name"] {
        if let Some(name) = element.pointer_mut(path).filter(|name| name.is_string()) {
            *name = format!("f{i}").into();
        }
    }
    element
}

fn is_object(object: &Object, value: &Value) -> bool {
    let Some(map) = value.as_object() else { return false };
    let nothing = [Value::Null, json!([])];
    let is_known = |name: &str| object.members.iter().any(|m| m.name == name);
    let is_rest = |v: &Value| object.rest == Rest::Nothing && nothing.contains(v);
    let members = object.members.iter().all(|m| map.get(m.name).map_or(!m.is_required, |v| admits(m.schema, v)));
    members && map.iter().all(|(name, v)| is_known(name) || is_rest(v))
}

/// Values at the ends of what `schema` admits, on both sides.
fn edges(schema: Schema) -> Vec<Value> {
    match schema {
        Int(min, max) => {
            // Where a double still has halves.
            let far = |end: i64| if end.unsigned_abs() > 1 << 40 { end >> 23 } else { end };
            let (min, max) = (far(min), far(max));
            vec![json!(min), json!(max), json!(min - 1), json!(max + 1), json!(min as f64), json!(min as f64 + 0.5)]
        }
        Number(min, max) => {
            let (min, max) = (min.max(-1e30), max.min(1e30));
            let beyond = |end: f64| end + (end.abs() * 0.01).max(0.01).copysign(end);
            [min, max, beyond(max), min - 0.01 - min.abs() * 0.01, 1e39, -1e39].map(Value::from).to_vec()
        }
        Positive(max) => [0.0, 1e-30, -1e-30, max, max + 0.01].map(Value::from).to_vec(),
        OneOf(names) => names.iter().map(|&name| name.into()).collect(),
        Only(only) => vec![parse(only)],
        List(element, min, max) => {
            let lists = edges(*element).into_iter().map(|v| json!([v]));
            let of = |length: usize| {
                let element = edges(*element).into_iter().find(|v| admits(*element, v)).unwrap_or(json!("a"));
                Value::Array((0..length).map(|i| distinct(&element, i)).collect())
            };
            let max = max.min(200);
            lists.chain([of(min), of(max), of(max + 1), of(min.saturating_sub(1))]).collect()
        }
        OfTokens(bias) => {
            let biases = edges(*bias).into_iter().map(|v| json!({"7": v}));
            biases.chain([json!({"x": 1}), json!({"-1": 1}), json!({"1": "x"})]).collect()
        }
        AnyOf(schemas) => schemas.iter().flat_map(|s| edges(*s)).collect(),
        Ref(name) => objects(name),
        _ => Vec::new(),
    }
}

/// Objects of a kind, and such as are not quite of it.
fn objects(name: &str) -> Vec<Value> {
    let values = match name {
        "Message" => {
            r#"[{"role": "user", "content": "a"}, {"role": "user", "content": ""}, {"role": "wizard", "content": "a"},
            {"role": "user"}, {"content": "a"}, {"role": "user", "content": null}, {"role": "user", "content": []},
            {"role": "developer", "content": [{"type": "text", "text": "a", "more": null}], "name": null},
            {"role": "system", "content": [{"type": "text"}]}, {"role": "user", "content": [{"type": "x", "text": "a"}]},
            {"role": "assistant", "content": "a", "refusal": null, "tool_calls": [], "name": "n"},
            {"role": "assistant", "content": "a", "tool_calls": [{}]}, {"role": "user", "content": "a", "name": 1},
            {"role": "user", "content": "a", "tool_call_id": null}, {"role": "user", "content": "a", "tool_call_id": "b"}]"#
        }
        "MessageWithCalls" => {
            r#"[{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "assistant", "content": null, "refusal": null, "name": "n", "tool_calls":
                [{"id": "a", "type": "function", "function": {"name": "f", "arguments": ""}, "more": null}]},
            {"role": "assistant", "content": "a", "parsed": {"x": 1}, "tool_calls": [{"index": 0, "id": "a", "type": "function",
                "function": {"name": "f", "arguments": "{}", "parsed_arguments": {"y": 1}}}]},
            {"role": "assistant", "content": "a", "parsed": 1, "tool_calls": [{"id": "a", "type": "function",
                "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "assistant", "content": "a", "tool_calls": [{"index": "b", "id": "a", "type": "function",
                "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "assistant", "content": "a", "tool_calls": [{"id": "a", "type": "function",
                "function": {"name": "f", "arguments": "{}", "parsed_arguments": 1}}]},
            {"role": "assistant", "content": "a", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": ""}}]},
            {"role": "assistant", "content": "a", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": ""}}]},
            {"role": "assistant", "content": "a", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f"}}]},
            {"role": "assistant", "content": "a", "tool_calls": [{"id": "a", "type": "function", "function": {"arguments": ""}}]},
            {"role": "assistant", "content": "a", "tool_calls": [{"id": "a", "type": "f", "function": {"name": "f", "arguments": ""}}]},
            {"role": "assistant", "content": "a", "tool_calls": [{"id": 1, "type": "function", "function": {"name": "f", "arguments": ""}}]},
            {"role": "user", "content": "a", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}]},
            {"role": "assistant", "tool_calls": []}, {"role": "assistant", "content": "a", "tool_calls": {}}]"#
        }
        "AssistantMessage" => {
            r#"[{"role": "assistant", "content": "a", "reasoning_content": "b"}, {"role": "assistant", "content": "a", "reasoning": ""},
            {"role": "assistant", "content": "", "reasoning_content": "b", "reasoning": "b", "refusal": null, "name": "n"},
            {"role": "assistant", "content": "a", "reasoning_content": null, "reasoning": null},
            {"role": "assistant", "content": "a", "reasoning": 1}, {"role": "user", "content": "a", "reasoning_content": "b"},
            {"role": "assistant", "content": "a", "reasoning_content": ["b"]}]"#
        }
        "ReasoningMessage" => {
            r#"[{"role": "assistant", "reasoning_content": "b"}, {"role": "assistant", "content": null, "reasoning_content": "b"},
            {"role": "assistant", "reasoning_content": null}, {"role": "tool", "reasoning_content": "b", "tool_call_id": "c"}]"#
        }
        "ToolMessage" => {
            r#"[{"role": "tool", "content": "a", "tool_call_id": "b"}, {"role": "tool", "content": "a"},
            {"role": "tool", "tool_call_id": "b"}, {"role": "tool", "content": [], "tool_call_id": "b", "name": null},
            {"role": "tool", "content": "a", "tool_call_id": 1}]"#
        }
        "Tool" => {
            r#"[{"type": "function", "function": {"name": "f"}}, {"type": "function"}, {"function": {"name": "f"}},
            {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": true}},
            {"type": "function", "function": {"name": "a.b-c_D9", "description": null, "parameters": null, "strict": null}},
            {"type": "function", "function": {"name": "a b"}}, {"type": "function", "function": {"name": ""}},
            {"type": "function", "function": {"name": "f", "parameters": "{}"}}, {"type": "custom", "function": {"name": "f"}},
            {"type": "function", "function": {"name": "f", "strict": 1}}, {"type": "function", "function": {"name": "f", "more": 1}},
            {"type": "function", "function": {"name": "f"}, "id": "a"}, {"type": "function", "function": {}}]"#
        }
        "NamedToolChoice" => {
            r#"[{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": ""}}, {"type": "function"},
            {"function": {"name": "f"}}, {"type": "function", "function": {"name": "f", "more": null}}, {"type": "f", "function": {"name": "f"}},
            {"type": "function", "function": {}}]"#
        }
        "Prediction" => {
            r#"[{"type": "content", "content": "a"}, {"type": "content", "content": [{"type": "text", "text": "a"}]},
            {"type": "text", "content": "a"}, {"type": "content"}, {"content": "a"}, {"type": "content", "content": 1},
            {"type": "content", "content": "a", "more": null}]"#
        }
        "TextFormat" => {
            r#"[{"type": "text"}, {"type": "other"}, {"type": "text", "more": 1}, {"type": "text", "schema": {}}]"#
        }
        "JsonObjectFormat" => {
            r#"[{"type": "json_object"}, {"type": "json_object", "schema": {"type": "object"}}, {"type": "json_object", "schema": 1},
            {"type": "json_object", "json_schema": {"schema": {}}}]"#
        }
        "JsonSchemaFormat" => {
            r#"[{"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}, {"type": "json_schema"},
            {"type": "json_schema", "json_schema": {"name": "a"}}, {"type": "json_schema", "json_schema": {"schema": "{}"}},
            {"type": "json_schema", "json_schema": {"name": null, "schema": {"a": 1}, "strict": true, "description": "b"}},
            {"type": "json_schema", "json_schema": {"schema": {}, "strict": "yes"}}, {"type": "json_schema", "schema": {}},
            {"type": "json_schema", "json_schema": {"schema": {}, "more": 1}}, {"type": "json_schema", "json_schema": []}]"#
        }
        "ByJson" => r#"[{"json": {}}, {"json": "{}"}, {"json": 1}, {"json": {}, "regex": "a"}, {"more": 1}]"#,
        "ByJsonObject" => r#"[{"json_object": true}, {"json_object": false}]"#,
        "ByRegex" => r#"[{"regex": "a"}, {"regex": ["a"]}]"#,
        "ByChoice" => r#"[{"choice": ["a", "b"]}, {"choice": "a"}, {"choice": [1]}]"#,
        "ByGrammar" => r#"[{"grammar": "start: \"a\""}, {"grammar": {}}]"#,
        "StreamOptions" => {
            r#"[{"include_usage": true}, {"include_usage": null}, {"include_usage": 1}, {"include_obfuscation": false},
            {"include_obfuscation": true}, {"more": true}]"#
        }
        "InputMessage" => {
            r#"[{"role": "user", "content": "a"}, {"type": "message", "role": "assistant", "id": "b", "status": "completed", "phase":
                "final_answer", "content": [{"type": "output_text", "text": "a", "annotations": [], "logprobs": [], "parsed": {}}]},
            {"type": null, "role": "developer", "content": [], "more": null}, {"role": "user", "content": null}, {"role": "user"},
            {"role": "tool", "content": "a"}, {"content": "a"}, {"role": "user", "content": [{"type": "input_image"}]},
            {"role": "user", "content": [{"type": "input_text"}]}, {"role": "user", "content": [{"text": "a"}]},
            {"role": "user", "content": "a", "status": "done"}, {"role": "user", "content": "a", "phase": "last"},
            {"role": "user", "content": "a", "id": 1}, {"role": "user", "content": [{"type": "text", "text": "a", "more": 1}]},
            {"role": "user", "content": "a", "more": 1}]"#
        }
        "FunctionCallItem" => {
            r#"[{"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}, {"type": "function_call", "call_id": "a", "name": "f"},
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}", "id": "b", "status": "completed",
                "parsed_arguments": {}}, {"type": "function_call", "call_id": "a", "name": "a b", "arguments": "{}"},
            {"type": "function_call", "name": "f", "arguments": "{}"}, {"type": "function_call", "call_id": "a", "arguments": "{}"},
            {"type": "function_call", "call_id": 1, "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": {}}]"#
        }
        "FunctionResultItem" => {
            r#"[{"type": "function_call_output", "call_id": "a", "output": "b", "name": "f"}, {"type": "function_call_output", "call_id": "a"},
            {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "b"}], "id": null, "status": null},
            {"type": "function_call_output", "output": "b"}, {"type": "function_call_output", "call_id": "a", "output": {}},
            {"type": "function_call_output", "call_id": "a", "output": []}, {"type": "function_call_output", "call_id": "a", "output": null}]"#
        }
        "ReasoningItem" => {
            r#"[{"type": "reasoning", "id": "a", "summary": [], "content": [{"type": "reasoning_text", "text": "b"}], "status": "completed"},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "b"}], "content": null, "encrypted_content": null},
            {"type": "reasoning", "content": [{"type": "summary_text", "text": "b"}]}, {"type": "reasoning", "content": "b"},
            {"type": "reasoning", "encrypted_content": "b"}, {"type": "reasoning", "content": [{"type": "reasoning_text"}]},
            {"type": "reasoning", "summary": [{"text": "b"}]}, {"type": "reasoning"}]"#
        }
        "FlatTool" => {
            r#"[{"type": "function", "name": "f"}, {"type": "function"}, {"name": "f"}, {"type": "custom", "name": "f"},
            {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": true, "more": null},
            {"type": "function", "name": "a b"}, {"type": "function", "name": "f", "parameters": "{}"},
            {"type": "function", "name": "f", "strict": 1}, {"type": "function", "function": {"name": "f"}}]"#
        }
        "FlatToolChoice" => {
            r#"[{"type": "function", "name": "f"}, {"type": "function", "name": ""}, {"type": "function"}, {"name": "f"},
            {"type": "allowed_tools", "name": "f"}, {"type": "function", "name": "f", "more": null}]"#
        }
        "TextConfig" => {
            r#"[{}, {"format": null, "verbosity": null}, {"format": {"type": "text"}, "verbosity": "medium"}, {"verbosity": "low"},
            {"format": {"type": "json_object"}}, {"format": {"type": "json_object", "schema": {}}}, {"format": {"type": "text", "name": "a"}},
            {"format": {"type": "json_schema", "name": "a", "description": "b", "strict": true, "schema": {}}}, {"format": {}},
            {"format": {"type": "json_schema", "schema": {}}}, {"format": {"type": "json_schema", "name": "a"}}, {"format": "text"},
            {"format": {"type": "json_schema", "json_schema": {"schema": {}}}}, {"more": null, "format": {"type": "other"}}]"#
        }
        "ReasoningConfig" => {
            r#"[{}, {"effort": "low", "summary": "auto", "generate_summary": null}, {"effort": "much"}, {"summary": "detailed"},
            {"effort": null}, {"more": 1}]"#
        }
        "ResponseStreamOptions" => {
            r#"[{}, {"include_obfuscation": false}, {"include_obfuscation": true}, {"include_usage": true}]"#
        }
        other => panic!("no examples of {other}"),
    };
    parse(values).as_array().expect("a list").clone()
}

#[test]
fn what_schemas_admit_is_accepted_and_nothing_else() {
    let of_any_kind = [json!(true), json!(false), json!("x"), json!(1.5), json!([]), json!({}), json!({"a": [1]})];
    let (mut num_accepted, mut num_refused) = (0, 0);
    for endpoint in Endpoint::ALL {
        for field in FIELDS.iter().filter(|f| f.is_of(endpoint)) {
            for value in edges(field.schema).into_iter().chain(of_any_kind.clone()) {
                let mut body = beside(endpoint, field.name);
                body[field.name] = value.clone();
                match (read(endpoint, &body), admits(field.schema, &value)) {
                    (Ok(_), true) => num_accepted += 1,
                    (Err(message), false) => {
                        assert!(message.starts_with(field.name), "{body}: {message}");
                        num_refused += 1;
                    }
                    (read, admitted) => panic!("{endpoint:?} {body}: admitted {admitted}, read {read:?}"),
                }
            }
        }
    }
    assert!(num_accepted > 300 && num_refused > 800, "{num_accepted} accepted, {num_refused} refused");
}

#[test]
fn a_default_says_what_its_absence_says() {
    let mut num_defaults = 0;
    for endpoint in Endpoint::ALL {
        for field in FIELDS.iter().filter(|f| f.is_of(endpoint)) {
            let Some(default) = field.default else { continue };
            let absent = beside(endpoint, field.name);
            let mut stated = absent.clone();
            stated[field.name] = parse(default);
            let read = |body| format!("{:?}", read(endpoint, body).unwrap_or_else(|e| panic!("{body}: {e}")));
            assert_eq!(read(&stated), read(&absent), "{stated}");
            num_defaults += 1;
        }
    }
    assert!(num_defaults > 60, "{num_defaults}");
}

/// What a schema says is required is what an empty body is refused for.
#[test]
fn a_body_is_refused_without_its_subject() {
    for endpoint in Endpoint::ALL {
        let message = read(endpoint, &json!({})).unwrap_err();
        let subjects = endpoint.subjects();
        assert!(subjects.iter().all(|subject| message.contains(subject)), "{endpoint:?}: {message}");
        for subject in subjects {
            let value = edges(field(endpoint, subject).schema)
                .into_iter()
                .find(|v| read(endpoint, &json!({*subject: v})).is_ok());
            assert!(value.is_some(), "{endpoint:?} takes no {subject} alone");
        }
        let schema = body(endpoint);
        let expected = match subjects {
            [one] => (json!([one]), Value::Null),
            several => (Value::Null, several.iter().map(|one| json!({"required": [one]})).collect()),
        };
        assert_eq!((schema["required"].clone(), schema["oneOf"].clone()), expected);
    }
}

fn field(endpoint: Endpoint, name: &str) -> &'static Field {
    FIELDS.iter().find(|f| f.name == name && f.is_of(endpoint)).expect("a field")
}

#[test]
fn a_body_has_every_field_of_its_endpoint_and_no_other() {
    for endpoint in Endpoint::ALL {
        let schema = body(endpoint);
        let names: Vec<&str> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        let expected: Vec<&str> = FIELDS.iter().filter(|f| f.is_of(endpoint)).map(|f| f.name).collect();
        assert_eq!(names, expected);
        assert_eq!(schema["additionalProperties"], false);
        for (name, property) in schema["properties"].as_object().unwrap() {
            assert!(property["description"].as_str().is_some_and(|d| d.ends_with('.')), "{name}");
        }
    }
    let generate = body(Endpoint::Generate);
    let mut n = generate["properties"]["n"].clone();
    assert!(n["description"].take().is_string());
    assert_eq!(n, json!({"type": ["integer", "null"], "minimum": 1, "maximum": 64, "description": null, "default": 1}));
    let null = json!({"type": "null"});
    let of = |name: &str| generate["properties"][name]["anyOf"].clone();
    assert_eq!(of("beam_length"), Value::Array(vec![json!({"type": "string", "enum": ["hf", "vllm"]}), null.clone()]));
    let never = json!({"type": "string", "enum": ["never"]});
    assert_eq!(of("early_stopping"), Value::Array(vec![json!({"type": "boolean"}), never, null]));
}
