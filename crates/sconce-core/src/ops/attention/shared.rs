//! Which splits of which sequences `kernels/attention_shared.cu` attends together: the plan of a step, made on the host.

use super::cuda::{MAX_WARPS, SPLIT, WARP_ROWS, most_rows, padded_dim};
use crate::backend::{AttentionSpec, Batch, KvDtype};

/// What must be saved at least, for each layer: what an H100's memory moves in the 2 to 3 microseconds that another launch
/// takes. An estimate: it was not measured.
pub(crate) const MIN_SAVED_BYTES: usize = 8 << 20;
/// Blocks for each multiprocessor, of one warp; of more warps there are as many fewer.
const BLOCKS_PER_SM: usize = MAX_WARPS;

/// What a block does for each key head, as the kernel has it: the first of some neighbouring sequences, how many they are,
/// the first of some splits that they have in common, and how many those are.
type Item = [u32; ITEM_WORDS];
/// Words of an item.
pub(crate) const ITEM_WORDS: usize = 4;

/// Sequences that a block takes together, and the whole splits with which they all begin.
#[derive(Debug, Clone, Copy)]
struct Tile {
    first_seq: usize,
    num_seqs: usize,
    num_splits: usize,
}

/// Makes plans, and keeps the last. Memory is reused from step to step.
///
/// A run of sequences is cut into tiles, of as many sequences as a block has rows for with all heads of a key head. A tile
/// of `n` sequences reads the keys and values of `s` splits once in place of `n` times. That saves `(n - 1) * s * 256`
/// times the bytes of a token, less what its partial results take where a sequence alone would have needed none: they are
/// counted always. Tiles are made where something is saved, and the step has a launch for them where it is
/// [`MIN_SAVED_BYTES`] in all. Windows are not looked at: the plan is for all layers of the first group,
/// which may differ in them.
#[derive(Debug)]
pub(crate) struct SharedSplits {
    /// Query heads of a key head.
    group: usize,
    most_rows: usize,
    /// Of a token's keys and values, in all key heads of a layer.
    token_bytes: usize,
    /// Of a sequence's partial results of a split, written and read.
    partial_bytes: usize,
    block_size: usize,
    /// Blocks that keep a device busy, of one warp, for each key head.
    wanted_blocks: usize,
    min_saved_bytes: usize,
    tiles: Vec<Tile>,
    items: Vec<Item>,
    of_sequences: Vec<u32>,
    num_warps: usize,
}

impl SharedSplits {
    /// For a model's layers, on a device of so many multiprocessors.
    pub(crate) fn new(spec: &AttentionSpec, kv_dtype: KvDtype, block_size: usize, num_sms: usize) -> Self {
        Self {
            group: spec.num_heads / spec.num_kv_heads,
            most_rows: most_rows(spec.head_dim),
            token_bytes: 2 * spec.num_kv_heads * kv_dtype.head_bytes(spec.head_dim),
            partial_bytes: 2 * 4 * spec.num_heads * (padded_dim(spec.head_dim) + 2),
            block_size,
            wanted_blocks: (BLOCKS_PER_SM * num_sms).div_ceil(spec.num_kv_heads),
            min_saved_bytes: MIN_SAVED_BYTES,
            tiles: Vec::new(),
            items: Vec::new(),
            of_sequences: Vec::new(),
            num_warps: 0,
        }
    }

    /// The same, where so much must be saved.
    pub(crate) fn with_min_saved_bytes(self, min_saved_bytes: usize) -> Self {
        Self { min_saved_bytes, ..self }
    }

