//! `Cohere2ForCausalLM`: Command R7B and Command A (Hugging Face's `modeling_cohere2.py`). A Cohere of whose layers three of four have a sliding
//! window, and turn; the others do not.

use super::cohere::{self, Cohere};
use super::phi::Phi;
use super::{Architecture, Loader, RawConfig};
use crate::backend::Backend;
use crate::config::ModelConfig;
use crate::error::Result;

/// The architecture.
pub(super) struct Cohere2;

/// Every which layer sees all tokens.
const SLIDING_WINDOW_PATTERN: usize = 4;
/// Where nothing is said.
const ROPE_THETA: f32 = 10_000.0;

impl<B: Backend> Architecture<B> for Cohere2 {
    type Model = Phi<B>;
    const NAME: &'static str = "Cohere2ForCausalLM";
    const GGUF_NAME: Option<&'static str> = Some("cohere2");

    fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
        let mut config = cohere::parse_config(raw, ROPE_THETA)?;
        let window = raw.length_or("sliding_window", 4096)?;
        config.sliding_window = raw.windows(window, config.num_hidden_layers, SLIDING_WINDOW_PATTERN)?;
        config.rope_layers = config.sliding_window.iter().map(Option::is_some).collect();
        Ok(config)
    }

    fn load(loader: &Loader<'_, B>) -> Result<Phi<B>> {
        <Cohere as Architecture<B>>::load(loader)
    }
}
