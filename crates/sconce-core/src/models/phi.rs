//! `PhiForCausalLM`: phi-1, phi-1.5 and phi-2 (Hugging Face's `modeling_phi.py`): LayerNorm with bias, attention and MLP
//! side by side on the same input, RoPE on a part of each head, biases everywhere.

use super::{Architecture, Bias, Linear, Loader, Model, RawConfig, Step};
use crate::backend::{AttentionSpec, Backend};
use crate::config::{Activation, ModelConfig, RopeConfig};
use crate::error::Result;

/// A loaded model.
pub(super) struct Phi<B: Backend> {
    config: ModelConfig,
    embed: B::Matrix,
    layers: Vec<Layer<B>>,
    norm: LayerNorm<B>,
    lm_head: B::Matrix,
    rope: B::Rope,
}

struct Layer<B: Backend> {
    input_norm: LayerNorm<B>,
    qkv: Linear<B>,
    dense: Linear<B>,
    fc1: Linear<B>,
    fc2: Linear<B>,
}

struct LayerNorm<B: Backend> {
    weight: B::Vector,
    bias: B::Vector,
}

fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
    if raw.bool_or("qk_layernorm", false)? {
        return Err(raw.error("qk_layernorm", "true is not supported"));
    }
    if raw.bool_or("tie_word_embeddings", false)? {
        return Err(raw.error("tie_word_embeddings", "true is not supported: the head has a bias of its own"));
    }
    let (hidden_size, num_attention_heads) = (raw.length("hidden_size")?, raw.length("num_attention_heads")?);
    let head_dim = hidden_size / num_attention_heads;
    let num_hidden_layers = raw.num_layers()?;
    Ok(ModelConfig {
        architecture: raw.architecture()?.into(),
        hidden_size,
        intermediate_size: raw.length("intermediate_size")?,
        experts: None,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: raw.opt_length("num_key_value_heads")?.unwrap_or(num_attention_heads),
        head_dim,
        vocab_size: raw.length("vocab_size")?,
        max_position_embeddings: raw.opt_length("max_position_embeddings")?.unwrap_or(2048),
        norm_eps: raw.opt_float("layer_norm_eps")?.unwrap_or(1e-5),
        rope: RopeConfig {
            rope_theta: raw.rope_theta(10_000.0)?,
            rotary_dim: raw.rotary_dim(head_dim, 0.5)?,
            scaling: raw.rope_scaling()?,
        },
        local_rope: None,
        qk_norm: false,
        tie_word_embeddings: false,
        attention_bias: true,
        mlp_bias: true,
        hidden_act: raw.activation("hidden_act", Activation::GeluTanh)?,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attn_logit_softcapping: None,
        final_logit_softcapping: None,
        sliding_window: vec![None; num_hidden_layers],
        bos_token_id: raw.bos_token_id()?,
        eos_token_ids: raw.eos_token_ids()?,
    })
}

impl<B: Backend> Architecture<B> for Phi<B> {
    type Model = Self;
    const NAME: &'static str = "PhiForCausalLM";
    const GGUF_NAME: Option<&'static str> = Some("phi2");

    fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
        parse_config(raw)
    }

    fn load(loader: &Loader<'_, B>) -> Result<Self> {
        let config = loader.config;
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        Ok(Self {
            embed: loader.matrix(&[("model.embed_tokens".into(), vocab)], hidden, Bias::Absent)?,
            layers: (0..config.num_hidden_layers).map(|i| Layer::load(loader, i)).collect::<Result<_>>()?,
            norm: LayerNorm::load(loader, "model.final_layernorm")?,
            lm_head: loader.matrix(&[("lm_head".into(), vocab)], hidden, Bias::Present)?,
            rope: loader.rope()?,
            config: config.clone(),
        })
    }
}

impl<B: Backend> LayerNorm<B> {
    fn load(loader: &Loader<'_, B>, name: &str) -> Result<Self> {
        let vector = |part: &str| loader.vector(&format!("{name}.{part}"), loader.config.hidden_size);
        Ok(Self { weight: vector("weight")?, bias: vector("bias")? })
    }
}

impl<B: Backend> Layer<B> {
    fn load(loader: &Loader<'_, B>, idx: usize) -> Result<Self> {
        let config = loader.config;
        let name = |part: &str| format!("model.layers.{idx}.{part}");
        let (hidden, inter) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.q_dim(), config.num_key_value_heads * config.head_dim);
        let qkv = [(name("self_attn.q_proj"), q), (name("self_attn.k_proj"), kv), (name("self_attn.v_proj"), kv)];
        Ok(Self {
            input_norm: LayerNorm::load(loader, &name("input_layernorm"))?,
            qkv: loader.linear(&qkv, hidden, Bias::Present)?,
            dense: loader.linear(&[(name("self_attn.dense"), hidden)], q, Bias::Present)?,
            fc1: loader.linear(&[(name("mlp.fc1"), inter)], hidden, Bias::Present)?,
            fc2: loader.linear(&[(name("mlp.fc2"), hidden)], inter, Bias::Present)?,
        })
    }
}

impl<B: Backend> Model<B> for Phi<B> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embed(&self, step: &mut Step<'_, B>) -> Result<()> {
        step.backend.embed(&mut step.ws.residual, &self.embed, step.batch, 1.0)
    }

    fn layer(&self, idx: usize, step: &mut Step<'_, B>) -> Result<()> {
        let Step { backend, ws, kv, batch } = step;
        let layer = &self.layers[idx];
        let spec = AttentionSpec::of_layer(&self.config, idx);
        let LayerNorm { weight, bias } = &layer.input_norm;
        if idx > 0 {
            backend.add(&mut ws.residual, &ws.delta)?;
        }
        backend.layer_norm(&mut ws.normed, &ws.residual, weight, bias, self.config.norm_eps)?;
        layer.qkv.forward(backend, &mut ws.qkv, &ws.normed, batch)?;
        backend.rope_attention((&mut ws.attn_out, &mut ws.qkv), kv, &self.rope, batch, (&spec).into())?;
        layer.dense.forward(backend, &mut ws.delta, &ws.attn_out, batch)?;
        layer.fc1.forward(backend, &mut ws.mlp_act, &ws.normed, batch)?;
        backend.activate(&mut ws.mlp_act, self.config.hidden_act)?;
        layer.fc2.forward(backend, &mut ws.normed, &ws.mlp_act, batch)?;
        backend.add(&mut ws.delta, &ws.normed)
    }

    fn final_norm(&self, step: &mut Step<'_, B>) -> Result<()> {
        let Step { backend, ws, batch, .. } = step;
        backend.gather_rows(&mut ws.last_residual, &ws.residual, batch)?;
        backend.gather_rows(&mut ws.last_delta, &ws.delta, batch)?;
        backend.add(&mut ws.last_residual, &ws.last_delta)?;
        let LayerNorm { weight, bias } = &self.norm;
        backend.layer_norm(&mut ws.last_normed, &ws.last_residual, weight, bias, self.config.norm_eps)
    }

    fn head(&self, step: &mut Step<'_, B>) -> Result<()> {
        let Step { backend, ws, .. } = step;
        backend.linear(&mut ws.logits, &ws.last_normed, &self.lm_head)
    }
}
