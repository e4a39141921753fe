//! Which files of a repository are wanted, and whether a folder has them all.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sconce_core::{Error, Result};
use serde_json::Value;

use super::client::RemoteFile;
use super::repo::{Kind, RepoId, is_safe_name};
use super::unavailable;

/// The list of shards.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// The weights, where they are one file.
pub(super) const SINGLE: &str = "model.safetensors";

/// The files of an adapter.
const ADAPTER_FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// Files that lie beside the weights; those that a repository does not have are done without.
const SIDE_FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    // How embeddings are made.
    "modules.json",
    "1_Pooling/config.json",
];

/// What of a repository is wanted.
#[derive(Debug)]
pub(super) enum Selection<'a> {
    /// One GGUF file.
    Gguf(&'a RemoteFile),
    /// Config and weights of an adapter.
    Adapter([&'a RemoteFile; 2]),
    /// Config, tokenizer and safetensors.
    Safetensors {
        /// Files beside the weights.
        side_files: Vec<&'a RemoteFile>,
        /// The index of the shards, or the single file of weights.
        weights: &'a RemoteFile,
    },
}

/// Chooses among the files of a repository. The error lists the choices where there are several.
pub(super) fn choose<'a>(id: &RepoId, files: &'a [RemoteFile]) -> Result<Selection<'a>> {
    let find = |name: &str| files.iter().find(|file| file.name == name);
    if id.kind == Kind::Adapter {
        let missing =
            |name| unavailable(format!("{id}: the repository holds no {name}: expected an adapter of PEFT's"));
        let find = |name| find(name).ok_or_else(|| missing(name));
        return Ok(Selection::Adapter([find(ADAPTER_FILES[0])?, find(ADAPTER_FILES[1])?]));
    }
    let ggufs: Vec<&RemoteFile> = files.iter().filter(|file| file.name.ends_with(".gguf")).collect();
    let choices = || ggufs.iter().map(|file| format!("\n  {}:{}", id.repo, file.name)).collect::<String>();
    if let Some(name) = &id.file {
        return find(name).map(Selection::Gguf).ok_or_else(|| {
            let others = if ggufs.is_empty() { "no GGUF at all".into() } else { format!("these:{}", choices()) };
            unavailable(format!("{id}: the repository has no such file; it has {others}"))
        });
    }
    if let (Some(weights), Some(_)) = (find(INDEX).or_else(|| find(SINGLE)), find("config.json")) {
        let side_files = SIDE_FILES.iter().filter_map(|name| find(name)).collect();
        return Ok(Selection::Safetensors { side_files, weights });
    }
    match ggufs[..] {
        [] => Err(unavailable(format!(
            "{id}: the repository holds neither config.json with {SINGLE} (or {INDEX}) nor a GGUF file"
        ))),
        [only] => Ok(Selection::Gguf(only)),
        _ => Err(unavailable(format!("{id}: the repository holds several GGUF files; name one of:{}", choices()))),
    }
}

/// The shards that the index at `path` names.
pub(super) fn shards(path: &Path) -> Result<BTreeSet<String>> {
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let index: Value = serde_json::from_slice(&text).map_err(|e| Error::file(path, format!("is not JSON: {e}")))?;
    let map = index["weight_map"].as_object().ok_or_else(|| Error::file(path, "has no `weight_map`"))?;
    map.iter()
        .map(|(tensor, shard)| match shard.as_str().filter(|name| is_safe_name(name)) {
            Some(name) => Ok(name.to_owned()),
            None => Err(Error::tensor(path, tensor, format!("its shard is no file name: {shard}"))),
        })
        .collect()
}

/// What `snapshot` has of the model or the adapter, if it has all that is needed: the folder, or the GGUF. A folder in which a GGUF
/// was put by name answers for the repository as a whole if it holds just that one.
pub(super) fn complete(snapshot: &Path, id: &RepoId) -> Option<PathBuf> {
    if id.kind == Kind::Adapter {
        return ADAPTER_FILES.iter().all(|name| snapshot.join(name).is_file()).then(|| snapshot.to_owned());
    }
    if let Some(file) = &id.file {
        return Some(snapshot.join(file)).filter(|path| path.is_file());
    }
    let has = |name: &str| snapshot.join(name).is_file();
    let has_weights = || {
        let index = snapshot.join(INDEX);
        if index.is_file() { shards(&index).is_ok_and(|names| names.iter().all(|name| has(name))) } else { has(SINGLE) }
    };
    if has("config.json") {
        return (has("tokenizer.json") && has_weights()).then(|| snapshot.to_owned());
    }
    let mut ggufs = ggufs_in(snapshot, MAX_DEPTH);
    ggufs.pop().filter(|_| ggufs.is_empty())
}

/// Folders within one another that are looked into.
const MAX_DEPTH: usize = 4;

fn ggufs_in(folder: &Path, depth: usize) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let found = entries.map(|entry| entry.path()).flat_map(|path| match path.is_dir() {
        true if depth > 0 => ggufs_in(&path, depth - 1),
        false if path.extension().is_some_and(|extension| extension == "gguf") && path.is_file() => vec![path],
        _ => Vec::new(),
    });
    found.collect()
}
