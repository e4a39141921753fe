//! Blocks of 32 or 128 integers of 4 bits: d (a half), the code of 0 (a half: an integer up to 16), then for each 32 elements 16
//! bytes whose low nibbles are the elements 0..16 and whose high nibbles are the elements 16..32.

use super::{Unpacked, bytes_at, half_at, legacy};

/// Blocks of `BYTES` with `GROUPS` times 32 elements.
#[inline(always)]
pub(super) fn unpack<const BYTES: usize, const GROUPS: usize>(row: &[u8], out: Unpacked<'_>) {
    let groups = out.q.as_chunks_mut::<32>().0.chunks_exact_mut(GROUPS);
    let blocks = row.as_chunks::<BYTES>().0.iter();
    for ((block, q), scale) in blocks.zip(groups).zip(out.scale.chunks_exact_mut(GROUPS)) {
        scale.fill(half_at(block, 0));
        let zero = half_at(block, 2) as i8;
        for (i, q) in q.iter_mut().enumerate() {
            legacy::nibbles(bytes_at(block, 4 + 16 * i), zero, q);
        }
    }
}
