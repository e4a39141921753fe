//! [`Sampling`]: a request whose sequences are sampled, each for itself.

use super::sequence::SequenceState;
use super::{Caller, NewToken, RequestContext};
use crate::engine::output::{CompletionOutput, FinishReason, StreamEvent, TokenEvent};
use crate::sample::{SampleInput, Sampled};
use crate::text::{GrammarMatcher, Tokenizer};

/// A request whose sequences are sampled, each for itself.
pub(super) struct Sampling {
    /// One until the prompt is computed.
    sequences: Vec<SequenceState>,
    /// How many there are to be: one where all would be equal.
    num_sequences: usize,
    /// Where more are generated than returned: what each has said. The caller gets the best of them.
    ranked: Option<Ranked>,
}

struct Ranked {
    outputs: Vec<CompletionOutput>,
    has_changed: bool,
}

impl Sampling {
    pub(super) fn new(context: &RequestContext, grammar: Option<GrammarMatcher>) -> Self {
        let params = &context.params;
        let best_of = params.best_of.unwrap_or(params.n);
        let num_sequences = if params.is_greedy() { 1 } else { best_of };
        let outputs = || vec![CompletionOutput::default(); best_of];
        Self {
            sequences: vec![SequenceState::new(context, grammar)],
            num_sequences,
            ranked: (num_sequences > params.n).then(|| Ranked { outputs: outputs(), has_changed: false }),
        }
    }

    /// Sequences that are computed, once the prompt is.
    pub(super) fn num_sequences(&self) -> usize {
        self.num_sequences
    }

    /// Tokens of all sequences that are computed.
    pub(super) fn num_generated(&self) -> usize {
        self.sequences.iter().map(|s| s.num_generated).sum()
    }

    /// Makes the first sequence's state that of all, and returns what each continues; `None`: there is to be but one.
    pub(super) fn fork(&mut self) -> Option<Vec<usize>> {
        let state = self.sequences[0].clone();
        self.sequences.resize(self.num_sequences, state);
        (self.num_sequences > 1).then(|| vec![0; self.num_sequences])
    }

    /// What the token after position `pos` of sequence `idx` is chosen by. Until they fork, all are as the first.
    pub(super) fn sample_input<'a>(&'a self, context: &'a RequestContext, pos: usize, idx: usize) -> SampleInput<'a> {
        self.sequences.get(idx).unwrap_or(&self.sequences[0]).sample_input(context, pos, idx)
    }

    /// A sequence that runs.
    pub(super) fn sequence(&mut self, idx: usize) -> &mut SequenceState {
        &mut self.sequences[idx]
    }

    /// Takes the next token of sequence `idx`, and tells the caller of it.
    pub(super) fn push(
        &mut self,
        context: &RequestContext,
        caller: &Caller,
        tokenizer: &Tokenizer,
        sampled: Sampled,
        idx: usize,
    ) -> NewToken {
        let token_id = sampled.token_id;
        let event = TokenEvent { index: idx, ..self.sequences[idx].push(context, tokenizer, sampled) };
        let is_last = event.finish.is_some();
        self.tell(context, caller, event);
        NewToken { index: idx, token_id, is_last }
    }

    /// Tells the caller of a sequence, and of all that are the same as it; or keeps it to be ranked.
    fn tell(&mut self, context: &RequestContext, caller: &Caller, event: TokenEvent) {
        if let Some(ranked) = &mut self.ranked {
            ranked.has_changed = true;
            return ranked.outputs[event.index].push(event);
        }
        for index in 1..if self.num_sequences == 1 { context.params.n } else { 1 } {
            caller.send(StreamEvent::Token(TokenEvent { index, ..event.clone() }));
        }
        caller.send(StreamEvent::Token(event));
    }

    /// Whether the ranking has changed since it was last asked for.
    pub(super) fn take_change(&mut self) -> bool {
        self.ranked.as_mut().is_some_and(|ranked| std::mem::take(&mut ranked.has_changed))
    }

    /// The best `n` by cumulative logprob, best first; `None` where all are returned.
    pub(super) fn ranked_outputs(&self, n: usize) -> Option<Vec<CompletionOutput>> {
        let outputs = &self.ranked.as_ref()?.outputs;
        let score = |idx: &usize| self.sequences.get(*idx).map_or(0.0, |s| s.cumulative_logprob);
        let mut order: Vec<usize> = (0..outputs.len()).collect();
        order.sort_by(|a, b| score(b).total_cmp(&score(a)));
        let best = order.into_iter().take(n).enumerate();
        Some(best.map(|(index, idx)| CompletionOutput { index, ..outputs[idx].clone() }).collect())
    }

    /// Ends every sequence that has not ended.
    pub(super) fn abort(&mut self, context: &RequestContext, caller: &Caller, tokenizer: &Tokenizer) {
        self.fork();
        for idx in 0..self.sequences.len() {
            if !self.sequences[idx].has_ended() {
                let event = self.sequences[idx].end(context, tokenizer, FinishReason::Abort);
                self.tell(context, caller, TokenEvent { index: idx, ..event });
            }
        }
    }
}
