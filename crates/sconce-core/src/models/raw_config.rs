//! [`RawConfig`]: config.json, or a GGUF's metadata under config.json's keys.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::config::{Activation, LongRope, RopeScaling, Yarn};
use crate::error::{Error, Result};
use crate::weights::{GgufFile, GgufValue};

/// GGUF keys (after the architecture's name and a dot) and the config.json keys that they stand for.
const GGUF_KEYS: &[(&str, &str)] = &[
    ("block_count", "num_hidden_layers"),
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.layer_norm_epsilon", "layer_norm_eps"),
    ("attention.sliding_window", "sliding_window"),
    ("attention.sliding_window_pattern", "sliding_window_pattern"),
    ("attention.scale", "attention_multiplier"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("embedding_scale", "embedding_multiplier"),
    ("final_logit_softcapping", "final_logit_softcapping"),
    // Granite divides logits by it, others multiply them.
    ("logit_scale", "logits_scaling"),
    ("logit_scale", "logit_scale"),
    ("residual_scale", "residual_multiplier"),
    ("expert_count", "num_local_experts"),
    ("expert_feed_forward_length", "moe_intermediate_size"),
    ("expert_used_count", "num_experts_per_tok"),
    ("rope.dimension_count", "rotary_dim"),
    ("rope.dimension_sections", "mrope_section"),
    ("rope.freq_base", "rope_theta"),
    ("rope.freq_base_swa", "rope_local_base_freq"),
    ("rope.scaling.finetuned", "rope_finetuned"),
    ("rope.scaling.original_context_length", "original_max_position_embeddings"),
    ("vocab_size", "vocab_size"),
];

/// More layers than any model has: what is said of each takes memory before a tensor is looked for.
const MAX_LAYERS: usize = 4096;
/// The context of the first training.
const ORIGINAL: &str = "original_max_position_embeddings";
/// More frequencies than any head has, likewise.
const MAX_FREQUENCIES: usize = 4096;

/// config.json, or a GGUF's metadata under config.json's keys. Getters name the file and the key in their errors.
#[derive(Debug, Clone)]
pub struct RawConfig {
    path: PathBuf,
    values: Map<String, Value>,
}

impl RawConfig {
    /// Reads `config.json` in `dir`, and the end tokens of `generation_config.json` where there is one. A model that sees images has what
    /// is said of its text part under a key of its own, which stands for what is said beside it.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let mut values = read_object(&path)?;
        if let Some(Value::Object(of_text)) = values.remove("text_config") {
            values.extend(of_text.into_iter().filter(|(key, _)| key != "architectures"));
        }
        let generation = dir.join("generation_config.json");
        if generation.exists()
            && let Some(eos) = read_object(&generation)?.remove("eos_token_id")
        {
            values.insert("generation_eos_token_id".into(), eos);
        }
        Ok(Self { path, values })
    }

    /// Translates a GGUF's metadata. What it does not say is told by which tensors there are, and by those of `longrope`.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let (metadata, has) = (file.metadata(), |name: &str| file.contains(name));
        let arch = metadata.string("general.architecture")?.ok_or_else(|| metadata.missing("general.architecture"))?;
        let mut values = Map::new();
        values.insert("architectures".into(), json!([arch]));
        values.insert("tie_word_embeddings".into(), json!(!has("output.weight")));
        let has_bias = |names: &[&str]| names.iter().any(|name| has(&format!("blk.0.{name}.bias")));
        let attention_bias = has_bias(&["attn_q", "attn_k", "attn_v", "attn_output"]);
        values.insert("attention_bias".into(), json!(attention_bias));
        values.insert("mlp_bias".into(), json!(has_bias(&["ffn_gate", "ffn_up", "ffn_down"])));
        for (gguf_key, key) in GGUF_KEYS {
            let value = match metadata.get(&format!("{arch}.{gguf_key}")) {
                // There is none, whatever the architecture has where nothing is said.
                Some(GgufValue::Int(0)) if matches!(*key, "sliding_window" | "num_local_experts") => Value::Null,
                Some(GgufValue::Int(v)) => json!(v),
                Some(GgufValue::Float(v)) => json!(v),
                Some(GgufValue::Bool(v)) => json!(v),
                Some(GgufValue::Ints(v)) => json!(v),
                // The layers that slide, one by one.
                Some(GgufValue::Bools(slides)) if *key == "sliding_window_pattern" => {
                    let kind = |slides: &bool| if *slides { "sliding_attention" } else { "full_attention" };
                    values.insert("layer_types".into(), slides.iter().map(kind).collect());
                    continue;
                }
                _ => continue,
            };
            values.insert((*key).into(), value);
        }
        if let Some(tokens) = metadata.strings("tokenizer.ggml.tokens")? {
            values.entry("vocab_size").or_insert(json!(tokens.len()));
        }
        let kind = metadata.string(&format!("{arch}.rope.scaling.type"))?.unwrap_or("linear");
        // The second is the older key, of linear scaling.
        let factor = match metadata.float(&format!("{arch}.rope.scaling.factor"))? {
            Some(factor) => Some(factor),
            None => metadata.float(&format!("{arch}.rope.scale_linear"))?,
        };
        let of_scaling = |key: &str| metadata.float(&format!("{arch}.rope.scaling.{key}"));
        let attention_factor = of_scaling("attn_factor")?;
        if let Some(long_factor) = frequency_factors(file, "rope_factors_long.weight")? {
            let short_factor = frequency_factors(file, "rope_factors_short.weight")?;
            let scaling = json!({"rope_type": "longrope", "factor": factor, "short_factor": short_factor,
                                 "long_factor": long_factor, "attention_factor": attention_factor});
            values.insert("rope_scaling".into(), scaling);
        } else if kind == "yarn" {
            // Here it is a factor of what follows from the other.
            let of_factor = 1.0 + 0.1 * factor.unwrap_or(1.0).max(1.0).ln();
            let scaling = json!({"rope_type": kind, "factor": factor,
                                 "attention_factor": attention_factor.map(|given| given * of_factor),
                                 "beta_fast": of_scaling("yarn_beta_fast")?, "beta_slow": of_scaling("yarn_beta_slow")?});
            values.insert("rope_scaling".into(), scaling);
        } else if kind != "none" && (kind != "linear" || factor.is_some_and(|factor| factor != 0.0)) {
            values.insert("rope_scaling".into(), json!({"rope_type": kind, "factor": factor}));
        }
        if let Some(bos) = metadata.uint("tokenizer.ggml.bos_token_id")? {
            values.insert("bos_token_id".into(), json!(bos));
        }
        let eos: Vec<_> = ["eos_token_id", "eot_token_id", "eom_token_id"]
            .iter()
            .filter_map(|key| metadata.uint(&format!("tokenizer.ggml.{key}")).transpose())
            .collect::<Result<_>>()?;
        values.insert("eos_token_id".into(), json!(eos));
        Ok(Self { path: metadata.path().into(), values })
    }

    /// The file, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The architecture's name.
    pub fn architecture(&self) -> Result<&str> {
        let name = self.values.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
        name.ok_or_else(|| self.error("architectures", "expected a list with the architecture's class name"))
    }

    /// A required length: an integer from 1 to 2^31.
    pub fn length(&self, key: &str) -> Result<usize> {
        self.opt_length(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// How many layers there are.
    pub fn num_layers(&self) -> Result<usize> {
        const KEY: &str = "num_hidden_layers";
        let found = self.length(KEY)?;
        if found > MAX_LAYERS {
            return Err(self.error(KEY, format!("expected at most {MAX_LAYERS}, found {found}")));
        }
        Ok(found)
    }

    /// A length that may be absent or null.
    pub fn opt_length(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let length = value.as_u64().filter(|v| (1..1 << 31).contains(v));
        let found = || self.error(key, format!("expected an integer from 1 to 2^31, found {value}"));
        Ok(Some(length.ok_or_else(found)? as usize))
    }

    /// A number that may be absent or null.
    pub fn opt_float(&self, key: &str) -> Result<Option<f32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|v| v.is_finite());
        Ok(Some(number.ok_or_else(|| self.error(key, format!("expected a number, found {value}")))? as f32))
    }

    /// A boolean, or `default` where it is absent or null.
    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.error(key, format!("expected true or false, found {value}")))
    }

    /// Whether the key is there, be it null.
    pub fn contains(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// A length that is `default` where the key is absent, and `None` where it is null.
    pub fn length_or(&self, key: &str, default: usize) -> Result<Option<usize>> {
        if self.contains(key) { self.opt_length(key) } else { Ok(Some(default)) }
    }

    /// A number that is `default` where the key is absent, and `None` where it is null.
    pub fn float_or(&self, key: &str, default: f32) -> Result<Option<f32>> {
        if self.contains(key) { self.opt_float(key) } else { Ok(Some(default)) }
    }

    /// The activation under `key`, or `default` where it is absent or null.
    pub fn activation(&self, key: &str, default: Activation) -> Result<Activation> {
        match self.get(key).map(|v| (v, v.as_str())) {
            None => Ok(default),
            Some((_, Some("silu" | "swish"))) => Ok(Activation::Silu),
            Some((_, Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast"))) => Ok(Activation::GeluTanh),
            Some((value, _)) => Err(self.error(key, format!("activation {value} is not supported"))),
        }
    }

    /// Whether each layer has a sliding window, where `layer_types` says so (transformers 5).
    pub fn layer_types(&self, num_layers: usize) -> Result<Option<Vec<bool>>> {
        let Some(value) = self.get("layer_types") else { return Ok(None) };
        let slides = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => Some(true),
            Some("full_attention") => Some(false),
            _ => None,
        };
        let types: Option<Vec<bool>> = value.as_array().and_then(|a| a.iter().map(slides).collect());
        let expected = || format!("expected {num_layers} of sliding_attention or full_attention, found {value}");
        let types = types.filter(|t| t.len() == num_layers).ok_or_else(|| self.error("layer_types", expected()))?;
        Ok(Some(types))
    }

    /// The window of each layer: `window` where `layer_types` says that it slides, or of all but every `sliding_window_pattern`th, which is
    /// `pattern` where nothing is said.
    pub fn windows(&self, window: Option<usize>, num_layers: usize, pattern: usize) -> Result<Vec<Option<usize>>> {
        let pattern = self.opt_length("sliding_window_pattern")?.unwrap_or(pattern);
        let slides = match self.layer_types(num_layers)? {
            Some(slides) => slides,
            None => (1..=num_layers).map(|layer| layer % pattern != 0).collect(),
        };
        Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect())
    }

    /// How many of a head's dimensions turn: `rotary_dim` of a GGUF, or `partial_rotary_factor` of the head.
    pub fn rotary_dim(&self, head_dim: usize, default_factor: f32) -> Result<usize> {
        if let Some(dim) = self.opt_length("rotary_dim")? {
            return Ok(dim);
        }
        let of_rope = self.rope_parameters().and_then(|p| p.get("partial_rotary_factor")).and_then(Value::as_f64);
        let factor = match of_rope {
            Some(factor) => factor as f32,
            None => self.opt_float("partial_rotary_factor")?.unwrap_or(default_factor),
        };
        if !(factor > 0.0 && factor <= 1.0) {
            let message = format!("expected a number greater than 0 and at most 1, found {factor}");
            return Err(self.error("partial_rotary_factor", message));
        }
        Ok((head_dim as f32 * factor) as usize)
    }

    /// An integer from 0 to 2^31, or `default` where it is absent or null.
    pub fn int_or(&self, key: &str, default: usize) -> Result<usize> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let int = value.as_u64().filter(|v| *v < 1 << 31);
        Ok(int.ok_or_else(|| self.error(key, format!("expected an integer from 0 to 2^31, found {value}")))? as usize)
    }

    /// The config as layers of one kind have it, where `rope_parameters` has an entry for each kind (transformers 5). Where it has none,
    /// scaling is that of layers without a window.
    pub fn rope_of(&self, kind: &str) -> Self {
        let mut values = self.values.clone();
        if let Some(of_kind) = self.rope_parameters().and_then(|all| all.get(kind)) {
            values.insert("rope_parameters".into(), of_kind.clone());
        } else if kind == "sliding_attention" {
            for key in ["rope_theta", "rope_scaling", "rope_parameters"] {
                values.remove(key);
            }
        }
        Self { path: self.path.clone(), values }
    }

    /// The config with another value under `key`.
    pub(super) fn with(&self, key: &str, value: Value) -> Self {
        let mut values = self.values.clone();
        values.insert(key.into(), value);
        Self { path: self.path.clone(), values }
    }

    /// `rope_theta`, of either generation of configs.
    pub fn rope_theta(&self, default: f32) -> Result<f32> {
        let theta = match self.rope_parameters().and_then(|p| p.get("rope_theta")) {
            Some(theta) => theta.as_f64().map(|t| t as f32),
            None => self.opt_float("rope_theta")?.or(Some(default)),
        };
        theta.filter(|t| *t > 0.0).ok_or_else(|| self.error("rope_theta", "expected a positive number"))
    }

    /// `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5), but for `longrope`.
    pub fn rope_scaling(&self) -> Result<RopeScaling> {
        let Some(object) = self.rope_parameters() else {
            let other = ["rope_parameters", "rope_scaling"].into_iter().find_map(|key| Some((key, self.get(key)?)));
            let refuse = |(key, other)| Err(self.error(key, format!("expected an object, found {other}")));
            return other.map_or(Ok(RopeScaling::Default), refuse);
        };
        let number = |key: &str| {
            let missing = || self.error("rope_scaling", format!("{key}: expected a positive number"));
            self.rope_number(object, key)?.ok_or_else(missing)
        };
        match rope_type(object) {
            "default" => Ok(RopeScaling::Default),
            "yarn" => Ok(RopeScaling::Yarn(self.yarn(object)?)),
            "linear" => Ok(RopeScaling::Linear { factor: number("factor")? as f32 }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: number("factor")? as f32,
                low_freq_factor: number("low_freq_factor")? as f32,
                high_freq_factor: number("high_freq_factor")? as f32,
                original_max_position_embeddings: number("original_max_position_embeddings")? as usize,
            }),
            other => Err(self.error("rope_scaling", format!("rope_type {other:?} is not supported"))),
        }
    }

    /// `longrope`, `su` in older files, whose sequences have at most `max_len` tokens; `None`: RoPE is scaled in another way.
    pub fn long_rope(&self, rotary_dim: usize, max_len: usize) -> Result<Option<LongRope>> {
        let is_long = |object: &&Map<String, Value>| matches!(rope_type(object), "longrope" | "su");
        let Some(object) = self.rope_parameters().filter(is_long) else { return Ok(None) };
        let missing = || self.error(ORIGINAL, "is missing, and rope_scaling is longrope");
        let original = self.original_len(object)?.ok_or_else(missing)?;
        let ratio = self.rope_number(object, "factor")?.unwrap_or(max_len as f64 / original as f64);
        let attention_factor = match self.rope_number(object, "attention_factor")? {
            Some(factor) => factor,
            None if ratio <= 1.0 => 1.0,
            None => (1.0 + ratio.ln() / (original as f64).ln()).sqrt(),
        };
        if !attention_factor.is_finite() {
            return Err(self.error(ORIGINAL, format!("expected at least 2, found {original}")));
        }
        Ok(Some(LongRope {
            short_factors: self.rope_factors(object, "short_factor", rotary_dim / 2)?,
            long_factors: self.rope_factors(object, "long_factor", rotary_dim / 2)?,
            original_max_position_embeddings: original,
            attention_factor: attention_factor as f32,
        }))
    }

    fn yarn(&self, object: &Map<String, Value>) -> Result<Yarn> {
        let number = |key| self.rope_number(object, key);
        let (original, max_len) = (self.original_len(object)?, self.opt_length("max_position_embeddings")?);
        let (original, factor) = match (original, max_len, number("factor")?) {
            (Some(original), _, Some(factor)) | (None, Some(original), Some(factor)) => (original, factor),
            (Some(original), Some(max_len), None) => (original, max_len as f64 / original as f64),
            (_, _, None) => return Err(self.error("rope_scaling", "factor: is missing, and rope_type is yarn")),
            (None, None, _) => return Err(self.error(ORIGINAL, "is missing, and rope_type is yarn")),
        };
        let scale = |factor: f64, by: f64| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
        let attention_factor = match (number("attention_factor")?, number("mscale")?, number("mscale_all_dim")?) {
            (Some(given), ..) => given,
            (None, Some(by), Some(of_all)) => scale(factor, by) / scale(factor, of_all),
            _ => scale(factor, 1.0),
        };
        Ok(Yarn {
            factor: factor as f32,
            original_max_position_embeddings: original,
            beta_fast: number("beta_fast")?.unwrap_or(32.0) as f32,
            beta_slow: number("beta_slow")?.unwrap_or(1.0) as f32,
            truncate: object.get("truncate").is_none_or(|truncate| truncate != false),
            attention_factor: attention_factor as f32,
        })
    }

    /// The original context, beside `rope_scaling`, where Phi-3 has it, or within.
    fn original_len(&self, object: &Map<String, Value>) -> Result<Option<usize>> {
        match self.opt_length(ORIGINAL)? {
            Some(len) => Ok(Some(len)),
            None => Ok(self.rope_number(object, ORIGINAL)?.map(|len| len as usize)),
        }
    }

    /// A positive number of `rope_scaling`, which may be absent or null.
    fn rope_number(&self, object: &Map<String, Value>, key: &str) -> Result<Option<f64>> {
        let Some(value) = object.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
        let found = || self.error("rope_scaling", format!("{key}: expected a positive number, found {value}"));
        value.as_f64().filter(|v| *v > 0.0).map(Some).ok_or_else(found)
    }

    /// Positive numbers of `rope_scaling`.
    fn rope_factors(&self, object: &Map<String, Value>, key: &str, len: usize) -> Result<Vec<f32>> {
        let error = |found: &str| {
            self.error("rope_scaling", format!("{key}: expected a list of {len} positive numbers, found {found}"))
        };
        let list = object.get(key).and_then(Value::as_array).ok_or_else(|| error("none"))?;
        let number = |value: &Value| value.as_f64().map(|v| v as f32).filter(|v| *v > 0.0 && v.is_finite());
        let factors: Vec<f32> = list.iter().filter_map(number).collect();
        let are_all = factors.len() == len && list.len() == len;
        if are_all { Ok(factors) } else { Err(error(&format!("{} in a list of {}", factors.len(), list.len()))) }
    }

    fn rope_parameters(&self) -> Option<&Map<String, Value>> {
        self.get("rope_parameters").or_else(|| self.get("rope_scaling")).and_then(Value::as_object)
    }

    /// The beginning-of-sequence id.
    pub fn bos_token_id(&self) -> Result<Option<u32>> {
        Ok(self.token_ids("bos_token_id")?.first().copied())
    }

    /// The end ids of config.json and generation_config.json, or of a GGUF, each once.
    pub fn eos_token_ids(&self) -> Result<Vec<u32>> {
        let mut ids = self.token_ids("eos_token_id")?;
        ids.extend(self.token_ids("generation_eos_token_id")?);
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// An id, or a list of ids; empty where it is absent or null.
    fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let id = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
        let ids: Option<Vec<u32>> = list.iter().map(id).collect();
        ids.ok_or_else(|| self.error(key, format!("expected a token id or a list of them, found {value}")))
    }

    /// An error at `key`.
    pub fn error(&self, key: &str, message: impl std::fmt::Display) -> Error {
        Error::file(&self.path, format!("{key}: {message}"))
    }

    /// What is said under a key; `None` where that is null.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|v| !v.is_null())
    }
}

/// How RoPE is scaled, by either key.
fn rope_type(object: &Map<String, Value>) -> &str {
    let kind = object.get("rope_type").or_else(|| object.get("type")).and_then(Value::as_str);
    kind.unwrap_or("default")
}

/// A GGUF's divisors of frequencies, where it has a tensor of this name.
fn frequency_factors(file: &GgufFile, name: &str) -> Result<Option<Vec<f32>>> {
    let Some(tensor) = file.tensor(name) else { return Ok(None) };
    let len: usize = tensor.shape.iter().product();
    if len > MAX_FREQUENCIES {
        let message = format!("expected at most {MAX_FREQUENCIES} elements, found {len}");
        return Err(Error::tensor(file.path(), name, message));
    }
    Ok(Some(tensor.to_f32()))
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let value = serde_json::from_str(&text).map_err(|e| Error::file(path, format!("invalid JSON: {e}")))?;
    match value {
        Value::Object(values) => Ok(values),
        other => Err(Error::file(path, format!("expected a JSON object, found {other}"))),
    }
}
