//! [`MappedFile`]: a file's bytes, by mmap.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::{Error, Result};

/// A read-only file in memory; the system reads a page when it is first touched.
#[derive(Debug)]
pub(super) struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        // SAFETY: the map is read-only, and only plain bytes are read from it. As with every mapped
        // file, whoever truncates it while it is in use ends the process: model files are not
        // written while they are served.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        Ok(Self { path: path.into(), map })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The bytes of `range`, which the caller has checked against the file's size. The system is
    /// told to read them ahead: a tensor is read from its beginning to its end.
    pub(super) fn prefetched(&self, range: Range<usize>) -> &[u8] {
        #[cfg(unix)]
        if !range.is_empty() {
            // A hint: without it the pages come one fault at a time, and nothing else changes.
            let _ = self.map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
        &self.map[range]
    }
}
