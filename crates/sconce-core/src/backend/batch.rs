//! [`Batch`]: the inputs of one step, token after token and sequence after sequence.

/// One sequence's share of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSequence {
    /// Row of its first token in the batch.
    pub query_start: usize,
    /// Its tokens in the batch.
    pub query_len: usize,
    /// Its tokens in the cache when the step's are written; the last query sees them all.
    pub context_len: usize,
    /// Where its block table begins in [`Batch::block_tables`].
    pub table_start: usize,
}

/// The inputs of one step. Reused from step to step.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// [num_tokens]: the tokens.
    pub token_ids: Vec<u32>,
    /// [num_tokens]: their positions in their sequences.
    pub positions: Vec<u32>,
    /// [num_tokens]: where their keys and values go: block * block_size + offset.
    pub slot_mapping: Vec<u32>,
    /// [num_seqs].
    pub sequences: Vec<BatchSequence>,
    /// The sequences' block tables, one after the other.
    pub block_tables: Vec<u32>,
    /// [num_logits]: rows whose logits are wanted.
    pub logit_rows: Vec<u32>,
}

impl Batch {
    /// Tokens in the step.
    pub fn num_tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// Forgets everything, and keeps the memory.
    pub fn clear(&mut self) {
        self.token_ids.clear();
        self.positions.clear();
        self.slot_mapping.clear();
        self.sequences.clear();
        self.block_tables.clear();
        self.logit_rows.clear();
    }

    /// Adds tokens `start..end` of a sequence whose `blocks` reach to `end`; logits are wanted from `logits_from` on.
    pub fn push(&mut self, tokens: &[u32], blocks: &[u32], start: usize, logits_from: usize, block_size: usize) {
        let (query_start, end) = (self.num_tokens(), start + tokens.len());
        let table_start = self.block_tables.len();
        self.token_ids.extend_from_slice(tokens);
        for pos in start..end {
            self.positions.push(pos as u32);
            self.slot_mapping.push(blocks[pos / block_size] * block_size as u32 + (pos % block_size) as u32);
            if pos >= logits_from {
                self.logit_rows.push((query_start + pos - start) as u32);
            }
        }
        self.block_tables.extend_from_slice(&blocks[..end.div_ceil(block_size)]);
        let query_len = tokens.len();
        self.sequences.push(BatchSequence { query_start, query_len, context_len: end, table_start });
    }
}
