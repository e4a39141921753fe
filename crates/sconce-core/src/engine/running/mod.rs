//! [`RunningRequest`]: what the engine knows of a request beside its tokens: how to go on, and what to tell the caller.

mod beams;
mod caller;
mod context;
mod sampling;
mod seen;
mod sequence;

use std::ops::Range;
use std::sync::Arc;

pub(super) use caller::{Caller, SnapshotGate};
pub(super) use context::{Limits, RequestContext};
pub(super) use seen::{Ahead, Seen};

use super::output::{PredictionUsage, StreamEvent, Usage};
use super::stream::PromptInfo;
use crate::config::SamplingParams;
use crate::error::Error;
use crate::sample::{SampleInput, SampleKind, SampleResults, SampleRow, Sampled, TokenLogprobs};
use crate::text::{GrammarMatcher, Tokenizer};
use beams::Beams;
use sampling::Sampling;
use sequence::SequenceState;

/// A request on its way through the inbox.
pub(crate) struct QueuedRequest {
    pub(super) prompt: Arc<PromptInfo>,
    pub(super) params: SamplingParams,
    /// The number of the adapter that it goes through, from 1 on; 0: none.
    pub(super) adapter: u32,
    /// What has to be matched, for the first token.
    pub(super) grammar: Option<GrammarMatcher>,
    pub(super) caller: Caller,
}

/// A request that the scheduler knows.
pub(super) struct RunningRequest {
    context: RequestContext,
    caller: Caller,
    decoding: Decoding,
    prompt_logprobs: Vec<Option<TokenLogprobs>>,
    /// Drafts that came from its prediction, and those of them that were right.
    num_predicted: usize,
    num_accepted: usize,
    has_grammar: bool,
    /// Why it cannot go on, if that is so.
    failure: Option<Error>,
}

/// How a request goes on.
enum Decoding {
    /// Sequences that are sampled, each for itself.
    Sampling(Sampling),
    /// A beam search.
    Beams(Box<Beams>),
}

/// What can be done after a step before its answer is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterStep {
    /// The sequence goes on, unless the token turns out to end it.
    GoesOn,
    /// Nothing follows from this answer: it is of the prompt, or the last that the sequence may have.
    Nothing,
    /// It has to be read: what comes next is chosen by it.
    Waits,
}

/// How a group of sequences grew by one token.
#[derive(Debug, Default)]
pub(super) struct Growth {
    /// The group's sequences were replaced before: each continues what stood at this index. `None`: they were not.
    pub(super) parents: Option<Vec<usize>>,
    /// The tokens that were added.
    pub(super) tokens: Vec<NewToken>,
}

/// A token that was added to a sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewToken {
    /// The sequence's index in its group.
    pub(super) index: usize,
    pub(super) token_id: u32,
    /// Whether the sequence ends with it.
    pub(super) is_last: bool,
}

impl Growth {
    fn clear(&mut self) {
        self.parents = None;
        self.tokens.clear();
    }
}

impl RunningRequest {
    pub(super) fn new(request: QueuedRequest, limits: &Limits) -> Self {
        let QueuedRequest { prompt, params, grammar, caller, .. } = request;
        let has_grammar = grammar.is_some();
        let context = RequestContext::new(prompt, params, limits);
        let decoding = match context.params.beam {
            Some(beam) => Decoding::Beams(Box::new(Beams::new(&context, beam, grammar))),
            None => Decoding::Sampling(Sampling::new(&context, grammar)),
        };
        let prompt_logprobs = context.params.prompt_logprobs.map_or(Vec::new(), |_| vec![None]);
        Self {
            context,
            caller,
            decoding,
            prompt_logprobs,
            num_predicted: 0,
            num_accepted: 0,
            has_grammar,
            failure: None,
        }
    }

    pub(super) fn prompt_ids(&self) -> &[u32] {
        &self.context.prompt.token_ids
    }

    /// What the caller expects to follow.
    pub(super) fn prediction(&self) -> Option<&[u32]> {
        self.context.prompt.prediction.as_deref()
    }

    /// A step had so many drafts from the prediction.
    pub(super) fn count_predicted(&mut self, num_drafts: usize) {
        self.num_predicted += num_drafts;
    }

    /// One of them was right.
    pub(super) fn accept_predicted(&mut self) {
        self.num_accepted += 1;
    }

    pub(super) fn wants_prompt_logprobs(&self) -> bool {
        self.context.params.prompt_logprobs.is_some()
    }

    /// Whether the caller has gone.
    pub(super) fn is_cancelled(&self) -> bool {
        self.caller.has_gone()
    }

