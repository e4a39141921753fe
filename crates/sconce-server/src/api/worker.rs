//! What routers ask a worker: `GET /server_info`, `/model_info` and `/get_load`, the first two also by their older names with `get_`.
//! The names of their members are SGLang's, whose router asks for them.

use hyper::{Response, StatusCode};
use sconce::EngineStatus;
use serde_json::{Value, json};

use crate::http::{self, ApiError, Body};
use crate::state::{Served, State};

/// How the server runs: the model that routers ask for is the first, and `models` has them all.
pub fn server_info(state: &State) -> Result<Response<Body>, ApiError> {
    let mut answer = model(first(state)?);
    answer["version"] = json!(env!("CARGO_PKG_VERSION"));
    answer["tp_size"] = json!(1);
    answer["dp_size"] = json!(1);
    answer["models"] = state.models().iter().map(|served| model(served)).collect();
    Ok(http::json(StatusCode::OK, &answer))
}

/// What the first model is.
pub fn model_info(state: &State) -> Result<Response<Body>, ApiError> {
    Ok(http::json(StatusCode::OK, &model(first(state)?)))
}

/// How much each model has to do.
pub fn load(state: &State) -> Result<Response<Body>, ApiError> {
    first(state)?;
    let loads = state.models().iter().map(|served| {
        let handle = served.engine.handle();
        let (status, info) = (handle.status(), handle.info());
        json!({
            "dp_rank": 0,
            "model": served.id(),
            "num_reqs": EngineStatus::get(&status.num_unfinished_requests),
            "num_waiting_reqs": EngineStatus::get(&status.num_waiting),
            "num_tokens": info.kv_tokens(EngineStatus::get(&status.num_used_blocks)),
        })
    });
    Ok(http::json(StatusCode::OK, &loads.collect()))
}

fn first(state: &State) -> Result<&Served, ApiError> {
    state.models().first().map(AsRef::as_ref).ok_or_else(ApiError::loading)
}

fn model(served: &Served) -> Value {
    let handle = served.engine.handle();
    let info = handle.info();
    json!({
        "model_path": served.id(),
        "tokenizer_path": served.id(),
        "served_model_name": served.names[0],
        "is_generation": info.has_head,
        "max_model_len": info.max_model_len,
        "context_length": info.max_model_len,
        "max_total_num_tokens": info.num_kv_tokens,
        "max_queued_and_running_requests": handle.max_requests(),
        "page_size": info.block_size,
        "kv_cache_dtype": info.kv_dtype.name(),
        "device": info.device,
    })
}
