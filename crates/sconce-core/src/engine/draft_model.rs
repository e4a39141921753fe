//! [`DraftModel`]: a smaller model whose tokens are drafts (speculative decoding; Leviathan et al. 2023).
//!
//! Its keys and values lie in a cache of its own, in blocks of the same numbers as the model's: of a sequence it needs no table, and
//! what is shared, found again or given back there is so here. It computes what it needs when it is asked for drafts, for it does
//! nothing while many sequences run, nor while it rests ([`Trust`]). What it has computed is known of each block until that is handed
//! out anew. Two sequences that share a block have the same tokens in it: whoever comes first computes it for both.
//!
//! A draft is what the request would have this model say in that place: drawn where its tokens are, by the same random number, so
//! that two models that are much alike draw the same.

use std::collections::BTreeMap;
use std::ops::Range;

use super::compute::{Compute, Loaded};
use super::running::{Ahead, RunningRequest};
use super::trust::Trust;
use crate::backend::{Backend, Batch};
use crate::error::Result;
use crate::kv::{BlockId, BlockPool};
use crate::models::{Step, Wanted};
use crate::sample::SampleRow;
use crate::sched::{GroupId, Scheduler, Sequence};

/// A sequence has no further drafts where those it has are less likely than that to be all right: another row costs a step little, but
/// computing the draft for it some sixth of a step. `benches/RESULTS.md` has what others give.
const LEAST_PROBABILITY: f32 = 0.35;
/// So many tokens are computed each as a sequence of its own, as decodes are: for these there are graphs and kernels for few rows.
const MAX_SINGLE_TOKENS: usize = 2;

/// A smaller model whose tokens are drafts.
pub(super) struct DraftModel<B: Backend> {
    compute: Compute<B>,
    /// Tokens below it are known to both models.
    vocab_size: usize,
    /// The longest sequence.
    max_len: usize,
    /// Most tokens of a step.
    max_step_tokens: usize,
    computed: Vec<ComputedBlock>,
    trust: Trust,
    sequences: Vec<Drafted>,
    batch: Batch,
}

/// How many of the first tokens of a block are computed, since it was handed out for the `num_allocations`-th time.
#[derive(Debug, Clone, Copy, Default)]
struct ComputedBlock {
    num_allocations: u64,
    num_tokens: usize,
}

/// A sequence that drafts are made for.
#[derive(Debug)]
struct Drafted {
    group: GroupId,
    index: usize,
    /// Tokens that it had.
    len: usize,
    /// Drafts that it may have.
    most: usize,
    drafts: Vec<u32>,
    /// The sequence with its drafts but for the last, once there are two.
    ahead: Option<Ahead>,
    /// How likely it is that all drafts are right, by what the draft model thinks.
    probability: f32,
    /// How many of them are right by that.
    num_expected: f32,
    /// Whether it may have another draft.
    is_open: bool,
    /// The row of logits that its next draft comes from.
    row: usize,
}

impl Drafted {
    /// The position of its last token, drafts included: the next one comes of its logits.
    fn last_pos(&self) -> usize {
        self.len + self.drafts.len() - 1
    }
}

impl<B: Backend> DraftModel<B> {
    /// `vocab_size`: tokens that both models have.
    pub(super) fn new(loaded: Loaded<B>, num_blocks: usize, vocab_size: usize) -> Result<Self> {
        Ok(Self {
            vocab_size,
            max_len: loaded.wanted_len,
            max_step_tokens: loaded.max_step_tokens,
            computed: vec![ComputedBlock::default(); num_blocks],
            trust: Trust::NEW,
            sequences: Vec::new(),
            batch: Batch::default(),
            compute: loaded.with_blocks(num_blocks)?,
        })
    }

    /// Whether its device does not come back from an error.
    pub(super) fn is_lost(&self) -> bool {
        self.compute.backend.is_lost()
    }

    /// Forgets all that is computed: blocks are counted anew.
    pub(super) fn forget(&mut self) {
        self.computed.fill(ComputedBlock::default());
        self.sequences.clear();
    }

