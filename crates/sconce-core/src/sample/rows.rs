//! [`SampleRow`] and [`SampleResults`]: what is wanted of a step's logits, and what comes of it.
//!
//! Between the two nobody needs to see logits, so that a backend can answer all rows of a step where they are.

use std::collections::VecDeque;
use std::collections::vec_deque::Drain;

use super::{TokenCounts, TokenLogprobs, TokenMask};
use crate::config::SamplingParams;

/// What is wanted of one row of logits. Several can be wanted of the same row.
#[derive(Debug, Clone, Copy)]
pub struct SampleRow<'a> {
    /// Which row of the step's logits.
    pub row: usize,
    /// What is wanted of it.
    pub kind: SampleKind<'a>,
}

/// The kinds of answers that a row can give.
#[derive(Debug, Clone, Copy)]
pub enum SampleKind<'a> {
    /// One token, greedy or drawn ([`Sampler::sample`](super::Sampler::sample)).
    Token(SampleInput<'a>),
    /// The best tokens to follow a beam ([`Sampler::beam_candidates`](super::Sampler::beam_candidates)).
    BeamCandidates {
        /// What edits the logits; nothing of it draws.
        input: SampleInput<'a>,
        /// How many are wanted, if there are so many.
        k: usize,
    },
    /// The report on a token of the prompt ([`Sampler::prompt_logprobs`](super::Sampler::prompt_logprobs)).
    PromptLogprobs {
        /// The token that follows the row's position.
        chosen: u32,
        /// How many of the most probable tokens are reported beside it.
        num_top: usize,
    },
}

/// What one token is sampled by, beside its logits.
#[derive(Debug, Clone, Copy)]
pub struct SampleInput<'a> {
    /// The request's parameters, validated.
    pub params: &'a SamplingParams,
    /// What the sequence has seen.
    pub counts: &'a TokenCounts,
    /// The request's seed, or one drawn for it.
    pub seed: u64,
    /// Which of the request's n sequences.
    pub sequence_index: u32,
    /// How many tokens the sequence has generated.
    pub position: u32,
    /// The model's end tokens: masked until `min_tokens` are generated, unless `ignore_eos` makes them tokens like any
    /// other. The request's own `stop_token_ids` are masked in either case and need not be among these.
    pub end_token_ids: &'a [u32],
    /// The tokens that the request's grammar allows next, if it has one.
    pub allowed: Option<&'a TokenMask>,
}

/// A token and what the model thought of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token_id: u32,
    /// Its log-probability in the distribution that [`SamplingParams::logprobs_mode`] names.
    pub logprob: f32,
    /// The report on it, if [`SamplingParams::logprobs`] asks for one.
    pub logprobs: Option<TokenLogprobs>,
}

impl From<TokenLogprobs> for Sampled {
    /// A token that is reported on.
    fn from(logprobs: TokenLogprobs) -> Self {
        let chosen = &logprobs.chosen;
        Self { token_id: chosen.token_id, logprob: chosen.logprob, logprobs: Some(logprobs) }
    }
}

/// The answers to a step's [`SampleRow`]s, in their order: as many tokens as beam candidates were found, one token for
/// every other row. Reused from step to step, it allocates nothing once warm.
#[derive(Debug, Default, PartialEq)]
pub struct SampleResults {
    /// The tokens of all rows.
    sampled: VecDeque<Sampled>,
    /// How many of them belong to each row.
    lens: VecDeque<usize>,
}

impl SampleResults {
    /// Forgets everything, and keeps the memory.
    pub fn clear(&mut self) {
        self.sampled.clear();
        self.lens.clear();
    }

    /// Adds a row's answer, which `fill` appends to the tokens that are there.
    pub fn push(&mut self, fill: impl FnOnce(&mut VecDeque<Sampled>)) {
        let len_before = self.sampled.len();
        fill(&mut self.sampled);
        self.lens.push_back(self.sampled.len() - len_before);
    }

    /// The token that was added last.
    pub fn last(&self) -> Option<&Sampled> {
        self.sampled.back()
    }

    /// Moves the answers of `other` behind those that are there.
    pub fn append(&mut self, other: &mut Self) {
        self.sampled.append(&mut other.sampled);
        self.lens.append(&mut other.lens);
    }

    /// Takes out the answer to the first row that has not been taken yet. Empty where none is left.
    pub fn take_next(&mut self) -> Drain<'_, Sampled> {
        let len = self.lens.pop_front().unwrap_or(0);
        self.sampled.drain(..len)
    }
}
