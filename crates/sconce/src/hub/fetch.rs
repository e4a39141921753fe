//! [`fetch`]: a model's files from the cache, or from the hub.

use std::path::PathBuf;

use sconce_core::Result;
use sconce_core::engine::Progress;

use super::cache::RepoCache;
use super::client::{Client, RemoteFile};
use super::download::{Transfer, download};
use super::repo::RepoId;
use super::select::{INDEX, Selection, choose, complete, shards};
use super::settings::Settings;
use super::unavailable;

/// The model in one of the caches, if it is there as a whole.
pub(super) fn cached(id: &RepoId, settings: &Settings) -> Option<PathBuf> {
    let snapshots = settings.hub_dirs.iter().filter_map(|dir| RepoCache::new(dir, &id.repo).main_snapshot());
    snapshots.into_iter().find_map(|snapshot| complete(&snapshot, id))
}

/// Brings the model unless it is cached, and returns its path.
pub(super) fn fetch(id: &RepoId, settings: &Settings, progress: &dyn Progress) -> Result<PathBuf> {
    if let Some(path) = cached(id, settings) {
        return Ok(path);
    }
    let hub_dir = &settings.hub_dirs[0];
    if settings.offline {
        return Err(unavailable(format!(
            "{id}: HF_HUB_OFFLINE is set, and the model is not in {}",
            settings.hub_dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(" or ")
        )));
    }
    let client = Client::new(settings)?;
    let info = client.repo_info(id)?;
    let cache = RepoCache::new(hub_dir, &id.repo);
    let transfer = Transfer { client: &client, id, commit: &info.commit, cache: &cache, progress };
    let path = match choose(id, &info.files)? {
        Selection::Gguf(file) => download(&transfer, file)?,
        Selection::Adapter(files) => {
            for file in files {
                download(&transfer, file)?;
            }
            cache.snapshot(&info.commit)
        }
        Selection::Safetensors { side_files, weights } => {
            for file in side_files {
                download(&transfer, file)?;
            }
            bring_weights(&transfer, weights, &info.files)?;
            cache.snapshot(&info.commit)
        }
    };
    // Last, so that whoever reads the name finds everything behind it.
    cache.set_main(&info.commit)?;
    Ok(path)
}

/// Brings the file of weights, or the index and the shards that it names.
fn bring_weights(transfer: &Transfer<'_>, weights: &RemoteFile, files: &[RemoteFile]) -> Result<()> {
    let path = download(transfer, weights)?;
    if weights.name != INDEX {
        return Ok(());
    }
    for shard in shards(&path)? {
        let file = files.iter().find(|file| file.name == shard);
        let file =
            file.ok_or_else(|| unavailable(format!("{}: {INDEX} names {shard}, which is not there", transfer.id)))?;
        download(transfer, file)?;
    }
    Ok(())
}
