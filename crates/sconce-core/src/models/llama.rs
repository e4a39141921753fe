//! `LlamaForCausalLM`: Llama 1 to 3.3, SmolLM and the many models of that shape (Hugging Face's `modeling_llama.py`).

use super::experts::Experts;
use super::{Architecture, Bias, Linear, Loader, Model, RawConfig, Step, mixtral};
use crate::backend::{AttentionSpec, Backend, LayerAttention};
use crate::config::{Activation, ModelConfig, RopeConfig, RopeScaling};
use crate::error::Result;

/// A loaded model.
pub(super) struct Llama<B: Backend> {
    config: ModelConfig,
    embed: B::Matrix,
    layers: Vec<Layer<B>>,
    norm: B::Vector,
    /// `None`: the embedding's.
    lm_head: Option<B::Matrix>,
    rope: B::Rope,
}

/// One block's weights.
pub(super) struct Layer<B: Backend> {
    pub(super) input_norm: B::Vector,
    pub(super) qkv: Linear<B>,
    /// Of a head of q and of one of k.
    pub(super) head_norms: Option<(B::Vector, B::Vector)>,
    /// One a query head.
    pub(super) sinks: Option<B::Vector>,
    pub(super) o: Linear<B>,
    pub(super) post_attention_norm: B::Vector,
    pub(super) mlp: Mlp<B>,
}

/// What stands behind attention.
pub(super) enum Mlp<B: Backend> {
    Dense { gate_up: Linear<B>, down: Linear<B> },
    Experts(Experts<B>),
}

/// The config of a model of this shape.
pub(super) fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
    let head_dim = raw.length("hidden_size")? / raw.length("num_attention_heads")?;
    parse_config_with(raw, head_dim, raw.rope_scaling()?)
}

/// The same, with the width of a head where the config says nothing of it, and with how RoPE is scaled.
pub(super) fn parse_config_with(raw: &RawConfig, head_dim: usize, scaling: RopeScaling) -> Result<ModelConfig> {
    let (hidden_size, num_attention_heads) = (raw.length("hidden_size")?, raw.length("num_attention_heads")?);
    let head_dim = raw.opt_length("head_dim")?.unwrap_or(head_dim);
    let num_hidden_layers = raw.num_layers()?;
    let attention_bias = raw.bool_or("attention_bias", false)?;
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
        max_position_embeddings: raw
            .opt_length("max_position_embeddings")?
            .unwrap_or(2048)
            .max(scaling.stretched_len()),
        norm_eps: raw.opt_float("rms_norm_eps")?.unwrap_or(1e-6),
        rope: RopeConfig { rope_theta: raw.rope_theta(10_000.0)?, rotary_dim: head_dim, scaling },
        local_rope: None,
        qk_norm: false,
        tie_word_embeddings: raw.bool_or("tie_word_embeddings", false)?,
        attention_bias,
        mlp_bias: raw.bool_or("mlp_bias", false)?,
        hidden_act: raw.activation("hidden_act", Activation::Silu)?,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attn_logit_softcapping: None,
        final_logit_softcapping: None,
        sliding_window: vec![None; num_hidden_layers],
        bos_token_id: raw.bos_token_id()?,
        eos_token_ids: raw.eos_token_ids()?,
    })
}

impl<B: Backend> Architecture<B> for Llama<B> {
    type Model = Self;
    const NAME: &'static str = "LlamaForCausalLM";
    const GGUF_NAME: Option<&'static str> = Some("llama");

    fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
        let mut config = parse_config(raw)?;
        // A GGUF of Mixtral.
        if raw.get(mixtral::NUM_EXPERTS).is_some() {
            config.experts = Some(mixtral::parse_experts(raw, config.intermediate_size)?);
        }
        Ok(config)
    }

    fn load(loader: &Loader<'_, B>) -> Result<Self> {
        let bias = Bias::from(loader.config.attention_bias);
        Self::load_with(loader, |loader, idx| Layer::load(loader, idx, [bias, bias]))
    }
}

impl<B: Backend> Llama<B> {
    /// Loads a model of this shape whose layers are stored in another way.
    pub(super) fn load_with(
        loader: &Loader<'_, B>,
        load_layer: impl Fn(&Loader<'_, B>, usize) -> Result<Layer<B>>,
    ) -> Result<Self> {
        let config = loader.config;
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let embedding = |name: &str| loader.matrix(&[(name.into(), vocab)], hidden, Bias::Absent);
        Ok(Self {
            embed: embedding("model.embed_tokens")?,
            layers: (0..config.num_hidden_layers).map(|i| load_layer(loader, i)).collect::<Result<_>>()?,
            norm: loader.vector("model.norm.weight", hidden)?,
            lm_head: if config.tie_word_embeddings { None } else { Some(embedding("lm_head")?) },
            rope: loader.rope()?,
            config: config.clone(),
        })
    }
}

impl<B: Backend> Layer<B> {
    /// A layer, by the names that most models of this shape have. The biases are those of q, k and v, and of o.
    pub(super) fn load(loader: &Loader<'_, B>, idx: usize, biases: [Bias; 2]) -> Result<Self> {
        Self::load_with(loader, idx, biases, Mlp::load(loader, idx)?)
    }

