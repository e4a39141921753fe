//! `Glm4ForCausalLM`: the dense models of GLM-4-0414 (Hugging Face's `modeling_glm4.py`). A GLM whose parts' outputs are normalised too.

use super::llama::{Llama, Norms};
use super::{Architecture, Loader, RawConfig, glm};
use crate::backend::Backend;
use crate::config::ModelConfig;
use crate::error::Result;

/// The architecture.
pub(super) struct Glm4;

const NORMS: Norms = Norms {
    before_attention: Some("input_layernorm"),
    after_attention: Some("post_self_attn_layernorm"),
    before_mlp: Some("post_attention_layernorm"),
    after_mlp: Some("post_mlp_layernorm"),
};

impl<B: Backend> Architecture<B> for Glm4 {
    type Model = Llama<B>;
    const NAME: &'static str = "Glm4ForCausalLM";
    const GGUF_NAME: Option<&'static str> = Some("glm4");

    fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
        // Of a model that sees images, in a GGUF: its rows of q and k are in another order.
        if raw.get("mrope_section").is_some() {
            return Err(raw.error("rope.dimension_sections", "positions of several dimensions are not supported"));
        }
        glm::parse_config(raw)
    }

    fn load(loader: &Loader<'_, B>) -> Result<Llama<B>> {
        Llama::load_with(loader, |loader, idx| glm::load_layer(loader, idx, &NORMS))
    }
}
