//! `rms_norm`: out = x / sqrt(mean(x^2) + eps) * weight, row by row (Zhang and Sennrich 2019; LlamaRMSNorm).
//!
//! Bounded by memory: x is read twice, from the nearest cache the second time.

use super::simd;
use crate::backend::cpu::{Buffer, Isa, multiversion};

/// `x`, `out`: [rows, cols]; `weight`: [cols]. The sum is taken in f64.
pub fn reference(out: &mut Buffer, x: &Buffer, weight: &[f32], eps: f32) {
    assert_eq!((out.cols(), weight.len()), (x.cols(), x.cols()), "invariant: equal widths");
    out.set_rows(x.rows());
    for (out, x) in out.data_mut().chunks_exact_mut(weight.len()).zip(x.data().chunks_exact(weight.len())) {
        let sum = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
        let scale = 1.0 / (sum / x.len() as f64 + f64::from(eps)).sqrt();
        out.iter_mut().zip(x).zip(weight).for_each(|((o, &x), &w)| *o = (f64::from(x) * scale) as f32 * w);
    }
}

/// The same with f32 sums in 16 lanes.
pub fn cpu(isa: Isa, out: &mut Buffer, x: &Buffer, weight: &[f32], eps: f32) {
    assert_eq!((out.cols(), weight.len()), (x.cols(), x.cols()), "invariant: equal widths");
    out.set_rows(x.rows());
    for (out, x) in out.data_mut().chunks_exact_mut(weight.len()).zip(x.data().chunks_exact(weight.len())) {
        norm_row(isa, out, x, weight, eps);
    }
}

multiversion! {
    fn norm_row(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) = norm_row_body
}

#[inline(always)]
fn norm_row_body<const FMA: bool>(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let scale = 1.0 / (simd::dot::<FMA>(x, x) / x.len() as f32 + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, random};

    #[test]
    fn kernel_equals_reference() {
        for isa in Isa::available() {
            for (rows, cols) in [(0, 8), (1, 1), (3, 17), (5, 576), (2, 3584)] {
                let x = Buffer::from_vec(random(rows * cols, 1), cols);
                let weight = random(cols, 2);
                let (mut expected, mut found) = (Buffer::new(rows, cols), Buffer::new(rows, cols));
                reference(&mut expected, &x, &weight, 1e-5);
                cpu(isa, &mut found, &x, &weight, 1e-5);
                assert_close(found.data(), expected.data(), 1e-5);
            }
        }
    }
}
