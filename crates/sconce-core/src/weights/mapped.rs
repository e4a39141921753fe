//! [`MappedFile`]: a file's bytes, by mmap.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use memmap2::Mmap;

use crate::error::{Error, Result};

/// A read-only file in memory; the system reads a page when it is first touched.
#[derive(Debug)]
pub(super) struct MappedFile {
    path: PathBuf,
    map: Mmap,
    /// What has been given out since the last release.
    given: Mutex<Vec<Range<usize>>>,
}

impl MappedFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        // SAFETY: the map is read-only, and only plain bytes are read from it. As with every mapped
        // file, whoever truncates it while it is in use ends the process: model files are not
        // written while they are served.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        Ok(Self { path: path.into(), map, given: Mutex::default() })
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
        self.given.lock().unwrap_or_else(PoisonError::into_inner).push(range.clone());
        &self.map[range]
    }

    /// Takes the pages of what has been given out from this process: they have been copied. The file's pages stay in the
    /// system's cache, and who reads them again finds them there.
    pub(super) fn release(&self) {
        let given = std::mem::take(&mut *self.given.lock().unwrap_or_else(PoisonError::into_inner));
        #[cfg(unix)]
        for range in given.into_iter().filter(|range| !range.is_empty()) {
            // SAFETY: the map is of a file and read-only: pages that are touched again come from the file again.
            let _ = unsafe {
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            };
        }
        #[cfg(not(unix))]
        drop(given);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kilobytes of the file's pages in this process.
    #[cfg(target_os = "linux")]
    fn resident(path: &Path) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let lines = maps.lines().skip_while(|line| !line.ends_with(path.to_str().unwrap()));
        let rss = lines.filter_map(|line| line.strip_prefix("Rss:")).next().unwrap();
        rss.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn what_was_released_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        let bytes: Vec<u8> = (0..1 << 20).map(|i| (i / 7) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = MappedFile::open(&path).unwrap();
        for _ in 0..2 {
            assert_eq!(file.prefetched(0..bytes.len()), bytes);
            #[cfg(target_os = "linux")]
            assert_eq!(resident(&path), 1024);
            file.release();
            #[cfg(target_os = "linux")]
            assert_eq!(resident(&path), 0);
        }
        assert!(file.prefetched(5..5).is_empty());
        file.release();
    }
}
