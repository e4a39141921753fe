//! `Gemma2ForCausalLM` (Hugging Face's `modeling_gemma2.py`): RMSNorm by 1 + weight, before and after each block's
//! parts; embedding times sqrt(hidden); GELU gates; every other layer with a sliding window; soft caps.

use super::{Architecture, Bias, Linear, Loader, Model, RawConfig, Step};
use crate::backend::{AttentionSpec, Backend};
use crate::config::{Activation, ModelConfig, RopeConfig};
use crate::error::Result;

/// A loaded model.
pub(super) struct Gemma2<B: Backend> {
    config: ModelConfig,
    embed: B::Matrix,
    layers: Vec<Layer<B>>,
    norm: B::Vector,
    /// `None`: the embedding's.
    lm_head: Option<B::Matrix>,
    rope: B::Rope,
    local_rope: Option<B::Rope>,
}

struct Layer<B: Backend> {
    input_norm: B::Vector,
    qkv: Linear<B>,
    /// Of a head of q and of one of k (Gemma 3).
    head_norms: Option<(B::Vector, B::Vector)>,
    o: Linear<B>,
    post_attention_norm: B::Vector,
    pre_feedforward_norm: B::Vector,
    gate_up: Linear<B>,
    down: Linear<B>,
    post_feedforward_norm: B::Vector,
}

/// Layers of the 27B model, whose GGUF does not tell that its scores are scaled by hidden / heads.
const NUM_LAYERS_27B: usize = 46;

fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
    let (hidden_size, num_attention_heads) = (raw.length("hidden_size")?, raw.length("num_attention_heads")?);
    let num_hidden_layers = raw.num_layers()?;
    let head_dim = raw.opt_length("head_dim")?.unwrap_or(256);
    let query_scalar = match raw.opt_float("query_pre_attn_scalar")? {
        Some(scalar) => scalar,
        None if num_hidden_layers == NUM_LAYERS_27B => (hidden_size / num_attention_heads) as f32,
        None => 256.0,
    };
    let window = raw.length_or("sliding_window", 4096)?;
    let sliding_window = match raw.layer_types(num_hidden_layers)? {
        Some(slides) => slides.into_iter().map(|slides| window.filter(|_| slides)).collect(),
        None => (0..num_hidden_layers).map(|i| window.filter(|_| i % 2 == 0)).collect(),
    };
    Ok(ModelConfig {
        architecture: raw.architecture()?.into(),
        hidden_size,
        intermediate_size: raw.length("intermediate_size")?,
        experts: None,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: raw.opt_length("num_key_value_heads")?.unwrap_or(4),
        head_dim,
        vocab_size: raw.length("vocab_size")?,
        max_position_embeddings: raw.opt_length("max_position_embeddings")?.unwrap_or(8192),
        norm_eps: raw.opt_float("rms_norm_eps")?.unwrap_or(1e-6),
        rope: RopeConfig { rope_theta: raw.rope_theta(10_000.0)?, rotary_dim: head_dim, scaling: raw.rope_scaling()? },
        local_rope: None,
        qk_norm: false,
        tie_word_embeddings: raw.bool_or("tie_word_embeddings", true)?,
        attention_bias: raw.bool_or("attention_bias", false)?,
        mlp_bias: false,
        hidden_act: raw.activation("hidden_activation", Activation::GeluTanh)?,
        attention_scale: 1.0 / query_scalar.sqrt(),
        attn_logit_softcapping: raw.float_or("attn_logit_softcapping", 50.0)?,
        final_logit_softcapping: raw.float_or("final_logit_softcapping", 30.0)?,
        sliding_window,
        bos_token_id: raw.bos_token_id()?,
        eos_token_ids: raw.eos_token_ids()?,
    })
}

impl<B: Backend> Architecture<B> for Gemma2<B> {
    type Model = Self;
    const NAME: &'static str = "Gemma2ForCausalLM";
    const GGUF_NAME: Option<&'static str> = Some("gemma2");

    fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
        parse_config(raw)
    }

    fn load(loader: &Loader<'_, B>) -> Result<Self> {
        let config = loader.config;
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let embedding = |name: &str| loader.matrix(&[(name.into(), vocab)], hidden, Bias::Absent);
        Ok(Self {
            embed: embedding("model.embed_tokens")?,
            layers: (0..config.num_hidden_layers).map(|i| Layer::load(loader, i)).collect::<Result<_>>()?,
            norm: loader.vector_plus_one("model.norm.weight", hidden)?,
            lm_head: if config.tie_word_embeddings { None } else { Some(embedding("lm_head")?) },
            rope: loader.rope()?,
            local_rope: loader.local_rope()?,
            config: config.clone(),
        })
    }
}

impl<B: Backend> Layer<B> {
    fn load(loader: &Loader<'_, B>, idx: usize) -> Result<Self> {
        let config = loader.config;
        let name = |part: &str| format!("model.layers.{idx}.{part}");
        let norm_of = |part: &str, len| loader.vector_plus_one(&name(&format!("{part}.weight")), len);
        let norm = |part| norm_of(part, config.hidden_size);
        let (hidden, inter) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.q_dim(), config.num_key_value_heads * config.head_dim);
        let bias = Bias::from(config.attention_bias);
        let qkv = [(name("self_attn.q_proj"), q), (name("self_attn.k_proj"), kv), (name("self_attn.v_proj"), kv)];
        let gate_up = [(name("mlp.gate_proj"), inter), (name("mlp.up_proj"), inter)];
        Ok(Self {
            input_norm: norm("input_layernorm")?,
            qkv: loader.linear(&qkv, hidden, bias)?,
            head_norms: if config.qk_norm {
                let norm = |part| norm_of(part, config.head_dim);
                Some((norm("self_attn.q_norm")?, norm("self_attn.k_norm")?))
            } else {
                None
            },
            o: loader.linear(&[(name("self_attn.o_proj"), hidden)], q, bias)?,
            post_attention_norm: norm("post_attention_layernorm")?,
            pre_feedforward_norm: norm("pre_feedforward_layernorm")?,
            gate_up: loader.linear(&gate_up, hidden, Bias::Absent)?,
            down: loader.linear(&[(name("mlp.down_proj"), hidden)], inter, Bias::Absent)?,
            post_feedforward_norm: norm("post_feedforward_layernorm")?,
        })
    }
}

impl<B: Backend> Model<B> for Gemma2<B> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embed(&self, step: &mut Step<'_, B>) -> Result<()> {
        let scale = (self.config.hidden_size as f32).sqrt();
        step.backend.embed(&mut step.ws.residual, &self.embed, step.batch, scale)
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
        let rope = self.local_rope.as_ref().filter(|_| spec.window.is_some()).unwrap_or(&self.rope);
        backend.rope_attention((&mut ws.attn_out, &mut ws.qkv), kv, rope, batch, (&spec).into())?;
        layer.o.forward(backend, &mut ws.normed, &ws.attn_out, batch)?;
        backend.rms_norm(&mut ws.delta, &ws.normed, &layer.post_attention_norm, eps)?;
        backend.add_rms_norm(&mut ws.normed, &mut ws.residual, &ws.delta, &layer.pre_feedforward_norm, eps)?;
        let act = self.config.hidden_act;
        layer.gate_up.gated(backend, (&mut ws.mlp_act, &mut ws.gate_up), &ws.normed, batch, act)?;
        layer.down.forward(backend, &mut ws.normed, &ws.mlp_act, batch)?;
        backend.rms_norm(&mut ws.delta, &ws.normed, &layer.post_feedforward_norm, eps)
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
