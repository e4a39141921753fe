//! [`Dtype`]: the element and block types that weight files store.

/// An element type, or a quantized block type of GGUF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// Brain float.
    BF16,
    /// GGUF block types; see [`crate::weights::quant`].
    Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K,
}

impl Dtype {
    /// Elements in one block; 1 for plain floats.
    pub const fn block_len(self) -> usize;
    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize;
    /// Bytes of a row of `len` elements, a multiple of the block length.
    pub const fn row_bytes(self, len: usize) -> usize;
    pub const fn is_quantized(self) -> bool;
    pub fn name(self) -> &'static str; // "Q4_K"
}
