//! [`open_locked`]: one process at a time writes a file; the others wait.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use sconce_core::engine::Progress;
use sconce_core::{Error, Result};

const POLL: Duration = Duration::from_millis(200);

/// Opens `path` for reading and writing, makes it if need be, and locks it until the file is dropped or the process
/// ends, however it ends. Waits while another process holds the lock. `None`: this file system has no locks.
pub(super) fn open_locked(path: &Path, progress: &dyn Progress) -> Result<Option<File>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|e| Error::io(path, e))?;
    let mut has_said = false;
    loop {
        match file.try_lock() {
            Ok(()) if is_at(&file, path) => return Ok(Some(file)),
            // Who held it has given the file another name: what is there now is another one.
            Ok(()) => return open_locked(path, progress),
            Err(TryLockError::WouldBlock) => {
                if !has_said {
                    progress.message(&format!("waiting for another process that holds {}", path.display()));
                    has_said = true;
                }
                sleep(POLL);
            }
            Err(TryLockError::Error(_)) => return Ok(None),
        }
    }
}

/// Whether `path` still leads to `file`.
fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let id = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        file.metadata().map(id).is_ok_and(|own| std::fs::metadata(path).map(id).is_ok_and(|found| found == own))
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

/// A name that no other process and no other thread of this one uses.
pub(super) fn unique_suffix() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{SystemTime, UNIX_EPOCH};

    static COUNT: AtomicU64 = AtomicU64::new(0);
    // Processes in different containers can share both a folder and a process id: the time tells them apart.
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.subsec_nanos());
    format!("{}-{nanos}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}
