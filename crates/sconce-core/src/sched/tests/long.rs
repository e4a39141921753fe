//! Sequences that become long: they are computed anew.

use super::*;

/// A sequence that becomes long is computed anew, once; what two have in common is shared then too, and what was computed of a
/// short sequence is found for short ones alone.
#[test]
fn what_becomes_long_is_computed_anew() {
    let config = SchedulerConfig { short_len: Some(16), ..limits(64, 8) };
    let mut sim = Simulation::with_pool(pool_of(64, None).with_prefix_cache(), config);
    let mut check = |id: GroupId, prompt: Vec<u32>, n: usize, max_tokens: usize, expected: [usize; 2]| {
        let before = [sim.num_tokens, sim.num_cached_tokens];
        sim.add_prompt(id, prompt, Kind::Sampled(n), max_tokens);
        while !sim.requests.is_empty() {
            assert!(sim.step());
        }
        assert_eq!([sim.num_tokens - before[0], sim.num_cached_tokens - before[1]], expected, "request {id}");
        assert_eq!(sim.scheduler.pool().num_used(), 0);
    };
    let prompt = |len: usize| (0..len as u32).collect::<Vec<_>>();
    // 10 of the prompt, 6 that follow; 17 anew, and 12 behind them. The last is not computed.
    check(0, prompt(10), 1, 20, [10 + 6 + 17 + 12, 0]);
    // It ends before, or with the token that would have made it long.
    check(1, prompt(10), 1, 6, [2 + 5, 8]);
    check(2, prompt(10), 1, 7, [2 + 6, 8]);
    // A prompt is short or long as a whole, and 16 tokens are short.
    check(3, prompt(16), 1, 1, [8, 8]);
    check(4, prompt(17), 1, 2, [9 + 1, 8]);
    check(5, prompt(16), 1, 1, [4, 12]);
    check(6, prompt(16), 1, 2, [4 + 1, 12]);
    // Both become long at once, and the second has of the first what both begin with; one goes on by a token.
    check(7, (100..116).collect(), 2, 3, [16 + 17 + 1 + 1, 0]);
}
