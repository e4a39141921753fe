//! `expand_kv`: keys and values of a step's prompts from a cache of 8 bits to one of 16 bits, where attention's kernels for prompts read
//! them. 3 bytes an element.

use std::ops::Range;
use std::sync::Arc;

use crate::backend::cuda::batch::DeviceBatch;
use crate::backend::cuda::device::{Args, Device, DevicePtr, Dims, ElemType};
use crate::backend::cuda::kv_cache::{KvCache, own_dtype};
use crate::backend::cuda::storage::Memory;
use crate::backend::{AttentionSpec, KvCacheShape, StepLimits};
use crate::error::Result;

/// Threads of a block, as the kernel has them.
const THREADS: usize = 256;
/// Room for at least so many bytes, as far as sequences can have them: contexts with few new tokens each are expanded together.
const LEAST_BYTES: usize = 64 << 20;

/// Where one layer's keys and values of some prompts are in 16 bits. Taken once, used by one layer after another.
pub(crate) struct ExpandSpace {
    /// Of one layer.
    kv: KvCache,
    /// Which of its blocks a sequence has, at the places of the batch's block tables.
    tables: Memory,
}

/// Prompts that are expanded together.
pub(crate) struct PromptGroup {
    /// Of the batch's prompts.
    pub(crate) prompts: Range<usize>,
    /// Blocks of the longest, and of all.
    most_blocks: usize,
    num_blocks: usize,
}

impl ExpandSpace {
    /// For the prompts of any step, whose heads are `spec`'s and whose numbers are to be `elem`.
    pub(crate) fn new(
        device: &Arc<dyn Device>,
        elem: ElemType,
        spec: &AttentionSpec,
        limits: &StepLimits,
    ) -> Result<Self> {
        let blocks_of_one = limits.max_model_len.div_ceil(limits.block_size);
        let one = Self::shape(elem, spec, limits.block_size);
        let num_blocks = blocks_of_one.max(LEAST_BYTES / one.num_bytes()).min(limits.max_seqs * blocks_of_one);
        let max_words = limits.num_groups * limits.max_seqs * blocks_of_one;
        let space = Self::with_room(device, elem, KvCacheShape { num_blocks, ..one }, max_words)?;
        tracing::debug!("{} MiB for a layer's keys and values of prompts in 16 bits", space.kv.memory.bytes() >> 20);
        Ok(space)
    }

    /// For so many blocks at a time, of steps whose block tables have at most so many words.
    fn with_room(device: &Arc<dyn Device>, elem: ElemType, shape: KvCacheShape, max_words: usize) -> Result<Self> {
        Ok(Self { kv: KvCache::new(device, elem, shape)?, tables: Memory::new(device, 4 * max_words)? })
    }

    /// A layer of one block, in 16 bits.
    fn shape(elem: ElemType, spec: &AttentionSpec, block_size: usize) -> KvCacheShape {
        KvCacheShape {
            dtype: own_dtype(elem),
            num_layers: 1,
            num_blocks: 1,
            block_size,
            num_kv_heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
        }
    }

    /// What has been expanded.
    pub(crate) fn kv(&self) -> &KvCache {
        &self.kv
    }

    /// The expanded sequences' block tables.
    pub(crate) fn tables(&self) -> DevicePtr {
        self.tables.ptr()
    }

    /// As many of the batch's prompts from `first` on as there is room for together.
    pub(crate) fn group(&self, batch: &DeviceBatch, first: usize) -> PromptGroup {
        let mut group = PromptGroup { prompts: first..first, most_blocks: 0, num_blocks: 0 };
        for context in batch.prompt_contexts(first..batch.num_prompts()) {
            let blocks = context.div_ceil(self.kv.shape.block_size);
            if !group.prompts.is_empty() && group.num_blocks + blocks > self.kv.shape.num_blocks {
                break;
            }
            group.prompts.end += 1;
            group.most_blocks = group.most_blocks.max(blocks);
            group.num_blocks += blocks;
        }
        group
    }

