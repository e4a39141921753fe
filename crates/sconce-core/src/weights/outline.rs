//! [`Outline`]: what a model would load, found out by loading it without data.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::{Dtype, TensorView, WeightStore};
use crate::error::Result;

/// The type and the shape of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element or block type.
    pub dtype: Dtype,
    /// Lengths, slowest first.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Elements.
    pub fn num_elements(&self) -> u64 {
        self.shape.iter().map(|&len| len as u64).product()
    }

    /// Bytes of the scales of its rows, f32.
    pub fn scale_bytes(&self) -> u64 {
        let has_scales = self.dtype == Dtype::F8E4M3;
        if has_scales { 4 * self.shape.first().map_or(0, |&rows| rows as u64) } else { 0 }
    }

    /// Bytes if the elements were of type `dtype`.
    pub fn bytes_as(&self, dtype: Dtype) -> u64 {
        self.num_elements() / dtype.block_len() as u64 * dtype.block_bytes() as u64
    }
}

/// Weights that whoever uses them may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RandomWeights {
    /// What makes the numbers.
    pub seed: u64,
    /// The type of the elements.
    pub dtype: Dtype,
}

/// Where a model gets its tensors from.
pub trait TensorSource {
    /// The tensor, checked against the shape that the model's config asks for.
    fn get(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>>;
    /// Where matrices are random: what this one is, for those who can make it themselves.
    fn random(&self, name: &str) -> Option<RandomWeights>;
    /// Takes from memory what has been read so far; it has been copied. It can be asked for again.
    fn release(&self);
    /// Whether tensors have their rows.
    fn has_data(&self) -> bool {
        true
    }
}

impl TensorSource for WeightStore {
    fn get(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>> {
        WeightStore::get(self, name, shape)
    }

    fn random(&self, name: &str) -> Option<RandomWeights> {
        WeightStore::random(self, name)
    }

    fn release(&self) {
        WeightStore::release(self);
    }
}

/// Gives tensors of a store without any of their rows, and takes down which were asked for. A model that is loaded from
/// it takes no memory, and no data is read; names, types and shapes are checked as if it were loaded in earnest.
#[derive(Debug)]
pub struct Outline<'a> {
    store: &'a WeightStore,
    tensors: RefCell<BTreeMap<String, TensorInfo>>,
}

impl<'a> Outline<'a> {
    /// Nothing asked for yet.
    pub fn new(store: &'a WeightStore) -> Self {
        Self { store, tensors: RefCell::default() }
    }

    /// The tensors that were asked for, by name.
    pub fn into_tensors(self) -> BTreeMap<String, TensorInfo> {
        self.tensors.into_inner()
    }
}

impl TensorSource for Outline<'_> {
    fn get(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>> {
        let info = self.store.describe(name, shape)?;
        let mut shape = info.shape.clone();
        if let Some(rows) = shape.first_mut() {
            *rows = 0;
        }
        let row_scales = (info.dtype == Dtype::F8E4M3).then(Vec::new);
        let view = TensorView { row_scales, ..TensorView::new(info.dtype, shape, &[]) };
        self.tensors.borrow_mut().insert(name.to_owned(), info);
        Ok(view)
    }

    fn random(&self, _: &str) -> Option<RandomWeights> {
        // Every tensor is to be asked for.
        None
    }

    fn release(&self) {
        // Nothing has been read.
    }

    fn has_data(&self) -> bool {
        false
    }
}
