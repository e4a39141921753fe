//! The forms of streamed answers, from events made by hand.

mod logprobs;

use std::sync::Arc;

use futures_util::stream::{StreamExt, iter};
use sconce::{
    AnswerReader, CompletionOutput, Error, Finish, FinishReason, Logprob, PredictionUsage, StopReason, StreamEvent,
    TokenEvent, TokenLogprobs, Usage,
};
use serde_json::{Value, json};

use super::answer::Reading;
use super::events::{Events, Submitted, deltas};
use super::logprobs::TokenBytes;
use super::stream::{Encoder, encoded};
use super::{Head, chat, completions, generate};
use crate::http::{Json, Pieces};

pub(super) type Event = Result<StreamEvent, Error>;

pub(super) fn token(index: usize, text: &str) -> Event {
    let logprobs = Vec::new();
    Ok(StreamEvent::Token(TokenEvent { index, token_ids: vec![7], text: text.into(), logprobs, finish: None }))
}

pub(super) fn last(index: usize, text: &str, reason: FinishReason, cumulative_logprob: f64) -> Event {
    let stop_reason = (reason == FinishReason::Stop).then(|| StopReason::Text("!".into()));
    let finish = Some(Finish { reason, stop_reason, cumulative_logprob, beam_score: None });
    let logprobs = Vec::new();
    Ok(StreamEvent::Token(TokenEvent { index, token_ids: vec![8], text: text.into(), logprobs, finish }))
}

pub(super) fn done(completion_tokens: usize) -> Event {
    Ok(StreamEvent::Done(Usage { prompt_tokens: 3, completion_tokens, cached_tokens: 1, prediction: None }))
}

/// Events that come one at a time, as from an engine that is slower than the client.
pub(super) fn slow(events: Vec<Event>) -> Events {
    iter(events)
        .then(|event| async {
            tokio::task::yield_now().await;
            event
        })
        .boxed()
}

pub(super) fn head() -> Head {
    Head { id: "cmpl-1".into(), model: "m".into(), created: 5 }
}

/// Letters: id 0 is `a`. Ids from 100 on are halves of `é`.
pub(super) fn letters() -> TokenBytes {
    Arc::new(|id| match id {
        100 => vec![0xC3],
        101 => vec![0xA9],
        id => vec![b'a' + id as u8],
    })
}

fn logprob(token_id: u32, logprob: f32) -> Logprob {
    Logprob { token_id, logprob, rank: 1 }
}

pub(super) async fn body(events: Vec<Events>, encoder: impl Encoder) -> String {
    let frames: Vec<_> = encoded(events, encoder).collect().await;
    String::from_utf8(frames.concat()).unwrap()
}

/// The JSON of each event; the last is the string `[DONE]` where the stream has that.
pub(super) fn sse(body: &str) -> Vec<Value> {
    let data = body.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").expect("an event is one line"));
    data.map(|data| if data == "[DONE]" { json!(data) } else { serde_json::from_str(data).unwrap() }).collect()
}

/// The text of `json`.
fn text(json: &Json) -> String {
    let mut out = Pieces::default();
    json.write(&mut out);
    String::from_utf8(out.into_frames().concat()).unwrap()
}

/// `json` read again.
pub(super) fn parsed(json: &Json) -> Value {
    serde_json::from_str(&text(json)).unwrap()
}

fn records(body: &str) -> Vec<Value> {
    assert!(body.ends_with('\0'), "{body:?}");
    body.split_terminator('\0').map(|record| serde_json::from_str(record).unwrap()).collect()
}

fn generate_records(n: usize) -> generate::Records {
    generate::Records::new(head(), n, "P", letters())
}

#[tokio::test]
async fn generate_streams_cumulative_records() {
    let events = vec![token(0, "a"), token(1, "x"), token(0, ""), last(1, "y", FinishReason::Length, -1.0)];
    let rest = [last(0, "b", FinishReason::Stop, -2.0), done(5)];
    let body = body(vec![slow(events.into_iter().chain(rest).collect())], generate_records(2)).await;
    let records = records(&body);
    let texts: Vec<_> = records.iter().map(|r| r["text"].clone()).collect();
    assert_eq!(texts[0], json!(["Pa", "P"]));
    assert_eq!(texts[1], json!(["Pa", "Px"]));
    let last = records.last().unwrap();
    // Best first: the second sequence has the greater logprob.
    assert_eq!(last["text"], json!(["Pxy", "Pab"]));
    assert_eq!(last["outputs"][0]["index"], 1);
    assert_eq!(last["outputs"][0]["finish_reason"], "length");
    assert_eq!(last["outputs"][0]["stop_reason"], Value::Null);
    assert_eq!(last["outputs"][1]["text"], "ab");
    assert_eq!(last["outputs"][1]["token_ids"], json!([7, 7, 8]));
    assert_eq!(last["outputs"][1]["finish_reason"], "stop");
    assert_eq!(last["outputs"][1]["stop_reason"], "!");
    assert_eq!(last["outputs"][1]["cumulative_logprob"], -2.0);
    assert_eq!(last["usage"]["total_tokens"], 8);
    assert_eq!((&last["model"], &last["id"]), (&json!("m"), &json!("cmpl-1")));
    assert!(records[..records.len() - 1].iter().all(|r| r.get("usage").is_none()));
}

