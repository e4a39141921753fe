//! The launch of `kernels/attention_hopper.cu`: prompts on a Hopper GPU, where their shape suits.

use std::ops::Range;

use super::cuda::{Call, scales};
use crate::backend::AttentionSpec;
use crate::backend::cuda::batch::DeviceBatch;
use crate::backend::cuda::device::{Args, Device, Dims, ElemType, TensorMap};
use crate::backend::cuda::kv_cache::KvCache;
use crate::error::Result;

/// Widths that there are kernels for; heads in between are padded.
const DIMS: [usize; 5] = [64, 80, 96, 128, 256];
/// The widest heads whose softmax begins anew where the portable kernel's does, so that both give the same bits.
pub(crate) const EQUAL_DIMS: usize = 128;
/// Rows and threads of a block, as the kernel has them.
const ROWS: usize = 128;
const THREADS: usize = 384;
/// Rows of a tile of keys, and bytes of its rows' 64 dimensions.
const CHUNK_BYTES: usize = 64 * 128;
/// Shared memory for ones, for barriers, and for what there is to be aligned.
const OTHER_BYTES: usize = 2048 + 128 + 1024;

/// What a step's prompts are left to.
#[derive(Debug)]
pub(super) struct Kernel<'a> {
    pub(super) name: &'static str,
    map: &'a TensorMap,
    num_tiles: usize,
    shared_bytes: usize,
}

impl<'a> Kernel<'a> {
    /// `None` where the portable kernel must do, or does better: blocks of few rows are for the most part empty.
    pub(super) fn choose(
        device: &dyn Device,
        kv: &'a KvCache,
        batch: &DeviceBatch,
        prompts: Range<usize>,
        spec: &AttentionSpec,
    ) -> Option<Self> {
        let map = kv.map(spec.layer)?;
        let dim = DIMS.into_iter().find(|&dim| dim >= spec.head_dim)?;
        let group = spec.num_heads / spec.num_kv_heads;
        if !spec.head_dim.is_multiple_of(8) || group > ROWS {
            return None;
        }
        let [num_tiles, num_queries] = [ROWS / group, 1].map(|len| batch.num_prompt_tiles(prompts.clone(), len));
        if 2 * num_queries * group < num_tiles * ROWS {
            return None;
        }
        let num_stages = if dim > 128 { 2 } else { 4 };
        let shared_bytes = dim.div_ceil(64) * CHUNK_BYTES * (ROWS / 64 + 2 * num_stages) + OTHER_BYTES;
        let name = kernel_name(kv.elem(), dim);
        let is_there = device.has_kernel(name) && shared_bytes <= device.max_shared_bytes();
        is_there.then_some(Self { name, map, num_tiles, shared_bytes })
    }

    pub(super) fn launch(&self, call: &Call<'_>) -> Result<()> {
        let Call { device, out, qkv, kv, batch, ref spec, .. } = *call;
        let (factor, cap, cap_factor) = scales(spec);
        let args = Args::new().with(out).with(qkv.ptr()).with_map(self.map).with(batch.sequences(call.group));
        let args =
            args.with(call.tables).with(call.sinks).with(batch.prompts(call.prompts.start)).with(call.prompts.len());
        let args = args.with(spec.num_heads).with(spec.num_kv_heads).with(spec.head_dim).with(kv.shape.block_size);
        let args = args.with(kv.num_rows()).with(kv.array(spec.layer)).with(spec.window.unwrap_or(0));
        let args = args.with(factor).with(cap).with(cap_factor);
        let dims = Dims::linear(self.num_tiles * spec.num_kv_heads, THREADS).with_shared(self.shared_bytes);
        // SAFETY: `cuda` compared the shapes, `choose` what this kernel asks for beyond; the map is the cache's, whose blocks the
        // batch's tables name.
        unsafe { device.launch(self.name, &dims, &args) }
    }
}

/// The kernel of one of [`DIMS`].
fn kernel_name(elem: ElemType, dim: usize) -> &'static str {
    match dim {
        64 => elem.kernel("attention_hopper_bf16_64", "attention_hopper_f16_64"),
        80 => elem.kernel("attention_hopper_bf16_80", "attention_hopper_f16_80"),
        96 => elem.kernel("attention_hopper_bf16_96", "attention_hopper_f16_96"),
        128 => elem.kernel("attention_hopper_bf16_128", "attention_hopper_f16_128"),
        _ => elem.kernel("attention_hopper_bf16_256", "attention_hopper_f16_256"),
    }
}
