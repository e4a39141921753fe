//! Two groups of layers: those that see all tokens, and those with a window.

use super::*;

/// Blocks of `all` tokens for layers that see all, and of `windowed` tokens for those that see `window`.
fn groups(all: usize, windowed: usize, window: usize) -> [LayerGroup; 2] {
    [LayerGroup { block_len: all, window: None }, LayerGroup { block_len: windowed, window: Some(window) }]
}

fn run(sim: &mut Simulation) -> usize {
    let mut most = 0;
    while !sim.requests.is_empty() {
        assert!(sim.step());
        most = most.max(sim.scheduler.pool().num_used());
    }
    assert_eq!(sim.scheduler.pool().num_used(), 0);
    most
}

#[test]
fn layers_with_a_window_give_back_what_the_others_keep() {
    // 200 tokens: 13 blocks of 16, and a window of 2 blocks of 4, with a step of 8.
    let mut sim = Simulation::with_pool(BlockPool::new(64, &groups(16, 4, 8)), limits(8, 2));
    sim.add(0, 100, 1, 100);
    let most = run(&mut sim);
    assert!((15..=17).contains(&most), "{most} blocks");
    // The same where the others' blocks are the longer ones: 50 blocks of 4, and one or two of 16.
    let mut sim = Simulation::with_pool(BlockPool::new(64, &groups(4, 16, 8)), limits(8, 2));
    sim.add(0, 100, 1, 100);
    let most = run(&mut sim);
    assert!((51..=52).contains(&most), "{most} blocks");
}

/// What the pool must hold for it is enough for the longest sequence, whatever else waits.
#[test]
fn a_pool_for_one_sequence_is_enough_for_all() {
    for groups in [groups(16, 4, 8), groups(4, 4, 9), groups(4, 12, 3)] {
        for has_prefix_cache in [false, true] {
            let config = limits(16, 4);
            let least = BlockPool::new(0, &groups).most_blocks(120, config.max_num_batched_tokens);
            let pool = BlockPool::new(least, &groups);
            let mut sim = Simulation::with_pool(if has_prefix_cache { pool.with_prefix_cache() } else { pool }, config);
            (0..6).for_each(|id| sim.add(id, 60, 2, 60));
            sim.add_kind(6, 60, Kind::Beams { width: 3, num_ready: 0 }, 20);
            run(&mut sim);
        }
    }
}

/// A prompt goes on from where both groups have what is seen: what the window has left behind is not missed.
#[test]
fn a_prompt_is_found_though_its_window_has_moved_on() {
    let mut sim = Simulation::with_pool(BlockPool::new(64, &groups(16, 4, 8)).with_prefix_cache(), limits(64, 8));
    let mut check = |id: GroupId, prompt_len: usize, num_cached: usize| {
        let before = sim.num_cached_tokens;
        sim.add(id, prompt_len, 2, 3);
        run(&mut sim);
        assert_eq!(sim.num_cached_tokens - before, num_cached, "request {id}");
    };
    check(0, 70, 0);
    check(4, 70, 64);
    check(8, 40, 32);
    check(12, 16, 0); // the last token is computed for its logits
    check(16, 17, 16);
    check(17, 70, 0); // another first block, though the rest is the same
    check(20, 100, 64);
    check(24, 100, 96);
}

/// Where its last window has been handed out, a prompt is found up to where one is left, if there is one.
#[test]
fn without_its_window_a_prompt_is_not_found() {
    let mut sim = Simulation::with_pool(BlockPool::new(18, &groups(16, 4, 8)).with_prefix_cache(), limits(16, 8));
    let mut cached = |id: GroupId, prompt_len: usize| {
        let before = sim.num_cached_tokens;
        sim.add(id, prompt_len, 1, 1);
        run(&mut sim);
        sim.num_cached_tokens - before
    };
    assert_eq!([cached(0, 34), cached(4, 34)], [0, 32]);
    // Some others' blocks take the place of those that were given back first.
    let found: Vec<usize> = (0..4)
        .map(|turn| {
            cached(1 + 4 * turn, 34);
            cached(4 * turn + 8, 34)
        })
        .collect();
    assert!(found.iter().all(|found| found % 16 == 0 && *found <= 32), "{found:?}");
    assert_eq!(cached(1001, 90), 32);
    assert!(cached(1004, 34) < 32);
}