    /// Makes the plan of a step whose sequences are padded to `num_seqs`.
    pub(crate) fn plan(&mut self, batch: &Batch, num_seqs: usize) {
        self.items.clear();
        self.of_sequences.clear();
        self.num_warps = 0;
        let saved = self.cut(batch);
        if self.tiles.is_empty() || saved < self.min_saved_bytes {
            return;
        }
        let most_seqs = self.tiles.iter().map(|tile| tile.num_seqs).max().unwrap_or(0);
        self.num_warps = (most_seqs * self.group).div_ceil(WARP_ROWS).next_power_of_two();
        self.of_sequences.resize(num_seqs, 0);
        let share = self.share(self.max_items(num_seqs));
        for tile in &self.tiles {
            self.of_sequences[tile.first_seq..tile.first_seq + tile.num_seqs].fill(tile.num_splits as u32);
            for first_split in (0..tile.num_splits).step_by(share) {
                let num_splits = share.min(tile.num_splits - first_split);
                let item = [tile.first_seq, tile.num_seqs, first_split, num_splits];
                self.items.push(item.map(|number| number as u32));
            }
        }
    }

    /// Cuts the batch's runs into tiles. Returns the bytes that they save.
    fn cut(&mut self, batch: &Batch) -> usize {
        self.tiles.clear();
        let most_seqs = self.most_rows / self.group;
        let mut all_saved = 0;
        for run in &batch.shared_prefixes[0] {
            let sequences = &batch.sequences[run.first_seq..run.first_seq + run.num_seqs];
            let shortest = sequences.iter().map(|seq| seq.context_len).min().unwrap_or(0);
            // A sequence's last split is its own, whatever of it is shared: it has a result of its own in any case.
            let num_splits = (run.num_blocks * self.block_size).min(shortest.saturating_sub(1)) / SPLIT;
            for start in (0..run.num_seqs).step_by(most_seqs) {
                let num_seqs = most_seqs.min(run.num_seqs - start);
                let saved = (num_seqs - 1) * num_splits * SPLIT * self.token_bytes;
                let paid = num_seqs * num_splits * self.partial_bytes;
                if saved > paid {
                    all_saved += saved - paid;
                    self.tiles.push(Tile { first_seq: run.first_seq + start, num_seqs, num_splits });
                }
            }
        }
        all_saved
    }

