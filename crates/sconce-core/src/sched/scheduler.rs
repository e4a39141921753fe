//! [`Scheduler`]: shares the token budget and the KV blocks among the requests, oldest first.

use std::collections::BTreeMap;

use super::plan::{ScheduledChunk, StepPlan};
use super::sequence::{GroupId, Sequence, SequenceGroup, SequenceStatus, UNREAD};
use crate::kv::{BlockPool, CachedPrefix, MAX_GROUPS, PrefixId, SequenceBlocks};

/// Limits of one step.
#[derive(Debug, Clone, Copy)]
pub struct SchedulerConfig {
    /// Most tokens computed in one step.
    pub max_num_batched_tokens: usize,
    /// Most sequences that hold blocks.
    pub max_num_seqs: usize,
    /// Most positions whose logits a prompt may ask for in one step, beyond each sequence's last.
    pub max_prompt_logits: usize,
    /// Sequences of more tokens are long: all of their keys and values are other ones than a short sequence's of the same tokens.
    /// `None`: all are alike.
    pub short_len: Option<usize>,
}

impl SchedulerConfig {
    /// Whether a sequence of so many tokens is long.
    fn is_long(&self, len: usize) -> bool {
        self.short_len.is_some_and(|short_len| len > short_len)
    }

    /// What the first block of a sequence of so many tokens is found after, which goes through this adapter.
    fn root(&self, adapter: u32, len: usize) -> PrefixId {
        PrefixId::empty_of(2 * u64::from(adapter) + u64::from(self.is_long(len)))
    }

    /// Drafts that may follow so many tokens: a short sequence's are computed as a short one's.
    fn max_drafts(&self, len: usize) -> usize {
        self.short_len.and_then(|short_len| short_len.checked_sub(len)).unwrap_or(usize::MAX)
    }
}

/// What admission decides about a waiting sequence.
enum Admission {
    /// It runs. Full blocks that a sibling or the prefix cache holds are shared already.
    Run,
    /// It waits for a sibling that is computing what both begin with.
    AfterSibling,
    /// There is no room; nobody younger is admitted either.
    NoRoom,
}

/// Computed blocks with which a waiting sequence can begin.
enum Prefix {
    /// Those of a sibling, so many tokens.
    Sibling(usize, usize),
    /// Those of the prefix cache.
    Cached(CachedPrefix),
}

/// Shares the token budget and the KV blocks among the requests.
///
/// A sequence's priority is its (group, index): the oldest always gets what it needs, taking blocks from the youngest,
/// which is recomputed later. So the oldest always ends, and nobody starves, as long as the pool holds one sequence of
/// the greatest length.
///
/// A sequence that has become long gives up its blocks too, and is computed anew in its turn.
///
/// Beams go on together or not at all: one whose logits have been taken keeps its blocks, and gives them up when
/// nothing else can run. However small the pool, a search goes on, if need be beam by beam.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    pool: BlockPool,
    groups: BTreeMap<GroupId, SequenceGroup>,
    num_running: usize,
}

impl Scheduler {
    /// A scheduler with no requests.
    pub fn new(config: SchedulerConfig, pool: BlockPool) -> Self {
        assert!(
            config.max_num_batched_tokens >= config.max_num_seqs,
            "invariant: every running sequence can decode in one step"
        );
        Self { config, pool, groups: BTreeMap::new(), num_running: 0 }
    }

    /// Adds a request, younger than all that are there.
    pub fn add(&mut self, id: GroupId, group: SequenceGroup) {
        assert!(self.groups.last_key_value().is_none_or(|(&last, _)| last < id));
        self.groups.insert(id, group);
    }

    /// The block pool.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// A request that has not been removed.
    pub fn group(&self, id: GroupId) -> &SequenceGroup {
        &self.groups[&id]
    }

