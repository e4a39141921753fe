//! GGUF files: metadata and tensors, by mmap.
//!
//! Versions 2 and 3, little-endian, whole (not split). Everything that a file says of itself is
//! checked when it is opened: a [`GgufFile`] that exists has every tensor's bytes.

mod metadata;
pub(super) mod names;
mod parse;
mod reader;
#[cfg(test)]
mod tests;

use std::path::Path;

pub use metadata::{GgufMetadata, GgufValue};
use parse::Header;

use super::mapped::MappedFile;
use super::{TensorInfo, TensorView};
use crate::error::Result;

/// An open GGUF file.
#[derive(Debug)]
pub struct GgufFile {
    file: MappedFile,
    header: Header,
}

impl GgufFile {
    /// Maps the file and checks all that its header says.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let file = MappedFile::open(path.as_ref())?;
        let header = parse::header(file.path(), file.bytes())?;
        Ok(Self { file, header })
    }

    /// Takes the pages of tensors that have been read from memory; they can be read again.
    pub fn release(&self) {
        self.file.release();
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The key-value part.
    pub fn metadata(&self) -> &GgufMetadata {
        &self.header.metadata
    }

    /// The names of all tensors, as the file spells them, in no order.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    /// The tensor that the file calls `name`, as it is stored; its shape has the slowest length first.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let tensor = self.header.tensors.get(name)?;
        let data = self.file.prefetched(tensor.data.clone());
        Some(TensorView::new(tensor.dtype, tensor.shape.clone(), data))
    }

    /// The type and the shape of the tensor that the file calls `name`.
    pub fn describe(&self, name: &str) -> Option<TensorInfo> {
        let tensor = self.header.tensors.get(name)?;
        Some(TensorInfo { dtype: tensor.dtype, shape: tensor.shape.clone() })
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.header.tensors.values().map(|t| t.data.len() as u64).sum()
    }
}
