//! `Phi3ForCausalLM`: Phi-3 and Phi-3.5 mini and medium, Phi-4 and Phi-4 mini (Hugging Face's `modeling_phi3.py`). A Llama whose
//! q, k, v and whose gate, up are stored as one matrix each, with a sliding window. Of a head a part may turn, and by other angles in
//! sequences beyond the original context (`longrope`): these are computed anew there, as transformers does.

use super::llama::{self, Llama};
use super::norm::Norm;
use super::{Architecture, Bias, Loader, RawConfig};
use crate::backend::Backend;
use crate::config::{ModelConfig, RopeScaling};
use crate::error::Result;

/// The architecture.
pub(super) struct Phi3;

impl<B: Backend> Architecture<B> for Phi3 {
    type Model = Llama<B>;
    const NAME: &'static str = "Phi3ForCausalLM";
    const GGUF_NAME: Option<&'static str> = Some("phi3");

    fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
        let head_dim = raw.length("hidden_size")? / raw.length("num_attention_heads")?;
        let mut config = llama::parse_config_with(raw, head_dim, RopeScaling::Default)?;
        if !raw.contains("max_position_embeddings") {
            config.max_position_embeddings = 4096;
        }
        if !raw.contains("rms_norm_eps") {
            config.norm_eps = 1e-5;
        }
        config.rope.rotary_dim = raw.rotary_dim(config.head_dim, 1.0)?;
        config.rope.scaling = match raw.long_rope(config.rope.rotary_dim, config.max_position_embeddings)? {
            Some(long) => RopeScaling::Long(long),
            None => raw.rope_scaling()?,
        };
        config.sliding_window.fill(raw.opt_length("sliding_window")?);
        Ok(config)
    }

    fn load(loader: &Loader<'_, B>) -> Result<Llama<B>> {
        Llama::load_with(loader, load_layer)
    }
}

fn load_layer<B: Backend>(loader: &Loader<'_, B>, idx: usize) -> Result<llama::Layer<B>> {
    let config = loader.config;
    let name = |part: &str| format!("model.layers.{idx}.{part}");
    let (hidden, q) = (config.hidden_size, config.q_dim());
    let norm = |part: &str| Norm::load(loader, Some(&name(part)));
    Ok(llama::Layer {
        attention_norm: norm("input_layernorm")?,
        qkv: loader.linear(&[(name("self_attn.qkv_proj"), config.qkv_dim())], hidden, Bias::Absent)?,
        qk_norms: None,
        sinks: None,
        o: loader.output((name("self_attn.o_proj"), hidden), q, Bias::Absent, None)?,
        mlp_norm: norm("post_attention_layernorm")?,
        mlp: llama::Mlp::load_fused(loader, idx, &llama::NORMS)?,
    })
}
