//! `Gemma2ForCausalLM` (Hugging Face's `modeling_gemma2.py`): a Llama with RMSNorm by 1 + weight, before and after each block's
//! parts; embedding times sqrt(hidden); GELU gates; every other layer with a sliding window; soft caps.

use super::llama::{Layer, Llama, Norms};
use super::{Architecture, Bias, Loader, RawConfig};
use crate::backend::Backend;
use crate::config::{Activation, ModelConfig, RopeConfig};
use crate::error::Result;

/// The architecture.
pub(super) struct Gemma2;

const NORMS: Norms = Norms {
    before_attention: Some("input_layernorm"),
    after_attention: Some("post_attention_layernorm"),
    before_mlp: Some("pre_feedforward_layernorm"),
    after_mlp: Some("post_feedforward_layernorm"),
};

/// Layers of the 27B model, whose GGUF does not tell that its scores are scaled by hidden / heads.
const NUM_LAYERS_27B: usize = 46;

fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
    let (hidden_size, num_attention_heads) = (raw.length("hidden_size")?, raw.length("num_attention_heads")?);
    let num_hidden_layers = raw.num_layers()?;
    let head_dim = raw.opt_length("head_dim")?.unwrap_or(256);
    let query_scalar = match raw.opt_float("query_pre_attn_scalar")? {
        Some(scalar) => scalar,
        None if num_hidden_layers == NUM_LAYERS_27B => (hidden_size / num_attention_heads) as f32,
        None => 256.0,
    };
    let window = raw.length_or("sliding_window", 4096)?;
    let sliding_window = match raw.layer_types(num_hidden_layers)? {
        Some(slides) => slides.into_iter().map(|slides| window.filter(|_| slides)).collect(),
        None => (0..num_hidden_layers).map(|i| window.filter(|_| i % 2 == 0)).collect(),
    };
    Ok(ModelConfig {
        architecture: raw.architecture()?.into(),
        hidden_size,
        intermediate_size: raw.length("intermediate_size")?,
        experts: None,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: raw.opt_length("num_key_value_heads")?.unwrap_or(4),
        head_dim,
        vocab_size: raw.length("vocab_size")?,
        max_position_embeddings: raw.opt_length("max_position_embeddings")?.unwrap_or(8192),
        norm_eps: raw.opt_float("rms_norm_eps")?.unwrap_or(1e-6),
        rope: RopeConfig { rope_theta: raw.rope_theta(10_000.0)?, rotary_dim: head_dim, scaling: raw.rope_scaling()? },
        local_rope: None,
        rope_layers: vec![true; num_hidden_layers],
        qk_norm: None,
        norm_offset: 1.0,
        interleaved_rope: false,
        embedding_scale: (hidden_size as f32).sqrt(),
        tie_word_embeddings: raw.bool_or("tie_word_embeddings", true)?,
        attention_bias: raw.bool_or("attention_bias", false)?,
        mlp_bias: false,
        hidden_act: raw.activation("hidden_activation", Activation::GeluTanh)?,
        attention_scale: 1.0 / query_scalar.sqrt(),
        attn_logit_softcapping: raw.float_or("attn_logit_softcapping", 50.0)?,
        logit_scale: 1.0,
        final_logit_softcapping: raw.float_or("final_logit_softcapping", 30.0)?,
        sliding_window,
        bos_token_id: raw.bos_token_id()?,
        eos_token_ids: raw.eos_token_ids()?,
    })
}

impl<B: Backend> Architecture<B> for Gemma2 {
    type Model = Llama<B>;
    const NAME: &'static str = "Gemma2ForCausalLM";
    const GGUF_NAME: Option<&'static str> = Some("gemma2");

    fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
        parse_config(raw)
    }

    fn load(loader: &Loader<'_, B>) -> Result<Llama<B>> {
        let bias = Bias::from(loader.config.attention_bias);
        Llama::load_with(loader, |loader, idx| Layer::load(loader, idx, &NORMS, [bias, bias]))
    }
}
