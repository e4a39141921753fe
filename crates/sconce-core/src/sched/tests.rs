//! The scheduler against a simulated cache: every slot remembers which token was written to it, and whether of a long sequence.

mod beams;
mod groups;
mod long;
mod random;

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::kv::{BlockId, BlockPool, LayerGroup};

/// A small linear congruential generator, so that a failing seed can be run again.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % bound
    }
}

struct Request {
    prompt: Vec<u32>,
    kind: Kind,
    max_tokens: usize,
    forked: bool,
    /// Whether its next step needs to know the token before.
    waits: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// So many sequences, each of which goes on by itself.
    Sampled(usize),
    /// Beams of this width, of which `num_ready` have given their logits.
    Beams { width: usize, num_ready: usize },
}

/// What a slot of the cache holds: a token, which adapter its sequence went through and whether it was long, and for which group of layers
/// it is.
type Written = (u32, (u32, bool), usize);

/// Runs steps as the engine does, on a cache of such slots instead of keys and values.
struct Simulation {
    scheduler: Scheduler,
    config: SchedulerConfig,
    cache: Vec<Written>,
    /// Slots of a block.
    block_slots: usize,
    requests: BTreeMap<GroupId, Request>,
    plan: StepPlan,
    num_steps: usize,
    rng: Lcg,
    /// Tokens of beams, each of which is different.
    last_token: u32,
    num_cached_tokens: usize,
    /// Whether a step is planned before the one before it is read, where it can be.
    runs_ahead: bool,
    /// One sequence in so many ends with a token, which nobody can know before; 0: none.
    ends: usize,
    /// The step that has not been read.
    under_way: Option<StepPlan>,
    /// What requests have said, prompt and output.
    said: Vec<Vec<u32>>,
    num_ahead: usize,
    num_in_vain: usize,
    /// Most drafts of a sequence in a step, some of which are right.
    drafts: usize,
    num_accepted: usize,
    num_tokens: usize,
    /// Requests go through so many adapters, or none, by their numbers.
    num_adapters: u32,
}

const BLOCK_SIZE: usize = 4;

/// Of steps of so many tokens and sequences. All sequences are alike, and every token sees all before it.
fn limits(max_num_batched_tokens: usize, max_num_seqs: usize) -> SchedulerConfig {
    SchedulerConfig { max_num_batched_tokens, max_num_seqs, max_prompt_logits: 0, short_len: None }
}

/// So many blocks of layers whose queries see so many tokens.
fn pool_of(num_blocks: usize, window: Option<usize>) -> BlockPool {
    BlockPool::new(num_blocks, &[LayerGroup { block_len: BLOCK_SIZE, window }])
}

impl Simulation {
    fn new(num_blocks: usize, config: SchedulerConfig) -> Self {
        Self::with_pool(pool_of(num_blocks, None), config)
    }

    fn with_pool(pool: BlockPool, config: SchedulerConfig) -> Self {
        let (num_blocks, block_slots) = (pool.num_total(), pool.prefix_unit());
        Self {
            scheduler: Scheduler::new(config, pool),
            config,
            cache: vec![(u32::MAX, (0, false), 0); num_blocks * block_slots],
            block_slots,
            requests: BTreeMap::new(),
            plan: StepPlan::default(),
            num_steps: 0,
            rng: Lcg(num_blocks as u64),
            last_token: 1 << 30,
            num_cached_tokens: 0,
            runs_ahead: false,
            ends: 0,
            under_way: None,
            said: Vec::new(),
            num_ahead: 0,
            num_in_vain: 0,
            drafts: 0,
            num_accepted: 0,
            num_tokens: 0,
            num_adapters: 0,
        }
    }

    fn add(&mut self, id: GroupId, prompt_len: usize, n: usize, max_tokens: usize) {
        self.add_kind(id, prompt_len, Kind::Sampled(n), max_tokens);
    }

    fn add_kind(&mut self, id: GroupId, prompt_len: usize, kind: Kind, max_tokens: usize) {
        self.add_prompt(id, (0..prompt_len).map(|pos| prompt_token(id, pos)).collect(), kind, max_tokens);
    }

