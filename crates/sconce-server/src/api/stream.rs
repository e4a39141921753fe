//! [`stream`] and [`whole`]: events in, a response body out. An [`Encoder`] or a [`Whole`] gives the body its form.

use std::panic::resume_unwind;

use bytes::Bytes;
use futures_util::stream::{Stream, StreamExt, iter, select_all, unfold};
use hyper::{Response, StatusCode};
use sconce::{Error, StreamEvent, TokenLogprobs};

use super::events::Events;
use crate::http::{self, ApiError, Body, Json, Pieces};

/// Most events that are taken at once.
const MAX_EVENTS: usize = 256;
/// So many tokens' log-probabilities are written in a millisecond or two. Where more have come, that is done on a thread of its own, and
/// other connections are answered meanwhile.
const MAX_LOGPROBS: usize = 2048;

/// The form of a streamed answer. All methods append to `out`.
pub(super) trait Encoder: Send + 'static {
    /// The content type of the answer.
    const CONTENT_TYPE: &'static str;
    /// Before the first event.
    fn begin(&mut self, _out: &mut Pieces) {}
    /// An event of the `prompt`-th prompt.
    fn event(&mut self, prompt: usize, event: StreamEvent, out: &mut Pieces);
    /// All events that were ready have been seen.
    fn caught_up(&mut self, _out: &mut Pieces) {}
    /// Every prompt is done.
    fn end(&mut self, out: &mut Pieces);
    /// The answer ends with an error.
    fn error(&mut self, error: &ApiError, out: &mut Pieces);
}

/// The form of an answer that comes whole.
pub(super) trait Whole: Send + 'static {
    /// An event of the `prompt`-th prompt.
    fn event(&mut self, prompt: usize, event: StreamEvent);
    /// The answer, once every prompt is done.
    fn end(self) -> Json;
}

/// Events that were ready at once, each with the number of its prompt.
type EventBatch = Vec<(usize, Result<StreamEvent, Error>)>;

fn batches(prompts: Vec<Events>) -> impl Stream<Item = EventBatch> + Send + Unpin {
    let tag = |(prompt, events): (usize, Events)| events.map(move |event| (prompt, event)).boxed();
    select_all(prompts.into_iter().enumerate().map(tag)).ready_chunks(MAX_EVENTS)
}

/// Gives `batch` to `work`, where it may take its time if that is long.
async fn take_in<T, R>(
    batch: EventBatch,
    mut taker: T,
    work: impl FnOnce(&mut T, EventBatch) -> R + Send + 'static,
) -> (T, R)
where
    T: Send + 'static,
    R: Send + 'static,
{
    let num_logprobs: usize = batch.iter().filter_map(|(_, event)| event.as_ref().ok()).map(num_logprobs).sum();
    if num_logprobs <= MAX_LOGPROBS {
        let result = work(&mut taker, batch);
        return (taker, result);
    }
    apart(move || {
        let result = work(&mut taker, batch);
        (taker, result)
    })
    .await
}

/// Runs `work` on a thread of its own. Its panic is the caller's.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The process is about to end.
            Err(_) => std::future::pending().await,
        },
    }
}

/// How many tokens' log-probabilities an event has.
fn num_logprobs(event: &StreamEvent) -> usize {
    let of = |position: &TokenLogprobs| 1 + position.top.len();
    match event {
        StreamEvent::PromptLogprobs(logprobs) => logprobs.iter().flatten().map(of).sum(),
        StreamEvent::Token(token) => token.logprobs.iter().map(of).sum(),
        StreamEvent::Best(outputs) => outputs.iter().flat_map(|output| &output.logprobs).map(of).sum(),
        StreamEvent::Done(_) => 0,
    }
}

/// A response that is made of all of the `prompts`' events. Dropping the future cancels them all.
pub(super) async fn whole(prompts: Vec<Events>, mut answer: impl Whole) -> Result<Response<Body>, ApiError> {
    let mut batches = batches(prompts);
    while let Some(batch) = batches.next().await {
        let taken = take_in(batch, answer, |answer, batch| {
            batch.into_iter().try_for_each(|(prompt, event)| event.map(|event| answer.event(prompt, event)))
        });
        let result;
        (answer, result) = taken.await;
        result?;
    }
    Ok(apart(move || http::written(StatusCode::OK, &answer.end())).await)
}

/// A response that is made of the `prompts`' events as they come. Dropping it cancels them all.
pub(super) fn stream<E: Encoder>(prompts: Vec<Events>, encoder: E) -> Response<Body> {
    http::streamed(E::CONTENT_TYPE, encoded(prompts, encoder))
}

/// The frames of the body. A client that reads slowly gets fewer, larger records; none is made before the last one has been taken.
pub(super) fn encoded<E: Encoder>(prompts: Vec<Events>, mut encoder: E) -> impl Stream<Item = Bytes> + Send {
    let mut begun = Pieces::default();
    encoder.begin(&mut begun);
    let rest = unfold(Some((batches(prompts), encoder)), |state| async {
        let (mut batches, mut encoder) = state?;
        let mut out = Pieces::default();
        while out.is_empty() {
            let Some(batch) = batches.next().await else {
                encoder.end(&mut out);
                return Some((out, None));
            };
            let result;
            (encoder, result) = take_in(batch, encoder, encode).await;
            match result {
                Ok(encoded) => out = encoded,
                Err((encoded, error)) => {
                    out = encoded;
                    encoder.error(&error.into(), &mut out);
                    return Some((out, None));
                }
            }
        }
        Some((out, Some((batches, encoder))))
    });
    iter([begun]).chain(rest).flat_map(|out| iter(out.into_frames()))
}

/// What `encoder` makes of a batch, up to its first error.
fn encode<E: Encoder>(encoder: &mut E, batch: EventBatch) -> Result<Pieces, (Pieces, Error)> {
    let mut out = Pieces::default();
    for (prompt, event) in batch {
        match event {
            Ok(event) => encoder.event(prompt, event, &mut out),
            Err(error) => return Err((out, error)),
        }
    }
    encoder.caught_up(&mut out);
    Ok(out)
}
