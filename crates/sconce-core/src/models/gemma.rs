//! `GemmaForCausalLM`: the first Gemma (Hugging Face's `modeling_gemma.py`). A Llama with embedding times sqrt(hidden), RMSNorm by 1 + weight,
//! and GELU gates.

use super::llama::{self, Llama};
use super::{Architecture, Bias, Loader, RawConfig};
use crate::backend::Backend;
use crate::config::ModelConfig;
use crate::error::Result;

/// The architecture.
pub(super) struct Gemma;

/// The width of a head where nothing is said.
const HEAD_DIM: usize = 256;
const ACTIVATION: &str = "hidden_act";

impl<B: Backend> Architecture<B> for Gemma {
    type Model = Llama<B>;
    const NAME: &'static str = "GemmaForCausalLM";
    const GGUF_NAME: Option<&'static str> = Some("gemma");

    fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
        if raw.bool_or("use_bidirectional_attention", false)? {
            return Err(raw.error("use_bidirectional_attention", "true is not supported"));
        }
        // The first configs say gelu, and mean the approximation that the model was trained with.
        let is_said = raw.get(ACTIVATION).is_some_and(|act| act != "gelu");
        let raw = &if is_said { raw.clone() } else { raw.with(ACTIVATION, "gelu_pytorch_tanh".into()) };
        let mut config = llama::parse_config_with(raw, HEAD_DIM, raw.rope_scaling()?)?;
        if !raw.contains("num_key_value_heads") {
            config.num_key_value_heads = 16;
        }
        if !raw.contains("max_position_embeddings") {
            config.max_position_embeddings = 8192;
        }
        Ok(ModelConfig {
            embedding_scale: (config.hidden_size as f32).sqrt(),
            norm_offset: 1.0,
            tie_word_embeddings: raw.bool_or("tie_word_embeddings", true)?,
            mlp_bias: false,
            ..config
        })
    }

    fn load(loader: &Loader<'_, B>) -> Result<Llama<B>> {
        let bias = Bias::from(loader.config.attention_bias);
        Llama::load_with(loader, |loader, idx| llama::Layer::load(loader, idx, &llama::NORMS, [bias, bias]))
    }
}
