//! Which tokens of which sequences are computed in the next step.
//!
//! There is no prefill phase and no decode phase: each sequence has `num_computed_tokens` chasing its tokens, under
//! one token budget a step. No tensor is seen here.

mod plan;
mod scheduler;
mod sequence;
#[cfg(test)]
mod tests;

pub use plan::{ScheduledChunk, StepPlan};
pub use scheduler::{Scheduler, SchedulerConfig};
pub use sequence::{GroupId, Sequence, SequenceGroup, SequenceStatus};
