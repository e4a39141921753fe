//! [`ModelConfig`]: what every architecture's config.json or GGUF metadata is normalised to.
//!
//! Each `models/<arch>.rs` maps its own config to this type. Field names are those of Hugging Face
//! configs where they have one.

use std::path::Path;

use crate::error::{Error, Result};
use crate::ops::attention;

/// What makes act(gate) * up of the two halves of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x * sigmoid(x).
    Silu,
    /// GELU, tanh approximation (`gelu_pytorch_tanh`, `gelu_new`).
    GeluTanh,
    /// x * sigmoid(1.702 x) of a gate of at most 7, times 1 + up, where up is from -7 to 7 (gpt-oss).
    ClampedSwiglu,
}

impl Activation {
    /// Of [`Activation::ClampedSwiglu`]: the greatest gate, and the greatest up of either sign.
    pub const SWIGLU_LIMIT: f32 = 7.0;
    /// Of the same: what a gate is multiplied by before the sigmoid.
    pub const SWIGLU_ALPHA: f32 = 1.702;
}

/// How RoPE frequencies are stretched beyond the trained context.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    Default,
    /// All frequencies divided by `factor`.
    Linear {
        /// How many times longer the context becomes.
        factor: f32,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// How many times longer the context becomes.
        factor: f32,
        /// Wavelengths above `original / low_freq_factor` are divided by `factor`.
        low_freq_factor: f32,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f32,
        /// The context of the first training, in tokens.
        original_max_position_embeddings: usize,
    },
    /// A divisor a frequency, as a GGUF's `rope_freqs.weight` stores it. Length: rotary_dim / 2.
    Factors(Vec<f32>),
    /// YaRN.
    Yarn(Yarn),
    /// Phi-3's `longrope`.
    Long(LongRope),
}

/// YaRN (Peng et al. 2023): frequencies that turn often within the original context are kept, those that turn seldom divided by `factor`,
/// with a ramp between.
#[derive(Debug, Clone, PartialEq)]
pub struct Yarn {
    /// How many times longer the context becomes.
    pub factor: f32,
    /// The context of the first training, in tokens.
    pub original_max_position_embeddings: usize,
    /// Turns within the original context from which on a frequency is kept.
    pub beta_fast: f32,
    /// Turns within the original context up to which a frequency is divided.
    pub beta_slow: f32,
    /// Whether the ramp begins and ends at whole dimensions.
    pub truncate: bool,
    /// Multiplied to cosines and sines.
    pub attention_factor: f32,
}

/// `longrope` (Ding et al. 2024) as Phi-3 has it: two sets of divisors, one a frequency. A sequence of at most
/// `original_max_position_embeddings` tokens turns by those of short sequences, a longer one by the others, either from its first
/// token on.
#[derive(Debug, Clone, PartialEq)]
pub struct LongRope {
    /// Of short sequences. Length: rotary_dim / 2.
    pub short_factors: Vec<f32>,
    /// Of long ones. Length: rotary_dim / 2.
    pub long_factors: Vec<f32>,
    /// Tokens of a short sequence, at most.
    pub original_max_position_embeddings: usize,
    /// Multiplied to cosines and sines, of either.
    pub attention_factor: f32,
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric series of frequencies.
    pub rope_theta: f32,
    /// How many of a head's dimensions turn; the others pass through.
    pub rotary_dim: usize,
    /// Stretching beyond the trained context.
    pub scaling: RopeScaling,
}

impl RopeScaling {
    /// Tokens of the context that it makes room for, where the model's config may give those of the first training; 0: it does not say.
    pub(crate) fn stretched_len(&self) -> usize {
        match self {
            Self::Yarn(yarn) => (yarn.original_max_position_embeddings as f32 * yarn.factor) as usize,
            _ => 0,
        }
    }
}

impl RopeConfig {
    /// Tokens of a sequence, at most, that turns by other angles than a longer one does; `None`: all sequences of at most
    /// `max_model_len` tokens turn alike.
    pub fn short_len(&self, max_model_len: usize) -> Option<usize> {
        match &self.scaling {
            RopeScaling::Long(long) => {
                Some(long.original_max_position_embeddings).filter(|&short_len| max_model_len > short_len)
            }
            _ => None,
        }
    }
}

/// What of q and of k an RMSNorm takes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head by itself, all by the same weights.
    EachHead,
    /// All heads, by a weight for each element.
    AllHeads,
}

/// Experts in place of one MLP: each token goes through some of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertsConfig {
    /// Experts of a layer.
    pub num_experts: usize,
    /// How many of them a token goes through.
    pub per_token: usize,
    /// Width of an expert between its two matrices.
    pub intermediate_size: usize,
    /// Whether the weights of a token's experts add up to 1. Elsewhere each is its share of all experts' exponentials.
    pub normalizes: bool,
}

