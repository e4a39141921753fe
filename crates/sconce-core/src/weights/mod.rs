//! Weights: files in, tensors out, in one naming and one layout whatever the file.

mod adapter;
pub mod bytes;
mod column_order;
mod convert;
mod dtype;
mod dummy;
pub mod fp8;
mod gguf;
mod gguf_weights;
pub mod gguf_writer;
mod mapped;
mod outline;
mod packed;
pub mod quant;
mod rope_rows;
mod safetensors;
mod store;

pub use adapter::{Adapters, LoraUpdate};
pub(crate) use column_order::with_one_order;
pub use convert::convert;
pub use dtype::Dtype;
pub use dummy::random_weight;
pub use gguf::{GgufFile, GgufMetadata, GgufValue};
pub use outline::{Outline, RandomWeights, TensorInfo, TensorSource};
pub use packed::{PackedLayout, Packing, StoredForm};
pub use store::{TensorView, WeightStore};
