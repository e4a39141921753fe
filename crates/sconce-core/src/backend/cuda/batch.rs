//! [`DeviceBatch`]: a step's inputs in a device's memory, brought there by one upload.
//!
//! Everything is `u32`, one section after the other, so that where a section begins depends on the numbers of tokens, of
//! sequences and of rows of logits alone: a graph of launches that was captured for some numbers is good for every step that is
//! padded to them. What has another length each time, the block tables, comes last.

use std::sync::Arc;

use super::device::{Device, DevicePtr};
use super::storage::Memory;
use crate::backend::Batch;
use crate::error::{Error, Result};

/// Words of a sequence: the row of its first token, its tokens in the step, its tokens in the cache once the step's are
/// written, and where its block table begins.
const SEQUENCE_WORDS: usize = 4;
/// The slot of a token that is there for padding: nothing is written to the cache.
pub(crate) const NO_SLOT: u32 = u32::MAX;

/// A step's inputs.
pub struct DeviceBatch {
    device: Arc<dyn Device>,
    memory: Memory,
    words: Vec<u32>,
    num_tokens: usize,
    num_seqs: usize,
    num_logits: usize,
}

impl DeviceBatch {
    /// No inputs yet, and room for `max_words` words.
    pub(crate) fn new(device: &Arc<dyn Device>, max_words: usize) -> Result<Self> {
        Ok(Self {
            device: Arc::clone(device),
            memory: Memory::new(device, max_words * 4)?,
            words: Vec::with_capacity(max_words),
            num_tokens: 0,
            num_seqs: 0,
            num_logits: 0,
        })
    }

    /// Brings `batch` to the device. `num_rows`: pads tokens, sequences and rows of logits to so many, each padding token
    /// being a sequence of its own of which nothing is in the cache; for steps in which each sequence has one token.
    pub(crate) fn upload(&mut self, batch: &Batch, num_rows: Option<usize>) -> Result<()> {
        let pad = |len: usize| num_rows.unwrap_or(len);
        (self.num_tokens, self.num_seqs) = (pad(batch.num_tokens()), pad(batch.sequences.len()));
        self.num_logits = pad(batch.logit_rows.len());
        let words = &mut self.words;
        words.clear();
        for (section, len, padding) in [
            (&batch.token_ids, self.num_tokens, 0),
            (&batch.positions, self.num_tokens, 0),
            (&batch.slot_mapping, self.num_tokens, NO_SLOT),
            (&batch.logit_rows, self.num_logits, 0),
        ] {
            let end = words.len() + len;
            words.extend_from_slice(section);
            words.resize(end, padding);
        }
        for seq in &batch.sequences {
            words.extend([seq.query_start, seq.query_len, seq.context_len, seq.table_start].map(|word| word as u32));
        }
        for row in batch.sequences.len()..self.num_seqs {
            words.extend([row as u32, 1, 0, 0]);
        }
        words.extend_from_slice(&batch.block_tables);
        if words.len() * 4 > self.memory.bytes() {
            return Err(Error::internal(format!(
                "a step's inputs have {} words, more than was asked for",
                words.len()
            )));
        }
        self.memory.write(0, bytemuck::cast_slice(words))
    }

    /// [num_tokens]: the tokens.
    pub(crate) fn token_ids(&self) -> DevicePtr {
        self.memory.ptr()
    }

    /// [num_tokens]: their positions.
    pub(crate) fn positions(&self) -> DevicePtr {
        self.word(self.num_tokens)
    }

    /// [num_tokens]: where their keys and values go, or [`NO_SLOT`].
    pub(crate) fn slot_mapping(&self) -> DevicePtr {
        self.word(2 * self.num_tokens)
    }

    /// [num_logits]: rows whose logits are wanted.
    pub(crate) fn logit_rows(&self) -> DevicePtr {
        self.word(3 * self.num_tokens)
    }

    /// [num_seqs, 4]: see `SEQUENCE_WORDS`.
    pub(crate) fn sequences(&self) -> DevicePtr {
        self.word(3 * self.num_tokens + self.num_logits)
    }

    /// The sequences' block tables, one after the other.
    pub(crate) fn block_tables(&self) -> DevicePtr {
        self.word(3 * self.num_tokens + self.num_logits + SEQUENCE_WORDS * self.num_seqs)
    }

    fn word(&self, idx: usize) -> DevicePtr {
        self.memory.ptr().offset(4 * idx)
    }

    /// Tokens, with padding.
    pub(crate) fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Sequences, with padding.
    pub(crate) fn num_seqs(&self) -> usize {
        self.num_seqs
    }

    /// Rows whose logits are wanted, with padding.
    pub(crate) fn num_logits(&self) -> usize {
        self.num_logits
    }

    /// Where the inputs are.
    pub(crate) fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }
}