    /// Adds to `rows` everything that is wanted of row `row` of the logits, which stands after position `pos` of
    /// sequence `idx`. `seen`: of that place, by [`RunningRequest::seen`].
    pub(super) fn ask<'a>(
        &'a self,
        rows: &mut Vec<SampleRow<'a>>,
        row: usize,
        (pos, idx): (usize, usize),
        seen: &'a Seen,
    ) {
        if let Some(kind) = self.prompt_sample_kind(pos) {
            return rows.push(SampleRow { row, kind });
        }
        let with_seen = |input: SampleInput<'a>| {
            let counts = seen.counts.as_ref().unwrap_or(input.counts);
            SampleInput { counts, allowed: seen.allowed.as_ref(), ..input }
        };
        rows.extend(self.continuations(pos, idx).map(|idx| {
            let kind = match &self.decoding {
                Decoding::Sampling(sampling) => {
                    SampleKind::Token(with_seen(sampling.sample_input(&self.context, pos, idx)))
                }
                Decoding::Beams(beams) => {
                    let (input, k) = beams.sample_input(&self.context, pos, idx);
                    SampleKind::BeamCandidates { input: with_seen(input), k }
                }
            };
            SampleRow { row, kind }
        }));
    }

    /// What the token after position `pos` of sequence `idx` is chosen by. If its grammar has become too much, the request fails when
    /// the step is read.
    pub(super) fn seen(&mut self, (pos, idx): (usize, usize)) -> Seen {
        if !self.has_grammar || self.prompt_sample_kind(pos).is_some() {
            return Seen::default();
        }
        self.sequence(idx).seen().unwrap_or_else(|error| {
            self.failure = Some(error);
            Seen::default()
        })
    }

    /// What sequence `idx` would be with drafts behind, of which there are none yet.
    pub(super) fn ahead(&mut self, idx: usize) -> Ahead {
        let has_penalties = self.context.params.has_penalties();
        if has_penalties || self.has_grammar { self.sequence(idx).ahead(has_penalties) } else { Ahead::default() }
    }

    /// Tokens that have to follow sequence `idx`, by its grammar.
    pub(super) fn forced(&mut self, idx: usize) -> Vec<u32> {
        if self.has_grammar { self.sequence(idx).forced() } else { Vec::new() }
    }

    /// How many of some drafts can follow sequence `idx`.
    pub(super) fn num_allowed(&mut self, idx: usize, drafts: &[u32]) -> usize {
        if self.has_grammar && !drafts.is_empty() { self.sequence(idx).num_allowed(drafts) } else { drafts.len() }
    }

    fn sequence(&mut self, idx: usize) -> &mut SequenceState {
        match &mut self.decoding {
            Decoding::Sampling(sampling) => sampling.sequence(idx),
            Decoding::Beams(beams) => beams.sequence(idx),
        }
    }

    /// What is wanted of the logits after position `pos` if that is in the prompt, and not its last.
    fn prompt_sample_kind(&self, pos: usize) -> Option<SampleKind<'_>> {
        let num_top = self.context.params.prompt_logprobs?;
        let chosen = *self.prompt_ids().get(pos + 1)?;
        Some(SampleKind::PromptLogprobs { chosen, num_top })
    }

    /// The sequences that go on from the logits after position `pos` of sequence `idx`: where it is about to become several,
    /// all of them.
    fn continuations(&self, pos: usize, idx: usize) -> Range<usize> {
        match &self.decoding {
            Decoding::Sampling(sampling) if self.context.is_first(pos) => 0..sampling.num_sequences(),
            _ => idx..idx + 1,
        }
    }

    /// What can be done before it is known what follows position `pos` of a sequence.
    pub(super) fn after_step(&self, pos: usize) -> AfterStep {
        let is_one_of_several = match &self.decoding {
            Decoding::Sampling(sampling) => self.context.is_first(pos) && sampling.num_sequences() > 1,
            Decoding::Beams(_) => true,
        };
        if self.prompt_sample_kind(pos).is_some() {
            AfterStep::Nothing
        } else if is_one_of_several {
            AfterStep::Waits
        } else if self.context.is_last(pos) {
            AfterStep::Nothing
        } else if self.has_grammar || self.context.params.has_penalties() {
            AfterStep::Waits
        } else {
            AfterStep::GoesOn
        }
    }

    /// How many drafts may follow a sequence of so many tokens: none of beams, which are chosen among all.
    pub(super) fn max_drafts(&self, len: usize) -> usize {
        let is_sampled = matches!(self.decoding, Decoding::Sampling(_));
        let has_begun = len > self.prompt_ids().len();
        if is_sampled && has_begun { self.context.max_drafts(len) } else { 0 }
    }

    /// Whether a token ends a sequence.
    pub(super) fn ends_with(&self, token_id: u32) -> bool {
        self.context.end_kind(token_id).is_some()
    }

    /// Takes from `results` what [`RunningRequest::ask`] asked for of the same place, and says how the group grows. It
    /// does not while its prompt is computed, nor where the beams of a search have to wait for one another.
    pub(super) fn push_results(
        &mut self,
        tokenizer: &Tokenizer,
        results: &mut SampleResults,
        pos: usize,
        idx: usize,
        growth: &mut Growth,
    ) {
        growth.clear();
        if self.prompt_sample_kind(pos).is_some() {
            return self.prompt_logprobs.push(take_one(results).logprobs);
        }
        let (indices, is_first) = (self.continuations(pos, idx), self.context.is_first(pos));
        if self.failure.is_some() {
            return indices.for_each(|_| drop(results.take_next()));
        }
        if is_first && self.wants_prompt_logprobs() {
            self.caller.send(StreamEvent::PromptLogprobs(std::mem::take(&mut self.prompt_logprobs)));
        }
        let Self { context, caller, decoding, failure, .. } = self;
        match decoding {
            Decoding::Sampling(sampling) => {
                if is_first {
                    growth.parents = sampling.fork();
                }
                for idx in indices {
                    let sampled = take_one(results);
                    *failure = failure.take().or(no_number(&sampled));
                    growth.tokens.push(sampling.push(context, caller, tokenizer, sampled, idx));
                    *failure = failure.take().or(sampling.sequence(idx).refusal());
                }
            }
            Decoding::Beams(beams) => {
                // Best first; behind them may be some that are forbidden.
                let mut candidates = results.take_next().peekable();
                *failure = failure.take().or(candidates.peek().and_then(no_number));
                beams.push(context, tokenizer, candidates, idx, growth);
            }
        }
    }

    /// Shows the best so far, where that is what the caller gets, and where it has changed.
    pub(super) fn send_snapshot(&mut self) {
        let n = self.context.params.n;
        let is_wanted = || self.caller.wants_snapshot();
        let snapshot = match &mut self.decoding {
            Decoding::Sampling(sampling) => sampling.take_change() && is_wanted(),
            Decoding::Beams(beams) => beams.take_change() && is_wanted(),
        };
        if snapshot {
            self.caller.send_snapshot(self.ranked_outputs(n).unwrap_or_default());
        }
    }

    /// The best `n` as they stand; `None` where sequences are told of token by token.
    fn ranked_outputs(&self, n: usize) -> Option<Vec<super::CompletionOutput>> {
        match &self.decoding {
            Decoding::Sampling(sampling) => sampling.ranked_outputs(n),
            Decoding::Beams(beams) => Some(beams.outputs(n)),
        }
    }

    /// Tells the caller that every sequence has ended.
    pub(super) fn send_done(&self, num_cached_tokens: usize) {
        let n = self.context.params.n;
        let outputs = self.ranked_outputs(n);
        let completion_tokens = match (&outputs, &self.decoding) {
            (Some(outputs), _) => outputs.iter().map(|o| o.token_ids.len()).sum(),
            (None, Decoding::Sampling(sampling)) => sampling.num_generated() * n / sampling.num_sequences(),
            (None, Decoding::Beams(_)) => 0,
        };
        if let Some(outputs) = outputs {
            self.caller.send(StreamEvent::Best(outputs));
        }
        let prompt_tokens = self.context.prompt.token_ids.len();
        self.caller.send(StreamEvent::Done(Usage {
            prompt_tokens,
            completion_tokens,
            cached_tokens: num_cached_tokens,
            prediction: self.prediction().map(|_| PredictionUsage {
                accepted_tokens: self.num_accepted,
                rejected_tokens: self.num_predicted - self.num_accepted,
            }),
        }));
    }

    /// Ends all sequences that have not ended, for a reason that is not their own.
    pub(super) fn abort(&mut self, tokenizer: &Tokenizer, num_cached_tokens: usize) {
        match &mut self.decoding {
            Decoding::Sampling(sampling) => sampling.abort(&self.context, &self.caller, tokenizer),
            Decoding::Beams(beams) => beams.abort(&self.context, tokenizer),
        }
        self.send_done(num_cached_tokens);
    }

    /// Why the request cannot go on, if that is so.
    pub(super) fn take_failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    /// Ends the request with an error.
    pub(super) fn fail(&self, error: Error) {
        self.caller.fail(error);
    }
}

/// Why a request cannot go on after a token that was chosen among logits of which none is a number.
fn no_number(sampled: &Sampled) -> Option<Error> {
    (!sampled.logprob.is_finite()).then(|| super::no_number("for any token"))
}

/// The answer to a row that gives one token.
fn take_one(results: &mut SampleResults) -> Sampled {
    results.take_next().next().expect("invariant: a backend answers every row")
}
