//! The block formats in one unpacked form: `w[i] = scale[g] * q[i] + offset[g]`.
//!
//! A row is a sequence of blocks; a block holds small integers and the scales (and in some formats
//! the offsets) of groups of 16 or 32 of them. [`unpack_row`] is the only reader of the bit
//! layouts: kernels and [`dequantize`] are written on its output.
//!
//! | format | q | group | scale | offset |
//! |---|---|---|---|---|
//! | Q4_0, Q5_0 | -8..=7, -16..=15 | 32 | d | |
//! | Q4_1, Q5_1 | 0..=15, 0..=31 | 32 | d | m |
//! | Q8_0 | -128..=127 | 32 | d | |
//! | Q2_K | 0..=3 | 16 | d * 4 bits | -dmin * 4 bits |
//! | Q3_K | -4..=3 | 16 | d * (6 bits - 32) | |
//! | Q4_K, Q5_K | 0..=15, 0..=31 | 32 | d * 6 bits | -dmin * 6 bits |
//! | Q6_K | -32..=31 | 16 | d * 8 bits, signed | |
//! | MXFP4 | twice 0, 0.5, 1, 1.5, 2, 3, 4, 6 of either sign | 32 | 2^(e - 127) / 2 | |
//! | INT4_G32, INT4_G128 | 0..=15 less a zero point of 0..=16 | 32, of the second four alike | d | |

mod encode;
mod int4;
mod k;
mod legacy;
mod mxfp4;
#[cfg(test)]
mod tests;

pub use encode::{encode, quantize_q4_0, quantize_q4_1, quantize_q8_0};
pub(in crate::weights) use encode::{pack_nibbles, quantize_rows};
pub(crate) use encode::{quantize, random_blocks};

pub(in crate::weights) use mxfp4::{bad_scale, from_neighbours};
pub(crate) use mxfp4::{code_of as mxfp4_code_of, doubled as mxfp4_doubled, half_scale as mxfp4_half_scale};

use super::bytes::{as_bf16, as_f16, as_f32};
use super::{Dtype, fp8};

/// One row unpacked: `w[i] = scale[g] * q[i] + offset[g]`, `g = i / group_len`.
#[derive(Debug)]
pub struct Unpacked<'a> {
    /// The integers, one an element of the row.
    pub q: &'a mut [i8],
    /// One a group.
    pub scale: &'a mut [f32],
    /// One a group; not touched, and may be empty, for a format without [`has_offset`].
    pub offset: &'a mut [f32],
}

/// Elements that share a scale: 16 or 32; 1 for plain floats.
pub const fn group_len(dtype: Dtype) -> usize {
    match dtype {
        Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8E4M3 => 1,
        Dtype::Q2K | Dtype::Q3K | Dtype::Q6K => 16,
        Dtype::Q4_0 | Dtype::Q4_1 | Dtype::Q5_0 | Dtype::Q5_1 | Dtype::Q8_0 | Dtype::Q4K | Dtype::Q5K => 32,
        Dtype::Int4G32 | Dtype::Int4G128 | Dtype::Mxfp4 => 32,
    }
}

/// Whether groups have offsets beside their scales.
pub const fn has_offset(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::Q4_1 | Dtype::Q5_1 | Dtype::Q2K | Dtype::Q4K | Dtype::Q5K)
}

/// Whether blocks say which code is 0.
pub(crate) const fn has_zero_point(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::Int4G32 | Dtype::Int4G128)
}

/// Unpacks the blocks of one row, as many as `row` and each slice of `out` have room for.
///
/// It is inlined into its caller down to the innermost loop, so that a caller compiled for wider
/// vectors gets them.
///
/// # Panics
///
/// For plain floats, which have no blocks.
#[inline(always)]
pub fn unpack_row(dtype: Dtype, row: &[u8], out: Unpacked<'_>) {
    match dtype {
        Dtype::Q4_0 => legacy::unpack_q4_0(row, out),
        Dtype::Q4_1 => legacy::unpack_q4_1(row, out),
        Dtype::Q5_0 => legacy::unpack_q5_0(row, out),
        Dtype::Q5_1 => legacy::unpack_q5_1(row, out),
        Dtype::Q8_0 => legacy::unpack_q8_0(row, out),
        Dtype::Q2K => k::unpack_q2_k(row, out),
        Dtype::Q3K => k::unpack_q3_k(row, out),
        Dtype::Q4K => k::unpack_q4_k(row, out),
        Dtype::Q5K => k::unpack_q5_k(row, out),
        Dtype::Q6K => k::unpack_q6_k(row, out),
        Dtype::Int4G32 => int4::unpack::<20, 1>(row, out),
        Dtype::Int4G128 => int4::unpack::<68, 4>(row, out),
        Dtype::Mxfp4 => mxfp4::unpack(row, out),
        Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8E4M3 => unreachable!("{dtype} has no blocks to unpack"),
    }
}

/// What the scales of one block are made of, bit by bit as the file has them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct BlockScales {
    /// The f16 that all scales of the block are multiples of; MXFP4: e.
    pub(crate) d: u16,
    /// The f16 that all offsets are multiples of (Q4_1, Q5_1: the offset itself; INT4: the code of 0); 0 without any.
    pub(crate) m: u16,
    /// Factors of d, one a group: 4 bits (Q2_K), 6 (Q4_K, Q5_K) or a signed byte (Q3_K, Q6_K); 1 where d is the scale itself.
    pub(crate) scale: [u8; 16],
    /// Factors of m, one a group: 4 bits (Q2_K), or 6 (Q4_K, Q5_K).
    pub(crate) offset: [u8; 16],
}

