//! Blocks of 256 elements: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K.
//!
//! The scales of a block's groups are small integers times the block's own d; where there are
//! offsets, they are small integers times the block's own dmin, and they are subtracted.

use super::{Unpacked, blocks, bytes_at, half_at};

/// 84 bytes: 16 x (4-bit scale, 4-bit offset), 64 bytes of 2-bit elements, d, dmin.
///
/// Byte l of the first 32 holds the elements l, l + 32, l + 64, l + 96, lowest bits first; the other
/// 32 bytes hold the second 128 elements likewise.
#[inline(always)]
pub(super) fn unpack_q2_k(row: &[u8], out: Unpacked<'_>) {
    let groups = out.scale.as_chunks_mut::<16>().0.iter_mut().zip(out.offset.as_chunks_mut::<16>().0);
    for ((block, q), (scale, offset)) in blocks::<84, 256>(row, out.q).zip(groups) {
        let (d, dmin) = (half_at(block, 80), half_at(block, 82));
        let scales: &[u8; 16] = bytes_at(block, 0);
        for g in 0..16 {
            scale[g] = d * f32::from(scales[g] & 0x0f);
            offset[g] = -(dmin * f32::from(scales[g] >> 4));
        }
        let packed: &[u8; 64] = bytes_at(block, 16);
        for j in 0..8 {
            for l in 0..32 {
                q[32 * j + l] = ((packed[j / 4 * 32 + l] >> (j % 4 * 2)) & 3) as i8;
            }
        }
    }
}

/// 110 bytes: 32 bytes of third bits, 64 bytes of 2-bit elements, 12 bytes of 6-bit scales, d.
///
/// The 2-bit elements lie as in Q2_K. Bit j of byte l of the third bits belongs to element
/// 32 * j + l, and where it is clear 4 is subtracted.
#[inline(always)]
pub(super) fn unpack_q3_k(row: &[u8], out: Unpacked<'_>) {
    for ((block, q), scale) in blocks::<110, 256>(row, out.q).zip(out.scale.as_chunks_mut::<16>().0) {
        let d = half_at(block, 108);
        let scales = six_bit_scales(bytes_at(block, 96));
        for g in 0..16 {
            scale[g] = d * f32::from(scales[g]);
        }
        let third: &[u8; 32] = bytes_at(block, 0);
        let packed: &[u8; 64] = bytes_at(block, 32);
        for j in 0..8 {
            for l in 0..32 {
                let low = (packed[j / 4 * 32 + l] >> (j % 4 * 2)) & 3;
                let high = (third[l] >> j) & 1;
                q[32 * j + l] = (low | (high << 2)) as i8 - 4;
            }
        }
    }
}

/// The sixteen scales of a Q3_K block, 6 bits less 32: the low four of the scales g and g + 8 are a byte, the upper two of the scales g,
/// g + 4, g + 8 and g + 12 are another.
#[inline(always)]
pub(super) fn six_bit_scales(packed: &[u8; 12]) -> [i8; 16] {
    let mut scales = [0; 16];
    for j in 0..4 {
        for i in 0..4 {
            let low = (packed[j % 2 * 4 + i] >> (j / 2 * 4)) & 0x0f;
            let high = (packed[8 + i] >> (j * 2)) & 3;
            scales[4 * j + i] = (low | (high << 4)) as i8 - 32;
        }
    }
    scales
}

/// The eight 6-bit pairs (scale, offset) of a Q4_K or Q5_K block, in 12 bytes after d and dmin.
///
/// Pairs 0..4 are the low six bits of bytes 0..4 (scale) and 4..8 (offset). Pairs 4..8 have their
/// low four bits in bytes 8..12 (scale low, offset high) and their upper two in the bits left over.
#[inline(always)]
pub(super) fn six_bit_pairs<const N: usize>(block: &[u8; N]) -> ([u8; 8], [u8; 8]) {
    let packed: &[u8; 12] = bytes_at(block, 4);
    let (mut scale, mut offset) = ([0; 8], [0; 8]);
    for g in 0..4 {
        scale[g] = packed[g] & 0x3f;
        offset[g] = packed[g + 4] & 0x3f;
        scale[g + 4] = (packed[g + 8] & 0x0f) | (packed[g] >> 6 << 4);
        offset[g + 4] = (packed[g + 8] >> 4) | (packed[g + 4] >> 6 << 4);
    }
    (scale, offset)
}

