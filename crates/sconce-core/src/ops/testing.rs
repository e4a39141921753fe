//! Helpers of the ops' tests.

use crate::backend::cpu::{Matrix, MatrixPart, PartData};
use crate::weights::Dtype;

/// Reproducible numbers in [-1, 1).
pub(crate) fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// A matrix of f32 rows.
pub(crate) fn dense_matrix(data: &[f32], cols: usize) -> Matrix {
    let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
    let part = MatrixPart { dtype: Dtype::F32, rows: data.len() / cols, data: PartData::Rows(bytes) };
    Matrix { parts: vec![part], cols, bias: None }
}

/// Asserts equality within `tolerance`, relative to the greatest expected magnitude.
pub(crate) fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let bound = tolerance * expected.iter().fold(1.0f32, |m, x| m.max(x.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= bound, "element {i}: found {f}, expected {e}, tolerance {bound}");
    }
}
