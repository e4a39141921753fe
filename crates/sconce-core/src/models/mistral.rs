//! `MistralForCausalLM`: Mistral 7B, Nemo and Small (Hugging Face's `modeling_mistral.py`), and the text part of
//! `Mistral3ForConditionalGeneration`. A Llama whose config can have a sliding window. In GGUF files it goes by the name `llama`.

use super::llama::{self, Llama};
use super::{Architecture, Loader, RawConfig};
use crate::backend::Backend;
use crate::config::ModelConfig;
use crate::error::Result;

/// The architecture.
pub(super) struct Mistral;

impl<B: Backend> Architecture<B> for Mistral {
    type Model = Llama<B>;
    const NAME: &'static str = "MistralForCausalLM";
    const WITH_IMAGES: Option<&'static str> = Some("Mistral3ForConditionalGeneration");
    const GGUF_NAME: Option<&'static str> = None;

    fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
        // Of the text part; Ministral's scales its queries by their positions.
        if let Some(other) = raw.get("model_type").filter(|&found| found != "mistral") {
            return Err(raw.error("model_type", format!("expected \"mistral\", found {other}")));
        }
        let mut config = llama::parse_config(raw)?;
        if !raw.contains("num_key_value_heads") {
            config.num_key_value_heads = 8;
        }
        if !raw.contains("max_position_embeddings") {
            config.max_position_embeddings = 32 * 4096;
        }
        // Absent is the class's default; null is no window.
        config.sliding_window.fill(raw.length_or("sliding_window", 4096)?);
        Ok(config)
    }

    fn load(loader: &Loader<'_, B>) -> Result<Llama<B>> {
        <Llama<B> as Architecture<B>>::load(loader)
    }
}
