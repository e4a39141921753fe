//! The filters on weighted candidates: top-k, top-p, min-p, and the draw from what they leave.
//!
//! Candidates stand in no order; their weights are relative to the best token of the row, which has weight 1 and
//! passes every filter. Masses are exact (see [`numeric`](super::numeric)), so that the order of addition is free.

use super::numeric::{BLOCK, weight};
use super::select::Candidate;
use crate::config::SamplingParams;

/// A logit below which no token of a row of `vocab_size` can pass top-p and min-p, of which one at least is at work.
/// `total` is the row's mass, `max` its greatest logit.
pub(super) fn logit_floor(params: &SamplingParams, vocab_size: usize, max: f32, total: f64) -> f32 {
    // All tokens of less weight than this together have less mass than top-p leaves out.
    let top_p_share = (1.0 - f64::from(params.top_p)) * total / vocab_size as f64;
    let least_weight = top_p_share.max(f64::from(params.min_p));
    // Halved to be clear of every rounding.
    let floor = f64::from(max) + f64::from(params.temperature) * (0.5 * least_weight).ln();
    (floor as f32).next_down()
}

/// Gives each candidate its weight.
pub(super) fn weigh(candidates: &mut [Candidate], max: f32, temperature: f32) {
    // By way of an array: from candidate to candidate the exponential would not be vectorised.
    for chunk in candidates.chunks_mut(BLOCK) {
        let mut weights = [f32::NEG_INFINITY; BLOCK];
        for (slot, candidate) in weights.iter_mut().zip(&*chunk) {
            *slot = candidate.logit();
        }
        weights = weights.map(|logit| weight(logit, max, temperature));
        for (candidate, weight) in chunk.iter_mut().zip(weights) {
            candidate.weight = weight;
        }
    }
}

/// The sum of the candidates' weights.
pub(super) fn mass(candidates: &[Candidate]) -> f64 {
    let mut sums = [0.0; 4];
    let (chunks, rest) = candidates.as_chunks::<4>();
    for chunk in chunks {
        for (sum, candidate) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(candidate.weight);
        }
    }
    let rest: f64 = rest.iter().map(|candidate| f64::from(candidate.weight)).sum();
    sums.iter().sum::<f64>() + rest
}

/// Keeps the candidates whose logit is at least the k-th greatest: more than `k` where some are equal to it.
pub(super) fn keep_top_k(candidates: &mut Vec<Candidate>, k: usize) {
    if !(1..candidates.len()).contains(&k) {
        return;
    }
    let (_, &mut kth, _) = candidates.select_nth_unstable_by_key(k - 1, |candidate| candidate.rank_key());
    candidates.retain(|candidate| candidate.logit() >= kth.logit());
}

/// Keeps the smallest set of best candidates whose mass reaches `top_p` of `total`: at least one, equals by lowest id.
/// `total` is the mass of the distribution, of which candidates that cannot matter may already have been left out.
pub(super) fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f32, total: f64) {
    if top_p < 1.0 {
        let target = f64::from(top_p) * total;
        let len = best_until(candidates, |mass| mass >= target);
        candidates.truncate(len);
    }
}

/// Keeps the candidates with at least `min_p` of the greatest probability.
pub(super) fn keep_min_p(candidates: &mut Vec<Candidate>, min_p: f32) {
    if min_p > 0.0 {
        candidates.retain(|candidate| candidate.weight >= min_p);
    }
}

/// The candidate at `uniform`, in [0, 1), of the cumulative distribution, best first. `total` is the mass of the
/// candidates, of which there is at least one.
pub(super) fn draw(candidates: &mut [Candidate], uniform: f64, total: f64) -> Candidate {
    let target = draw_target(uniform, total);
    let len = best_until(candidates, |mass| mass > target);
    let worst = candidates[..len].iter().max_by_key(|candidate| candidate.rank_key());
    *worst.expect("invariant: the best token passes every filter")
}

/// The mass at `uniform`, in [0, 1): below `total` whatever the rounding, so that the cumulative mass passes it.
pub(super) fn draw_target(uniform: f64, total: f64) -> f64 {
    (uniform * total).min(total.next_down())
}

/// The least number of best candidates whose mass is `reached`; all of them where none is. Puts them first.
///
/// Halves the range in question by partition, so that the whole costs O(candidates), not a sort.
fn best_until(candidates: &mut [Candidate], reached: impl Fn(f64) -> bool) -> usize {
    let (mut start, mut end) = (0, candidates.len());
    let mut mass_before_start = 0.0;
    while end - start > 1 {
        let half = (end - start) / 2;
        candidates[start..end].select_nth_unstable_by_key(half, |candidate| candidate.rank_key());
        let mass_before_half = mass_before_start + mass(&candidates[start..start + half]);
        if reached(mass_before_half) {
            end = start + half;
        } else {
            start += half;
            mass_before_start = mass_before_half;
        }
    }
    end
}
