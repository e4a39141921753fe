//! Answers with calls, whole and streamed, from events made by hand.

use std::sync::Arc;

use sconce::{
    CallCount, CallForm, CompletionOutput, FinishReason, Logprob, StreamEvent, TokenEvent, TokenLogprobs, Usage,
};
use serde_json::{Value, json};

use super::super::answer::{AnswerParts, Reading};
use super::super::chat::{Answer, Chunks};
use super::super::tests::{body, done, head, last, letters, slow, sse, token};
use super::Calls;

fn calls(count: CallCount, is_named: bool) -> Arc<Calls> {
    let tools = [json!({"type": "function", "function": {"name": "f"}})];
    Arc::new(Calls { tools: tools.into(), form: CallForm::Object, count, is_named })
}

const TWO: &str =
    r#"Yes: <tool_call>{"name": "f", "arguments": {"x": [1, "é"]}}</tool_call> {"name": "f", "arguments": {}}"#;

/// Takes out the ids of calls, which differ each time.
fn without_ids(mut calls: Value) -> Value {
    for call in calls.as_array_mut().unwrap() {
        let id = call.as_object_mut().unwrap().shift_remove("id").unwrap();
        let letters = id.as_str().unwrap().strip_prefix("call_").unwrap();
        assert!(letters.len() == 24 && letters.chars().all(|c| c.is_ascii_alphanumeric()), "{id}");
    }
    calls
}

fn call(arguments: &str) -> Value {
    json!({"type": "function", "function": {"name": "f", "arguments": arguments}})
}

fn check_message(of: Option<&Arc<Calls>>, text: &str, content: Value, calls: Value, finish: &str) {
    let mut answer = AnswerParts::new(&Reading::of_calls(of));
    let mut message = answer.message(&CompletionOutput { text: text.into(), ..CompletionOutput::default() });
    let found = message.as_object_mut().unwrap().shift_remove("tool_calls").map_or(Value::Null, without_ids);
    assert_eq!((message, found), (json!({"role": "assistant", "content": content, "refusal": null}), calls), "{text}");
    assert_eq!(answer.finish_reason(FinishReason::Stop), finish);
    assert_eq!(answer.finish_reason(FinishReason::Length), "length");
}

#[test]
fn messages_have_calls_and_content() {
    let (many, one) = (calls(CallCount::Many, false), calls(CallCount::One, false));
    let (first, second) = (call(r#"{"x": [1, "é"]}"#), call("{}"));
    check_message(Some(&many), TWO, json!("Yes: "), json!([first, second]), "tool_calls");
    check_message(Some(&one), TWO, json!("Yes: "), json!([first]), "tool_calls");
    check_message(Some(&many), &TWO[5..], Value::Null, json!([first, second]), "tool_calls");
    check_message(Some(&calls(CallCount::Many, true)), &TWO[5..], Value::Null, json!([first, second]), "stop");
    check_message(Some(&many), "<tool_call>", json!("<tool_call>"), Value::Null, "stop");
    check_message(Some(&many), "", json!(""), Value::Null, "stop");
    check_message(None, TWO, json!(TWO), Value::Null, "stop");
}

#[test]
fn ids_are_new_each_time() {
    let mut ids: Vec<String> = (0..100).map(|_| calls(CallCount::Many, false).new_id()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 100);
    let mistral = Calls { tools: Arc::from([]), form: CallForm::List, count: CallCount::Many, is_named: false };
    assert_eq!(mistral.new_id().len(), 9);
}

fn chunks(n: usize, calls: &Arc<Calls>) -> Chunks {
    let answers = Answer::several(n, &Reading::of_calls(Some(calls)));
    Chunks { head: head(), token_bytes: letters(), answers, include_usage: false, usage: Usage::default() }
}

/// The choices of a stream's events, those of answer `index`.
fn choices(events: &[Value], index: usize) -> Vec<Value> {
    events.iter().map(|event| event["choices"][0].clone()).filter(|choice| choice["index"] == index).collect()
}

#[tokio::test]
async fn a_stream_tells_calls_once_they_are_certain() {
    let cut = |index, text: &'static str| {
        let chars: Vec<&str> = text.split_inclusive(|_| true).collect();
        chars.into_iter().map(move |c| token(index, c)).collect::<Vec<_>>()
    };
    let mut events = cut(0, TWO);
    events.extend(cut(1, "a <b> {\"name\": \"f\"} <tool"));
    events.extend([last(0, "", FinishReason::Stop, 0.0), last(1, "", FinishReason::Stop, 0.0), done(3)]);
    let events = sse(&body(vec![slow(events)], chunks(2, &calls(CallCount::Many, false))).await);
    let first = choices(&events, 0);
    let content: String = first.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
    assert_eq!(content, "Yes: ");
    let mut deltas: Vec<Value> = first.iter().map(|choice| choice["delta"]["tool_calls"].clone()).collect();
    deltas.retain(|delta| !delta.is_null());
    let begun = |index: usize| {
        let mut begun = call("");
        begun["index"] = index.into();
        json!([begun])
    };
    let rest = |index, arguments| json!([{"index": index, "function": {"arguments": arguments}}]);
    let found: Vec<Value> =
        deltas.into_iter().map(|delta| if delta[0].get("id").is_some() { without_ids(delta) } else { delta }).collect();
    assert_eq!(found, [begun(0), rest(0, r#"{"x": [1, "é"]}"#), begun(1), rest(1, "{}")]);
    assert_eq!(first.last().unwrap()["finish_reason"], "tool_calls");
    let second = choices(&events, 1);
    let content: String = second.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
    assert_eq!(content, "a <b> {\"name\": \"f\"} <tool");
    assert_eq!(second.last().unwrap()["finish_reason"], "stop");
}

#[tokio::test]
async fn logprobs_come_with_what_is_held_back() {
    let logprob = |token_id| Logprob { token_id, logprob: -1.0, rank: 1 };
    let token = |id: u32, text: &str| {
        let logprobs = vec![TokenLogprobs { chosen: logprob(id), top: Vec::new() }];
        Ok(StreamEvent::Token(TokenEvent { index: 0, token_ids: vec![id], text: text.into(), logprobs, finish: None }))
    };
    let text = [r#"{"name": "f", "#, r#""arguments": "#, "{}", "}"];
    let mut events: Vec<_> = text.into_iter().zip(0..).map(|(text, id)| token(id, text)).collect();
    events.extend([last(0, "", FinishReason::Stop, 0.0), done(5)]);
    let events = sse(&body(vec![slow(events)], chunks(1, &calls(CallCount::One, true))).await);
    let choices = choices(&events, 0);
    let tokens: Vec<&Value> =
        choices.iter().flat_map(|choice| choice["logprobs"]["content"].as_array().into_iter().flatten()).collect();
    assert_eq!(tokens.iter().map(|token| &token["token"]).collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    assert_eq!(choices.last().unwrap()["finish_reason"], "stop");
}
