//! [`StepPlan`]: what one step computes.

use super::sequence::GroupId;
use crate::kv::BlockCopy;

/// Consecutive tokens of one sequence that are computed in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScheduledChunk {
    /// The sequence's group.
    pub group: GroupId,
    /// The sequence's index in its group.
    pub index: usize,
    /// Position of the chunk's first token; everything before it is computed.
    pub start: usize,
    /// Tokens in the chunk, at least 1.
    pub len: usize,
    /// How many of them, the last ones, are drafts ([`Sequence::drafts`](super::Sequence::drafts)).
    pub num_drafts: usize,
    /// Logits are wanted at positions `logits_from..start + len`; none if that range is empty.
    pub logits_from: usize,
}

impl ScheduledChunk {
    /// One past the chunk's last position.
    pub fn end(&self) -> usize {
        self.start + self.len
    }

    /// One past the last position of a token that is the sequence's own.
    pub fn end_of_own(&self) -> usize {
        self.end() - self.num_drafts
    }

    /// Positions whose logits are wanted.
    pub fn num_logits(&self) -> usize {
        self.end().saturating_sub(self.logits_from)
    }
}

/// What one step computes. Reused from step to step.
#[derive(Debug, Default)]
pub struct StepPlan {
    /// The tokens, oldest request first.
    pub chunks: Vec<ScheduledChunk>,
    /// Block copies to carry out first, in this order.
    pub copies: Vec<BlockCopy>,
    /// Sequences that lost their blocks while this step was planned.
    pub num_preempted: usize,
    /// Tokens of prompts that begin in this step and that were in the prefix cache.
    pub num_cached_tokens: usize,
}

impl StepPlan {
    /// Forgets everything, and keeps the memory.
    pub fn clear(&mut self) {
        self.chunks.clear();
        self.copies.clear();
        self.num_preempted = 0;
        self.num_cached_tokens = 0;
    }

    /// The positions whose logits are wanted, in the order of the rows of logits.
    pub fn logit_positions(&self) -> impl Iterator<Item = (&ScheduledChunk, usize)> {
        self.chunks.iter().flat_map(|chunk| (chunk.logits_from..chunk.end()).map(move |pos| (chunk, pos)))
    }

    /// Tokens computed by the step.
    pub fn num_tokens(&self) -> usize {
        self.chunks.iter().map(|c| c.len).sum()
    }
}
