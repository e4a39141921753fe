//! `POST /v1/chat/completions`: OpenAI's form for conversations.

use std::sync::Arc;

use hyper::Response;
use sconce::{StreamEvent, Usage};
use serde_json::{Value, json};

use super::answer::{AnswerParts, Reading, ask};
use super::events::deltas;
use super::growing::{Growing, Grown};
use super::logprobs::{self, ChatLogprobs, TokenBytes, token_bytes};
use super::stream::{Encoder, Whole, stream, whole};
use super::{Head, usage_json};
use crate::http::{self, ApiError, Body, Exchange, Json, List, Pieces};
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
    let (submitted, reading) = ask(exchange, served, &mut request).await?;
    if request.stream {
        let chunks = Chunks {
            head,
            token_bytes,
            answers: Answer::several(submitted.num_sequences, &reading),
            include_usage: request.stream_usage == Some(true),
            usage: Usage::default(),
        };
        return Ok(stream(vec![deltas(submitted.events)], chunks));
    }
    let form = WholeChat {
        head,
        answer: Grown::new(submitted.num_sequences, ChatLogprobs::new(token_bytes.clone())),
        reading,
        has_logprobs,
        prompt_logprobs: None,
        token_bytes,
    };
    whole(vec![submitted.events], form).await
}

/// The answer that comes whole.
struct WholeChat {
    head: Head,
    answer: Grown<ChatLogprobs>,
    reading: Reading,
    has_logprobs: bool,
    prompt_logprobs: Option<List>,
    token_bytes: TokenBytes,
}

impl Whole for WholeChat {
    fn event(&mut self, _prompt: usize, event: StreamEvent) {
        if let StreamEvent::PromptLogprobs(logprobs) = &event {
            self.prompt_logprobs = Some(logprobs::of_prompt(&self.token_bytes, logprobs));
        }
        self.answer.apply(event);
    }

    fn end(self) -> Json {
        let mut sequences: Vec<_> = self.answer.sequences().collect();
        sequences.sort_by_key(|(output, _)| output.index);
        let mut num_reasoning_tokens = None;
        let choices = sequences.into_iter().map(|(output, written)| {
            let mut parts = AnswerParts::new(&self.reading);
            let message = parts.message(output);
            add_reasoning(&mut num_reasoning_tokens, &parts);
            let choice = json!({
                "index": output.index,
                "message": message,
                "logprobs": null,
                "finish_reason": output.finish.as_ref().map(|f| parts.finish_reason(f.reason)),
            });
            let choice = Json::from(choice);
            if self.has_logprobs { choice.with("logprobs", written.json()) } else { choice }
        });
        let mut answer = self.head.openai("chat.completion", choices.collect());
        answer.set("usage", usage_of(self.answer.output.usage, num_reasoning_tokens));
        if let Some(prompt_logprobs) = &self.prompt_logprobs {
            answer.set("prompt_logprobs", prompt_logprobs);
        }
        answer
    }
}

/// Adds an answer's tokens of reasoning, where there can be any.
fn add_reasoning(sum: &mut Option<usize>, parts: &AnswerParts) {
    if let Some(num) = parts.num_reasoning_tokens() {
        *sum = Some(sum.unwrap_or(0) + num);
    }
}

/// Token counts, with those of reasoning where there can be any.
fn usage_of(usage: Usage, num_reasoning_tokens: Option<usize>) -> Value {
    let mut json = usage_json(usage);
    if let Some(num) = num_reasoning_tokens {
        json["completion_tokens_details"]["reasoning_tokens"] = num.into();
    }
    json
}

/// How far one of several answers has been sent.
pub(super) struct Answer {
    has_begun: bool,
    parts: AnswerParts,
}

impl Answer {
    /// `n` of them.
    pub(super) fn several(n: usize, reading: &Reading) -> Vec<Self> {
        let answer = || Self { has_begun: false, parts: AnswerParts::new(reading) };
        std::iter::repeat_with(answer).take(n).collect()
    }
}

/// The streamed form: for each sequence a chunk with the role, chunks with text and calls, and one with the finish reason.
pub(super) struct Chunks {
    pub head: Head,
    pub token_bytes: TokenBytes,
    /// One a sequence.
    pub answers: Vec<Answer>,
    pub include_usage: bool,
    pub usage: Usage,
}

impl Chunks {
    fn write(&self, index: usize, delta: Value, logprobs: Option<Json>, finish: Option<&str>, out: &mut Pieces) {
        let mut choice = Json::from(json!({
            "index": index,
            "delta": delta,
            "logprobs": null,
            "finish_reason": finish,
        }));
        if let Some(logprobs) = logprobs {
            choice.set("logprobs", logprobs);
        }
        let mut chunk = self.head.openai("chat.completion.chunk", vec![choice]);
        if self.include_usage {
            chunk.set("usage", Value::Null);
        }
        http::event(&chunk, out);
    }
}

impl Encoder for Chunks {
    const CONTENT_TYPE: &'static str = "text/event-stream";

    fn event(&mut self, _prompt: usize, event: StreamEvent, out: &mut Pieces) {
        let token = match event {
            // The former are refused where a chat is streamed, the latter made deltas before.
            StreamEvent::PromptLogprobs(_) | StreamEvent::Best(_) => return,
            StreamEvent::Done(usage) => return self.usage = usage,
            StreamEvent::Token(token) => token,
        };
        let answer = &mut self.answers[token.index];
        let is_first = !std::mem::replace(&mut answer.has_begun, true);
        let mut deltas = answer.parts.deltas(&token);
        let finish = token.finish.as_ref().map(|finish| answer.parts.finish_reason(finish.reason));
        // Text that is held back makes no chunk; logprobs of its tokens do.
        if deltas.is_empty() && !token.logprobs.is_empty() {
            deltas.push(answer.parts.empty_delta());
        }
        if is_first {
            self.write(token.index, json!({"role": "assistant", "content": ""}), None, None, out);
        }
        let mut logprobs = (!token.logprobs.is_empty()).then(|| {
            let mut written = ChatLogprobs::new(self.token_bytes.clone());
            written.push(&token);
            written.json()
        });
        for delta in deltas {
            self.write(token.index, delta, logprobs.take(), None, out);
        }
        if finish.is_some() {
            self.write(token.index, json!({}), None, finish, out);
        }
    }

    fn end(&mut self, out: &mut Pieces) {
        if self.include_usage {
            let mut chunk = self.head.openai("chat.completion.chunk", Vec::new());
            let mut num_reasoning_tokens = None;
            self.answers.iter().for_each(|answer| add_reasoning(&mut num_reasoning_tokens, &answer.parts));
            chunk.set("usage", usage_of(self.usage, num_reasoning_tokens));
            http::event(&chunk, out);
        }
        out.push(http::DONE);
    }

    fn error(&mut self, error: &ApiError, out: &mut Pieces) {
        http::event(&error.to_json().into(), out);
    }
}
