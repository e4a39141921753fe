//! The scheduler against a simulated cache: every slot remembers which token was written to it.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::kv::{BlockId, BlockPool};

/// A small linear congruential generator, so that a failing seed can be run again.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % bound
    }
}

struct Request {
    n: usize,
    max_tokens: usize,
    forked: bool,
}

/// Runs steps as the engine does, on a cache of token ids instead of keys and values.
struct Simulation {
    scheduler: Scheduler,
    config: SchedulerConfig,
    cache: Vec<u32>,
    requests: BTreeMap<GroupId, Request>,
    plan: StepPlan,
    num_steps: usize,
}

const BLOCK_SIZE: usize = 4;

impl Simulation {
    fn new(num_blocks: usize, config: SchedulerConfig) -> Self {
        Self {
            scheduler: Scheduler::new(config, BlockPool::new(num_blocks, BLOCK_SIZE)),
            config,
            cache: vec![u32::MAX; num_blocks * BLOCK_SIZE],
            requests: BTreeMap::new(),
            plan: StepPlan::default(),
            num_steps: 0,
        }
    }

    fn add(&mut self, id: GroupId, prompt_len: usize, n: usize, max_tokens: usize) {
        let prompt = (0..prompt_len).map(|pos| token(id, 0, pos, prompt_len)).collect();
        self.scheduler.add(id, SequenceGroup::new(prompt));
        self.requests.insert(id, Request { n, max_tokens, forked: false });
    }

    /// One step; returns whether anything was computed.
    fn step(&mut self) -> bool {
        let mut plan = std::mem::take(&mut self.plan);
        self.scheduler.schedule(&mut plan);
        assert!(plan.num_tokens() <= self.config.max_num_batched_tokens);
        assert!(self.scheduler.num_running() <= self.config.max_num_seqs);
        for copy in &plan.copies {
            let (src, dst) = (copy.src as usize * BLOCK_SIZE, copy.dst as usize * BLOCK_SIZE);
            self.cache.copy_within(src..src + BLOCK_SIZE, dst);
        }
        self.write_chunks(&plan);
        self.check_contexts(&plan);
        self.scheduler.commit(&plan);
        plan.chunks.iter().for_each(|chunk| self.sample(chunk));
        self.check_holders();
        self.num_steps += 1;
        let progressed = !plan.chunks.is_empty();
        self.plan = plan;
        progressed
    }

    fn slot(&self, chunk: &ScheduledChunk, pos: usize) -> usize {
        let seq = &self.scheduler.group(chunk.group).sequences[chunk.index];
        seq.block_table.blocks()[pos / BLOCK_SIZE] as usize * BLOCK_SIZE + pos % BLOCK_SIZE
    }

    fn write_chunks(&mut self, plan: &StepPlan) {
        for chunk in &plan.chunks {
            for pos in chunk.start..chunk.end() {
                let slot = self.slot(chunk, pos);
                self.cache[slot] = self.scheduler.group(chunk.group).sequences[chunk.index].token_ids[pos];
            }
        }
    }

    fn check_contexts(&self, plan: &StepPlan) {
        for chunk in &plan.chunks {
            let seq = &self.scheduler.group(chunk.group).sequences[chunk.index];
            assert_eq!(chunk.start, seq.num_computed_tokens);
            let first = self.config.window.map_or(0, |window| (chunk.start + 1).saturating_sub(window));
            assert!(seq.block_table.num_released() * BLOCK_SIZE <= first, "{chunk:?}");
            for pos in first..chunk.end() {
                assert_eq!(self.cache[self.slot(chunk, pos)], seq.token_ids[pos], "{chunk:?} position {pos}");
            }
        }
    }

    /// Whether the pool counts as used just the blocks that some table holds, and no table holds more than it needs.
    fn check_holders(&self) {
        let mut held = BTreeSet::<BlockId>::new();
        for &id in self.requests.keys() {
            for seq in &self.scheduler.group(id).sequences {
                let live = &seq.block_table.blocks()[seq.block_table.num_released()..];
                if let Some(window) = self.config.window {
                    assert!(live.len() <= (window + BLOCK_SIZE - 1).div_ceil(BLOCK_SIZE), "request {id}: {live:?}");
                }
                held.extend(live);
            }
        }
        assert_eq!(self.scheduler.pool().num_used(), held.len());
    }

