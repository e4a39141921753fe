//! Kernels compiled at run time are kept on disk, each under a hash of all that went into it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

/// A folder of compiled kernels. A file is the hash of its image and the image.
#[derive(Debug, Clone)]
pub(super) struct KernelCache {
    dir: Option<PathBuf>,
}

impl KernelCache {
    /// Below the user's cache; none where no folder is named.
    pub(super) fn of_user() -> Self {
        Self::from_vars(|name| std::env::var_os(name))
    }

    /// Of variables that `var` looks up.
    pub(super) fn from_vars(var: impl Fn(&str) -> Option<std::ffi::OsString>) -> Self {
        let path = |name: &str| var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let own = path("SCONCE_CACHE").or_else(|| {
            let cache = path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")));
            cache.map(|cache| cache.join("sconce"))
        });
        Self { dir: own.map(|own| own.join("kernels")) }
    }

    /// The name of what is made of `parts`: each is hashed with its length, so that no two lists have the same text.
    pub(super) fn key(parts: &[&str]) -> String {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The image of that name, if it is there and whole.
    pub(super) fn get(&self, source: &str, key: &str) -> Option<Vec<u8>> {
        let bytes = fs::read(self.path(source, key)?).ok()?;
        let (digest, image) = bytes.split_at_checked(32)?;
        (Sha256::digest(image).as_slice() == digest).then(|| image.to_vec())
    }

    /// Keeps an image. Others see all of it or nothing. A disk that refuses costs time at the next start and no more.
    pub(super) fn put(&self, source: &str, key: &str, image: &[u8]) {
        let Some(path) = self.path(source, key) else { return };
        if let Err(error) = write(&path, image) {
            tracing::warn!("{}: {error}; kernels will be compiled again at the next start", path.display());
        }
    }

    fn path(&self, source: &str, key: &str) -> Option<PathBuf> {
        self.dir.as_ref().map(|dir| dir.join(format!("{source}-{key}.cubin")))
    }
}

fn write(path: &Path, image: &[u8]) -> io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.subsec_nanos());
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("{}-{nanos}-{count}.tmp", std::process::id()));
    let bytes = [Sha256::digest(image).as_slice(), image].concat();
    let result = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}
