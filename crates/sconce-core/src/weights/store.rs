//! [`WeightStore`]: tensors by their Hugging Face names, from whichever files a model has.

use std::borrow::Cow;
use std::path::Path;

use super::Dtype;
use crate::error::Result;

/// One tensor, row-major; a matrix has the shape [out_features, in_features].
#[derive(Debug, Clone)]
pub struct TensorView<'a> {
    /// Element or block type.
    pub dtype: Dtype,
    /// Lengths, slowest first.
    pub shape: Vec<usize>,
    /// The elements: product of `shape` without its last, times `dtype.row_bytes(last)` bytes.
    pub data: Cow<'a, [u8]>,
}

/// Tensors of one model by their Hugging Face names (`model.layers.0.self_attn.q_proj.weight`).
pub struct WeightStore {}

impl WeightStore {
    /// `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    pub fn open_safetensors(dir: &Path) -> Result<Self> {
        todo!()
    }
    /// Random weights, the same for the same name and shape.
    pub fn dummy(seed: u64) -> Self {
        todo!()
    }
    /// The tensor, checked against the shape that the model's config asks for.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>> {
        todo!()
    }
    /// Whether there is such a tensor. Always false for dummy weights that are not asked for by shape.
    pub fn contains(&self, name: &str) -> bool {
        todo!()
    }
    /// The file or folder, for messages.
    pub fn path(&self) -> &Path {
        todo!()
    }
    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        todo!()
    }
}
