//! [`Pooling`]: how a model's files say that a text's vector is made.
//!
//! Published beside a model by sentence-transformers: `modules.json` names the steps, and `1_Pooling/config.json` says which tokens'
//! hidden states a vector is made of. A GGUF has `ARCH.pooling_type`, as llama.cpp numbers them. Where nothing is said it is the last
//! token's, divided by its Euclidean norm, as decoder models are trained for it.

use std::path::{Component, Path};

use serde_json::{Map, Value};

use super::files::ModelFiles;
use crate::error::{Error, Result};
use crate::models::RawConfig;
use crate::weights::GgufMetadata;

const MODULES: &str = "modules.json";
/// Where the tokens are chosen, unless the modules say otherwise.
const DEFAULT_FOLDER: &str = "1_Pooling";
/// The one choice that there is: what sentence-transformers calls it, and the number that llama.cpp gives it.
const LAST_TOKEN: &str = "lasttoken";
const GGUF_LAST_TOKEN: usize = 3;
/// llama.cpp's number for a model that says nothing.
const GGUF_UNSPECIFIED: usize = 0;

/// How a text's vector is made of its last token's hidden state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pooling {
    /// Whether vectors are divided by their Euclidean norm.
    normalizes: bool,
    /// How short a vector may be cut.
    lengths: Lengths,
}

/// How many of a vector's first numbers are a vector too (Matryoshka representation learning; Kusupati et al. 2022).
#[derive(Debug, Clone, PartialEq, Eq)]
enum Lengths {
    /// All of them alone.
    Full,
    /// Any number.
    Any,
    /// These.
    Listed(Vec<usize>),
}

impl Pooling {
    /// Normalised, and of one length, as where nothing is said.
    #[cfg(test)]
    pub(super) const PLAIN: Self = Self { normalizes: true, lengths: Lengths::Full };

    /// As a model's files have it. Errors: what is not supported, and files that cannot be read.
    pub(super) fn of(files: &ModelFiles) -> Result<Self> {
        let raw = &files.raw;
        for (key, supported) in
            [("is_causal", true), ("use_bidirectional_attention", false), ("use_bidirectional", false)]
        {
            if raw.bool_or(key, supported)? != supported {
                return Err(raw.error(key, format!("{} is not supported: tokens see those before them", !supported)));
            }
        }
        let metadata = files.store.as_ref().ok().and_then(|store| store.gguf_metadata());
        let normalizes = match metadata {
            Some(metadata) => check_gguf(raw.architecture()?, metadata).map(|()| true)?,
            None => of_folder(&files.path)?,
        };
        Ok(Self { normalizes, lengths: lengths(raw)? })
    }

    /// The length of vectors of `full` numbers that are asked to have `dimensions`. Errors name the request's field.
    pub(super) fn len(&self, full: usize, dimensions: Option<usize>) -> Result<usize> {
        let Some(asked) = dimensions else { return Ok(full) };
        let can_be = match &self.lengths {
            _ if asked == full => true,
            Lengths::Full => false,
            Lengths::Any => (1..=full).contains(&asked),
            Lengths::Listed(lens) => (1..=full).contains(&asked) && lens.contains(&asked),
        };
        if can_be {
            return Ok(asked);
        }
        let possible = match &self.lengths {
            Lengths::Full => format!("{full}: its config does not say that they can be cut (is_matryoshka)"),
            Lengths::Any => format!("1 to {full}"),
            Lengths::Listed(lens) => format!("{full}, or one of {lens:?}"),
        };
        let message = format!("dimensions: cannot be {asked}, as the model's vectors have {possible}");
        Err(Error::invalid("dimensions", message))
    }

    /// The vector of `len` numbers that a hidden state stands for; `None`: a number of it is not finite.
    pub(super) fn vector(&self, hidden: &[f32], len: usize) -> Option<Vec<f32>> {
        let kept = &hidden[..len];
        if !kept.iter().all(|x| x.is_finite()) {
            return None;
        }
        if !self.normalizes {
            return Some(kept.to_vec());
        }
        // Added up in order: equal states have equal vectors. A vector of zeros stays one.
        let norm = kept.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt().max(1e-12);
        Some(kept.iter().map(|&x| (f64::from(x) / norm) as f32).collect())
    }
}

