//! [`answer`]: many requests at once, and what the steps take in which all of them decode.

use std::ops::Range;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use sconce::{GenerationOutput, GenerationRequest, StreamEvent, TokenStream};

use super::subject::Subject;
use crate::cli::{Failure, progress};

/// Steps in which every sequence of all requests decodes, the first and the last ones' being one token each.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Steady {
    pub(super) seconds: f64,
    /// Tokens that a sequence has at their begin and at their end.
    pub(super) tokens: Range<usize>,
}

/// A request that is being answered.
struct Growing {
    stream: TokenStream,
    output: GenerationOutput,
}

impl Growing {
    /// Takes the next event. `false`: there is none any more.
    fn grow(&mut self) -> Result<bool, Failure> {
        match self.stream.blocking_next() {
            Some(event) => self.output.apply(event?),
            None => return Ok(false),
        }
        Ok(true)
    }

    /// Waits for the first token of every sequence.
    fn begin(&mut self) -> Result<(), Failure> {
        while self.output.outputs.iter().any(|output| output.token_ids.is_empty()) && self.grow()? {}
        Ok(())
    }

    /// Takes what is there already.
    fn catch_up(&mut self) -> Result<(), Failure> {
        while let Poll::Ready(Some(event)) = self.stream.poll_next(&mut Context::from_waker(Waker::noop())) {
            self.output.apply(event?);
        }
        Ok(())
    }

    fn num_tokens(&self) -> usize {
        self.output.outputs.iter().map(|output| output.token_ids.len()).min().unwrap_or(0)
    }
}

/// Sends all at once and waits for them. The steps are `None` where at no time all were decoding, or where nothing is told before the
/// end, as of beams.
pub(super) fn answer(
    subject: &Subject,
    requests: &[GenerationRequest],
) -> Result<(Vec<GenerationOutput>, Option<Steady>), Failure> {
    let counter = progress::counter("requests", requests.len());
    let start = |request: &GenerationRequest| -> sconce::Result<Growing> {
        let stream = subject.engine.stream(request.clone())?;
        stream.skip_snapshots();
        let output = GenerationOutput::new(stream.num_sequences());
        Ok(Growing { stream, output })
    };
    let mut all = requests.iter().map(start).collect::<sconce::Result<Vec<_>>>()?;
    let steady = steady(&mut all, requests)?;
    let finish = |mut growing: Growing| -> Result<GenerationOutput, Failure> {
        while growing.grow()? {}
        counter.advance();
        Ok(growing.output)
    };
    Ok((all.into_iter().map(finish).collect::<Result<_, _>>()?, steady))
}

/// From when all have begun until one ends. Of a step requests are told in their order: when the last has its first token, the others
/// have theirs of the same step.
fn steady(all: &mut [Growing], requests: &[GenerationRequest]) -> Result<Option<Steady>, Failure> {
    all.iter_mut().try_for_each(Growing::begin)?;
    let begin = Instant::now();
    all.iter_mut().try_for_each(Growing::catch_up)?;
    let num_left = |growing: &Growing, request: &GenerationRequest| {
        request.params.max_tokens.unwrap_or(0).saturating_sub(growing.num_tokens())
    };
    let next = all.iter_mut().zip(requests).min_by_key(|(growing, request)| num_left(growing, request));
    let Some((next, _)) = next else { return Ok(None) };
    let (first, mut end) = (next.num_tokens(), begin);
    while let Some(event) = next.stream.blocking_next() {
        let event = event?;
        if matches!(event, StreamEvent::Token(_)) {
            end = Instant::now();
        }
        next.output.apply(event);
    }
    // Where one has ended before the last begins, there are none.
    let tokens = first..next.num_tokens();
    Ok((!tokens.is_empty()).then(|| Steady { seconds: (end - begin).as_secs_f64().max(1e-9), tokens }))
}
