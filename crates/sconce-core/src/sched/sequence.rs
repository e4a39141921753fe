//! [`Sequence`] and [`SequenceGroup`]: what the scheduler knows of a request.

use crate::kv::SequenceBlocks;

/// Number of a request, in order of arrival.
pub type GroupId = u64;

/// What a sequence is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SequenceStatus {
    /// It holds no blocks, and nothing of it is computed, be it for the first time or anew.
    Waiting,
    /// It holds blocks. Where all of it is computed it waits: in a beam search for its siblings, or for the step under way
    /// to be read.
    Running,
    /// It holds no blocks and needs none: its logits have been taken, and it waits for its siblings, or for its last token.
    Parked,
    /// It has ended and holds no blocks.
    Finished,
}

/// Stands for a token that has been sampled and not read: no vocabulary has so many tokens.
pub const UNREAD: u32 = u32::MAX;

/// One sequence of a request: its tokens, and how far they are computed.
#[derive(Debug)]
pub struct Sequence {
    /// Prompt and output. The last token may be [`UNREAD`].
    pub token_ids: Vec<u32>,
    /// Where the last token is unread, the row of the logits that it was sampled from, in the step under way.
    pub unread_row: Option<usize>,
    /// Tokens that may follow, and are computed along with the last (speculative decoding; Leviathan et al. 2023), until that step is
    /// read. None of them counts as computed before it is known to be the sequence's.
    pub drafts: Vec<u32>,
    /// Tokens whose keys and values are in the cache.
    pub num_computed_tokens: usize,
    /// Where they are.
    pub blocks: SequenceBlocks,
    /// What it is doing.
    pub status: SequenceStatus,
}

impl Sequence {
    /// A waiting sequence.
    pub fn new(token_ids: Vec<u32>) -> Self {
        Self {
            token_ids,
            unread_row: None,
            drafts: Vec::new(),
            num_computed_tokens: 0,
            blocks: SequenceBlocks::default(),
            status: SequenceStatus::Waiting,
        }
    }

    /// Tokens that are known.
    pub fn num_read(&self) -> usize {
        self.token_ids.len() - usize::from(self.unread_row.is_some())
    }

    /// Tokens still to be computed.
    pub fn num_pending(&self) -> usize {
        self.token_ids.len() - self.num_computed_tokens
    }
}

/// One request: sequences that begin with the same prompt. It starts with one, which branches when the prompt is
/// computed, and in a beam search after every token.
#[derive(Debug)]
pub struct SequenceGroup {
    /// The sequences, by index.
    pub sequences: Vec<Sequence>,
    /// Tokens of the prompt, with which every sequence begins.
    pub prompt_len: usize,
    /// The adapter that all go through, by its number from 1 on; 0: none. With another, the same tokens have other keys and values.
    pub adapter: u32,
    /// Logits of the prompt are wanted from this position on; `None`: not wanted.
    pub prompt_logits_from: Option<usize>,
    /// Tokens of the prompt that were in the prefix cache when it first ran; `None`: it has not run yet.
    pub num_cached_tokens: Option<usize>,
}

impl SequenceGroup {
    /// A group of one waiting sequence.
    pub fn new(prompt_ids: Vec<u32>) -> Self {
        let prompt_len = prompt_ids.len();
        Self {
            sequences: vec![Sequence::new(prompt_ids)],
            prompt_len,
            adapter: 0,
            prompt_logits_from: None,
            num_cached_tokens: None,
        }
    }

    /// The first prompt position whose logits are still wanted, if any.
    pub fn wanted_prompt_logits(&self) -> Option<usize> {
        self.prompt_logits_from.filter(|&from| from < self.prompt_len)
    }

    /// Tokens with which sequences `a` and `b` both begin.
    pub fn common_len(&self, a: usize, b: usize) -> usize {
        let (a, b) = (&self.sequences[a].token_ids, &self.sequences[b].token_ids);
        let (a, b) = (a.iter().skip(self.prompt_len), b.iter().skip(self.prompt_len));
        self.prompt_len + a.zip(b).take_while(|(a, b)| a == b).count()
    }

    /// Whether all sequences have ended.
    pub fn is_finished(&self) -> bool {
        self.sequences.iter().all(|s| s.status == SequenceStatus::Finished)
    }
}
