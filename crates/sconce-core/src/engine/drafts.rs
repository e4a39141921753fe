//! Drafts for speculative decoding: tokens that may follow a sequence, and are computed along with its last. They are what its grammar
//! has follow, or come from what the caller has predicted, from the sequence itself, or, where none of them has any, from a second model
//! if there is one.
//!
//! A row of logits has the same bits whatever is computed beside it, and what is drawn depends on its position alone: so a draft is
//! right where it is the token that is sampled in its place, greedy or not, and answers are those without drafts.

use std::collections::BTreeMap;

use super::draft_model::DraftModel;
use super::running::RunningRequest;
use crate::backend::Backend;
use crate::config::EngineConfig;
use crate::error::Result;
use crate::sched::{GroupId, ScheduledChunk, Scheduler, StepPlan};

/// Tokens of a sequence in a step with drafts, at most. Attention's kernel for decodes counts on it (`STEP_KEYS` in
/// `kernels/attention_decode.cu`), and that drafts follow one token.
const MAX_TOKENS: usize = 1 + EngineConfig::MAX_SPECULATIVE_TOKENS;
/// Rows of a step with drafts, at most, where drafts are looked up: a GPU's kernels for few tokens take so many in about the time of one.
const MAX_ROWS: usize = 16;
/// The same on a GPU with a second model, most of whose drafts are right: so many rows take little longer, as it is the weights
/// that a step waits for.
const MAX_ROWS_BESIDE_MODEL: usize = 64;

/// Rows of a step with drafts, at most.
pub(super) fn max_drafting_rows(is_on_gpu: bool, has_model: bool) -> usize {
    if is_on_gpu && has_model { MAX_ROWS_BESIDE_MODEL } else { MAX_ROWS }
}

/// The shortest match that is believed: shorter ones are mostly chance.
const MIN_MATCH: usize = 2;
/// The same beside a second model, whose drafts are better than those of a short match.
const MIN_MATCH_BESIDE_MODEL: usize = 6;
/// Beyond it matches are as good as each other.
const MAX_MATCH: usize = 16;

/// Looks for drafts.
#[derive(Debug, Default)]
pub(super) struct Drafting {
    /// Drafts that a sequence has at most in a step; 0: none.
    num_speculative_tokens: usize,
    /// Rows of a step with drafts, at most.
    max_rows: usize,
    /// Those of one sequence; kept for its memory.
    drafts: Vec<u32>,
    /// Chunks whose drafts the second model is to make, and how many each can have.
    open: Vec<(usize, usize)>,
    /// The sequences, by group and index, whose drafts in the latest plan are from predictions.
    predicted: Vec<(GroupId, usize)>,
}

impl Drafting {
    pub(super) fn new(num_speculative_tokens: usize, max_rows: usize) -> Self {
        assert!(num_speculative_tokens < MAX_TOKENS, "invariant: checked with the config");
        Self { num_speculative_tokens, max_rows, ..Self::default() }
    }

    /// Whether steps are to be read before the next is planned, so that it can have drafts: where there is room for one of each
    /// sequence that runs.
    pub(super) fn is_wanted(&self, scheduler: &Scheduler) -> bool {
        self.num_speculative_tokens > 0 && 2 * scheduler.num_running() <= self.max_rows
    }

    /// Adds drafts to a plan, the oldest sequences' first. `model`: the second model. Errors are its device's.
    pub(super) fn draft<B: Backend>(
        &mut self,
        plan: &mut StepPlan,
        scheduler: &mut Scheduler,
        requests: &mut BTreeMap<GroupId, RunningRequest>,
        model: Option<&mut DraftModel<B>>,
    ) -> Result<()> {
        self.predicted.clear();
        self.open.clear();
        if !self.is_wanted(scheduler) {
            return Ok(());
        }
        let min_match = if model.is_some() { MIN_MATCH_BESIDE_MODEL } else { MIN_MATCH };
        let mut num_left = self.max_rows.saturating_sub(plan.chunks.len());
        for at in 0..plan.chunks.len() {
            let chunk = plan.chunks[at];
            let token_ids = &scheduler.group(chunk.group).sequences[chunk.index].token_ids;
            // Otherwise nothing is generated.
            let Some(request) = requests.get_mut(&chunk.group) else { continue };
            let most = request.max_drafts(token_ids.len()).min(self.num_speculative_tokens).min(num_left);
            if most == 0 || chunk.len != 1 || chunk.end() != token_ids.len() {
                continue;
            }
            self.drafts.clear();
            self.drafts.extend(request.forced(chunk.index).into_iter().take(most));
            if self.drafts.is_empty() {
                let generated = &token_ids[request.prompt_ids().len()..];
                let prediction = request.prediction().unwrap_or_default();
                follow_prediction(prediction, generated, (min_match, most), &mut self.drafts);
                let is_predicted = !self.drafts.is_empty();
                if !is_predicted {
                    prompt_lookup(token_ids, (min_match, most), &mut self.drafts);
                }
                self.drafts.truncate(request.num_allowed(chunk.index, &self.drafts));
                if is_predicted && !self.drafts.is_empty() {
                    self.predicted.push((chunk.group, chunk.index));
                }
            }
            if self.drafts.is_empty() {
                self.open.push((at, most));
            }
            scheduler.add_drafts(plan, at, &self.drafts);
            num_left -= plan.chunks[at].num_drafts;
        }
        model.map_or(Ok(()), |model| self.ask(model, plan, scheduler, requests, num_left))
    }

