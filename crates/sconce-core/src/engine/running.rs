//! [`RunningRequest`]: what the engine knows of a request beside its tokens: how to sample, and what to tell the caller.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;

use super::output::{Finish, FinishReason, StopReason, StreamEvent, TokenEvent, TokenLogprobs, Usage};
use super::stream::PromptInfo;
use crate::config::SamplingParams;
use crate::error::{Error, Result};
use crate::sample::{self, SampleInput, Sampled, Sampler, TokenCounts};
use crate::text::{Detokenizer, StopMatcher, Tokenizer};

/// What is the same for all requests of an engine.
pub(super) struct Limits {
    /// End ids of the model.
    pub(super) eos_token_ids: Vec<u32>,
    /// The longest sequence.
    pub(super) max_model_len: usize,
}

/// A request on its way through the inbox.
pub(crate) struct QueuedRequest {
    pub(super) prompt: Arc<PromptInfo>,
    pub(super) params: SamplingParams,
    pub(super) events: UnboundedSender<Result<StreamEvent>>,
}

/// A request that the scheduler knows.
pub(super) struct RunningRequest {
    prompt: Arc<PromptInfo>,
    params: SamplingParams,
    events: UnboundedSender<Result<StreamEvent>>,
    seed: u64,
    /// The sequences that are computed: fewer than n where all n are equal.
    sequences: Vec<SequenceState>,
    /// Ids that end a sequence, the model's and the request's.
    end_token_ids: Vec<u32>,
    /// Tokens that a sequence may have at most, prompt and output.
    max_len: usize,
    prompt_logprobs: Vec<Option<TokenLogprobs>>,
}

/// What one sequence has said so far.
#[derive(Clone)]
struct SequenceState {
    counts: TokenCounts,
    detokenizer: Detokenizer,
    stop_matcher: StopMatcher,
    cumulative_logprob: f64,
    num_generated: usize,
}

impl RunningRequest {
    pub(super) fn new(request: QueuedRequest, limits: &Limits) -> Self {
        let QueuedRequest { prompt, params, events } = request;
        let mut end_token_ids = params.stop_token_ids.clone();
        if !params.ignore_eos {
            end_token_ids.extend(&limits.eos_token_ids);
        }
        let max_len = params
            .max_tokens
            .map_or(limits.max_model_len, |max| prompt.token_ids.len().saturating_add(max).min(limits.max_model_len));
        let state = SequenceState {
            counts: TokenCounts::new(&prompt.token_ids),
            detokenizer: Detokenizer::new(
                &prompt.token_ids,
                params.skip_special_tokens,
                params.spaces_between_special_tokens,
            ),
            stop_matcher: StopMatcher::new(&params.stop, params.include_stop_str_in_output),
            cumulative_logprob: 0.0,
            num_generated: 0,
        };
        Self {
            seed: params.seed.unwrap_or_else(sample::random_seed),
            sequences: vec![state],
            end_token_ids,
            max_len,
            prompt_logprobs: params.prompt_logprobs.map_or(Vec::new(), |_| vec![None]),
            prompt,
            params,
            events,
        }
    }

    pub(super) fn prompt_ids(&self) -> &[u32] {
        &self.prompt.token_ids
    }

    pub(super) fn wants_prompt_logprobs(&self) -> bool {
        self.params.prompt_logprobs.is_some()
    }

    /// Whether the caller has gone.
    pub(super) fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    /// Sequences that are to be computed: one where all n would be the same.
    pub(super) fn num_computed(&self) -> usize {
        if self.params.is_greedy() { 1 } else { self.params.n }
    }

    /// Makes the first sequence's state that of all.
    pub(super) fn fork(&mut self) {
        let state = self.sequences[0].clone();
        self.sequences.resize(self.num_computed(), state);
    }

    /// Takes the logits after prompt position `pos`.
    pub(super) fn push_prompt_logits(&mut self, sampler: &mut Sampler, logits: &[f32], pos: usize) {
        let Some(num_top) = self.params.prompt_logprobs else { return };
        if pos + 1 >= self.prompt.token_ids.len() || self.prompt_logprobs.len() != pos + 1 {
            return;
        }
        let logprobs = sampler.prompt_logprobs(logits, self.prompt.token_ids[pos + 1], num_top);
        self.prompt_logprobs.push(Some(logprobs));
    }

    /// Sends the prompt's logprobs, once they are complete.
    pub(super) fn send_prompt_logprobs(&mut self) {
        if self.wants_prompt_logprobs() {
            let logprobs = std::mem::take(&mut self.prompt_logprobs);
            self.send(StreamEvent::PromptLogprobs(logprobs));
        }
    }

