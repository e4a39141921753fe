//! Checkpoints that are written for a test, and the logits of a fixture's model with their weights.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use sconce_core::backend::cpu::CpuBackend;
use sconce_core::config::WeightDtype;
use sconce_core::models::{self, RawConfig};
use sconce_core::weights::{StoredForm, WeightStore};

use super::fixture::Fixture;
use super::runner::Runner;

/// Name, type, shape, bytes.
pub(crate) type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// A checkpoint that has these tensors.
pub(crate) fn store(tensors: &[Tensor], form: StoredForm) -> WeightStore {
    let dir = tempfile::tempdir().unwrap();
    write_tensors_to(dir.path(), tensors);
    // The mapping outlives the file's name.
    store_of(dir.path(), form)
}

/// The checkpoint in `dir`.
pub(crate) fn store_of(dir: &Path, form: StoredForm) -> WeightStore {
    WeightStore::open_safetensors(dir, form).unwrap()
}

/// Makes `dir` a checkpoint that has these tensors.
pub(crate) fn write_tensors_to(dir: &Path, tensors: &[Tensor]) {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
    std::fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

pub(crate) fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Of the fixture's first prompt, with other weights.
pub(crate) fn logits(fixture: &Fixture, store: &WeightStore, dtype: WeightDtype) -> Vec<f32> {
    let raw = RawConfig::from_dir(&fixture.dir).unwrap();
    let config = (models::find::<CpuBackend>(&raw).unwrap().parse_config)(&raw).unwrap();
    let mut runner = Runner::of_weights(&raw, config, store, dtype, CpuBackend::new(Some(2)));
    let ids = &fixture.prompts()[0].input_ids;
    runner.logits(&[ids], ids.len()).remove(0)
}
