//! [`SequenceState`]: what one sequence has said so far.

use super::{Ahead, RequestContext, Seen};
use crate::engine::output::{Finish, FinishReason, StopReason, TokenEvent};
use crate::error::{Error, Result};
use crate::sample::{SampleInput, Sampled, TokenCounts};
use crate::text::{Detokenizer, GrammarMatcher, StopMatcher, Tokenizer};

/// What one sequence has said so far.
#[derive(Clone)]
pub(super) struct SequenceState {
    counts: TokenCounts,
    detokenizer: Detokenizer,
    stop_matcher: StopMatcher,
    grammar: Option<GrammarMatcher>,
    pub(super) cumulative_logprob: f64,
    pub(super) num_generated: usize,
    has_ended: bool,
}

impl SequenceState {
    /// A sequence that has generated nothing.
    pub(super) fn new(context: &RequestContext, grammar: Option<GrammarMatcher>) -> Self {
        let (prompt_ids, params) = (&context.prompt.token_ids, &context.params);
        Self {
            counts: TokenCounts::new(prompt_ids),
            detokenizer: Detokenizer::new(prompt_ids, params.skip_special_tokens, params.spaces_between_special_tokens)
                .with_marks(context.prompt.marks.clone()),
            stop_matcher: StopMatcher::new(&params.stop, params.include_stop_str_in_output),
            grammar,
            cumulative_logprob: 0.0,
            num_generated: 0,
            has_ended: false,
        }
    }

    /// Whether its end has been told.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// What its next token is chosen by. Errors are its grammar's.
    pub(super) fn seen(&mut self) -> Result<Seen> {
        let allowed = self.grammar.as_mut().map(GrammarMatcher::allowed).transpose()?;
        Ok(Seen { allowed, ..Seen::default() })
    }

    /// What it would be with drafts behind, of which there are none yet.
    pub(super) fn ahead(&self, has_penalties: bool) -> Ahead {
        let counts = has_penalties.then(|| self.counts.clone());
        Ahead { counts, grammar: self.grammar.as_ref().map(GrammarMatcher::apart), is_void: false }
    }

    /// Tokens that its grammar has follow.
    pub(super) fn forced(&mut self) -> Vec<u32> {
        self.grammar.as_mut().map_or(Vec::new(), GrammarMatcher::forced)
    }

    /// How many of some drafts its grammar allows.
    pub(super) fn num_allowed(&self, drafts: &[u32]) -> usize {
        self.grammar.as_ref().map_or(drafts.len(), |grammar| grammar.apart().push_allowed(drafts))
    }

    /// Why its grammar has not taken a token, if there is one.
    pub(super) fn refusal(&self) -> Option<Error> {
        self.grammar.as_ref().and_then(GrammarMatcher::error)
    }

    /// What the token after position `pos` of the sequence, the `index`-th of its request, is chosen by. The token before it
    /// may not have been pushed yet, unless there are penalties.
    pub(super) fn sample_input<'a>(&'a self, context: &'a RequestContext, pos: usize, index: usize) -> SampleInput<'a> {
        SampleInput {
            params: &context.params,
            counts: &self.counts,
            seed: context.seed,
            sequence_index: index as u32,
            position: (pos + 1 - context.prompt.token_ids.len()) as u32,
            end_token_ids: &context.end_token_ids,
            allowed: None,
        }
    }

    /// Takes the next token of the sequence, and tells what it adds.
    pub(super) fn push(&mut self, context: &RequestContext, tokenizer: &Tokenizer, sampled: Sampled) -> TokenEvent {
        let (params, id) = (&context.params, sampled.token_id);
        let is_end = context.end_kind(id).is_some();
        self.counts.push(id);
        if let Some(grammar) = &mut self.grammar {
            // One that is not allowed comes where the model has no number for any that is.
            let _ = grammar.push(id);
        }
        self.num_generated += 1;
        self.cumulative_logprob += f64::from(sampled.logprob);
        let mut text = String::new();
        let mut matched = None;
        // The token that ends a sequence is no part of its text, unless stop texts are to be kept too.
        if !is_end || params.include_stop_str_in_output {
            let piece = self.detokenizer.push(tokenizer, id);
            matched = self.push_text(&piece, params.min_tokens, &mut text);
        }
        let reason = if is_end || matched.is_some() {
            Some(FinishReason::Stop)
        } else {
            (self.num_generated >= context.max_tokens()).then_some(FinishReason::Length)
        };
        if reason.is_some() && matched.is_none() {
            matched = self.flush(context, tokenizer, &mut text);
        }
        self.has_ended = reason.is_some();
        let stop_token = params.stop_token_ids.contains(&id).then_some(StopReason::Token(id));
        let finish = reason.map(|reason| Finish {
            reason: if matched.is_some() { FinishReason::Stop } else { reason },
            stop_reason: matched.map(StopReason::Text).or(stop_token),
            cumulative_logprob: self.cumulative_logprob,
            beam_score: None,
        });
        TokenEvent { index: 0, token_ids: vec![id], text, logprobs: sampled.logprobs.into_iter().collect(), finish }
    }

    /// Ends the sequence as it is.
    pub(super) fn end(&mut self, context: &RequestContext, tokenizer: &Tokenizer, reason: FinishReason) -> TokenEvent {
        self.has_ended = true;
        let mut text = String::new();
        let matched = self.flush(context, tokenizer, &mut text);
        let finish = Finish {
            reason: if matched.is_some() { FinishReason::Stop } else { reason },
            stop_reason: matched.map(StopReason::Text),
            cumulative_logprob: self.cumulative_logprob,
            beam_score: None,
        };
        TokenEvent { index: 0, token_ids: vec![], text, logprobs: vec![], finish: Some(finish) }
    }

    /// Shows what was held back, as far as no stop text is in it.
    fn flush(&mut self, context: &RequestContext, tokenizer: &Tokenizer, text: &mut String) -> Option<String> {
        let rest = self.detokenizer.finish(tokenizer);
        let matched = self.push_text(&rest, context.params.min_tokens, text);
        if matched.is_none() {
            self.stop_matcher.finish(text);
        }
        matched
    }

    /// Shows `piece` as far as no stop text may begin in it. Stop texts count from `min_tokens` on.
    fn push_text(&mut self, piece: &str, min_tokens: usize, out: &mut String) -> Option<String> {
        if self.num_generated < min_tokens {
            out.push_str(piece);
            return None;
        }
        self.stop_matcher.push(piece, out)
    }
}
