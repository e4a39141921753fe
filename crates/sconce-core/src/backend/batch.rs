//! [`Batch`]: the inputs of one step, token after token and sequence after sequence.
//!
//! What names blocks is there for each group of layers ([`LayerGroups`](crate::kv::LayerGroups)); that of a second one is empty where
//! there is none.

use crate::kv::MAX_GROUPS;

/// One sequence's share of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSequence {
    /// Row of its first token in the batch.
    pub query_start: usize,
    /// Its tokens in the batch.
    pub query_len: usize,
    /// Its tokens in the cache when the step's are written; the last query sees them all.
    pub context_len: usize,
    /// Where its block tables begin in [`Batch::block_tables`].
    pub table_starts: [usize; MAX_GROUPS],
}

/// Adjacent sequences, of one token each, whose block tables begin with the same blocks: attention can read those once
/// for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedPrefix {
    /// The first of the sequences.
    pub first_seq: usize,
    /// How many there are, at least 2.
    pub num_seqs: usize,
    /// The blocks that all of them begin with, at least 1.
    pub num_blocks: usize,
}

/// A token that is not known yet: the one that the step before samples from a row of its logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnreadToken {
    /// Its row in the batch.
    pub row: usize,
    /// The row of the logits of the step before.
    pub logits_row: usize,
}

/// The inputs of one step. Reused from step to step.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// [num_tokens]: the tokens.
    pub token_ids: Vec<u32>,
    /// Which of them are not known yet, where the backend can run ahead; in `token_ids` they can be anything.
    pub unread_tokens: Vec<UnreadToken>,
    /// [num_tokens]: their positions in their sequences.
    pub positions: Vec<u32>,
    /// [num_tokens]: the rows of the RoPE table by which they turn.
    pub rope_rows: Vec<u32>,
    /// [num_tokens]: the adapters that they go through, numbered from 1 on; 0: none.
    pub adapters: Vec<u32>,
    /// [num_tokens]: where their keys and values go: block * block_size + offset.
    pub slot_mappings: [Vec<u32>; MAX_GROUPS],
    /// [num_seqs].
    pub sequences: Vec<BatchSequence>,
    /// The sequences' block tables, one after the other.
    pub block_tables: Vec<u32>,
    /// [num_logits]: rows whose logits are wanted.
    pub logit_rows: Vec<u32>,
    /// Sequences that begin alike, as [`Batch::find_shared_prefixes`] has found them.
    pub shared_prefixes: [Vec<SharedPrefix>; MAX_GROUPS],
}

impl Batch {
    /// Tokens in the step.
    pub fn num_tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// Forgets everything, and keeps the memory.
    pub fn clear(&mut self) {
        self.token_ids.clear();
        self.unread_tokens.clear();
        self.positions.clear();
        self.rope_rows.clear();
        self.adapters.clear();
        self.slot_mappings.iter_mut().for_each(Vec::clear);
        self.sequences.clear();
        self.block_tables.clear();
        self.logit_rows.clear();
        self.shared_prefixes.iter_mut().for_each(Vec::clear);
    }

    /// Groups of layers that the step's sequences have block tables for.
    pub fn num_groups(&self) -> usize {
        self.slot_mappings.iter().take_while(|slots| !slots.is_empty()).count().max(1)
    }

    /// Fills `shared_prefixes`: call it when all sequences are there. Without it attention reads each one's blocks.
    ///
    /// Two neighbours are joined unless one of them shares more than twice as much with its other neighbour: the beams of
    /// a request, with their long prompt, are not to be cut down to the few blocks that the next request has in common
    /// with them.
    pub fn find_shared_prefixes(&mut self) {
        (0..self.num_groups()).for_each(|group| self.find_shared_in(group));
    }

    fn find_shared_in(&mut self, group: usize) {
        self.shared_prefixes[group].clear();
        let (mut before, mut common) = (0, self.common_blocks(group, 0));
        for idx in 0..self.sequences.len() {
            // Blocks in common with the one before, with the next, and of the next with the one after it.
            let after = self.common_blocks(group, idx + 1);
            if common > 0 && 2 * common >= before.max(after) {
                let runs = &mut self.shared_prefixes[group];
                match runs.last_mut().filter(|run| run.first_seq + run.num_seqs == idx + 1) {
                    Some(run) => (run.num_seqs, run.num_blocks) = (run.num_seqs + 1, run.num_blocks.min(common)),
                    None => runs.push(SharedPrefix { first_seq: idx, num_seqs: 2, num_blocks: common }),
                }
            }
            (before, common) = (common, after);
        }
    }

    /// Blocks with which sequence `idx` and the next both begin, where both have one token in the step.
    fn common_blocks(&self, group: usize, idx: usize) -> usize {
        let is_one = |idx: usize| self.sequences.get(idx).is_some_and(|seq| seq.query_len == 1);
        if !is_one(idx) || !is_one(idx + 1) {
            return 0;
        }
        // Tables are as long as what is before the next.
        let start = |idx: usize, group: usize| match self.sequences.get(idx) {
            Some(seq) => seq.table_starts[group],
            None => self.block_tables.len(),
        };
        let end = |idx: usize| if group + 1 < self.num_groups() { start(idx, group + 1) } else { start(idx + 1, 0) };
        let [a, b] = [idx, idx + 1].map(|idx| &self.block_tables[start(idx, group)..end(idx)]);
        a.iter().zip(b).take_while(|(a, b)| a == b).count()
    }

