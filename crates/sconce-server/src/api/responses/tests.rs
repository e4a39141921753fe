//! The events of a streamed response, and the response that they add up to, from events made by hand.

use std::sync::Arc;

use sconce::{CallForm, Finish, FinishReason, Logprob, StreamEvent, TokenEvent, TokenLogprobs};
use serde_json::{Map, Value, json};

use super::events::Events;
use super::output::Output;
use super::{Form, in_own_words};
use crate::api::answer::tests::{calls, in_channels, text_of_token, thinking};
use crate::api::answer::{AnswerParts, Reading};
use crate::api::tests::{Event, body, done, head, last, letters, parsed, slow, token};
use crate::http::ApiError;

fn form() -> Form {
    let repeated = Map::from_iter([("temperature".to_owned(), json!(1))]);
    Form { head: head(), repeated }
}

fn output(reading: &Reading) -> Output {
    Output::new(AnswerParts::new(reading), letters())
}

/// The streamed events, whose names, numbers and frames are checked.
async fn stream(reading: &Reading, events: Vec<Event>) -> Vec<Value> {
    let body = body(vec![slow(events)], Events::new(form(), output(reading))).await;
    let events = body.split_terminator("\n\n").enumerate().map(|(i, event)| {
        let (name, data) = event.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!((&data["type"], &data["sequence_number"]), (&json!(name), &json!(i)));
        data
    });
    events.collect()
}

/// The response of the same events taken as a whole, without what is drawn.
fn whole(reading: &Reading, events: Vec<Event>) -> Value {
    let mut output = output(reading);
    let mut usage = None;
    for event in events {
        match event.unwrap() {
            StreamEvent::Token(token) => drop(output.push(&token)),
            StreamEvent::Done(counts) => usage = Some(counts),
            other => panic!("{other:?}"),
        }
    }
    without_ids(parsed(&form().ended(output, usage.unwrap())))
}

/// A response whose items have no ids, and whose end has no time.
fn without_ids(mut response: Value) -> Value {
    for item in response["output"].as_array_mut().unwrap() {
        let item = item.as_object_mut().unwrap();
        assert!(item.shift_remove("id").unwrap().as_str().unwrap().contains('_'));
        item.shift_remove("call_id");
    }
    response["completed_at"].take();
    response
}

fn types(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap().strip_prefix("response.").unwrap()).collect()
}

#[tokio::test]
async fn a_text_is_a_message() {
    let events = || vec![token(0, "ab"), token(0, ""), last(0, "c", FinishReason::Stop, -1.0), done(3)];
    let reading = Reading::of_calls(None);
    let streamed = stream(&reading, events()).await;
    let expected = [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ];
    assert_eq!(types(&streamed), expected);
    assert_eq!((&streamed[4]["delta"], &streamed[5]["delta"]), (&json!("ab"), &json!("c")));
    assert_eq!(streamed[2]["item"]["content"], json!([]));
    let ids: Vec<_> = streamed[3..=7].iter().map(|event| &event["item_id"]).collect();
    assert!(ids.iter().all(|id| **id == streamed[2]["item"]["id"]), "{ids:?}");
    let response = without_ids(streamed[9]["response"].clone());
    assert_eq!(response, whole(&reading, events()));
    let text = json!({"type": "output_text", "text": "abc", "annotations": [], "logprobs": []});
    let message = json!([{"type": "message", "status": "completed", "role": "assistant", "content": [text]}]);
    assert_eq!(response["output"], message);
    let usage = json!({"input_tokens": 3, "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
        "output_tokens": 3, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 6});
    assert_eq!(response["usage"], usage);
    assert_eq!((&response["status"], &response["temperature"]), (&json!("completed"), &json!(1)));
}

