//! [`load`]: weights of any stored type as matrices on a device: block formats and e4m3 stay as they are, others have 16 bits.

use std::sync::Arc;

use super::device::{Device, ElemType};
use super::quant;
use super::storage::{ExpertMatrices, FP8_STEP, Form, Matrix, Memory, QuantPart, Vector, bytes_of};
use crate::config::WeightDtype;
use crate::error::{Error, Result};
use crate::ops;
use crate::weights::{Dtype, RandomWeights, TensorView, convert, with_one_order};

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

/// Whether weights of this type stay in their blocks beside activations of `elem`.
pub(super) fn stays(stored: Dtype, elem: ElemType) -> bool {
    elem == ElemType::Bf16 && quant::has_kernels(stored)
}

/// Parts of the same number of columns over each other. `keeps_blocks`: those in formats that kernels read stay in them.
pub(crate) fn load(
    device: &Arc<dyn Device>,
    parts: Vec<TensorView<'_>>,
    bias: Option<&[f32]>,
    elem: ElemType,
    keeps_blocks: bool,
) -> Result<Matrix> {
    let (parts, order) = with_one_order(parts);
    let column_order = order.map(|order| Memory::of_bytes(device, bytemuck::cast_slice(&order))).transpose()?;
    let mut matrix = load_stored(device, parts, bias, elem, keeps_blocks)?;
    matrix.column_order = column_order;
    Ok(matrix)
}