    /// Takes note of the drafts that turned out to be right: they are computed. To be called when the step that had them has been read.
    pub(super) fn settle(&mut self, scheduler: &Scheduler) {
        let (mut num_made, mut num_right_in_all, mut num_expected) = (0, 0, 0.0);
        for drafted in std::mem::take(&mut self.sequences) {
            let Some(seq) = scheduler.live_sequence(drafted.group, drafted.index) else { continue };
            let own = seq.token_ids.get(drafted.len..).unwrap_or_default();
            let num_right = drafted.drafts.iter().zip(own).take_while(|(draft, own)| draft == own).count();
            num_made += drafted.drafts.len();
            num_right_in_all += num_right;
            num_expected += drafted.num_expected;
            // The last draft has only been said.
            let num_computed = num_right.min(drafted.drafts.len().saturating_sub(1));
            self.count_computed(scheduler.pool(), seq, drafted.len..drafted.len + num_computed);
        }
        if num_made > 0 {
            self.trust.count(num_made, num_right_in_all, num_expected);
        }
    }

    /// To be asked once in each step that could have drafts of it: whether it is to make some, or rests.
    pub(super) fn takes_turn(&mut self) -> bool {
        self.trust.takes_turn()
    }

    /// Asks for drafts for a sequence, `most` at most, for which blocks are reserved.
    pub(super) fn ask(&mut self, group: GroupId, index: usize, most: usize) {
        let (drafts, ahead) = (Vec::with_capacity(most), None);
        let (len, row, probability, num_expected, is_open) = (0, 0, 1.0, 0.0, false);
        self.sequences.push(Drafted {
            group,
            index,
            len,
            most,
            drafts,
            ahead,
            probability,
            num_expected,
            is_open,
            row,
        });
    }

    /// The drafts for the `idx`-th sequence that was asked for.
    pub(super) fn drafts(&self, idx: usize) -> &[u32] {
        &self.sequences[idx].drafts
    }

    /// Makes the drafts that were asked for. Where it has to compute more of the sequences than fits into a step, some have none yet.
    pub(super) fn run(
        &mut self,
        scheduler: &Scheduler,
        requests: &mut BTreeMap<GroupId, RunningRequest>,
    ) -> Result<()> {
        self.catch_up(scheduler);
        while self.batch.num_tokens() > 0 {
            self.step(requests)?;
            self.batch.clear();
            for drafted in self.sequences.iter_mut().filter(|drafted| drafted.is_open) {
                let seq = &scheduler.group(drafted.group).sequences[drafted.index];
                let pos = drafted.last_pos();
                let last = drafted.drafts.last().copied();
                let last = last.expect("invariant: an open sequence has got a draft in the step before");
                self.batch.push(&[last], blocks_of(seq), pos, pos, scheduler.pool().cache_block_len());
                if scheduler.is_long(seq) {
                    self.batch.shift_rope_rows(self.batch.num_tokens() - 1, self.compute.first_long_row);
                }
                drafted.row = self.batch.logit_rows.len() - 1;
            }
        }
        Ok(())
    }

    /// Fills the batch with what is not computed of the sequences, the first ones first, as much as a step takes. Of what a step computes
    /// nothing is read in it but what it has of the same sequence: who shares a block with one that comes first waits for the next.
    fn catch_up(&mut self, scheduler: &Scheduler) {
        self.batch.clear();
        let (pool, block_size) = (scheduler.pool(), scheduler.pool().cache_block_len());
        let mut num_left = self.max_step_tokens;
        let sequence = |of: &Drafted| &scheduler.group(of.group).sequences[of.index];
        let starts: Vec<usize> = self.sequences.iter().map(|of| self.num_computed(pool, sequence(of))).collect();
        for (idx, start) in starts.into_iter().enumerate() {
            let seq = sequence(&self.sequences[idx]);
            if self.num_computed(pool, seq) != start {
                continue;
            }
            let len = seq.token_ids.len();
            let end = len.min(start + num_left);
            let tokens = &seq.token_ids[start..end];
            // Of a draft at each position up to the last but one keys and values are computed.
            let most = (self.max_len + 1).saturating_sub(len).min(self.sequences[idx].most);
            if most == 0 || tokens.is_empty() || tokens.iter().any(|&token| token as usize >= self.vocab_size) {
                continue;
            }
            let (blocks, is_open, first_token) = (blocks_of(seq), end == len, self.batch.num_tokens());
            if tokens.len() <= MAX_SINGLE_TOKENS {
                // Logits of each, as of decodes; the last are asked for.
                for (pos, &token) in (start..).zip(tokens) {
                    self.batch.push(&[token], blocks, pos, pos, block_size);
                }
            } else {
                self.batch.push(tokens, blocks, start, if is_open { end - 1 } else { end }, block_size);
            }
            if scheduler.is_long(seq) {
                self.batch.shift_rope_rows(first_token, self.compute.first_long_row);
            }
            num_left -= tokens.len();
            self.count_computed(pool, seq, start..end);
            let drafted = &mut self.sequences[idx];
            (drafted.len, drafted.most, drafted.is_open) = (len, most, is_open);
            drafted.row = self.batch.logit_rows.len().saturating_sub(1);
        }
    }

