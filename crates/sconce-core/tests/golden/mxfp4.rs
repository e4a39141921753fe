//! Experts in MXFP4, those of a layer in one tensor: their numbers are the same in the other ways in which files have them.

use safetensors::SafeTensors;
use safetensors::tensor::Dtype as StDtype;
use sconce_core::backend::cpu::CpuBackend;
use sconce_core::config::{MatmulPrecision, WeightDtype};
use sconce_core::models::RawConfig;
use sconce_core::weights::{Dtype, StoredForm, WeightStore};

use super::checkpoint::{Tensor, f32_bytes, logits, store, store_of};
use super::compare::max_error;
use super::fixture::Fixture;
use super::runner::Runner;
use super::{check_chunks_and_batches, cpu, gguf};

/// Of logits: inputs of blocks have 16 bits.
const TOLERANCE: f32 = 5e-3;

/// Name, shape, numbers.
pub(crate) type Numbers = (String, Vec<usize>, Vec<f32>);

/// If `name` is a tensor of all experts of a layer, their matrices or biases, the first expert's first; none where it only belongs to
/// another.
pub(crate) fn of_experts(store: &WeightStore, name: &str, shape: &[usize]) -> Option<Vec<Numbers>> {
    let (layer, fused) = name.split_once(".experts.")?;
    let (fused, kind) = fused.rsplit_once('_')?;
    let parts: &[&str] = match fused {
        "gate_up_proj" => &["gate_proj", "up_proj"],
        "down_proj" => &["down_proj"],
        _ => return None,
    };
    let rows = shape[1] / parts.len();
    let (kind, own) = match kind {
        "blocks" => ("weight", vec![rows, shape[2] * 32]),
        "bias" => ("bias", vec![rows]),
        _ => return Some(Vec::new()),
    };
    let names = (0..shape[0]).flat_map(|e| parts.iter().map(move |part| format!("{layer}.experts.{e}.{part}.{kind}")));
    let numbers = |name: String| {
        let tensor = store.get(&name, &own).unwrap();
        assert_eq!(tensor.dtype == Dtype::Mxfp4, kind == "weight", "{name}");
        (name, own.clone(), tensor.to_f32())
    };
    Some(names.map(numbers).collect())
}

/// Of all experts' matrices [experts, cols, rows], rows of gate and up in turns.
fn fused(name: &str, [num_experts, all_rows]: [usize; 2], matrices: &[Numbers]) -> Tensor {
    let (step, cols) = (matrices.len() / num_experts, matrices[0].1[1]);
    let mut numbers = vec![0.0; num_experts * cols * all_rows];
    for (i, (_, _, matrix)) in matrices.iter().enumerate() {
        for (at, &x) in matrix.iter().enumerate() {
            numbers[(i / step * cols + at % cols) * all_rows + i % step + at / cols * step] = x;
        }
    }
    let name = name.strip_suffix("_blocks").unwrap().into();
    (name, StDtype::F32, vec![num_experts, cols, all_rows], f32_bytes(&numbers))
}

/// The model's logits are the same, whichever way the numbers came; and near them where experts stay in blocks.
pub(crate) fn check(fixture: &Fixture) -> Result<String, &'static str> {
    if !fixture.is_quantized() {
        return Err("it has no MXFP4");
    }
    let stored = store_of(&fixture.dir, StoredForm::Mxfp4);
    let file = std::fs::read(fixture.dir.join("model.safetensors")).unwrap();
    let mut floats: Vec<Tensor> = Vec::new();
    for (name, tensor) in SafeTensors::deserialize(&file).unwrap().tensors() {
        let shape = tensor.shape().to_vec();
        match of_experts(&stored, &name, &shape) {
            Some(experts) if name.ends_with("_blocks") => floats.push(fused(&name, [shape[0], shape[1]], &experts)),
            Some(experts) if experts.is_empty() => {}
            _ => floats.push((name, tensor.dtype(), shape, tensor.data().to_vec())),
        }
    }
    let expected = logits(fixture, &stored, WeightDtype::F32);
    let found = logits(fixture, &store(&floats, StoredForm::Plain), WeightDtype::F32);
    assert!(found == expected, "{}: floats give other logits", fixture.name);
    let (raw, config, of_gguf) = gguf::open(fixture, Dtype::Mxfp4)?;
    let mut runner = Runner::of_weights(&raw, config, &of_gguf, WeightDtype::F32, CpuBackend::new(Some(2)));
    let ids = &fixture.prompts()[0].input_ids;
    assert!(runner.logits(&[ids], ids.len())[0] == expected, "{}: a GGUF gives other logits", fixture.name);
    let error = max_error(&logits(fixture, &stored, WeightDtype::Auto), &expected);
    assert!(error <= TOLERANCE, "{}: logits are off by {error}", fixture.name);
    let form = RawConfig::from_dir(&fixture.dir).unwrap().stored_form().unwrap();
    let of_dummy = logits(fixture, &WeightStore::dummy_of(0, Dtype::BF16, form), WeightDtype::Auto);
    assert!(form == StoredForm::Mxfp4 && of_dummy.iter().all(|x| x.is_finite()), "{}: dummy weights", fixture.name);
    check_chunks_and_batches(fixture, &mut Runner::new(fixture, WeightDtype::Auto, cpu(MatmulPrecision::Exact)));
    Ok(format!("{error:.0e}"))
}
