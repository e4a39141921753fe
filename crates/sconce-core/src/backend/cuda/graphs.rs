//! [`Graphs`]: the launches of decode steps, written down once for each shape of a step and repeated with one call.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::device::{Device, Graph};
use crate::error::Result;
use crate::ops::attention::decode::DecodeShape;

/// All that the launches of a step depend on, beside the contents of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct StepShape {
    /// Tokens, each the only one of its sequence, with padding.
    pub(crate) num_rows: usize,
    /// Whether a token goes through an adapter.
    pub(crate) has_adapters: bool,
    /// What attention's launches depend on beside it.
    pub(crate) attention: DecodeShape,
}

/// Launches that were written down.
#[derive(Default)]
pub(crate) struct Graphs {
    graphs: HashMap<StepShape, Box<dyn Graph>>,
}

impl Graphs {
    /// Repeats what was written down for the shape, or writes down what `forward` does first.
    ///
    /// # Safety
    /// `forward` makes the same launches for the same shape, and the memory that they name stays.
    pub(crate) unsafe fn run(
        &mut self,
        device: &dyn Device,
        shape: StepShape,
        forward: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let graph = match self.graphs.entry(shape) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(place) => place.insert(write_down(device, forward)?),
        };
        // SAFETY: by the contract.
        unsafe { graph.launch() }
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.graphs.len()
    }
}

fn write_down(device: &dyn Device, forward: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Graph>> {
    let capture = Capture::begin(device)?;
    let done = forward();
    let graph = capture.end();
    done.and(graph)
}

/// Calls are written down. What was begun is ended whatever comes of it, a panic too, or nothing else could run.
struct Capture<'a> {
    device: &'a dyn Device,
    has_ended: bool,
}

impl<'a> Capture<'a> {
    fn begin(device: &'a dyn Device) -> Result<Self> {
        device.begin_capture()?;
        Ok(Self { device, has_ended: false })
    }

    fn end(mut self) -> Result<Box<dyn Graph>> {
        self.has_ended = true;
        self.device.end_capture()
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if !self.has_ended
            && let Err(error) = self.device.end_capture()
        {
            tracing::debug!("a capture that was given up: {error}");
        }
    }
}

/// The least number of rows that steps of `num_rows` are padded to: so that there are few graphs, and little in vain.
pub(crate) fn padded_rows(num_rows: usize, max_rows: usize) -> usize {
    let padded = match num_rows {
        0..=8 => num_rows.next_power_of_two(),
        9..=64 => num_rows.next_multiple_of(8),
        65..=256 => num_rows.next_multiple_of(16),
        _ => num_rows.next_multiple_of(64),
    };
    padded.min(max_rows)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::backend::cuda::host::HostDevice;

    #[test]
    fn a_capture_ends_whatever_comes_of_it() {
        let device = HostDevice::open();
        let is_capturing = || device.end_capture().is_ok();
        let failed = write_down(&*device, &mut || Err(crate::error::Error::internal("asked to fail")));
        assert!(failed.is_err() && !is_capturing());
        let panicked = catch_unwind(AssertUnwindSafe(|| write_down(&*device, &mut || panic!("asked to panic"))));
        assert!(panicked.is_err() && !is_capturing());
        assert!(write_down(&*device, &mut || Ok(())).is_ok() && !is_capturing());
    }

    #[test]
    fn padding_reaches_up_and_not_beyond_the_limit() {
        let mut buckets = Vec::new();
        for rows in 1..=300 {
            let padded = padded_rows(rows, 300);
            assert!(padded >= rows && padded <= 300 && padded <= rows * 2, "{rows}: {padded}");
            buckets.push(padded);
        }
        buckets.dedup();
        assert!(buckets.is_sorted() && buckets.len() <= 26, "{buckets:?}");
    }
}
