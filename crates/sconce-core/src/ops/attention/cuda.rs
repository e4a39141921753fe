//! Attention on a device: the launches for sequences of one query (`decode.rs`), and one for all prompts, of `kernels/attention.cu`
//! or of the kernel for Hopper; from a cache of 8 bits one for as many as can be expanded together.

use std::ops::Range;

use super::decode::AttentionSpace;
use super::hopper;
use crate::backend::cuda::batch::DeviceBatch;
use crate::backend::cuda::device::{Args, Device, DevicePtr, Dims};
use crate::backend::cuda::kv_cache::KvCache;
use crate::backend::cuda::storage::{Buffer, RopeTable, Vector};
use crate::backend::{AttentionSpec, LayerAttention};
use crate::error::{Error, Result};

/// Widths that there are kernels for; heads in between are padded.
const DIMS: [usize; 7] = [16, 32, 64, 80, 96, 128, 256];
/// Keys of a split, rows of a warp and most warps of a block, as the kernel has them.
pub(crate) const SPLIT: usize = 256;
pub(super) const WARP_ROWS: usize = 16;
pub(super) const MAX_WARPS: usize = 8;
/// The same where heads are wider than 128: shared memory must do for more of each row.
const MAX_WIDE_WARPS: usize = 2;

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

/// `out`: [num_tokens, num_heads * head_dim], of the type of `qkv` and of the cache. What it computes is
/// [`reference`](super::reference)'s; padding sequences get zeros. Each row's bits depend on its query alone.
pub(crate) fn cuda(
    space: &AttentionSpace,
    out: &mut Buffer,
    qkv: &Buffer,
    kv: &KvCache,
    batch: &DeviceBatch,
    layer: LayerAttention<'_, Vector>,
) -> Result<()> {
    let call = Call::new(space, out, qkv, kv, batch, layer);
    if batch.num_seqs() > batch.num_prompts() {
        call.decode()?;
    }
    if batch.num_prompts() == 0 {
        return Ok(());
    }
    if kv.is_int8() { call.expanded_prompts() } else { call.prompts() }
}

/// One call: what its launches have in common.
#[derive(Clone)]
pub(super) struct Call<'a> {
    pub(super) device: &'a dyn Device,
    pub(super) out: DevicePtr,
    pub(super) qkv: &'a Buffer,
    pub(super) kv: &'a KvCache,
    /// The group of the layer in the batch.
    pub(super) group: usize,
    /// The sequences' blocks of `kv`.
    pub(super) tables: DevicePtr,
    pub(super) batch: &'a DeviceBatch,
    /// Of the batch's prompts.
    pub(super) prompts: Range<usize>,
    pub(super) space: &'a AttentionSpace,
    pub(super) spec: AttentionSpec,
    /// [num_heads] f32, or null.
    pub(super) sinks: DevicePtr,
    /// By what decodes turn their queries and keys, where that was not done before.
    pub(super) rope: Option<&'a RopeTable>,
}

impl<'a> Call<'a> {
    /// One whose queries are turned, keys and values in the cache.
    pub(super) fn new(
        space: &'a AttentionSpace,
        out: &mut Buffer,
        qkv: &'a Buffer,
        kv: &'a KvCache,
        batch: &'a DeviceBatch,
        LayerAttention { spec, sinks }: LayerAttention<'_, Vector>,
    ) -> Self {
        let all_tokens = (batch.num_tokens(), spec.qkv_dim());
        assert_eq!((qkv.rows(), qkv.cols()), all_tokens, "invariant: q, k and v of all tokens");
        assert_eq!(out.cols(), spec.num_heads * spec.head_dim, "invariant: all heads");
        let types = (out.elem(), kv.elem());
        assert_eq!(types, (qkv.elem(), qkv.elem()), "invariant: the cache has the type of the activations");
        let has_sinks = sinks.is_none_or(|sinks| sinks.len == spec.num_heads);
        assert!(has_sinks, "invariant: a sink a head");
        let sinks = sinks.map_or(DevicePtr::NULL, |sinks| sinks.memory.ptr());
        out.set_rows(qkv.rows());
        let (device, out, tables, prompts) = (&*space.device, out.ptr(), batch.block_tables(), 0..batch.num_prompts());
        let group = kv.group(spec.layer);
        Self { device, out, qkv, kv, group, tables, batch, prompts, space, spec: *spec, sinks, rope: None }
    }

    /// Sequences of several queries whose keys and values have 8 bits: as many at a time as can be expanded together.
    fn expanded_prompts(&self) -> Result<()> {
        let space = self.space.expanded.as_ref().expect("invariant: made with the space where the cache has 8 bits");
        let mut next = 0;
        while next < self.batch.num_prompts() {
            let group = space.group(self.batch, next);
            space.expand(self.device, self.kv, self.batch, &group, &self.spec)?;
            next = group.prompts.end;
            let (kv, tables, spec) = (space.kv(), space.tables(), AttentionSpec { layer: 0, ..self.spec });
            Call { kv, tables, prompts: group.prompts, spec, ..self.clone() }.prompts()?;
        }
        Ok(())
    }

