//! [`KvCacheShape`] and [`KvDtype`]: what keys and values take in memory, and where each one stands.

use std::fmt;

/// An element of the KV cache, as it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// 24 bits of precision.
    F32,
    /// 11 bits; numbers beyond 65504 are kept as 65504.
    F16,
    /// 8 bits, with the range of f32.
    Bf16,
    /// 8 bits, a sign among them: each token's key or value of a head has a scale of its own, a 16-bit number. On GPUs alone.
    Int8,
}

/// Bytes of the scale of a head in [`KvDtype::Int8`].
const SCALE_BYTES: usize = 2;

impl KvDtype {
    /// Bytes of an element.
    pub const fn elem_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }

    /// Bytes of a token's key (or value) of one head, and of what belongs to it.
    pub const fn head_bytes(self, head_dim: usize) -> usize {
        let scale_bytes = if matches!(self, Self::Int8) { SCALE_BYTES } else { 0 };
        head_dim * self.elem_bytes() + scale_bytes
    }

    /// The name that users see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

impl fmt::Display for KvDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Shape of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvCacheShape {
    /// The type of the elements.
    pub dtype: KvDtype,
    /// Arrays of keys and values, each of a layer, or, where layers of two kinds share the blocks, of several
    /// ([`LayerGroups`](crate::kv::LayerGroups)).
    pub num_layers: usize,
    /// Blocks in each array.
    pub num_blocks: usize,
    /// Tokens in a block.
    pub block_size: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl KvCacheShape {
    /// Elements of one block of one layer's keys (or values).
    pub fn block_len(&self) -> usize {
        self.block_size * self.num_kv_heads * self.head_dim
    }

    /// Bytes of one block of one layer's keys (or values).
    pub fn block_bytes(&self) -> usize {
        self.block_size * self.num_kv_heads * self.dtype.head_bytes(self.head_dim)
    }

    /// Bytes of keys and values of all arrays.
    pub fn num_bytes(&self) -> usize {
        2 * self.num_layers * self.num_blocks * self.block_bytes()
    }

    /// Where a head's keys or values of one block begin in its layer.
    pub fn tile_start(&self, block: u32, head: usize) -> usize {
        (block as usize * self.num_kv_heads + head) * self.block_size * self.head_dim
    }

    /// Where dimension `d` of the key at `offset` in a block stands among a head's keys of the block.
    pub fn key_offset(&self, offset: usize, d: usize) -> usize {
        d * self.block_size + offset
    }

    /// The same of values.
    pub fn value_offset(&self, offset: usize, d: usize) -> usize {
        offset * self.head_dim + d
    }
}
