//! Log-probabilities: of a whole row, of its best tokens, and the reports that requests ask for.

use super::numeric::{block_max, clean};
use super::select::{Candidate, Selector, keep_best};
use super::softmax::Softmax;

/// One candidate token and its log-probability.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprob {
    /// The token.
    pub token_id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// 1 is the most probable of the vocabulary.
    pub rank: usize,
}

/// Log-probabilities at one position.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token that stands there.
    pub chosen: Logprob,
    /// The most probable tokens there, best first, as many as were asked for.
    pub top: Vec<Logprob>,
}

/// Turns a row of logits into log-probabilities, in place. NaN counts as -inf; where nothing else is in the row, all
/// become -inf.
pub fn log_softmax(row: &mut [f32]) {
    let softmax = Softmax::of_row(row, block_max(row), 1.0);
    for logit in row {
        *logit = softmax.logprob(*logit);
    }
}

/// Replaces `out` by the `k` best (token, logprob) of a row, best first, equals by lowest id.
///
/// Any row will do, of scores or of logprobs: nothing but its order is used. Tokens at NaN or -inf are never among the
/// best, so that there may be fewer than `k`. Costs one pass over the row, and allocates nothing once warm.
pub fn top_candidates(row: &[f32], k: usize, selector: &mut Selector, out: &mut Vec<(u32, f32)>) {
    out.clear();
    out.extend(selector.top(row, k).iter().map(|candidate| (candidate.token_id(), candidate.logit())));
}

/// The report on a token that stands after a row: its logprob and rank, and those of the `num_top` best.
pub(super) fn of_row(
    selector: &mut Selector,
    row: &[f32],
    softmax: Softmax,
    token_id: u32,
    num_top: usize,
) -> TokenLogprobs {
    let top = top_of_row(selector, row, softmax, num_top);
    of_token(row, softmax, token_id, None, top)
}

/// The `num_top` best tokens of a row.
pub(super) fn top_of_row(selector: &mut Selector, row: &[f32], softmax: Softmax, num_top: usize) -> Vec<Logprob> {
    list(selector.top(row, num_top), softmax)
}

/// [`of_row`], where the row's best are known, and perhaps the token's rank.
pub(super) fn of_token(
    row: &[f32],
    softmax: Softmax,
    token_id: u32,
    rank: Option<usize>,
    top: Vec<Logprob>,
) -> TokenLogprobs {
    let logit = row.get(token_id as usize).map_or(f32::NEG_INFINITY, |&logit| clean(logit));
    let rank = rank.or_else(|| rank_in(&top, token_id)).unwrap_or_else(|| rank_in_row(row, token_id, logit));
    TokenLogprobs { chosen: Logprob { token_id, logprob: softmax.logprob(logit), rank }, top }
}

/// The same where `candidates` are all that filters have left, `chosen` among them. Reorders them.
pub(super) fn of_candidates(
    candidates: &mut Vec<Candidate>,
    softmax: Softmax,
    chosen: Candidate,
    num_top: usize,
) -> TokenLogprobs {
    let rank = 1 + candidates.iter().filter(|candidate| candidate.rank_key() < chosen.rank_key()).count();
    keep_best(candidates, num_top);
    candidates.sort_unstable_by_key(|candidate| candidate.rank_key());
    let logprob = softmax.logprob(chosen.logit());
    TokenLogprobs { chosen: Logprob { token_id: chosen.token_id(), logprob, rank }, top: list(candidates, softmax) }
}

fn list(best_first: &[Candidate], softmax: Softmax) -> Vec<Logprob> {
    let logprob = |(idx, candidate): (usize, &Candidate)| Logprob {
        token_id: candidate.token_id(),
        logprob: softmax.logprob(candidate.logit()),
        rank: idx + 1,
    };
    best_first.iter().enumerate().map(logprob).collect()
}

fn rank_in(top: &[Logprob], token_id: u32) -> Option<usize> {
    top.iter().find(|logprob| logprob.token_id == token_id).map(|logprob| logprob.rank)
}

fn rank_in_row(row: &[f32], token_id: u32, logit: f32) -> usize {
    let (before, after) = row.split_at((token_id as usize).min(row.len()));
    let num_better_before = before.iter().filter(|&&other| clean(other) >= logit).count();
    let num_better_after = after.iter().filter(|&&other| clean(other) > logit).count();
    1 + num_better_before + num_better_after
}
