//! `Qwen3MoeForCausalLM`: the mixtures of experts of Qwen3, as Qwen3-30B-A3B (Hugging Face's `modeling_qwen3_moe.py`). A dense Qwen3 but
//! for its MLPs, in place of which every layer has experts.

use super::experts::{self, Experts, Names};
use super::llama::{self, Llama, Mlp};
use super::{Architecture, Bias, Loader, RawConfig};
use crate::backend::Backend;
use crate::config::{ExpertsConfig, ModelConfig, QkNorm};
use crate::error::Result;

/// The architecture.
pub(super) struct Qwen3Moe;

/// Its name in GGUF files.
const GGUF_NAME: &str = "qwen3moe";

/// What the experts' matrices are called.
const NAMES: Names =
    Names { router: "mlp.gate", experts: "mlp.experts", gate: "gate_proj", up: "up_proj", down: "down_proj" };

fn parse_experts(raw: &RawConfig) -> Result<ExpertsConfig> {
    let dense_layers =
        raw.get("mlp_only_layers").filter(|layers| layers.as_array().is_none_or(|list| !list.is_empty()));
    if let Some(layers) = dense_layers {
        return Err(raw.error("mlp_only_layers", format!("layers without experts are not supported, found {layers}")));
    }
    let step = raw.opt_length("decoder_sparse_step")?.unwrap_or(1);
    if step != 1 {
        return Err(raw.error("decoder_sparse_step", format!("layers without experts are not supported, found {step}")));
    }
    // The second is what transformers 5 calls it, and a GGUF's.
    let keys = ["num_experts", "num_local_experts"];
    let key = keys.into_iter().find(|key| raw.get(key).is_some()).unwrap_or(keys[0]);
    let config = ExpertsConfig {
        num_experts: raw.opt_length(key)?.unwrap_or(128),
        per_token: raw.opt_length("num_experts_per_tok")?.unwrap_or(8),
        intermediate_size: raw.opt_length("moe_intermediate_size")?.unwrap_or(768),
        // A GGUF says nothing of it: there all do.
        normalizes: raw.bool_or("norm_topk_prob", raw.architecture()? == GGUF_NAME)?,
    };
    experts::checked(raw, key, config)
}

impl<B: Backend> Architecture<B> for Qwen3Moe {
    type Model = Llama<B>;
    const NAME: &'static str = "Qwen3MoeForCausalLM";
    const GGUF_NAME: Option<&'static str> = Some(GGUF_NAME);

    fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
        let mut config = llama::parse_config(raw)?;
        if !raw.contains("num_key_value_heads") {
            config.num_key_value_heads = 4;
        }
        if !raw.contains("max_position_embeddings") {
            config.max_position_embeddings = 32768;
        }
        if raw.bool_or("use_sliding_window", false)? {
            config.sliding_window.fill(raw.length_or("sliding_window", 4096)?);
        }
        Ok(ModelConfig { qk_norm: Some(QkNorm::EachHead), experts: Some(parse_experts(raw)?), ..config })
    }

    fn load(loader: &Loader<'_, B>) -> Result<Llama<B>> {
        let bias = Bias::from(loader.config.attention_bias);
        let config = loader.config.experts.as_ref().expect("invariant: its config has experts");
        Llama::load_with(loader, |loader, idx| {
            let mlp = Mlp::Experts(Experts::load(loader, idx, &NAMES, config)?);
            llama::Layer::load_with(loader, idx, &llama::NORMS, [bias, bias], mlp)
        })
    }
}
