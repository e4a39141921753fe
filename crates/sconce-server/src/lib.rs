//! The `sconce` binary: an HTTP server with OpenAI's API and vLLM's `/generate`, and command-line tools.
//!
//! A library as well, so that tests can run a server inside their own process: see [`serve`].

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod api;
pub mod cli;
pub mod http;
pub mod metrics;
pub mod state;
pub mod wire;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

pub use http::Drained;
pub use state::{ApiKey, Served, Settings, State};

/// Serves `state` on `listener` until `shutdown` resolves and what is in flight has been answered, or
/// [`Settings::drain_timeout`] has passed: then the engines end, and answers with them. Requests that arrive before the models are
/// loaded are answered 503.
pub async fn serve(state: Arc<State>, listener: TcpListener, shutdown: impl Future<Output = ()>) -> Drained {
    let (drain, drain_timeout) = (state.drain.clone(), state.settings.drain_timeout);
    let cut_short = {
        let state = state.clone();
        async move { drop(tokio::task::spawn_blocking(move || state.stop_engines(Duration::ZERO)).await) }
    };
    let service = move |request| http::answer(state.clone(), request);
    http::run(listener, drain, drain_timeout, service, shutdown, cut_short).await
}