    /// Chooses the next token of sequence `idx`.
    pub(super) fn sample(&mut self, sampler: &mut Sampler, logits: &[f32], idx: usize) -> Sampled {
        let state = &self.sequences[idx];
        sampler.sample(
            logits,
            &SampleInput {
                params: &self.params,
                counts: &state.counts,
                seed: self.seed,
                sequence_index: idx as u32,
                position: state.num_generated as u32,
                end_token_ids: &self.end_token_ids,
            },
        )
    }

    /// Takes the chosen token of sequence `idx`, tells the caller, and says whether the sequence has ended.
    pub(super) fn push_token(&mut self, tokenizer: &Tokenizer, idx: usize, sampled: Sampled) -> bool {
        let len = self.prompt.token_ids.len() + self.sequences[idx].num_generated + 1;
        let id = sampled.token_id;
        let is_end = self.end_token_ids.contains(&id);
        let (params, state) = (&self.params, &mut self.sequences[idx]);
        state.counts.push(id);
        state.num_generated += 1;
        state.cumulative_logprob += f64::from(sampled.logprob);
        let mut text = String::new();
        let mut matched = None;
        // The token that ends a sequence is no part of its text, unless stop texts are to be kept too.
        if !is_end || params.include_stop_str_in_output {
            let piece = state.detokenizer.push(tokenizer, id);
            matched = state.push_text(&piece, params.min_tokens, &mut text);
        }
        let reason = if is_end || matched.is_some() {
            Some(FinishReason::Stop)
        } else {
            (len >= self.max_len).then_some(FinishReason::Length)
        };
        if reason.is_some() && matched.is_none() {
            let rest = state.detokenizer.finish(tokenizer);
            matched = state.push_text(&rest, params.min_tokens, &mut text);
            if matched.is_none() {
                state.stop_matcher.finish(&mut text);
            }
        }
        let stop_token = params.stop_token_ids.contains(&id).then_some(StopReason::Token(id));
        let finish = reason.map(|reason| Finish {
            reason: if matched.is_some() { FinishReason::Stop } else { reason },
            stop_reason: matched.map(StopReason::Text).or(stop_token),
            cumulative_logprob: state.cumulative_logprob,
        });
        let is_finished = finish.is_some();
        let logprobs = sampled.logprobs.into_iter().collect();
        self.send_token(TokenEvent { index: idx, token_ids: vec![id], text, logprobs, finish });
        is_finished
    }

    /// Ends all sequences for a reason that is not their own.
    pub(super) fn abort(&self) {
        for index in 0..self.params.n {
            let cumulative_logprob = self.sequences.get(index).map_or(0.0, |s| s.cumulative_logprob);
            let finish = Finish { reason: FinishReason::Abort, stop_reason: None, cumulative_logprob };
            let event =
                TokenEvent { index, token_ids: vec![], text: String::new(), logprobs: vec![], finish: Some(finish) };
            self.send(StreamEvent::Token(event));
        }
        self.send_done();
    }

    /// Ends the request with an error.
    pub(super) fn fail(&self, error: Error) {
        // A caller that has gone needs no error.
        let _ = self.events.send(Err(error));
    }

    /// Tells the caller that every sequence has ended.
    pub(super) fn send_done(&self) {
        let computed: usize = self.sequences.iter().map(|s| s.num_generated).sum();
        let usage = Usage {
            prompt_tokens: self.prompt.token_ids.len(),
            completion_tokens: computed * self.params.n / self.num_computed(),
            cached_tokens: 0,
        };
        self.send(StreamEvent::Done(usage));
    }

    /// Sends a sequence's event, for every sequence that is the same as it.
    fn send_token(&self, event: TokenEvent) {
        for index in 1..if self.num_computed() == 1 { self.params.n } else { 1 } {
            self.send(StreamEvent::Token(TokenEvent { index, ..event.clone() }));
        }
        self.send(StreamEvent::Token(event));
    }

    fn send(&self, event: StreamEvent) {
        // A caller that has gone is noticed before the next step.
        let _ = self.events.send(Ok(event));
    }
}

impl SequenceState {
    /// Shows `piece` as far as no stop text may begin in it. Stop texts count from `min_tokens` on.
    fn push_text(&mut self, piece: &str, min_tokens: usize, out: &mut String) -> Option<String> {
        if self.num_generated < min_tokens {
            out.push_str(piece);
            return None;
        }
        self.stop_matcher.push(piece, out)
    }
}
