//! f32 to bytes: plain floats, and reference quantizers of the simplest blocks.
//!
//! They round as ggml's own do. The other formats are read only: their quantizers search for scales,
//! which is the work of a conversion tool.

use std::sync::atomic::{AtomicBool, Ordering};

use half::{bf16, f16};

use super::Dtype;
use crate::weights::TensorView;

/// `values` as `dtype`; `None` if `dtype` has no quantizer here (F32, F16, BF16, Q4_0, Q4_1 and Q8_0
/// have one) or `values` is not a whole number of blocks.
pub fn encode(dtype: Dtype, values: &[f32]) -> Option<Vec<u8>> {
    if !values.len().is_multiple_of(dtype.block_len()) {
        return None;
    }
    Some(match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        Dtype::Q4_0 => blocks(values, quantize_q4_0),
        Dtype::Q4_1 => blocks(values, quantize_q4_1),
        Dtype::Q8_0 => blocks(values, quantize_q8_0),
        _ => return None,
    })
}

/// Blocks of any format with random codes and factors, for measurements and tests: halves are of either sign and up to 0.004.
pub(crate) fn random_blocks(dtype: Dtype, num_blocks: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u32
    };
    let mut data = Vec::with_capacity(num_blocks * dtype.block_bytes() + 4);
    while data.len() < num_blocks * dtype.block_bytes() {
        data.extend_from_slice(&next().to_le_bytes());
    }
    data.truncate(num_blocks * dtype.block_bytes());
    for block in data.chunks_exact_mut(dtype.block_bytes()) {
        for &at in halves(dtype) {
            let unit = next() as f32 / u32::MAX as f32 * 2.0 - 1.0;
            block[at..at + 2].copy_from_slice(&f16::from_f32(0.004 * unit).to_le_bytes());
        }
    }
    data
}

/// The bytes at which blocks have halves: d, and m or dmin.
pub(super) const fn halves(dtype: Dtype) -> &'static [usize] {
    match dtype {
        Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8E4M3 => &[],
        Dtype::Q4_1 | Dtype::Q5_1 | Dtype::Q4K | Dtype::Q5K => &[0, 2],
        Dtype::Q2K => &[80, 82],
        Dtype::Q3K => &[108],
        Dtype::Q6K => &[208],
        Dtype::Q4_0 | Dtype::Q5_0 | Dtype::Q8_0 => &[0],
    }
}

/// Rows that a thread quantizes at least: fewer are done before it has begun.
const MIN_SHARE: usize = 64;

/// A matrix of floats, scales included, in `dtype`, one that [`encode`] knows of, which divides its rows; `None` where a number is not
/// finite.
pub(crate) fn quantize(matrix: &TensorView<'_>, dtype: Dtype) -> Option<TensorView<'static>> {
    let (rows, cols) = (matrix.shape[0], matrix.shape[1]);
    let (row_bytes, target_bytes) = (matrix.dtype.row_bytes(cols), dtype.row_bytes(cols));
    let mut data = vec![0; rows * target_bytes];
    let share = rows.div_ceil(std::thread::available_parallelism().map_or(1, Into::into)).max(MIN_SHARE);
    let is_finite = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let shares = matrix.data.chunks((share * row_bytes).max(1)).zip(data.chunks_mut((share * target_bytes).max(1)));
        for (idx, (from, to)) in shares.enumerate() {
            let is_finite = &is_finite;
            scope.spawn(move || {
                let mut row = vec![0.0; cols];
                let pairs = from.chunks_exact(row_bytes).zip(to.chunks_exact_mut(target_bytes));
                for (i, (from, to)) in pairs.enumerate() {
                    super::dequantize(matrix.dtype, from, &mut row);
                    if let Some(scales) = &matrix.row_scales {
                        row.iter_mut().for_each(|x| *x *= scales[idx * share + i]);
                    }
                    // Scales have 16 bits.
                    if row.iter().any(|x| x.is_nan() || x.abs() > f16::MAX.to_f32()) {
                        is_finite.store(false, Ordering::Relaxed);
                    }
                    to.copy_from_slice(&encode(dtype, &row).expect("invariant: rows are whole blocks of such a type"));
                }
            });
        }
    });
    let view = TensorView { dtype, shape: matrix.shape.clone(), data: data.into(), row_scales: None };
    is_finite.into_inner().then_some(view)
}

fn blocks<const BYTES: usize>(values: &[f32], quantize: fn(&[f32; 32]) -> [u8; BYTES]) -> Vec<u8> {
    values.as_chunks().0.iter().flat_map(quantize).collect()
}

/// A Q4_0 block: the value of greatest magnitude becomes -8 exactly.
pub fn quantize_q4_0(values: &[f32; 32]) -> [u8; 18] {
    let extreme = values.iter().fold(0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
    let d = extreme / -8.0;
    let mut block = [0; 18];
    block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    let inverse = inverse(d);
    for (byte, q) in block[2..].iter_mut().zip(nibbles(values, |v| v * inverse + 8.5)) {
        *byte = q;
    }
    block
}

/// A Q4_1 block: the least value becomes 0, the greatest 15.
pub fn quantize_q4_1(values: &[f32; 32]) -> [u8; 20] {
    let min = values.iter().copied().fold(f32::INFINITY, f32::min);
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let d = (max - min) / 15.0;
    let mut block = [0; 20];
    block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    block[2..4].copy_from_slice(&f16::from_f32(min).to_le_bytes());
    let inverse = inverse(d);
    for (byte, q) in block[4..].iter_mut().zip(nibbles(values, |v| (v - min) * inverse + 0.5)) {
        *byte = q;
    }
    block
}

/// A Q8_0 block: the greatest magnitude becomes 127.
pub fn quantize_q8_0(values: &[f32; 32]) -> [u8; 34] {
    let d = values.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
    let mut block = [0; 34];
    block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    let inverse = inverse(d);
    for (byte, v) in block[2..].iter_mut().zip(values) {
        *byte = (v * inverse).round() as i8 as u8;
    }
    block
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Elements l and l + 16 in one byte, each at most 15.
fn nibbles(values: &[f32; 32], level: impl Fn(f32) -> f32) -> [u8; 16] {
    std::array::from_fn(|l| {
        let q = |v: f32| (level(v) as u8).min(15);
        q(values[l]) | (q(values[l + 16]) << 4)
    })
}
