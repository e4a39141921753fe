//! Bodies: reading a request's within its limits, making a response's.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderValue};
use hyper::{Request, Response, StatusCode};
use serde_json::Value;
use tokio::task::coop::consume_budget;

use super::error::ApiError;
use super::json::Json;
use super::pieces::Pieces;
use crate::state::Settings;

/// The body of every response.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// How many times the limit is read and thrown away of a body that is refused.
const MAX_DISCARDED_LIMITS: usize = 8;

/// Refuses a request whose body has not been read: the answer goes out at once, while the body still comes in, for a sender who listens
/// only after writing.
pub(super) fn refuse(request: Request<Incoming>, settings: &Settings) {
    if request.headers().contains_key(EXPECT) || hyper::body::Body::is_end_stream(request.body()) {
        return;
    }
    let most = settings.max_body_bytes.saturating_mul(MAX_DISCARDED_LIMITS);
    tokio::spawn(tokio::time::timeout(settings.body_timeout, discard(request.into_body(), most)));
}

/// A body of known bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// A JSON response.
pub fn json(status: StatusCode, value: &Value) -> Response<Body> {
    json_text(status, value.to_string())
}

/// The same, written already.
pub fn json_text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A JSON response of any length: what has been written of it is sent from where it lies.
pub fn written(status: StatusCode, json: &Json) -> Response<Body> {
    let mut pieces = Pieces::default();
    json.write(&mut pieces);
    let num_bytes = pieces.num_bytes();
    let mut response = Response::new(paced(stream::iter(pieces.into_frames())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, num_bytes.into());
    response
}

/// A body of pieces, after some of which other connections have their turn, however fast the client reads.
fn paced(pieces: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    let frames = pieces.then(|bytes| async {
        consume_budget().await;
        Ok(Frame::data(bytes))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// A response whose body is made while it is sent. Dropping the response drops the stream.
pub fn streamed(content_type: &'static str, chunks: impl Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    let mut response = Response::new(paced(chunks));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    // Proxies would hold the stream back to store or to compress it.
    headers.insert("cache-control", HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// The whole body of `request`, within the limits of `settings`.
pub async fn read_body(mut request: Request<Incoming>, settings: &Settings) -> Result<Vec<u8>, ApiError> {
    if let Some(encoding) = request.headers().get(CONTENT_ENCODING)
        && encoding != "identity"
    {
        let error = ApiError::encoded(encoding);
        refuse(request, settings);
        return Err(error);
    }
    let (limit_bytes, time_limit) = (settings.max_body_bytes, settings.body_timeout);
    let declared = hyper::body::Body::size_hint(request.body()).lower();
    let collected = if declared > limit_bytes as u64 {
        Ok(None)
    } else {
        tokio::time::timeout(time_limit, collect(request.body_mut(), limit_bytes))
            .await
            .unwrap_or_else(|_| Err(ApiError::timeout(time_limit)))
    };
    collected?.ok_or_else(|| {
        refuse(request, settings);
        ApiError::too_large(limit_bytes)
    })
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
