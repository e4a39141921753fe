//! Beam searches: what beams share, and what there is no room for.

use super::*;

#[test]
fn beams_share_what_they_have_in_common_and_drop_the_rest_at_once() {
    let config = limits(64, 8);
    let mut scheduler = Scheduler::new(config, pool_of(32, None));
    scheduler.add(0, SequenceGroup::new((0..10).collect()));
    let mut plan = StepPlan::default();
    let mut step = |scheduler: &mut Scheduler, parents: &[usize], expected_used: usize| {
        scheduler.schedule(&mut plan);
        scheduler.commit(&plan);
        scheduler.branch(0, parents);
        (0..parents.len()).for_each(|idx| scheduler.push_token(0, idx, idx as u32));
        assert_eq!(scheduler.pool().num_used(), expected_used, "{parents:?}");
        plan.copies.len()
    };
    // 2 full blocks and one with 2 tokens, which all four share until they write to it.
    assert_eq!(step(&mut scheduler, &[0, 0, 0, 0], 3), 0);
    assert_eq!(step(&mut scheduler, &[0, 1, 2, 3], 6), 3, "the last to write owns what the others have copied");
    assert_eq!(step(&mut scheduler, &[2, 2], 3), 0, "two children of one parent, the others' blocks are free");
    assert_eq!(step(&mut scheduler, &[0, 1], 5), 0, "the last block was full");
    scheduler.branch(0, &[]);
    assert!(scheduler.group(0).is_finished());
    assert_eq!(scheduler.pool().num_used(), 0);
}

#[test]
fn a_search_wider_than_the_pool_or_the_batch_goes_on_beam_by_beam() {
    for (num_blocks, max_num_seqs) in [(10, 8), (60, 2), (10, 1)] {
        let config = limits(16, max_num_seqs);
        let mut sim = Simulation::new(num_blocks, config);
        sim.add_kind(0, 20, Kind::Beams { width: 4, num_ready: 0 }, 20);
        sim.add(1, 20, 2, 20);
        while !sim.requests.is_empty() {
            assert!(sim.step());
        }
        assert_eq!(sim.scheduler.pool().num_used(), 0);
    }
}