/// The normalised description of a model. Lengths are in elements, contexts in tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The architecture's class name, as in config.json: `LlamaForCausalLM`.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP between its two matrices, where it is one.
    pub intermediate_size: usize,
    /// What every layer has in place of one MLP.
    pub experts: Option<ExpertsConfig>,
    /// Transformer blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Rows of the embedding and of the logits; can exceed the tokenizer's.
    pub vocab_size: usize,
    /// The longest context that the model is made for.
    pub max_position_embeddings: usize,
    /// Epsilon of RMSNorm or LayerNorm.
    pub norm_eps: f32,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// That of layers with a sliding window, where they have another.
    pub local_rope: Option<RopeConfig>,
    /// Whether each layer's q and k turn. Length: num_hidden_layers.
    pub rope_layers: Vec<bool>,
    /// Whether files have the rows of q and k for a RoPE that turns neighbours: loading gives them the order of halves.
    pub interleaved_rope: bool,
    /// How q and k go through an RMSNorm before they turn.
    pub qk_norm: Option<QkNorm>,
    /// Added to what is stored of RMSNorms: some store what they differ from 1.
    pub norm_offset: f32,
    /// Multiplied to embeddings, before they become the residual stream.
    pub embedding_scale: f32,
    /// Whether the logits use the embedding's matrix.
    pub tie_word_embeddings: bool,
    /// Whether q, k, v and o projections have biases.
    pub attention_bias: bool,
    /// Whether the MLP's projections have biases; of experts, what chooses them too.
    pub mlp_bias: bool,
    /// The gate's activation.
    pub hidden_act: Activation,
    /// Multiplied to q.k before the softmax.
    pub attention_scale: f32,
    /// cap * tanh(score / cap) on attention scores.
    pub attn_logit_softcapping: Option<f32>,
    /// Multiplied to the final logits, before they are capped.
    pub logit_scale: f32,
    /// cap * tanh(logit / cap) on the final logits.
    pub final_logit_softcapping: Option<f32>,
    /// The window of each layer in tokens, the query's own among them; `None`: every earlier token.
    /// Length: num_hidden_layers.
    pub sliding_window: Vec<Option<usize>>,
    /// Beginning-of-sequence id that config.json names.
    pub bos_token_id: Option<u32>,
    /// End ids that config.json, generation_config.json or GGUF metadata name.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Bytes of K and V for one token over all layers, with `head_bytes` for each of one head.
    pub fn kv_bytes_per_token(&self, head_bytes: usize) -> usize {
        2 * self.num_hidden_layers * self.num_key_value_heads * head_bytes
    }

    /// The window that no layer sees beyond, in tokens; `None`: some layer sees every earlier token.
    pub fn greatest_window(&self) -> Option<usize> {
        let windows: Option<Vec<usize>> = self.sliding_window.iter().copied().collect();
        windows?.into_iter().max()
    }

    /// Checks what the operations rely on. `path` is for the error.
    pub fn validate(&self, path: &Path) -> Result<()> {
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        let error = |message: String| Err(Error::file(path, message));
        if heads % kv_heads != 0 || heads / kv_heads > attention::MAX_GROUP {
            return error(format!(
                "num_attention_heads: expected a multiple, up to {}, of the {kv_heads} key and value heads, found {heads}",
                attention::MAX_GROUP
            ));
        }
        if self.head_dim == 0 {
            return error(format!("head_dim: {} hidden elements are too few for {heads} heads", self.hidden_size));
        }
        for rotary in [&self.rope].into_iter().chain(&self.local_rope).map(|rope| rope.rotary_dim) {
            if !rotary.is_multiple_of(2) || rotary > self.head_dim {
                return error(format!(
                    "rotary dimensions: expected an even number up to the head's {}, found {rotary}",
                    self.head_dim
                ));
            }
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return error(format!("epsilon of norms: expected a number, at least 0, found {}", self.norm_eps));
        }
        let bos = self.bos_token_id.iter().map(|id| ("bos_token_id", id));
        let mut ids = bos.chain(self.eos_token_ids.iter().map(|id| ("eos_token_id", id)));
        if let Some((name, id)) = ids.find(|(_, id)| **id as usize >= self.vocab_size) {
            return error(format!("{name}: token id {id} is outside the vocabulary of {}", self.vocab_size));
        }
        Ok(())
    }

    /// Columns of the fused q, k, v projection.
    pub fn qkv_dim(&self) -> usize {
        (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim
    }

    /// Columns of the attention's output, before its projection.
    pub fn q_dim(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }
}
