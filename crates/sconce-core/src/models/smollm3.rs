//! `SmolLM3ForCausalLM` (Hugging Face's `modeling_smollm3.py`): a Llama of which every fourth layer does not turn its queries and keys.

use super::llama::{self, Llama};
use super::{Architecture, Loader, RawConfig};
use crate::backend::Backend;
use crate::config::ModelConfig;
use crate::error::Result;

/// The architecture.
pub(super) struct SmolLm3;

/// Every which layer does not turn, where nothing is said.
const NO_ROPE_INTERVAL: usize = 4;

/// Whether each layer turns. `no_rope_layers` has a 1 for one that does, and can have more entries than there are layers.
fn rope_layers(raw: &RawConfig, num_layers: usize) -> Result<Vec<bool>> {
    const KEY: &str = "no_rope_layers";
    let Some(value) = raw.get(KEY) else {
        let interval = raw.opt_length("no_rope_layer_interval")?.unwrap_or(NO_ROPE_INTERVAL);
        return Ok((1..=num_layers).map(|layer| layer % interval != 0).collect());
    };
    let turns: Option<Vec<bool>> = value.as_array().and_then(|list| {
        let turns = |entry: &serde_json::Value| entry.as_u64().filter(|entry| *entry <= 1).map(|entry| entry == 1);
        list.iter().take(num_layers).map(turns).collect()
    });
    let expected = || raw.error(KEY, format!("expected a 0 or a 1 for each of {num_layers} layers, found {value}"));
    turns.filter(|turns| turns.len() == num_layers).ok_or_else(expected)
}

impl<B: Backend> Architecture<B> for SmolLm3 {
    type Model = Llama<B>;
    const NAME: &'static str = "SmolLM3ForCausalLM";
    const GGUF_NAME: Option<&'static str> = Some("smollm3");

    fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
        let mut config = llama::parse_config(raw)?;
        if !raw.contains("num_key_value_heads") {
            config.num_key_value_heads = 4;
        }
        if !raw.contains("max_position_embeddings") {
            config.max_position_embeddings = 32768;
        }
        config.tie_word_embeddings = raw.bool_or("tie_word_embeddings", true)?;
        config.rope.rope_theta = raw.rope_theta(2_000_000.0)?;
        config.rope_layers = rope_layers(raw, config.num_hidden_layers)?;
        let window = if raw.bool_or("use_sliding_window", false)? { raw.opt_length("sliding_window")? } else { None };
        let slides = match raw.layer_types(config.num_hidden_layers)? {
            Some(slides) => slides,
            None => config.rope_layers.iter().map(|turns| !turns).collect(),
        };
        config.sliding_window = slides.into_iter().map(|slides| window.filter(|_| slides)).collect();
        Ok(config)
    }

    fn load(loader: &Loader<'_, B>) -> Result<Llama<B>> {
        <Llama<B> as Architecture<B>>::load(loader)
    }
}
