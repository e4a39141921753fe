//! [`KvCache`]: keys and values in memory, in the type that was asked for.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::MmapMut;

use super::memory::Promise;
use crate::backend::{KvCacheShape, KvDtype};
use crate::error::{Error, Result};
use crate::kv::LayerPlace;

/// An element type of the cache.
pub(crate) trait KvElem: bytemuck::Pod + Send + Sync {
    const DTYPE: KvDtype;

    /// Rounds to the nearest, ties to even. What is beyond the type's range becomes the greatest number within: an
    /// infinity among the keys would make all of a sequence's later tokens NaN.
    fn round_all(dst: &mut [Self], src: &[f32]);

    fn to_f32(self) -> f32;
}

impl KvElem for f32 {
    const DTYPE: KvDtype = KvDtype::F32;

    fn round_all(dst: &mut [Self], src: &[f32]) {
        dst.copy_from_slice(src);
    }

    fn to_f32(self) -> f32 {
        self
    }
}

impl KvElem for f16 {
    const DTYPE: KvDtype = KvDtype::F16;

    fn round_all(dst: &mut [Self], src: &[f32]) {
        const MOST: f32 = 65504.0;
        let mut within = [0.0; 64];
        for (dst, src) in dst.chunks_mut(within.len()).zip(src.chunks(within.len())) {
            let within = &mut within[..src.len()];
            within.iter_mut().zip(src).for_each(|(within, x)| *within = x.clamp(-MOST, MOST));
            dst.convert_from_f32_slice(within);
        }
    }

    fn to_f32(self) -> f32 {
        self.to_f32()
    }
}

impl KvElem for bf16 {
    const DTYPE: KvDtype = KvDtype::Bf16;

    fn round_all(dst: &mut [Self], src: &[f32]) {
        let most = Self::MAX.to_f32();
        dst.iter_mut().zip(src).for_each(|(dst, x)| *dst = Self::from_f32(x.clamp(-most, most)));
    }

    fn to_f32(self) -> f32 {
        self.to_f32()
    }
}

/// Calls a function that is generic in the element type with the one of a [`KvDtype`].
macro_rules! with_kv_elem {
    ($dtype:expr, $elem:ident => $call:expr) => {
        match $dtype {
            $crate::backend::KvDtype::F32 => {
                type $elem = f32;
                $call
            }
            $crate::backend::KvDtype::F16 => {
                type $elem = half::f16;
                $call
            }
            $crate::backend::KvDtype::Bf16 => {
                type $elem = half::bf16;
                $call
            }
            $crate::backend::KvDtype::Int8 => unreachable!("invariant: the CPU has no cache of 8 bits"),
        }
    };
}
pub(crate) use with_kv_elem;

/// The keys, or the values, of one array.
#[derive(Debug)]
pub struct KvLayer {
    dtype: KvDtype,
    /// It begins with a page, so that no vector of 16 numbers lies on two lines of the cache.
    bytes: MmapMut,
    /// Elements.
    len: usize,
}

impl KvLayer {
    /// Zeros. The system gives memory when it is first written.
    fn new(dtype: KvDtype, len: usize) -> std::io::Result<Self> {
        // No mapping is empty.
        Ok(Self { dtype, bytes: MmapMut::map_anon((len * dtype.elem_bytes()).max(1))?, len })
    }

    /// Bytes of all elements.
    fn num_bytes(&self) -> usize {
        self.len * self.dtype.elem_bytes()
    }

    pub(crate) fn as_slice<E: KvElem>(&self) -> &[E] {
        assert_eq!(self.dtype, E::DTYPE, "invariant: kernels are chosen by the cache's type");
        bytemuck::cast_slice(&self.bytes[..self.num_bytes()])
    }

    pub(crate) fn as_mut_slice<E: KvElem>(&mut self) -> &mut [E] {
        assert_eq!(self.dtype, E::DTYPE, "invariant: kernels are chosen by the cache's type");
        let num_bytes = self.num_bytes();
        bytemuck::cast_slice_mut(&mut self.bytes[..num_bytes])
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One element.
    pub fn get(&self, idx: usize) -> f32 {
        with_kv_elem!(self.dtype, E => KvElem::to_f32(self.as_slice::<E>()[idx]))
    }

    /// Rounds the numbers to the cache's type and puts them from `start` on.
    pub fn set(&mut self, start: usize, x: &[f32]) {
        with_kv_elem!(self.dtype, E => E::round_all(&mut self.as_mut_slice::<E>()[start..start + x.len()], x));
    }

    /// Copies elements `src` to `dst` and after it.
    pub fn copy_within(&mut self, src: Range<usize>, dst: usize) {
        let size = self.dtype.elem_bytes();
        self.bytes.copy_within(src.start * size..src.end * size, dst * size);
    }
}

/// Keys and values. An array's values are [num_blocks, num_kv_heads, block_size, head_dim], its keys [num_blocks,
/// num_kv_heads, head_dim, block_size]: attention multiplies one dimension of many keys at a time.
#[derive(Debug)]
pub struct KvCache {
    /// Keys of each array.
    pub k: Vec<KvLayer>,
    /// Values of each array.
    pub v: Vec<KvLayer>,
    /// Lengths and type.
    pub shape: KvCacheShape,
    /// Where each layer has its own.
    pub places: Vec<LayerPlace>,
    /// Its memory is not another cache's, before it is written too.
    _promise: Promise,
}

impl KvCache {
    /// An empty cache with an array for each layer. The system gives memory when it is first written. Errors: it has no room for so much.
    pub fn new(shape: KvCacheShape) -> Result<Self> {
        let places = (0..shape.num_layers).map(|array| LayerPlace { group: 0, array, first_block: 0 }).collect();
        let len = shape.num_blocks * shape.block_len();
        let bytes = 2 * shape.num_layers * len * shape.dtype.elem_bytes();
        let out_of_memory = |e| {
            let message = format!("there is no memory for {} MiB of keys and values: {e}", bytes >> 20);
            Error::config("kv-cache-bytes", message)
        };
        let layer = |_| KvLayer::new(shape.dtype, len).map_err(out_of_memory);
        let layers = || (0..shape.num_layers).map(layer).collect::<Result<_>>();
        Ok(Self { k: layers()?, v: layers()?, shape, places, _promise: Promise::new(bytes) })
    }

