//! Bodies: reading a request's within its limits, making a response's.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, EXPECT, HeaderValue};
use hyper::{Request, Response, StatusCode};
use serde_json::Value;

use super::error::ApiError;

/// The body of every response.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// How many times the limit is read and thrown away after a 413, so that a sender who listens only after writing hears
/// it.
const MAX_DISCARDED_LIMITS: usize = 8;

/// A body of known bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// A JSON response.
pub fn json(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(full(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A response whose body is made while it is sent. Dropping the response drops the stream.
pub fn streamed(content_type: &'static str, chunks: impl Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    let frames = chunks.map(|bytes| Ok(Frame::data(bytes)));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    // Proxies would hold the stream back to store or to compress it.
    headers.insert("cache-control", HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// The whole body of `request`: at most `limit_bytes`, within `time_limit`.
pub async fn read_body(
    request: Request<Incoming>,
    limit_bytes: usize,
    time_limit: Duration,
) -> Result<Vec<u8>, ApiError> {
    if let Some(encoding) = request.headers().get(CONTENT_ENCODING)
        && encoding != "identity"
    {
        return Err(ApiError::encoded(encoding));
    }
    let waits_for_permission = request.headers().contains_key(EXPECT);
    let mut body = request.into_body();
    let declared = hyper::body::Body::size_hint(&body).lower();
    let collected = if declared > limit_bytes as u64 {
        Ok(None)
    } else {
        tokio::time::timeout(time_limit, collect(&mut body, limit_bytes))
            .await
            .unwrap_or_else(|_| Err(ApiError::timeout(time_limit)))
    };
    match collected? {
        Some(bytes) => Ok(bytes),
        None => {
            // The answer goes out at once, while the rest of the body still comes in.
            if !waits_for_permission {
                let most = limit_bytes.saturating_mul(MAX_DISCARDED_LIMITS);
                tokio::spawn(tokio::time::timeout(time_limit, discard(body, most)));
            }
            Err(ApiError::too_large(limit_bytes))
        }
    }
}

/// The body's bytes; `None` if there are more than `limit_bytes`.
async fn collect(body: &mut Incoming, limit_bytes: usize) -> Result<Option<Vec<u8>>, ApiError> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| ApiError::bad_body(format!("the body could not be read: {e}")))?;
        // Trailers are no data.
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit_bytes {
            return Ok(None);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(Some(bytes))
}

/// Reads what still comes, up to `most` bytes, and throws it away.
async fn discard(mut body: Incoming, most: usize) {
    let mut num_bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        num_bytes += frame.data_ref().map_or(0, Bytes::len);
        if num_bytes > most {
            return;
        }
    }
}

/// `body`, which keeps `guard` until it is sent or dropped.
pub(super) fn holding<G: Send + Unpin + 'static>(body: Body, guard: G) -> Body {
    Holding { body, _guard: guard }.boxed_unsync()
}

struct Holding<G> {
    body: Body,
    _guard: G,
}

impl<G: Unpin> hyper::body::Body for Holding<G> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
