//! [`KvCache`]: keys and values of all layers in a device's memory.

use std::sync::Arc;

use super::device::{BoxShape, Device, DevicePtr, ElemType, TensorMap};
use super::storage::Memory;
use crate::backend::{KvCacheShape, KvDtype};
use crate::config::KvCacheDtype;
use crate::error::{Error, Result};

/// Heads begin at multiples of so many elements, so that copies take 16 bytes at a time and products 16 columns.
const HEAD_ALIGNMENT: usize = 16;

/// The type of keys and values on a device: that of the weights. Errors: another one was asked for.
pub(super) fn dtype(elem: ElemType, asked: KvCacheDtype) -> Result<KvDtype> {
    let (dtype, is_own) = match elem {
        ElemType::F16 => (KvDtype::F16, asked == KvCacheDtype::F16),
        _ => (KvDtype::Bf16, asked == KvCacheDtype::Bf16),
    };
    if asked == KvCacheDtype::Auto || is_own {
        return Ok(dtype);
    }
    Err(Error::config("kv-cache-dtype", format!("on a GPU keys and values have the weights' type, {dtype}; use auto")))
}

/// Keys and values: [num_layers, 2 (keys, values), num_blocks, num_kv_heads, block_size, head_stride]. Dimensions of a head
/// from `head_dim` on are zero.
pub struct KvCache {
    pub(crate) memory: Memory,
    pub(crate) shape: KvCacheShape,
    /// Boxes of it, for kernels that copy such. None where the device has none, or they do not fit the cache.
    map: Option<TensorMap>,
}

/// Rows and columns of a box: 128 bytes wide, at most a tile of keys long.
const BOX_ROWS: usize = 64;
const BOX_COLS: usize = 64;
/// Swizzled rows come eight by eight.
const BOX_ROWS_ALIGNMENT: usize = 8;

impl KvCache {
    /// An empty cache. Errors: no memory, or a type that the device has no kernels for.
    pub(crate) fn new(device: &Arc<dyn Device>, shape: KvCacheShape) -> Result<Self> {
        if shape.dtype == KvDtype::F32 {
            return Err(Error::config("kv-cache-dtype", "f32 is for the CPU; on a GPU use auto, bf16 or f16"));
        }
        let memory = Memory::new(device, num_bytes(&shape))?;
        memory.clear()?;
        let mut cache = Self { memory, shape, map: None };
        if cache.fits_boxes() {
            cache.map = device.tensor_map(cache.memory.ptr(), &cache.box_shape())?;
        }
        Ok(cache)
    }

    /// Whether a box is a page, or pages are whole boxes; heads fill a box; and coordinates have 31 bits.
    fn fits_boxes(&self) -> bool {
        let block_size = self.shape.block_size;
        block_size.is_power_of_two()
            && block_size >= BOX_ROWS_ALIGNMENT
            && self.head_stride() >= BOX_COLS
            && i32::try_from(self.num_rows()).is_ok()
    }

    /// An array a layer's keys or values.
    fn box_shape(&self) -> BoxShape {
        let box_rows = self.shape.block_size.min(BOX_ROWS);
        BoxShape {
            elem: self.elem(),
            dims: [self.head_stride(), self.num_rows(), 2 * self.shape.num_layers],
            box_dims: [BOX_COLS as u32, box_rows as u32, 1],
        }
    }

    /// Boxes of the cache: arrays [2 * num_layers][num_rows][head_stride], a layer's keys before its values.
    pub(crate) fn map(&self) -> Option<&TensorMap> {
        self.map.as_ref()
    }

    /// Heads of tokens in one layer's keys (or values).
    pub(crate) fn num_rows(&self) -> usize {
        self.shape.num_blocks * self.shape.num_kv_heads * self.shape.block_size
    }

    /// Elements from one token's head to the next token's.
    pub(crate) fn head_stride(&self) -> usize {
        head_stride(&self.shape)
    }

    /// Bytes of one block of one layer's keys (or values).
    pub(crate) fn block_bytes(&self) -> usize {
        self.shape.block_size * self.shape.num_kv_heads * self.head_stride() * self.shape.dtype.elem_bytes()
    }

    /// A layer's keys.
    pub(crate) fn keys(&self, layer: usize) -> DevicePtr {
        self.memory.ptr().offset(2 * layer * self.shape.num_blocks * self.block_bytes())
    }

    /// A layer's values.
    pub(crate) fn values(&self, layer: usize) -> DevicePtr {
        self.keys(layer).offset(self.shape.num_blocks * self.block_bytes())
    }

    /// Type of the elements.
    pub(crate) fn elem(&self) -> ElemType {
        if self.shape.dtype == KvDtype::F16 { ElemType::F16 } else { ElemType::Bf16 }
    }
}

/// Bytes of a cache of this shape, whose heads are padded.
pub(crate) fn num_bytes(shape: &KvCacheShape) -> usize {
    KvCacheShape { head_dim: head_stride(shape), ..*shape }.num_bytes()
}

fn head_stride(shape: &KvCacheShape) -> usize {
    shape.head_dim.next_multiple_of(HEAD_ALIGNMENT)
}
