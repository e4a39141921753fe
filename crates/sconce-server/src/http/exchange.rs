//! [`Exchange`]: one request and its answer, from the head's arrival to the last byte or the client's departure.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Instant;

use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{Method, Request, StatusCode};

use super::drain::InFlight;
use crate::state::State;

/// The status in the log where the client left before it was answered.
const CLIENT_CLOSED: u16 = 499;
/// The longest request id that is taken over from a client.
const MAX_ID_LEN: usize = 128;

/// One request and its answer. Shared by all that works on it; the last one to drop it writes the access log's line.
#[derive(Debug)]
pub struct Exchange {
    /// What is served.
    pub state: Arc<State>,
    /// When the request's head had arrived.
    pub start: Instant,
    id: RequestId,
    method: Method,
    path: String,
    status: AtomicU16,
    num_tokens: AtomicUsize,
    _in_flight: InFlight,
}

#[derive(Debug)]
enum RequestId {
    Given(String),
    Made(String),
}

impl Exchange {
    /// The exchange that `request` begins.
    pub(super) fn new(state: Arc<State>, request: &Request<Incoming>) -> Arc<Self> {
        let given = request.headers().get("x-request-id").and_then(|id| id.to_str().ok());
        let id = match given.filter(|id| !id.is_empty() && id.len() <= MAX_ID_LEN) {
            Some(id) => RequestId::Given(id.to_owned()),
            None => RequestId::Made(random_id()),
        };
        Arc::new(Self {
            start: Instant::now(),
            id,
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            status: AtomicU16::new(CLIENT_CLOSED),
            num_tokens: AtomicUsize::new(0),
            _in_flight: state.drain.enter(),
            state,
        })
    }

    /// The id of the answer's body.
    pub fn body_id(&self) -> String {
        let prefix = match self.path.rsplit('/').next() {
            Some("responses") => "resp_",
            Some("embeddings") => "embd-",
            Some(_) if self.path.contains("chat") => "chatcmpl-",
            _ => "cmpl-",
        };
        match &self.id {
            RequestId::Given(id) | RequestId::Made(id) => format!("{prefix}{id}"),
        }
    }

    /// The `x-request-id` of the answer: the client's own, or the one that was made.
    pub(super) fn header_id(&self) -> Option<HeaderValue> {
        match &self.id {
            RequestId::Given(id) => HeaderValue::from_str(id).ok(),
            RequestId::Made(_) => HeaderValue::from_str(&self.body_id()).ok(),
        }
    }

    /// Notes the answer's status.
    pub(super) fn set_status(&self, status: StatusCode) {
        self.status.store(status.as_u16(), Ordering::Relaxed);
    }

    /// Notes generated tokens.
    pub fn add_tokens(&self, num_tokens: usize) {
        self.num_tokens.fetch_add(num_tokens, Ordering::Relaxed);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let status = *self.status.get_mut();
        let num_tokens = *self.num_tokens.get_mut();
        let elapsed = self.start.elapsed();
        self.state.metrics.request_ended(super::router::route_name(&self.path), status, elapsed);
        let ms = elapsed.as_secs_f64() * 1e3;
        // Probes come every few seconds.
        if matches!(self.path.as_str(), "/health" | "/metrics") {
            return tracing::debug!("{} {} {status} {ms:.1} ms", self.method, self.path);
        }
        tracing::info!("{} {} {status} {ms:.1} ms {num_tokens} tokens", self.method, self.path);
    }
}

/// 32 hexadecimal digits that do not come twice: the standard library's hash keys are random.
fn random_id() -> String {
    let half = || RandomState::new().hash_one(Instant::now());
    format!("{:016x}{:016x}", half(), half())
}
