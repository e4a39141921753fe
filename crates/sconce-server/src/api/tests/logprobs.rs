//! Log-probabilities: their forms, and that each is written once, wherever and however often it is sent.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use futures_util::stream::{StreamExt, iter};
use http_body_util::BodyExt;
use sconce::{CompletionOutput, Finish, FinishReason, StreamEvent, TokenEvent, TokenLogprobs};
use serde_json::{Value, json};

use super::super::generate::Records;
use super::super::growing::Growing;
use super::super::logprobs::{ChatLogprobs, CompletionLogprobs, IsSpecial, TokenBytes};
use super::super::stream::{encoded, whole};
use super::{Event, done, head, letters, logprob, parsed, records, slow, text};

#[test]
fn offsets_count_characters_and_bytes_are_spelled() {
    let mut logprobs = CompletionLogprobs::new(letters(), Arc::new(|_| false), true);
    for id in [0, 100, 101, 1] {
        logprobs.push(&TokenLogprobs { chosen: logprob(id, f32::NEG_INFINITY), top: Vec::new() });
    }
    let logprobs = parsed(&logprobs.take());
    assert_eq!(logprobs["tokens"], json!(["a", "bytes:\\xc3", "bytes:\\xa9", "b"]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 2]));
    assert_eq!(logprobs["token_logprobs"][0], -9999.0);
}

#[test]
fn offsets_pass_over_special_tokens_that_are_not_in_the_text() {
    let is_special: IsSpecial = Arc::new(|id| id == 2);
    let offsets = |text: &str, skips_special| {
        let mut logprobs = CompletionLogprobs::new(letters(), is_special.clone(), skips_special);
        [2, 0, 1].into_iter().for_each(|id| logprobs.push_prompt(text, id, None));
        [2, 3].into_iter().for_each(|id| logprobs.push(&TokenLogprobs { chosen: logprob(id, -1.0), top: Vec::new() }));
        parsed(&logprobs.take())["text_offset"].clone()
    };
    // A "c" was added to the prompt; it stands in it; it is generated, too.
    assert_eq!(offsets("ab", true), json!([0, 0, 1, 2, 2]));
    assert_eq!(offsets("cab", true), json!([0, 1, 2, 3, 3]));
    assert_eq!(offsets("cab", false), json!([0, 1, 2, 3, 4]));
}

/// Each byte is compared, for clients may rest on the order of members.
#[test]
fn logprobs_of_conversations() {
    let first =
        TokenLogprobs { chosen: logprob(0, -0.5), top: vec![logprob(0, -0.5), logprob(100, f32::NEG_INFINITY)] };
    let logprobs = vec![first, TokenLogprobs { chosen: logprob(1, -0.1), top: Vec::new() }];
    let mut written = ChatLogprobs::new(letters());
    written.push(&TokenEvent { index: 0, token_ids: vec![0, 1], text: "ab".into(), logprobs, finish: None });
    let expected = concat!(
        r#"{"content":[{"token":"a","logprob":-0.5,"bytes":[97],"top_logprobs":["#,
        r#"{"token":"a","logprob":-0.5,"bytes":[97]},{"token":"?","logprob":-9999.0,"bytes":[195]}]},"#,
        r#"{"token":"b","logprob":-0.10000000149011612,"bytes":[98],"top_logprobs":[]}],"refusal":null}"#,
    );
    assert_eq!(text(&written.json()), expected.replace('?', "\u{FFFD}"));
}

#[tokio::test]
async fn logprobs_of_generate() {
    let prompt = StreamEvent::PromptLogprobs(vec![None, Some(position(1, 1))]);
    let finish = Finish { reason: FinishReason::Length, stop_reason: None, cumulative_logprob: -0.5, beam_score: None };
    let mut token = grown(0, 1);
    token.finish = Some(finish);
    let events = vec![Ok(prompt), Ok(StreamEvent::Token(token)), done(1)];
    let expected = concat!(
        r#"{"text":["P\"a"],"outputs":[{"index":0,"text":"a","token_ids":[0],"finish_reason":"length","#,
        r#""stop_reason":null,"cumulative_logprob":-0.5,"logprobs":[{"token_id":0,"token":"a","logprob":-0.5,"#,
        r#""rank":1,"top_logprobs":[{"token_id":0,"token":"a","logprob":-1.0,"rank":1}]}]}],"model":"m","#,
        r#""id":"cmpl-1","usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4,"#,
        r#""prompt_tokens_details":{"cached_tokens":1}},"prompt_logprobs":[null,{"token_id":1,"token":"b","#,
        r#""logprob":-0.5,"rank":1,"top_logprobs":[{"token_id":0,"token":"a","logprob":-1.0,"rank":1}]}]}"#,
    );
    let answer = whole(vec![slow(events)], Records::new(head(), 1, "P\"", letters())).await.unwrap();
    assert_eq!(answer.headers()["content-length"].to_str().unwrap(), expected.len().to_string());
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), expected);
}

fn position(token_id: u32, num_top: u32) -> TokenLogprobs {
    TokenLogprobs { chosen: logprob(token_id, -0.5), top: (0..num_top).map(|id| logprob(id, -1.0)).collect() }
}

/// A token and its letter, beside so many others.
fn grown(token_id: u32, num_top: u32) -> TokenEvent {
    let text = char::from(b'a' + token_id as u8).into();
    TokenEvent { index: 0, token_ids: vec![token_id], text, logprobs: vec![position(token_id, num_top)], finish: None }
}

