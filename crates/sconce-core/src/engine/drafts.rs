//! Drafts for speculative decoding: tokens that may follow a sequence, and are computed along with its last. They come from the
//! sequence itself, so that there is no second model.
//!
//! A row of logits has the same bits whatever is computed beside it, and what is drawn depends on its position alone: so a draft is
//! right where it is the token that is sampled in its place, greedy or not, and answers are those without drafts.

use std::collections::BTreeMap;

use super::running::RunningRequest;
use crate::config::EngineConfig;
use crate::sched::{GroupId, Scheduler, StepPlan};

/// Rows of a step with drafts, at most: a GPU's kernels for few tokens take so many in about the time of one. Attention's kernel for
/// decodes counts on it (`STEP_KEYS` in `kernels/attention_decode.cu`), and that drafts follow one token.
pub(super) const MAX_DRAFTING_ROWS: usize = 1 + EngineConfig::MAX_SPECULATIVE_TOKENS;

/// The shortest match that is believed: shorter ones are mostly chance.
const MIN_MATCH: usize = 2;
/// Beyond it matches are as good as each other.
const MAX_MATCH: usize = 16;

/// Looks for drafts.
#[derive(Debug, Default)]
pub(super) struct Drafting {
    /// Drafts that a sequence has at most in a step; 0: none.
    num_speculative_tokens: usize,
    /// Those of one sequence; kept for its memory.
    drafts: Vec<u32>,
}

impl Drafting {
    pub(super) fn new(num_speculative_tokens: usize) -> Self {
        Self { num_speculative_tokens, drafts: Vec::new() }
    }

    /// Whether steps are to be read before the next is planned, so that it can have drafts: where there is room for one of each
    /// sequence that runs.
    pub(super) fn is_wanted(&self, scheduler: &Scheduler) -> bool {
        self.num_speculative_tokens > 0 && 2 * scheduler.num_running() <= MAX_DRAFTING_ROWS
    }

    /// Adds drafts to a plan, the oldest sequences' first.
    pub(super) fn draft(
        &mut self,
        plan: &mut StepPlan,
        scheduler: &mut Scheduler,
        requests: &BTreeMap<GroupId, RunningRequest>,
    ) {
        if !self.is_wanted(scheduler) {
            return;
        }
        let mut num_left = MAX_DRAFTING_ROWS.saturating_sub(plan.chunks.len());
        for at in 0..plan.chunks.len() {
            let chunk = plan.chunks[at];
            let token_ids = &scheduler.group(chunk.group).sequences[chunk.index].token_ids;
            let most =
                requests[&chunk.group].max_drafts(token_ids.len()).min(self.num_speculative_tokens).min(num_left);
            if most == 0 || chunk.len != 1 || chunk.end() != token_ids.len() {
                continue;
            }
            prompt_lookup(token_ids, most, &mut self.drafts);
            scheduler.add_drafts(plan, at, &self.drafts);
            num_left -= plan.chunks[at].num_drafts;
        }
    }
}

/// What followed where the sequence has already said what it ends with: the longest match of its end, of those the last (prompt lookup
/// decoding, Saxena 2023). At most `most` tokens, and as many as match: a long match is likely to go on. None where nothing matches.
/// Where it said so just before, it goes round.
fn prompt_lookup(token_ids: &[u32], most: usize, drafts: &mut Vec<u32>) {
    drafts.clear();
    let len = token_ids.len();
    let Some(&last) = token_ids.last() else { return };
    let (mut best, mut best_len) = (len, MIN_MATCH - 1);
    for end in (MIN_MATCH..len).rev().filter(|end| token_ids[end - 1] == last) {
        let pairs = token_ids[..end].iter().rev().zip(token_ids.iter().rev());
        let matching = pairs.take(MAX_MATCH).take_while(|(a, b)| a == b).count();
        if matching > best_len {
            (best, best_len) = (end, matching);
            if matching == MAX_MATCH {
                break;
            }
        }
    }
    if best < len {
        drafts.extend(token_ids[best..].iter().cycle().take(most.min(best_len)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_match_is_followed_and_the_last_of_several() {
        let mut drafts = vec![7; 3];
        for (token_ids, most, expected) in [
            (vec![], 4, vec![]),
            (vec![1], 4, vec![]),
            (vec![1, 2, 3, 4], 4, vec![]),
            // One token is no match.
            (vec![1, 2, 3, 1], 4, vec![]),
            // As many as match.
            (vec![1, 2, 3, 1, 2], 4, vec![3, 1]),
            (vec![1, 2, 3, 4, 5, 6, 1, 2, 3], 4, vec![4, 5, 6]),
            (vec![1, 2, 3, 1, 2], 1, vec![3]),
            (vec![1, 2, 3, 1, 2], 0, vec![]),
            // Of three tokens before of two, though these are later.
            (vec![0, 1, 2, 7, 8, 1, 2, 9, 0, 1, 2], 2, vec![7, 8]),
            (vec![1, 2, 7, 0, 1, 2, 8, 3, 1, 2], 2, vec![8, 3]),
            // Round and round.
            (vec![5, 5, 5, 5], 4, vec![5, 5, 5]),
            (vec![1, 2, 1, 2, 1, 2], 9, vec![1, 2, 1, 2]),
        ] {
            prompt_lookup(&token_ids, most, &mut drafts);
            assert_eq!(drafts, expected, "{token_ids:?}");
        }
        let mut long: Vec<u32> = (0..40).collect();
        long.extend(10..35);
        prompt_lookup(&long, 3, &mut drafts);
        assert_eq!(drafts, [35, 36, 37]);
    }
}
