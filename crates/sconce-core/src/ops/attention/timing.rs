//! [`time_attention`]: what attention takes by itself, of prompts and of decodes, to see what a model's other kernels hide.

use std::sync::Arc;

use super::cuda::cuda;
use super::decode::AttentionSpace;
use super::hopper::EQUAL_DIMS;
use crate::backend::cuda::batch::DeviceBatch;
use crate::backend::cuda::device::{Device, ElemType};
use crate::backend::cuda::kv_cache::KvCache;
use crate::backend::cuda::storage::Buffer;
use crate::backend::{AttentionSpec, Batch, KvCacheShape, KvDtype, StepLimits};
use crate::error::Result;
use crate::ops::expand_kv::ExpandSpace;
use crate::ops::linear::hopper::adds_alike;
use crate::ops::random;
use crate::ops::timing::time;

/// A step: so many sequences, of each the last tokens of its context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionWork {
    /// Sequences.
    pub num_seqs: usize,
    /// Tokens of each in the step.
    pub query_len: usize,
    /// Tokens of each in the cache, the step's among them.
    pub context_len: usize,
}

/// What a step's attention takes in a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionTime {
    /// The step.
    pub work: AttentionWork,
    /// Whether prompts were left to the kernel for Hopper, where it suits.
    pub is_hopper: bool,
    /// The type of keys and values.
    pub kv_dtype: KvDtype,
    /// Of one call among many.
    pub microseconds: f64,
    /// Two for each product of a number of a query with a key's, and of a weight with a value's.
    pub tflop_per_s: f64,
    /// Of keys and values, each read once.
    pub gb_per_s: f64,
}

/// Keys and values are as many as the second cache does not hold, so that they come from memory as in a model.
const CACHE_BYTES: usize = 256 << 20;
const MAX_LAYERS: usize = 32;
const ELEM: ElemType = ElemType::Bf16;
const KV_DTYPES: [KvDtype; 2] = [KvDtype::Bf16, KvDtype::Int8];

/// `device`'s kernels for query heads, key heads and dimensions, in bf16, with keys and values of 16 bits and of 8; prompts also by the
/// portable kernel where they would have that for Hopper.
pub(crate) fn time_attention(
    device: &Arc<dyn Device>,
    [num_heads, num_kv_heads, head_dim]: [usize; 3],
    block_size: usize,
    works: &[AttentionWork],
) -> Result<Vec<AttentionTime>> {
    let scale = 1.0 / (head_dim as f32).sqrt();
    let spec = AttentionSpec { layer: 0, num_heads, num_kv_heads, head_dim, scale, softcap: None, window: None };
    let has_hopper = adds_alike(device, ELEM)?;
    let mut times = Vec::new();
    for work in works {
        for kv_dtype in KV_DTYPES {
            times.push(time_work(device, &spec, (kv_dtype, block_size), work, has_hopper)?);
        }
        if has_hopper && work.query_len > 1 {
            times.push(time_work(device, &spec, (KvDtype::Bf16, block_size), work, false)?);
        }
    }
    Ok(times)
}

fn time_work(
    device: &Arc<dyn Device>,
    spec: &AttentionSpec,
    (kv_dtype, block_size): (KvDtype, usize),
    work: &AttentionWork,
    is_hopper: bool,
) -> Result<AttentionTime> {
    let AttentionWork { num_seqs, query_len, context_len } = *work;
    let blocks_of_one = context_len.div_ceil(block_size);
    let shape = KvCacheShape {
        dtype: kv_dtype,
        num_layers: 1,
        num_blocks: num_seqs * blocks_of_one,
        block_size,
        num_kv_heads: spec.num_kv_heads,
        head_dim: spec.head_dim,
    };
    let shape = KvCacheShape { num_layers: (CACHE_BYTES / shape.num_bytes()).clamp(1, MAX_LAYERS), ..shape };
    let kv = KvCache::new(device, ELEM, shape)?;
    random::fill(&**device, kv.memory.ptr(), kv.memory.bytes() / ELEM.bytes(), ELEM, 1)?;

    let mut batch = Batch::default();
    // Neighbours lie apart, as after a while of serving.
    let mut blocks: Vec<u32> = (0..shape.num_blocks as u32).collect();
    (0..blocks.len()).for_each(|i| blocks.swap(i, i * 7919 % shape.num_blocks));
    for table in blocks.chunks(blocks_of_one) {
        batch.push(&vec![0; query_len], table, context_len - query_len, context_len, block_size);
    }
    let limits = StepLimits {
        max_tokens: batch.num_tokens(),
        max_seqs: num_seqs,
        max_logits: num_seqs,
        max_model_len: context_len,
        block_size,
        num_groups: 1,
        kv_dtype,
    };
    let mut inputs = DeviceBatch::new(device, DeviceBatch::max_words(&limits, blocks_of_one))?;
    inputs.upload(&batch, None)?;
    let num_tokens = batch.num_tokens();
    let mut qkv = Buffer::new(device, num_tokens, spec.qkv_dim(), ELEM)?;
    let mut out = Buffer::new(device, num_tokens, spec.num_heads * spec.head_dim, ELEM)?;
    qkv.set_rows(num_tokens);
    random::fill(&**device, qkv.ptr(), num_tokens * spec.qkv_dim(), ELEM, 2)?;
    let space = AttentionSpace::new(device, num_seqs, spec, context_len)?;
    let mut space = space.with_hopper(if is_hopper { EQUAL_DIMS } else { 0 });
    if kv_dtype == KvDtype::Int8 {
        space = space.with_expanded(ExpandSpace::new(device, ELEM, spec, &limits)?);
    }

    let microseconds = time(&**device, &mut |i| {
        let spec = AttentionSpec { layer: i % shape.num_layers, ..*spec };
        cuda(&space, &mut out, &qkv, &kv, &inputs, (&spec).into())
    })?;
    // The last query sees all keys, each before one less.
    let seen = query_len * context_len - query_len * (query_len - 1) / 2;
    let flop = (4 * num_seqs * seen * spec.num_heads * spec.head_dim) as f64;
    let bytes = (num_seqs * context_len * 2 * spec.num_kv_heads * kv_dtype.head_bytes(spec.head_dim)) as f64;
    let (tflop_per_s, gb_per_s) = (flop / microseconds / 1e6, bytes / microseconds / 1e3);
    let is_hopper = is_hopper && query_len > 1;
    Ok(AttentionTime { work: *work, is_hopper, kv_dtype, microseconds, tflop_per_s, gb_per_s })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::devices;

    #[test]
    fn prompts_and_decodes_are_timed() {
        for device in devices() {
            let has_hopper = adds_alike(&device, ELEM).unwrap();
            let works = [(1, 40, 40), (2, 8, 30), (3, 1, 20)].map(|(num_seqs, query_len, context_len)| AttentionWork {
                num_seqs,
                query_len,
                context_len,
            });
            let times = time_attention(&device, [4, 1, 64], 16, &works).unwrap();
            let found: Vec<_> = times.iter().map(|time| (time.work, time.is_hopper, time.kv_dtype)).collect();
            let mut expected = Vec::new();
            for work in works {
                let is_hopper = has_hopper && work.query_len > 1;
                expected.extend(KV_DTYPES.map(|kv_dtype| (work, is_hopper, kv_dtype)));
                if is_hopper {
                    expected.push((work, false, KvDtype::Bf16));
                }
            }
            assert_eq!(found, expected);
            assert!(times.iter().all(|time| time.microseconds > 0.0 && time.gb_per_s > 0.0 && time.tflop_per_s > 0.0));
        }
    }
}
