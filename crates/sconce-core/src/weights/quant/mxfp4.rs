//! MXFP4 (OCP Microscaling Formats 1.0): blocks of 17 bytes with 32 elements of e2m1, a byte e, then 16 bytes whose low nibbles are the
//! elements 0..16 and whose high nibbles are the elements 16..32. All are to be multiplied with 2^(e - 127).
//!
//! A code has a sign, then which of 0, 0.5, 1, 1.5, 2, 3, 4 and 6 it is. Unpacked, q is twice that, and the scale half of the other.

use super::{Unpacked, blocks, bytes_at};

/// The greatest e with which all elements are finite in f32.
const MAX_EXPONENT: u8 = 252;
const BLOCK_BYTES: usize = 17;

#[inline(always)]
pub(super) fn unpack(row: &[u8], out: Unpacked<'_>) {
    for ((block, q), scale) in blocks::<BLOCK_BYTES, 32>(row, out.q).zip(out.scale) {
        *scale = half_scale(block[0]);
        let packed: &[u8; 16] = bytes_at(block, 1);
        for l in 0..16 {
            q[l] = doubled(packed[l] & 0x0f);
            q[l + 16] = doubled(packed[l] >> 4);
        }
    }
}

/// Twice a code's number. Without a table, so that it is a few operations on vectors.
#[inline(always)]
pub(crate) fn doubled(code: u8) -> i8 {
    let magnitude = (code & 7) as i8;
    let doubled = magnitude.max(2 * magnitude - 4).max(4 * magnitude - 16);
    let sign = -((code >> 3) as i8);
    (doubled ^ sign) - sign
}

/// 2^(e - 128).
#[inline(always)]
pub(crate) fn half_scale(e: u8) -> f32 {
    let e = u32::from(e);
    // The first two are subnormal.
    f32::from_bits(if e < 2 { 1 << (21 + e) } else { (e - 1) << 23 })
}

/// The code of an unpacked element; of the two zeros the positive one.
pub(crate) fn code_of(q: i8) -> u8 {
    let magnitude = match q.unsigned_abs() {
        small @ 0..=4 => small,
        6 => 5,
        8 => 6,
        _ => 7,
    };
    magnitude | u8::from(q < 0) << 3
}

/// The first scale of blocks that stands for no number, or with which elements may be infinite.
pub(in crate::weights) fn bad_scale(data: &[u8]) -> Option<u8> {
    data.iter().step_by(BLOCK_BYTES).copied().find(|&e| e > MAX_EXPONENT)
}

/// A block whose greatest magnitude becomes 4 or 6, or one between; others become the nearest number, of two the even code's.
pub(super) fn quantize(values: &[f32; 32]) -> [u8; BLOCK_BYTES] {
    let greatest = values.iter().fold(0f32, |max, x| max.max(x.abs()));
    // The exponent of the greatest, less 2.
    let e = ((greatest.to_bits() >> 23) as u8).saturating_sub(2).min(MAX_EXPONENT);
    let codes = values.map(|x| {
        let x = x / (2.0 * half_scale(e));
        // Between a number and the next; of equally far ones the even code.
        const ENDS: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];
        let beyond = |(i, &end): (usize, &f32)| x.abs() > end || (x.abs() == end && i % 2 == 1);
        let magnitude = ENDS.iter().enumerate().filter(|&end| beyond(end)).count() as u8;
        magnitude | u8::from(x.is_sign_negative()) << 3
    });
    let mut block = [e; BLOCK_BYTES];
    block[1..].copy_from_slice(&super::pack_nibbles(&codes));
    block
}

/// 16 bytes in which the first of two neighbours has the low nibble, as checkpoints have them, as blocks have them.
#[inline(always)]
pub(in crate::weights) fn from_neighbours(pairs: &[u8; 16]) -> [u8; 16] {
    let mut codes = [0; 32];
    for (codes, pair) in codes.as_chunks_mut::<2>().0.iter_mut().zip(pairs) {
        *codes = [pair & 0x0f, pair >> 4];
    }
    super::pack_nibbles(&codes)
}
