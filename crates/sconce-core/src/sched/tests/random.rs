//! Random requests: they end, and nothing is read but what was written for them.

use super::*;

/// How a random run goes.
#[derive(Debug, Clone, Copy)]
struct Run {
    seed: u64,
    window: Option<usize>,
    /// Tokens of a block of layers without a window beside it; 0: there are none.
    beside: usize,
    runs_ahead: bool,
    drafts: usize,
    short_len: Option<usize>,
}

impl Run {
    /// Where all sequences are alike, and each step is read before the next is planned.
    fn new(seed: u64) -> Self {
        Self { seed, window: None, beside: 0, runs_ahead: false, drafts: 0, short_len: None }
    }
}

impl Run {
    fn groups(&self) -> Vec<LayerGroup> {
        // The one with fewer layers has longer blocks.
        let block_len = if self.beside > 0 && self.beside < BLOCK_SIZE {
            BLOCK_SIZE * BLOCK_SIZE / self.beside
        } else {
            BLOCK_SIZE
        };
        let windowed = LayerGroup { block_len, window: self.window };
        let all = LayerGroup { block_len: self.beside.max(BLOCK_SIZE), window: None };
        if self.beside == 0 { vec![windowed] } else { vec![all, windowed] }
    }
}

/// Returns how many steps were planned ahead, how many sequences were computed once too often, and how many drafts were right.
fn check_random(run: Run) -> [usize; 3] {
    let Run { seed, runs_ahead, drafts, short_len, .. } = run;
    let mut rng = Lcg(seed);
    let max_num_seqs = 1 + rng.below(8);
    let config = SchedulerConfig {
        max_num_batched_tokens: max_num_seqs + rng.below(24),
        max_num_seqs,
        max_prompt_logits: rng.below(4),
        short_len,
    };
    // As many as hold the longest sequence (prompt 40, output 20), and some.
    let groups = run.groups();
    let least = BlockPool::new(0, &groups).most_blocks(60, config.max_num_batched_tokens);
    let mut pool = BlockPool::new(least + rng.below(2 * least), &groups);
    if seed % 2 == 1 {
        pool = pool.with_prefix_cache();
    }
    let mut sim = Simulation::with_pool(pool, config);
    (sim.runs_ahead, sim.ends) = (runs_ahead, if runs_ahead || seed % 4 < 2 && drafts > 0 { 8 } else { 0 });
    (sim.drafts, sim.num_adapters) = (drafts, if seed % 5 == 2 { 2 } else { 0 });
    // Beams keep every step that they are in from being followed: some runs have none.
    let has_beams = !runs_ahead || seed % 3 == 0;
    let mut next_id = 0;
    let mut num_left = 30;
    while num_left > 0 || !sim.requests.is_empty() || sim.under_way.is_some() {
        if num_left > 0 && rng.below(3) == 0 {
            let width = 1 + rng.below(5);
            let is_sampled = rng.below(2) == 0 || !has_beams;
            let kind = if is_sampled { Kind::Sampled(width) } else { Kind::Beams { width, num_ready: 0 } };
            let (prompt_len, max_tokens) = (1 + rng.below(40), 1 + rng.below(20));
            match sim.said.get(rng.below(20)) {
                // A conversation that goes on.
                Some(said) if runs_ahead || drafts > 0 => {
                    sim.add_prompt(next_id, said[..said.len().min(40)].to_vec(), kind, max_tokens);
                }
                _ => sim.add_kind(next_id, prompt_len, kind, max_tokens),
            }
            next_id += 1;
            num_left -= 1;
        }
        if rng.below(40) == 0
            && let Some((&id, _)) = sim.requests.iter().nth(rng.below(5))
        {
            sim.remove(id);
        }
        let progressed = sim.step();
        assert!(progressed || sim.requests.is_empty(), "{run:?}: nothing was computed though requests wait");
        assert!(sim.num_steps < 20_000, "{run:?}: the requests do not end");
    }
    assert_eq!(sim.scheduler.pool().num_used(), 0, "{run:?}");
    assert_eq!((sim.scheduler.num_running(), sim.scheduler.num_waiting()), (0, 0), "{run:?}");
    assert!(seed % 2 == 1 || sim.num_cached_tokens == 0, "{run:?}: there is no prefix cache");
    [sim.num_ahead, sim.num_in_vain, sim.num_accepted]
}

#[test]
fn random_requests_end_and_never_read_a_wrong_slot() {
    for seed in 0..300 {
        assert_eq!(check_random(Run::new(seed)), [0; 3]);
    }
}