    /// A sequence that goes on; `None` if it has ended, or its request has been removed.
    pub fn live_sequence(&self, id: GroupId, idx: usize) -> Option<&Sequence> {
        let seq = self.groups.get(&id)?.sequences.get(idx)?;
        (seq.status != SequenceStatus::Finished).then_some(seq)
    }

    /// Whether a sequence has become long: its keys and values are other ones than a short one's.
    pub fn is_long(&self, seq: &Sequence) -> bool {
        self.config.is_long(seq.token_ids.len())
    }

    /// Whether one more token makes a sequence long.
    pub fn becomes_long(&self, seq: &Sequence) -> bool {
        self.config.short_len == Some(seq.token_ids.len())
    }

    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Sequences that hold blocks.
    pub fn num_running(&self) -> usize {
        self.num_running
    }

    /// Sequences that wait for blocks.
    pub fn num_waiting(&self) -> usize {
        let waiting = |g: &SequenceGroup| g.sequences.iter().filter(|s| s.status == SequenceStatus::Waiting).count();
        self.groups.values().map(waiting).sum()
    }

    /// Plans the next step: a token for every running sequence, then prompts with what is left of the budget, oldest first.
    pub fn schedule(&mut self, plan: &mut StepPlan) {
        self.schedule_ahead(plan);
        // Where nothing runs but beams that wait for siblings, these get what the others hold, the youngest's first.
        while plan.chunks.is_empty()
            && let Some((id, idx)) = self.youngest_running()
        {
            self.preempt(id, idx);
            plan.num_preempted += 1;
            self.admit(plan, self.config.max_num_batched_tokens, self.config.max_prompt_logits);
        }
    }

    /// The same while the step before is under way. What waits for its answers is left as it is, so that there may be
    /// nothing to compute.
    pub fn schedule_ahead(&mut self, plan: &mut StepPlan) {
        plan.clear();
        let mut running = self.sequences_with(SequenceStatus::Running);
        running.retain(|&(id, idx)| self.sequence(id, idx).num_pending() > 0);
        // What is left when every running sequence has its one token: prompts share it.
        let mut extra = self.config.max_num_batched_tokens - running.len();
        let mut prompt_logits = self.config.max_prompt_logits;
        for (id, idx) in running {
            if self.sequence(id, idx).status != SequenceStatus::Running {
                continue; // preempted for an older one
            }
            let pending = self.sequence(id, idx).num_pending();
            let len = self.chunk_len(id, idx, pending.min(1 + extra), &mut prompt_logits);
            if self.make_room((id, idx), len, plan) {
                extra -= len - 1;
                self.push_chunk(plan, id, idx, len);
            }
        }
        if plan.num_preempted == 0 {
            let budget = self.config.max_num_batched_tokens - plan.num_tokens();
            self.admit(plan, budget, prompt_logits);
        }
    }

    /// Admits waiting sequences, oldest first, until the budget, the sequences or the blocks run out.
    fn admit(&mut self, plan: &mut StepPlan, mut budget: usize, mut prompt_logits: usize) {
        for (id, idx) in self.sequences_with(SequenceStatus::Waiting) {
            if budget == 0 || self.num_running == self.config.max_num_seqs {
                return;
            }
            match self.admission(id, idx, plan) {
                Admission::NoRoom => return,
                Admission::AfterSibling => continue,
                Admission::Run => {}
            }
            let pending = self.sequence(id, idx).num_pending();
            let len = self.chunk_len(id, idx, pending.min(budget), &mut prompt_logits);
            self.set_running(id, idx);
            let has_room = self.make_room((id, idx), len, plan);
            assert!(has_room, "invariant: admission found room");
            budget -= len;
            self.push_chunk(plan, id, idx, len);
        }
    }

