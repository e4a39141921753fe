//! From one row of logits to a token, exactly and reproducibly.
//!
//! Everything here works on plain host rows, one logit a token of the vocabulary. What is sampled is a function of the
//! row, the [`SamplingParams`](crate::config::SamplingParams), the sequence's own [`TokenCounts`] and the counter
//! (seed, sequence index, position): not of the machine, of what was sampled before, or of who shares the batch.
//!
//! The way of one row: [`LogitsProcessor`] edits it in place (a grammar's mask, that of min_tokens, logit_bias, penalties), then the
//! [`Sampler`] takes the best token, or draws one from what temperature, top-k, top-p and min-p leave. With beams the row
//! becomes log-probabilities first ([`log_softmax`]), its best tokens ([`top_candidates`]) go to the [`BeamSearch`].

mod beam;
mod filters;
mod logprobs;
mod mask;
mod numeric;
mod penalties;
mod processors;
mod rng;
mod rows;
mod sampler;
mod select;
mod softmax;

pub use beam::{
    BeamCandidate, BeamHypothesis, BeamLimits, BeamSearch, BeamSource, BeamStep, FinishKind, FinishedBeam, NextBeam,
};
pub use logprobs::{Logprob, TokenLogprobs, log_softmax, top_candidates};
pub use mask::TokenMask;
pub use penalties::{Generated, TokenCounts};
pub use processors::LogitsProcessor;
pub use rng::{random_seed, uniform};
pub use rows::{SampleInput, SampleKind, SampleResults, SampleRow, Sampled};
pub use sampler::Sampler;
pub use select::Selector;
pub use softmax::Softmax;

#[cfg(test)]
mod tests;
