//! [`Pieces`]: bytes that only grow, in pieces that many can share.

use std::io::{self, Write};
use std::mem::take;

use bytes::Bytes;

/// The length of a piece. Copies copy less than that, however much there is.
const PIECE_BYTES: usize = 16 << 10;

/// Bytes that only grow. What is whole is shared by copies and is never copied itself, so that what is sent again and again with a
/// little more at its end is there once, and a client that reads slowly keeps no second one.
#[derive(Debug, Clone, Default)]
pub struct Pieces {
    whole: Vec<Bytes>,
    /// The end, shorter than a piece.
    open: Vec<u8>,
}

impl Pieces {
    /// Appends `bytes`.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while self.open.len() + bytes.len() >= PIECE_BYTES {
            let (now, later) = bytes.split_at(PIECE_BYTES - self.open.len());
            self.open.extend_from_slice(now);
            self.seal();
            bytes = later;
        }
        self.open.extend_from_slice(bytes);
    }

    /// Appends all of `other`, whose whole pieces stay where they are.
    pub fn append(&mut self, other: &Self) {
        if !other.whole.is_empty() {
            self.seal();
            self.whole.extend_from_slice(&other.whole);
        }
        self.push(&other.open);
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.open.is_empty()
    }

    /// The number of bytes.
    pub fn num_bytes(&self) -> usize {
        self.whole.iter().map(Bytes::len).sum::<usize>() + self.open.len()
    }

    /// The pieces, none of them empty.
    pub fn into_frames(mut self) -> Vec<Bytes> {
        self.seal();
        self.whole
    }

    fn seal(&mut self) {
        if !self.open.is_empty() {
            // Without what was reserved for more.
            self.whole.push(take(&mut self.open).into_boxed_slice().into());
        }
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
