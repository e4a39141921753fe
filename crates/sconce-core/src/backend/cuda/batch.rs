//! [`DeviceBatch`]: a step's inputs in a device's memory, brought there by one upload.
//!
//! Everything is `u32`, one section after the other, so that where a section begins depends on the numbers of tokens, of
//! sequences and of rows of logits alone: a graph of launches that was captured for some numbers is good for every step that is
//! padded to them; where splits are shared, also on the warps that blocks have for them. What has another length each time comes
//! last: the prompts, of which such steps have none, and the block tables.

use std::ops::Range;
use std::sync::Arc;

use super::device::{Device, DevicePtr};
use super::storage::Memory;
use crate::backend::{Batch, StepLimits};
use crate::error::{Error, Result};
use crate::ops::attention::cuda::SPLIT;
use crate::ops::attention::rope::OwnKeys;
use crate::ops::attention::shared::{ITEM_WORDS, SharedSplits};

/// Words of a sequence: the row of its first token, its tokens in the step, its tokens in the cache once the step's are
/// written, and where its block table begins. There are such for each group of layers.
const SEQUENCE_WORDS: usize = 4;
/// The slot of a token that is there for padding: nothing is written to the cache.
pub(crate) const NO_SLOT: u32 = u32::MAX;
/// In the place of a token: the one that was sampled from a row of the logits of the step before, in the other bits. As
/// `embed.cu` has it.
const UNREAD_BIT: u32 = 1 << 31;

/// A step's inputs.
pub struct DeviceBatch {
    memory: Memory,
    words: Vec<u32>,
    num_groups: usize,
    num_tokens: usize,
    num_seqs: usize,
    num_logits: usize,
    num_prompts: usize,
    max_adapter: usize,
    max_decode_context: usize,
    max_own_splits: usize,
    /// What sequences that begin alike have together. None: nobody looks for it.
    shared: Option<SharedSplits>,
    /// Looks for keys that others see too. None: nobody does, and there may be some.
    own_keys: Option<OwnKeys>,
    are_keys_apart: bool,
    /// Whether it was padded, for launches that are written down.
    is_padded: bool,
}

impl DeviceBatch {
    /// No inputs yet, and room for `max_words` words.
    pub(crate) fn new(device: &Arc<dyn Device>, max_words: usize) -> Result<Self> {
        Ok(Self {
            memory: Memory::new(device, max_words * 4)?,
            words: Vec::with_capacity(max_words),
            num_groups: 1,
            num_tokens: 0,
            num_seqs: 0,
            num_logits: 0,
            num_prompts: 0,
            max_adapter: 0,
            max_decode_context: 0,
            max_own_splits: 0,
            shared: None,
            own_keys: None,
            are_keys_apart: false,
            is_padded: false,
        })
    }

    /// The same, where sequences that begin alike are attended together.
    pub(crate) fn with_shared_splits(self, shared: SharedSplits) -> Self {
        Self { shared: Some(shared), ..self }
    }

    /// The same, where it is found out whether queries see keys of others.
    pub(crate) fn with_own_keys(self, own_keys: OwnKeys) -> Self {
        Self { own_keys: Some(own_keys), ..self }
    }

    /// Words of a step whose sequences have at most so many blocks in a group, where nothing is shared.
    pub(crate) fn max_words(limits: &StepLimits, max_blocks: usize) -> usize {
        let of_groups = limits.num_groups * (limits.max_tokens + limits.max_seqs * (SEQUENCE_WORDS + max_blocks));
        3 * limits.max_tokens + limits.max_logits + limits.max_seqs + of_groups
    }

