//! `MixtralForCausalLM`: Mixtral 8x7B and 8x22B (Hugging Face's `modeling_mixtral.py`). A Llama whose MLPs are mixtures of experts. In
//! GGUF files it goes by the name `llama`.

use super::experts::{self, Names};
use super::llama::{self, Llama};
use super::{Architecture, Loader, RawConfig};
use crate::backend::Backend;
use crate::config::{ExpertsConfig, ModelConfig};
use crate::error::Result;

/// The architecture.
pub(super) struct Mixtral;

/// What the experts' matrices are called.
pub(super) const NAMES: Names =
    Names { router: "block_sparse_moe.gate", experts: "block_sparse_moe.experts", gate: "w1", up: "w3", down: "w2" };

/// How many experts there are.
pub(super) const NUM_EXPERTS: &str = "num_local_experts";

/// What the config says of the experts.
pub(super) fn parse_experts(raw: &RawConfig, intermediate_size: usize) -> Result<ExpertsConfig> {
    let config = ExpertsConfig {
        num_experts: raw.opt_length(NUM_EXPERTS)?.unwrap_or(8),
        per_token: raw.opt_length("num_experts_per_tok")?.unwrap_or(2),
        intermediate_size,
        normalizes: true,
    };
    experts::checked(raw, NUM_EXPERTS, config)
}

impl<B: Backend> Architecture<B> for Mixtral {
    type Model = Llama<B>;
    const NAME: &'static str = "MixtralForCausalLM";
    const GGUF_NAME: Option<&'static str> = None;

    fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
        let mut config = llama::parse_config(raw)?;
        if !raw.contains("num_key_value_heads") {
            config.num_key_value_heads = 8;
        }
        if !raw.contains("max_position_embeddings") {
            config.max_position_embeddings = 32 * 4096;
        }
        if !raw.contains("rms_norm_eps") {
            config.norm_eps = 1e-5;
        }
        config.rope.rope_theta = raw.rope_theta(1e6)?;
        config.sliding_window.fill(raw.opt_length("sliding_window")?);
        config.experts = Some(parse_experts(raw, config.intermediate_size)?);
        Ok(config)
    }

    fn load(loader: &Loader<'_, B>) -> Result<Llama<B>> {
        <Llama<B> as Architecture<B>>::load(loader)
    }
}