#[tokio::test]
async fn what_is_thought_and_called_are_items_of_their_own() {
    let call = r#"<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>"#;
    let reading = Reading::of(thinking(), Some(&calls(CallForm::Object)));
    let events = || {
        let texts = ["Hm", ".</thi", "nk>\n\nLet me ", "see.", &call[..20]];
        let mut events: Vec<_> = texts.iter().map(|text| token(0, text)).collect();
        events.extend([last(0, &call[20..], FinishReason::Stop, -1.0), done(6)]);
        events
    };
    let streamed = stream(&reading, events()).await;
    let response = without_ids(streamed.last().unwrap()["response"].clone());
    assert_eq!(response, whole(&reading, events()));
    let text = json!({"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []});
    let expected = json!([
        {"type": "reasoning", "status": "completed", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "status": "completed", "role": "assistant", "content": [text]},
        {"type": "function_call", "status": "completed", "name": "f", "arguments": r#"{"x": 1}"#},
    ]);
    assert_eq!(response["output"], expected);
    let of = |kind: &str, name: &str| -> Vec<Value> {
        let events = streamed.iter().filter(|event| event["type"] == format!("response.{kind}"));
        events.map(|event| event[name].clone()).collect()
    };
    assert_eq!(of("reasoning_text.delta", "delta"), ["Hm", "."]);
    assert_eq!(of("reasoning_text.done", "text"), ["Hm."]);
    assert_eq!(of("output_text.done", "text"), ["Let me see."]);
    assert_eq!(of("function_call_arguments.delta", "delta"), [r#"{"x": 1}"#]);
    assert_eq!(of("function_call_arguments.done", "arguments"), [r#"{"x": 1}"#]);
    assert_eq!(of("output_item.added", "output_index"), [0, 1, 2]);
    assert_eq!(of("output_item.done", "output_index"), [0, 1, 2]);
    let call_ids: Vec<_> = of("output_item.added", "item").iter().map(|item| item["call_id"].clone()).collect();
    assert!(call_ids[2].as_str().unwrap().starts_with("call_"), "{call_ids:?}");
}

#[tokio::test]
async fn log_probabilities_are_of_the_text() {
    let with = |event: Event, ids: &[u32]| match event {
        Ok(StreamEvent::Token(mut token)) => {
            let chosen = |&token_id: &u32| Logprob { token_id, logprob: -0.5, rank: 1 };
            token.logprobs = ids.iter().map(|id| TokenLogprobs { chosen: chosen(id), top: vec![chosen(id)] }).collect();
            Ok(StreamEvent::Token(token))
        }
        event => event,
    };
    // The second token makes no text by itself, the last none at all.
    let events = || {
        let last = last(0, "", FinishReason::Stop, -1.0);
        vec![
            with(token(0, "a"), &[0]),
            with(token(0, ""), &[100]),
            with(token(0, "é"), &[101]),
            with(last, &[3]),
            done(4),
        ]
    };
    let reading = Reading::of_calls(None);
    let streamed = stream(&reading, events()).await;
    let tokens =
        |logprobs: &Value| -> Vec<Value> { logprobs.as_array().unwrap().iter().map(|l| l["bytes"].clone()).collect() };
    let deltas = streamed.iter().filter(|event| event["type"] == "response.output_text.delta");
    let of_deltas: Vec<_> = deltas.map(|event| tokens(&event["logprobs"])).collect();
    assert_eq!(of_deltas, [vec![json!([97])], vec![json!([195]), json!([169])]]);
    let response = without_ids(streamed.last().unwrap()["response"].clone());
    assert_eq!(response, whole(&reading, events()));
    let logprobs = &response["output"][0]["content"][0]["logprobs"];
    assert_eq!(tokens(logprobs), [json!([97]), json!([195]), json!([169]), json!([100])]);
    assert_eq!(logprobs[0]["top_logprobs"], json!([{"token": "a", "logprob": -0.5, "bytes": [97]}]));
}

/// Neither of what is thought, nor of what stands around messages, whether it comes token by token or, as of beams, at once.
#[test]
fn log_probabilities_are_of_what_is_answered() {
    let (tokenizer, marks, reading) = in_channels(None);
    let answer = "<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>final<|message|>so<|return|>";
    let ids = tokenizer.encode(answer, false).unwrap();
    let event = |token_ids: &[u32], is_last: bool| TokenEvent {
        index: 0,
        token_ids: token_ids.to_vec(),
        text: token_ids.iter().map(|&id| text_of_token(id, &tokenizer, &marks)).collect(),
        logprobs: token_ids
            .iter()
            .map(|&token_id| TokenLogprobs { chosen: Logprob { token_id, logprob: -1.0, rank: 1 }, top: Vec::new() })
            .collect(),
        finish: is_last.then_some(Finish {
            reason: FinishReason::Stop,
            stop_reason: None,
            cumulative_logprob: -1.0,
            beam_score: None,
        }),
    };
    let (last, before) = ids.split_last().unwrap();
    let mut one_by_one: Vec<_> = before.iter().map(|&id| event(&[id], false)).collect();
    one_by_one.push(event(&[*last], true));
    for events in [one_by_one, vec![event(&ids, true)]] {
        let own = tokenizer.clone();
        let mut output = Output::new(AnswerParts::new(&reading), Arc::new(move |id| own.token_bytes(id)));
        events.iter().for_each(|event| drop(output.push(event)));
        let items: Vec<_> = output.into_items().iter().map(parsed).collect();
        assert_eq!((&items[0]["type"], &items[1]["content"][0]["text"]), (&json!("reasoning"), &json!("so")));
        let logprobs = items[1]["content"][0]["logprobs"].as_array().unwrap();
        let tokens: String = logprobs.iter().map(|entry| entry["token"].as_str().unwrap()).collect();
        assert_eq!(tokens, "so");
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_incomplete() {
    for text in ["ab", ""] {
        let events = || vec![last(0, text, FinishReason::Length, -1.0), done(1)];
        let reading = Reading::of_calls(None);
        let streamed = stream(&reading, events()).await;
        assert_eq!(types(&streamed).last(), Some(&"incomplete"));
        let response = whole(&reading, events());
        assert_eq!(response, without_ids(streamed.last().unwrap()["response"].clone()));
        assert_eq!(response["status"], "incomplete");
        assert_eq!(response["incomplete_details"], json!({"reason": "max_output_tokens"}));
        assert_eq!(
            (&response["output"][0]["status"], &response["output"][0]["content"][0]["text"]),
            (&json!("incomplete"), &json!(text))
        );
    }
}

#[tokio::test]
async fn an_error_fails_the_response_with_what_there_is() {
    let error = Err(sconce::Error::Unavailable { message: "the engine has stopped".into() });
    let streamed = stream(&Reading::of_calls(None), vec![token(0, "ab"), error]).await;
    let response = &streamed.last().unwrap()["response"];
    assert_eq!(types(&streamed).last(), Some(&"failed"));
    assert_eq!(response["status"], "failed");
    assert!(response["error"]["message"].as_str().unwrap().contains("has stopped"), "{response}");
    assert_eq!(response["output"][0]["content"][0]["text"], "ab");
}

#[test]
fn fields_go_by_their_names_here() {
    let of = |param: &str, message: &str| {
        let error = in_own_words(ApiError::invalid(param, message)).to_json();
        (error["error"]["param"].clone(), error["error"]["message"].clone())
    };
    let expected = |param: &str, message: &str| (json!(param), json!(message));
    assert_eq!(of("max_tokens", "max_tokens: is small"), expected("max_output_tokens", "max_output_tokens: is small"));
    assert_eq!(
        of("messages[1].content", "messages[1].content: no"),
        expected("input", "input: messages[1].content: no")
    );
    assert_eq!(of("messages", "the prompt is too long"), expected("input", "the prompt is too long"));
    assert_eq!(of("tools", "tools: no"), expected("tools", "tools: no"));
}