/// The same with columns as they are stored.
fn load_stored(
    device: &Arc<dyn Device>,
    parts: Vec<TensorView<'_>>,
    bias: Option<&[f32]>,
    elem: ElemType,
    keeps_blocks: bool,
) -> Result<Matrix> {
    let (rows, cols) = (parts.iter().map(|part| part.shape[0]).sum::<usize>(), parts[0].shape[1]);
    // Parts begin at whole tiles.
    let suits = |(i, part): (usize, &TensorView<'_>)| {
        stays(part.dtype, elem) && (i + 1 == parts.len() || part.shape[0].is_multiple_of(quant::ROWS))
    };
    if keeps_blocks && parts.iter().enumerate().all(suits) {
        return load_quantized(device, &parts, bias);
    }
    if parts.iter().all(|part| part.dtype == Dtype::F8E4M3) {
        let scales: Vec<f32> = parts.iter().flat_map(|part| part.row_scales.iter().flatten()).copied().collect();
        let matrix = empty(device, [rows, cols], bias, elem, Some(&scales))?;
        write_fp8(&matrix, &parts)?;
        return Ok(matrix);
    }
    let matrix = empty(device, [rows, cols], bias, elem, None)?;
    let mut start = 0;
    for part in parts {
        // Beside parts of other types.
        let part = if part.dtype == Dtype::F8E4M3 { part.in_f32() } else { part };
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

/// Parts of so many experts, equally many of each over each other. Formats of blocks stay as they are, if so asked, where all parts have one
/// and are whole tiles.
pub(crate) fn load_experts(
    device: &Arc<dyn Device>,
    parts: Vec<TensorView<'_>>,
    num_experts: usize,
    bias: Option<&[f32]>,
    elem: ElemType,
    keeps_blocks: bool,
) -> Result<ExpertMatrices> {
    if parts.iter().any(|part| part.column_order.is_some()) {
        return Err(Error::config("device", "experts whose weights are in act-order run on the cpu alone"));
    }
    let suits = |part: &TensorView<'_>| part.dtype == parts[0].dtype && part.shape[0].is_multiple_of(quant::ROWS);
    let keeps_blocks = keeps_blocks && parts.iter().all(suits);
    Ok(ExpertMatrices { all: load_stored(device, parts, bias, elem, keeps_blocks)?, num_experts })
}

/// Random weights, [rows, cols], which are made where they are.
pub(crate) fn random(
    device: &Arc<dyn Device>,
    shape: [usize; 2],
    bias: Option<&[f32]>,
    elem: ElemType,
    random: RandomWeights,
) -> Result<Matrix> {
    let scales = (random.dtype == Dtype::F8E4M3).then(|| vec![ops::random::FP8_SCALE; shape[0]]);
    let mut matrix = empty(device, shape, bias, elem, scales.as_deref())?;
    ops::random::cuda(&**device, &mut matrix, random.seed)?;
    // Products read weights before they wait for the kernel before them.
    device.synchronize()?;
    Ok(matrix)
}

/// A matrix whose weights are anything; `scales`: of the rows of e4m3.
fn empty(
    device: &Arc<dyn Device>,
    [rows, cols]: [usize; 2],
    bias: Option<&[f32]>,
    elem: ElemType,
    scales: Option<&[f32]>,
) -> Result<Matrix> {
    if !cols.is_multiple_of(ROW_ALIGNMENT) {
        let message =
            format!("matrices of {cols} columns, which {ROW_ALIGNMENT} does not divide, run on the cpu alone");
        return Err(Error::config("device", message));
    }
    let row_bytes = if scales.is_some() { cols.next_multiple_of(FP8_STEP) } else { cols * elem.bytes() };
    let memory = Memory::new(device, rows * row_bytes)?;
    let [scales, bias] = [scales, bias].map(|data| data.map(|data| vector(device, data)).transpose());
    Matrix::new(memory, [rows, cols], elem, scales?.map_or(Form::Floats, Form::Fp8), bias?)
}

/// Parts in block formats, each in its own.
fn load_quantized(device: &Arc<dyn Device>, parts: &[TensorView<'_>], bias: Option<&[f32]>) -> Result<Matrix> {
    let cols = parts[0].shape[1];
    let num_bytes = |part: &TensorView<'_>| quant::packed_bytes(part.dtype, part.shape[0], cols);
    let memory = Memory::new(device, parts.iter().map(num_bytes).sum())?;
    let mut places: Vec<QuantPart> = Vec::new();
    let (mut first_row, mut start) = (0, 0);
    for part in parts {
        let dtype = part.dtype;
        let sizes = [quant::ROWS * dtype.row_bytes(cols), quant::packed_bytes(dtype, quant::ROWS, cols)];
        write_packed(&memory, start, &part.data, sizes, |rows, out| quant::pack(dtype, cols, rows, out))?;
        match places.last_mut() {
            Some(last) if last.dtype == part.dtype => last.rows += part.shape[0],
            _ => places.push(QuantPart { dtype: part.dtype, first_row, rows: part.shape[0], start }),
        }
        first_row += part.shape[0];
        start += num_bytes(part);
    }
    let bias = bias.map(|bias| vector(device, bias)).transpose()?;
    let rows = first_row;
    Matrix::new(memory, [rows, cols], ElemType::Bf16, Form::Blocks(places), bias)
}

/// Writes `data`, of which each `stored` bytes (the last perhaps fewer) become `packed` ones, which are zeros before `pack`, from byte
/// `start` on: by as many threads as the machine has, a share at a time, and the shares in order.
fn write_packed(
    memory: &Memory,
    mut start: usize,
    data: &[u8],
    [stored, packed]: [usize; 2],
    pack: impl Fn(&[u8], &mut [u8]) + Sync,
) -> Result<()> {
    let share = (CHUNK_BYTES / packed.max(1)).max(1);
    let num_threads = std::thread::available_parallelism().map_or(1, Into::into);
    let mut out = vec![0; num_threads * share * packed];
    for data in data.chunks((num_threads * share * stored).max(1)) {
        let out = &mut out[..data.len().div_ceil(stored) * packed];
        out.fill(0);
        std::thread::scope(|scope| {
            for (data, out) in data.chunks(share * stored).zip(out.chunks_mut(share * packed)) {
                let pack = &pack;
                scope
                    .spawn(move || data.chunks(stored).zip(out.chunks_exact_mut(packed)).for_each(|(d, o)| pack(d, o)));
            }
        });
        memory.write(start, out)?;
        start += out.len();
    }
    Ok(())
}

/// Where the codes of e4m3 stand within a step's bytes: column by byte. A lane's 16 bytes are its four columns of each of four
/// products; of four columns the even ones come first, as `linear.cu` expands them.
const ORDER: [usize; FP8_STEP] = {
    let (mut order, mut at) = ([0; FP8_STEP], 0);
    while at < FP8_STEP {
        let (lane, product) = (at / 16, at / 4 % 4);
        order[at] = product * 16 + lane % 2 * 8 + lane / 2 * 4 + [0, 2, 1, 3][at % 4];
        at += 1;
    }
    order
};

/// One row in that order, with zeros behind it.
fn arrange(codes: &[u8], out: &mut [u8]) {
    for (codes, out) in codes.chunks(FP8_STEP).zip(out.chunks_exact_mut(FP8_STEP)) {
        let mut step = [0; FP8_STEP];
        step[..codes.len()].copy_from_slice(codes);
        out.iter_mut().zip(ORDER).for_each(|(out, col)| *out = step[col]);
    }
}

/// The codes of each part in that order.
fn write_fp8(matrix: &Matrix, parts: &[TensorView<'_>]) -> Result<()> {
    let (cols, row_bytes) = (matrix.cols, matrix.cols.next_multiple_of(FP8_STEP));
    let mut start = 0;
    for part in parts {
        write_packed(&matrix.memory, start, &part.data, [cols, row_bytes], arrange)?;
        start += part.shape[0] * row_bytes;
    }
    Ok(())
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
                let part = |idx: usize, dtype: ElemType, name: Dtype| {
                    TensorView::new(name, vec![rows[idx], cols], bytes_of(&data[idx], dtype))
                };
                let parts = vec![part(0, ElemType::F32, Dtype::F32), part(1, ElemType::F16, Dtype::F16)];
                let matrix = load(&device, parts, Some(&data[1]), elem, true).unwrap();
                let mut bytes = vec![0; matrix.rows * cols * 2];
                matrix.memory.read(0, &mut bytes).unwrap();
                let rounded = floats_of(&bytes_of(&data[1], ElemType::F16), ElemType::F16);
                let expected = [bytes_of(&data[0], elem), bytes_of(&rounded, elem)].concat();
                assert!(bytes == expected, "{elem:?}");
                assert_eq!(matrix.bias.unwrap().len, cols);
            }
            // e4m3 beside another type is expanded.
            let fp8 = TensorView::new(Dtype::F8E4M3, vec![1, 8], vec![0x38; 8]);
            let fp8 = TensorView { row_scales: Some(vec![3.0]), ..fp8 };
            let other = TensorView::new(Dtype::F32, vec![1, 8], vec![0u8; 32]);
            let matrix = load(&device, vec![fp8, other], None, ElemType::Bf16, true).unwrap();
            let mut bytes = vec![0; 32];
            matrix.memory.read(0, &mut bytes).unwrap();
            let expected = [vec![3.0; 8], vec![0.0; 8]].concat();
            assert!(!matrix.is_fp8() && floats_of(&bytes, ElemType::Bf16) == expected);
            let odd = TensorView::new(Dtype::F32, vec![1, 12], vec![0u8; 48]);
            let error = load(&device, vec![odd], None, ElemType::Bf16, true).err().unwrap().to_string();
            assert!(error.contains("12 columns"), "{error}");
        }
    }
}