/// Scales and offsets of Q4_K and Q5_K: d times the first of each pair, -dmin times the second.
#[inline(always)]
fn scales_and_offsets<const N: usize>(block: &[u8; N], scale: &mut [f32; 8], offset: &mut [f32; 8]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (scales, offsets) = six_bit_pairs(block);
    for g in 0..8 {
        scale[g] = d * f32::from(scales[g]);
        offset[g] = -(dmin * f32::from(offsets[g]));
    }
}

/// 144 bytes: d, dmin, 12 bytes of scales and offsets, 128 bytes of 4-bit elements.
///
/// Byte l of each 32 holds element l of one group of 32 in its low nibble, and of the next in its high.
#[inline(always)]
pub(super) fn unpack_q4_k(row: &[u8], out: Unpacked<'_>) {
    let groups = out.scale.as_chunks_mut::<8>().0.iter_mut().zip(out.offset.as_chunks_mut::<8>().0);
    for ((block, q), (scale, offset)) in blocks::<144, 256>(row, out.q).zip(groups) {
        scales_and_offsets(block, scale, offset);
        let packed: &[u8; 128] = bytes_at(block, 16);
        for j in 0..4 {
            for l in 0..32 {
                q[64 * j + l] = (packed[32 * j + l] & 0x0f) as i8;
                q[64 * j + 32 + l] = (packed[32 * j + l] >> 4) as i8;
            }
        }
    }
}

/// 176 bytes: as Q4_K, with 32 bytes of fifth bits before the elements.
///
/// Bit j of byte l of the fifth bits belongs to element 32 * j + l.
#[inline(always)]
pub(super) fn unpack_q5_k(row: &[u8], out: Unpacked<'_>) {
    let groups = out.scale.as_chunks_mut::<8>().0.iter_mut().zip(out.offset.as_chunks_mut::<8>().0);
    for ((block, q), (scale, offset)) in blocks::<176, 256>(row, out.q).zip(groups) {
        scales_and_offsets(block, scale, offset);
        let fifth: &[u8; 32] = bytes_at(block, 16);
        let packed: &[u8; 128] = bytes_at(block, 48);
        for j in 0..4 {
            for l in 0..32 {
                let (low, high) = (packed[32 * j + l] & 0x0f, packed[32 * j + l] >> 4);
                q[64 * j + l] = (low | ((fifth[l] >> (2 * j)) & 1) << 4) as i8;
                q[64 * j + 32 + l] = (high | ((fifth[l] >> (2 * j + 1)) & 1) << 4) as i8;
            }
        }
    }
}

/// 210 bytes: 128 bytes of low nibbles, 64 bytes of upper two bits, 16 signed scales, d.
///
/// Each 128 elements have 64 bytes of low nibbles (elements 0..64 low, 64..128 high) and 32 bytes of
/// upper bits, byte l of which belongs to the elements l, l + 32, l + 64, l + 96.
#[inline(always)]
pub(super) fn unpack_q6_k(row: &[u8], out: Unpacked<'_>) {
    for ((block, q), scale) in blocks::<210, 256>(row, out.q).zip(out.scale.as_chunks_mut::<16>().0) {
        let d = half_at(block, 208);
        let scales: &[u8; 16] = bytes_at(block, 192);
        for g in 0..16 {
            scale[g] = d * f32::from(scales[g] as i8);
        }
        let low: &[u8; 128] = bytes_at(block, 0);
        let upper: &[u8; 64] = bytes_at(block, 128);
        for j in 0..8 {
            for l in 0..32 {
                let low = (low[j / 4 * 64 + j % 2 * 32 + l] >> (j % 4 / 2 * 4)) & 0x0f;
                let upper = (upper[j / 4 * 32 + l] >> (j % 4 * 2)) & 3;
                q[32 * j + l] = (low | (upper << 4)) as i8 - 32;
            }
        }
    }
}
