//! [`stream`]: events in, a response body out. An [`Encoder`] gives the body its form.

use bytes::Bytes;
use futures_util::stream::{Stream, StreamExt, iter, select_all, unfold};
use hyper::Response;
use sconce::{Error, StreamEvent};

use super::events::Events;
use crate::http::{self, ApiError, Body};

/// Most events that go into one frame of the body.
const MAX_EVENTS: usize = 256;

/// The form of a streamed answer. All methods append to `out`.
pub(super) trait Encoder: Send + 'static {
    /// The content type of the answer.
    const CONTENT_TYPE: &'static str;
    /// Before the first event.
    fn begin(&mut self, _out: &mut Vec<u8>) {}
    /// An event of the `prompt`-th prompt.
    fn event(&mut self, prompt: usize, event: StreamEvent, out: &mut Vec<u8>);
    /// All events that were ready have been seen.
    fn caught_up(&mut self, _out: &mut Vec<u8>) {}
    /// Every prompt is done.
    fn end(&mut self, out: &mut Vec<u8>);
    /// The answer ends with an error.
    fn error(&mut self, error: &ApiError, out: &mut Vec<u8>);
}

/// A response that is made of the `prompts`' events as they come. Dropping it cancels them all.
pub(super) fn stream<E: Encoder>(prompts: Vec<Events>, encoder: E) -> Response<Body> {
    http::streamed(E::CONTENT_TYPE, encoded(prompts, encoder))
}

/// The frames of the body. A client that reads slowly gets fewer, larger ones.
pub(super) fn encoded<E: Encoder>(prompts: Vec<Events>, mut encoder: E) -> impl Stream<Item = Bytes> + Send {
    let mut begun = Vec::new();
    encoder.begin(&mut begun);
    let tag = |(prompt, events): (usize, Events)| events.map(move |event| (prompt, event)).boxed();
    let batches = select_all(prompts.into_iter().enumerate().map(tag)).ready_chunks(MAX_EVENTS);
    let begun = (!begun.is_empty()).then(|| Bytes::from(begun));
    let rest = unfold(Some((batches, encoder)), |state| async {
        let (mut batches, mut encoder) = state?;
        let mut out = Vec::new();
        while out.is_empty() {
            let Some(batch) = batches.next().await else {
                encoder.end(&mut out);
                return Some((Bytes::from(out), None));
            };
            if let Err(error) = encode(&mut encoder, batch, &mut out) {
                encoder.error(&error.into(), &mut out);
                return Some((Bytes::from(out), None));
            }
        }
        Some((Bytes::from(out), Some((batches, encoder))))
    });
    iter(begun).chain(rest)
}

fn encode<E: Encoder>(
    encoder: &mut E,
    batch: Vec<(usize, Result<StreamEvent, Error>)>,
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    for (prompt, event) in batch {
        encoder.event(prompt, event?, out);
    }
    encoder.caught_up(out);
    Ok(())
}