    fn add_prompt(&mut self, id: GroupId, prompt: Vec<u32>, kind: Kind, max_tokens: usize) {
        let adapter = id as u32 % (self.num_adapters + 1);
        self.scheduler.add(id, SequenceGroup { adapter, ..SequenceGroup::new(prompt.clone()) });
        let waits = self.ends > 0 && self.rng.below(8) == 0;
        self.requests.insert(id, Request { prompt, kind, max_tokens, forked: false, waits });
    }

    /// One step; returns whether anything was computed or read.
    fn step(&mut self) -> bool {
        let before = self.under_way.take();
        let plan = self.launch(before.as_ref());
        let progressed = before.is_some() || !plan.chunks.is_empty();
        if let Some(before) = before {
            self.read(&before);
        }
        if self.runs_ahead && !plan.chunks.is_empty() && self.run_ahead(&plan) {
            self.under_way = Some(plan);
        } else {
            self.read(&plan);
            self.plan = plan;
        }
        self.check_holders();
        self.num_steps += 1;
        progressed
    }

    /// Plans a step and carries it out: whatever is launched later comes after it.
    fn launch(&mut self, before: Option<&StepPlan>) -> StepPlan {
        let mut plan = StepPlan::default();
        match before {
            Some(_) => self.scheduler.schedule_ahead(&mut plan),
            None => {
                self.scheduler.schedule(&mut plan);
                self.draft(&mut plan);
            }
        }
        assert!(plan.num_tokens() <= self.config.max_num_batched_tokens);
        assert!(self.scheduler.num_running() <= self.config.max_num_seqs);
        for copy in &plan.copies {
            let [src, dst] = [copy.src, copy.dst].map(|id| id as usize * self.block_slots);
            self.cache.copy_within(src..src + self.block_slots, dst);
        }
        self.write_chunks(&plan, before);
        self.check_contexts(&plan);
        self.scheduler.commit(&plan);
        self.num_cached_tokens += plan.num_cached_tokens;
        self.num_tokens += plan.num_tokens();
        self.num_ahead += usize::from(before.is_some() && !plan.chunks.is_empty());
        plan
    }

    /// Takes what a step has sampled.
    fn read(&mut self, plan: &StepPlan) {
        for chunk in &plan.chunks {
            let is_live = |sim: &Self| sim.scheduler.live_sequence(chunk.group, chunk.index).is_some();
            if !is_live(self) {
                self.num_in_vain += 1;
                continue;
            }
            self.sample(chunk);
            for pos in chunk.end_of_own()..chunk.end() {
                if is_live(self) && self.scheduler.accept_draft(chunk, pos) {
                    self.num_accepted += 1;
                    self.sample(chunk);
                }
            }
            if chunk.num_drafts > 0 && is_live(self) {
                self.scheduler.clear_drafts(chunk.group, chunk.index);
            }
        }
    }

    /// Drafts for sequences whose last token is computed: right ones, and perhaps a wrong one behind them, which no sequence has.
    fn draft(&mut self, plan: &mut StepPlan) {
        for at in 0..plan.chunks.len() {
            let chunk = plan.chunks[at];
            let (id, idx, request) = (chunk.group, chunk.index, &self.requests[&chunk.group]);
            let len = self.scheduler.group(id).sequences[idx].token_ids.len();
            let is_sampled = matches!(request.kind, Kind::Sampled(_)) && request.forked;
            if self.drafts == 0 || !is_sampled || chunk.len != 1 || chunk.end() != len {
                continue;
            }
            let most = (request.prompt.len() + max_tokens(request, idx)).saturating_sub(len + 1).min(self.drafts);
            let num_right = self.rng.below(most + 1);
            let right = (len..len + num_right).map(|pos| generated_token(id, idx, pos));
            let drafts: Vec<u32> = right.chain([UNREAD - 1]).take(most).collect();
            self.scheduler.add_drafts(plan, at, &drafts);
        }
    }