    /// Decides about a waiting sequence, and shares the computed blocks with which it can begin.
    fn admission(&mut self, id: GroupId, idx: usize, plan: &mut StepPlan) -> Admission {
        let Some(prefix) = self.find_prefix(id, idx) else { return Admission::AfterSibling };
        let (group, pool) = (self.groups.get_mut(&id).expect("invariant: listed"), &mut self.pool);
        let mut num_taken = [0; MAX_GROUPS];
        let prefix_len = match &prefix {
            Prefix::Sibling(_, len) => *len,
            Prefix::Cached(found) => {
                for (at, (num, &of)) in num_taken.iter_mut().zip(pool.groups()).enumerate() {
                    let (blocks, num_unseen) = found.blocks(at, of);
                    *num = blocks[num_unseen..].iter().filter(|&&id| pool.is_free(id)).count();
                }
                found.len()
            }
        };
        // All of it that is ever needed at once must fit, and one block more for each that runs: admitted too early, it would only be
        // preempted.
        let (num_tokens, step_tokens) = (group.sequences[idx].token_ids.len(), self.config.max_num_batched_tokens);
        let needed = pool.groups().iter().zip(num_taken).map(|(of, num_taken)| {
            let num_new = of.blocks_for(num_tokens) - prefix_len / of.block_len;
            (num_taken + num_new).min(of.most_blocks(num_tokens, step_tokens))
        });
        let needed: usize = needed.sum();
        let reserve = self.num_running.min(pool.num_total().saturating_sub(needed));
        if pool.num_free() < needed + reserve {
            return Admission::NoRoom;
        }
        let blocks = match prefix {
            Prefix::Sibling(sibling, len) => group.sequences[sibling].blocks.fork(pool, len),
            Prefix::Cached(found) => SequenceBlocks::of_cached(pool, &found),
        };
        group.sequences[idx].blocks = blocks;
        group.sequences[idx].num_computed_tokens = prefix_len;
        if group.num_cached_tokens.is_none() {
            group.num_cached_tokens = Some(prefix_len);
            plan.num_cached_tokens += prefix_len;
        }
        Admission::Run
    }

    /// The longest prefix of a waiting sequence that is computed. `None`: a sibling will soon have computed more of it.
    fn find_prefix(&mut self, id: GroupId, idx: usize) -> Option<Prefix> {
        let group = &self.groups[&id];
        let unit = self.pool.prefix_unit();
        let token_ids = &group.sequences[idx].token_ids;
        // Not the last token, whose logits are wanted, and no position of the prompt whose logits are.
        let most = (token_ids.len() - 1).min(group.wanted_prompt_logits().unwrap_or(usize::MAX));
        let (mut best, mut soon) = (None, 0);
        for (sibling, seq) in group.sequences.iter().enumerate() {
            if seq.status != SequenceStatus::Running || self.is_long(seq) != self.config.is_long(token_ids.len()) {
                continue;
            }
            let len = group.common_len(idx, sibling).min(most) / unit * unit;
            // A sibling far beyond the prefix can have given back what is still seen from there.
            let has_all = seq.blocks.has_seen_from(&self.pool, len);
            if seq.num_computed_tokens < len {
                soon = soon.max(len);
            } else if has_all && best.is_none_or(|(_, best_len)| len > best_len) {
                best = Some((sibling, len));
            }
        }
        let found = self.pool.find_prefix(self.config.root(group.adapter, token_ids.len()), &token_ids[..most]);
        let cached_len = found.len();
        match best {
            _ if soon > cached_len.max(best.map_or(0, |(_, len)| len)) => None,
            Some((sibling, len)) if len > cached_len => Some(Prefix::Sibling(sibling, len)),
            _ => Some(Prefix::Cached(found)),
        }
    }

    /// Shortens a chunk whose prompt logits are wanted to what one step can give.
    fn chunk_len(&self, id: GroupId, idx: usize, len: usize, prompt_logits: &mut usize) -> usize {
        let group = &self.groups[&id];
        let Some(from) = group.wanted_prompt_logits() else { return len };
        let start = group.sequences[idx].num_computed_tokens;
        // The chunk's last position is within every sequence's share.
        let before = from.saturating_sub(start);
        let wanted = len.saturating_sub(before);
        let given = wanted.min(*prompt_logits + 1);
        *prompt_logits -= given.saturating_sub(1);
        len - (wanted - given)
    }

