//! `POST /v1/responses`: OpenAI's newer form for conversations. Nothing is stored: each request holds its whole conversation.

mod events;
mod output;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use futures_util::StreamExt;
use hyper::{Response, StatusCode};
use sconce::{FinishReason, StreamEvent, Usage};
use serde_json::{Map, Value, json};

use self::events::Events;
use self::output::Output;
use super::Head;
use super::answer::{AnswerParts, ask};
use super::events::deltas;
use super::logprobs::token_bytes;
use super::stream::stream;
use crate::http::{self, ApiError, Body, Exchange};
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
    let mut output = Output::new(AnswerParts::new(&reading), token_bytes(served));
    let mut events = deltas(submitted.events);
    if request.stream {
        return Ok(stream(vec![events], Events::new(form, output)));
    }
    let mut usage = Usage::default();
    while let Some(event) = events.next().await {
        match event? {
            StreamEvent::Token(token) => drop(output.push(&token)),
            StreamEvent::Done(counts) => usage = counts,
            StreamEvent::PromptLogprobs(_) | StreamEvent::Best(_) => {}
        }
    }
    Ok(http::json(StatusCode::OK, &form.ended(output, usage)))
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
    fn response(&self, status: &str, output: Vec<Value>) -> Value {
        let mut response = json!({
            "id": self.head.id,
            "object": "response",
            "created_at": self.head.created,
            "status": status,
            "background": false,
            "completed_at": null,
            "error": null,
            "incomplete_details": null,
            "model": self.head.model,
            "output": output,
            "previous_response_id": null,
            "service_tier": "default",
            "store": false,
            "usage": null,
        });
        for (name, value) in &self.repeated {
            response[name] = value.clone();
        }
        response
    }

    /// The response whose answer has ended.
    fn ended(&self, output: Output, usage: Usage) -> Value {
        let finish = output.finish();
        let num_reasoning_tokens = output.num_reasoning_tokens();
        let status = status(finish);
        let mut response = self.response(status, output.into_items());
        if status == "incomplete" {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        if status == "completed" {
            response["completed_at"] = unix_seconds().into();
        }
        response["usage"] = json!({
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": num_reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        });
        response
    }

    /// The response that an error has ended.
    fn failed(&self, output: Output, error: &ApiError) -> Value {
        let mut response = self.response("failed", output.into_items());
        response["error"] = json!({"code": "server_error", "message": error.message});
        response
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
