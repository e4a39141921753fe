//! [`WeightStore`]: tensors by their Hugging Face names, from whichever files a model has.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// One tensor: row-major; for a matrix `shape` is [out_features, in_features].
pub struct TensorView<'a> {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Cow<'a, [u8]>, // exactly dtype.row_bytes(last) * product of the others
}

/// Tensors of one model by their Hugging Face names (`model.layers.0.self_attn.q_proj.weight`).
pub enum/struct WeightStore
impl WeightStore {
    pub fn open_safetensors(dir: &Path) -> Result<Self>;      // model.safetensors or model.safetensors.index.json
    pub fn open_gguf(file: GgufFile, config: &ModelConfig) -> Result<Self>; // names mapped; q/k rows of `llama` un-permuted to HF's layout (rotate_half)
    pub fn dummy(seed: u64) -> Self;                           // any name, any shape: random weights, deterministic by name
    /// The tensor, checked against the shape that the config asks for.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>>;
    pub fn contains(&self, name: &str) -> bool;
    pub fn path(&self) -> &Path;    // for messages
    pub fn total_bytes(&self) -> u64;
    pub fn names(&self)->Vec<String>;
}
