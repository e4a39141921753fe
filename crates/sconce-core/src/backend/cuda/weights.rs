//! [`load`]: weights of any stored type as matrices of 16 bits on a device.

use std::sync::Arc;

use super::device::{Device, ElemType};
use super::storage::{Matrix, Memory, Vector, bytes_of};
use crate::config::WeightDtype;
use crate::error::{Error, Result};
use crate::ops;
use crate::weights::{Dtype, TensorView, convert};

/// Stored bytes that one thread converts at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// Elements of 16 bytes, with which rows must begin.
const ROW_ALIGNMENT: usize = 8;

/// The type of a model's weights and activations on a device: what is asked for, or what suits the type that the embedding is
/// stored in. Errors: f32.
pub(crate) fn elem_type(asked: WeightDtype, stored: Dtype) -> Result<ElemType> {
    match (asked, stored) {
        (WeightDtype::F32, _) => Err(Error::config("dtype", "f32 is for the CPU; on a GPU use auto, bf16 or f16")),
        (WeightDtype::F16, _) | (WeightDtype::Auto, Dtype::F16) => Ok(ElemType::F16),
        (WeightDtype::Bf16 | WeightDtype::Auto, _) => Ok(ElemType::Bf16),
    }
}

/// The same, as settings name it.
pub(super) fn weight_dtype(elem: ElemType) -> WeightDtype {
    if elem == ElemType::F16 { WeightDtype::F16 } else { WeightDtype::Bf16 }
}

/// Parts of the same number of columns over each other.
pub(crate) fn load(
    device: &Arc<dyn Device>,
    parts: Vec<TensorView<'_>>,
    bias: Option<&[f32]>,
    elem: ElemType,
) -> Result<Matrix> {
    let (rows, cols) = (parts.iter().map(|part| part.shape[0]).sum::<usize>(), parts[0].shape[1]);
    let matrix = empty(device, (rows, cols), bias, elem)?;
    let mut start = 0;
    for part in parts {
        let target = if elem == ElemType::F16 { Dtype::F16 } else { Dtype::BF16 };
        if part.dtype == target {
            matrix.memory.write(start, &part.data)?;
        } else {
            write_converted(&matrix.memory, start, &part, target)?;
        }
        start += part.shape[0] * cols * elem.bytes();
    }
    Ok(matrix)
}

/// Random weights, [rows, cols], which are made where they are.
pub(crate) fn random(
    device: &Arc<dyn Device>,
    shape: (usize, usize),
    bias: Option<&[f32]>,
    elem: ElemType,
    seed: u64,
) -> Result<Matrix> {
    let mut matrix = empty(device, shape, bias, elem)?;
    ops::random::cuda(&**device, &mut matrix, seed)?;
    // Products read weights before they wait for the kernel before them.
    device.synchronize()?;
    Ok(matrix)
}

/// A matrix whose weights are anything.
fn empty(
    device: &Arc<dyn Device>,
    (rows, cols): (usize, usize),
    bias: Option<&[f32]>,
    elem: ElemType,
) -> Result<Matrix> {
    if !cols.is_multiple_of(ROW_ALIGNMENT) {
        let message =
            format!("matrices of {cols} columns, which {ROW_ALIGNMENT} does not divide, run on the cpu alone");
        return Err(Error::config("device", message));
    }
    let memory = Memory::new(device, rows * cols * elem.bytes())?;
    let bias = bias.map(|bias| vector(device, bias)).transpose()?;
    Ok(Matrix { memory, rows, cols, elem, bias })
}

/// A vector of f32.
pub(crate) fn vector(device: &Arc<dyn Device>, data: &[f32]) -> Result<Vector> {
    Ok(Vector { memory: Memory::of_bytes(device, &bytes_of(data, ElemType::F32))?, len: data.len() })
}

/// Converts by as many threads as the machine has, a share at a time, and sends the shares in order.
fn write_converted(memory: &Memory, mut start: usize, part: &TensorView<'_>, target: Dtype) -> Result<()> {
    let block_bytes = part.dtype.block_bytes();
    let chunk_bytes = CHUNK_BYTES / block_bytes * block_bytes;
    let num_threads = std::thread::available_parallelism().map_or(1, Into::into);
    let mut converted = vec![Vec::new(); num_threads];
    for share in part.data.chunks(chunk_bytes * num_threads) {
        std::thread::scope(|scope| {
            for (chunk, out) in share.chunks(chunk_bytes).zip(&mut converted) {
                scope.spawn(move || {
                    out.clear();
                    convert(part.dtype, chunk, target, out);
                });
            }
        });
        for chunk in converted.iter_mut().take(share.len().div_ceil(chunk_bytes)) {
            memory.write(start, chunk)?;
            start += chunk.len();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::storage::floats_of;
    use super::*;
    use crate::ops::testing::{devices, random};

    #[test]
    fn parts_of_any_type_follow_each_other() {
        for device in devices() {
            for elem in [ElemType::Bf16, ElemType::F16] {
                // More than one chunk a thread, and one that is nearly empty.
                let (cols, rows) = (264, [2100, 1]);
                let data: Vec<Vec<f32>> = rows.iter().map(|&rows| random(rows * cols, rows as u64)).collect();
                let part = |idx: usize, dtype: ElemType, name: Dtype| TensorView {
                    dtype: name,
                    shape: vec![rows[idx], cols],
                    data: bytes_of(&data[idx], dtype).into(),
                };
                let parts = vec![part(0, ElemType::F32, Dtype::F32), part(1, ElemType::F16, Dtype::F16)];
                let matrix = load(&device, parts, Some(&data[1]), elem).unwrap();
                let mut bytes = vec![0; matrix.rows * cols * 2];
                matrix.memory.read(0, &mut bytes).unwrap();
                let rounded = floats_of(&bytes_of(&data[1], ElemType::F16), ElemType::F16);
                let expected = [bytes_of(&data[0], elem), bytes_of(&rounded, elem)].concat();
                assert!(bytes == expected, "{elem:?}");
                assert_eq!(matrix.bias.unwrap().len, cols);
            }
            let odd = TensorView { dtype: Dtype::F32, shape: vec![1, 12], data: vec![0; 48].into() };
            let error = load(&device, vec![odd], None, ElemType::Bf16).err().unwrap().to_string();
            assert!(error.contains("12 columns"), "{error}");
        }
    }
}