    /// Reserves blocks for `len` more tokens, taking them from the youngest if need be. False if the sequence itself
    /// was the youngest and had to give way.
    fn make_room(&mut self, (id, idx): (GroupId, usize), len: usize, plan: &mut StepPlan) -> bool {
        loop {
            let seq = &mut self.groups.get_mut(&id).expect("invariant: listed").sequences[idx];
            let start = seq.num_computed_tokens;
            if seq.blocks.num_missing(&self.pool, start, len) <= self.pool.num_free() {
                plan.copies.extend(seq.blocks.reserve(&mut self.pool, start, len));
                return true;
            }
            let victim = self.youngest_running().expect("invariant: the sequence that needs room is running");
            self.preempt(victim.0, victim.1);
            plan.num_preempted += 1;
            if victim == (id, idx) {
                return false;
            }
        }
    }

    fn youngest_running(&self) -> Option<(GroupId, usize)> {
        let last = |g: &SequenceGroup| g.sequences.iter().rposition(|s| s.status == SequenceStatus::Running);
        self.groups.iter().rev().find_map(|(&id, g)| last(g).map(|idx| (id, idx)))
    }

    fn preempt(&mut self, id: GroupId, idx: usize) {
        let is_computed = self.sequence(id, idx).num_pending() == 0;
        self.leave_running(id, idx, if is_computed { SequenceStatus::Parked } else { SequenceStatus::Waiting });
    }

    fn push_chunk(&self, plan: &mut StepPlan, id: GroupId, idx: usize, len: usize) {
        let group = &self.groups[&id];
        let seq = &group.sequences[idx];
        let (start, end) = (seq.num_computed_tokens, seq.num_computed_tokens + len);
        let is_last = end == seq.token_ids.len();
        let mut logits_from = if is_last { end - 1 } else { end };
        if let Some(from) = group.wanted_prompt_logits() {
            logits_from = logits_from.min(from.max(start));
        }
        plan.chunks.push(ScheduledChunk { group: id, index: idx, start, len, num_drafts: 0, logits_from });
    }

    /// Counts the plan's tokens as computed, lets full blocks be found by others, and gives back those that no later
    /// token sees. Call when the step has been launched: steps are carried out in order, so that whoever gets a block
    /// next writes it after this step has read it.
    pub fn commit(&mut self, plan: &StepPlan) {
        for chunk in &plan.chunks {
            let group = self.groups.get_mut(&chunk.group).expect("invariant: the group has not been removed");
            if let Some(from) = group.prompt_logits_from.as_mut().filter(|_| chunk.num_logits() > 0) {
                *from = (*from).max(chunk.end());
            }
            let seq = &mut group.sequences[chunk.index];
            seq.num_computed_tokens = chunk.end_of_own();
            // A block is found by its tokens: one with an unread token is held until that is read.
            let num_known = chunk.end_of_own().min(seq.num_read());
            let root = self.config.root(group.adapter, seq.token_ids.len());
            seq.blocks.cache_full_blocks(&mut self.pool, root, &seq.token_ids[..num_known]);
            seq.blocks.release_unseen(&mut self.pool, num_known);
        }
    }

    /// Adds to a sequence the token that the step under way samples from row `row` of its logits, before it is known. It must not
    /// [become long](Scheduler::becomes_long) by it.
    pub fn push_unread(&mut self, id: GroupId, idx: usize, row: usize) {
        assert!(!self.becomes_long(self.sequence(id, idx)), "invariant: what is computed anew is read first");
        let seq = self.sequence_mut(id, idx);
        assert_eq!(seq.unread_row, None, "invariant: a step is read before the next but one is planned");
        seq.token_ids.push(UNREAD);
        seq.unread_row = Some(row);
    }

