//! [`fastest`]: which of some ways of doing the same is the fastest on the device, by events on its stream.

use cudarc::driver::sys;

use super::context::Context;
use super::load::event_elapsed_time;
use crate::error::Result;

/// How often the time of each is taken, after once that does not count: the first time loads a kernel. The least counts.
const REPEATS: usize = 4;
/// Clocks scatter: a later candidate must take less than this share of the best one's time to be preferred.
const MIN_GAIN: f32 = 0.98;
/// What `cuEventCreate` is given for an event that keeps the time.
const TIMED: u32 = 0;

/// An event that keeps the time, given back when it is dropped.
struct Event<'a> {
    raw: sys::CUevent,
    context: &'a Context,
}

impl<'a> Event<'a> {
    fn new(context: &'a Context) -> Result<Self> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` is where the answer goes.
        context.check("cuEventCreate", unsafe { sys::cuEventCreate(&mut raw, TIMED) })?;
        Ok(Self { raw, context })
    }

    fn record(&self) -> Result<()> {
        // SAFETY: the event and the stream live.
        self.context.check("cuEventRecord", unsafe { sys::cuEventRecord(self.raw, self.context.stream()) })
    }
}

impl Drop for Event<'_> {
    fn drop(&mut self) {
        // SAFETY: it was made here, and this is the only owner.
        self.context.note("cuEventDestroy", unsafe { sys::cuEventDestroy_v2(self.raw) });
    }
}

/// The fastest of `num_candidates`, each of which `work` puts on the stream after what `before` does, and the milliseconds that it adds
/// to that: as in a step, what a kernel does while the one before it ends costs nothing. Those that `work` refuses are passed over; none
/// where it refuses all. The stream must not be captured.
pub(super) fn fastest(
    context: &Context,
    num_candidates: usize,
    before: &mut dyn FnMut() -> Result<()>,
    work: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Option<(usize, f32)>> {
    let event = || Event::new(context);
    let spans = (0..REPEATS).map(|_| Ok((event()?, event()?))).collect::<Result<Vec<_>>>()?;
    let least_ms = |work: &mut dyn FnMut() -> Result<()>| -> Result<f32> {
        for (start, end) in &spans {
            start.record()?;
            work()?;
            end.record()?;
        }
        let ms = spans.iter().map(|(start, end)| ms_between(context, start, end)).collect::<Result<Vec<f32>>>()?;
        Ok(ms.into_iter().fold(f32::INFINITY, f32::min))
    };
    before()?;
    let before_ms = least_ms(before)?;
    let mut best = None;
    for idx in 0..num_candidates {
        if let Err(error) = work(idx) {
            tracing::debug!("candidate {idx}: {error}");
            continue;
        }
        let ms = least_ms(&mut || {
            before()?;
            work(idx)
        })?;
        let ms = (ms - before_ms).max(0.0);
        if best.is_none_or(|(_, least)| ms < MIN_GAIN * least) {
            best = Some((idx, ms));
        }
    }
    Ok(best)
}

/// The milliseconds between two events, once both have come to pass.
fn ms_between(context: &Context, start: &Event<'_>, end: &Event<'_>) -> Result<f32> {
    let mut ms = 0.0;
    // SAFETY: the events live; `ms` is where the answer goes.
    unsafe {
        context.check("cuEventSynchronize", sys::cuEventSynchronize(end.raw))?;
        context.check("cuEventElapsedTime", event_elapsed_time(&mut ms, start.raw, end.raw))?;
    }
    Ok(ms)
}