    /// Brings `batch` to the device. `num_rows`: pads tokens, sequences and rows of logits to so many, each padding token
    /// being a sequence of its own of which nothing is in the cache; for steps in which each sequence has one token.
    pub(crate) fn upload(&mut self, batch: &Batch, num_rows: Option<usize>) -> Result<()> {
        let pad = |len: usize| num_rows.unwrap_or(len);
        self.num_groups = batch.num_groups();
        (self.num_tokens, self.num_seqs) = (pad(batch.num_tokens()), pad(batch.sequences.len()));
        self.num_logits = pad(batch.logit_rows.len());
        self.is_padded = num_rows.is_some();
        self.are_keys_apart = self.own_keys.as_mut().is_some_and(|own_keys| own_keys.are_apart(batch));
        self.max_adapter = batch.adapters.iter().max().map_or(0, |&most| most as usize);
        let words = &mut self.words;
        words.clear();
        let sections = [
            (&batch.token_ids, self.num_tokens, 0),
            (&batch.rope_rows, self.num_tokens, 0),
            (&batch.adapters, self.num_tokens, 0),
            (&batch.logit_rows, self.num_logits, 0),
        ];
        let slots = batch.slot_mappings[..self.num_groups].iter().map(|slots| (slots, self.num_tokens, NO_SLOT));
        for (section, len, padding) in sections.into_iter().chain(slots) {
            let end = words.len() + len;
            words.extend_from_slice(section);
            words.resize(end, padding);
        }
        for unread in &batch.unread_tokens {
            words[unread.row] = UNREAD_BIT | unread.logits_row as u32;
        }
        for group in 0..self.num_groups {
            for seq in &batch.sequences {
                let table_start = seq.table_starts[group];
                words.extend([seq.query_start, seq.query_len, seq.context_len, table_start].map(|word| word as u32));
            }
            for row in batch.sequences.len()..self.num_seqs {
                words.extend([row as u32, 1, 0, 0]);
            }
        }
        if let Some(shared) = &mut self.shared {
            shared.plan(batch, self.num_seqs);
            if shared.num_warps() > 0 {
                words.extend_from_slice(shared.of_sequences());
                let end = words.len() + ITEM_WORDS * shared.max_items(self.num_seqs);
                words.extend_from_slice(shared.items().as_flattened());
                words.resize(end, 0);
            }
        }
        let is_prompt = |idx: &usize| batch.sequences[*idx].query_len > 1;
        let before = words.len();
        words.extend((0..batch.sequences.len()).filter(is_prompt).map(|idx| idx as u32));
        self.num_prompts = words.len() - before;
        let decodes = batch.sequences.iter().enumerate().filter(|(_, seq)| seq.query_len == 1);
        self.max_decode_context = decodes.clone().map(|(_, seq)| seq.context_len).max().unwrap_or(0);
        let of_sequences = self.shared.as_ref().map_or(&[][..], SharedSplits::of_sequences);
        let shared_len = |idx: usize| of_sequences.get(idx).map_or(0, |&num| num as usize);
        let own = decodes.map(|(idx, seq)| seq.context_len.div_ceil(SPLIT) - shared_len(idx));
        self.max_own_splits = own.max().unwrap_or(0);
        words.extend_from_slice(&batch.block_tables);
        if words.len() * 4 > self.memory.bytes() {
            return Err(Error::internal(format!(
                "a step's inputs have {} words, more than was asked for",
                words.len()
            )));
        }
        self.memory.write(0, bytemuck::cast_slice(words))
    }

    /// [num_tokens]: the tokens, or with `UNREAD_BIT` where they are found.
    pub(crate) fn token_ids(&self) -> DevicePtr {
        self.memory.ptr()
    }

    /// [num_tokens]: the rows of the RoPE table by which they turn.
    pub(crate) fn rope_rows(&self) -> DevicePtr {
        self.word(self.num_tokens)
    }

    /// [num_tokens]: the adapters that they go through, numbered from 1 on; 0: none.
    pub(crate) fn adapters(&self) -> DevicePtr {
        self.word(2 * self.num_tokens)
    }

    /// The greatest of those numbers.
    pub(crate) fn max_adapter(&self) -> usize {
        self.max_adapter
    }

    /// [num_logits]: rows whose logits are wanted.
    pub(crate) fn logit_rows(&self) -> DevicePtr {
        self.word(3 * self.num_tokens)
    }

    /// [num_tokens]: where their keys and values of a group of layers go, or [`NO_SLOT`].
    pub(crate) fn slot_mapping(&self, group: usize) -> DevicePtr {
        self.word((3 + group) * self.num_tokens + self.num_logits)
    }