    /// Adds a sampled token to a sequence; where it is there unread, says which it is. A sequence that becomes long by it loses its
    /// blocks, which are a short one's.
    pub fn push_token(&mut self, id: GroupId, idx: usize, token_id: u32) {
        if self.becomes_long(self.sequence(id, idx)) && self.sequence(id, idx).unread_row.is_none() {
            self.leave_running(id, idx, SequenceStatus::Waiting);
        }
        let group = self.groups.get_mut(&id).expect("invariant: the group has not been removed");
        let seq = &mut group.sequences[idx];
        if seq.unread_row.take().is_none() {
            return seq.token_ids.push(token_id);
        }
        *seq.token_ids.last_mut().expect("invariant: it has an unread token") = token_id;
        // The step that computes it may be under way: later ones can begin with the block that it fills.
        let root = self.config.root(group.adapter, seq.token_ids.len());
        seq.blocks.cache_full_blocks(&mut self.pool, root, &seq.token_ids[..seq.num_computed_tokens]);
    }

    /// Tokens that a step can have beside those of a plan.
    pub fn num_tokens_left(&self, plan: &StepPlan) -> usize {
        self.config.max_num_batched_tokens - plan.num_tokens()
    }

    /// Takes blocks for drafts behind chunk `at` of a plan, which is complete and has there the last token of a sequence alone. Returns
    /// for how many: at most `most`, as there are tokens left in the step, and blocks that are free, and none that would make a short
    /// sequence long. Nobody gives way to a draft:
    /// [`Scheduler::add_drafts`] is to be told of all that there are, and gives back what they do not need.
    pub fn reserve_drafts(&mut self, plan: &StepPlan, at: usize, most: usize) -> usize {
        let chunk = &plan.chunks[at];
        let num_left = self.num_tokens_left(plan).min(self.config.max_drafts(chunk.end()));
        let seq = &mut self.groups.get_mut(&chunk.group).expect("invariant: a plan's groups are there").sequences
            [chunk.index];
        assert!(
            chunk.len == 1 && chunk.end() == seq.token_ids.len() && seq.unread_row.is_none(),
            "invariant: drafts follow what is known"
        );
        let has_room =
            |num: &usize| seq.blocks.num_missing(&self.pool, chunk.start, chunk.len + num) <= self.pool.num_free();
        let num_drafts = (0..=most.min(num_left)).rev().find(has_room).unwrap_or(0);
        let copy = seq.blocks.reserve(&mut self.pool, chunk.start, chunk.len + num_drafts).next();
        assert_eq!(copy, None, "invariant: the chunk's own tokens have their blocks");
        num_drafts
    }

    /// Adds drafts to chunk `at` of a plan, as many as there is room for. Their blocks are given back before the next plan.
    pub fn add_drafts(&mut self, plan: &mut StepPlan, at: usize, drafts: &[u32]) {
        let num_drafts = self.reserve_drafts(plan, at, drafts.len());
        let chunk = &mut plan.chunks[at];
        let seq = self.sequence_mut(chunk.group, chunk.index);
        seq.drafts.clear();
        seq.drafts.extend_from_slice(&drafts[..num_drafts]);
        (chunk.len, chunk.num_drafts) = (chunk.len + num_drafts, num_drafts);
        let end = chunk.end();
        let seq = &mut self.groups.get_mut(&chunk.group).expect("invariant: found before").sequences[chunk.index];
        seq.blocks.release_behind(&mut self.pool, end);
    }

    /// Forgets a sequence's drafts, and gives back the blocks that were for them alone: the step that computed them has been read.
    pub fn clear_drafts(&mut self, id: GroupId, idx: usize) {
        let seq = &mut self.groups.get_mut(&id).expect("invariant: the group has not been removed").sequences[idx];
        seq.drafts.clear();
        seq.blocks.release_behind(&mut self.pool, seq.num_computed_tokens);
    }