    /// Has the second model, unless it rests, make drafts for the chunks that have none, at most `num_left` in all: as many for one as
    /// for another.
    fn ask<B: Backend>(
        &self,
        model: &mut DraftModel<B>,
        plan: &mut StepPlan,
        scheduler: &mut Scheduler,
        requests: &mut BTreeMap<GroupId, RunningRequest>,
        mut num_left: usize,
    ) -> Result<()> {
        if self.open.is_empty() || !model.takes_turn() {
            return Ok(());
        }
        num_left = num_left.min(scheduler.num_tokens_left(plan));
        for (idx, &(at, most)) in self.open.iter().enumerate() {
            let share = num_left / (self.open.len() - idx);
            let num_reserved = scheduler.reserve_drafts(plan, at, most.min(share));
            model.ask(plan.chunks[at].group, plan.chunks[at].index, num_reserved);
            num_left -= num_reserved;
        }
        model.run(scheduler, requests)?;
        for (idx, &(at, _)) in self.open.iter().enumerate() {
            scheduler.add_drafts(plan, at, model.drafts(idx));
        }
        Ok(())
    }

    /// Whether the drafts of a chunk of the latest plan are from a prediction.
    pub(super) fn is_predicted(&self, chunk: &ScheduledChunk) -> bool {
        self.predicted.contains(&(chunk.group, chunk.index))
    }
}

/// What follows in a prediction: from its begin for as long as all that was generated is as predicted, else behind the longest match
/// of what was generated last, of those the one that is nearest to as many tokens as were generated. At most `most` tokens, and behind a
/// match twice as many as match.
fn follow_prediction(prediction: &[u32], generated: &[u32], (min_match, most): (usize, usize), drafts: &mut Vec<u32>) {
    drafts.clear();
    let num_generated = generated.len();
    if prediction.starts_with(generated) {
        drafts.extend(prediction[num_generated..].iter().take(most));
    } else if let Some((end, matching)) = longest_match(prediction, generated, num_generated, min_match) {
        drafts.extend(prediction[end..].iter().take(most.min(2 * matching)));
    }
}

/// What followed where the sequence has already said what it ends with: the longest match of its end, of those the last (prompt lookup
/// decoding, Saxena 2023). At most `most` tokens, and as many as match: a long match is likely to go on. None where nothing matches.
/// Where it said so just before, it goes round.
fn prompt_lookup(token_ids: &[u32], (min_match, most): (usize, usize), drafts: &mut Vec<u32>) {
    drafts.clear();
    let Some((_, before)) = token_ids.split_last() else { return };
    if let Some((end, matching)) = longest_match(before, token_ids, before.len(), min_match) {
        drafts.extend(token_ids[end..].iter().cycle().take(most.min(matching)));
    }
}

/// Where in `text` the longest match of how `other` ends has its own end, and its length, `min_match` at least; of several the one that is
/// nearest to `near`.
fn longest_match(text: &[u32], other: &[u32], near: usize, min_match: usize) -> Option<(usize, usize)> {
    let last = other.last()?;
    let near = near.min(text.len());
    let ends = (0..=text.len()).flat_map(|far| [near.checked_sub(far), (far > 0).then_some(near + far)]).flatten();
    let (mut best, mut best_len) = (None, min_match - 1);
    for end in ends.filter(|&end| (min_match..=text.len()).contains(&end) && text[end - 1] == *last) {
        let pairs = text[..end].iter().rev().zip(other.iter().rev());
        let matching = pairs.take(MAX_MATCH).take_while(|(a, b)| a == b).count();
        if matching > best_len {
            (best, best_len) = (Some((end, matching)), matching);
            if matching == MAX_MATCH {
                break;
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prediction_is_followed_from_its_begin_and_where_it_matches_again() {
        let (prediction, mut drafts) = ([1, 2, 3, 4, 5, 2, 3, 9], vec![7; 3]);
        for (generated, most, expected) in [
            (&[1][..], 3, &[2, 3, 4][..]),
            (&[1, 2, 3, 4, 5], 9, &[2, 3, 9]),
            (&prediction, 9, &[]),
            // One token is no match; two are, for twice as many.
            (&[8, 4], 2, &[]),
            (&[8, 3, 4], 2, &[5, 2]),
            (&[8, 4, 5, 8, 1, 2], 9, &[3, 4, 5, 2]),
            // The nearest of two, but for a longer one.
            (&[8, 2, 3], 2, &[4, 5]),
            (&[8, 8, 8, 8, 8, 2, 3], 2, &[9]),
            (&[8, 8, 8, 8, 8, 1, 2, 3], 2, &[4, 5]),
            (&[8, 3, 9], 2, &[]),
        ] {
            follow_prediction(&prediction, generated, (MIN_MATCH, most), &mut drafts);
            assert_eq!(drafts, expected, "{generated:?}");
        }
        follow_prediction(&[], &[1, 2], (MIN_MATCH, 2), &mut drafts);
        assert!(drafts.is_empty());
    }

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
            prompt_lookup(&token_ids, (MIN_MATCH, most), &mut drafts);
            assert_eq!(drafts, expected, "{token_ids:?}");
        }
        let mut long: Vec<u32> = (0..40).collect();
        long.extend(10..35);
        prompt_lookup(&long, (MAX_MATCH, 3), &mut drafts);
        assert_eq!(drafts, [35, 36, 37]);
        prompt_lookup(&[1, 2, 3, 4, 1, 2, 3], (4, 3), &mut drafts);
        assert!(drafts.is_empty());
    }
}
