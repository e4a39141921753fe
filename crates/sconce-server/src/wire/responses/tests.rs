//! Bodies of `/v1/responses`: the conversation that they become, and what the refusals say.

use sconce::{ChatInput, Grammar, Prompt};
use serde_json::{Value, json};

use super::super::Endpoint::Responses;
use super::super::tests::{accept, check_refused_by};
use super::super::{ToolChoice, WireRequest};

fn parse(body: &Value) -> WireRequest {
    accept(Responses, &body.to_string())
}

fn chat_input(body: &Value) -> ChatInput {
    match parse(body).take_request().unwrap().prompt {
        Prompt::Chat(chat) => chat,
        prompt => panic!("{prompt:?}"),
    }
}

fn messages(body: &Value) -> Value {
    chat_input(body).messages.into()
}

#[test]
fn text_is_what_the_user_says() {
    assert_eq!(messages(&json!({"input": "Hi"})), json!([{"role": "user", "content": "Hi"}]));
    let expected = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]);
    assert_eq!(messages(&json!({"input": "Hi", "instructions": "Be brief."})), expected);
}

#[test]
fn instructions_stand_before_what_the_system_says() {
    let said = |role: &str, content: Value| json!({"role": role, "content": content});
    let parts = json!([{"type": "input_text", "text": "b"}, {"type": "input_text", "text": "c"}]);
    let input = json!([said("developer", json!("a")), said("system", parts), said("user", json!("Hi"))]);
    let expected = json!([said("system", json!("x\n\na\n\nbc")), said("user", json!("Hi"))]);
    assert_eq!(messages(&json!({"input": input, "instructions": "x"})), expected);
    // Without instructions they stay as they are.
    assert_eq!(messages(&json!({"input": input}))[0], said("system", json!("a")));
}

