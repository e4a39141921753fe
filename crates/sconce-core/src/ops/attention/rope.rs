//! RoPE and the append to the cache on the way of decode attention: `kernels/attention_decode.cu` does both where it can, so that
//! `rope_append_kv` has no launch.

use super::cuda::Call;
use super::decode::{AttentionSpace, row_tiles};
use crate::backend::cuda::batch::DeviceBatch;
use crate::backend::cuda::kv_cache::KvCache;
use crate::backend::cuda::storage::{Buffer, RopeTable, Vector};
use crate::backend::{AttentionSpec, Batch, BatchSequence, LayerAttention};
use crate::error::Result;
use crate::ops::rope_append_kv;

/// What `rope_append_kv` and `attention` do, one after the other, with the same bits in `out` and in the cache. What `qkv` holds then is
/// nobody's. Where all sequences have one query, and none sees another's key of the step, it is one launch: two bytes less written and
/// read for each element of q and k, and a kernel's border.
pub(crate) fn cuda(
    space: &AttentionSpace,
    (out, qkv): (&mut Buffer, &mut Buffer),
    kv: &mut KvCache,
    rope: &RopeTable,
    batch: &DeviceBatch,
    layer: LayerAttention<'_, Vector>,
) -> Result<()> {
    if is_one_launch(kv, rope, batch, layer.spec) {
        return Call { rope: Some(rope), ..Call::new(space, out, qkv, kv, batch, layer) }.decode();
    }
    rope_append_kv::cuda::cuda(&*space.device, qkv, kv, rope, batch, layer.spec)?;
    super::cuda::cuda(space, out, qkv, kv, batch, layer)
}

/// Whether there is one launch.
pub(crate) fn is_one_launch(kv: &KvCache, rope: &RopeTable, batch: &DeviceBatch, spec: &AttentionSpec) -> bool {
    may_turn(batch) && suits(rope, kv, spec)
}

/// Whether the step lets queries and keys be turned on the way: those that are shared are read by a kernel before.
pub(super) fn may_turn(batch: &DeviceBatch) -> bool {
    batch.are_keys_apart() && batch.shared_warps() == 0
}

/// Whether the kernel can: it turns pairs of neighbours, and in a cache of 8 bits one block alone may read the scales beside a new one.
fn suits(rope: &RopeTable, kv: &KvCache, spec: &AttentionSpec) -> bool {
    let are_pairs = rope.rotary_dim.is_multiple_of(4) && rope.rotary_dim <= spec.head_dim;
    are_pairs && (!kv.is_int8() || row_tiles(spec) == 1)
}

/// Finds out whether any query of a step sees a key that another one brings. Drafts do.
#[derive(Debug)]
pub(crate) struct OwnKeys {
    block_size: usize,
    /// Those of the step, in order; kept to be allocated once.
    slots: Vec<u32>,
}

impl OwnKeys {
    /// For blocks of so many tokens.
    pub(crate) fn new(block_size: usize) -> Self {
        Self { block_size, slots: Vec::new() }
    }

    /// Whether each sequence has one query, which brings the last key that it sees, and sees no other's.
    ///
    /// The first group of layers speaks for all: a block that is written has one sequence in every group, but for drafts, which have all
    /// blocks in common.
    ///
    /// A key is computed from all before it. So if a query sees another one's, it or the one before its own, which comes later, is of this
    /// step too: it is enough to look for the one before its own.
    pub(crate) fn are_apart(&mut self, batch: &Batch) -> bool {
        let slot = |seq: &BatchSequence, pos: usize| {
            let block = batch.block_tables[seq.table_starts[0] + pos / self.block_size];
            block * self.block_size as u32 + (pos % self.block_size) as u32
        };
        let brings_last = |seq: &BatchSequence| {
            let (row, end) = (seq.query_start, seq.context_len);
            seq.query_len == 1
                && end > 0
                && batch.positions[row] as usize == end - 1
                && batch.slot_mappings[0][row] == slot(seq, end - 1)
        };
        if batch.sequences.is_empty() || !batch.sequences.iter().all(brings_last) {
            return false;
        }
        self.slots.clear();
        self.slots.extend_from_slice(&batch.slot_mappings[0]);
        self.slots.sort_unstable();
        let are_distinct = self.slots.windows(2).all(|pair| pair[0] != pair[1]);
        let sees_another = |seq: &BatchSequence| {
            seq.context_len > 1 && self.slots.binary_search(&slot(seq, seq.context_len - 2)).is_ok()
        };
        are_distinct && !batch.sequences.iter().any(sees_another)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sequences of one query, of (context, blocks of 4 tokens).
    fn check(sequences: &[(usize, &[u32])], expected: bool) {
        let mut batch = Batch::default();
        for &(context, blocks) in sequences {
            batch.push(&[7], blocks, context - 1, 0, 4);
        }
        assert_eq!(OwnKeys::new(4).are_apart(&batch), expected, "{sequences:?}");
    }

    #[test]
    fn keys_that_others_see_are_found() {
        check(&[], false);
        check(&[(1, &[3])], true);
        check(&[(5, &[3, 1]), (1, &[2]), (8, &[4, 5])], true);
        // Whole blocks in common, as prompts of beams have them.
        check(&[(9, &[3, 1, 2]), (9, &[3, 1, 4]), (10, &[3, 1, 5])], true);
        // Drafts, in any order, within a block and behind its end.
        check(&[(5, &[3, 1]), (6, &[3, 1]), (1, &[2])], false);
        check(&[(6, &[3, 1]), (1, &[2]), (5, &[3, 1])], false);
        check(&[(4, &[3]), (5, &[3, 1])], false);
        check(&[(5, &[3, 1]), (5, &[3, 1])], false);
        let mut prompt = Batch::default();
        prompt.push(&[7, 8], &[1], 0, 0, 4);
        assert!(!OwnKeys::new(4).are_apart(&prompt));
        let mut elsewhere = Batch::default();
        elsewhere.push(&[7], &[1], 2, 0, 4);
        elsewhere.slot_mappings[0][0] += 1;
        assert!(!OwnKeys::new(4).are_apart(&elsewhere));
    }
}
