//! Which tokens of which sequences are computed in the next step.
//!
//! There is no prefill phase and no decode phase: each sequence has `num_computed_tokens` chasing its tokens, under
//! one token budget a step. No tensor is seen here.
//!
//! A step can be planned while the one before it is under way: the tokens that this one samples are *unread* then. They
//! have their places in their sequences, and nothing that depends on which they are is decided before they are read.

mod plan;
mod scheduler;
mod sequence;
#[cfg(test)]
mod tests;

pub use plan::{ScheduledChunk, StepPlan};
pub use scheduler::{Scheduler, SchedulerConfig};
pub use sequence::{GroupId, Sequence, SequenceGroup, SequenceStatus, UNREAD};
