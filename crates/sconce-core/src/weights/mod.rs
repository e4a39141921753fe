//! Weights: files in, tensors out, in one naming and one layout whatever the file.

mod dtype;
mod gguf;
mod store;

pub use dtype::Dtype;
pub use gguf::{GgufMetadata, GgufValue};
pub use store::{TensorView, WeightStore};