    /// The same with another MLP.
    pub(super) fn load_with(
        loader: &Loader<'_, B>,
        idx: usize,
        [qkv_bias, o_bias]: [Bias; 2],
        mlp: Mlp<B>,
    ) -> Result<Self> {
        let config = loader.config;
        let name = |part: &str| format!("model.layers.{idx}.{part}");
        let hidden = config.hidden_size;
        let (q, kv) = (config.q_dim(), config.num_key_value_heads * config.head_dim);
        let qkv = [(name("self_attn.q_proj"), q), (name("self_attn.k_proj"), kv), (name("self_attn.v_proj"), kv)];
        Ok(Self {
            input_norm: loader.vector(&name("input_layernorm.weight"), hidden)?,
            qkv: loader.linear(&qkv, hidden, qkv_bias)?,
            head_norms: if config.qk_norm {
                let norm = |part| loader.vector(&name(part), config.head_dim);
                Some((norm("self_attn.q_norm.weight")?, norm("self_attn.k_norm.weight")?))
            } else {
                None
            },
            sinks: None,
            o: loader.linear(&[(name("self_attn.o_proj"), hidden)], q, o_bias)?,
            post_attention_norm: loader.vector(&name("post_attention_layernorm.weight"), hidden)?,
            mlp,
        })
    }
}

impl<B: Backend> Mlp<B> {
    /// By the names that most models of this shape have; experts by Mixtral's.
    fn load(loader: &Loader<'_, B>, idx: usize) -> Result<Self> {
        let config = loader.config;
        if let Some(experts) = &config.experts {
            return Ok(Self::Experts(Experts::load(loader, idx, &mixtral::NAMES, experts)?));
        }
        let name = |part: &str| format!("model.layers.{idx}.{part}");
        let (hidden, inter, bias) = (config.hidden_size, config.intermediate_size, Bias::from(config.mlp_bias));
        let gate_up = [(name("mlp.gate_proj"), inter), (name("mlp.up_proj"), inter)];
        Ok(Self::Dense {
            gate_up: loader.linear(&gate_up, hidden, bias)?,
            down: loader.linear(&[(name("mlp.down_proj"), hidden)], inter, bias)?,
        })
    }
}

impl<B: Backend> Model<B> for Llama<B> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embed(&self, step: &mut Step<'_, B>) -> Result<()> {
        step.backend.embed(&mut step.ws.residual, &self.embed, step.batch, 1.0)
    }

    fn layer(&self, idx: usize, step: &mut Step<'_, B>) -> Result<()> {
        let Step { backend, ws, kv, batch } = step;
        let (layer, eps) = (&self.layers[idx], self.config.norm_eps);
        let spec = AttentionSpec::of_layer(&self.config, idx);
        if idx == 0 {
            backend.rms_norm(&mut ws.normed, &ws.residual, &layer.input_norm, eps)?;
        } else {
            backend.add_rms_norm(&mut ws.normed, &mut ws.residual, &ws.delta, &layer.input_norm, eps)?;
        }
        layer.qkv.forward(backend, &mut ws.qkv, &ws.normed, batch)?;
        if let Some((q, k)) = &layer.head_norms {
            backend.head_norm(&mut ws.qkv, (q, k), &spec, eps)?;
        }
        let attention = LayerAttention { spec: &spec, sinks: layer.sinks.as_ref() };
        backend.rope_attention((&mut ws.attn_out, &mut ws.qkv), kv, &self.rope, batch, attention)?;
        layer.o.forward(backend, &mut ws.delta, &ws.attn_out, batch)?;
        backend.add_rms_norm(&mut ws.normed, &mut ws.residual, &ws.delta, &layer.post_attention_norm, eps)?;
        match &layer.mlp {
            Mlp::Dense { gate_up, down } => {
                let act = self.config.hidden_act;
                gate_up.gated(backend, (&mut ws.mlp_act, &mut ws.gate_up), &ws.normed, batch, act)?;
                down.forward(backend, &mut ws.delta, &ws.mlp_act, batch)
            }
            Mlp::Experts(experts) => experts.forward(backend, ws),
        }
    }

    fn final_norm(&self, step: &mut Step<'_, B>) -> Result<()> {
        let Step { backend, ws, batch, .. } = step;
        backend.gather_rows(&mut ws.last_residual, &ws.residual, batch)?;
        backend.gather_rows(&mut ws.last_delta, &ws.delta, batch)?;
        let (residual, delta) = (&mut ws.last_residual, &ws.last_delta);
        backend.add_rms_norm(&mut ws.last_normed, residual, delta, &self.norm, self.config.norm_eps)
    }

    fn head(&self, step: &mut Step<'_, B>) -> Result<()> {
        let Step { backend, ws, .. } = step;
        backend.linear(&mut ws.logits, &ws.last_normed, self.lm_head.as_ref().unwrap_or(&self.embed))
    }
}
