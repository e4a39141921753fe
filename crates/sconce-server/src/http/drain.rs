//! [`Drain`]: knows what is in flight, so that the server can end without cutting an answer short.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// Counts requests in flight, and remembers that the server is ending.
#[derive(Debug, Default)]
pub struct Drain {
    draining: AtomicBool,
    num_in_flight: watch::Sender<usize>,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every answer was sent.
    Clean,
    /// Time ran out.
    TimedOut {
        /// Requests that were cut short.
        num_in_flight: usize,
    },
}

/// One request in flight, until it is dropped.
#[derive(Debug)]
pub struct InFlight(Arc<Drain>);

impl Drain {
    /// Counts a request in.
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.num_in_flight.send_modify(|n| *n += 1);
        InFlight(self.clone())
    }

    /// Whether the server is ending.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Requests in flight.
    pub fn num_in_flight(&self) -> usize {
        *self.num_in_flight.borrow()
    }

    /// From now on, new requests are refused.
    pub(super) fn begin(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Returns once nothing is in flight.
    pub(super) async fn idle(&self) {
        let mut num_in_flight = self.num_in_flight.subscribe();
        num_in_flight.wait_for(|&n| n == 0).await.expect("invariant: the sender lives as long as self");
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.num_in_flight.send_modify(|n| *n -= 1);
    }
}
