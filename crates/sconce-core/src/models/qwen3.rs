//! `Qwen3ForCausalLM`: the dense models of Qwen3 (Hugging Face's `modeling_qwen3.py`). A Llama whose heads of q and k are normalised
//! before they turn.

use super::llama::{self, Llama};
use super::{Architecture, Loader, RawConfig, qwen2};
use crate::backend::Backend;
use crate::config::{ModelConfig, QkNorm};
use crate::error::Result;

/// The architecture.
pub(super) struct Qwen3;

/// The width of a head where nothing is said.
const HEAD_DIM: usize = 128;

impl<B: Backend> Architecture<B> for Qwen3 {
    type Model = Llama<B>;
    const NAME: &'static str = "Qwen3ForCausalLM";
    const GGUF_NAME: Option<&'static str> = Some("qwen3");

    fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
        let config = qwen2::with_defaults(raw, llama::parse_config_with(raw, HEAD_DIM, raw.rope_scaling()?)?)?;
        Ok(ModelConfig { qk_norm: Some(QkNorm::EachHead), ..config })
    }

    fn load(loader: &Loader<'_, B>) -> Result<Llama<B>> {
        <Llama<B> as Architecture<B>>::load(loader)
    }
}