    /// Says that the last token is the one that the step before samples from row `logits_row` of its logits.
    pub fn set_last_unread(&mut self, logits_row: usize) {
        self.unread_tokens.push(UnreadToken { row: self.num_tokens() - 1, logits_row });
    }

    /// Has the tokens from row `first` on turn by rows of the RoPE table that are so many behind those of their positions.
    pub fn shift_rope_rows(&mut self, first: usize, num_rows: usize) {
        self.rope_rows[first..].iter_mut().for_each(|row| *row += num_rows as u32);
    }

    /// Has the tokens from row `first` on go through an adapter, by its number from 1 on.
    pub fn set_adapter(&mut self, first: usize, adapter: u32) {
        self.adapters[first..].fill(adapter);
    }

    /// Whether a token goes through an adapter.
    pub fn has_adapters(&self) -> bool {
        self.adapters.iter().any(|&adapter| adapter != 0)
    }

    /// Adds tokens `start..end` of a sequence whose `blocks` reach to `end`; logits are wanted from `logits_from` on. They turn by the
    /// rows of their positions, and go through no adapter.
    pub fn push(&mut self, tokens: &[u32], blocks: &[u32], start: usize, logits_from: usize, block_size: usize) {
        self.push_grouped(tokens, &[blocks], start, logits_from, block_size);
    }

    /// The same with `tables` of blocks for each group of layers.
    pub fn push_grouped(
        &mut self,
        tokens: &[u32],
        tables: &[&[u32]],
        start: usize,
        logits_from: usize,
        block_size: usize,
    ) {
        let (query_start, end) = (self.num_tokens(), start + tokens.len());
        self.token_ids.extend_from_slice(tokens);
        for pos in start..end {
            self.positions.push(pos as u32);
            self.rope_rows.push(pos as u32);
            self.adapters.push(0);
            if pos >= logits_from {
                self.logit_rows.push((query_start + pos - start) as u32);
            }
        }
        let mut table_starts = [0; MAX_GROUPS];
        for ((blocks, slots), table_start) in tables.iter().zip(&mut self.slot_mappings).zip(&mut table_starts) {
            let slot = |pos: usize| blocks[pos / block_size] * block_size as u32 + (pos % block_size) as u32;
            slots.extend((start..end).map(slot));
            *table_start = self.block_tables.len();
            self.block_tables.extend_from_slice(&blocks[..end.div_ceil(block_size)]);
        }
        let query_len = tokens.len();
        self.sequences.push(BatchSequence { query_start, query_len, context_len: end, table_starts });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tables: &[&[u32]], expected: &[(usize, usize, usize)]) {
        let mut batch = Batch::default();
        for table in tables {
            batch.push(&[0], table, table.len() * 4 - 1, 0, 4);
        }
        batch.find_shared_prefixes();
        let found: Vec<_> = batch.shared_prefixes[0].iter().map(|p| (p.first_seq, p.num_seqs, p.num_blocks)).collect();
        assert_eq!(found, expected, "{tables:?}");
    }

    #[test]
    fn neighbours_that_begin_alike_are_joined() {
        check(&[], &[]);
        check(&[&[1, 2]], &[]);
        check(&[&[1, 2], &[3, 4]], &[]);
        check(&[&[1, 2], &[1, 3], &[1, 2]], &[(0, 3, 1)]);
        check(&[&[1, 2, 3], &[1, 2, 4], &[5], &[6, 7], &[6, 8]], &[(0, 2, 2), (3, 2, 1)]);
    }

    #[test]
    fn a_long_prefix_is_not_cut_by_a_neighbour_with_a_short_one() {
        let (a, b, c): (&[u32], &[u32], &[u32]) = (&[1, 9], &[1, 2, 3, 4, 5], &[1, 2, 3, 4, 6]);
        check(&[a, b, c, c], &[(1, 3, 4)]);
        check(&[b, c, a, a], &[(0, 2, 4), (2, 2, 2)]);
        // Not much shorter: one run.
        check(&[&[1, 2, 3, 7], b, c], &[(0, 3, 3)]);
    }

    #[test]
    fn prompts_are_not_joined() {
        let mut batch = Batch::default();
        batch.push(&[0; 3], &[1], 0, 0, 4);
        batch.push(&[0], &[1, 2], 4, 0, 4);
        batch.find_shared_prefixes();
        assert!(batch.shared_prefixes[0].is_empty());
    }

    /// Each group has tables, slots and shared blocks of its own.
    #[test]
    fn groups_are_apart() {
        let mut batch = Batch::default();
        batch.push_grouped(&[7], &[&[1, 2, 3], &[5, 6, 7]], 8, 8, 4);
        batch.push_grouped(&[7], &[&[1, 2, 4], &[5, 8, 9]], 9, 9, 4);
        batch.push_grouped(&[7, 7], &[&[8], &[9]], 0, 0, 4);
        batch.find_shared_prefixes();
        assert_eq!((batch.num_groups(), &batch.slot_mappings), (2, &[vec![12, 17, 32, 33], vec![28, 37, 36, 37]]));
        let found = batch.shared_prefixes.clone().map(|runs| runs.iter().map(|run| run.num_blocks).collect::<Vec<_>>());
        assert_eq!(found, [vec![2], vec![1]]);
        let starts: Vec<_> = batch.sequences.iter().map(|seq| seq.table_starts).collect();
        assert_eq!(starts, [[0, 3], [6, 9], [12, 13]]);
        assert_eq!(batch.block_tables, [1, 2, 3, 5, 6, 7, 1, 2, 4, 5, 8, 9, 8, 9]);
    }
}
