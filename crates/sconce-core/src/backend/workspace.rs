//! [`Workspace`]: every activation buffer, allocated once.

use super::{Backend, BufferRole};
use crate::config::ModelConfig;
use crate::error::Result;

/// Every activation buffer of a model. T: tokens of the step; R: rows whose logits are wanted.
pub struct Workspace<B: Backend> {
    /// [T, hidden_size]: the residual stream.
    pub residual: B::Buffer,
    /// [T, hidden_size]: what the last block adds to the residual stream.
    pub delta: B::Buffer,
    /// [T, hidden_size]: the normalised input of a block.
    pub normed: B::Buffer,
    /// [T, (num_heads + 2 * num_kv_heads) * head_dim]: q, k, v.
    pub qkv: B::Buffer,
    /// [T, num_heads * head_dim]: what attention gives.
    pub attn_out: B::Buffer,
    /// [T, 2 * intermediate_size]: gate, up. Without columns where there are experts.
    pub gate_up: B::Buffer,
    /// [T, intermediate_size]: act(gate) * up. The same.
    pub mlp_act: B::Buffer,
    /// [T, num_experts]: by which experts are chosen.
    pub router_logits: B::Buffer,
    /// [R, hidden_size]: the residual stream's rows whose logits are wanted.
    pub last_residual: B::Buffer,
    /// [R, hidden_size]: the same rows of `delta`.
    pub last_delta: B::Buffer,
    /// [R, hidden_size]: the normalised input of the head.
    pub last_normed: B::Buffer,
    /// [R, vocab_size].
    pub logits: B::Buffer,
}

impl<B: Backend> Workspace<B> {
    /// Buffers for at most `max_tokens` tokens and `max_logits` rows of logits in a step.
    pub fn new(backend: &B, config: &ModelConfig, max_tokens: usize, max_logits: usize) -> Result<Self> {
        let residual = |rows| backend.buffer(rows, config.hidden_size, BufferRole::Residual);
        let tokens = |cols| backend.buffer(max_tokens, cols, BufferRole::Activation);
        let rows = |cols| backend.buffer(max_logits, cols, BufferRole::Activation);
        let inter = if config.experts.is_some() { 0 } else { config.intermediate_size };
        let num_experts = config.experts.map_or(0, |experts| experts.num_experts);
        Ok(Self {
            residual: residual(max_tokens)?,
            delta: tokens(config.hidden_size)?,
            normed: tokens(config.hidden_size)?,
            qkv: tokens(config.qkv_dim())?,
            attn_out: tokens(config.q_dim())?,
            gate_up: tokens(2 * inter)?,
            mlp_act: tokens(inter)?,
            router_logits: backend.buffer(max_tokens, num_experts, BufferRole::RouterLogits)?,
            last_residual: residual(max_logits)?,
            last_delta: rows(config.hidden_size)?,
            last_normed: rows(config.hidden_size)?,
            logits: backend.buffer(max_logits, config.vocab_size, BufferRole::Logits)?,
        })
    }
}
