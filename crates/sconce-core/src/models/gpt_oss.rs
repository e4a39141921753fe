//! `GptOssForCausalLM`: gpt-oss-20b and -120b (Hugging Face's `modeling_gpt_oss.py`). A Llama whose every second layer has a window,
//! with biases everywhere, attention sinks, and experts with an activation of their own in place of MLPs.

use super::experts::{self, Experts, Names};
use super::llama::{self, Llama, Mlp};
use super::{Architecture, Bias, Loader, RawConfig};
use crate::backend::Backend;
use crate::config::{Activation, ExpertsConfig, ModelConfig, RopeScaling, Yarn};
use crate::error::Result;

/// The architecture.
pub(super) struct GptOss;

/// Its name in GGUF files.
const GGUF_NAME: &str = "gpt-oss";

/// What the experts' matrices are called, each by itself: checkpoints have those of a layer in one tensor.
const NAMES: Names =
    Names { router: "mlp.router", experts: "mlp.experts", gate: "gate_proj", up: "up_proj", down: "down_proj" };

/// The width of a head, and its RoPE, where a config says nothing of them.
const HEAD_DIM: usize = 64;
const ROPE_THETA: f32 = 150_000.0;
const YARN: Yarn = Yarn {
    factor: 32.0,
    original_max_position_embeddings: 4096,
    beta_fast: 32.0,
    beta_slow: 1.0,
    truncate: false,
    attention_factor: 1.346_573_6,
};

fn scaling(raw: &RawConfig) -> Result<RopeScaling> {
    Ok(match raw.rope_scaling()? {
        _ if !raw.contains("rope_scaling") && !raw.contains("rope_parameters") => RopeScaling::Yarn(YARN),
        // A GGUF does not say that the ramp is as it was in training.
        RopeScaling::Yarn(yarn) if raw.architecture()? == GGUF_NAME => {
            RopeScaling::Yarn(Yarn { truncate: false, ..yarn })
        }
        other => other,
    })
}

fn parse_experts(raw: &RawConfig, intermediate_size: usize) -> Result<ExpertsConfig> {
    for (key, only) in [("swiglu_limit", Activation::SWIGLU_LIMIT), ("swiglu_alpha", Activation::SWIGLU_ALPHA)] {
        if let Some(found) = raw.opt_float(key)?.filter(|&found| found != only) {
            return Err(raw.error(key, format!("only {only} is supported, found {found}")));
        }
    }
    const NUM_EXPERTS: &str = "num_local_experts";
    let config = ExpertsConfig {
        num_experts: raw.opt_length(NUM_EXPERTS)?.unwrap_or(128),
        per_token: raw.opt_length("num_experts_per_tok")?.unwrap_or(4),
        // A GGUF says it by itself.
        intermediate_size: raw.opt_length("moe_intermediate_size")?.unwrap_or(intermediate_size),
        normalizes: true,
    };
    experts::checked(raw, NUM_EXPERTS, config)
}

impl<B: Backend> Architecture<B> for GptOss {
    type Model = Llama<B>;
    const NAME: &'static str = "GptOssForCausalLM";
    const GGUF_NAME: Option<&'static str> = Some(GGUF_NAME);

    fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
        let mut config = llama::parse_config_with(raw, HEAD_DIM, scaling(raw)?)?;
        if !raw.contains("num_key_value_heads") {
            config.num_key_value_heads = 8;
        }
        if !raw.contains("max_position_embeddings") {
            config.max_position_embeddings = 131_072;
        }
        if !raw.contains("rms_norm_eps") {
            config.norm_eps = 1e-5;
        }
        let (window, num_layers) = (raw.length_or("sliding_window", 128)?, config.num_hidden_layers);
        let slides = match raw.layer_types(num_layers)? {
            Some(slides) => slides,
            None => (0..num_layers).map(|layer| layer % 2 == 0).collect(),
        };
        config.sliding_window = slides.into_iter().map(|slides| window.filter(|_| slides)).collect();
        config.rope.rope_theta = raw.rope_theta(ROPE_THETA)?;
        config.attention_bias = raw.bool_or("attention_bias", true)?;
        let experts = Some(parse_experts(raw, config.intermediate_size)?);
        Ok(ModelConfig { mlp_bias: true, hidden_act: Activation::ClampedSwiglu, experts, ..config })
    }

    fn load(loader: &Loader<'_, B>) -> Result<Llama<B>> {
        let bias = Bias::from(loader.config.attention_bias);
        let config = loader.config.experts.as_ref().expect("invariant: its config has experts");
        Llama::load_with(loader, |loader, idx| {
            let mlp = Mlp::Experts(Experts::load(loader, idx, &NAMES, config)?);
            let layer = llama::Layer::load_with(loader, idx, &llama::NORMS, [bias, bias], mlp)?;
            let sinks = format!("model.layers.{idx}.self_attn.sinks");
            Ok(llama::Layer { sinks: Some(loader.vector(&sinks, loader.config.num_attention_heads)?), ..layer })
        })
    }
}
