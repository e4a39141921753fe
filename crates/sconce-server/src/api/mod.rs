//! The endpoints: from a parsed request to the engine, and from its events to the answer's form.

mod answer;
mod chat;
mod completions;
mod embeddings;
mod events;
mod generate;
mod growing;
pub mod health;
mod logprobs;
pub mod metrics;
pub mod models;
pub mod openapi;
pub mod playground;
mod responses;
mod stream;
mod tokenize;
mod tools;
pub mod worker;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use hyper::Response;
use sconce::Usage;
use serde_json::{Value, json};

use crate::http::{ApiError, Body, Exchange, Json};
use crate::state::{Served, unix_seconds};
use crate::wire::{Endpoint, WireRequest};

/// Answers a request with a JSON body.
pub async fn post(exchange: &Arc<Exchange>, endpoint: Endpoint, body: Vec<u8>) -> Result<Response<Body>, ApiError> {
    // Before the body is looked at, so that every request is told to come back.
    if exchange.state.models().is_empty() {
        return Err(ApiError::loading());
    }
    // A long body takes a while, which must not hold up other connections.
    let mut request = events::blocking(move || WireRequest::parse(endpoint, &body)).await?;
    let served = exchange.state.model(request.model.as_deref())?.clone();
    let is_asked = |name: &String| Some(name) == request.model.as_ref();
    request.adapter = served.adapters().iter().map(|adapter| &adapter.name).find(|name| is_asked(name)).cloned();
    check_effort(&served, &request)?;
    match endpoint {
        Endpoint::Generate => generate::answer(exchange, &served, request).await,
        Endpoint::Completions => completions::answer(exchange, &served, request).await,
        Endpoint::Chat => chat::answer(exchange, &served, request).await,
        Endpoint::Responses => responses::answer(exchange, &served, request).await,
        Endpoint::Embeddings => embeddings::answer(&served, request).await,
        Endpoint::Tokenize => tokenize::tokenize(&served, request).await,
        Endpoint::Detokenize => tokenize::detokenize(&served, request).await,
    }
}

/// Refuses a word for how much to think where the model's template does nothing with it.
fn check_effort(served: &Served, request: &WireRequest) -> Result<(), ApiError> {
    let Some((field, _)) = request.reasoning_effort else { return Ok(()) };
    // Without a template the engine refuses the messages.
    match served.engine.handle().chat_template() {
        Some(template) if !template.source().contains("reasoning_effort") => {
            Err(ApiError::invalid(field, format!("{field}: the model's chat template knows no reasoning_effort")))
        }
        _ => Ok(()),
    }
}

/// What every part of an answer begins with.
struct Head {
    id: String,
    model: String,
    created: u64,
}

impl Head {
    fn new(exchange: &Exchange, served: &Served, request: &mut WireRequest) -> Self {
        let model = request.model.take().unwrap_or_else(|| served.id().to_owned());
        Self { id: exchange.body_id(), model, created: unix_seconds() }
    }

    /// An object in OpenAI's form.
    fn openai(&self, object: &str, choices: Vec<Json>) -> Json {
        let head = json!({"id": self.id, "object": object, "created": self.created, "model": self.model});
        Json::from(head).with("choices", choices)
    }
}

/// Token counts in OpenAI's form.
fn usage_json(usage: Usage) -> Value {
    let mut json = json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    });
    if let Some(prediction) = usage.prediction {
        json["completion_tokens_details"] = json!({
            "accepted_prediction_tokens": prediction.accepted_tokens,
            "rejected_prediction_tokens": prediction.rejected_tokens,
        });
    }
    json
}

/// The counts of several prompts together.
fn add_usage(sum: Usage, usage: Usage) -> Usage {
    Usage {
        prompt_tokens: sum.prompt_tokens + usage.prompt_tokens,
        completion_tokens: sum.completion_tokens + usage.completion_tokens,
        cached_tokens: sum.cached_tokens + usage.cached_tokens,
        // Conversations alone have one, and stand alone.
        prediction: sum.prediction.or(usage.prediction),
    }
}