    /// Lets the sequences of a step go on with tokens that are not read, if all of them can.
    fn run_ahead(&mut self, plan: &StepPlan) -> bool {
        let mut unread = Vec::new();
        for (row, (chunk, pos)) in plan.logit_positions().enumerate() {
            if self.scheduler.live_sequence(chunk.group, chunk.index).is_none() {
                continue;
            }
            let request = &self.requests[&chunk.group];
            let Kind::Sampled(n) = request.kind else { return false };
            if request.waits || (n > 1 && !request.forked) {
                return false;
            }
            if pos + 2 - request.prompt.len() < max_tokens(request, chunk.index) {
                if self.scheduler.becomes_long(&self.scheduler.group(chunk.group).sequences[chunk.index]) {
                    return false;
                }
                unread.push((chunk.group, chunk.index, row));
            }
        }
        unread.into_iter().for_each(|(id, idx, row)| self.scheduler.push_unread(id, idx, row));
        true
    }

    /// The token that stands at a position, whether the scheduler knows it or not.
    fn token(&self, id: GroupId, idx: usize, pos: usize) -> u32 {
        let seq = &self.scheduler.group(id).sequences[idx];
        let token = seq.token_ids.iter().chain(&seq.drafts).nth(pos).copied().unwrap();
        if token == UNREAD { generated_token(id, idx, pos) } else { token }
    }

    /// Whether a sequence of so many tokens is long.
    fn is_long(&self, len: usize) -> bool {
        self.config.short_len.is_some_and(|short_len| len > short_len)
    }

    /// Where a group of layers has a position of a sequence.
    fn slot(&self, chunk: &ScheduledChunk, pos: usize, group: usize) -> usize {
        let seq = &self.scheduler.group(chunk.group).sequences[chunk.index];
        let block_len = self.scheduler.pool().group(group).block_len;
        seq.blocks.table(group).blocks()[pos / block_len] as usize * self.block_slots + pos % block_len
    }

    fn write_chunks(&mut self, plan: &StepPlan, before: Option<&StepPlan>) {
        for chunk in &plan.chunks {
            let seq = &self.scheduler.group(chunk.group).sequences[chunk.index];
            if let Some(row) = seq.unread_row {
                let (from, pos) = before.unwrap().logit_positions().nth(row).unwrap();
                assert_eq!((from.group, from.index, pos), (chunk.group, chunk.index, chunk.start - 1));
                assert_eq!((chunk.len, chunk.end()), (1, seq.token_ids.len()));
            }
            let kind = (self.scheduler.group(chunk.group).adapter, self.scheduler.is_long(seq));
            for group in 0..self.scheduler.pool().groups().len() {
                for pos in chunk.start..chunk.end() {
                    let slot = self.slot(chunk, pos, group);
                    self.cache[slot] = (self.token(chunk.group, chunk.index, pos), kind, group);
                }
            }
        }
    }

    fn check_contexts(&self, plan: &StepPlan) {
        for chunk in &plan.chunks {
            let seq = &self.scheduler.group(chunk.group).sequences[chunk.index];
            assert_eq!(chunk.start, seq.num_computed_tokens);
            // A draft's place is the end of a sequence of its own.
            let is_long = self.is_long(seq.token_ids.len());
            assert_eq!(self.is_long(chunk.end().max(seq.token_ids.len())), is_long, "{chunk:?}");
            let kind = (self.scheduler.group(chunk.group).adapter, is_long);
            for (group, of) in self.scheduler.pool().groups().iter().enumerate() {
                let first = of.first_visible(chunk.start);
                assert!(seq.blocks.table(group).num_released() * of.block_len <= first, "{chunk:?}");
                for pos in first..chunk.end() {
                    let expected = (self.token(chunk.group, chunk.index, pos), kind, group);
                    assert_eq!(self.cache[self.slot(chunk, pos, group)], expected, "{chunk:?} position {pos}");
                }
            }
        }
    }