    /// `kernels/expand_kv.cu`: the keys and values that a group's prompts see in `kv[spec.layer]`.
    pub(crate) fn expand(
        &self,
        device: &dyn Device,
        kv: &KvCache,
        batch: &DeviceBatch,
        group: &PromptGroup,
        spec: &AttentionSpec,
    ) -> Result<()> {
        assert!(
            kv.is_int8() && kv.elem() == self.kv.elem(),
            "invariant: a cache of 8 bits beside activations of one type"
        );
        assert!(group.num_blocks <= self.kv.shape.num_blocks, "invariant: no sequence is longer than limits say");
        assert!(4 * batch.num_table_words() <= self.tables.bytes(), "invariant: no more sequences than limits say");
        let args = Args::new().with(self.kv.keys(0)).with(self.kv.values(0)).with(self.tables.ptr());
        let args =
            args.with(kv.keys(spec.layer)).with(kv.values(spec.layer)).with(batch.sequences(kv.group(spec.layer)));
        let args = args.with(batch.block_tables()).with(batch.prompts(group.prompts.start)).with(spec.num_kv_heads);
        let args = args.with(kv.head_stride()).with(kv.shape.block_size).with(spec.window.unwrap_or(0));
        let grid = [group.most_blocks as u32, group.prompts.len() as u32, 1];
        let kernel = kv.elem().kernel("expand_kv_bf16", "expand_kv_f16");
        // SAFETY: there is room for as many blocks as were counted, and for the tables of every step; the batch's tables name blocks of
        // the cache.
        unsafe { device.launch(kernel, &Dims { grid, ..Dims::linear(0, THREADS) }, &args) }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    //! Pages as `kernels/lib/kv_int8.h` describes them, made and read by the host. Attention's tests have the kernel.

    use super::*;
    use crate::backend::cuda::storage;

    fn scalar(x: f32, elem: ElemType) -> f32 {
        storage::floats_of(&storage::bytes_of(&[x], elem), elem)[0]
    }

    /// The scale of a head's numbers, as `elem` has it.
    fn scale(x: &[f32], elem: ElemType) -> f32 {
        let most = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let greatest = if elem == ElemType::F16 { 63.96875 } else { 2.0f32.powi(119) };
        scalar((most / 127.0).min(greatest), elem)
    }

    fn integer(x: f32, scale: f32) -> i32 {
        if scale == 0.0 { 0 } else { (x / scale).clamp(-127.0, 127.0).round_ties_even() as i32 }
    }

    /// What a head's numbers become.
    pub(crate) fn round(x: &[f32], elem: ElemType) -> Vec<f32> {
        let scale = scale(x, elem);
        x.iter().map(|&x| scalar(integer(x, scale) as f32 * scale, elem)).collect()
    }

    /// Of dimension `d`: the bytes where its 16 bits begin; and where its magnitude begins in them, and its sign is.
    fn place(d: usize) -> (usize, u32, u32) {
        let is_high = d % 16 >= 8;
        (d / 16 * 16 + d % 8 * 2, if is_high { 8 } else { 0 }, if is_high { 7 } else { 15 })
    }

    /// The page of a block's rows of one head, [block_size, head_dim].
    pub(crate) fn page(rows: &[f32], kv: &KvCache) -> Vec<u8> {
        let (shape, stride) = (kv.shape, kv.head_stride());
        let mut page = vec![0; shape.block_size * (stride + 2)];
        let (numbers, scales) = page.split_at_mut(shape.block_size * stride);
        for ((numbers, scale_bytes), row) in
            numbers.chunks_mut(stride).zip(scales.chunks_mut(2)).zip(rows.chunks(shape.head_dim))
        {
            let scale = scale(row, kv.elem());
            scale_bytes.copy_from_slice(&storage::bytes_of(&[scale], kv.elem()));
            for (d, &x) in row.iter().enumerate() {
                let (at, magnitude, sign) = place(d);
                let q = integer(x, scale);
                let bits = (q.unsigned_abs() << magnitude | u32::from(q < 0) << sign) as u16;
                numbers[at..at + 2].iter_mut().zip(bits.to_le_bytes()).for_each(|(to, bits)| *to |= bits);
            }
        }
        page
    }

    /// The numbers of pages, [.., block_size, head_stride].
    pub(crate) fn floats_of(pages: &[u8], kv: &KvCache) -> Vec<f32> {
        let (shape, stride) = (kv.shape, kv.head_stride());
        let mut floats = Vec::new();
        for page in pages.chunks(shape.block_size * (stride + 2)) {
            let (numbers, scales) = page.split_at(shape.block_size * stride);
            for (numbers, &scale) in numbers.chunks(stride).zip(&storage::floats_of(scales, kv.elem())) {
                floats.extend((0..stride).map(|d| {
                    let (at, magnitude, sign) = place(d);
                    let bits = u16::from_le_bytes([numbers[at], numbers[at + 1]]);
                    let q = f32::from(bits >> magnitude & 0x7f) * if bits >> sign & 1 == 1 { -1.0 } else { 1.0 };
                    scalar(q * scale, kv.elem())
                }));
            }
        }
        floats
    }

    /// Room for so many tokens at a time, whatever there is at most otherwise.
    pub(crate) fn space(
        device: &Arc<dyn Device>,
        elem: ElemType,
        spec: &AttentionSpec,
        block_size: usize,
        num_tokens: usize,
    ) -> ExpandSpace {
        let num_blocks = num_tokens.div_ceil(block_size);
        let shape = KvCacheShape { num_blocks, ..ExpandSpace::shape(elem, spec, block_size) };
        ExpandSpace::with_room(device, elem, shape, 1 << 12).unwrap()
    }

    #[test]
    fn numbers_are_127_parts_of_the_greatest() {
        for elem in [ElemType::Bf16, ElemType::F16] {
            for magnitude in [1e-3, 1.0, 300.0, 7e3] {
                let x: Vec<f32> = crate::ops::testing::random(64, 1).iter().map(|x| x * magnitude).collect();
                let most = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                for (x, rounded) in x.iter().zip(round(&x, elem)) {
                    let bound = most / 254.0 + x.abs() / 128.0;
                    assert!((x - rounded).abs() <= bound, "{x} {rounded}");
                }
            }
            assert_eq!(round(&[0.0, -0.0], elem), [0.0, 0.0]);
        }
        // Beyond the range.
        assert_eq!(round(&[6e4, -1.0, 500.0], ElemType::F16)[0], 8124.0);
        assert!(round(&[3e38, 1e30], ElemType::Bf16).iter().all(|x| x.is_finite()));
    }
}
