//! `Olmo2ForCausalLM`: OLMo 2 (Hugging Face's `modeling_olmo2.py`). A Llama whose norms are of what its parts give, not of what they take
//! in, and whose q and k are normalised as a whole, all heads together.

use super::llama::{self, Layer, Llama, Norms};
use super::{Architecture, Bias, Loader, RawConfig, olmo3};
use crate::backend::Backend;
use crate::config::{ModelConfig, QkNorm};
use crate::error::Result;

/// The architecture.
pub(super) struct Olmo2;

/// Its name in GGUF files, and OLMo 3's.
pub(super) const GGUF_NAME: &str = "olmo2";

const NORMS: Norms = Norms {
    before_attention: None,
    after_attention: Some("post_attention_layernorm"),
    before_mlp: None,
    after_mlp: Some("post_feedforward_layernorm"),
};

/// The config of either generation, but for windows.
pub(super) fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
    let mut config = llama::parse_config(raw)?;
    if !raw.contains("rms_norm_eps") {
        config.norm_eps = 1e-5;
    }
    Ok(ModelConfig { qk_norm: Some(QkNorm::AllHeads), mlp_bias: false, ..config })
}

impl<B: Backend> Architecture<B> for Olmo2 {
    type Model = Llama<B>;
    const NAME: &'static str = "Olmo2ForCausalLM";
    const GGUF_NAME: Option<&'static str> = Some(GGUF_NAME);

    fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
        let is_olmo3 = raw.architecture()? == GGUF_NAME && raw.get("sliding_window").is_some();
        if is_olmo3 { olmo3::parse_config(raw) } else { parse_config(raw) }
    }

    fn load(loader: &Loader<'_, B>) -> Result<Llama<B>> {
        let bias = Bias::from(loader.config.attention_bias);
        Llama::load_with(loader, |loader, idx| Layer::load(loader, idx, &NORMS, [bias, bias]))
    }
}