    fn sample(&mut self, chunk: &ScheduledChunk) {
        let (id, idx) = (chunk.group, chunk.index);
        if chunk.num_logits() == 0 {
            return;
        }
        let request = self.requests.get_mut(&id).unwrap();
        let (n, max_tokens) = (request.n, request.max_tokens);
        let prompt_len = self.scheduler.group(id).prompt_len;
        let mut indices = vec![idx];
        if !std::mem::replace(&mut request.forked, true) {
            self.scheduler.fork(id, n);
            indices = (0..n).collect();
        }
        for idx in indices {
            let len = self.scheduler.group(id).sequences[idx].token_ids.len();
            self.scheduler.push_token(id, idx, token(id, idx, len, prompt_len));
            // Sequences of one request end at different lengths.
            if len + 1 - prompt_len >= max_tokens.saturating_sub(idx).max(1) {
                self.scheduler.finish(id, idx);
            }
        }
        if self.scheduler.group(id).is_finished() {
            self.check_output(id);
            self.remove(id);
        }
    }

    fn check_output(&self, id: GroupId) {
        let group = self.scheduler.group(id);
        assert_eq!(group.sequences.len(), self.requests[&id].n);
        for (idx, seq) in group.sequences.iter().enumerate() {
            let expected = (0..seq.token_ids.len()).map(|pos| token(id, idx, pos, group.prompt_len));
            assert!(seq.token_ids.iter().copied().eq(expected), "request {id} sequence {idx}");
        }
    }

    fn remove(&mut self, id: GroupId) {
        self.scheduler.remove(id);
        self.requests.remove(&id);
    }
}

/// The token that stands at a position: of the prompt the same for all sequences of a request.
fn token(id: GroupId, idx: usize, pos: usize, prompt_len: usize) -> u32 {
    let idx = if pos < prompt_len { 0 } else { idx };
    ((id as usize * 64 + idx) * 4096 + pos) as u32
}

fn check_random(seed: u64, window: Option<usize>) {
    let mut rng = Lcg(seed);
    let max_num_seqs = 1 + rng.below(8);
    let config = SchedulerConfig {
        max_num_batched_tokens: max_num_seqs + rng.below(24),
        max_num_seqs,
        max_prompt_logits: rng.below(4),
        window,
    };
    // 15 blocks hold the longest sequence (prompt 40, output 20).
    let mut sim = Simulation::new(15 + rng.below(30), config);
    let mut next_id = 0;
    let mut num_left = 30;
    while num_left > 0 || !sim.requests.is_empty() {
        if num_left > 0 && rng.below(3) == 0 {
            sim.add(next_id, 1 + rng.below(40), 1 + rng.below(5), 1 + rng.below(20));
            next_id += 1;
            num_left -= 1;
        }
        if rng.below(40) == 0
            && let Some((&id, _)) = sim.requests.iter().nth(rng.below(5))
        {
            sim.remove(id);
        }
        let progressed = sim.step();
        assert!(progressed || sim.requests.is_empty(), "seed {seed}: nothing was computed though requests wait");
        assert!(sim.num_steps < 20_000, "seed {seed}: the requests do not end");
    }
    assert_eq!(sim.scheduler.pool().num_used(), 0, "seed {seed}");
    assert_eq!((sim.scheduler.num_running(), sim.scheduler.num_waiting()), (0, 0), "seed {seed}");
}

#[test]
fn random_requests_end_and_never_read_a_wrong_slot() {
    (0..300).for_each(|seed| check_random(seed, None));
}

#[test]
fn with_a_window_too() {
    for seed in 0..300 {
        check_random(seed, Some(1 + seed as usize % 24));
    }
}

#[test]
fn a_window_keeps_few_blocks_however_long_the_sequence() {
    let config = SchedulerConfig { max_num_batched_tokens: 8, max_num_seqs: 2, max_prompt_logits: 0, window: Some(8) };
    let mut sim = Simulation::new(64, config);
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
    let config = SchedulerConfig { max_num_batched_tokens: 16, max_num_seqs: 8, max_prompt_logits: 0, window: None };
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
    let config = SchedulerConfig { max_num_batched_tokens: 64, max_num_seqs: 8, max_prompt_logits: 0, window: None };
    let mut sim = Simulation::new(64, config);
    sim.add(0, 32, 8, 20);
    sim.step();
    assert_eq!(sim.scheduler.pool().num_used(), 8);
    sim.step();
    assert_eq!(sim.scheduler.pool().num_used(), 8 + 8, "the prompt's 8 blocks and one block a sequence");
}

#[test]
fn prompt_logits_come_once_and_in_order() {
    let config = SchedulerConfig { max_num_batched_tokens: 16, max_num_seqs: 2, max_prompt_logits: 3, window: None };
    let mut scheduler = Scheduler::new(config, BlockPool::new(16, BLOCK_SIZE));
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
        scheduler.group_mut(0).prompt_logits_from = Some(chunk.end());
    }
    assert_eq!(positions, (5..20).collect::<Vec<_>>());
}
