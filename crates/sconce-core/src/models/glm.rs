//! `GlmForCausalLM`: GLM-4-9B in Hugging Face's form (`modeling_glm.py`). A Llama whose RoPE turns neighbours of a part of each head, with
//! biases of q, k and v, and gate and up stored as one matrix.

use super::llama::{self, Llama, Mlp, Norms};
use super::{Architecture, Bias, Loader, RawConfig};
use crate::backend::Backend;
use crate::config::ModelConfig;
use crate::error::Result;

/// The architecture.
pub(super) struct Glm;

/// The width of a head where nothing is said.
const HEAD_DIM: usize = 128;

/// The config of either generation.
pub(super) fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
    let mut config = llama::parse_config_with(raw, HEAD_DIM, raw.rope_scaling()?)?;
    if !raw.contains("num_key_value_heads") {
        config.num_key_value_heads = 2;
    }
    if !raw.contains("max_position_embeddings") {
        config.max_position_embeddings = 131_072;
    }
    if !raw.contains("rms_norm_eps") {
        config.norm_eps = 1.5625e-7;
    }
    config.rope.rotary_dim = raw.rotary_dim(config.head_dim, 0.5)?;
    config.attention_bias = raw.bool_or("attention_bias", true)?;
    Ok(ModelConfig { interleaved_rope: true, mlp_bias: false, ..config })
}

/// A layer of either generation, whose norms have these names.
pub(super) fn load_layer<B: Backend>(loader: &Loader<'_, B>, idx: usize, norms: &Norms) -> Result<llama::Layer<B>> {
    let biases = [Bias::from(loader.config.attention_bias), Bias::Absent];
    llama::Layer::load_with(loader, idx, norms, biases, Mlp::load_fused(loader, idx, norms)?)
}

impl<B: Backend> Architecture<B> for Glm {
    type Model = Llama<B>;
    const NAME: &'static str = "GlmForCausalLM";
    const GGUF_NAME: Option<&'static str> = None;

    fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
        parse_config(raw)
    }

    fn load(loader: &Loader<'_, B>) -> Result<Llama<B>> {
        Llama::load_with(loader, |loader, idx| load_layer(loader, idx, &llama::NORMS))
    }
}
