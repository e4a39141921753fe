//! `LlamaForCausalLM`: Llama 1 to 3.3, SmolLM and the many models of that shape (Hugging Face's `modeling_llama.py`).

use super::experts::Experts;
use super::norm::Norm;
use super::ropes::Ropes;
use super::{Architecture, Bias, Linear, Loader, Model, Output, RawConfig, Step, mixtral};
use crate::backend::{AttentionSpec, Backend, LayerAttention};
use crate::config::{Activation, ModelConfig, QkNorm, RopeConfig, RopeScaling};
use crate::error::Result;

/// A loaded model.
pub(super) struct Llama<B: Backend> {
    config: ModelConfig,
    embed: B::Matrix,
    layers: Vec<Layer<B>>,
    norm: B::Vector,
    /// `None`: the embedding's.
    lm_head: Option<B::Matrix>,
    ropes: Ropes<B>,
}

/// One block's weights.
pub(super) struct Layer<B: Backend> {
    pub(super) attention_norm: Norm<B>,
    pub(super) qkv: Linear<B>,
    /// Of q and of k, a weight for each element of a head, or of all heads.
    pub(super) qk_norms: Option<(B::Vector, B::Vector)>,
    /// One a query head.
    pub(super) sinks: Option<B::Vector>,
    pub(super) o: Output<B>,
    pub(super) mlp_norm: Norm<B>,
    pub(super) mlp: Mlp<B>,
}

/// What stands behind attention.
pub(super) enum Mlp<B: Backend> {
    Dense { gate_up: Linear<B>, down: Output<B> },
    Experts(Experts<B>),
}

/// What a layer's norms are called, where there are some: of what its parts take in, and of what they give.
pub(super) struct Norms {
    pub(super) before_attention: Option<&'static str>,
    pub(super) after_attention: Option<&'static str>,
    pub(super) before_mlp: Option<&'static str>,
    pub(super) after_mlp: Option<&'static str>,
}

/// Those that most models of this shape have.
pub(super) const NORMS: Norms = Norms {
    before_attention: Some("input_layernorm"),
    after_attention: None,
    before_mlp: Some("post_attention_layernorm"),
    after_mlp: None,
};

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
        rope_layers: vec![true; num_hidden_layers],
        qk_norm: None,
        norm_offset: 0.0,
        interleaved_rope: false,
        embedding_scale: 1.0,
        tie_word_embeddings: raw.bool_or("tie_word_embeddings", false)?,
        attention_bias,
        mlp_bias: raw.bool_or("mlp_bias", false)?,
        hidden_act: raw.activation("hidden_act", Activation::Silu)?,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attn_logit_softcapping: None,
        logit_scale: 1.0,
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
        Self::load_with(loader, |loader, idx| Layer::load(loader, idx, &NORMS, [bias, bias]))
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
            norm: loader.scaled_norm("model.norm", hidden, config.logit_scale)?,
            lm_head: if config.tie_word_embeddings { None } else { Some(embedding("lm_head")?) },
            ropes: Ropes::load(loader)?,
            config: config.clone(),
        })
    }
}

impl<B: Backend> Layer<B> {
    /// A layer, by the names that most models of this shape have. The biases are those of q, k and v, and of o.
    pub(super) fn load(loader: &Loader<'_, B>, idx: usize, norms: &Norms, biases: [Bias; 2]) -> Result<Self> {
        Self::load_with(loader, idx, norms, biases, Mlp::load(loader, idx, norms)?)
    }

    /// The same with another MLP.
    pub(super) fn load_with(
        loader: &Loader<'_, B>,
        idx: usize,
        norms: &Norms,
        [qkv_bias, o_bias]: [Bias; 2],
        mlp: Mlp<B>,
    ) -> Result<Self> {
        let config = loader.config;
        let name = |part: &str| format!("model.layers.{idx}.{part}");
        let hidden = config.hidden_size;
        let (q, kv) = (config.q_dim(), config.num_key_value_heads * config.head_dim);
        let qkv = [(name("self_attn.q_proj"), q), (name("self_attn.k_proj"), kv), (name("self_attn.v_proj"), kv)];
        let qk_norms = |q_len, k_len| -> Result<_> {
            Ok(Some((loader.norm(&name("self_attn.q_norm"), q_len)?, loader.norm(&name("self_attn.k_norm"), k_len)?)))
        };
        Ok(Self {
            attention_norm: Norm::load(loader, norms.before_attention.map(name).as_deref())?,
            qkv: loader.linear(&qkv, hidden, qkv_bias)?,
            qk_norms: match config.qk_norm {
                None => None,
                Some(QkNorm::EachHead) => qk_norms(config.head_dim, config.head_dim)?,
                Some(QkNorm::AllHeads) => qk_norms(q, kv)?,
            },
            sinks: None,
            o: loader.output((name("self_attn.o_proj"), hidden), q, o_bias, norms.after_attention.map(name))?,
            mlp_norm: Norm::load(loader, norms.before_mlp.map(name).as_deref())?,
            mlp,
        })
    }
}

