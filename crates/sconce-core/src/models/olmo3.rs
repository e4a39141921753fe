//! `Olmo3ForCausalLM`: OLMo 3 (Hugging Face's `modeling_olmo3.py`). An OLMo 2 of whose layers three of four have a sliding window, and a RoPE
//! that is not scaled.

use super::llama::Llama;
use super::olmo2::{self, Olmo2};
use super::{Architecture, Loader, RawConfig};
use crate::backend::Backend;
use crate::config::{ModelConfig, RopeConfig};
use crate::error::Result;

/// The architecture.
pub(super) struct Olmo3;

/// Every which layer sees all tokens.
const SLIDING_WINDOW_PATTERN: usize = 4;
const ROPE_THETA: f32 = 500_000.0;

/// Of a GGUF too, where it goes by the name of OLMo 2.
pub(super) fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
    let (full, local) = (raw.rope_of("full_attention"), raw.rope_of("sliding_attention"));
    let mut config = olmo2::parse_config(&full)?;
    config.rope.rope_theta = full.rope_theta(ROPE_THETA)?;
    // What config.json says beside it is of the full layers alone.
    let is_gguf = raw.architecture()? == olmo2::GGUF_NAME;
    let local_theta = if is_gguf { config.rope.rope_theta } else { ROPE_THETA };
    let local_theta = raw.opt_float("rope_local_base_freq")?.unwrap_or(local_theta);
    config.local_rope = Some(RopeConfig {
        rope_theta: local.rope_theta(local_theta)?,
        rotary_dim: config.rope.rotary_dim,
        scaling: local.rope_scaling()?,
    });
    let (window, num_layers) = (raw.length_or("sliding_window", 4096)?, config.num_hidden_layers);
    config.sliding_window = raw.windows(window, num_layers, SLIDING_WINDOW_PATTERN)?;
    Ok(config)
}

impl<B: Backend> Architecture<B> for Olmo3 {
    type Model = Llama<B>;
    const NAME: &'static str = "Olmo3ForCausalLM";
    const GGUF_NAME: Option<&'static str> = None;

    fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
        parse_config(raw)
    }

    fn load(loader: &Loader<'_, B>) -> Result<Llama<B>> {
        <Olmo2 as Architecture<B>>::load(loader)
    }
}
