//! `CohereForCausalLM`: Command R and Aya (Hugging Face's `modeling_cohere.py`). A Phi with gated MLPs, norms without biases, a RoPE that turns
//! neighbours, and logits that are scaled.

use super::phi::{self, LayerNorm, Mlp, Phi};
use super::{Architecture, Bias, Loader, RawConfig, llama};
use crate::backend::Backend;
use crate::config::ModelConfig;
use crate::error::Result;

/// The architecture.
pub(super) struct Cohere;

/// Where nothing is said.
const ROPE_THETA: f32 = 500_000.0;

/// The config of either generation, but for windows. `rope_theta`: where nothing is said.
pub(super) fn parse_config(raw: &RawConfig, rope_theta: f32) -> Result<ModelConfig> {
    if raw.bool_or("use_qk_norm", false)? {
        return Err(raw.error("use_qk_norm", "true is not supported"));
    }
    let mut config = llama::parse_config(raw)?;
    if !raw.contains("max_position_embeddings") {
        config.max_position_embeddings = 8192;
    }
    config.rope.rope_theta = raw.rope_theta(rope_theta)?;
    Ok(ModelConfig {
        norm_eps: raw.opt_float("layer_norm_eps")?.unwrap_or(1e-5),
        interleaved_rope: true,
        tie_word_embeddings: raw.bool_or("tie_word_embeddings", true)?,
        mlp_bias: false,
        logit_scale: raw.opt_float("logit_scale")?.unwrap_or(0.0625),
        ..config
    })
}

impl<B: Backend> Architecture<B> for Cohere {
    type Model = Phi<B>;
    const NAME: &'static str = "CohereForCausalLM";
    const GGUF_NAME: Option<&'static str> = Some("command-r");

    fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
        parse_config(raw, ROPE_THETA)
    }

    fn load(loader: &Loader<'_, B>) -> Result<Phi<B>> {
        let norm = LayerNorm::load_scaled(loader, "model.norm", Bias::Absent, loader.config.logit_scale)?;
        Phi::load_with(loader, norm, Bias::Absent, load_layer)
    }
}

fn load_layer<B: Backend>(loader: &Loader<'_, B>, idx: usize) -> Result<phi::Layer<B>> {
    let config = loader.config;
    let name = |part: &str| format!("model.layers.{idx}.{part}");
    let (hidden, inter, bias) = (config.hidden_size, config.intermediate_size, Bias::from(config.attention_bias));
    let gate_up = [(name("mlp.gate_proj"), inter), (name("mlp.up_proj"), inter)];
    Ok(phi::Layer {
        norm: LayerNorm::load(loader, &name("input_layernorm"), Bias::Absent)?,
        qkv: phi::load_qkv(loader, idx, bias)?,
        o: loader.linear(&[(name("self_attn.o_proj"), hidden)], config.q_dim(), bias)?,
        mlp: Mlp::Gated {
            gate_up: loader.linear(&gate_up, hidden, Bias::Absent)?,
            down: loader.linear(&[(name("mlp.down_proj"), hidden)], inter, Bias::Absent)?,
        },
    })
}
