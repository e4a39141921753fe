//! `layer_norm`: out = (x - mean) / sqrt(variance + eps) * weight + bias, row by row (Ba et al. 2016).
//!
//! Bounded by memory: x is read three times, from the nearest cache after the first.

use super::simd;
use crate::backend::cpu::{Buffer, Isa, multiversion};

/// `x`, `out`: [rows, cols]; `weight`, `bias`: [cols]. Sums are taken in f64.
pub fn reference(out: &mut Buffer, x: &Buffer, weight: &[f32], bias: &[f32], eps: f32) {
    let cols = x.cols();
    assert_eq!((out.cols(), weight.len(), bias.len()), (cols, cols, cols), "invariant: equal widths");
    out.set_rows(x.rows());
    for (out, x) in out.data_mut().chunks_exact_mut(cols).zip(x.data().chunks_exact(cols)) {
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / cols as f64;
        let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / cols as f64;
        let scale = 1.0 / (variance + f64::from(eps)).sqrt();
        for (i, out) in out.iter_mut().enumerate() {
            *out = ((f64::from(x[i]) - mean) * scale) as f32 * weight[i] + bias[i];
        }
    }
}

/// The same with f32 sums in 16 lanes.
pub fn cpu(isa: Isa, out: &mut Buffer, x: &Buffer, weight: &[f32], bias: &[f32], eps: f32) {
    let cols = x.cols();
    assert_eq!((out.cols(), weight.len(), bias.len()), (cols, cols, cols), "invariant: equal widths");
    out.set_rows(x.rows());
    for (out, x) in out.data_mut().chunks_exact_mut(cols).zip(x.data().chunks_exact(cols)) {
        norm_row(isa, out, x, weight, bias, eps);
    }
}

multiversion! {
    fn norm_row(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) = norm_row_body
}

#[inline(always)]
fn norm_row_body<const FMA: bool>(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
    let len = x.len() as f32;
    let mean = simd::sum(x) / len;
    for (out, x) in out.iter_mut().zip(x) {
        *out = x - mean;
    }
    let scale = 1.0 / (simd::dot::<FMA>(out, out) / len + eps).sqrt();
    for ((out, &weight), &bias) in out.iter_mut().zip(weight).zip(bias) {
        *out = simd::mul_add::<FMA>(*out * scale, weight, bias);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, random};

    #[test]
    fn kernel_equals_reference() {
        for isa in Isa::available() {
            for (rows, cols) in [(0, 8), (1, 1), (3, 17), (5, 576), (2, 2560)] {
                let x = Buffer::from_vec(random(rows * cols, 1).iter().map(|x| x + 3.0).collect(), cols);
                let (weight, bias) = (random(cols, 2), random(cols, 3));
                let (mut expected, mut found) = (Buffer::new(rows, cols), Buffer::new(rows, cols));
                reference(&mut expected, &x, &weight, &bias, 1e-5);
                cpu(isa, &mut found, &x, &weight, &bias, 1e-5);
                assert_close(found.data(), expected.data(), 1e-5);
            }
        }
    }
}
