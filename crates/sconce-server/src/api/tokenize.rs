//! `POST /tokenize` and `POST /detokenize`.

use std::sync::Arc;

use hyper::{Response, StatusCode};
use sconce::{Error, Prompt};
use serde_json::json;

use super::events::blocking;
use crate::http::{self, ApiError, Body};
use crate::state::Served;
use crate::wire::WireRequest;

/// Token ids of a prompt, or of a conversation as the model's template renders it.
pub(super) async fn tokenize(served: &Arc<Served>, mut request: WireRequest) -> Result<Response<Body>, ApiError> {
    let request = request.take_request()?;
    let max_model_len = served.engine.handle().info().max_model_len;
    let served = served.clone();
    let tokens = blocking(move || {
        let handle = served.engine.handle();
        match request.prompt {
            Prompt::Text(text) => handle.tokenizer().encode(&text, request.add_special_tokens),
            Prompt::Tokens(tokens) => Ok(tokens),
            Prompt::Chat(chat) => {
                let template = handle.chat_template().ok_or_else(|| {
                    let message = format!("messages: model {} has no chat template: send a prompt", served.id());
                    Error::invalid("messages", message)
                })?;
                handle.tokenizer().encode_chat(&template.render(&chat, handle.tokenizer())?)
            }
        }
    })
    .await?;
    let answer = json!({"count": tokens.len(), "max_model_len": max_model_len, "tokens": tokens});
    Ok(http::json(StatusCode::OK, &answer))
}

/// Text of token ids.
pub(super) async fn detokenize(served: &Arc<Served>, mut request: WireRequest) -> Result<Response<Body>, ApiError> {
    let tokens = request.tokens.take().unwrap_or_default();
    let skip_special_tokens = request.params.skip_special_tokens;
    let served = served.clone();
    let prompt =
        blocking(move || Ok::<_, Error>(served.engine.handle().tokenizer().decode(&tokens, skip_special_tokens)))
            .await?;
    Ok(http::json(StatusCode::OK, &json!({"prompt": prompt})))
}
