//! [`RepoCache`]: one repository's folder in the layout of `huggingface_hub`.
//!
//! ```text
//! models--org--repo/refs/main                  the commit that main had when it was downloaded
//! models--org--repo/blobs/<hash>               a file's content
//! models--org--repo/snapshots/<commit>/<file>  a link to a blob
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use sconce_core::{Error, Result};

use super::lock::unique_suffix;
use super::repo::is_plain_hash;

/// One repository's folder in a hub cache.
pub(super) struct RepoCache {
    root: PathBuf,
}

impl RepoCache {
    /// The folder of `repo` in `hub_dir`. Nothing is made yet.
    pub(super) fn new(hub_dir: &Path, repo: &str) -> Self {
        Self { root: hub_dir.join(format!("models--{}", repo.replace('/', "--"))) }
    }

    /// The snapshot that `refs/main` names, whole or not.
    pub(super) fn main_snapshot(&self) -> Option<PathBuf> {
        let commit = fs::read_to_string(self.root.join("refs/main")).ok()?;
        let commit = commit.trim();
        is_plain_hash(commit).then(|| self.snapshot(commit)).filter(|dir| dir.is_dir())
    }

    /// The snapshot of a commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// Where the content named `name` lies.
    pub(super) fn blob(&self, name: &str) -> PathBuf {
        self.root.join("blobs").join(name)
    }

    /// Makes the blob `blob_name` appear as `file` in the snapshot of `commit`.
    pub(super) fn link(&self, commit: &str, file: &str, blob_name: &str) -> Result<()> {
        let link = self.snapshot(commit).join(file);
        make_parent(&link)?;
        let temporary = link.with_file_name(format!(".{}.tmp", unique_suffix()));
        // From snapshots/<commit>/<file> up to the repository's folder.
        let up = "../".repeat(2 + file.matches('/').count());
        make_link(&format!("{up}blobs/{blob_name}"), &self.blob(blob_name), &temporary)
            .and_then(|()| fs::rename(&temporary, &link))
            .map_err(|e| Error::io(&link, e))
    }

    /// Lets `refs/main` name `commit`.
    pub(super) fn set_main(&self, commit: &str) -> Result<()> {
        let path = self.root.join("refs/main");
        make_parent(&path)?;
        let temporary = path.with_file_name(format!(".{}.tmp", unique_suffix()));
        fs::write(&temporary, commit).and_then(|()| fs::rename(&temporary, &path)).map_err(|e| Error::io(&path, e))
    }
}

/// Makes the folder that `path` lies in.
pub(super) fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))
}

#[cfg(unix)]
fn make_link(target: &str, _blob: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Symbolic links need a privilege elsewhere; hard links do not.
#[cfg(not(unix))]
fn make_link(_target: &str, blob: &Path, link: &Path) -> std::io::Result<()> {
    fs::hard_link(blob, link)
}
