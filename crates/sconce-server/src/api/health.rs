//! `GET /health` and `GET /version`.

use std::sync::Arc;

use hyper::header::{HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::json;

use crate::http::{self, Body};
use crate::state::{Served, State};

/// 200 while requests are answered; 503 and the reason while they are not.
pub fn health(state: &State) -> Response<Body> {
    let is_healthy = |m: &Arc<Served>| m.engine.handle().is_healthy(state.settings.stuck_timeout);
    let status = if state.drain.is_draining() {
        "draining"
    } else if state.models().is_empty() {
        "loading"
    } else if !state.models().iter().all(is_healthy) {
        "stuck"
    } else {
        return http::json(StatusCode::OK, &json!({"status": "ok"}));
    };
    let mut response = http::json(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": status}));
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
    response
}

/// The program's version.
pub fn version() -> Response<Body> {
    http::json(StatusCode::OK, &json!({"version": env!("CARGO_PKG_VERSION")}))
}