    /// Whether the draft of `chunk` that was computed at `pos` is the token that its sequence has there: then it counts as computed.
    pub fn accept_draft(&mut self, chunk: &ScheduledChunk, pos: usize) -> bool {
        let group = self.groups.get_mut(&chunk.group).expect("invariant: the group has not been removed");
        let seq = &mut group.sequences[chunk.index];
        let draft = seq.drafts[pos - chunk.end_of_own()];
        if seq.num_computed_tokens != pos || seq.token_ids.get(pos) != Some(&draft) {
            return false;
        }
        seq.num_computed_tokens = pos + 1;
        let root = self.config.root(group.adapter, seq.token_ids.len());
        seq.blocks.cache_full_blocks(&mut self.pool, root, &seq.token_ids[..pos + 1]);
        seq.blocks.release_unseen(&mut self.pool, pos + 1);
        true
    }

    /// Replaces the group's sequences: the i-th continues what `parents[i]` was. It has its tokens, and shares its blocks
    /// while there is a place among the running. Blocks that no child shares are free at once.
    ///
    /// A parent that has been computed to its end shares all it has: the first child to write its last block copies it.
    pub fn branch(&mut self, id: GroupId, parents: &[usize]) {
        let group = self.groups.get_mut(&id).expect("invariant: the group has not been removed");
        let mut old = std::mem::take(&mut group.sequences);
        self.num_running -= old.iter().filter(|s| s.status == SequenceStatus::Running).count();
        for &parent in parents {
            let parent = &old[parent];
            assert_eq!(parent.unread_row, None, "invariant: what branches is read first");
            let mut child = Sequence::new(parent.token_ids.clone());
            if parent.status == SequenceStatus::Running && self.num_running < self.config.max_num_seqs {
                child.blocks = parent.blocks.fork(&mut self.pool, parent.num_computed_tokens);
                child.num_computed_tokens = parent.num_computed_tokens;
                child.status = SequenceStatus::Running;
                self.num_running += 1;
            }
            group.sequences.push(child);
        }
        old.iter_mut().for_each(|parent| parent.blocks.release(&mut self.pool));
    }

    /// Ends a sequence; its blocks are free at once.
    pub fn finish(&mut self, id: GroupId, idx: usize) {
        self.leave_running(id, idx, SequenceStatus::Finished);
    }

    /// Removes a request, ended or not; its blocks are free at once.
    pub fn remove(&mut self, id: GroupId) {
        for idx in 0..self.group(id).sequences.len() {
            self.finish(id, idx);
        }
        self.groups.remove(&id);
    }

    fn leave_running(&mut self, id: GroupId, idx: usize, status: SequenceStatus) {
        let seq = &mut self.groups.get_mut(&id).expect("invariant: the group has not been removed").sequences[idx];
        self.num_running -= usize::from(seq.status == SequenceStatus::Running);
        seq.blocks.release(&mut self.pool);
        seq.drafts.clear();
        seq.num_computed_tokens = 0;
        seq.status = status;
    }

    fn set_running(&mut self, id: GroupId, idx: usize) {
        self.sequence_mut(id, idx).status = SequenceStatus::Running;
        self.num_running += 1;
    }

    /// All sequences of a status, oldest first.
    fn sequences_with(&self, status: SequenceStatus) -> Vec<(GroupId, usize)> {
        let of_group = |(&id, g): (&GroupId, &SequenceGroup)| {
            let matching = g.sequences.iter().enumerate().filter(|(_, s)| s.status == status);
            matching.map(|(idx, _)| (id, idx)).collect::<Vec<_>>()
        };
        self.groups.iter().flat_map(of_group).collect()
    }

    fn sequence(&self, id: GroupId, idx: usize) -> &Sequence {
        &self.groups[&id].sequences[idx]
    }

    fn sequence_mut(&mut self, id: GroupId, idx: usize) -> &mut Sequence {
        &mut self.groups.get_mut(&id).expect("invariant: the group has not been removed").sequences[idx]
    }
}