    /// The least number of splits an item, so that there are at most `max_items`. There are no more tiles than that.
    fn share(&self, max_items: usize) -> usize {
        let num_items = |share: usize| self.tiles.iter().map(|tile| tile.num_splits.div_ceil(share)).sum::<usize>();
        let most = self.tiles.iter().map(|tile| tile.num_splits).max().unwrap_or(1);
        let (mut low, mut high) = (1, most);
        while low < high {
            let middle = (low + high) / 2;
            if num_items(middle) <= max_items {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }

    /// The most items of a step of `num_seqs` sequences, with padding: it depends on them and on the number of warps alone,
    /// as launches must. As many blocks as keep the device busy, or, where that is more, one for each two sequences. Only
    /// where something is shared.
    pub(crate) fn max_items(&self, num_seqs: usize) -> usize {
        self.wanted_blocks.div_ceil(self.num_warps).max(num_seqs / 2)
    }

    /// Words that a plan for so many sequences takes at most: the splits of each sequence, and the items.
    pub(crate) fn max_words(&self, max_seqs: usize) -> usize {
        max_seqs + ITEM_WORDS * self.wanted_blocks.max(max_seqs / 2)
    }

    /// Warps of a block, a power of two; 0 where nothing is shared.
    pub(crate) fn num_warps(&self) -> usize {
        self.num_warps
    }

    /// [num_seqs], with padding: of each sequence the number of splits that are shared, the first ones. Empty where nothing is.
    pub(crate) fn of_sequences(&self) -> &[u32] {
        &self.of_sequences
    }

    /// At most as many as [`SharedSplits::max_items`] says.
    pub(crate) fn items(&self) -> &[Item] {
        &self.items
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group of 4: up to 32 sequences a tile.
    fn planner(num_sms: usize) -> SharedSplits {
        let spec = AttentionSpec {
            layer: 0,
            num_heads: 32,
            num_kv_heads: 8,
            head_dim: 128,
            scale: 1.0,
            softcap: None,
            window: None,
        };
        SharedSplits::new(&spec, KvDtype::Bf16, 16, num_sms)
    }

    /// Runs of (sequences, common blocks, keys of each).
    fn batch(runs: &[(usize, usize, usize)]) -> Batch {
        let (mut batch, mut next) = (Batch::default(), 0);
        let mut blocks = |num: usize| {
            next += num as u32;
            (next - num as u32..next).collect::<Vec<_>>()
        };
        for &(num_seqs, num_common, context) in runs {
            let common = blocks(num_common);
            for _ in 0..num_seqs {
                let table = [common.clone(), blocks(context.div_ceil(16) - num_common)].concat();
                batch.push(&[0], &table, context - 1, 0, 16);
            }
        }
        batch.find_shared_prefixes();
        batch
    }

    #[test]
    fn whole_splits_of_runs_become_items() {
        let mut planner = planner(132).with_min_saved_bytes(0);
        // 40 blocks are 640 keys, two splits and a half.
        planner.plan(&batch(&[(3, 40, 700), (1, 1, 2000), (2, 16, 300)]), 8);
        assert_eq!(planner.items(), [[0, 3, 0, 1], [0, 3, 1, 1], [4, 2, 0, 1]]);
        assert_eq!(planner.of_sequences(), [2, 2, 2, 0, 1, 1, 0, 0]);
        assert_eq!(planner.num_warps(), 1);
        // Less than a split, and no run at all.
        for batch in [batch(&[(4, 15, 700)]), batch(&[(1, 40, 700), (1, 40, 700)]), Batch::default()] {
            planner.plan(&batch, 8);
            assert_eq!((planner.items().len(), planner.of_sequences().len(), planner.num_warps()), (0, 0, 0));
        }
    }

    #[test]
    fn the_last_split_is_never_shared() {
        let mut planner = planner(132).with_min_saved_bytes(0);
        for (context, num_splits) in [(512usize, 1), (513, 2), (768, 2)] {
            // The same blocks throughout, as drafts have them.
            planner.plan(&batch(&[(2, context.div_ceil(16), context)]), 2);
            assert_eq!(planner.of_sequences(), [num_splits; 2], "{context}");
        }
    }

    #[test]
    fn runs_are_cut_where_a_block_has_no_more_rows() {
        let mut planner = planner(132).with_min_saved_bytes(0);
        planner.plan(&batch(&[(70, 16, 300)]), 70);
        assert_eq!(planner.items(), [[0, 32, 0, 1], [32, 32, 0, 1], [64, 6, 0, 1]]);
        assert_eq!(planner.num_warps(), 8);
        // Nothing is shared with nobody.
        planner.plan(&batch(&[(33, 16, 300)]), 40);
        assert_eq!(planner.items(), [[0, 32, 0, 1]]);
        assert_eq!(planner.of_sequences()[31..34], [1, 0, 0]);
    }

    #[test]
    fn items_are_no_more_than_launches_foresee() {
        for num_sms in [1, 4, 132] {
            let mut planner = planner(num_sms).with_min_saved_bytes(0);
            for (runs, num_seqs) in
                [(vec![(4, 1000, 16100)], 4), (vec![(2, 100, 1700); 40], 80), (vec![(40, 300, 5000)], 48)]
            {
                planner.plan(&batch(&runs), num_seqs);
                let (num_items, most) = (planner.items().len(), planner.max_items(num_seqs));
                assert!(num_items > 0 && num_items <= most, "{num_sms} {runs:?}: {num_items} > {most}");
                assert!(num_seqs + 4 * most <= planner.max_words(num_seqs));
                let splits: u32 = planner.items().iter().map(|item| item[1] * item[3]).sum();
                assert_eq!(splits, planner.of_sequences().iter().sum::<u32>(), "each split of each sequence once");
            }
        }
    }

    #[test]
    fn little_is_not_worth_a_launch() {
        let mut planner = planner(132);
        // A split is a megabyte: 2 are saved, and 12.
        planner.plan(&batch(&[(2, 32, 600)]), 2);
        assert_eq!(planner.num_warps(), 0);
        planner.plan(&batch(&[(4, 64, 1100)]), 4);
        assert_eq!(planner.items().len(), 4);
    }
}
