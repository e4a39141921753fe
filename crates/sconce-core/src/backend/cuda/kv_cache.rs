//! [`KvCache`]: keys and values of all layers in a device's memory.

use std::sync::Arc;

use super::device::{BoxShape, Device, DevicePtr, ElemType, TensorMap};
use super::storage::Memory;
use crate::backend::{KvCacheShape, KvDtype};
use crate::config::KvCacheDtype;
use crate::error::{Error, Result};
use crate::kv::LayerPlace;

/// Heads begin at multiples of so many elements, so that copies take 16 bytes at a time and products 16 columns.
const HEAD_ALIGNMENT: usize = 16;
/// Tokens whose scales are copied together, of [`KvDtype::Int8`].
const SCALES_ALIGNMENT: usize = 8;

/// Keys and values of 16 bits beside activations of type `elem`.
pub(crate) fn own_dtype(elem: ElemType) -> KvDtype {
    if elem == ElemType::F16 { KvDtype::F16 } else { KvDtype::Bf16 }
}

/// The type of keys and values on a device, beside activations of type `elem`: the same, or 8 bits where they are asked for. Errors: another
/// one was asked for.
pub(super) fn dtype(elem: ElemType, asked: KvCacheDtype) -> Result<KvDtype> {
    let own = own_dtype(elem);
    match asked {
        KvCacheDtype::Auto => Ok(own),
        KvCacheDtype::Int8 => Ok(KvDtype::Int8),
        KvCacheDtype::F16 if own == KvDtype::F16 => Ok(own),
        KvCacheDtype::Bf16 if own == KvDtype::Bf16 => Ok(own),
        _ => Err(Error::config(
            "kv-cache-dtype",
            format!("on a GPU keys and values have the weights' type, {own}, or int8; use auto or int8"),
        )),
    }
}

/// Keys and values: [num_layers (arrays), 2 (keys, values), num_blocks, num_kv_heads, block_size, head_stride]. Dimensions of a head
/// from `head_dim` on are zero. Of 8 bits, `kernels/lib/kv_int8.h` says in which order they stand, and the scales of a block's tokens come
/// behind those of each head: [.., num_kv_heads, (block_size, head_stride) and (block_size)].
pub struct KvCache {
    pub(crate) memory: Memory,
    pub(crate) shape: KvCacheShape,
    /// Where each layer has its own.
    places: Vec<LayerPlace>,
    /// The type that numbers of it have in products.
    elem: ElemType,
    /// Boxes of it, for kernels that copy such, behind so many blocks of each array as a layer's begin. Empty where the device has none, or
    /// they do not fit the cache.
    maps: Vec<TensorMap>,
}

/// Rows and columns of a box: 128 bytes wide, at most a tile of keys long.
const BOX_ROWS: usize = 64;
const BOX_COLS: usize = 64;
/// Swizzled rows come eight by eight.
const BOX_ROWS_ALIGNMENT: usize = 8;

impl KvCache {
    /// An empty cache beside activations of type `elem`. Errors: no memory, or a type that the device has no kernels for.
    pub(crate) fn new(device: &Arc<dyn Device>, elem: ElemType, shape: KvCacheShape) -> Result<Self> {
        if shape.dtype == KvDtype::F32 {
            return Err(Error::config("kv-cache-dtype", "f32 is for the CPU; on a GPU use auto, bf16, f16 or int8"));
        }
        let has_whole_scales = shape.dtype != KvDtype::Int8 || shape.block_size.is_multiple_of(SCALES_ALIGNMENT);
        assert!(has_whole_scales, "invariant: checked with the config");
        let memory = Memory::new(device, num_bytes(&shape))?;
        memory.clear()?;
        let places = (0..shape.num_layers).map(|array| LayerPlace { group: 0, array, first_block: 0 }).collect();
        let cache = Self { memory, shape, places, elem, maps: Vec::new() };
        cache.with_maps(device)
    }

