//! Drafts for speculative decoding: tokens that may follow a sequence, and are computed along with its last. They come from the
//! sequence itself, so that there is no second model.
//!
//! A row of logits has the same bits whatever is computed beside it, and what is drawn depends on its position alone: so a draft is
//! right where it is the token that is sampled in its place, greedy or not, and answers are those without drafts.

use super::core::State;
use crate::config::EngineConfig;
use crate::sched::SequenceStatus;

/// Rows of a step with drafts, at most: a GPU's kernels for few tokens take so many in about the time of one. Attention's kernel for
/// decodes counts on it (`STEP_KEYS` in `kernels/attention_decode.cu`).
pub(super) const MAX_DRAFTING_ROWS: usize = 1 + EngineConfig::MAX_SPECULATIVE_TOKENS;
/// The shortest match that is believed: shorter ones are mostly chance.
const MIN_MATCH: usize = 2;
/// Beyond it matches are as good as each other.
const MAX_MATCH: usize = 16;

impl State {
    /// Whether drafts are looked for: where a step has room for some.
    pub(super) fn is_drafting(&self) -> bool {
        self.num_speculative_tokens > 0 && self.scheduler.num_running() < MAX_DRAFTING_ROWS
    }

    /// Looks for drafts of the sequences that have nothing but their last token to compute, the oldest first.
    pub(super) fn draft(&mut self) {
        let Self { scheduler, requests, drafts, num_speculative_tokens, .. } = self;
        let mut num_left = MAX_DRAFTING_ROWS - scheduler.num_running();
        for (&id, request) in requests.iter() {
            for idx in 0..scheduler.group(id).sequences.len() {
                let seq = &scheduler.group(id).sequences[idx];
                let most = request.max_drafts(seq.token_ids.len()).min(*num_speculative_tokens).min(num_left);
                if most == 0 || seq.status != SequenceStatus::Running || seq.num_pending() != 1 {
                    continue;
                }
                drafts.clear();
                drafts.extend_from_slice(prompt_lookup(&seq.token_ids, most));
                num_left -= drafts.len();
                scheduler.set_drafts(id, idx, drafts);
            }
        }
    }
}

/// What followed where the sequence has already said what it ends with: the longest match of its end, of those the last (prompt lookup
/// decoding, Saxena 2023). At most `most` tokens, and as many as match: a long match is likely to go on. None where nothing matches.
fn prompt_lookup(token_ids: &[u32], most: usize) -> &[u32] {
    let len = token_ids.len();
    let Some(&last) = token_ids.last() else { return &[] };
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
    &token_ids[best..len.min(best.saturating_add(most.min(best_len)))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_match_is_followed_and_the_last_of_several() {
        for (token_ids, most, expected) in [
            (vec![], 4, vec![]),
            (vec![1], 4, vec![]),
            (vec![1, 2, 3, 4], 4, vec![]),
            // One token is no match.
            (vec![1, 2, 3, 1], 4, vec![]),
            (vec![1, 2, 3, 1, 2], 4, vec![3, 1]),
            (vec![1, 2, 3, 4, 5, 6, 1, 2, 3], 4, vec![4, 5, 6]),
            (vec![1, 2, 3, 1, 2], 1, vec![3]),
            (vec![1, 2, 3, 1, 2], 0, vec![]),
            // Of three tokens before of two, though these are later.
            (vec![0, 1, 2, 7, 8, 1, 2, 9, 0, 1, 2], 2, vec![7, 8]),
            (vec![1, 2, 7, 0, 1, 2, 8, 3, 1, 2], 2, vec![8, 3]),
            (vec![5, 5, 5, 5], 4, vec![5]),
        ] {
            assert_eq!(prompt_lookup(&token_ids, most), expected, "{token_ids:?}");
        }
        let mut long: Vec<u32> = (0..40).collect();
        long.extend(10..35);
        assert_eq!(prompt_lookup(&long, 3), [35, 36, 37]);
    }
}