    /// Computes the batch, and gives each open sequence the draft that comes of its row of logits.
    fn step(&mut self, requests: &mut BTreeMap<GroupId, RunningRequest>) -> Result<()> {
        self.batch.find_shared_prefixes();
        let wanted = if self.batch.logit_rows.is_empty() { Wanted::Nothing } else { Wanted::Logits };
        let Compute { backend, model, ws, kv, batch, answers: [answers, _], .. } = &mut self.compute;
        backend.upload(batch, &self.batch)?;
        let mut step = Step { backend, ws, kv, batch };
        backend.run(batch, &mut || model.forward(&mut step, wanted))?;
        let mut seen = Vec::new();
        for drafted in self.sequences.iter_mut().filter(|drafted| drafted.is_open) {
            let request = requests.get_mut(&drafted.group).expect("invariant: a scheduled group has its request");
            seen.push(match drafted.drafts.last() {
                None => request.seen((drafted.last_pos(), drafted.index)),
                Some(&last) => drafted.ahead.get_or_insert_with(|| request.ahead(drafted.index)).push(last),
            });
        }
        let mut rows: Vec<SampleRow<'_>> = Vec::new();
        for (drafted, seen) in self.sequences.iter().filter(|drafted| drafted.is_open).zip(&seen) {
            requests[&drafted.group].ask(&mut rows, drafted.row, (drafted.last_pos(), drafted.index), seen);
        }
        backend.sample(answers, &ws.logits, &rows)?;
        let results = backend.read_answers(answers)?;
        for (drafted, seen) in self.sequences.iter_mut().filter(|drafted| drafted.is_open).zip(&seen) {
            let sampled = results.take_next().next().expect("invariant: a backend answers every row");
            let token_id = sampled.token_id;
            if seen.is_void || token_id as usize >= self.vocab_size {
                drafted.is_open = false;
                continue;
            }
            drafted.drafts.push(token_id);
            // Of what is no number nothing is expected.
            drafted.probability *= sampled.logprob.exp().max(0.0);
            drafted.num_expected += drafted.probability;
            drafted.is_open = drafted.drafts.len() < drafted.most
                && self.trust.judge(drafted.probability) >= LEAST_PROBABILITY
                && !requests[&drafted.group].ends_with(token_id);
        }
        Ok(())
    }

    /// Tokens of a sequence whose keys and values are computed, but for the last, whose logits are wanted.
    fn num_computed(&self, pool: &BlockPool, seq: &Sequence) -> usize {
        let (blocks, block_size) = (blocks_of(seq), pool.cache_block_len());
        let full = blocks.iter().take_while(|&&id| self.num_tokens(pool, id) == block_size).count();
        let rest = blocks.get(full).map_or(0, |&id| self.num_tokens(pool, id));
        (full * block_size + rest).min(seq.token_ids.len() - 1)
    }

    /// Of a block.
    fn num_tokens(&self, pool: &BlockPool, id: BlockId) -> usize {
        let ComputedBlock { num_allocations, num_tokens } = self.computed[id as usize];
        if num_allocations == pool.num_allocations(id) { num_tokens } else { 0 }
    }

    /// Counts some tokens of a sequence, before which all are computed.
    fn count_computed(&mut self, pool: &BlockPool, seq: &Sequence, Range { start, end }: Range<usize>) {
        if start == end {
            return;
        }
        let block_size = pool.cache_block_len();
        let touched = start / block_size..end.div_ceil(block_size);
        for (idx, &id) in blocks_of(seq).iter().enumerate().take(touched.end).skip(touched.start) {
            let num_tokens = (end - idx * block_size).min(block_size).max(self.num_tokens(pool, id));
            self.computed[id as usize] = ComputedBlock { num_allocations: pool.num_allocations(id), num_tokens };
        }
    }
}

/// A sequence's blocks, which are for all layers: beside a draft model none are given back early.
fn blocks_of(seq: &Sequence) -> &[BlockId] {
    let table = seq.blocks.table(0);
    assert_eq!((table.num_released(), seq.blocks.table(1).blocks().len()), (0, 0), "invariant: so it is loaded");
    table.blocks()
}
