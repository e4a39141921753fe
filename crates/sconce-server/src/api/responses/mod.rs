//! `POST /v1/responses`: OpenAI's newer form for conversations. Nothing is stored: each request holds its whole conversation.

mod events;
mod output;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use hyper::Response;
use sconce::{FinishReason, StreamEvent, Usage};
use serde_json::{Map, Value, json};

use self::events::Events;
use self::output::Output;
use super::Head;
use super::answer::{AnswerParts, ask};
use super::events::deltas;
use super::logprobs::token_bytes;
use super::stream::{Whole, stream, whole};
use crate::http::{ApiError, Body, Exchange, Json};
use crate::state::{Served, unix_seconds};
use crate::wire::WireRequest;

/// Answers one request.
pub(super) async fn answer(
    exchange: &Arc<Exchange>,
    served: &Arc<Served>,
    mut request: WireRequest,
) -> Result<Response<Body>, ApiError> {
    let head = Head::new(exchange, served, &mut request);
    let form = Form { head, repeated: std::mem::take(&mut request.repeated) };
    let (submitted, reading) = ask(exchange, served, &mut request).await.map_err(in_own_words)?;
    let output = Output::new(AnswerParts::new(&reading), token_bytes(served));
    let events = vec![deltas(submitted.events)];
    if request.stream {
        return Ok(stream(events, Events::new(form, output)));
    }
    whole(events, WholeResponse { form, output, usage: Usage::default() }).await
}

/// The answer that comes whole.
struct WholeResponse {
    form: Form,
    output: Output,
    usage: Usage,
}

impl Whole for WholeResponse {
    fn event(&mut self, _prompt: usize, event: StreamEvent) {
        match event {
            StreamEvent::Token(token) => drop(self.output.push(&token)),
            StreamEvent::Done(usage) => self.usage = usage,
            // The former are not asked for, the latter made deltas before.
            StreamEvent::PromptLogprobs(_) | StreamEvent::Best(_) => {}
        }
    }

    fn end(self) -> Json {
        self.form.ended(self.output, self.usage)
    }
}

/// An error about a field that has another name here.
fn in_own_words(error: ApiError) -> ApiError {
    error.renamed("messages", "input").renamed("max_tokens", "max_output_tokens")
}

/// What a response holds beside its output.
struct Form {
    head: Head,
    /// Fields of the request.
    repeated: Map<String, Value>,
}

impl Form {
    /// The response as it stands.
    fn response(&self, status: &str, output: Vec<Json>) -> Json {
        let mut response = Json::from(json!({
            "id": self.head.id,
            "object": "response",
            "created_at": self.head.created,
            "status": status,
            "background": false,
            "completed_at": null,
            "error": null,
            "incomplete_details": null,
            "model": self.head.model,
            "output": null,
            "previous_response_id": null,
            "service_tier": "default",
            "store": false,
            "usage": null,
        }));
        response.set("output", output);
        for (name, value) in &self.repeated {
            response.set(name, value.clone());
        }
        response
    }

    /// The response whose answer has ended.
    fn ended(&self, output: Output, usage: Usage) -> Json {
        let finish = output.finish();
        let num_reasoning_tokens = output.num_reasoning_tokens();
        let status = status(finish);
        let mut response = self.response(status, output.into_items());
        if status == "incomplete" {
            response.set("incomplete_details", json!({"reason": "max_output_tokens"}));
        }
        if status == "completed" {
            response.set("completed_at", json!(unix_seconds()));
        }
        let usage = json!({
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": num_reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        });
        response.with("usage", usage)
    }

    /// The response that an error has ended.
    fn failed(&self, output: Output, error: &ApiError) -> Json {
        let error = json!({"code": "server_error", "message": error.message});
        self.response("failed", output.into_items()).with("error", error)
    }
}

/// What became of a response whose answer ended so.
fn status(finish: Option<FinishReason>) -> &'static str {
    match finish {
        Some(FinishReason::Length) => "incomplete",
        Some(FinishReason::Abort) => "cancelled",
        Some(FinishReason::Stop) | None => "completed",
    }
}
