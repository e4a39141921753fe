//! Blocks of 32 elements: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
//!
//! A block is d (a half), in the `_1` formats m (a half), in the 5-bit formats the fifth bits (32 of
//! them, little-endian), then the elements: bytes of Q8_0; else 16 bytes whose low halves are the
//! elements 0..16 and whose high halves are the elements 16..32.

use super::{Unpacked, bytes_at, half_at};

/// Walks blocks of `BYTES` that have a scale alone.
#[inline(always)]
fn scaled<const BYTES: usize>(row: &[u8], out: Unpacked<'_>, unpack: impl Fn(&[u8; BYTES], &mut [i8; 32])) {
    let blocks = row.as_chunks::<BYTES>().0.iter().zip(out.q.as_chunks_mut::<32>().0);
    for ((block, q), scale) in blocks.zip(out.scale) {
        *scale = half_at(block, 0);
        unpack(block, q);
    }
}

/// Walks blocks of `BYTES` that have a scale and an offset.
#[inline(always)]
fn scaled_and_offset<const BYTES: usize>(row: &[u8], out: Unpacked<'_>, unpack: impl Fn(&[u8; BYTES], &mut [i8; 32])) {
    let blocks = row.as_chunks::<BYTES>().0.iter().zip(out.q.as_chunks_mut::<32>().0);
    for ((block, q), (scale, offset)) in blocks.zip(out.scale.iter_mut().zip(out.offset)) {
        *scale = half_at(block, 0);
        *offset = half_at(block, 2);
        unpack(block, q);
    }
}

/// The halves of 16 bytes, less `zero`.
#[inline(always)]
fn nibbles(packed: &[u8; 16], zero: i8, q: &mut [i8; 32]) {
    for l in 0..16 {
        q[l] = (packed[l] & 0x0f) as i8 - zero;
        q[l + 16] = (packed[l] >> 4) as i8 - zero;
    }
}

/// The halves of 16 bytes with their fifth bits, less `zero`.
#[inline(always)]
fn nibbles_and_bits(packed: &[u8; 16], high: &[u8; 4], zero: i8, q: &mut [i8; 32]) {
    let high = u32::from_le_bytes(*high);
    for l in 0..16 {
        q[l] = ((packed[l] & 0x0f) | ((high >> l << 4) as u8 & 0x10)) as i8 - zero;
        q[l + 16] = ((packed[l] >> 4) | ((high >> (l + 12)) as u8 & 0x10)) as i8 - zero;
    }
}

#[inline(always)]
pub(super) fn unpack_q4_0(row: &[u8], out: Unpacked<'_>) {
    scaled::<18>(row, out, |block, q| nibbles(bytes_at(block, 2), 8, q));
}

#[inline(always)]
pub(super) fn unpack_q4_1(row: &[u8], out: Unpacked<'_>) {
    scaled_and_offset::<20>(row, out, |block, q| nibbles(bytes_at(block, 4), 0, q));
}

#[inline(always)]
pub(super) fn unpack_q5_0(row: &[u8], out: Unpacked<'_>) {
    scaled::<22>(row, out, |block, q| nibbles_and_bits(bytes_at(block, 6), bytes_at(block, 2), 16, q));
}

#[inline(always)]
pub(super) fn unpack_q5_1(row: &[u8], out: Unpacked<'_>) {
    scaled_and_offset::<24>(row, out, |block, q| nibbles_and_bits(bytes_at(block, 8), bytes_at(block, 4), 0, q));
}

#[inline(always)]
pub(super) fn unpack_q8_0(row: &[u8], out: Unpacked<'_>) {
    scaled::<34>(row, out, |block, q| {
        let packed: &[u8; 32] = bytes_at(block, 2);
        for l in 0..32 {
            q[l] = packed[l] as i8;
        }
    });
}
