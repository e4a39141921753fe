//! Answers with reasoning, whole and streamed, from events made by hand.

use std::sync::Arc;

use sconce::{
    AnswerForm, AnswerReader, CallCount, CallForm, ChatInput, CompletionOutput, FinishReason, Logprob, Marks,
    ReasoningCount, StreamEvent, TokenEvent, TokenLogprobs, Tokenizer, Usage,
};
use serde_json::{Value, json};

use super::super::chat::{Answer, Chunks};
use super::super::tests::{body, done, head, last, letters, slow, sse, token};
use super::super::tools::Calls;
use super::{AnswerParts, Reading};

/// The tokenizer of a golden fixture, with further special tokens.
fn tokenizer(further: &[&str]) -> Arc<Tokenizer> {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/llama/tokenizer.json");
    let mut file: Value = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    for (content, id) in further.iter().zip(304..) {
        let token = json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false});
        file["added_tokens"].as_array_mut().unwrap().push(token);
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    Arc::new(Tokenizer::from_dir(dir.path()).unwrap())
}

/// A reader for answers that begin with reasoning.
pub(in crate::api) fn thinking() -> AnswerReader {
    AnswerForm::of("</think>", &tokenizer(&[])).reader(&ChatInput::default(), "<think>\n")
}

/// A vocabulary with channels, and how answers in them are read.
pub(in crate::api) fn in_channels(calls: Option<&Arc<Calls>>) -> (Arc<Tokenizer>, Marks, Reading) {
    let tokenizer = tokenizer(&["<|channel|>", "<|message|>", "<|start|>", "<|call|>", "<|return|>", "<|constrain|>"]);
    let form = AnswerForm::of("<|channel|>", &tokenizer);
    let reader = form.reader(&ChatInput::default(), "<|start|>assistant");
    let count = Some(ReasoningCount::new(reader.clone(), tokenizer.clone()));
    (tokenizer, form.marks().clone(), Reading { count, ..Reading::of(reader, calls) })
}

/// A token's text as the engine makes it: marks by their characters, other special tokens not at all.
pub(in crate::api) fn text_of_token(id: u32, tokenizer: &Tokenizer, marks: &Marks) -> String {
    let sign = marks.iter().find(|(mark, _)| *mark == id).map(|(_, sign)| sign.to_string());
    sign.unwrap_or_else(|| tokenizer.decode(&[id], true))
}

pub(in crate::api) fn calls(form: CallForm) -> Arc<Calls> {
    let tools = [json!({"type": "function", "function": {"name": "f"}})];
    Arc::new(Calls { tools: tools.into(), form, count: CallCount::Many, is_named: false })
}

fn output(text: &str) -> CompletionOutput {
    CompletionOutput { text: text.into(), ..CompletionOutput::default() }
}

/// The message of an answer without the ids of its calls, and why it ended.
fn message(reading: &Reading, text: &str) -> (Value, &'static str) {
    let mut parts = AnswerParts::new(reading);
    let mut message = parts.message(&output(text));
    for call in message["tool_calls"].as_array_mut().into_iter().flatten() {
        call.as_object_mut().unwrap().shift_remove("id");
    }
    message.as_object_mut().unwrap().retain(|_, value| *value != json!([]));
    if message["tool_calls"].is_null() {
        message.as_object_mut().unwrap().shift_remove("tool_calls");
    }
    (message, parts.finish_reason(FinishReason::Stop))
}

#[test]
fn messages_have_reasoning_under_two_names() {
    let reading = Reading::of(thinking(), None);
    let of = |content: Value, reasoning: &str| json!({"role": "assistant", "content": content, "refusal": null, "reasoning_content": reasoning, "reasoning": reasoning});
    assert_eq!(message(&reading, "a\n</think>\n\nb").0, of(json!("b"), "a"));
    // Cut off within it.
    assert_eq!(message(&reading, "a </thi").0, of(Value::Null, "a </thi"));
    let plain = |content: &str| json!({"role": "assistant", "content": content, "refusal": null});
    assert_eq!(message(&reading, "</think>b").0, plain("b"));
    assert_eq!(message(&reading, "</think>").0, plain(""));
    let hidden = Reading { shows_reasoning: false, ..Reading::of(thinking(), None) };
    assert_eq!(message(&hidden, "a</think>b").0, plain("b"));
}

