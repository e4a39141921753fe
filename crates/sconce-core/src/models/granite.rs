//! `GraniteForCausalLM`: the dense models of Granite 3 (Hugging Face's `modeling_granite.py`). A Llama that multiplies its embeddings, what
//! each part of a block adds, attention's scores, and divides its logits.
//!
//! What a part adds is not multiplied by r here: the residual stream is 1 / r times that of transformers instead, from the embedding on, and
//! norms, which alone read it, make the same of it where epsilon is 1 / r^2 times as great.

use super::llama::{self, Llama};
use super::{Architecture, Loader, RawConfig};
use crate::backend::Backend;
use crate::config::ModelConfig;
use crate::error::Result;

/// The architecture.
pub(super) struct Granite;

/// Its name in GGUF files.
const GGUF_NAME: &str = "granite";

/// A multiplier, 1 where nothing is said.
fn multiplier(raw: &RawConfig, key: &str) -> Result<f32> {
    let found = raw.opt_float(key)?.unwrap_or(1.0);
    if found > 0.0 { Ok(found) } else { Err(raw.error(key, format!("expected a positive number, found {found}"))) }
}

impl<B: Backend> Architecture<B> for Granite {
    type Model = Llama<B>;
    const NAME: &'static str = "GraniteForCausalLM";
    const GGUF_NAME: Option<&'static str> = Some(GGUF_NAME);

    fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
        // Of a Granite 4 without RoPE, in a GGUF.
        if !raw.bool_or("rope_finetuned", true)? {
            return Err(raw.error("rope.scaling.finetuned", "false is not supported: its layers do not turn"));
        }
        let config = llama::parse_config(raw)?;
        let residual = multiplier(raw, "residual_multiplier")?;
        const ATTENTION: &str = "attention_multiplier";
        // llama.cpp has another default.
        let is_said = raw.get(ATTENTION).is_some() || raw.architecture()? != GGUF_NAME;
        Ok(ModelConfig {
            embedding_scale: multiplier(raw, "embedding_multiplier")? / residual,
            norm_eps: config.norm_eps / (residual * residual),
            attention_scale: if is_said { multiplier(raw, ATTENTION)? } else { config.attention_scale },
            logit_scale: 1.0 / multiplier(raw, "logits_scaling")?,
            ..config
        })
    }

    fn load(loader: &Loader<'_, B>) -> Result<Llama<B>> {
        <Llama<B> as Architecture<B>>::load(loader)
    }
}
