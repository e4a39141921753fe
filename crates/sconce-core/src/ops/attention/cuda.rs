//! The launches of `kernels/attention.cu`: one for all sequences of one query, with another that puts their splits together
//! where they are many, and one for all prompts. Before them, where sequences begin alike, that of `kernels/attention_shared.cu`.

use std::sync::Arc;

use super::hopper;
use crate::backend::AttentionSpec;
use crate::backend::cuda::batch::DeviceBatch;
use crate::backend::cuda::device::{Args, Device, DevicePtr, Dims, ElemType};
use crate::backend::cuda::kv_cache::KvCache;
use crate::backend::cuda::storage::{Buffer, Memory};
use crate::error::{Error, Result};

/// Widths that there are kernels for; heads in between are padded.
const DIMS: [usize; 7] = [16, 32, 64, 80, 96, 128, 256];
/// Keys of a split, rows of a warp and most warps of a block, as the kernel has them.
pub(crate) const SPLIT: usize = 256;
pub(super) const WARP_ROWS: usize = 16;
pub(super) const MAX_WARPS: usize = 8;
/// The same where heads are wider than 128: shared memory must do for more of each row.
const MAX_WIDE_WARPS: usize = 2;
/// Splits that one block goes through at most: a long sequence is not to be waited for.
const MAX_SHARE: usize = 8;
/// Blocks for each multiprocessor, from which on sequences are not shared among more.
const BLOCKS_PER_SM: usize = 8;
/// Partial results take at most so much; a step that had more does with one block a sequence and head.
const MAX_SPACE: usize = 256 << 20;

/// Where the splits of long sequences leave what they have come to. Taken once: graphs name its address.
pub(crate) struct AttentionSpace {
    device: Arc<dyn Device>,
    /// f32, as the kernel's head has it.
    partials: Memory,
    /// Prompts whose heads have at most so many dimensions are left to the kernel for Hopper, where it suits.
    hopper_dims: usize,
}

impl AttentionSpace {
    /// For steps of at most `max_seqs` sequences of one query, of at most `max_context` tokens.
    pub(crate) fn new(
        device: &Arc<dyn Device>,
        max_seqs: usize,
        spec: &AttentionSpec,
        max_context: usize,
    ) -> Result<Self> {
        let bytes = partials_bytes(max_seqs, split_bucket(max_context), spec);
        Ok(Self { device: Arc::clone(device), partials: Memory::new(device, bytes.min(MAX_SPACE))?, hopper_dims: 0 })
    }

    /// The same, where prompts whose heads have at most so many dimensions are left to the kernel for Hopper.
    pub(crate) fn with_hopper(self, dims: usize) -> Self {
        Self { hopper_dims: dims, ..self }
    }
}

/// Refuses what the kernels cannot do: to be called when a model is loaded.
pub(crate) fn check(spec: &AttentionSpec) -> Result<()> {
    let refuse = |what: String| Err(Error::config("model", format!("{what}, which attention on a GPU cannot do")));
    let (dim, group) = (spec.head_dim, spec.num_heads / spec.num_kv_heads);
    if dim > DIMS[DIMS.len() - 1] || !dim.is_multiple_of(2) {
        return refuse(format!("head_dim is {dim}: not an even number up to 256"));
    }
    if group > most_rows(dim) {
        return refuse(format!("a key head has {group} query heads: more than {} of head_dim {dim}", most_rows(dim)));
    }
    Ok(())
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
}

impl DecodeShape {
    pub(crate) fn of(batch: &DeviceBatch) -> Self {
        let num_slots = split_bucket(batch.max_decode_context());
        let own_slots = batch.max_own_splits().max(1).next_power_of_two();
        Self { num_slots, own_slots, shared_warps: batch.shared_warps() }
    }
}

/// Splits of a context, rounded up to a power of two.
fn split_bucket(max_context: usize) -> usize {
    max_context.div_ceil(SPLIT).max(1).next_power_of_two()
}

/// `out`: [num_tokens, num_heads * head_dim], of the type of `qkv` and of the cache. What it computes is
/// [`reference`](super::reference)'s; padding sequences get zeros. Each row's bits depend on its query alone.
pub(crate) fn cuda(
    space: &AttentionSpace,
    out: &mut Buffer,
    qkv: &Buffer,
    kv: &KvCache,
    batch: &DeviceBatch,
    spec: &AttentionSpec,
) -> Result<()> {
    assert_eq!((qkv.rows(), qkv.cols()), (batch.num_tokens(), spec.qkv_dim()), "invariant: q, k and v of all tokens");
    assert_eq!(out.cols(), spec.num_heads * spec.head_dim, "invariant: all heads");
    assert_eq!(
        (out.elem(), kv.elem()),
        (qkv.elem(), qkv.elem()),
        "invariant: the cache has the type of the activations"
    );
    out.set_rows(qkv.rows());
    let call = Call { device: &*space.device, out: out.ptr(), qkv, kv, batch, space, spec };
    if batch.num_seqs() > batch.num_prompts() {
        call.decode()?;
    }
    if batch.num_prompts() > 0 {
        call.prompts()?;
    }
    Ok(())
}

