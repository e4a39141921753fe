//! GGUF files: metadata and tensors, by mmap.
mod metadata;
pub use metadata::{GgufMetadata, GgufValue};
