//! The launches for sequences of one query: `kernels/attention_decode.cu`, and before it, where sequences begin alike,
//! `kernels/attention_shared.cu`.

use std::sync::Arc;

use super::cuda::{Call, SPLIT, WARP_ROWS, kernel_of, padded_dim, q_bytes, tile_bytes, tile_len};
use crate::backend::AttentionSpec;
use crate::backend::cuda::batch::DeviceBatch;
use crate::backend::cuda::device::{Device, DevicePtr, Dims};
use crate::backend::cuda::storage::Memory;
use crate::error::Result;
use crate::ops::expand_kv::ExpandSpace;

/// Splits that one block goes through at most: a long sequence is not to be waited for.
const MAX_SHARE: usize = 8;
/// Blocks for each multiprocessor, from which on sequences are not shared among more.
const BLOCKS_PER_SM: usize = 8;
/// Partial results take at most so much; a step that had more does with one block a sequence and head.
const MAX_SPACE: usize = 256 << 20;
/// Threads of a block, as the kernel has them.
const THREADS: usize = 128;

/// Where the splits of long sequences leave what they have come to. Taken once: graphs name its addresses.
pub(crate) struct AttentionSpace {
    pub(super) device: Arc<dyn Device>,
    /// f32, as the kernel's head has it.
    partials: Memory,
    /// How many blocks of a sequence and its heads have left theirs: zeros before and after every launch.
    arrivals: Memory,
    /// Prompts whose heads have at most so many dimensions are left to the kernel for Hopper, where it suits.
    pub(super) hopper_dims: usize,
    /// Where prompts' keys and values become 16 bits, of a cache of 8 bits.
    pub(super) expanded: Option<ExpandSpace>,
}

impl AttentionSpace {
    /// For steps of at most `max_seqs` sequences of one query, of at most `max_context` tokens.
    pub(crate) fn new(
        device: &Arc<dyn Device>,
        max_seqs: usize,
        spec: &AttentionSpec,
        max_context: usize,
    ) -> Result<Self> {
        let bytes = partials_bytes(max_seqs, split_bucket(max_context), spec).min(MAX_SPACE);
        let arrivals = Memory::new(device, arrivals_bytes(max_seqs, spec))?;
        arrivals.clear()?;
        let (device, partials) = (Arc::clone(device), Memory::new(device, bytes)?);
        Ok(Self { device, partials, arrivals, hopper_dims: 0, expanded: None })
    }

    /// The same, where prompts whose heads have at most so many dimensions are left to the kernel for Hopper.
    pub(crate) fn with_hopper(self, dims: usize) -> Self {
        Self { hopper_dims: dims, ..self }
    }

    /// The same, beside a cache of 8 bits.
    pub(crate) fn with_expanded(self, space: ExpandSpace) -> Self {
        Self { expanded: Some(space), ..self }
    }

    /// The memory of partial results.
    pub(super) fn partials(&self) -> DevicePtr {
        self.partials.ptr()
    }

    /// Whether there is room for so many splits of so many sequences.
    fn suffices(&self, num_seqs: usize, num_slots: usize, spec: &AttentionSpec) -> bool {
        partials_bytes(num_seqs, num_slots, spec) <= self.partials.bytes()
            && arrivals_bytes(num_seqs, spec) <= self.arrivals.bytes()
    }
}

/// What launches for sequences of one query depend on beside the number of sequences. A graph is good for steps of the same shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct DecodeShape {
    /// Splits of the longest sequence, rounded up to a power of two.
    num_slots: usize,
    /// The same without those that a sequence has in common with others.
    own_slots: usize,
    /// Warps of a block that attends for several sequences together; 0: none does.
    shared_warps: usize,
    /// Whether queries and keys may be turned on the way.
    turns: bool,
}

impl DecodeShape {
    pub(crate) fn of(batch: &DeviceBatch) -> Self {
        let num_slots = split_bucket(batch.max_decode_context());
        let own_slots = batch.max_own_splits().max(1).next_power_of_two();
        Self { num_slots, own_slots, shared_warps: batch.shared_warps(), turns: super::rope::may_turn(batch) }
    }
}