impl<B: Backend> Mlp<B> {
    /// By the names that most models of this shape have; experts by Mixtral's.
    fn load(loader: &Loader<'_, B>, idx: usize, norms: &Norms) -> Result<Self> {
        let config = loader.config;
        if let Some(experts) = &config.experts {
            return Ok(Self::Experts(Experts::load(loader, idx, &mixtral::NAMES, experts)?));
        }
        let (inter, part) = (config.intermediate_size, |part: &str| format!("model.layers.{idx}.mlp.{part}"));
        Self::load_dense(loader, idx, norms, &[(part("gate_proj"), inter), (part("up_proj"), inter)])
    }

    /// The same of a model that stores gate and up as one matrix.
    pub(super) fn load_fused(loader: &Loader<'_, B>, idx: usize, norms: &Norms) -> Result<Self> {
        let rows = 2 * loader.config.intermediate_size;
        Self::load_dense(loader, idx, norms, &[(format!("model.layers.{idx}.mlp.gate_up_proj"), rows)])
    }

    fn load_dense(loader: &Loader<'_, B>, idx: usize, norms: &Norms, gate_up: &[(String, usize)]) -> Result<Self> {
        let config = loader.config;
        let name = |part: &str| format!("model.layers.{idx}.{part}");
        let (hidden, inter, bias) = (config.hidden_size, config.intermediate_size, Bias::from(config.mlp_bias));
        Ok(Self::Dense {
            gate_up: loader.linear(gate_up, hidden, bias)?,
            down: loader.output((name("mlp.down_proj"), hidden), inter, bias, norms.after_mlp.map(name))?,
        })
    }
}

impl<B: Backend> Model<B> for Llama<B> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embed(&self, step: &mut Step<'_, B>) -> Result<()> {
        step.backend.embed(&mut step.ws.residual, &self.embed, step.batch, self.config.embedding_scale)
    }

    fn layer(&self, idx: usize, step: &mut Step<'_, B>) -> Result<()> {
        let Step { backend, ws, kv, batch } = step;
        let (layer, eps) = (&self.layers[idx], self.config.norm_eps);
        let spec = AttentionSpec::of_layer(&self.config, idx);
        if idx == 0 {
            layer.attention_norm.forward(backend, ws)?;
        } else {
            layer.attention_norm.add_forward(backend, ws)?;
        }
        layer.qkv.forward(backend, &mut ws.qkv, &ws.normed, batch)?;
        if let Some((q, k)) = &layer.qk_norms {
            backend.head_norm(&mut ws.qkv, (q, k), &spec, eps)?;
        }
        let attention = LayerAttention { spec: &spec, sinks: layer.sinks.as_ref() };
        let rope = self.ropes.of_layer(&self.config, idx);
        backend.rope_attention((&mut ws.attn_out, &mut ws.qkv), kv, rope, batch, attention)?;
        layer.o.forward(backend, (&mut ws.delta, &mut ws.normed), &ws.attn_out, batch)?;
        layer.mlp_norm.add_forward(backend, ws)?;
        match &layer.mlp {
            Mlp::Dense { gate_up, down } => {
                let act = self.config.hidden_act;
                gate_up.gated(backend, (&mut ws.mlp_act, &mut ws.gate_up), &ws.normed, batch, act)?;
                down.forward(backend, (&mut ws.delta, &mut ws.normed), &ws.mlp_act, batch)
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
        backend.linear(&mut ws.logits, &ws.last_normed, self.lm_head.as_ref().unwrap_or(&self.embed))?;
        match self.config.final_logit_softcapping {
            Some(cap) => backend.softcap(&mut ws.logits, cap),
            None => Ok(()),
        }
    }
}