fn best(outputs: &[(&str, f64)]) -> Event {
    let output = |(index, &(text, score)): (usize, &(&str, f64))| {
        let reason = FinishReason::Length;
        let finish = Some(Finish { reason, stop_reason: None, cumulative_logprob: -9.0, beam_score: Some(score) });
        CompletionOutput { index, text: text.into(), token_ids: vec![7, 8], logprobs: vec![], finish }
    };
    Ok(StreamEvent::Best(outputs.iter().enumerate().map(output).collect()))
}

#[tokio::test]
async fn the_best_so_far_replace_one_another_and_the_last_are_the_answer() {
    let events = || vec![best(&[("x", -1.0)]), best(&[("ab", -2.0), ("xy", -3.0)]), best(&[("ac", -1.5)]), done(4)];
    let streamed = records(&body(vec![slow(events())], generate_records(2)).await);
    let texts: Vec<_> = streamed.iter().map(|r| r["text"].clone()).collect();
    assert_eq!(texts, [json!(["Px"]), json!(["Pab", "Pxy"]), json!(["Pac"]), json!(["Pac"])]);
    let last = streamed.last().unwrap();
    assert_eq!((&last["outputs"][0]["beam_score"], &last["usage"]["completion_tokens"]), (&json!(-1.5), &json!(4)));

    // A form that can only add says nothing until it is certain.
    let chunks = sse(&body(vec![deltas(slow(events()))], chat_chunks(2, false)).await);
    let contents: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(contents, "ac");
    assert_eq!(chunks[chunks.len() - 2]["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn a_slow_reader_gets_fewer_records() {
    let events = vec![token(0, "a"), token(0, "b"), last(0, "c", FinishReason::Stop, 0.0), done(3)];
    let body = body(vec![iter(events).boxed()], generate_records(1)).await;
    let records = records(&body);
    assert_eq!(records.len(), 1);
    assert_eq!(records[0]["text"], json!(["Pabc"]));
}

#[tokio::test]
async fn an_error_is_the_last_record() {
    let failed = || Err(Error::Unavailable { message: "stopped".into() });
    let body_of = body(vec![slow(vec![token(0, "a"), failed(), token(0, "b")])], generate_records(1));
    let records = records(&body_of.await);
    assert_eq!(records.len(), 2);
    assert_eq!(records[1]["error"]["message"], "stopped");
    let events = sse(&body(vec![slow(vec![token(0, "a"), failed()])], chat_chunks(1, true)).await);
    assert_eq!(events.last().unwrap()["error"]["code"], "unavailable");
}

fn chat_chunks(n: usize, include_usage: bool) -> chat::Chunks {
    let (head, usage) = (head(), Usage::default());
    let answers = chat::Answer::several(n, &Reading::of_calls(None));
    chat::Chunks { head, token_bytes: letters(), answers, include_usage, usage }
}

#[tokio::test]
async fn chat_streams_role_text_finish_usage_done() {
    let events = vec![token(0, "a"), token(0, ""), last(0, "b", FinishReason::Stop, 0.0), done(3)];
    let events = sse(&body(vec![slow(events)], chat_chunks(1, true)).await);
    let deltas: Vec<_> = events[..4].iter().map(|e| e["choices"][0]["delta"].clone()).collect();
    let role = json!({"role": "assistant", "content": ""});
    assert_eq!(deltas, [role, json!({"content": "a"}), json!({"content": "b"}), json!({})]);
    assert_eq!(events[3]["choices"][0]["finish_reason"], "stop");
    assert_eq!(events[2]["choices"][0]["finish_reason"], Value::Null);
    assert!(events[..4].iter().all(|e| e["object"] == "chat.completion.chunk" && e["usage"].is_null()));
    assert_eq!(events[4]["choices"], json!([]));
    assert_eq!(events[4]["usage"]["completion_tokens"], 3);
    assert_eq!(events[4]["usage"].get("completion_tokens_details"), None);
    assert_eq!(events[5], "[DONE]");
    assert_eq!(events.len(), 6);
}

#[tokio::test]
async fn usage_says_what_became_of_a_prediction() {
    let prediction = Some(PredictionUsage { accepted_tokens: 2, rejected_tokens: 5 });
    let usage = Usage { prompt_tokens: 3, completion_tokens: 3, cached_tokens: 0, prediction };
    let events = vec![last(0, "a", FinishReason::Length, 0.0), Ok(StreamEvent::Done(usage))];
    let events = sse(&body(vec![slow(events)], chat_chunks(1, true)).await);
    let details = &events[events.len() - 2]["usage"]["completion_tokens_details"];
    assert_eq!(details, &json!({"accepted_prediction_tokens": 2, "rejected_prediction_tokens": 5}));
}

#[tokio::test]
async fn chat_without_usage_has_no_usage() {
    let events = vec![last(0, "a", FinishReason::Length, 0.0), done(1)];
    let events = sse(&body(vec![slow(events)], chat_chunks(1, false)).await);
    assert_eq!(events.len(), 4);
    assert!(events[..3].iter().all(|e| e.get("usage").is_none()));
}

fn completion_form(echo: bool, n: usize) -> completions::Form {
    completions::Form {
        head: head(),
        echo,
        has_logprobs: echo,
        n,
        token_bytes: letters(),
        is_special: Arc::new(|_| false),
        skips_special: true,
    }
}

fn submitted(n: usize) -> Submitted {
    let prompt_text = "ab".into();
    Submitted {
        prompt_text,
        prompt_token_ids: vec![0, 1],
        num_sequences: n,
        answer_reader: AnswerReader::default(),
        events: iter([]).boxed(),
    }
}

#[tokio::test]
async fn completions_of_several_prompts_are_told_apart() {
    let events = |text: &str| {
        let events = [token(0, text), last(1, text, FinishReason::Stop, 0.0), last(0, "", FinishReason::Length, 0.0)];
        slow(events.into_iter().chain([done(3)]).collect())
    };
    let chunks = completions::Chunks::new(completion_form(false, 2), &[submitted(2), submitted(2)], true);
    let mut events = sse(&body(vec![events("a"), events("b")], chunks).await);
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let usage = events.pop().unwrap();
    assert_eq!(usage["usage"]["completion_tokens"], 6);
    let mut texts = [const { String::new() }; 4];
    let mut finished = Vec::new();
    for event in &events {
        let choice = &event["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        texts[index].push_str(choice["text"].as_str().unwrap());
        finished.extend(choice["finish_reason"].as_str().map(|reason| (index, reason.to_owned())));
    }
    assert_eq!(texts, ["a", "a", "b", "b"]);
    finished.sort();
    let expected = [(0, "length"), (1, "stop"), (2, "length"), (3, "stop")];
    assert_eq!(finished, expected.map(|(index, reason)| (index, reason.to_owned())));
}

#[tokio::test]
async fn echo_begins_with_the_prompt_and_its_logprobs() {
    let position = |token_id| TokenLogprobs { chosen: logprob(token_id, -1.0), top: vec![logprob(2, -0.5)] };
    let prompt = Ok(StreamEvent::PromptLogprobs(vec![None, Some(position(1))]));
    let mut grown =
        TokenEvent { index: 0, token_ids: vec![3], text: "d".into(), logprobs: vec![position(3)], finish: None };
    let first = Ok(StreamEvent::Token(grown.clone()));
    grown.finish =
        Some(Finish { reason: FinishReason::Length, stop_reason: None, cumulative_logprob: -2.0, beam_score: None });
    let second = Ok(StreamEvent::Token(grown));
    let chunks = completions::Chunks::new(completion_form(true, 1), &[submitted(1)], false);
    let events = sse(&body(vec![slow(vec![prompt, first, second, done(2)])], chunks).await);
    assert_eq!(events.len(), 3);
    let choice = &events[0]["choices"][0];
    assert_eq!(choice["text"], "abd");
    assert_eq!(choice["logprobs"]["tokens"], json!(["a", "b", "d"]));
    assert_eq!(choice["logprobs"]["token_logprobs"], json!([null, -1.0, -1.0]));
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 1, 2]));
    assert_eq!(choice["logprobs"]["top_logprobs"][1], json!({"c": -0.5, "b": -1.0}));
    assert_eq!(events[1]["choices"][0]["logprobs"]["text_offset"], json!([3]));
}

