//! [`Sequence`] and [`SequenceGroup`]: what the scheduler knows of a request.

use crate::kv::BlockTable;

/// Number of a request, in order of arrival.
pub type GroupId = u64;

/// What a sequence is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SequenceStatus {
    /// It holds no blocks, and nothing of it is computed.
    Waiting,
    /// It holds blocks.
    Running,
    /// It has ended and holds no blocks.
    Finished,
}

/// One sequence of a request: its tokens, and how far they are computed.
#[derive(Debug)]
pub struct Sequence {
    /// Prompt and output.
    pub token_ids: Vec<u32>,
    /// Tokens whose keys and values are in the cache.
    pub num_computed_tokens: usize,
    /// Where they are.
    pub block_table: BlockTable,
    /// What it is doing.
    pub status: SequenceStatus,
}

impl Sequence {
    /// A waiting sequence.
    pub fn new(token_ids: Vec<u32>) -> Self {
        Self { token_ids, num_computed_tokens: 0, block_table: BlockTable::default(), status: SequenceStatus::Waiting }
    }

    /// Tokens still to be computed.
    pub fn num_pending(&self) -> usize {
        self.token_ids.len() - self.num_computed_tokens
    }
}

/// One request: sequences that begin with the same prompt. It starts with one, and is forked when the prompt is computed.
#[derive(Debug)]
pub struct SequenceGroup {
    /// The sequences, by index.
    pub sequences: Vec<Sequence>,
    /// Tokens of the prompt, with which every sequence begins.
    pub prompt_len: usize,
    /// Logits of the prompt are wanted from this position on; `None`: not wanted.
    pub prompt_logits_from: Option<usize>,
}

impl SequenceGroup {
    /// A group of one waiting sequence.
    pub fn new(prompt_ids: Vec<u32>) -> Self {
        let prompt_len = prompt_ids.len();
        Self { sequences: vec![Sequence::new(prompt_ids)], prompt_len, prompt_logits_from: None }
    }

    /// Whether all sequences have ended.
    pub fn is_finished(&self) -> bool {
        self.sequences.iter().all(|s| s.status == SequenceStatus::Finished)
    }
}
