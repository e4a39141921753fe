//! Tests of dummy weights.

use super::*;

fn weights(dtype: Dtype) -> DummyWeights {
    DummyWeights::new(7, dtype, StoredForm::Plain)
}

fn values(dtype: Dtype, name: &str, shape: &[usize]) -> Vec<f32> {
    weights(dtype).tensor(name, shape).unwrap().to_f32()
}

#[test]
fn a_matrix_is_nearly_normal() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::Q4_0, Dtype::Q4_1, Dtype::Q8_0] {
        let values = values(dtype, "m.weight", &[100, 320]);
        assert_eq!(values.len(), 32_000, "{dtype}");
        let n = values.len() as f32;
        let mean = values.iter().sum::<f32>() / n;
        let std = (values.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / n).sqrt();
        assert!(mean.abs() < 6e-4 && (std - STD).abs() < 6e-4, "{dtype}: mean {mean}, deviation {std}");
        let beyond = values.iter().filter(|v| v.abs() > 2.0 * STD).count() as f32 / n;
        assert!((0.03..0.06).contains(&beyond), "{dtype}: {beyond} beyond two deviations");
    }
}

#[test]
fn norms_are_ones_and_biases_zeros() {
    for dtype in [Dtype::BF16, Dtype::Q8_0] {
        assert_eq!(values(dtype, "model.layers.0.input_layernorm.weight", &[3]), [1.0; 3]);
        assert_eq!(values(dtype, "model.norm.weight", &[3]), [1.0; 3]);
        assert_eq!(values(dtype, "model.final_layernorm.bias", &[3]), [0.0; 3]);
        assert_eq!(values(dtype, "lm_head.bias", &[3]), [0.0; 3]);
    }
}

#[test]
fn experts_alone_are_in_mxfp4() {
    let weights = DummyWeights::new(3, Dtype::BF16, StoredForm::Mxfp4);
    let (expert, shape) = ("model.layers.0.mlp.experts.3.up_proj.weight", [5, 64]);
    let (found, plain) = (weights.tensor(expert, &shape).unwrap(), values(Dtype::BF16, expert, &shape));
    assert_eq!((found.dtype, weights.random_dtype(expert)), (Dtype::Mxfp4, None));
    assert!(found.to_f32().iter().any(|&x| x != 0.0) && found.to_f32() != plain);
    for name in ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.router.weight", "lm_head.weight"] {
        assert_eq!(weights.tensor(name, &shape).unwrap().dtype, Dtype::BF16, "{name}");
    }
    for name in ["model.layers.0.mlp.experts.3.up_proj.bias", "model.layers.0.self_attn.sinks"] {
        assert_eq!(weights.tensor(name, &[3]).unwrap().to_f32(), [0.0; 3], "{name}");
    }
    let message = weights.describe(expert, &[5, 40]).unwrap_err().to_string();
    assert!(message.contains(expert) && message.contains("rows of 40"), "{message}");
}

#[test]
fn seed_and_name_decide() {
    let of = |seed, name| {
        DummyWeights::new(seed, Dtype::BF16, StoredForm::Plain).tensor(name, &[4, 64]).unwrap().data.into_owned()
    };
    assert_eq!(of(1, "a"), of(1, "a"));
    assert_ne!(of(1, "a"), of(2, "a"));
    assert_ne!(of(1, "a"), of(1, "b"));
}

#[test]
fn small_and_large_tensors_have_the_same_beginning() {
    let weights = weights(Dtype::Q8_0);
    let small = weights.tensor("m", &[8, 64]).unwrap().data;
    assert!(weights.page.get().is_none());
    // Longer than the page, so that it repeats.
    let large = weights.tensor("m", &[PAGE_BLOCKS + 8, 32]).unwrap().data;
    assert!(weights.page.get().is_some());
    assert_eq!(large.len(), (PAGE_BLOCKS + 8) * 34);
    assert_eq!(large[..small.len()], *small);
    assert_eq!(large[PAGE_BLOCKS * 34..], large[..8 * 34]);
}

#[test]
fn no_two_rows_are_equal() {
    let (rows, cols) = (2000, 256);
    let data = weights(Dtype::BF16).tensor("m", &[rows, cols]).unwrap().data;
    let distinct: std::collections::HashSet<&[u8]> = data.chunks(2 * cols).collect();
    assert_eq!(distinct.len(), rows);
}

#[test]
fn what_cannot_be_made_is_refused() {
    let message = |dtype, shape: &[usize]| weights(dtype).tensor("m", shape).unwrap_err().to_string();
    assert!(message(Dtype::Q4K, &[1, 256]).contains("Q4_K"));
    assert!(message(Dtype::Q8_0, &[1, 33]).contains("tensor m"));
    assert!(message(Dtype::F32, &[usize::MAX, 2]).contains("too large"));
}
