//! `POST /generate`: vLLM's answer, and beside it token ids, finish reasons and usage.

use std::sync::Arc;

use hyper::{Response, StatusCode};
use sconce::{CompletionOutput, GenerationOutput, StopReason, StreamEvent};
use serde_json::{Value, json};

use super::events::{Snapshots, Submitted, collect, submit_with};
use super::logprobs::{self, TokenBytes, token_bytes};
use super::stream::{Encoder, stream};
use super::{Head, usage_json};
use crate::http::{self, ApiError, Body, Exchange};
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
    let prefix = if has_messages { String::new() } else { submitted.prompt_text.clone() };
    let form = Form { head, prefix, token_bytes: token_bytes(served) };
    if request_stream {
        let Submitted { num_sequences, events, .. } = submitted;
        let records = Records { form, output: GenerationOutput::new(num_sequences), is_done: false };
        return Ok(stream(vec![events], records));
    }
    let (_, output) = collect(submitted).await?;
    Ok(http::json(StatusCode::OK, &form.last_record(&output)))
}

/// What a record needs besides the output so far.
pub(super) struct Form {
    pub head: Head,
    /// The prompt, where the text is to begin with it.
    pub prefix: String,
    pub token_bytes: TokenBytes,
}

impl Form {
    fn record(&self, output: &GenerationOutput) -> Value {
        json!({
            "text": output.outputs.iter().map(|o| format!("{}{}", self.prefix, o.text)).collect::<Vec<_>>(),
            "outputs": output.outputs.iter().map(|o| self.output(o)).collect::<Vec<_>>(),
            "model": self.head.model,
            "id": self.head.id,
        })
    }

    fn last_record(&self, output: &GenerationOutput) -> Value {
        let mut record = self.record(output);
        record["usage"] = usage_json(output.usage);
        if let Some(prompt_logprobs) = &output.prompt_logprobs {
            record["prompt_logprobs"] = logprobs::of_prompt(&self.token_bytes, prompt_logprobs);
        }
        record
    }

    fn output(&self, output: &CompletionOutput) -> Value {
        let finish = output.finish.as_ref();
        let stop_reason = match finish.and_then(|f| f.stop_reason.as_ref()) {
            Some(StopReason::Text(text)) => json!(text),
            Some(StopReason::Token(id)) => json!(id),
            None => Value::Null,
        };
        let logprobs = match output.logprobs.as_slice() {
            [] => Value::Null,
            logprobs => logprobs::of_output(&self.token_bytes, logprobs),
        };
        let mut value = json!({
            "index": output.index,
            "text": output.text,
            "token_ids": output.token_ids,
            "finish_reason": finish.map(|f| f.reason.as_str()),
            "stop_reason": stop_reason,
            "cumulative_logprob": finish.map(|f| f.cumulative_logprob),
            "logprobs": logprobs,
        });
        if let Some(score) = finish.and_then(|f| f.beam_score) {
            value["beam_score"] = json!(score);
        }
        value
    }
}

/// Cumulative records: each holds all of the text so far.
pub(super) struct Records {
    pub form: Form,
    pub output: GenerationOutput,
    pub is_done: bool,
}

impl Encoder for Records {
    const CONTENT_TYPE: &'static str = "application/octet-stream";

    fn event(&mut self, _prompt: usize, event: StreamEvent, _out: &mut Vec<u8>) {
        self.is_done |= matches!(event, StreamEvent::Done(_));
        self.output.apply(event);
    }

    fn caught_up(&mut self, out: &mut Vec<u8>) {
        if !self.is_done {
            http::record(&self.form.record(&self.output), out);
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        http::record(&self.form.last_record(&self.output), out);
    }

    fn error(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        http::record(&error.to_json(), out);
    }
}