/// One call: what its launches have in common.
pub(super) struct Call<'a> {
    pub(super) device: &'a dyn Device,
    pub(super) out: DevicePtr,
    pub(super) qkv: &'a Buffer,
    pub(super) kv: &'a KvCache,
    pub(super) batch: &'a DeviceBatch,
    space: &'a AttentionSpace,
    pub(super) spec: &'a AttentionSpec,
}

impl Call<'_> {
    /// Sequences of one query. The launches depend on the number of sequences and on the shape alone.
    fn decode(&self) -> Result<()> {
        let (spec, num_seqs) = (self.spec, self.batch.num_seqs());
        let DecodeShape { num_slots, own_slots, shared_warps } = DecodeShape::of(self.batch);
        let wanted = (BLOCKS_PER_SM * self.device.num_sms()).div_ceil(num_seqs * spec.num_kv_heads);
        let parts = wanted.next_power_of_two().max(own_slots / MAX_SHARE).min(own_slots);
        // Shared splits are partial results, and so must the others be.
        let parts = if shared_warps > 0 { parts.max(2) } else { parts };
        let parts = if self.has_space(num_slots) { parts } else { 1 };
        if shared_warps > 0 && parts > 1 {
            self.shared(num_slots, shared_warps)?;
        }
        let num_warps = (spec.num_heads / spec.num_kv_heads).div_ceil(WARP_ROWS);
        let grid = [parts as u32, spec.num_kv_heads as u32, num_seqs as u32];
        self.attend(grid, num_warps, num_slots, 0)?;
        if parts == 1 {
            return Ok(());
        }
        let dim = padded_dim(spec.head_dim);
        let args = Args::new().with(self.out).with(self.space.partials.ptr()).with(self.batch.sequences());
        let args = args.with(dim).with(spec.head_dim).with(num_slots).with(spec.window.unwrap_or(0));
        let grid = [spec.num_heads as u32, num_seqs as u32, 1];
        let dims = Dims { grid, ..Dims::linear(0, dim.next_multiple_of(32)) };
        let kernel = self.qkv.elem().kernel("attention_merge_bf16", "attention_merge_f16");
        // SAFETY: the launch before has filled what this one reads, in the same places.
        unsafe { self.device.launch(kernel, &dims, &args) }
    }

    /// Splits that sequences of one query have in common.
    fn shared(&self, num_slots: usize, num_warps: usize) -> Result<()> {
        // Registers leave room for few blocks of many warps: three stages, so that each has two tiles on their way.
        let (dim, num_stages, threads) = (padded_dim(self.spec.head_dim), 3, 32 * num_warps);
        let args = self.args(num_slots, num_stages).with(self.batch.shared_items());
        let grid = [self.batch.max_shared_items() as u32, self.spec.num_kv_heads as u32, 1];
        let shared_bytes = stage_bytes(dim, num_stages) + q_bytes(dim, threads);
        let dims = Dims { grid, ..Dims::linear(0, threads).with_shared(shared_bytes) };
        // SAFETY: as `attend`'s; items name sequences of the batch, and splits that are all there.
        unsafe { self.device.launch(shared_kernel_name(self.qkv.elem(), dim), &dims, &args) }
    }

    /// Sequences of several queries.
    fn prompts(&self) -> Result<()> {
        let spec = self.spec;
        if spec.head_dim <= self.space.hopper_dims
            && let Some(kernel) = hopper::Kernel::choose(self.device, self.kv, self.batch, spec)
        {
            return kernel.launch(self);
        }
        let rows = most_rows(spec.head_dim);
        let num_tiles = self.batch.num_prompt_tiles(rows / (spec.num_heads / spec.num_kv_heads));
        let grid = [(num_tiles * spec.num_kv_heads) as u32, 1, 1];
        self.attend(grid, rows / WARP_ROWS, 0, self.batch.num_prompts())
    }

    /// All sequences of one query where `num_prompts` is 0, all others where it is not.
    fn attend(&self, grid: [u32; 3], num_warps: usize, num_slots: usize, num_prompts: usize) -> Result<()> {
        let dim = padded_dim(self.spec.head_dim);
        // One warp waits for memory, several for one another.
        let num_stages = if num_warps == 1 { 3 } else { 2 };
        let threads = 32 * num_warps;
        let shared_bytes = stage_bytes(dim, num_stages) + 2 * dim * threads + q_bytes(dim, threads);
        let is_shared = num_prompts == 0 && self.has_space(num_slots);
        let shared_splits = if is_shared { self.batch.shared_splits() } else { DevicePtr::NULL };
        let args = self.args(num_slots, num_stages);
        let args = args.with(self.batch.prompts()).with(num_prompts).with(shared_splits);
        let dims = Dims { grid, ..Dims::linear(0, threads).with_shared(shared_bytes) };
        let kernel = kernel_name(self.qkv.elem(), dim);
        // SAFETY: `cuda` compared the shapes, `check` the widths when the model was loaded; partial results fit their
        // memory; the batch's tables name blocks of the cache.
        unsafe { self.device.launch(kernel, &dims, &args) }
    }

    /// What attention's kernels have in common.
    fn args(&self, num_slots: usize, num_stages: usize) -> Args {
        let Self { qkv, kv, batch, spec, .. } = self;
        let (factor, cap, cap_factor) = scales(spec);
        let args = Args::new().with(self.out).with(qkv.ptr()).with(kv.keys(spec.layer)).with(kv.values(spec.layer));
        let args = args.with(batch.sequences()).with(batch.block_tables()).with(self.space.partials.ptr());
        let args = args.with(batch.num_seqs()).with(spec.num_heads).with(spec.num_kv_heads);
        let args = args.with(spec.head_dim).with(kv.head_stride()).with(kv.shape.block_size);
        let args = args.with(spec.window.unwrap_or(0)).with(num_slots).with(num_stages);
        args.with(factor).with(cap).with(cap_factor)
    }

    /// Whether partial results of so many splits fit the memory for them.
    fn has_space(&self, num_slots: usize) -> bool {
        partials_bytes(self.batch.num_seqs(), num_slots, self.spec) <= self.space.partials.bytes()
    }
}