    /// Whether the pool counts as used just the blocks that some table holds, and no table holds more than it needs.
    fn check_holders(&self) {
        let pool = self.scheduler.pool();
        let (mut held, mut num_held) = ([BTreeSet::<BlockId>::new(), BTreeSet::new()], 0);
        for &id in self.requests.keys() {
            for seq in &self.scheduler.group(id).sequences {
                for (of, table) in pool.groups().iter().zip(seq.blocks.tables(pool)) {
                    let live = &table.blocks()[table.num_released()..];
                    if let Some(window) = of.window {
                        assert!(live.len() <= of.blocks_for(window + of.block_len - 1), "request {id}: {live:?}");
                    }
                    num_held += live.iter().collect::<BTreeSet<_>>().len();
                    held[table.group()].extend(live);
                }
            }
        }
        // No block is held for two groups.
        let num_all = held.iter().map(BTreeSet::len).sum::<usize>();
        assert!(num_all <= num_held && held[0].is_disjoint(&held[1]));
        assert_eq!(pool.num_used(), num_all);
    }

    fn sample(&mut self, chunk: &ScheduledChunk) {
        let (id, idx) = (chunk.group, chunk.index);
        if chunk.num_logits() == 0 {
            return;
        }
        let request = self.requests.get_mut(&id).unwrap();
        match request.kind {
            Kind::Sampled(n) => {
                let is_first = !std::mem::replace(&mut request.forked, true);
                self.sample_each(id, idx, (is_first && n > 1).then_some(n));
            }
            Kind::Beams { width, num_ready } => {
                let num_ready = num_ready + 1;
                let is_last = num_ready == self.scheduler.group(id).sequences.len();
                request.kind = Kind::Beams { width, num_ready: if is_last { 0 } else { num_ready } };
                if is_last {
                    self.step_beams(id, width);
                }
            }
        }
        if self.scheduler.group(id).is_finished() {
            self.check_output(id);
            self.remove(id);
        }
    }

    fn sample_each(&mut self, id: GroupId, idx: usize, branches: Option<usize>) {
        let mut indices = vec![idx];
        if let Some(n) = branches {
            self.scheduler.branch(id, &vec![0; n]);
            indices = (0..n).collect();
        }
        for idx in indices {
            let request = &self.requests[&id];
            let (max_tokens, prompt_len) = (max_tokens(request, idx), request.prompt.len());
            let len = self.scheduler.group(id).sequences[idx].num_read();
            self.scheduler.push_token(id, idx, generated_token(id, idx, len));
            if len + 1 - prompt_len >= max_tokens || (self.ends > 0 && self.rng.below(self.ends) == 0) {
                self.scheduler.finish(id, idx);
            }
        }
    }

    /// Beams go on as children of random parents, at most `width`, at times fewer.
    fn step_beams(&mut self, id: GroupId, width: usize) {
        let group = self.scheduler.group(id);
        let (num_parents, num_generated) =
            (group.sequences.len(), group.sequences[0].token_ids.len() - group.prompt_len);
        let is_last = num_generated + 1 >= self.requests[&id].max_tokens;
        let num_children = if is_last { 0 } else { width - self.rng.below(2).min(width - 1) };
        let parents: Vec<usize> = (0..num_children).map(|_| self.rng.below(num_parents)).collect();
        self.scheduler.branch(id, &parents);
        for idx in 0..num_children {
            self.last_token += 1;
            self.scheduler.push_token(id, idx, self.last_token);
        }
    }

    fn check_output(&mut self, id: GroupId) {
        let (group, request) = (self.scheduler.group(id), &self.requests[&id]);
        let Kind::Sampled(n) = request.kind else { return };
        assert_eq!(group.sequences.len(), n);
        for (idx, seq) in group.sequences.iter().enumerate() {
            let (prompt, output) = seq.token_ids.split_at(request.prompt.len());
            assert!((1..=max_tokens(request, idx)).contains(&output.len()), "request {id} sequence {idx}");
            let expected = (prompt.len()..).map(|pos| generated_token(id, idx, pos)).take(output.len());
            assert!(prompt == request.prompt && output.iter().copied().eq(expected), "request {id} sequence {idx}");
            self.said.push(seq.token_ids.clone());
        }
    }

