//! [`Reader`]: little-endian values from the bytes of a file, none beyond its end.

use std::path::Path;

use crate::error::{Error, Result};

/// A position in the bytes of a file. Every error names the file and what was being read.
pub(super) struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn error(&self, message: impl Into<String>) -> Error {
        Error::file(self.path, message)
    }

    /// The next `len` bytes.
    pub(super) fn bytes(&mut self, len: usize, what: &str) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.position..];
        let Some(found) = rest.get(..len) else {
            return Err(self.error(format!(
                "{what}: expected {len} bytes at offset {}, found {} before the end of the file",
                self.position,
                rest.len()
            )));
        };
        self.position += len;
        Ok(found)
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let bytes = self.bytes(N, what)?;
        Ok(*bytes.first_chunk().expect("invariant: `bytes` gives as many as it is asked for"))
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of things of at least `min_bytes` each: no more than the rest of the file can hold.
    pub(super) fn count(&mut self, min_bytes: usize, what: &str) -> Result<usize> {
        let count = self.u64(what)?;
        let rest = self.bytes.len() - self.position;
        match usize::try_from(count) {
            Ok(count) if count <= rest / min_bytes => Ok(count),
            _ => Err(self.error(format!(
                "{what}: {count} of at least {min_bytes} bytes each do not fit in the {rest} bytes that are left of the file"
            ))),
        }
    }

    /// A length and that many bytes of UTF-8.
    pub(super) fn string(&mut self, what: &str) -> Result<&'a str> {
        let len = self.count(1, what)?;
        let bytes = self.bytes(len, what)?;
        std::str::from_utf8(bytes).map_err(|e| self.error(format!("{what}: not valid UTF-8: {e}")))
    }
}
