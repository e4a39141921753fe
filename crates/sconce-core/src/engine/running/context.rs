//! [`RequestContext`]: what stays the same for as long as a request runs.

use std::sync::Arc;

use crate::config::SamplingParams;
use crate::engine::stream::PromptInfo;
use crate::sample::{self, FinishKind};

/// What is the same for all requests of an engine.
pub(in crate::engine) struct Limits {
    /// End ids of the model.
    pub(in crate::engine) eos_token_ids: Vec<u32>,
    /// The longest sequence.
    pub(in crate::engine) max_model_len: usize,
}

/// What stays the same for as long as a request runs.
pub(in crate::engine) struct RequestContext {
    pub(super) prompt: Arc<PromptInfo>,
    pub(super) params: SamplingParams,
    pub(super) seed: u64,
    /// Ids that end a sequence: the model's unless they are ignored, and the request's. Each once.
    pub(super) end_token_ids: Vec<u32>,
    /// How many of them, at the front, are the model's.
    num_eos_token_ids: usize,
    /// Tokens that a sequence may have at most, prompt and output.
    max_len: usize,
}

impl RequestContext {
    pub(super) fn new(prompt: Arc<PromptInfo>, params: SamplingParams, limits: &Limits) -> Self {
        let mut end_token_ids: Vec<u32> = Vec::new();
        let mut add = |ids: &[u32]| {
            for &id in ids {
                if !end_token_ids.contains(&id) {
                    end_token_ids.push(id);
                }
            }
            end_token_ids.len()
        };
        let num_eos_token_ids = if params.ignore_eos { 0 } else { add(&limits.eos_token_ids) };
        add(&params.stop_token_ids);
        let max_len = params
            .max_tokens
            .map_or(limits.max_model_len, |max| prompt.token_ids.len().saturating_add(max).min(limits.max_model_len));
        let seed = params.seed.unwrap_or_else(sample::random_seed);
        Self { prompt, params, seed, end_token_ids, num_eos_token_ids, max_len }
    }

    /// Tokens that a sequence may generate at most.
    pub(super) fn max_tokens(&self) -> usize {
        self.max_len - self.prompt.token_ids.len()
    }

    /// Whether the token after position `pos` is the first that is generated.
    pub(super) fn is_first(&self, pos: usize) -> bool {
        pos + 1 == self.prompt.token_ids.len()
    }

    /// Whether the token after position `pos` is the last that a sequence may have.
    pub(super) fn is_last(&self, pos: usize) -> bool {
        pos + 2 >= self.max_len
    }

    /// Tokens that can follow a sequence of so many, but for the last that it may have.
    pub(super) fn max_drafts(&self, len: usize) -> usize {
        self.max_len.saturating_sub(len + 1)
    }

    /// How a token ends a sequence, if it does.
    pub(super) fn end_kind(&self, token_id: u32) -> Option<FinishKind> {
        let at = self.end_token_ids.iter().position(|&id| id == token_id)?;
        Some(if at < self.num_eos_token_ids { FinishKind::EndToken } else { FinishKind::Stop })
    }
}