#[test]
fn what_is_thought_of_a_call_is_none() {
    const CALL: &str = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
    let reading = Reading::of(thinking(), Some(&calls(CallForm::Tagged)));
    let (thought, finish) = message(&reading, &format!("{CALL}</think>b"));
    assert_eq!((&thought["reasoning"], &thought["content"], finish), (&json!(CALL), &json!("b"), "stop"));
    let (called, finish) = message(&reading, &format!("a</think>\n\n{CALL}"));
    let call = json!([{"type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    assert_eq!((&called["tool_calls"], &called["content"], finish), (&call, &Value::Null, "tool_calls"));
}

/// Messages of a model with channels, from the tokens to OpenAI's form.
#[test]
fn channels_are_reasoning_content_and_calls() {
    let calls = calls(CallForm::Channels);
    let analysis = "<|channel|>analysis<|message|>a<|end|><|start|>assistant";
    let read = |answer: &str, tools: Option<&Arc<Calls>>| {
        let (tokenizer, marks, reading) = in_channels(tools);
        let ids = tokenizer.encode(answer, false).unwrap();
        let text = ids.iter().map(|&id| text_of_token(id, &tokenizer, &marks)).collect();
        let mut parts = AnswerParts::new(&reading);
        let message = parts.message(&CompletionOutput { text, token_ids: ids, ..CompletionOutput::default() });
        let name = message["tool_calls"][0]["function"]["name"].clone();
        ([message["reasoning"].clone(), message["content"].clone(), name], parts.num_reasoning_tokens())
    };
    let texts = |texts: [Option<&str>; 3]| texts.map(|text| json!(text));
    let answer = format!("{analysis}<|channel|>final<|message|>say <|x|> {{}}<|return|>");
    assert_eq!(read(&answer, None), (texts([Some("a"), Some("say <|x|> {}"), None]), Some(3)));
    let call = |name: &str| {
        format!("{analysis}<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{{}}<|call|>")
    };
    assert_eq!(read(&call("f"), Some(&calls)).0, texts([Some("a"), None, Some("f")]));
    // No such tool, and none at all.
    assert_eq!(read(&call("g"), Some(&calls)).0, texts([Some("a"), Some("{}"), None]));
    assert_eq!(read(&call("f"), None).0, texts([Some("a"), Some("{}"), None]));
    // What is said is not searched for calls of other forms.
    let said = "<|channel|>final<|message|>{\"name\": \"f\", \"arguments\": {}}";
    assert_eq!(read(said, Some(&calls)), (texts([None, Some(&said[27..]), None]), Some(0)));
}

fn chunks(reading: &Reading) -> Chunks {
    let answers = Answer::several(1, reading);
    Chunks { head: head(), token_bytes: letters(), answers, include_usage: true, usage: Usage::default() }
}

#[tokio::test]
async fn a_stream_tells_reasoning_first() {
    let pieces = ["a", "b", "\n", "</thi", "nk>", "\n\n", "c", "d"];
    let mut events: Vec<_> = pieces.iter().map(|piece| token(0, piece)).collect();
    events.extend([last(0, "", FinishReason::Stop, 0.0), done(9)]);
    let events = sse(&body(vec![slow(events)], chunks(&Reading::of(thinking(), None))).await);
    let deltas: Vec<Value> =
        events.iter().map(|event| event["choices"][0]["delta"].clone()).filter(|delta| !delta.is_null()).collect();
    let thought = |text: &str| json!({"reasoning_content": text, "reasoning": text});
    let said = |text: &str| json!({"content": text});
    let begun = json!({"role": "assistant", "content": ""});
    assert_eq!(deltas, [begun, thought("a"), thought("b"), said("c"), said("d"), json!({})]);
}

/// Tokens that tell no text are of what is under way: those that end reasoning are of that.
#[tokio::test]
async fn logprobs_come_with_what_they_are_of() {
    let token = |id: u32, text: &str| {
        let logprobs =
            vec![TokenLogprobs { chosen: Logprob { token_id: id, logprob: -1.0, rank: 1 }, top: Vec::new() }];
        Ok(StreamEvent::Token(TokenEvent { index: 0, token_ids: vec![id], text: text.into(), logprobs, finish: None }))
    };
    let pieces = ["a", "</thi", "nk>", "\n", "c"];
    let mut events: Vec<_> = pieces.iter().zip(0..).map(|(text, id)| token(id, text)).collect();
    events.extend([last(0, "", FinishReason::Stop, 0.0), done(6)]);
    let events = sse(&body(vec![slow(events)], chunks(&Reading::of(thinking(), None))).await);
    let of = |name: &str| -> String {
        let is_of = |event: &&Value| event["choices"][0]["delta"].get(name).is_some();
        let tokens = |event: &Value| event["choices"][0]["logprobs"]["content"][0]["token"].as_str().map(str::to_owned);
        events.iter().filter(is_of).filter_map(tokens).collect()
    };
    assert_eq!((of("reasoning"), of("content")), ("abcd".to_owned(), "e".to_owned()));
}
