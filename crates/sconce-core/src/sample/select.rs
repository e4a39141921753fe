//! [`Selector`]: finds the best few of a row without sorting it.

use std::cmp::Reverse;

use super::numeric::{BLOCK, block_max, block_maxima, clean};

/// One token of a row that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    /// Orders candidates: the greatest is the best, equal logits go by lowest id.
    key: u64,
    /// Its [`weight`](super::numeric::weight), once that has been asked for.
    pub(super) weight: f32,
}

impl Candidate {
    pub(super) fn new(token_id: u32, logit: f32) -> Self {
        // The usual mapping of floats to integers of the same order; adding 0 makes -0 equal to 0.
        let bits = (logit + 0.0).to_bits();
        let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
        Self { key: u64::from(ordered) << 32 | u64::from(!token_id), weight: 0.0 }
    }

    pub(super) fn token_id(self) -> u32 {
        !(self.key as u32)
    }

    pub(super) fn logit(self) -> f32 {
        let ordered = (self.key >> 32) as u32;
        f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
    }

    /// What to sort by for best first.
    pub(super) fn rank_key(self) -> Reverse<u64> {
        Reverse(self.key)
    }
}

/// Scratch memory for selections from rows. Reused, it allocates nothing once it has seen its largest row.
///
/// A row is scanned once for the maximum of each block of tokens. The k-th greatest of these maxima is reached by at
/// least k tokens, so that only tokens that reach it, in blocks that reach it, need be looked at for the best k.
#[derive(Debug, Clone, Default)]
pub struct Selector {
    /// Of each block of the row that was scanned last, `[vocab_size / BLOCK]`.
    block_maxima: Vec<f32>,
    /// A copy of them to be reordered.
    reordered: Vec<f32>,
    /// What the last gathering found, in no order.
    pub(super) candidates: Vec<Candidate>,
}

impl Selector {
    /// A selector that has room for rows of `vocab_size`.
    pub fn new(vocab_size: usize) -> Self {
        let num_blocks = vocab_size.div_ceil(BLOCK);
        Self {
            block_maxima: Vec::with_capacity(num_blocks),
            reordered: Vec::with_capacity(num_blocks),
            candidates: Vec::with_capacity(vocab_size),
        }
    }

    /// Takes in a row; the methods below are then about this row. Returns its greatest logit, -inf where all are NaN
    /// or -inf.
    pub(super) fn scan(&mut self, row: &[f32]) -> f32 {
        self.block_maxima.clear();
        block_maxima(row, &mut self.block_maxima);
        block_max(&self.block_maxima)
    }

    /// The lowest id with the greatest logit, `max`, of the scanned row. 0 where the row has no number.
    pub(super) fn argmax(&self, row: &[f32], max: f32) -> u32 {
        let block_idx = self.block_maxima.iter().position(|&block_max| block_max == max).unwrap_or(0);
        let start = block_idx * BLOCK;
        let offset = row.iter().skip(start).position(|&logit| clean(logit) == max).unwrap_or(0);
        (start + offset) as u32
    }

    /// Makes `candidates` the tokens of the scanned row with logits of at least `floor` and above -inf.
    pub(super) fn gather(&mut self, row: &[f32], floor: f32) {
        let floor = floor.max(f32::MIN);
        self.candidates.clear();
        for (block_idx, (block, &block_max)) in row.chunks(BLOCK).zip(&self.block_maxima).enumerate() {
            if block_max < floor {
                continue;
            }
            for (token_id, &logit) in (block_idx * BLOCK..).zip(block) {
                if logit >= floor {
                    self.candidates.push(Candidate::new(token_id as u32, clean(logit)));
                }
            }
        }
    }

    /// Makes `candidates` hold the best `k` tokens of the scanned row, and perhaps more.
    pub(super) fn gather_at_least(&mut self, row: &[f32], k: usize) {
        let mut floor = f32::NEG_INFINITY;
        if (1..=self.block_maxima.len()).contains(&k) {
            self.reordered.clone_from(&self.block_maxima);
            floor = *self.reordered.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1;
        }
        self.gather(row, floor);
    }

    /// The best `k` tokens of any row, best first, equals by lowest id. Tokens at NaN or -inf are never among them, so
    /// that there may be fewer.
    pub(super) fn top(&mut self, row: &[f32], k: usize) -> &[Candidate] {
        if k == 0 {
            self.candidates.clear();
            return &self.candidates;
        }
        self.scan(row);
        self.gather_at_least(row, k);
        keep_best(&mut self.candidates, k);
        self.candidates.sort_unstable_by_key(|candidate| candidate.rank_key());
        &self.candidates
    }
}

/// Keeps the best `k`, in no order.
pub(super) fn keep_best(candidates: &mut Vec<Candidate>, k: usize) {
    if (1..candidates.len()).contains(&k) {
        candidates.select_nth_unstable_by_key(k - 1, |candidate| candidate.rank_key());
    }
    candidates.truncate(k);
}