    /// The same with layers elsewhere.
    pub(crate) fn with_places(self, device: &Arc<dyn Device>, places: &[LayerPlace]) -> Result<Self> {
        Self { places: places.to_vec(), maps: Vec::new(), ..self }.with_maps(device)
    }

    fn with_maps(mut self, device: &Arc<dyn Device>) -> Result<Self> {
        if self.is_int8() || !self.fits_boxes() {
            return Ok(self);
        }
        let num_maps = self.places.iter().map(|place| place.first_block + 1).max().unwrap_or(0);
        for first_block in 0..num_maps {
            let start = self.memory.ptr().offset(first_block * self.block_bytes());
            self.maps.extend(device.tensor_map(start, &self.box_shape())?);
        }
        Ok(self)
    }

    /// Whether a box is a page, or pages are whole boxes; heads fill a box; and coordinates have 31 bits.
    fn fits_boxes(&self) -> bool {
        let block_size = self.shape.block_size;
        block_size.is_power_of_two()
            && block_size >= BOX_ROWS_ALIGNMENT
            && self.head_stride() >= BOX_COLS
            && i32::try_from(self.num_rows()).is_ok()
    }

    /// An array an array's keys or values. Behind so many blocks of each, the last of the boxes that it describes are none of the cache.
    fn box_shape(&self) -> BoxShape {
        let box_rows = self.shape.block_size.min(BOX_ROWS);
        BoxShape {
            elem: self.elem(),
            dims: [self.head_stride(), self.num_rows(), 2 * self.shape.num_layers],
            box_dims: [BOX_COLS as u32, box_rows as u32, 1],
        }
    }

    /// Boxes of the cache for a layer: arrays [2 * num_layers][num_rows][head_stride], keys before their values, from where the layer's
    /// blocks begin.
    pub(crate) fn map(&self, layer: usize) -> Option<&TensorMap> {
        self.maps.get(self.places[layer].first_block)
    }

    /// The group of a layer: which of a step's block tables are its.
    pub(crate) fn group(&self, layer: usize) -> usize {
        self.places[layer].group
    }

    /// A layer's array.
    pub(crate) fn array(&self, layer: usize) -> usize {
        self.places[layer].array
    }

    /// Heads of tokens in one array of keys (or values).
    pub(crate) fn num_rows(&self) -> usize {
        self.shape.num_blocks * self.shape.num_kv_heads * self.shape.block_size
    }

    /// Elements from one token's head to the next token's.
    pub(crate) fn head_stride(&self) -> usize {
        head_stride(&self.shape)
    }

    /// Bytes of one block of keys (or values).
    pub(crate) fn block_bytes(&self) -> usize {
        padded(&self.shape).block_bytes()
    }

    /// A layer's keys.
    pub(crate) fn keys(&self, layer: usize) -> DevicePtr {
        let LayerPlace { array, first_block, .. } = self.places[layer];
        self.memory.ptr().offset((2 * array * self.shape.num_blocks + first_block) * self.block_bytes())
    }

    /// A layer's values.
    pub(crate) fn values(&self, layer: usize) -> DevicePtr {
        self.keys(layer).offset(self.shape.num_blocks * self.block_bytes())
    }

    /// The type that numbers of it have in products.
    pub(crate) fn elem(&self) -> ElemType {
        self.elem
    }

    /// Whether it has 8 bits.
    pub(crate) fn is_int8(&self) -> bool {
        self.shape.dtype == KvDtype::Int8
    }
}

/// Bytes of a cache of this shape, whose heads are padded.
pub(crate) fn num_bytes(shape: &KvCacheShape) -> usize {
    padded(shape).num_bytes()
}

/// The shape with what pads heads.
fn padded(shape: &KvCacheShape) -> KvCacheShape {
    KvCacheShape { head_dim: head_stride(shape), ..*shape }
}

fn head_stride(shape: &KvCacheShape) -> usize {
    shape.head_dim.next_multiple_of(HEAD_ALIGNMENT)
}
