//! The softmax between the two products: scores of a span to weights.

use std::ops::Range;

use super::products::SPAN;
use super::scratch::Scratch;
use crate::ops::lanes::Lanes;
use crate::ops::simd::{self, LANES};

/// Scores go into weights as powers of two: e^x = 2^(x * this).
pub(super) const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// Gives a row's keys outside `seen` no weight, and finds the greatest score of the others.
///
/// # Safety
/// The machine has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn mask<V: Lanes, const FMA: bool>(
    scratch: &mut Scratch,
    row: usize,
    seen: Range<usize>,
    num_keys: usize,
    softcap: Option<f32>,
) {
    let scores = &mut scratch.scores[row * SPAN..(row + 1) * SPAN];
    if let Some(cap) = softcap {
        for score in &mut scores[seen.clone()] {
            *score = LOG2_E * cap * simd::tanh::<FMA>(*score / cap);
        }
    }
    if seen != (0..SPAN) {
        scores[..seen.start].fill(f32::NEG_INFINITY);
        scores[seen.end.max(seen.start)..].fill(f32::NEG_INFINITY);
    }
    // SAFETY: the caller vouches for the instructions; whole vectors of scores.
    scratch.greatest[row] = unsafe {
        let mut max = V::splat(f32::MIN);
        for scores in scores[..num_keys.next_multiple_of(LANES)].as_chunks::<LANES>().0 {
            max = max.max(V::load(scores.as_ptr()));
        }
        max.greatest()
    };
}

/// Turns the masked scores of `rows` into weights, and adds them to the rows' sums of weights.
///
/// # Safety
/// The machine has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn weigh<V: Lanes>(scratch: &mut Scratch, rows: Range<usize>, num_keys: usize) {
    let num_keys = num_keys.next_multiple_of(LANES);
    // SAFETY: the caller vouches for the instructions; all arrays have room for whole vectors of rows.
    unsafe {
        let mut row = rows.start;
        while row < rows.end {
            let n = LANES.min(rows.end - row);
            // Rows of other queries are not to be touched.
            let (max, greatest) = (scratch.part.max[row..].as_mut_ptr(), scratch.greatest[row..].as_ptr());
            let shrink = scratch.shrink[row..].as_mut_ptr();
            if n == LANES {
                let old = V::load(max);
                let new = V::load(greatest).max(old);
                old.sub(new).exp2().store(shrink);
                new.store(max);
            } else {
                let old = V::load_some(max, n);
                let new = V::load_some(greatest, n).max(old);
                old.sub(new).exp2().store_some(shrink, n);
                new.store_some(max, n);
            }
            row += n;
        }
        for row in rows {
            let max = V::splat(scratch.part.max[row]);
            let mut sum = V::splat(0.0);
            for weights in scratch.scores[row * SPAN..][..num_keys].as_chunks_mut::<LANES>().0 {
                let weight = V::load(weights.as_ptr()).sub(max).exp2();
                weight.store(weights.as_mut_ptr());
                sum = sum.add(weight);
            }
            let totals = scratch.totals[row * LANES..][..LANES].as_mut_ptr();
            let shrunk = V::load(totals).mul(V::splat(scratch.shrink[row]));
            shrunk.add(sum).store(totals);
        }
    }
}
