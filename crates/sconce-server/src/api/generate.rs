//! `POST /generate`: vLLM's answer, and beside it token ids, finish reasons and usage.

use std::io::Write;
use std::sync::Arc;

use hyper::Response;
use sconce::{CompletionOutput, StopReason, StreamEvent, TokenEvent};
use serde_json::{Value, json};

use super::events::{Snapshots, Submitted, submit_with};
use super::growing::{Growing, Grown};
use super::logprobs::{self, TokenBytes, token_bytes};
use super::stream::{Encoder, Whole, stream, whole};
use super::{Head, usage_json};
use crate::http::{self, ApiError, Body, Exchange, Json, List, Pieces, Text};
use crate::state::Served;
use crate::wire::WireRequest;

/// Answers one request.
pub(super) async fn answer(
    exchange: &Arc<Exchange>,
    served: &Arc<Served>,
    mut request: WireRequest,
) -> Result<Response<Body>, ApiError> {
    let head = Head::new(exchange, served, &mut request);
    let has_messages = request.has_messages();
    let request_stream = request.stream;
    let snapshots = if request_stream { Snapshots::Wanted } else { Snapshots::Skipped };
    let submitted = submit_with(exchange, served, request.take_request()?, request.grammar_field(), snapshots).await?;
    let Submitted { prompt_text, num_sequences, events, .. } = submitted;
    let prefix = if has_messages { "" } else { prompt_text.as_str() };
    let records = Records::new(head, num_sequences, prefix, token_bytes(served));
    if request_stream { Ok(stream(vec![events], records)) } else { whole(vec![events], records).await }
}

/// What is written of a sequence.
#[derive(Clone)]
struct Sequence {
    token_bytes: TokenBytes,
    /// Its text, after the prompt's where it is to begin with that, and without.
    text: Text,
    own_text: Text,
    token_ids: List,
    logprobs: List,
}

impl Growing for Sequence {
    fn push(&mut self, token: &TokenEvent) {
        self.text.push(&token.text);
        self.own_text.push(&token.text);
        for id in &token.token_ids {
            write!(self.token_ids.entry(), "{id}").expect("invariant: memory can be written to");
        }
        for position in &token.logprobs {
            logprobs::push_generate(&self.token_bytes, position, &mut self.logprobs);
        }
    }
}

/// The answer as one record, or as cumulative records: each holds all that there is so far.
pub(super) struct Records {
    head: Head,
    token_bytes: TokenBytes,
    answer: Grown<Sequence>,
    prompt_logprobs: Option<List>,
    is_done: bool,
}

impl Records {
    /// Of `n` sequences, whose text is to begin with `prefix`.
    pub(super) fn new(head: Head, n: usize, prefix: &str, token_bytes: TokenBytes) -> Self {
        let sequence = Sequence {
            token_bytes: token_bytes.clone(),
            text: Text::from(prefix),
            own_text: Text::default(),
            token_ids: List::default(),
            logprobs: List::default(),
        };
        Self { head, token_bytes, answer: Grown::new(n, sequence), prompt_logprobs: None, is_done: false }
    }

    fn take(&mut self, event: StreamEvent) {
        self.is_done |= matches!(event, StreamEvent::Done(_));
        if let StreamEvent::PromptLogprobs(logprobs) = &event {
            self.prompt_logprobs = Some(logprobs::of_prompt(&self.token_bytes, logprobs));
        }
        self.answer.apply(event);
    }

    fn record(&self) -> Json {
        let texts = self.answer.sequences().map(|(_, written)| Json::from(&written.text)).collect();
        let outputs = self.answer.sequences().map(|(output, written)| json_of(output, written)).collect();
        Json::from(json!({"text": null, "outputs": null, "model": self.head.model, "id": self.head.id}))
            .with("text", Json::Array(texts))
            .with("outputs", Json::Array(outputs))
    }

    fn last_record(&self) -> Json {
        let mut record = self.record().with("usage", usage_json(self.answer.output.usage));
        if let Some(prompt_logprobs) = &self.prompt_logprobs {
            record.set("prompt_logprobs", prompt_logprobs);
        }
        record
    }
}

fn json_of(output: &CompletionOutput, written: &Sequence) -> Json {
    let finish = output.finish.as_ref();
    let stop_reason = match finish.and_then(|f| f.stop_reason.as_ref()) {
        Some(StopReason::Text(text)) => json!(text),
        Some(StopReason::Token(id)) => json!(id),
        None => Value::Null,
    };
    let mut json = Json::from(json!({
        "index": output.index,
        "text": null,
        "token_ids": null,
        "finish_reason": finish.map(|f| f.reason.as_str()),
        "stop_reason": stop_reason,
        "cumulative_logprob": finish.map(|f| f.cumulative_logprob),
        "logprobs": null,
    }));
    json.set("text", &written.own_text);
    json.set("token_ids", &written.token_ids);
    if !written.logprobs.is_empty() {
        json.set("logprobs", &written.logprobs);
    }
    if let Some(score) = finish.and_then(|f| f.beam_score) {
        json.set("beam_score", json!(score));
    }
    json
}

impl Whole for Records {
    fn event(&mut self, _prompt: usize, event: StreamEvent) {
        self.take(event);
    }

    fn end(self) -> Json {
        self.last_record()
    }
}

impl Encoder for Records {
    const CONTENT_TYPE: &'static str = "application/octet-stream";

    fn event(&mut self, _prompt: usize, event: StreamEvent, _out: &mut Pieces) {
        self.take(event);
    }

    fn caught_up(&mut self, out: &mut Pieces) {
        if !self.is_done {
            http::record(&self.record(), out);
        }
    }

    fn end(&mut self, out: &mut Pieces) {
        http::record(&self.last_record(), out);
    }

    fn error(&mut self, error: &ApiError, out: &mut Pieces) {
        http::record(&error.to_json().into(), out);
    }
}
