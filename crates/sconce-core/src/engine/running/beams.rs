//! [`Beams`]: a request that is answered by beam search.

use super::sequence::SequenceState;
use super::{Growth, NewToken, RequestContext};
use crate::config::BeamParams;
use crate::engine::output::{CompletionOutput, FinishReason};
use crate::sample::{BeamCandidate, BeamLimits, BeamSearch, BeamSource, FinishKind, SampleInput, Sampled};
use crate::text::{GrammarMatcher, Tokenizer};

/// A beam search, and what belongs to its beams.
///
/// The logits of the beams come one by one, and not always in the same step: what can follow each is kept until it is
/// known of all. Which tokens those are and what becomes of them depends on nothing else.
pub(super) struct Beams {
    search: BeamSearch,
    /// The beams that run, best first.
    running: Vec<Beam>,
    /// The hypotheses that have finished, by slot.
    finished: Vec<CompletionOutput>,
    /// What can follow the beams whose logits have come.
    candidates: Vec<BeamCandidate>,
    /// Of each candidate: the token, and what is to be reported of it.
    sampled: Vec<Sampled>,
    /// Beams whose logits have come.
    num_ready: usize,
    has_changed: bool,
}

#[derive(Clone)]
struct Beam {
    state: SequenceState,
    output: CompletionOutput,
}

impl Beams {
    pub(super) fn new(context: &RequestContext, params: BeamParams, grammar: Option<GrammarMatcher>) -> Self {
        let limits = BeamLimits {
            prompt_len: context.prompt.token_ids.len(),
            max_tokens: context.max_tokens(),
            num_end_token_ids: context.end_token_ids.len(),
        };
        Self {
            search: BeamSearch::new(params, limits),
            running: vec![Beam { state: SequenceState::new(context, grammar), output: CompletionOutput::default() }],
            finished: Vec::new(),
            candidates: Vec::new(),
            sampled: Vec::new(),
            num_ready: 0,
            has_changed: false,
        }
    }

    /// A beam that runs.
    pub(super) fn sequence(&mut self, idx: usize) -> &mut SequenceState {
        &mut self.running[idx].state
    }

    /// What the tokens that can follow beam `idx`, whose last is at position `pos`, are chosen by, and how many are wanted.
    pub(super) fn sample_input<'a>(
        &'a self,
        context: &'a RequestContext,
        pos: usize,
        idx: usize,
    ) -> (SampleInput<'a>, usize) {
        (self.running[idx].state.sample_input(context, pos, idx), self.search.num_candidates())
    }

    /// Takes what can follow beam `idx`. When that is known of all, the search goes on.
    pub(super) fn push(
        &mut self,
        context: &RequestContext,
        tokenizer: &Tokenizer,
        sampled: impl Iterator<Item = Sampled>,
        idx: usize,
        growth: &mut Growth,
    ) {
        let num_before = self.sampled.len();
        self.sampled.extend(sampled);
        self.candidates.extend(self.sampled[num_before..].iter().map(|sampled| BeamCandidate {
            parent: idx,
            token_id: sampled.token_id,
            logprob: sampled.logprob,
        }));
        self.num_ready += 1;
        if self.num_ready == self.running.len() {
            self.step(context, tokenizer, growth);
            self.num_ready = 0;
            self.candidates.clear();
            self.sampled.clear();
            self.has_changed = true;
        }
    }

    fn step(&mut self, context: &RequestContext, tokenizer: &Tokenizer, growth: &mut Growth) {
        let Self { search, running, candidates, sampled, .. } = self;
        let step = search.step(candidates, |parent, token_id| ends(context, tokenizer, &running[parent], token_id));
        let find = |parent: usize, token_id: u32| {
            let at = candidates.iter().position(|c| c.parent == parent && c.token_id == token_id);
            sampled[at.expect("invariant: a beam goes on with one of its candidates")].clone()
        };
        let mut num_children = vec![0; running.len()];
        step.finished.iter().for_each(|ended| num_children[ended.parent] += 1);
        step.beams.iter().for_each(|beam| num_children[beam.parent] += 1);
        let mut running: Vec<_> = std::mem::take(running).into_iter().map(Some).collect();
        // The last one that goes on from a beam has what it was; the others copy it.
        let mut child_of = |parent: usize| {
            num_children[parent] -= 1;
            let beam = if num_children[parent] == 0 { running[parent].take() } else { running[parent].clone() };
            beam.expect("invariant: a beam is left until its last child")
        };
        for ended in &step.finished {
            let Beam { mut state, mut output } = child_of(ended.parent);
            output.push(match ended.token_id {
                Some(token_id) => state.push(context, tokenizer, find(ended.parent, token_id)),
                None => state.end(context, tokenizer, FinishReason::Length),
            });
            if self.finished.len() <= ended.slot {
                self.finished.resize(ended.slot + 1, CompletionOutput::default());
            }
            self.finished[ended.slot] = output;
        }
        let mut next = Vec::with_capacity(step.beams.len());
        for (index, &beam) in step.beams.iter().enumerate() {
            let Beam { mut state, mut output } = child_of(beam.parent);
            output.push(state.push(context, tokenizer, find(beam.parent, beam.token_id)));
            next.push(Beam { state, output });
            growth.tokens.push(NewToken { index, token_id: beam.token_id, is_last: false });
        }
        growth.parents = Some(step.beams.iter().map(|beam| beam.parent).collect());
        self.running = next;
    }

    /// Whether the best have changed since it was last asked.
    pub(super) fn take_change(&mut self) -> bool {
        std::mem::take(&mut self.has_changed)
    }

    /// The best `n` hypotheses, best first: once the search is over, the answer. There may be fewer.
    pub(super) fn outputs(&self, n: usize) -> Vec<CompletionOutput> {
        let output = |(index, hypothesis): (usize, crate::sample::BeamHypothesis)| {
            let mut output = match hypothesis.source {
                BeamSource::Running(idx) => self.running[idx].output.clone(),
                BeamSource::Finished(slot) => self.finished[slot].clone(),
            };
            output.index = index;
            if let Some(finish) = &mut output.finish {
                finish.beam_score = Some(hypothesis.score);
            }
            output
        };
        self.search.best(n).into_iter().enumerate().map(output).collect()
    }

    /// Ends every beam that runs.
    pub(super) fn abort(&mut self, context: &RequestContext, tokenizer: &Tokenizer) {
        for Beam { state, output } in &mut self.running {
            output.push(state.end(context, tokenizer, FinishReason::Abort));
        }
    }
}

/// Whether a beam ends with a token, and how.
fn ends(context: &RequestContext, tokenizer: &Tokenizer, beam: &Beam, token_id: u32) -> Option<FinishKind> {
    if let Some(kind) = context.end_kind(token_id) {
        return Some(kind);
    }
    if context.params.stop.is_empty() {
        return None;
    }
    let sampled = Sampled { token_id, logprob: 0.0, logprobs: None };
    let finish = beam.state.clone().push(context, tokenizer, sampled).finish?;
    (finish.reason == FinishReason::Stop).then_some(FinishKind::Stop)
}
