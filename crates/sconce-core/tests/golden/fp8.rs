//! Weights of e4m3: quantized at load, from a checkpoint that holds them, and written out as plain numbers.

use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as StDtype, TensorView as StView};
use sconce_core::backend::cpu::CpuBackend;
use sconce_core::config::{Quantization, WeightDtype};
use sconce_core::models::{self, RawConfig};
use sconce_core::weights::WeightStore;

use super::compare::max_error;
use super::fixture::Fixture;
use super::runner::Runner;

/// What products with scaled numbers and scaled products may differ by, in logits.
const TOLERANCE: f32 = 1e-4;

type Tensor = (String, StDtype, Vec<usize>, Vec<u8>);

/// The model's logits are the same, whichever way the numbers came.
pub(crate) fn check(fixture: &Fixture) -> Result<String, &'static str> {
    let path = fixture.dir.join("model.safetensors");
    let Ok(file) = std::fs::read(path) else { return Err("it has several files") };
    let quantized = WeightStore::open_safetensors(&fixture.dir).unwrap().quantized(Quantization::Fp8);
    let (mut codes, mut numbers): (Vec<Tensor>, Vec<Tensor>) = (Vec::new(), Vec::new());
    for (name, tensor) in SafeTensors::deserialize(&file).unwrap().tensors() {
        let shape = tensor.shape().to_vec();
        let view = quantized.get(&name, &shape).unwrap();
        let Some(scales) = &view.row_scales else {
            let plain = (name, tensor.dtype(), shape, tensor.data().to_vec());
            codes.push(plain.clone());
            numbers.push(plain);
            continue;
        };
        let scales = (format!("{name}_scale"), StDtype::F32, vec![shape[0], 1], bytes(scales));
        codes.extend([(name.clone(), StDtype::F8_E4M3, shape.clone(), view.data.to_vec()), scales]);
        numbers.push((name, StDtype::F32, shape, bytes(&view.to_f32())));
    }
    let [codes, numbers] = [codes, numbers].map(|tensors| {
        let dir = tempfile::tempdir().unwrap();
        write(&tensors, dir.path());
        // The mapping outlives the file's name.
        WeightStore::open_safetensors(dir.path()).unwrap()
    });
    let ids = &fixture.prompts()[0].input_ids;
    let [at_load, codes, numbers] = [quantized, codes, numbers].map(|store| {
        let raw = RawConfig::from_dir(&fixture.dir).unwrap();
        let config = (models::find::<CpuBackend>(&raw).unwrap().parse_config)(&raw).unwrap();
        let mut runner = Runner::of_weights(&raw, config, &store, WeightDtype::Auto, CpuBackend::new(Some(2)));
        runner.logits(&[ids], ids.len()).remove(0)
    });
    assert!(at_load == codes, "{}: e4m3 of a checkpoint is not e4m3 made at load", fixture.name);
    let error = max_error(&at_load, &numbers);
    assert!(error <= TOLERANCE, "{}: logits are off by {error}", fixture.name);
    Ok(format!("{error:.0e}"))
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn write(tensors: &[Tensor], dir: &Path) {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (name.as_str(), StView::new(*dtype, shape.clone(), data).unwrap()));
    std::fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}
