//! Blocks of 32 integers of 4 bits with a zero point: d (a half), the code of 0 (a byte, at most 16), then 16 bytes whose low
//! nibbles are the elements 0..16 and whose high nibbles are the elements 16..32.

use super::{Unpacked, blocks, bytes_at, legacy};

/// Bytes of a block.
const BYTES: usize = 19;

#[inline(always)]
pub(super) fn unpack(row: &[u8], out: Unpacked<'_>) {
    legacy::halves::<BYTES>(row, 0, out.scale);
    for (block, q) in blocks::<BYTES, 32>(row, out.q) {
        legacy::nibbles(bytes_at(block, 3), block[2] as i8, q);
    }
}