fn tokens(num_tokens: usize, num_top: u32) -> Vec<Event> {
    let tokens = (0..26).cycle().take(num_tokens).map(|id| Ok(StreamEvent::Token(grown(id, num_top))));
    tokens.chain([done(num_tokens)]).collect()
}

/// Letters, and how many have been asked for.
fn counted() -> (TokenBytes, Arc<AtomicUsize>) {
    let (count, letters) = (Arc::new(AtomicUsize::new(0)), letters());
    let counter = count.clone();
    let token_bytes: TokenBytes = Arc::new(move |id| {
        counter.fetch_add(1, Ordering::Relaxed);
        letters(id)
    });
    (token_bytes, count)
}

#[tokio::test]
async fn cumulative_records_are_of_what_has_been_written_once() {
    let (token_bytes, count) = counted();
    let num_tokens = 200;
    let events = slow(tokens(num_tokens, 20));
    let frames: Vec<_> = encoded(vec![events], Records::new(head(), 1, "", token_bytes)).collect().await;
    assert_eq!(count.load(Ordering::Relaxed), num_tokens * 21);

    let body = String::from_utf8(frames.concat()).unwrap();
    let records: Vec<_> = body.split_terminator('\0').collect();
    assert_eq!(records.len(), num_tokens + 1);
    for (i, record) in records.iter().enumerate().step_by(25) {
        let record: Value = serde_json::from_str(record).unwrap();
        assert_eq!(record["outputs"][0]["logprobs"].as_array().unwrap().len(), (i + 1).min(num_tokens));
    }
    // Whoever kept all records would have what is at their ends several times, and nothing else.
    let distinct: HashMap<_, _> = frames.iter().map(|frame| (frame.as_ptr(), frame.len())).collect();
    let num_distinct: usize = distinct.values().sum();
    let most = records[num_tokens].len() + records.len() * (20 << 10);
    assert!(num_distinct < most && most < body.len() / 4, "{num_distinct} of {}", body.len());
}

#[tokio::test]
async fn the_best_so_far_keep_what_has_been_written_of_them() {
    let output = |index, ids: &[u32]| CompletionOutput {
        index,
        text: ids.iter().map(|&id| char::from(b'a' + id as u8)).collect(),
        token_ids: ids.to_vec(),
        logprobs: ids.iter().map(|&id| position(id, 2)).collect(),
        finish: None,
    };
    let best =
        |ids: &[&[u32]]| StreamEvent::Best(ids.iter().enumerate().map(|(index, ids)| output(index, ids)).collect());
    // Both go on from the second; then comes one that was not told of before.
    let snapshots = || [best(&[&[0, 1], &[2, 3]]), best(&[&[2, 3, 4], &[2, 3, 5, 6]]), best(&[&[2, 3, 5, 6], &[7, 8]])];
    let read = async |events, token_bytes| {
        let frames: Vec<_> = encoded(vec![slow(events)], Records::new(head(), 2, "", token_bytes)).collect().await;
        records(&String::from_utf8(frames.concat()).unwrap())
    };
    let (token_bytes, count) = counted();
    let streamed = read(snapshots().map(Ok).into_iter().chain([done(6)]).collect(), token_bytes).await;
    assert_eq!(count.load(Ordering::Relaxed), 3 * (4 + 3 + 2));
    for (snapshot, record) in snapshots().into_iter().zip(&streamed) {
        let alone = read(vec![Ok(snapshot), done(6)], letters()).await;
        assert_eq!(record, &alone[0]);
    }
}

#[tokio::test]
async fn many_are_written_where_no_connection_waits() {
    let here = thread::current().id();
    let events = |num_tokens| vec![iter(tokens(num_tokens, 20)).boxed()];
    let records = |is_here: bool| {
        let letters = letters();
        let token_bytes: TokenBytes = Arc::new(move |id| {
            assert_eq!(thread::current().id() == here, is_here);
            letters(id)
        });
        Records::new(head(), 1, "", token_bytes)
    };
    for (num_tokens, is_here) in [(3, true), (200, false)] {
        let streamed = encoded(events(num_tokens), records(is_here)).collect::<Vec<_>>().await.concat();
        let answer = whole(events(num_tokens), records(is_here)).await.unwrap();
        let answer = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(streamed, [&answer[..], b"\0"].concat());
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(answer["outputs"][0]["token_ids"].as_array().unwrap().len(), num_tokens);
    }
}

/// Compared with looking through the text from its beginning for each token.
#[test]
fn a_prompt_of_special_tokens_has_its_offsets() {
    let letters = letters();
    let token_bytes: TokenBytes = Arc::new(move |id| if id == 3 { "é<".into() } else { letters(id) });
    let is_special: IsSpecial = Arc::new(|id| id >= 2);
    let text = "é<aé<bbé<aa";
    // Some of these are in the text, some are not, some come when it has ended.
    let ids = [2, 3, 0, 3, 2, 1, 1, 3, 0, 3, 0, 0, 3, 2];
    let mut logprobs = CompletionLogprobs::new(token_bytes.clone(), is_special.clone(), true);
    let mut expected = Vec::new();
    let mut offset = 0;
    for id in ids {
        logprobs.push_prompt(text, id, None);
        expected.push(offset);
        let spelling = String::from_utf8(token_bytes(id)).unwrap();
        let rest: String = text.chars().skip(offset).collect();
        if !is_special(id) || rest.starts_with(&spelling) {
            offset += spelling.chars().count();
        }
    }
    assert_eq!(parsed(&logprobs.json())["text_offset"], json!(expected));
}
