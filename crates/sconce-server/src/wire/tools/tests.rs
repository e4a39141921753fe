//! Tools and calls in bodies: what they become, and what the refusals say.

use sconce::{ChatInput, Prompt};
use serde_json::{Value, json};

use super::super::Endpoint::{Chat, Generate, Tokenize};
use super::super::tests::{accept, chat, check_refused_by};
use super::super::{Endpoint, ToolChoice};

const F: &str = r#"{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": true}}"#;
const G: &str = r#"{"function": {"name": "g", "parameters": null}, "type": "function"}"#;

fn chat_input(endpoint: Endpoint, body: &str) -> ChatInput {
    match accept(endpoint, body).take_request().unwrap().prompt {
        Prompt::Chat(chat) => chat,
        prompt => panic!("{prompt:?}"),
    }
}

#[test]
fn tools_reach_the_template() {
    let fields = format!(r#""tools": [{F}, {G}]"#);
    for endpoint in [Chat, Tokenize] {
        let expected = json!([
            {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}},
            {"function": {"name": "g"}, "type": "function"},
        ]);
        assert_eq!(chat_input(endpoint, &chat(&fields)).tools.map(Value::from), Some(expected));
    }
    let request = accept(Chat, &chat(&fields));
    assert_eq!(request.tools.choice, ToolChoice::Auto);
    assert!(request.tools.is_parallel && request.tools.is_any());
    // What is not to be called is not shown.
    let none = format!(r#"{fields}, "tool_choice": "none""#);
    assert!(chat_input(Chat, &chat(&none)).tools.is_none());
    assert!(!accept(Chat, &chat(&none)).tools.is_any());
    assert!(chat_input(Chat, &chat(r#""tools": []"#)).tools.is_none());
}

#[test]
fn a_choice_is_a_word_or_a_name() {
    let choice = |choice: &str| {
        accept(Chat, &chat(&format!(r#""tools": [{F}], "tool_choice": {choice}, "parallel_tool_calls": false"#))).tools
    };
    assert_eq!(choice("null").choice, ToolChoice::Auto);
    assert_eq!(choice("\"required\"").choice, ToolChoice::Required);
    let named = choice(r#"{"type": "function", "function": {"name": "f"}}"#);
    assert_eq!(named.choice, ToolChoice::Named("f".into()));
    assert!(!named.is_parallel);
}

#[test]
fn what_is_wrong_with_tools_is_named() {
    let function = |members: &str| format!(r#""tools": [{{"type": "function", "function": {{{members}}}}}]"#);
    let many: Vec<String> = (0..129).map(|i| F.replace("\"f\"", &format!("\"f{i}\""))).collect();
    for (fields, words) in [
        (r#""tools": {}"#.to_owned(), "tools: expected a list of tools, found an object"),
        (r#""tools": [1]"#.into(), "tools[0]: expected an object with type and function"),
        (r#""tools": [{"function": {"name": "f"}}]"#.into(), "tools[0]: has no type"),
        (r#""tools": [{"type": "function"}]"#.into(), "tools[0]: has no function"),
        (r#""tools": [{"type": "custom"}]"#.into(), "tools[0].type: expected \"function\", found \"custom\""),
        (function(""), "tools[0].function: has no name"),
        (function(r#""name": "a b""#), "tools[0].function.name: expected 1 to 64 letters"),
        (function(&format!(r#""name": "{}""#, "a".repeat(65))), "tools[0].function.name: expected 1 to 64 letters"),
        (function(r#""name": "f", "description": 1"#), "tools[0].function.description: expected a string"),
        (function(r#""name": "f", "parameters": "x""#), "tools[0].function.parameters: expected a JSON Schema"),
        (
            function(r#""name": "f", "parameters": {"type": "string"}"#),
            "tools[0].function.parameters: must be the schema",
        ),
        (function(r#""name": "f", "more": 1"#), "tools[0].function.more: unknown field"),
        (format!(r#""tools": [{F}, {G}, {F}]"#), "tools[2]: another tool has the same name"),
        (format!(r#""tools": [{}]"#, many.join(", ")), "tools: at most 128 tools are taken, found 129"),
        (r#""tool_choice": "required""#.into(), "tool_choice: needs tools"),
        (
            r#""tools": [], "tool_choice": {"type": "function", "function": {"name": "f"}}"#.into(),
            "tool_choice: needs tools",
        ),
        (r#""tool_choice": "any""#.into(), "tool_choice: expected \"none\", \"auto\", \"required\""),
        (
            format!(r#""tools": [{F}], "tool_choice": {{"type": "function", "function": {{"name": "g"}}}}"#),
            "tool_choice: \"g\" is not among tools",
        ),
        (
            format!(r#""tools": [{F}], "response_format": {{"type": "json_object"}}"#),
            "response_format: cannot stand beside tools",
        ),
        (
            format!(r#""tools": [{F}], "tool_choice": "required", "guided_regex": "a""#),
            "guided_regex: cannot stand beside tools",
        ),
    ] {
        check_refused_by(Chat, &chat(&fields), words);
    }
    accept(
        Chat,
        &chat(&format!(r#""tools": [{F}], "tool_choice": "none", "response_format": {{"type": "json_object"}}"#)),
    );
    accept(Chat, &chat(&format!(r#""tools": [{}]"#, many[1..].join(", "))));
    check_refused_by(Tokenize, &format!(r#"{{"prompt": "a", "tools": [{F}]}}"#), "tools: needs messages");
    check_refused_by(Generate, &chat(&format!(r#""tools": [{F}]"#)), "tools: unknown field of /generate");
}

#[test]
fn calls_and_their_results_are_messages() {
    let call = |members: &str| {
        let calls = format!(r#"[{{"id": "call_1", "type": "function", "function": {{{members}}}}}]"#);
        format!(r#"{{"messages": [{{"role": "assistant", "content": null, "refusal": null, "tool_calls": {calls}}}]}}"#)
    };
    for endpoint in [Chat, Generate, Tokenize] {
        let chat = chat_input(endpoint, &call(r#""name": "f", "arguments": "{}""#));
        let function = json!({"name": "f", "arguments": "{}"});
        let calls = json!([{"id": "call_1", "type": "function", "function": function}]);
        assert_eq!(chat.messages, [json!({"role": "assistant", "tool_calls": calls})]);
        let result = r#"{"messages": [{"role": "tool", "content": "15", "tool_call_id": "call_1"}]}"#;
        let expected = json!({"role": "tool", "content": "15", "tool_call_id": "call_1"});
        assert_eq!(chat_input(endpoint, result).messages, [expected]);
        for (body, words) in [
            (call(r#""name": "f""#), "messages[0].tool_calls[0].function: has no arguments"),
            (call(r#""arguments": "{}""#), "messages[0].tool_calls[0].function: has no name"),
            (
                call(r#""name": "f", "arguments": {}"#),
                "messages[0].tool_calls[0].function.arguments: expected a string",
            ),
            (
                call(r#""name": "f", "arguments": "{}""#).replace("\"id\"", "\"number\""),
                "messages[0].tool_calls[0].number: unknown",
            ),
            (
                call(r#""name": "f", "arguments": "{}""#).replace("\"id\": \"call_1\", ", ""),
                "messages[0].tool_calls[0]: has no id",
            ),
            (
                call(r#""name": "f", "arguments": "{}""#).replace("assistant", "user").replace("null", "\"a\""),
                "messages[0].",
            ),
            (result.replace(r#", "tool_call_id": "call_1""#, ""), "messages[0]: has no tool_call_id"),
            (result.replace("\"tool\"", "\"user\""), "messages[0].tool_call_id: only a message with the role \"tool\""),
        ] {
            check_refused_by(endpoint, &body, words);
        }
    }
}