#[test]
fn with_a_window_too() {
    for seed in 0..300 {
        check_random(Run { window: Some(1 + seed as usize % 24), ..Run::new(seed) });
    }
}

/// Layers with a window beside others, with longer, equal and shorter blocks.
#[test]
fn in_two_groups_too() {
    let mut counts = [0; 3];
    for seed in 0..240 {
        let (window, beside) = (Some(1 + seed as usize % 24), [4, 8, 12, 2, 1][seed as usize % 5]);
        let run = Run { window, beside, ..Run::new(seed) };
        let short_len = (seed % 4 == 3).then_some(1 + seed as usize % 53);
        let ahead = Run { runs_ahead: true, short_len, ..run };
        for run in [run, ahead, Run { drafts: 1 + seed as usize % 9, short_len, ..run }] {
            counts.iter_mut().zip(check_random(run)).for_each(|(sum, count)| *sum += count);
        }
    }
    assert!(counts.iter().all(|&count| count > 1000), "{counts:?} steps ahead, sequences in vain, right drafts");
}

#[test]
fn drafts_change_nothing() {
    for window in [false, true] {
        let mut num_accepted = 0;
        for seed in 0..300 {
            let window = window.then_some(1 + seed as usize % 24);
            num_accepted += check_random(Run { window, drafts: 1 + seed as usize % 9, ..Run::new(seed) })[2];
        }
        assert!(num_accepted > 5000, "{num_accepted} drafts were right");
    }
}

/// Each right draft saves a step, and the block that drafts fill is found once they are known to be right.
#[test]
fn right_drafts_save_steps() {
    let config = limits(64, 8);
    let mut sim = Simulation::with_pool(pool_of(32, None).with_prefix_cache(), config);
    sim.drafts = 6;
    sim.add(0, 10, 1, 40);
    while !sim.requests.is_empty() {
        assert!(sim.step());
    }
    assert!(sim.num_accepted > 10, "{} drafts were right", sim.num_accepted);
    assert_eq!((sim.num_steps + sim.num_accepted, sim.scheduler.pool().num_used()), (40, 0));
    let said = sim.said[0].clone();
    sim.add_prompt(1, said, Kind::Sampled(1), 1);
    assert!(sim.step());
    assert_eq!(sim.num_cached_tokens, 48, "all but the last token were computed");
}

#[test]
fn steps_planned_before_the_last_is_read_change_nothing() {
    for window in [false, true] {
        let (mut num_ahead, mut num_in_vain) = (0, 0);
        for seed in 0..300 {
            let window = window.then_some(1 + seed as usize % 24);
            let counts = check_random(Run { window, runs_ahead: true, ..Run::new(seed) });
            (num_ahead, num_in_vain) = (num_ahead + counts[0], num_in_vain + counts[1]);
        }
        assert!(num_ahead > 1000 && num_in_vain > 1000, "{num_ahead} steps ahead, {num_in_vain} sequences in vain");
    }
}

#[test]
fn sequences_that_become_long_read_nothing_of_short_ones() {
    let mut counts = [0; 3];
    for seed in 0..400 {
        let window = (seed % 3 == 0).then_some(1 + seed as usize % 24);
        // Prompts have up to 40 tokens, and 20 follow.
        let run = Run { window, short_len: Some(1 + seed as usize % 53), ..Run::new(seed) };
        for run in [run, Run { runs_ahead: true, ..run }, Run { drafts: 1 + seed as usize % 9, ..run }] {
            counts.iter_mut().zip(check_random(run)).for_each(|(sum, count)| *sum += count);
        }
    }
    assert!(counts.iter().all(|&count| count > 1000), "{counts:?} steps ahead, sequences in vain, right drafts");
}

/// The block that a token fills while it is unread is found once it is read.
#[test]
fn what_was_computed_unread_is_found_later() {
    let config = limits(64, 8);
    let mut sim = Simulation::with_pool(pool_of(32, None).with_prefix_cache(), config);
    sim.runs_ahead = true;
    sim.add(0, 10, 1, 11);
    while !sim.requests.is_empty() {
        assert!(sim.step());
    }
    // Each step but the first was planned while another was under way.
    assert_eq!((sim.num_ahead, sim.scheduler.pool().num_used()), (10, 0));
    let said = sim.said[0].clone();
    assert_eq!(said.len(), 21);
    sim.add_prompt(1, said, Kind::Sampled(1), 1);
    assert!(sim.step());
    assert_eq!(sim.num_cached_tokens, 20, "all but the last token were computed");
}