#[test]
fn items_of_one_turn_are_one_message() {
    let call = |id: &str, name: &str| json!({"type": "function_call", "call_id": id, "name": name, "arguments": "{}"});
    let called =
        |id: &str, name: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": "{}"}});
    let thought = |text: &str| json!({"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": text}]});
    let result =
        |id: &str| json!({"type": "function_call_output", "call_id": id, "output": "15", "status": "completed"});
    let said = json!({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content":
        [{"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []}]});
    let input = json!([
        {"role": "user", "content": "How is the weather?"},
        thought("Hm."), said, call("1", "f"), call("2", "g"), result("1"), result("2"),
        thought("So"), call("3", "f"), result("3"),
        thought("Too long"), {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Well?"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "in short"}], "content": null},
    ]);
    let text = |text: &str| json!([{"type": "text", "text": text}]);
    let expected = json!([
        {"role": "user", "content": "How is the weather?"},
        {"role": "assistant", "content": text("Let me see."), "reasoning_content": "Hm.",
            "tool_calls": [called("1", "f"), called("2", "g")]},
        {"role": "tool", "content": "15", "tool_call_id": "1"},
        {"role": "tool", "content": "15", "tool_call_id": "2"},
        {"role": "assistant", "reasoning_content": "So", "tool_calls": [called("3", "f")]},
        {"role": "tool", "content": "15", "tool_call_id": "3"},
        {"role": "assistant", "content": "", "reasoning_content": "Too long"},
        {"role": "user", "content": text("Well?")},
        {"role": "assistant", "content": "", "reasoning_content": "in short"},
    ]);
    assert_eq!(messages(&json!({"input": input})), expected);
}

#[test]
fn tools_stand_without_a_function_around_them() {
    let f =
        json!({"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": true});
    let request = parse(&json!({"input": "Hi", "tools": [f], "tool_choice": {"type": "function", "name": "f"}}));
    let expected = json!([{"type": "function", "function":
        {"name": "f", "description": "d", "parameters": {"type": "object"}}}]);
    assert_eq!(Value::from(request.tools.list.clone()), expected);
    assert_eq!(request.tools.choice, ToolChoice::Named("f".into()));
    // The answer has them as they were.
    assert_eq!(request.repeated["tools"], json!([f]));
    assert_eq!(request.repeated["parallel_tool_calls"], true);
}

#[test]
fn the_form_of_the_answer_is_in_text() {
    let grammar = |format: Value| {
        let request = parse(&json!({"input": "Hi", "text": {"format": format}})).take_request();
        request.unwrap().grammar
    };
    let schema = json!({"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": true});
    assert_eq!(grammar(schema), Some(Grammar::JsonSchema(r#"{"type":"object"}"#.into())));
    assert_eq!(grammar(json!({"type": "json_object"})), Some(Grammar::JsonObject));
    assert_eq!(grammar(json!({"type": "text"})), None);
}

#[test]
fn fields_reach_what_they_are_about() {
    let request = parse(&json!({"input": "Hi", "max_output_tokens": 7, "top_logprobs": 3, "temperature": 0.5,
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content"], "metadata": {"a": "b"}}));
    assert_eq!(request.params.max_tokens, Some(7));
    assert_eq!(request.params.logprobs, Some(3));
    let repeated = &request.repeated;
    assert_eq!((&repeated["temperature"], &repeated["metadata"]), (&json!(0.5), &json!({"a": "b"})));
    assert_eq!(
        (&repeated["top_p"], &repeated["tool_choice"], &repeated["user"]),
        (&json!(1), &json!("auto"), &Value::Null)
    );
    let effort = json!({"input": "Hi", "reasoning": {"effort": "low", "summary": "auto"}});
    assert_eq!(chat_input(&effort).template_kwargs["reasoning_effort"], "low");
    // Without a limit the answer takes the rest of the context.
    assert_eq!(parse(&json!({"input": "Hi"})).params.max_tokens, None);
}

#[test]
fn what_is_wrong_is_named() {
    let call = json!({"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"});
    let without = |name: &str| {
        let mut call = call.clone();
        call.as_object_mut().unwrap().remove(name);
        json!({"input": [call]})
    };
    for (body, words) in [
        (json!({"instructions": "a"}), "input: is required"),
        (json!({"input": ""}), "input: expected a string that is not empty"),
        (json!({"input": []}), "input: must not be empty"),
        (json!({"input": [1]}), "input[0]: expected an item"),
        (json!({"input": [{"type": "web_search_call"}]}), "input[0]: expected an item of the type message"),
        (json!({"input": [{"type": "item_reference", "id": "a"}]}), "input[0]: nothing is stored here"),
        (json!({"input": [{"role": "tool", "content": "a"}]}), "input[0].role: expected \"system\", \"developer\""),
        (json!({"input": [{"role": "user"}]}), "input[0]: has no content"),
        (json!({"input": [{"content": "a"}]}), "input[0]: has no role"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "a"}]}]}),
            "input[0].content[0].type: expected \"input_text\" or \"output_text\"",
        ),
        (without("call_id"), "input[0]: has no call_id"),
        (without("name"), "input[0]: has no name"),
        (without("arguments"), "input[0]: has no arguments"),
        (json!({"input": [{"type": "function_call_output", "call_id": "1"}]}), "input[0]: has no output"),
        (json!({"input": [{"type": "function_call_output", "output": "1"}]}), "input[0]: has no call_id"),
        (
            json!({"input": [{"type": "reasoning", "encrypted_content": "x"}]}),
            "input[0].encrypted_content: cannot be read here",
        ),
        (json!({"input": "a", "previous_response_id": "resp_1"}), "previous_response_id: nothing is stored here"),
        (json!({"input": "a", "store": true}), "store: expected false: nothing is stored"),
        (json!({"input": "a", "background": true}), "background: expected false"),
        (json!({"input": "a", "truncation": "auto"}), "truncation: expected \"disabled\""),
        (json!({"input": "a", "tools": [{"type": "web_search"}]}), "tools[0]: expected the type \"function\""),
        (json!({"input": "a", "tools": [{"name": "f"}]}), "tools[0]: has no type"),
        (json!({"input": "a", "tools": [{"type": "function", "name": "a b"}]}), "tools[0].name: expected 1 to 64"),
        (json!({"input": "a", "tool_choice": {"type": "function", "name": "f"}}), "tool_choice: needs tools"),
        (json!({"input": "a", "text": {"format": {"type": "json_schema"}}}), "text.format: has no schema"),
        (
            json!({"input": "a", "text": {"format": {"type": "text", "schema": {}}}}),
            "text.format: name, schema and strict",
        ),
        (json!({"input": "a", "text": {"verbosity": "low"}}), "text.verbosity: expected \"medium\""),
        (json!({"input": "a", "reasoning": {"effort": "much"}}), "reasoning.effort: expected \"none\""),
        (json!({"input": "a", "reasoning": {"summary": "detailed"}}), "reasoning.summary: expected \"auto\""),
        (json!({"input": "a", "include": ["file_search_call.results"]}), "include[0]: expected"),
        (json!({"input": "a", "top_logprobs": 2}), "top_logprobs: needs include to have"),
        (json!({"input": "a", "max_output_tokens": 0}), "max_output_tokens: expected an integer, at least 1"),
        (json!({"input": "a", "n": 2}), "n: unknown field of /v1/responses"),
        (json!({"input": "a", "messages": []}), "messages: unknown field of /v1/responses"),
    ] {
        check_refused_by(Responses, &body.to_string(), words);
    }
}