    /// The same with layers elsewhere.
    pub fn with_places(self, places: &[LayerPlace]) -> Self {
        Self { places: places.to_vec(), ..self }
    }

    /// Where the blocks of a layer begin in its array, in elements of keys (or values).
    pub(crate) fn start(&self, layer: usize) -> usize {
        self.places[layer].first_block * self.shape.block_len()
    }

    /// A layer's keys and values.
    pub(crate) fn layer<E: KvElem>(&self, layer: usize) -> [&[E]; 2] {
        let (array, start) = (self.places[layer].array, self.start(layer));
        [&self.k, &self.v].map(|side| &side[array].as_slice()[start..])
    }

    /// The same to be written.
    pub(crate) fn layer_mut<E: KvElem>(&mut self, layer: usize) -> [&mut [E]; 2] {
        let (array, start) = (self.places[layer].array, self.start(layer));
        [&mut self.k, &mut self.v].map(|side| &mut side[array].as_mut_slice()[start..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::memory;

    fn rounded(dtype: KvDtype, x: &[f32]) -> Vec<f32> {
        let mut layer = KvLayer::new(dtype, x.len() + 1).unwrap();
        layer.set(1, x);
        assert_eq!(layer.get(0), 0.0);
        (1..layer.len()).map(|i| layer.get(i)).collect()
    }

    #[test]
    fn numbers_are_rounded_to_the_nearest() {
        let x: Vec<f32> = (0..200).map(|i| (i as f32 - 100.0) * 1.001e-3).collect();
        assert_eq!(rounded(KvDtype::F32, &x), x);
        assert_eq!(rounded(KvDtype::F16, &x), x.iter().map(|&x| f16::from_f32(x).to_f32()).collect::<Vec<_>>());
        assert_eq!(rounded(KvDtype::Bf16, &x), x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_too_great_becomes_the_greatest_number_and_nothing_else_changes() {
        let x = [1e5, -1e5, f32::MAX, f32::NEG_INFINITY, 65504.0, 65519.0, 1e-7, -0.0];
        let halves = [65504.0, -65504.0, 65504.0, -65504.0, 65504.0, 65504.0, f16::from_f32(1e-7).to_f32(), -0.0];
        assert_eq!(rounded(KvDtype::F16, &x), halves);
        assert!(rounded(KvDtype::Bf16, &x).iter().all(|x| x.is_finite()));
        for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Bf16] {
            assert!(rounded(dtype, &[f32::NAN])[0].is_nan(), "{dtype}: an error upstream must not be hidden");
        }
    }

    #[test]
    fn layers_begin_on_a_cache_line() {
        for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Bf16] {
            let layer = KvLayer::new(dtype, 100).unwrap();
            assert_eq!((layer.bytes.as_ptr() as usize % 64, layer.len()), (0, 100));
        }
    }

    fn shape(num_blocks: usize) -> KvCacheShape {
        KvCacheShape { dtype: KvDtype::F32, num_layers: 2, num_blocks, block_size: 16, num_kv_heads: 4, head_dim: 64 }
    }

    #[test]
    fn what_no_system_has_is_refused() {
        let error = KvCache::new(shape(1 << 34)).unwrap_err().to_string();
        assert!(error.contains("kv-cache-bytes") && error.contains("no memory for"), "{error}");
    }

    #[test]
    fn memory_is_promised_once() {
        const GIB: usize = 1 << 30;
        let free = || memory::unpromised_memory().unwrap_or(0);
        let before = free();
        if before < 10 * GIB {
            return println!("skipped: less than 10 GiB of memory are free");
        }
        // 8 GiB, of which nothing is written. Other tests take and free less than the half meanwhile.
        let cache = KvCache::new(shape(1 << 17)).unwrap();
        assert!(free() < before - 4 * GIB, "{} of {before}", free());
        drop(cache);
        assert!(free() > before - 4 * GIB, "{} of {before}", free());
    }
}
