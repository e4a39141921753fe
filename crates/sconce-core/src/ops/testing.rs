//! Helpers of the ops' tests.

use std::sync::Arc;

use crate::backend::cpu::{Matrix, MatrixPart, PartData, ThreadPool};
use crate::backend::cuda::device::{Device, ElemType};
use crate::backend::cuda::host::HostDevice;
use crate::backend::cuda::storage::{bytes_of, floats_of};
use crate::ops::linear::FloatPanels;
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
    float_matrix(Dtype::F32, data, cols)
}

/// A matrix of rows of a float type.
pub(crate) fn float_matrix(dtype: Dtype, data: &[f32], cols: usize) -> Matrix {
    let to_bytes = |&x: &f32| match dtype {
        Dtype::BF16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
        Dtype::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    };
    let (rows, bytes) = (data.len() / cols, data.iter().flat_map(to_bytes).collect::<Vec<u8>>());
    let panels = FloatPanels::pack(&mut ThreadPool::new(1), dtype, rows, cols, &bytes);
    Matrix { parts: vec![MatrixPart { dtype, rows, data: PartData::FloatPanels(panels) }], cols, bias: None }
}

/// Asserts equality within `tolerance`, relative to the greatest expected magnitude.
pub(crate) fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let bound = tolerance * expected.iter().fold(1.0f32, |m, x| m.max(x.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= bound, "element {i}: found {f}, expected {e}, tolerance {bound}");
    }
}

/// What kernels are tested on: the host shim.
pub(crate) fn devices() -> Vec<Arc<dyn Device>> {
    vec![HostDevice::open()]
}

/// Numbers as `elem` has them.
pub(crate) fn round(data: &[f32], elem: ElemType) -> Vec<f32> {
    floats_of(&bytes_of(data, elem), elem)
}

/// Makes what kernels take.
pub(crate) mod on_device {
    use super::*;
    use crate::backend::cuda::storage::{Buffer, Memory, Vector};

    /// Activations whose rows are all in use.
    pub(crate) fn buffer(device: &Arc<dyn Device>, data: &[f32], cols: usize, elem: ElemType) -> Buffer {
        let mut buffer = Buffer::new(device, data.len() / cols, cols, elem).unwrap();
        buffer.write_f32(data).unwrap();
        buffer
    }

    /// A vector.
    pub(crate) fn vector(device: &Arc<dyn Device>, data: &[f32]) -> Vector {
        let memory = Memory::of_bytes(device, &bytes_of(data, ElemType::F32)).unwrap();
        Vector { memory, len: data.len() }
    }
}
