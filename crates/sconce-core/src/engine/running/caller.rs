//! [`Caller`]: the engine's end of the channel to one caller.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::mpsc::UnboundedSender;

use crate::engine::output::{CompletionOutput, StreamEvent};
use crate::error::{Error, Result};

/// The engine's end of the channel to one caller.
pub(in crate::engine) struct Caller {
    pub(in crate::engine) events: UnboundedSender<Result<StreamEvent>>,
    pub(in crate::engine) gate: Arc<SnapshotGate>,
}

/// Lets one snapshot at a time through. A snapshot replaces the one before it, so that a caller who is slow to take it
/// misses nothing by getting a later one.
#[derive(Debug, Default)]
pub(in crate::engine) struct SnapshotGate(AtomicU8);

impl SnapshotGate {
    const OPEN: u8 = 0;
    const TAKEN: u8 = 1;
    const CLOSED: u8 = 2;

    /// The snapshot has arrived: another may follow.
    pub(in crate::engine) fn arrived(&self) {
        // A gate that is closed stays so.
        let _ = self.0.compare_exchange(Self::TAKEN, Self::OPEN, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// No more snapshots.
    pub(in crate::engine) fn close(&self) {
        self.0.store(Self::CLOSED, Ordering::Relaxed);
    }

    fn is_open(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::OPEN
    }

    fn take(&self) {
        let _ = self.0.compare_exchange(Self::OPEN, Self::TAKEN, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl Caller {
    /// Whether nobody listens any more.
    pub(super) fn has_gone(&self) -> bool {
        self.events.is_closed()
    }

    pub(super) fn send(&self, event: StreamEvent) {
        // A caller that has gone is noticed before the next step.
        let _ = self.events.send(Ok(event));
    }

    pub(super) fn fail(&self, error: Error) {
        // A caller that has gone needs no error.
        let _ = self.events.send(Err(error));
    }

    /// Whether a snapshot would be looked at now.
    pub(super) fn wants_snapshot(&self) -> bool {
        self.gate.is_open()
    }

    pub(super) fn send_snapshot(&self, outputs: Vec<CompletionOutput>) {
        self.gate.take();
        self.send(StreamEvent::Best(outputs));
    }
}
