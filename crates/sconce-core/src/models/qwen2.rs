//! `Qwen2ForCausalLM`: Qwen2, Qwen2.5, QwQ and what is distilled into them (Hugging Face's `modeling_qwen2.py`). A Llama whose q, k and
//! v have biases, and whose upper layers can have a sliding window.

use super::llama::{self, Llama};
use super::{Architecture, Bias, Loader, RawConfig};
use crate::backend::Backend;
use crate::config::ModelConfig;
use crate::error::Result;

/// The architecture.
pub(super) struct Qwen2;

/// What the classes of Qwen have in common; `config` is a Llama's.
pub(super) fn with_defaults(raw: &RawConfig, mut config: ModelConfig) -> Result<ModelConfig> {
    if !raw.contains("num_key_value_heads") {
        config.num_key_value_heads = 32;
    }
    if !raw.contains("max_position_embeddings") {
        config.max_position_embeddings = 32768;
    }
    let window = if raw.bool_or("use_sliding_window", false)? { raw.length_or("sliding_window", 4096)? } else { None };
    let full_layers = raw.int_or("max_window_layers", 28)?;
    let slides = match raw.layer_types(config.num_hidden_layers)? {
        Some(types) => types,
        None => (0..config.num_hidden_layers).map(|i| i >= full_layers).collect(),
    };
    config.sliding_window = slides.into_iter().map(|slides| window.filter(|_| slides)).collect();
    Ok(config)
}

impl<B: Backend> Architecture<B> for Qwen2 {
    type Model = Llama<B>;
    const NAME: &'static str = "Qwen2ForCausalLM";
    const GGUF_NAME: Option<&'static str> = Some("qwen2");

    fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
        with_defaults(raw, llama::parse_config(raw)?)
    }

    fn load(loader: &Loader<'_, B>) -> Result<Llama<B>> {
        Llama::load_with(loader, |loader, idx| {
            llama::Layer::load(loader, idx, &llama::NORMS, [Bias::Present, Bias::Absent])
        })
    }
}