/// Shared memory that keys and values pass through.
fn stage_bytes(dim: usize, num_stages: usize) -> usize {
    let tile_len = if dim > 128 { 16 } else { 32 };
    num_stages * 4 * tile_len * (dim + 8)
}

/// Shared memory of the queries that registers have no room for.
fn q_bytes(dim: usize, threads: usize) -> usize {
    if dim > 128 { 2 * dim * threads } else { 0 }
}

/// What a score is multiplied by before its power of two is taken; the soft cap or 0; and what a score is multiplied by to
/// give, to the base 2, the exponential that tanh is made of.
pub(super) fn scales(spec: &AttentionSpec) -> (f32, f32, f32) {
    let log2e = std::f32::consts::LOG2_E;
    spec.softcap.map_or((spec.scale * log2e, 0.0, 0.0), |cap| (log2e, cap, 2.0 * spec.scale / cap * log2e))
}

/// The kernel of one of [`DIMS`].
fn kernel_name(elem: ElemType, dim: usize) -> &'static str {
    match dim {
        16 => elem.kernel("attention_bf16_16", "attention_f16_16"),
        32 => elem.kernel("attention_bf16_32", "attention_f16_32"),
        64 => elem.kernel("attention_bf16_64", "attention_f16_64"),
        80 => elem.kernel("attention_bf16_80", "attention_f16_80"),
        96 => elem.kernel("attention_bf16_96", "attention_f16_96"),
        128 => elem.kernel("attention_bf16_128", "attention_f16_128"),
        _ => elem.kernel("attention_bf16_256", "attention_f16_256"),
    }
}

/// The kernel of one of [`DIMS`] for what sequences have in common.
fn shared_kernel_name(elem: ElemType, dim: usize) -> &'static str {
    match dim {
        16 => elem.kernel("attention_shared_bf16_16", "attention_shared_f16_16"),
        32 => elem.kernel("attention_shared_bf16_32", "attention_shared_f16_32"),
        64 => elem.kernel("attention_shared_bf16_64", "attention_shared_f16_64"),
        80 => elem.kernel("attention_shared_bf16_80", "attention_shared_f16_80"),
        96 => elem.kernel("attention_shared_bf16_96", "attention_shared_f16_96"),
        128 => elem.kernel("attention_shared_bf16_128", "attention_shared_f16_128"),
        _ => elem.kernel("attention_shared_bf16_256", "attention_shared_f16_256"),
    }
}

pub(super) fn padded_dim(head_dim: usize) -> usize {
    DIMS.into_iter().find(|&dim| dim >= head_dim).expect("invariant: checked when the model was loaded")
}

/// Rows of the largest block.
pub(super) fn most_rows(head_dim: usize) -> usize {
    WARP_ROWS * if head_dim > 128 { MAX_WIDE_WARPS } else { MAX_WARPS }
}

fn partials_bytes(num_seqs: usize, num_slots: usize, spec: &AttentionSpec) -> usize {
    4 * num_seqs * spec.num_heads * num_slots * (padded_dim(spec.head_dim) + 2)
}
