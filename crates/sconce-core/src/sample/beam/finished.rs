//! [`Finished`]: the best hypotheses that have ended.

use super::step::FinishKind;
use super::token_tree::NodeId;

/// A hypothesis that has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct FinishedHypothesis {
    pub(super) slot: usize,
    pub(super) score: f64,
    pub(super) cumulative_logprob: f64,
    pub(super) last: NodeId,
    pub(super) kind: FinishKind,
}

/// At most `capacity` hypotheses, best first. Each keeps its slot for as long as it is among them.
#[derive(Debug, Clone)]
pub(super) struct Finished {
    capacity: usize,
    best_first: Vec<FinishedHypothesis>,
}

impl Finished {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, best_first: Vec::with_capacity(capacity) }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &FinishedHypothesis> {
        self.best_first.iter()
    }

    /// Takes in a hypothesis if it is good enough, behind its equals, and returns the slot that it was given: a free
    /// one, or that of the worst, which is dropped.
    pub(super) fn offer(&mut self, hypothesis: FinishedHypothesis) -> Option<usize> {
        let at = self.best_first.partition_point(|kept| kept.score >= hypothesis.score);
        if at == self.capacity {
            return None;
        }
        let dropped = if self.best_first.len() == self.capacity { self.best_first.pop() } else { None };
        let slot = dropped.map_or(self.best_first.len(), |dropped| dropped.slot);
        self.best_first.insert(at, FinishedHypothesis { slot, ..hypothesis });
        Some(slot)
    }

    /// The worst that is kept, once there are as many as are kept.
    pub(super) fn worst_if_full(&self) -> Option<&FinishedHypothesis> {
        self.best_first.last().filter(|_| self.best_first.len() == self.capacity)
    }
}
