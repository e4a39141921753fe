//! [`AdapterConfig`]: what an adapter's adapter_config.json says of ranks and scales, and what is refused of it.

use std::path::{Path, PathBuf};

use regex::Regex;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

const FILE: &str = "adapter_config.json";
/// The greatest rank.
const MAX_RANK: usize = 512;

/// Keys that must be absent, null, false or empty, and what they would mean.
const REFUSED: [(&str, &str); 8] = [
    ("use_dora", "magnitudes beside the low-rank matrices (DoRA)"),
    ("fan_in_fan_out", "weights that are stored columns first"),
    ("lora_bias", "biases"),
    ("modules_to_save", "whole modules beside the low-rank matrices"),
    ("layer_replication", "layers that are used several times"),
    ("trainable_token_indices", "rows of the embedding"),
    ("target_parameters", "parameters that are no linear layer's, as those of experts"),
    ("alora_invocation_tokens", "adapters that begin in the middle of a text (aLoRA)"),
];
/// Keys of settings that matter in training alone, although their names end like those of other kinds of adapters.
const OF_TRAINING: [&str; 6] =
    ["loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config", "runtime_config"];
/// Ways to begin training that leave the model's own weights as they are.
const INITS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// What adapter_config.json says.
pub(super) struct AdapterConfig {
    path: PathBuf,
    rank: usize,
    alpha: f32,
    /// Ranks and alphas of modules whose names end like this.
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f32)>,
    /// Whether alpha is divided by the rank's root rather than by the rank.
    is_rank_stabilized: bool,
}

impl AdapterConfig {
    /// Reads the one in `dir`. Errors name the key.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        if !path.exists() {
            return Err(Error::file(dir, format!("holds no {FILE}: expected an adapter in PEFT's form")));
        }
        let text = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let json = serde_json::from_slice(&text).map_err(|e| Error::file(&path, format!("is not JSON: {e}")))?;
        let Value::Object(map) = json else { return Err(Error::file(&path, "expected a JSON object")) };
        let reader = Reader { path: &path, map: &map };
        reader.refuse()?;
        Ok(Self {
            rank: reader.rank("r", map.get("r").unwrap_or(&Value::Null))?,
            alpha: reader.alpha("lora_alpha", map.get("lora_alpha").unwrap_or(&Value::Null))?,
            ranks: reader.patterns("rank_pattern", Reader::rank)?,
            alphas: reader.patterns("alpha_pattern", Reader::alpha)?,
            is_rank_stabilized: reader.flag("use_rslora")?,
            path,
        })
    }

    /// The rank of a module.
    pub(super) fn rank_of(&self, module: &str) -> usize {
        first_match(&self.ranks, module).unwrap_or(self.rank)
    }

    /// What a module's product is multiplied with.
    pub(super) fn scale_of(&self, module: &str) -> f32 {
        let (alpha, rank) = (first_match(&self.alphas, module).unwrap_or(self.alpha), self.rank_of(module) as f32);
        alpha / if self.is_rank_stabilized { rank.sqrt() } else { rank }
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// As PEFT has it: the first pattern that is all of a module's name, or all behind one of its dots.
fn first_match<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(module)).map(|&(_, value)| value)
}

struct Reader<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
}

impl Reader<'_> {
    fn error(&self, key: &str, message: impl std::fmt::Display) -> Error {
        Error::file(self.path, format!("{key}: {message}"))
    }

    /// False where it is absent or null.
    fn flag(&self, key: &str) -> Result<bool> {
        match self.map.get(key).unwrap_or(&Value::Null) {
            Value::Null => Ok(false),
            Value::Bool(is_set) => Ok(*is_set),
            other => Err(self.error(key, format!("expected true or false, found {other}"))),
        }
    }

    /// Refuses what would be something else than low-rank matrices of linear layers.
    fn refuse(&self) -> Result<()> {
        let kind = self.map.get("peft_type").unwrap_or(&Value::Null);
        if kind != "LORA" {
            return Err(self.error("peft_type", format!("expected \"LORA\", found {kind}")));
        }
        for (key, what) in REFUSED {
            if let Some(found) = self.map.get(key).filter(|value| is_set(value)) {
                return Err(self.error(key, format!("{what} are not supported, found {found}")));
            }
        }
        if let Some(found) = self.map.get("bias").filter(|&value| is_set(value) && value != "none") {
            return Err(self.error("bias", format!("biases are not supported: expected \"none\", found {found}")));
        }
        if let Some(Value::String(init)) = self.map.get("init_lora_weights")
            && !INITS.contains(&init.as_str())
        {
            let message = format!(
                "{init:?} changes the model's own weights, which are not here: save the adapter as a plain one \
                 (PEFT's path_initial_model_for_weight_conversion)"
            );
            return Err(self.error("init_lora_weights", message));
        }
        // Kinds of adapters that are not known yet go by such names.
        let names_a_kind = |key: &str| {
            key.starts_with("use_") && key != "use_rslora" || key.ends_with("_config") && !OF_TRAINING.contains(&key)
        };
        match self.map.iter().find(|(key, value)| names_a_kind(key) && is_set(value)) {
            Some((key, value)) => Err(self.error(key, format!("is not supported, found {value}"))),
            None => Ok(()),
        }
    }

    fn rank(&self, key: &str, value: &Value) -> Result<usize> {
        let rank =
            value.as_u64().and_then(|rank| usize::try_from(rank).ok()).filter(|rank| (1..=MAX_RANK).contains(rank));
        rank.ok_or_else(|| self.error(key, format!("expected a rank from 1 to {MAX_RANK}, found {value}")))
    }

    fn alpha(&self, key: &str, value: &Value) -> Result<f32> {
        let alpha = value.as_f64().map(|alpha| alpha as f32).filter(|alpha| alpha.is_finite());
        alpha.ok_or_else(|| self.error(key, format!("expected a number, found {value}")))
    }

    /// An object of regular expressions and what they stand for.
    fn patterns<T>(&self, key: &str, read: impl Fn(&Self, &str, &Value) -> Result<T>) -> Result<Vec<(Regex, T)>> {
        let Some(value) = self.map.get(key).filter(|value| is_set(value)) else { return Ok(Vec::new()) };
        let Value::Object(patterns) = value else {
            return Err(self.error(key, format!("expected an object, found {value}")));
        };
        let entry = |(pattern, value): (&String, &Value)| {
            let regex = Regex::new(&format!(r"^(.*\.)?({pattern})$"));
            let regex = regex.map_err(|e| self.error(key, format!("{pattern:?} is no regular expression: {e}")))?;
            Ok((regex, read(self, &format!("{key}.{pattern}"), value)?))
        };
        patterns.iter().map(entry).collect()
    }
}

/// Whether a value says anything.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    }
}