#[test]
fn metrics_are_prometheus_text() {
    use std::sync::atomic::Ordering;

    let state = crate::State::new(crate::Settings::default());
    let status = sconce::EngineStatus::default();
    status.num_used_blocks.store(1, Ordering::Relaxed);
    status.num_total_blocks.store(4, Ordering::Relaxed);
    state.metrics.first_token.observe(std::time::Duration::from_millis(30));
    state.metrics.request_ended("/generate", 200, std::time::Duration::from_secs(1));
    let text = super::metrics::text(&state, &[("a\"b", &status)]);
    for line in [
        "sconce_ready 1",
        "sconce_requests_total{path=\"/generate\",status=\"200\"} 1",
        "sconce_time_to_first_token_seconds_bucket{le=\"0.02\"} 0",
        "sconce_time_to_first_token_seconds_bucket{le=\"0.05\"} 1",
        "sconce_time_to_first_token_seconds_bucket{le=\"+Inf\"} 1",
        "sconce_time_to_first_token_seconds_sum 0.03",
        "sconce_time_to_first_token_seconds_count 1",
        "sconce_kv_blocks_used{model_name=\"a\\\"b\"} 1",
        "vllm:kv_cache_usage_perc{model_name=\"a\\\"b\"} 0.25",
        "vllm:num_requests_running{model_name=\"a\\\"b\"} 0",
    ] {
        assert!(text.lines().any(|l| l == line), "no line {line:?} in\n{text}");
    }
}
