//! `PhiForCausalLM`: phi-1, phi-1.5 and phi-2 (Hugging Face's `modeling_phi.py`): LayerNorm with bias, attention and MLP
//! side by side on the same input, RoPE on a part of each head, biases everywhere. Cohere's models have its shape, with gated MLPs.

use super::ropes::Ropes;
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
    /// `None`: the embedding's.
    lm_head: Option<B::Matrix>,
    ropes: Ropes<B>,
}

/// One block's weights.
pub(super) struct Layer<B: Backend> {
    pub(super) norm: LayerNorm<B>,
    pub(super) qkv: Linear<B>,
    pub(super) o: Linear<B>,
    pub(super) mlp: Mlp<B>,
}

/// What stands beside attention.
pub(super) enum Mlp<B: Backend> {
    Plain { fc1: Linear<B>, fc2: Linear<B> },
    Gated { gate_up: Linear<B>, down: Linear<B> },
}

/// A norm, and its bias: zeros where there is none.
pub(super) struct LayerNorm<B: Backend> {
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
        rope_layers: vec![true; num_hidden_layers],
        qk_norm: None,
        norm_offset: 0.0,
        interleaved_rope: false,
        embedding_scale: 1.0,
        tie_word_embeddings: false,
        attention_bias: true,
        mlp_bias: true,
        hidden_act: raw.activation("hidden_act", Activation::GeluTanh)?,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attn_logit_softcapping: None,
        logit_scale: 1.0,
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
        let norm = LayerNorm::load(loader, "model.final_layernorm", Bias::Present)?;
        Self::load_with(loader, norm, Bias::Present, load_layer)
    }
}

fn load_layer<B: Backend>(loader: &Loader<'_, B>, idx: usize) -> Result<Layer<B>> {
    let config = loader.config;
    let name = |part: &str| format!("model.layers.{idx}.{part}");
    let linear = |part: &str, rows, cols| loader.linear(&[(name(part), rows)], cols, Bias::Present);
    let (hidden, inter) = (config.hidden_size, config.intermediate_size);
    Ok(Layer {
        norm: LayerNorm::load(loader, &name("input_layernorm"), Bias::Present)?,
        qkv: load_qkv(loader, idx, Bias::Present)?,
        o: linear("self_attn.dense", hidden, config.q_dim())?,
        mlp: Mlp::Plain { fc1: linear("mlp.fc1", inter, hidden)?, fc2: linear("mlp.fc2", hidden, inter)? },
    })
}

/// q, k and v of a layer.
pub(super) fn load_qkv<B: Backend>(loader: &Loader<'_, B>, idx: usize, bias: Bias) -> Result<Linear<B>> {
    let config = loader.config;
    let name = |part: &str| format!("model.layers.{idx}.self_attn.{part}");
    let (q, kv) = (config.q_dim(), config.num_key_value_heads * config.head_dim);
    loader.linear(&[(name("q_proj"), q), (name("k_proj"), kv), (name("v_proj"), kv)], config.hidden_size, bias)
}

impl<B: Backend> Phi<B> {
    /// Loads a model of this shape whose last norm and whose layers are stored in another way.
    pub(super) fn load_with(
        loader: &Loader<'_, B>,
        norm: LayerNorm<B>,
        head_bias: Bias,
        load_layer: impl Fn(&Loader<'_, B>, usize) -> Result<Layer<B>>,
    ) -> Result<Self> {
        let config = loader.config;
        let embedding = |name: &str, bias| loader.matrix(&[(name.into(), config.vocab_size)], config.hidden_size, bias);
        Ok(Self {
            embed: embedding("model.embed_tokens", Bias::Absent)?,
            layers: (0..config.num_hidden_layers).map(|i| load_layer(loader, i)).collect::<Result<_>>()?,
            norm,
            lm_head: if config.tie_word_embeddings { None } else { Some(embedding("lm_head", head_bias)?) },
            ropes: Ropes::load(loader)?,
            config: config.clone(),
        })
    }
}

impl<B: Backend> LayerNorm<B> {
    pub(super) fn load(loader: &Loader<'_, B>, name: &str, bias: Bias) -> Result<Self> {
        Self::load_scaled(loader, name, bias, 1.0)
    }

    /// The same, whose results are multiplied by `scale`.
    pub(super) fn load_scaled(loader: &Loader<'_, B>, name: &str, bias: Bias, scale: f32) -> Result<Self> {
        let hidden = loader.config.hidden_size;
        let vector = |part: &str| loader.scaled_vector(&format!("{name}.{part}"), hidden, scale);
        let bias = match bias {
            Bias::Present => vector("bias")?,
            Bias::Absent => loader.backend.vector(&vec![0.0; hidden])?,
        };
        Ok(Self { weight: vector("weight")?, bias })
    }

    /// `out`, of `x`.
    fn forward(&self, backend: &B, out: &mut B::Buffer, x: &B::Buffer, eps: f32) -> Result<()> {
        backend.layer_norm(out, x, &self.weight, &self.bias, eps)
    }
}

impl<B: Backend> Model<B> for Phi<B> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embed(&self, step: &mut Step<'_, B>) -> Result<()> {
        step.backend.embed(&mut step.ws.residual, &self.embed, step.batch, self.config.embedding_scale)
    }

    fn layer(&self, idx: usize, step: &mut Step<'_, B>) -> Result<()> {
        let Step { backend, ws, kv, batch } = step;
        let layer = &self.layers[idx];
        let spec = AttentionSpec::of_layer(&self.config, idx);
        if idx > 0 {
            backend.add(&mut ws.residual, &ws.delta)?;
        }
        layer.norm.forward(backend, &mut ws.normed, &ws.residual, self.config.norm_eps)?;
        layer.qkv.forward(backend, &mut ws.qkv, &ws.normed, batch)?;
        let rope = self.ropes.of_layer(&self.config, idx);
        backend.rope_attention((&mut ws.attn_out, &mut ws.qkv), kv, rope, batch, (&spec).into())?;
        layer.o.forward(backend, &mut ws.delta, &ws.attn_out, batch)?;
        let act = self.config.hidden_act;
        let last = match &layer.mlp {
            Mlp::Plain { fc1, fc2 } => {
                fc1.forward(backend, &mut ws.mlp_act, &ws.normed, batch)?;
                backend.activate(&mut ws.mlp_act, act)?;
                fc2
            }
            Mlp::Gated { gate_up, down } => {
                gate_up.gated(backend, (&mut ws.mlp_act, &mut ws.gate_up), &ws.normed, batch, act)?;
                down
            }
        };
        last.forward(backend, &mut ws.normed, &ws.mlp_act, batch)?;
        backend.add(&mut ws.delta, &ws.normed)
    }

    fn final_norm(&self, step: &mut Step<'_, B>) -> Result<()> {
        let Step { backend, ws, batch, .. } = step;
        backend.gather_rows(&mut ws.last_residual, &ws.residual, batch)?;
        backend.gather_rows(&mut ws.last_delta, &ws.delta, batch)?;
        backend.add(&mut ws.last_residual, &ws.last_delta)?;
        self.norm.forward(backend, &mut ws.last_normed, &ws.last_residual, self.config.norm_eps)
    }

    fn head(&self, step: &mut Step<'_, B>) -> Result<()> {
        let Step { backend, ws, .. } = step;
        backend.linear(&mut ws.logits, &ws.last_normed, self.lm_head.as_ref().unwrap_or(&self.embed))
    }
}
