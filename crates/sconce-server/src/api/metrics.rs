//! `GET /metrics`: Prometheus' text.

use std::sync::atomic::AtomicUsize;

use hyper::Response;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use sconce::EngineStatus;

use crate::http::{self, Body};
use crate::metrics::{Text, escape_label};
use crate::state::State;

/// A figure of an engine.
type Figure = fn(&EngineStatus) -> f64;

/// One line a figure: name, kind, help, and where it comes from. The names with `vllm:` are those that gateways scrape.
#[rustfmt::skip]
const ENGINE: &[(&str, &str, &str, Figure)] = &[
    ("sconce_requests_running", "gauge", "Sequences that hold KV blocks.", |s| get(&s.num_running)),
    ("sconce_requests_waiting", "gauge", "Sequences and requests that wait.", |s| get(&s.num_waiting)),
    ("sconce_kv_blocks_used", "gauge", "KV blocks in use.", |s| get(&s.num_used_blocks)),
    ("sconce_kv_blocks_peak", "gauge", "Most KV blocks that have been in use at once.", |s| get(&s.peak_used_blocks)),
    ("sconce_kv_blocks_total", "gauge", "KV blocks in the pool.", |s| get(&s.num_total_blocks)),
    ("sconce_steps_total", "counter", "Steps run.", |s| get(&s.num_steps)),
    ("sconce_draft_tokens_total", "counter", "Drafts computed by speculative decoding.", |s| get(&s.num_draft_tokens)),
    ("sconce_accepted_tokens_total", "counter", "Drafts that turned out to be right.", |s| get(&s.num_accepted_tokens)),
    ("sconce_steps_ahead_total", "counter", "Steps launched before the one before was read.", |s| get(&s.num_steps_ahead)),
    ("sconce_preemptions_total", "counter", "Sequences that lost their KV blocks to others.", |s| get(&s.num_preemptions)),
    ("sconce_prompt_tokens_total", "counter", "Prompt tokens of the requests taken up.", |s| get(&s.num_prompt_tokens)),
    ("sconce_cached_prompt_tokens_total", "counter", "Prompt tokens that were found in the prefix cache.", |s| get(&s.num_cached_prompt_tokens)),
    ("sconce_generated_tokens_total", "counter", "Tokens generated.", |s| get(&s.num_generated_tokens)),
    ("sconce_finished_requests_total", "counter", "Requests that the engine ended.", |s| get(&s.num_finished_requests)),
    ("sconce_cancelled_requests_total", "counter", "Requests whose client went away.", |s| get(&s.num_cancelled_requests)),
    ("vllm:num_requests_running", "gauge", "Sequences that hold KV blocks.", |s| get(&s.num_running)),
    ("vllm:num_requests_waiting", "gauge", "Sequences and requests that wait.", |s| get(&s.num_waiting)),
    ("vllm:prefix_cache_queries_total", "counter", "Prompt tokens of the requests taken up.", |s| get(&s.num_prompt_tokens)),
    ("vllm:prefix_cache_hits_total", "counter", "Prompt tokens that were found in the prefix cache.", |s| get(&s.num_cached_prompt_tokens)),
    ("vllm:kv_cache_usage_perc", "gauge", "Share of the KV blocks in use, 0 to 1.", kv_usage),
];

fn get(counter: &AtomicUsize) -> f64 {
    EngineStatus::get(counter) as f64
}

fn kv_usage(status: &EngineStatus) -> f64 {
    get(&status.num_used_blocks) / get(&status.num_total_blocks).max(1.0)
}

/// All counters of the server and of its engines.
pub fn metrics(state: &State) -> Response<Body> {
    let engines: Vec<_> = state.models().iter().map(|m| (m.id(), m.engine.handle().status())).collect();
    let mut response = Response::new(http::full(text(state, &engines)));
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// The text, for the named `engines`.
pub(super) fn text(state: &State, engines: &[(&str, &EngineStatus)]) -> String {
    let mut text = Text::default();
    text.family("sconce_ready", "gauge", "1 once the models are loaded, until the server drains.");
    text.sample("", f64::from(u8::from(!engines.is_empty() && !state.drain.is_draining())));
    text.family("sconce_requests_in_flight", "gauge", "HTTP requests that are being answered.");
    text.sample("", state.drain.num_in_flight() as f64);
    state.metrics.write(&mut text);
    for (name, kind, help, figure) in ENGINE {
        text.family(name, kind, help);
        for (id, status) in engines {
            text.sample(&format!("model_name=\"{}\"", escape_label(id)), figure(status));
        }
    }
    text.into_string()
}