    fn remove(&mut self, id: GroupId) {
        self.scheduler.remove(id);
        self.requests.remove(&id);
    }
}

/// Sequences of one request end at different lengths.
fn max_tokens(request: &Request, idx: usize) -> usize {
    request.max_tokens.saturating_sub(idx).max(1)
}

/// A token of a prompt. Prompts are the same for every fourth request, and from the fifth token on for every second.
fn prompt_token(id: GroupId, pos: usize) -> u32 {
    (id as usize % if pos < 4 { 4 } else { 2 } * 4096 + pos) as u32
}

/// A token of an output: no other sequence has the same.
fn generated_token(id: GroupId, idx: usize, pos: usize) -> u32 {
    ((4 + id as usize * 64 + idx) * 4096 + pos) as u32
}

#[test]
fn a_window_keeps_few_blocks_however_long_the_sequence() {
    let mut sim = Simulation::with_pool(pool_of(64, Some(8)), limits(8, 2));
    sim.add(0, 100, 2, 100);
    let mut most = 0;
    while !sim.requests.is_empty() {
        assert!(sim.step());
        most = most.max(sim.scheduler.pool().num_used());
    }
    assert!((4..=6).contains(&most), "a window of 2 blocks, twice, and one more each: {most}");
}

#[test]
fn a_small_pool_preempts_and_still_ends() {
    let config = limits(16, 8);
    let mut sim = Simulation::new(12, config);
    (0..6).for_each(|id| sim.add(id, 6, 2, 30));
    let mut num_preempted = 0;
    while !sim.requests.is_empty() {
        assert!(sim.step());
        num_preempted += sim.plan.num_preempted;
    }
    assert!(num_preempted > 0, "the pool was meant to be too small");
    assert_eq!(sim.scheduler.pool().num_used(), 0);
}

#[test]
fn the_prompt_is_stored_once_for_all_sequences() {
    let config = limits(64, 8);
    let mut sim = Simulation::new(64, config);
    sim.add(0, 32, 8, 20);
    sim.step();
    assert_eq!(sim.scheduler.pool().num_used(), 8);
    sim.step();
    assert_eq!(sim.scheduler.pool().num_used(), 8 + 8, "the prompt's 8 blocks and one block a sequence");
}

#[test]
fn a_prompt_that_is_cached_is_not_computed_again() {
    let config = limits(64, 8);
    let mut sim = Simulation::with_pool(pool_of(32, None).with_prefix_cache(), config);
    let mut check = |id: GroupId, prompt_len: usize, num_cached: usize| {
        let before = sim.num_cached_tokens;
        sim.add(id, prompt_len, 2, 3);
        assert!(sim.step());
        assert_eq!(sim.plan.num_tokens(), prompt_len - num_cached);
        while !sim.requests.is_empty() {
            assert!(sim.step());
        }
        assert_eq!(sim.num_cached_tokens - before, num_cached, "request {id}");
        assert_eq!(sim.scheduler.pool().num_used(), 0);
    };
    check(0, 22, 0);
    check(4, 22, 20);
    check(8, 20, 16); // the last token is computed for its logits
    check(12, 10, 8);
    check(16, 30, 20);
    check(17, 30, 0); // another first block, though the rest is the same as that of
    check(19, 30, 0);
    check(20, 31, 28);
}

#[test]
fn prompt_logits_come_once_and_in_order() {
    let config = SchedulerConfig { max_prompt_logits: 3, ..limits(16, 2) };
    let mut scheduler = Scheduler::new(config, pool_of(16, None));
    let mut group = SequenceGroup::new((0..20).collect());
    group.prompt_logits_from = Some(5);
    scheduler.add(0, group);
    let (mut plan, mut positions) = (StepPlan::default(), Vec::new());
    while positions.last() != Some(&19) {
        scheduler.schedule(&mut plan);
        let chunk = plan.chunks[0];
        assert!(chunk.num_logits() <= 4);
        positions.extend(chunk.logits_from..chunk.end());
        scheduler.commit(&plan);
    }
    assert_eq!(positions, (5..20).collect::<Vec<_>>());
}