/// The scales of a block.
///
/// # Panics
///
/// For plain floats, which have no blocks.
pub(crate) fn block_scales(dtype: Dtype, block: &[u8]) -> BlockScales {
    let half = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    let plain = BlockScales { d: half(0), scale: [1; 16], ..BlockScales::default() };
    match dtype {
        Dtype::Q4_0 | Dtype::Q5_0 | Dtype::Q8_0 => plain,
        Dtype::Mxfp4 => BlockScales { d: block[0].into(), ..plain },
        Dtype::Q4_1 | Dtype::Q5_1 | Dtype::Int4G32 | Dtype::Int4G128 => BlockScales { m: half(2), ..plain },
        Dtype::Q4K | Dtype::Q5K => {
            let block: &[u8; 16] = block.first_chunk().expect("invariant: a block is as long as its layout");
            let (scales, offsets) = k::six_bit_pairs(block);
            let (mut scale, mut offset) = ([0; 16], [0; 16]);
            scale[..8].copy_from_slice(&scales);
            offset[..8].copy_from_slice(&offsets);
            BlockScales { m: half(2), scale, offset, ..plain }
        }
        Dtype::Q2K => {
            let packed: &[u8; 16] = block.first_chunk().expect("invariant: a block is as long as its layout");
            let (scale, offset) = (packed.map(|byte| byte & 0x0f), packed.map(|byte| byte >> 4));
            BlockScales { d: half(80), m: half(82), scale, offset }
        }
        Dtype::Q3K => {
            let packed = block[96..].first_chunk().expect("invariant: a block is as long as its layout");
            let scale = k::six_bit_scales(packed).map(|scale| scale as u8);
            BlockScales { d: half(108), scale, ..BlockScales::default() }
        }
        Dtype::Q6K => {
            let scale = *block[192..].first_chunk().expect("invariant: a block is as long as its layout");
            BlockScales { d: half(208), scale, ..BlockScales::default() }
        }
        Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8E4M3 => unreachable!("{dtype} has no blocks"),
    }
}

/// `data` of any type as f32, as many elements as both slices hold.
///
/// Plain floats are converted exactly. For blocks the product and the sum are rounded one by one,
/// which gives the same bits as ggml's own reference.
pub fn dequantize(dtype: Dtype, data: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::F32 => out.iter_mut().zip(as_f32(data).iter()).for_each(|(o, x)| *o = *x),
        Dtype::F16 => out.iter_mut().zip(as_f16(data).iter()).for_each(|(o, x)| *o = x.to_f32()),
        Dtype::BF16 => out.iter_mut().zip(as_bf16(data).iter()).for_each(|(o, x)| *o = x.to_f32()),
        Dtype::F8E4M3 => out.iter_mut().zip(data).for_each(|(o, &code)| *o = fp8::decode(code)),
        _ => {
            for (data, out) in data.chunks(dtype.row_bytes(CHUNK_LEN)).zip(out.chunks_mut(CHUNK_LEN)) {
                dequantize_chunk(dtype, data, out);
            }
        }
    }
}

/// Elements that [`dequantize`] unpacks at a time: the longest block, and whole blocks of the others.
const CHUNK_LEN: usize = 256;

fn dequantize_chunk(dtype: Dtype, data: &[u8], out: &mut [f32]) {
    let mut q = [0; CHUNK_LEN];
    let mut scale = [0.0; CHUNK_LEN / 16];
    let mut offset = [0.0; CHUNK_LEN / 16];
    let num_elements = (data.len() / dtype.block_bytes() * dtype.block_len()).min(out.len());
    unpack_row(dtype, data, Unpacked { q: &mut q, scale: &mut scale, offset: &mut offset });
    let group_len = group_len(dtype);
    for (g, out) in out[..num_elements].chunks_mut(group_len).enumerate() {
        let (scale, offset) = (scale[g], offset[g]);
        let q = &q[g * group_len..];
        if has_offset(dtype) {
            out.iter_mut().zip(q).for_each(|(o, &q)| *o = scale * f32::from(q) + offset);
        } else {
            out.iter_mut().zip(q).for_each(|(o, &q)| *o = scale * f32::from(q));
        }
    }
}

/// The blocks of `BYTES` of a row, each with the room for its `LEN` elements.
#[inline(always)]
fn blocks<'a, const BYTES: usize, const LEN: usize>(
    row: &'a [u8],
    q: &'a mut [i8],
) -> impl Iterator<Item = (&'a [u8; BYTES], &'a mut [i8; LEN])> {
    row.as_chunks().0.iter().zip(q.as_chunks_mut().0)
}

/// A half at byte `at` of a block.
#[inline(always)]
fn half_at<const N: usize>(block: &[u8; N], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// A half's bits as f32, exactly.
///
/// `half` converts behind a call that first looks up what the CPU can do, once a block; this is a few
/// operations in line. Scales of K formats are often subnormal halves: no subnormal f32 arises on the
/// way, which would cost a hundred cycles.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    /// What f32 adds to a half's exponent.
    const REBIAS: u32 = 112 << 23;
    /// The least normal half.
    const LEAST: u32 = REBIAS + (1 << 23);
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    // A subnormal half is read as if it had the hidden bit, which is then subtracted.
    let subnormal = (f32::from_bits(magnitude + LEAST) - f32::from_bits(LEAST)).to_bits();
    let infinite_or_nan = magnitude | f32::INFINITY.to_bits();
    let finite = if magnitude < 0x0400 << 13 { subnormal } else { magnitude + REBIAS };
    f32::from_bits(sign | if magnitude < 0x7c00 << 13 { finite } else { infinite_or_nan })
}

/// `LEN` bytes from byte `at` of a block.
#[inline(always)]
fn bytes_at<const LEN: usize, const N: usize>(block: &[u8; N], at: usize) -> &[u8; LEN] {
    block[at..].first_chunk().expect("invariant: a block is as long as its layout")
}
