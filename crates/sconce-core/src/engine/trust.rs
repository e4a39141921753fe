//! [`Trust`]: how far a draft model is believed, by how often its drafts were right of late.

/// What the drafts of one step still count a step later.
const MEMORY: f32 = 0.96;
/// Drafts that count as having been as right as was thought, before there are any.
const NUM_BEFORE: f32 = 4.0;
/// Drafts pay where at least so large a part of them is right: one takes some sixth of a step, and saves a step where it is right.
const LEAST_RIGHT: f32 = 0.16;
/// Steps without drafts, at most, before it is tried again.
const MAX_REST: usize = 31;

/// How the drafts of late were, of all sequences together: computing them costs about the same for one as for all. `benches/RESULTS.md`
/// has what other constants give.
///
/// Most models think too well of themselves, and those that draw what the other draws too little: so what one thinks is corrected by
/// how right it was. But the first draft of a step is made whatever is thought of it. Where hardly any is right it costs more than
/// it saves, and the draft model rests: for 1, 3, 7, 15 and then for 31 steps at a time, each with a trial behind it. After a trial that
/// paid it goes on at once. What is remembered fades meanwhile, so that a few good trials outweigh it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trust {
    num_made: f32,
    num_right: f32,
    num_expected: f32,
    /// Steps of the latest rest, and those that are left of it.
    rest: usize,
    rest_left: usize,
}

impl Trust {
    pub(super) const NEW: Self =
        Self { num_made: NUM_BEFORE, num_right: NUM_BEFORE, num_expected: NUM_BEFORE, rest: 0, rest_left: 0 };

    /// To be asked once in each step that could have drafts: whether it is to have some. If not, it is one of the rest.
    pub(super) fn takes_turn(&mut self) -> bool {
        for count in [&mut self.num_made, &mut self.num_right, &mut self.num_expected] {
            *count *= MEMORY;
        }
        let is_resting = self.rest_left > 0;
        self.rest_left = self.rest_left.saturating_sub(1);
        !is_resting
    }

    /// Counts the drafts of a step, those that were right, and how many the draft model thought would be.
    pub(super) fn count(&mut self, num_made: usize, num_right: usize, num_expected: f32) {
        let (num_made, num_right) = (num_made as f32, num_right as f32);
        self.num_made += num_made;
        self.num_right += num_right;
        self.num_expected += num_expected;
        let pays = |num_right: f32, num_made: f32| num_right >= LEAST_RIGHT * num_made;
        let goes_on = pays(self.num_right, self.num_made) || pays(num_right, num_made);
        self.rest = if goes_on { 0 } else { (2 * self.rest + 1).min(MAX_REST) };
        self.rest_left = self.rest;
    }

    /// How likely it is what the draft model thinks as likely as `probability`.
    pub(super) fn judge(&self, probability: f32) -> f32 {
        probability * self.num_right / self.num_expected
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::uniform;

    /// How many of `num_steps` steps have drafts, one each, of which `share` are right.
    fn num_turns(trust: &mut Trust, num_steps: u32, share: f64, seed: u64) -> u32 {
        let mut num_turns = 0;
        for step in 0..num_steps {
            if trust.takes_turn() {
                trust.count(1, usize::from(uniform(seed, 0, step, 0) < share), 0.8);
                num_turns += 1;
            }
        }
        num_turns
    }

    #[test]
    fn who_is_hardly_ever_right_rests() {
        for seed in 0..20 {
            let mut trust = Trust::NEW;
            let first = num_turns(&mut trust, 200, 0.0, seed);
            assert!(first < 30, "seed {seed}: {first} turns");
            assert_eq!(num_turns(&mut trust, 320, 0.0, seed), 10, "seed {seed}");
            let rare = num_turns(&mut trust, 2000, 0.03, seed);
            assert!(rare < 160, "seed {seed}: {rare} turns");
        }
    }

    #[test]
    fn who_is_right_now_and_then_hardly_rests() {
        for seed in 0..20 {
            let mut trust = Trust::NEW;
            let often = num_turns(&mut trust, 1000, 0.4, seed);
            assert!(often > 950, "seed {seed}: {often} turns");
        }
    }

    #[test]
    fn who_becomes_right_is_soon_believed_again() {
        for seed in 0..20 {
            let mut trust = Trust::NEW;
            num_turns(&mut trust, 1000, 0.0, seed);
            num_turns(&mut trust, 4 * MAX_REST as u32, 0.7, seed + 100);
            assert_eq!(num_turns(&mut trust, 50, 0.7, seed + 200), 50, "seed {seed}");
        }
    }

    /// Of eight sequences' drafts one is right by chance in most steps: that is no reason to go on.
    #[test]
    fn drafts_of_many_sequences_are_counted_together() {
        let mut trust = Trust::NEW;
        let mut num_turns = 0;
        for _ in 0..1000 {
            if trust.takes_turn() {
                trust.count(8, 1, 5.0);
                num_turns += 1;
            }
        }
        assert!(num_turns < 60, "{num_turns} turns");
    }

    #[test]
    fn what_it_thinks_is_corrected_by_what_was_right() {
        let mut trust = Trust::NEW;
        assert!((trust.judge(0.5) - 0.5).abs() < 1e-6);
        for (num_right, judged) in [(1, 0.25), (3, 0.75)] {
            for _ in 0..500 {
                assert!(trust.takes_turn());
                trust.count(4, num_right, 2.0);
            }
            assert!((trust.judge(0.5) - judged).abs() < 1e-3);
        }
    }
}