    /// [num_seqs, 4]: see `SEQUENCE_WORDS`; of a group of layers.
    pub(crate) fn sequences(&self, group: usize) -> DevicePtr {
        self.word(self.sequences_start() + group * SEQUENCE_WORDS * self.num_seqs)
    }

    /// [num_seqs]: the splits of each sequence that it has in common with others, its first. Null where nothing is shared.
    pub(crate) fn shared_splits(&self) -> DevicePtr {
        if self.shared_warps() == 0 { DevicePtr::NULL } else { self.word(self.shared_start()) }
    }

    /// [max_shared_items]: what is done for several sequences together.
    pub(crate) fn shared_items(&self) -> DevicePtr {
        self.word(self.shared_start() + self.num_seqs)
    }

    /// [num_prompts - first]: the sequences that have more than one token in the step, without the first so many.
    pub(crate) fn prompts(&self, first: usize) -> DevicePtr {
        self.word(self.prompts_start() + first)
    }

    /// The sequences' block tables, one after the other.
    pub(crate) fn block_tables(&self) -> DevicePtr {
        self.word(self.prompts_start() + self.num_prompts)
    }

    fn shared_start(&self) -> usize {
        self.sequences_start() + self.num_groups * SEQUENCE_WORDS * self.num_seqs
    }

    fn sequences_start(&self) -> usize {
        (3 + self.num_groups) * self.num_tokens + self.num_logits
    }

    fn prompts_start(&self) -> usize {
        let of_shared = if self.shared_warps() == 0 { 0 } else { self.num_seqs + ITEM_WORDS * self.max_shared_items() };
        self.shared_start() + of_shared
    }

    /// Warps of a block that attends for several sequences together; 0 where nothing is shared.
    pub(crate) fn shared_warps(&self) -> usize {
        self.shared.as_ref().map_or(0, SharedSplits::num_warps)
    }

    /// Items that there is room for; those behind the last have no sequences. Only where something is shared.
    pub(crate) fn max_shared_items(&self) -> usize {
        self.shared.as_ref().map_or(0, |shared| shared.max_items(self.num_seqs))
    }

    /// Whether each sequence, but for padding, has one query, and none sees the key of another.
    pub(crate) fn are_keys_apart(&self) -> bool {
        self.are_keys_apart
    }

    /// Sequences that have more than one token in the step.
    pub(crate) fn num_prompts(&self) -> usize {
        self.num_prompts
    }

    /// Words of [`DeviceBatch::block_tables`].
    pub(crate) fn num_table_words(&self) -> usize {
        self.words.len() - self.prompts_start() - self.num_prompts
    }

    /// How many tiles of so many neighbours these prompts' tokens make, none of two prompts.
    pub(crate) fn num_prompt_tiles(&self, prompts: Range<usize>, tile_len: usize) -> usize {
        self.words_of_prompts(prompts).map(|seq| (seq[1] as usize).div_ceil(tile_len)).sum()
    }

    /// The tokens in the cache of these prompts.
    pub(crate) fn prompt_contexts(&self, prompts: Range<usize>) -> impl Iterator<Item = usize> {
        self.words_of_prompts(prompts).map(|seq| seq[2] as usize)
    }

    /// See `SEQUENCE_WORDS`.
    fn words_of_prompts(&self, prompts: Range<usize>) -> impl Iterator<Item = &[u32]> {
        let start = self.prompts_start();
        let sequences = &self.words[self.sequences_start()..self.shared_start()];
        let prompts = &self.words[start + prompts.start..start + prompts.end];
        prompts.iter().map(|&idx| &sequences[SEQUENCE_WORDS * idx as usize..][..SEQUENCE_WORDS])
    }

    /// The most tokens in the cache of a sequence that has one in the step.
    pub(crate) fn max_decode_context(&self) -> usize {
        self.max_decode_context
    }

    /// The most splits of a sequence that has one token in the step, without those that it has in common with others.
    pub(crate) fn max_own_splits(&self) -> usize {
        self.max_own_splits
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

    /// Whether it was padded, for launches that are written down.
    pub(crate) fn is_padded(&self) -> bool {
        self.is_padded
    }
}