    /// Sequences of several queries.
    fn prompts(&self) -> Result<()> {
        let spec = &self.spec;
        if spec.head_dim <= self.space.hopper_dims
            && let Some(kernel) = hopper::Kernel::choose(self.device, self.kv, self.batch, self.prompts.clone(), spec)
        {
            return kernel.launch(self);
        }
        let (dim, rows) = (padded_dim(spec.head_dim), most_rows(spec.head_dim));
        let most_queries = rows / (spec.num_heads / spec.num_kv_heads);
        let num_tiles = self.batch.num_prompt_tiles(self.prompts.clone(), most_queries);
        let threads = rows / WARP_ROWS * 32;
        let shared_bytes = tile_bytes(dim, 2, false) + 2 * dim * threads + q_bytes(dim, threads);
        let dims = Dims::linear(num_tiles * spec.num_kv_heads, threads).with_shared(shared_bytes);
        let args = self.args(0).with(self.batch.prompts(self.prompts.start)).with(self.prompts.len());
        // SAFETY: `cuda` compared the shapes, `check` the widths when the model was loaded; the batch's tables name blocks of
        // the cache.
        unsafe { self.device.launch(kernel_of!(self.qkv.elem(), dim, "attention"), &dims, &args) }
    }

    /// What attention's kernels have in common. `num_slots`: for how many splits of a sequence there are partial results.
    pub(super) fn args(&self, num_slots: usize) -> Args {
        let Self { qkv, kv, batch, ref spec, .. } = *self;
        let (factor, cap, cap_factor) = scales(spec);
        let args = Args::new().with(self.out).with(qkv.ptr()).with(kv.keys(spec.layer)).with(kv.values(spec.layer));
        let args =
            args.with(batch.sequences(self.group)).with(self.tables).with(self.space.partials()).with(self.sinks);
        let args = args.with(batch.num_seqs()).with(spec.num_heads).with(spec.num_kv_heads);
        let args = args.with(spec.head_dim).with(kv.head_stride()).with(kv.shape.block_size);
        let args = args.with(spec.window.unwrap_or(0)).with(num_slots);
        args.with(factor).with(cap).with(cap_factor)
    }
}

/// Keys of a tile, as the kernels have them.
pub(super) fn tile_len(dim: usize) -> usize {
    if dim > 128 { 16 } else { 32 }
}

/// Shared memory of so many tiles of keys and of their values, as `kernels/lib/attention_tile.h` has them.
pub(super) fn tile_bytes(dim: usize, num_tiles: usize, is_int8: bool) -> usize {
    let pieces = if is_int8 { dim / 16 } else { dim / 8 };
    let row_bytes = (pieces + 1 + pieces % 2) * 16 + if is_int8 { 2 } else { 0 };
    num_tiles * 2 * tile_len(dim) * row_bytes
}

/// Shared memory of the queries that registers have no room for.
pub(super) fn q_bytes(dim: usize, threads: usize) -> usize {
    if dim > 128 { 2 * dim * threads } else { 0 }
}

/// What a score is multiplied by before its power of two is taken; the soft cap or 0; and what a score is multiplied by to
/// give, to the base 2, the exponential that tanh is made of.
pub(super) fn scales(spec: &AttentionSpec) -> (f32, f32, f32) {
    let log2e = std::f32::consts::LOG2_E;
    spec.softcap.map_or((spec.scale * log2e, 0.0, 0.0), |cap| (log2e, cap, 2.0 * spec.scale / cap * log2e))
}

/// The kernel of one of [`DIMS`] whose name begins so.
macro_rules! kernel_of {
    ($elem:expr, $dim:expr, $op:literal) => {
        match $dim {
            16 => $elem.kernel(concat!($op, "_bf16_16"), concat!($op, "_f16_16")),
            32 => $elem.kernel(concat!($op, "_bf16_32"), concat!($op, "_f16_32")),
            64 => $elem.kernel(concat!($op, "_bf16_64"), concat!($op, "_f16_64")),
            80 => $elem.kernel(concat!($op, "_bf16_80"), concat!($op, "_f16_80")),
            96 => $elem.kernel(concat!($op, "_bf16_96"), concat!($op, "_f16_96")),
            128 => $elem.kernel(concat!($op, "_bf16_128"), concat!($op, "_f16_128")),
            _ => $elem.kernel(concat!($op, "_bf16_256"), concat!($op, "_f16_256")),
        }
    };
}
pub(super) use kernel_of;

pub(super) fn padded_dim(head_dim: usize) -> usize {
    DIMS.into_iter().find(|&dim| dim >= head_dim).expect("invariant: checked when the model was loaded")
}

/// Rows of the largest block.
pub(super) fn most_rows(head_dim: usize) -> usize {
    WARP_ROWS * if head_dim > 128 { MAX_WIDE_WARPS } else { MAX_WARPS }
}
