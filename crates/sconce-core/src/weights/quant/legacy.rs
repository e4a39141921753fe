//! Blocks of 32 elements: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
//!
//! A block is d (a half), in the `_1` formats m (a half), in the 5-bit formats the fifth bits (32 of
//! them, little-endian), then the elements: bytes of Q8_0; else 16 bytes whose low nibbles are the
//! elements 0..16 and whose high nibbles are the elements 16..32.

use super::{Unpacked, blocks, bytes_at, f16_to_f32, half_at};

/// The nibbles of 16 bytes, less `zero`.
#[inline(always)]
pub(super) fn nibbles(packed: &[u8; 16], zero: i8, q: &mut [i8; 32]) {
    for l in 0..16 {
        q[l] = (packed[l] & 0x0f) as i8 - zero;
        q[l + 16] = (packed[l] >> 4) as i8 - zero;
    }
}

/// The nibbles of 16 bytes with their fifth bits, less `zero`.
#[inline(always)]
fn nibbles_and_bits(packed: &[u8; 16], fifth: &[u8; 4], zero: i8, q: &mut [i8; 32]) {
    // Eight copies of each byte, of which lane l looks at bit l: a mask is the same
    // instruction for all lanes, a shift by l is not.
    let mut bits = [0; 32];
    for (copies, byte) in bits.as_chunks_mut::<8>().0.iter_mut().zip(fifth) {
        *copies = [*byte; 8];
    }
    nibbles(packed, zero, q);
    for l in 0..32 {
        q[l] += if bits[l] & (1 << (l % 8)) == 0 { 0 } else { 16 };
    }
}

/// The half at byte `at` of every block. Eight are converted at a time, as one vector: one by one they
/// would take longer than the elements.
#[inline(always)]
fn halves<const BYTES: usize>(row: &[u8], at: usize, out: &mut [f32]) {
    let blocks = row.as_chunks::<BYTES>().0;
    let num_blocks = blocks.len().min(out.len());
    let (eights, rest) = blocks[..num_blocks].as_chunks::<8>();
    let (out_eights, out_rest) = out[..num_blocks].as_chunks_mut::<8>();
    for (blocks, out) in eights.iter().zip(out_eights) {
        let mut bits = [0; 8];
        for i in 0..8 {
            bits[i] = u16::from_le_bytes(*bytes_at(&blocks[i], at));
        }
        for i in 0..8 {
            out[i] = f16_to_f32(bits[i]);
        }
    }
    for (block, out) in rest.iter().zip(out_rest) {
        *out = half_at(block, at);
    }
}

#[inline(always)]
pub(super) fn unpack_q4_0(row: &[u8], out: Unpacked<'_>) {
    halves::<18>(row, 0, out.scale);
    for (block, q) in blocks::<18, 32>(row, out.q) {
        nibbles(bytes_at(block, 2), 8, q);
    }
}

#[inline(always)]
pub(super) fn unpack_q4_1(row: &[u8], out: Unpacked<'_>) {
    halves::<20>(row, 0, out.scale);
    halves::<20>(row, 2, out.offset);
    for (block, q) in blocks::<20, 32>(row, out.q) {
        nibbles(bytes_at(block, 4), 0, q);
    }
}

#[inline(always)]
pub(super) fn unpack_q5_0(row: &[u8], out: Unpacked<'_>) {
    halves::<22>(row, 0, out.scale);
    for (block, q) in blocks::<22, 32>(row, out.q) {
        nibbles_and_bits(bytes_at(block, 6), bytes_at(block, 2), 16, q);
    }
}

#[inline(always)]
pub(super) fn unpack_q5_1(row: &[u8], out: Unpacked<'_>) {
    halves::<24>(row, 0, out.scale);
    halves::<24>(row, 2, out.offset);
    for (block, q) in blocks::<24, 32>(row, out.q) {
        nibbles_and_bits(bytes_at(block, 8), bytes_at(block, 4), 0, q);
    }
}

#[inline(always)]
pub(super) fn unpack_q8_0(row: &[u8], out: Unpacked<'_>) {
    halves::<34>(row, 0, out.scale);
    for (block, q) in blocks::<34, 32>(row, out.q) {
        let packed: &[u8; 32] = bytes_at(block, 2);
        for l in 0..32 {
            q[l] = packed[l] as i8;
        }
    }
}
