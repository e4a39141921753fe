//! `Gemma3ForCausalLM`, and the text part of `Gemma3ForConditionalGeneration` (Hugging Face's `modeling_gemma3.py`). A Gemma 2 without soft
//! caps, whose heads of q and k are normalised before they turn; of six layers five have a sliding window, and a RoPE of their own.

use super::gemma2::Gemma2;
use super::llama::Llama;
use super::{Architecture, Loader, RawConfig};
use crate::backend::Backend;
use crate::config::{Activation, ModelConfig, QkNorm, RopeConfig};
use crate::error::Result;

/// The architecture.
pub(super) struct Gemma3;

/// Layers of the 27B model, whose GGUF does not tell that its scores are scaled by hidden / heads.
const NUM_LAYERS_27B: usize = 62;

/// Every which layer sees all tokens.
const SLIDING_WINDOW_PATTERN: usize = 6;

fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
    let hidden_size = raw.length("hidden_size")?;
    let num_attention_heads = raw.opt_length("num_attention_heads")?.unwrap_or(8);
    let num_hidden_layers = raw.num_layers()?;
    let head_dim = raw.opt_length("head_dim")?.unwrap_or(256);
    let query_scalar = match raw.opt_float("query_pre_attn_scalar")? {
        Some(scalar) => scalar,
        None if num_hidden_layers == NUM_LAYERS_27B => (hidden_size / num_attention_heads) as f32,
        None => 256.0,
    };
    let window = raw.length_or("sliding_window", 4096)?;
    let (full, local) = (raw.rope_of("full_attention"), raw.rope_of("sliding_attention"));
    let local_theta = raw.opt_float("rope_local_base_freq")?.unwrap_or(10_000.0);
    Ok(ModelConfig {
        architecture: raw.architecture()?.into(),
        hidden_size,
        intermediate_size: raw.length("intermediate_size")?,
        experts: None,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: raw.opt_length("num_key_value_heads")?.unwrap_or(4),
        head_dim,
        vocab_size: raw.opt_length("vocab_size")?.unwrap_or(262_208),
        max_position_embeddings: raw.opt_length("max_position_embeddings")?.unwrap_or(131_072),
        norm_eps: raw.opt_float("rms_norm_eps")?.unwrap_or(1e-6),
        rope: RopeConfig { rope_theta: full.rope_theta(1e6)?, rotary_dim: head_dim, scaling: full.rope_scaling()? },
        local_rope: Some(RopeConfig {
            rope_theta: local.rope_theta(local_theta)?,
            rotary_dim: head_dim,
            scaling: local.rope_scaling()?,
        }),
        rope_layers: vec![true; num_hidden_layers],
        qk_norm: Some(QkNorm::EachHead),
        norm_offset: 1.0,
        interleaved_rope: false,
        embedding_scale: (hidden_size as f32).sqrt(),
        tie_word_embeddings: raw.bool_or("tie_word_embeddings", true)?,
        attention_bias: raw.bool_or("attention_bias", false)?,
        mlp_bias: false,
        hidden_act: raw.activation("hidden_activation", Activation::GeluTanh)?,
        attention_scale: 1.0 / query_scalar.sqrt(),
        attn_logit_softcapping: raw.opt_float("attn_logit_softcapping")?,
        logit_scale: 1.0,
        final_logit_softcapping: raw.opt_float("final_logit_softcapping")?,
        sliding_window: raw.windows(window, num_hidden_layers, SLIDING_WINDOW_PATTERN)?,
        bos_token_id: raw.bos_token_id()?,
        eos_token_ids: raw.eos_token_ids()?,
    })
}

impl<B: Backend> Architecture<B> for Gemma3 {
    type Model = Llama<B>;
    const NAME: &'static str = "Gemma3ForCausalLM";
    const WITH_IMAGES: Option<&'static str> = Some("Gemma3ForConditionalGeneration");
    const GGUF_NAME: Option<&'static str> = Some("gemma3");

    fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
        if raw.bool_or("use_bidirectional_attention", false)? {
            return Err(raw.error("use_bidirectional_attention", "true is not supported"));
        }
        parse_config(raw)
    }

    fn load(loader: &Loader<'_, B>) -> Result<Llama<B>> {
        <Gemma2 as Architecture<B>>::load(loader)
    }
}
