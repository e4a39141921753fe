//! `POST /v1/chat/completions`: OpenAI's form for conversations.

use std::sync::Arc;

use hyper::{Response, StatusCode};
use sconce::{FinishReason, StreamEvent, Usage};
use serde_json::{Value, json};

use super::events::{collect, deltas, submit};
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
    let has_logprobs = request.params.logprobs.is_some();
    let token_bytes = token_bytes(served);
    let submitted = submit(exchange, served, request.take_request()?).await;
    let submitted = submitted.map_err(|error| request.with_own_name(error))?;
    if request.stream {
        let chunks = Chunks {
            head,
            token_bytes,
            has_begun: vec![false; submitted.num_sequences],
            include_usage: request.stream_usage == Some(true),
            usage: Usage::default(),
        };
        return Ok(stream(vec![deltas(submitted.events)], chunks));
    }
    let (_, mut output) = collect(submitted).await?;
    output.outputs.sort_by_key(|o| o.index);
    let choices = output.outputs.iter().map(|o| {
        let logprobs = if has_logprobs { logprobs::of_chat(&token_bytes, &o.logprobs) } else { Value::Null };
        json!({
            "index": o.index,
            "message": {"role": "assistant", "content": o.text, "refusal": null},
            "logprobs": logprobs,
            "finish_reason": o.finish.as_ref().map(|f| f.reason.as_str()),
        })
    });
    let mut answer = head.openai("chat.completion", choices.collect());
    answer["usage"] = usage_json(output.usage);
    if let Some(prompt_logprobs) = &output.prompt_logprobs {
        answer["prompt_logprobs"] = logprobs::of_prompt(&token_bytes, prompt_logprobs);
    }
    Ok(http::json(StatusCode::OK, &answer))
}

/// The streamed form: for each sequence a chunk with the role, chunks with text, and one with the finish reason.
pub(super) struct Chunks {
    pub head: Head,
    pub token_bytes: TokenBytes,
    /// One a sequence.
    pub has_begun: Vec<bool>,
    pub include_usage: bool,
    pub usage: Usage,
}

impl Chunks {
    fn write(&self, index: usize, delta: Value, logprobs: Value, finish: Option<FinishReason>, out: &mut Vec<u8>) {
        let choice = json!({
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish.map(FinishReason::as_str),
        });
        let mut chunk = self.head.openai("chat.completion.chunk", vec![choice]);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        http::event(&chunk, out);
    }
}

impl Encoder for Chunks {
    const CONTENT_TYPE: &'static str = "text/event-stream";

    fn event(&mut self, _prompt: usize, event: StreamEvent, out: &mut Vec<u8>) {
        let token = match event {
            // The former are refused where a chat is streamed, the latter made deltas before.
            StreamEvent::PromptLogprobs(_) | StreamEvent::Best(_) => return,
            StreamEvent::Done(usage) => return self.usage = usage,
            StreamEvent::Token(token) => token,
        };
        if !std::mem::replace(&mut self.has_begun[token.index], true) {
            self.write(token.index, json!({"role": "assistant", "content": ""}), Value::Null, None, out);
        }
        // Text that is held back makes no chunk; logprobs of its tokens do.
        if !token.text.is_empty() || !token.logprobs.is_empty() {
            let logprobs = match token.logprobs.as_slice() {
                [] => Value::Null,
                logprobs => logprobs::of_chat(&self.token_bytes, logprobs),
            };
            self.write(token.index, json!({"content": token.text}), logprobs, None, out);
        }
        if let Some(finish) = token.finish {
            self.write(token.index, json!({}), Value::Null, Some(finish.reason), out);
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if self.include_usage {
            let mut chunk = self.head.openai("chat.completion.chunk", Vec::new());
            chunk["usage"] = usage_json(self.usage);
            http::event(&chunk, out);
        }
        out.extend_from_slice(http::DONE);
    }

    fn error(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        http::event(&error.to_json(), out);
    }
}
