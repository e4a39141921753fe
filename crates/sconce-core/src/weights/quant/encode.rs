//! f32 to bytes: plain floats, and reference quantizers of the simplest blocks.
//!
//! They round as ggml's own do. The other formats are read only: their quantizers search for scales,
//! which is the work of a conversion tool.

use half::{bf16, f16};

use super::{Dtype, mxfp4};
use crate::weights::TensorView;
use crate::weights::dummy::random_bits;

/// `values` as `dtype`; `None` if `dtype` has no quantizer here (F32, F16, BF16, Q4_0, Q4_1, Q8_0, INT4_G32, INT4_G128
/// and MXFP4 have one) or `values` is not a whole number of blocks.
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
        Dtype::Int4G32 => blocks(values, quantize_int4::<32, 20>),
        Dtype::Int4G128 => blocks(values, quantize_int4::<128, 68>),
        Dtype::Mxfp4 => blocks(values, mxfp4::quantize),
        _ => return None,
    })
}

/// Blocks of any format with random codes and factors, for measurements and tests: halves are of either sign and up to 0.004.
pub(crate) fn random_blocks(dtype: Dtype, num_blocks: usize, seed: u64) -> Vec<u8> {
    let num_bytes = num_blocks * dtype.block_bytes();
    let mut bits = (0..).map(|counter| random_bits(seed, counter));
    let mut data: Vec<u8> = bits.by_ref().take(num_bytes.div_ceil(8)).flat_map(u64::to_le_bytes).collect();
    data.truncate(num_bytes);
    for block in data.chunks_exact_mut(dtype.block_bytes()) {
        for &at in halves(dtype) {
            let unit = bits.next().unwrap_or_default() as u32 as f32 / u32::MAX as f32 * 2.0 - 1.0;
            block[at..at + 2].copy_from_slice(&f16::from_f32(0.004 * unit).to_le_bytes());
        }
        if dtype == Dtype::Mxfp4 {
            // A scale of 2^-9 to 2^-6.
            block[0] = 118 + block[0] % 4;
        }
        if super::has_zero_point(dtype) {
            let zero = f16::from_f32(f32::from(block[2] % 17));
            block[2..4].copy_from_slice(&zero.to_le_bytes());
        }
    }
    data
}

/// The bytes at which blocks have halves: d, and m or dmin.
pub(super) const fn halves(dtype: Dtype) -> &'static [usize] {
    match dtype {
        Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8E4M3 | Dtype::Mxfp4 => &[],
        Dtype::Q4_1 | Dtype::Q5_1 | Dtype::Q4K | Dtype::Q5K => &[0, 2],
        Dtype::Q2K => &[80, 82],
        Dtype::Q3K => &[108],
        Dtype::Q6K => &[208],
        Dtype::Q4_0 | Dtype::Q5_0 | Dtype::Q8_0 | Dtype::Int4G32 | Dtype::Int4G128 => &[0],
    }
}

/// Rows that a thread quantizes at least: fewer are done before it has begun.
const MIN_SHARE: usize = 64;

/// Each row of a matrix of floats, scales included, as `target_bytes` bytes that `quantize` makes of it; and what else it returns, of each
/// row; `None` where one of those is not finite. By as many threads as the machine has.
pub(in crate::weights) fn quantize_rows(
    matrix: &TensorView<'_>,
    target_bytes: usize,
    quantize: impl Fn(&[f32], &mut [u8]) -> f32 + Sync,
) -> Option<(Vec<u8>, Vec<f32>)> {
    let (rows, cols) = (matrix.shape[0], matrix.shape[1]);
    let row_bytes = matrix.dtype.row_bytes(cols);
    let (mut data, mut factors) = (vec![0; rows * target_bytes], vec![0.0; rows]);
    let share = rows.div_ceil(std::thread::available_parallelism().map_or(1, Into::into)).max(MIN_SHARE);
    let scale_of = |row: usize| matrix.row_scales.as_ref().map(|scales| scales[row]);
    std::thread::scope(|scope| {
        let shares = matrix.data.chunks((share * row_bytes).max(1));
        let targets = data.chunks_mut((share * target_bytes).max(1)).zip(factors.chunks_mut(share));
        for (idx, (from, (to, factors))) in shares.zip(targets).enumerate() {
            let quantize = &quantize;
            scope.spawn(move || {
                let mut row = vec![0.0; cols];
                let targets = to.chunks_exact_mut(target_bytes).zip(factors);
                for (i, (from, (to, factor))) in from.chunks_exact(row_bytes).zip(targets).enumerate() {
                    super::dequantize(matrix.dtype, from, &mut row);
                    if let Some(scale) = scale_of(idx * share + i) {
                        row.iter_mut().for_each(|x| *x *= scale);
                    }
                    *factor = quantize(&row, to);
                }
            });
        }
    });
    factors.iter().all(|factor| factor.is_finite()).then_some((data, factors))
}

/// A matrix of floats, scales included, in `dtype`, one that [`encode`] knows of, which divides its rows; `None` where a number is not
/// finite, or beyond what scales of 16 bits reach.
pub(crate) fn quantize(matrix: &TensorView<'_>, dtype: Dtype) -> Option<TensorView<'static>> {
    let encode_row = |row: &[f32], to: &mut [u8]| {
        to.copy_from_slice(&encode(dtype, row).expect("invariant: rows are whole blocks of such a type"));
        if row.iter().all(|x| x.abs() <= f16::MAX.to_f32()) { 1.0 } else { f32::INFINITY }
    };
    let (data, _) = quantize_rows(matrix, dtype.row_bytes(matrix.shape[1]), encode_row)?;
    Some(TensorView::new(dtype, matrix.shape.clone(), data))
}

fn blocks<const LEN: usize, const BYTES: usize>(values: &[f32], quantize: fn(&[f32; LEN]) -> [u8; BYTES]) -> Vec<u8> {
    let mut data = Vec::with_capacity(values.len() / LEN * BYTES);
    values.as_chunks().0.iter().for_each(|values| data.extend_from_slice(&quantize(values)));
    data
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

/// A block of 4-bit integers whose code of 0 is 8: the greatest magnitude becomes 1 or 15.
fn quantize_int4<const LEN: usize, const BYTES: usize>(values: &[f32; LEN]) -> [u8; BYTES] {
    let d = values.iter().fold(0f32, |m, v| m.max(v.abs())) / 7.0;
    let mut block = [0; BYTES];
    block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    block[2..4].copy_from_slice(&f16::from_f32(8.0).to_le_bytes());
    let inverse = inverse(d);
    for (bytes, values) in block[4..].as_chunks_mut().0.iter_mut().zip(values.as_chunks().0) {
        *bytes = nibbles(values, |v| v * inverse + 8.5);
    }
    block
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn nibbles(values: &[f32; 32], level: impl Fn(f32) -> f32) -> [u8; 16] {
    pack_nibbles(&values.map(|v| (level(v) as u8).min(15)))
}

/// Codes l and l + 16 in one byte, each at most 15.
pub(in crate::weights) fn pack_nibbles(codes: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|l| codes[l] | codes[l + 16] << 4)
}