impl Call<'_> {
    /// Sequences of one query. The launches depend on the number of sequences and on the shape alone.
    pub(super) fn decode(&self) -> Result<()> {
        let (spec, num_seqs, device) = (&self.spec, self.batch.num_seqs(), self.device);
        let DecodeShape { num_slots, own_slots, shared_warps, .. } = DecodeShape::of(self.batch);
        // The plan is for the first group's blocks. A second one's layers see a window, of which little could be saved.
        let (own_slots, shared_warps) = if self.group == 0 { (own_slots, shared_warps) } else { (num_slots, 0) };
        let blocks_of_seq = spec.num_kv_heads * row_tiles(spec);
        let wanted = (BLOCKS_PER_SM * device.num_sms()).div_ceil(num_seqs * blocks_of_seq);
        let parts = wanted.next_power_of_two().max(own_slots / MAX_SHARE).min(own_slots);
        // Shared splits are partial results, and so must the others be.
        let parts = if shared_warps > 0 { parts.max(2) } else { parts };
        let parts = if self.space.suffices(num_seqs, num_slots, spec) { parts } else { 1 };
        let are_shared = shared_warps > 0 && parts > 1;
        if are_shared {
            self.shared(num_slots, shared_warps)?;
        }
        let dim = padded_dim(spec.head_dim);
        let grid = [parts as u32, blocks_of_seq as u32, num_seqs as u32];
        let dims = Dims { grid, ..Dims::linear(0, THREADS).with_shared(decode_bytes(dim, self.kv.is_int8())) };
        let shared_splits = if are_shared { self.batch.shared_splits() } else { DevicePtr::NULL };
        let (table, rotary_dim) = self.rope.map_or((DevicePtr::NULL, 0), |rope| (rope.memory.ptr(), rope.rotary_dim));
        let args = self.args(num_slots).with(shared_splits).with(self.space.arrivals.ptr());
        let args = args.with(table).with(self.batch.rope_rows()).with(rotary_dim);
        let args = args.with(u32::from(device.lets_next(num_seqs)));
        let kernel = if self.kv.is_int8() {
            kernel_of!(self.qkv.elem(), dim, "attention_decode_int8")
        } else {
            kernel_of!(self.qkv.elem(), dim, "attention_decode")
        };
        // SAFETY: `cuda` compared the shapes, `check` the widths when the model was loaded; partial results and arrivals fit
        // their memory where there are several parts; the batch's tables name blocks of the cache, its rows are of the RoPE table.
        unsafe { device.launch(kernel, &dims, &args) }
    }

    /// Splits that sequences of one query have in common.
    fn shared(&self, num_slots: usize, num_warps: usize) -> Result<()> {
        let (dim, threads) = (padded_dim(self.spec.head_dim), 32 * num_warps);
        let args = self.args(num_slots).with(self.batch.shared_items());
        let grid = [self.batch.max_shared_items() as u32, self.spec.num_kv_heads as u32, 1];
        let shared_bytes = tile_bytes(dim, 3, self.kv.is_int8()) + q_bytes(dim, threads);
        let dims = Dims { grid, ..Dims::linear(0, threads).with_shared(shared_bytes) };
        let kernel = if self.kv.is_int8() {
            kernel_of!(self.qkv.elem(), dim, "attention_shared_int8")
        } else {
            kernel_of!(self.qkv.elem(), dim, "attention_shared")
        };
        // SAFETY: as `decode`'s; items name sequences of the batch, and splits that are all there.
        unsafe { self.device.launch(kernel, &dims, &args) }
    }
}

/// Splits of a context, rounded up to a power of two.
fn split_bucket(max_context: usize) -> usize {
    max_context.div_ceil(SPLIT).max(1).next_power_of_two()
}

/// Blocks that share a key head's query heads.
pub(super) fn row_tiles(spec: &AttentionSpec) -> usize {
    (spec.num_heads / spec.num_kv_heads).div_ceil(WARP_ROWS)
}

fn partials_bytes(num_seqs: usize, num_slots: usize, spec: &AttentionSpec) -> usize {
    4 * num_seqs * spec.num_heads * num_slots * (padded_dim(spec.head_dim) + 2)
}

fn arrivals_bytes(num_seqs: usize, spec: &AttentionSpec) -> usize {
    4 * num_seqs * spec.num_kv_heads * row_tiles(spec)
}

/// Shared memory of a block: a tile of keys and of values for each warp; the queries, and then weights, in one place; a key and a value;
/// and the maxima that warps tell each other.
fn decode_bytes(dim: usize, is_int8: bool) -> usize {
    let warps = THREADS / 32;
    let operands = (warps * 32 * tile_len(dim)).max(2 * WARP_ROWS * dim);
    tile_bytes(dim, warps, is_int8) + operands + 2 * 2 * dim + 4 * WARP_ROWS * warps + 16
}
