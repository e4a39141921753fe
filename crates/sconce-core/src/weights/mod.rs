//! Weights: files in, tensors out, in one naming and one layout whatever the file.

mod dtype;
mod dummy;
mod gguf;
pub mod quant;
mod safetensors;
mod store;

pub use dtype::Dtype;
pub use gguf::{GgufFile, GgufMetadata, GgufValue};
pub use store::{TensorView, WeightStore};
