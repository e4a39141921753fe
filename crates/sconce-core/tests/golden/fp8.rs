//! Weights of e4m3: quantized at load, from a checkpoint that holds them, and written out as plain numbers.

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use sconce_core::config::{Quantization, WeightDtype};
use sconce_core::weights::{StoredForm, WeightStore};

use super::checkpoint::{Tensor, f32_bytes, logits, store};
use super::compare::max_error;
use super::fixture::Fixture;

/// What products with scaled numbers and scaled products may differ by, in logits.
const TOLERANCE: f32 = 1e-4;

/// The model's logits are the same, whichever way the numbers came.
pub(crate) fn check(fixture: &Fixture) -> Result<String, &'static str> {
    let path = fixture.dir.join("model.safetensors");
    let Ok(file) = std::fs::read(path) else { return Err("it has several files") };
    if fixture.is_quantized() {
        return Err("it is stored in a quantized form");
    }
    let quantized =
        WeightStore::open_safetensors(&fixture.dir, StoredForm::Plain).unwrap().quantized(Quantization::Fp8);
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
        let scales = (format!("{name}_scale"), Dtype::F32, vec![shape[0], 1], f32_bytes(scales));
        codes.extend([(name.clone(), Dtype::F8_E4M3, shape.clone(), view.data.to_vec()), scales]);
        numbers.push((name, Dtype::F32, shape, f32_bytes(&view.to_f32())));
    }
    let [at_load, codes, numbers] = [quantized, store(&codes, StoredForm::Fp8), store(&numbers, StoredForm::Plain)]
        .map(|store| logits(fixture, &store, WeightDtype::Auto));
    assert!(at_load == codes, "{}: e4m3 of a checkpoint is not e4m3 made at load", fixture.name);
    let error = max_error(&at_load, &numbers);
    assert!(error <= TOLERANCE, "{}: logits are off by {error}", fixture.name);
    Ok(format!("{error:.0e}"))
}
