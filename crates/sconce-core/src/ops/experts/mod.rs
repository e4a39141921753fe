//! `experts`: a mixture of experts in place of an MLP. Each token goes through the few experts that its router logits choose:
//! out = sum of weight[e] * down[e](act(gate[e](x)) * up[e](x)), each product with its bias where there is one (Hugging Face's
//! `modeling_mixtral.py`, `modeling_qwen3_moe.py`, `modeling_gpt_oss.py`).
//!
//! A token's experts are those with its greatest logits, of equals the first. Their weights are exponentials of the logits over the
//! sum of the exponentials, of its experts or of all, in f32. The sum over experts is in the order of their ranks. So a row of out
//! depends on its row of x and of logits alone. Rows are put in the order of their experts ([`cpu`](mod@cpu) and
//! [`cuda`](mod@cuda)), so that an expert's matrices are read once for all of them. Bounded by the bytes of the experts that are
//! chosen for few rows, by FLOPs (6 * per_token * hidden * inter a token) for many.

mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod tests;

pub(crate) use cpu::{Scratch, cpu};

use crate::backend::ExpertsSpec;
use crate::backend::cpu::{Buffer, Matrix};
use crate::ops::{gated_linear, linear};

/// The most experts of a layer that there are kernels for.
pub const MAX_EXPERTS: usize = 512;
/// The most experts of a token.
pub const MAX_PER_TOKEN: usize = 32;

/// One of a token's experts.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pick {
    /// Which one.
    pub expert: u32,
    /// What its output is multiplied with.
    pub weight: f32,
}

/// The experts of one token, by rank, as many as `picks` has room for. `logits`: one an expert. NaN counts as the least number.
pub fn route(logits: &[f32], normalizes: bool, picks: &mut [Pick]) {
    let value = |logit: f32| if logit.is_nan() { f32::NEG_INFINITY } else { logit };
    let mut last: Option<(f32, usize)> = None;
    for pick in &mut *picks {
        let is_left = |&(idx, x): &(usize, f32)| last.is_none_or(|last| x < last.0 || (x == last.0 && idx > last.1));
        let left = logits.iter().map(|&logit| value(logit)).enumerate().filter(is_left);
        let best = left.reduce(|best, other| if other.1 > best.1 { other } else { best });
        let (idx, x) = best.expect("invariant: a token has no more experts than there are");
        *pick = Pick { expert: idx as u32, weight: x };
        last = Some((x, idx));
    }
    let max = picks.first().map_or(0.0, |pick| pick.weight);
    let exp = |x: f32| f64::from(x - max).exp() as f32;
    let of_all: f32 = if normalizes { 0.0 } else { logits.iter().map(|&logit| exp(value(logit))).sum() };
    picks.iter_mut().for_each(|pick| pick.weight = exp(pick.weight));
    let sum = if normalizes { picks.iter().map(|pick| pick.weight).sum() } else { of_all };
    picks.iter_mut().for_each(|pick| pick.weight /= sum);
}

/// `x`: [n, hidden]; `logits`: [n, experts]; `gate_up`: [2 * inter, hidden] an expert, gate's rows first; `down`: [hidden, inter] an
/// expert; `out`: [n, hidden]. Token by token; the sum over experts is taken in f64.
pub fn reference(out: &mut Buffer, x: &Buffer, logits: &Buffer, [gate_up, down]: [&[Matrix]; 2], spec: &ExpertsSpec) {
    check(out, x, logits, [gate_up, down]);
    out.set_rows(x.rows());
    let hidden = x.cols();
    let mut picks = vec![Pick::default(); spec.per_token];
    for t in 0..x.rows() {
        route(logits.row(t), spec.normalizes, &mut picks);
        let row = Buffer::from_vec(x.row(t).to_vec(), hidden);
        let mut sums = vec![0.0; hidden];
        for pick in &picks {
            let (gate_up, down) = (&gate_up[pick.expert as usize], &down[pick.expert as usize]);
            let (mut act, mut result) = (Buffer::new(1, down.cols), Buffer::new(1, hidden));
            gated_linear::reference(&mut act, &row, gate_up, spec.act);
            linear::reference(&mut result, &act, down);
            sums.iter_mut().zip(result.data()).for_each(|(sum, &x)| *sum += f64::from(pick.weight) * f64::from(x));
        }
        let out = &mut out.data_mut()[t * hidden..(t + 1) * hidden];
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum as f32);
    }
}

fn check(out: &Buffer, x: &Buffer, logits: &Buffer, [gate_up, down]: [&[Matrix]; 2]) {
    assert_eq!((x.rows(), x.cols()), (logits.rows(), out.cols()), "invariant: a row of logits each");
    assert_eq!((gate_up.len(), down.len()), (logits.cols(), logits.cols()), "invariant: a logit an expert");
    let fits = |(gate_up, down): (&Matrix, &Matrix)| {
        (gate_up.cols, gate_up.rows(), down.rows()) == (x.cols(), 2 * down.cols, out.cols())
    };
    assert!(gate_up.iter().zip(down).all(fits), "invariant: shapes fit");
}