fn check_gguf(architecture: &str, metadata: &GgufMetadata) -> Result<()> {
    let key = format!("{architecture}.pooling_type");
    match metadata.uint(&key)? {
        None | Some(GGUF_UNSPECIFIED | GGUF_LAST_TOKEN) => Ok(()),
        Some(other) => {
            let message = format!("{key}: {other} is not supported; supported: {GGUF_LAST_TOKEN}, the last token");
            Err(Error::file(metadata.path(), message))
        }
    }
}

/// Whether the vectors of the model in a folder are normalised.
fn of_folder(dir: &Path) -> Result<bool> {
    let path = dir.join(MODULES);
    if !path.exists() {
        let pooling = dir.join(DEFAULT_FOLDER).join("config.json");
        if pooling.exists() {
            check_pooling(&pooling)?;
        }
        return Ok(true);
    }
    let modules = match read_json(&path)? {
        Value::Array(modules) => modules,
        _ => return Err(Error::file(&path, "expected a list of modules")),
    };
    let (mut has_pooling, mut normalizes) = (false, false);
    for module in &modules {
        let of_module = |key: &str| module[key].as_str();
        let kind = of_module("type").and_then(|kind| kind.rsplit('.').next()).unwrap_or_default();
        match kind {
            "Transformer" => {}
            "Normalize" => normalizes = true,
            "Pooling" => {
                let folder = Path::new(of_module("path").unwrap_or(DEFAULT_FOLDER));
                if !folder.components().all(|part| matches!(part, Component::Normal(_))) {
                    return Err(Error::file(&path, format!("{} is no folder beside it", folder.display())));
                }
                check_pooling(&dir.join(folder).join("config.json"))?;
                has_pooling = true;
            }
            _ => {
                let kind = module["type"].to_string();
                let message =
                    format!("modules of type {kind} are not supported; supported: Transformer, Pooling, Normalize");
                return Err(Error::file(&path, message));
            }
        }
    }
    if has_pooling { Ok(normalizes) } else { Err(Error::file(&path, "names no module of type Pooling")) }
}

/// That it is the last token's state alone.
fn check_pooling(path: &Path) -> Result<()> {
    let Value::Object(config) = read_json(path)? else { return Err(Error::file(path, "expected an object")) };
    let modes = modes(&config);
    if modes == [LAST_TOKEN] {
        return Ok(());
    }
    let found = if modes.is_empty() { "none".into() } else { modes.join(" and ") };
    Err(Error::file(path, format!("pooling_mode: only {LAST_TOKEN} is supported, found {found}")))
}

/// The modes that a pooling config asks for: by a flag each, or by name.
fn modes(config: &Map<String, Value>) -> Vec<&str> {
    const KEY: &str = "pooling_mode";
    let named = match config.get(KEY) {
        Some(Value::Array(modes)) => modes.iter().filter_map(Value::as_str).collect(),
        Some(mode) => mode.as_str().into_iter().collect(),
        None => Vec::new(),
    };
    let flagged = config.iter().filter(|(_, value)| value.as_bool() == Some(true));
    let flagged = flagged.filter_map(|(key, _)| key.strip_prefix(KEY)?.strip_prefix('_')).map(|mode| {
        // As the names are spelled.
        mode.strip_suffix("_tokens").or_else(|| mode.strip_suffix("_token")).unwrap_or(mode)
    });
    named.into_iter().chain(flagged).collect()
}

fn lengths(raw: &RawConfig) -> Result<Lengths> {
    const LENGTHS: &str = "matryoshka_dimensions";
    match raw.get(LENGTHS) {
        None if raw.bool_or("is_matryoshka", false)? => Ok(Lengths::Any),
        None => Ok(Lengths::Full),
        Some(value) => {
            let lens: Option<Vec<usize>> =
                value.as_array().and_then(|lens| lens.iter().map(|len| Some(len.as_u64()? as usize)).collect());
            lens.map(Lengths::Listed)
                .ok_or_else(|| raw.error(LENGTHS, format!("expected a list of lengths, found {value}")))
        }
    }
}

fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_slice(&text).map_err(|e| Error::file(path, format!("is not JSON: {e}")))
}

#[cfg(test)]
mod tests;
