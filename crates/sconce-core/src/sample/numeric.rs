//! The arithmetic of a row: the exponential, and sums of it that are exact.
//!
//! A token's weight, exp((logit - max) / temperature) in [0, 1], is rounded to a multiple of 2^-34. Sums of up to 2^19
//! such numbers fit the 53 bits of an f64, so that they are exact whatever the order of addition: no vector width, no
//! partition and no thread count can change a probability. The rounding costs at most 2^-35 of the greatest
//! probability for each token.
//!
//! Loops are written over fixed arrays of lanes, in operations that every compiler target does alike.

use std::sync::LazyLock;

use crate::backend::cpu::{Isa, multiversion};

/// Lanes that the loops below are unrolled to; a multiple of every SIMD width.
const LANES: usize = 16;
/// Tokens that share one maximum or one sum, where a walk over a row can skip the uninteresting ones.
pub(super) const BLOCK: usize = 64;

/// A logit as the sampler sees it: NaN is as impossible as -inf, and +inf is the greatest finite number.
#[inline(always)]
pub(super) fn clean(logit: f32) -> f32 {
    let number = if logit > f32::NEG_INFINITY { logit } else { f32::NEG_INFINITY };
    if number < f32::MAX { number } else { f32::MAX }
}

/// exp(x) for x <= 0, within 2 units in the last place; 0 below -87, and of NaN.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Adding it rounds to an integer and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 as a short number, whose product with a small integer is exact, and the rest.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    // The Taylor series: |r| <= ln(2) / 2, so that its first missing term is below 6e-9.
    let tail = 1.0 / 120.0 + r * (1.0 / 720.0 + r * (1.0 / 5040.0));
    let series = 1.0 + (r + r * r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * tail))));
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x >= -87.0 { series * scale } else { 0.0 }
}

/// The weight of a token (see the module): 1 for the most probable one. `max` is finite, `temperature` above 0.
#[inline(always)]
pub(super) fn weight(logit: f32, max: f32, temperature: f32) -> f32 {
    /// Numbers in [GRID, 2 * GRID) are 2^-34 apart: adding it rounds a smaller number to that grid.
    const GRID: f32 = 1.0 / 2048.0;
    // Of what `clean` does this is enough: the exponential of NaN is 0 already.
    let logit = if f32::MAX < logit { f32::MAX } else { logit };
    let weight = exp((logit - max) / temperature);
    if weight < GRID { (weight + GRID) - GRID } else { weight }
}

/// The widest vectors of this machine. What they compute is the same on all.
static ISA: LazyLock<Isa> = LazyLock::new(Isa::detect);

/// The sum of the weights of a row. Exact.
pub(super) fn row_mass(row: &[f32], max: f32, temperature: f32) -> f64 {
    row_mass_of_isa(*ISA, row, max, temperature)
}

/// Adds to `masses` the sum of the weights of each block of a row.
pub(super) fn block_masses(row: &[f32], max: f32, temperature: f32, masses: &mut Vec<f64>) {
    block_masses_of_isa(*ISA, row, max, temperature, masses);
}

/// Adds to `maxima` the greatest logit of each block of a row.
pub(super) fn block_maxima(row: &[f32], maxima: &mut Vec<f32>) {
    block_maxima_of_isa(*ISA, row, maxima);
}

multiversion! {
    fn row_mass_of_isa(row: &[f32], max: f32, temperature: f32) -> f64 = row_mass_body
}

multiversion! {
    fn block_masses_of_isa(row: &[f32], max: f32, temperature: f32, masses: &mut Vec<f64>) = block_masses_body
}

multiversion! {
    fn block_maxima_of_isa(row: &[f32], maxima: &mut Vec<f32>) = block_maxima_body
}

#[inline(always)]
fn row_mass_body<const FMA: bool>(row: &[f32], max: f32, temperature: f32) -> f64 {
    let mut total = 0.0;
    for block in row.chunks(BLOCK) {
        total += block_mass(block, max, temperature);
    }
    total
}

#[inline(always)]
fn block_masses_body<const FMA: bool>(row: &[f32], max: f32, temperature: f32, masses: &mut Vec<f64>) {
    for block in row.chunks(BLOCK) {
        masses.push(block_mass(block, max, temperature));
    }
}

#[inline(always)]
fn block_maxima_body<const FMA: bool>(row: &[f32], maxima: &mut Vec<f32>) {
    for block in row.chunks(BLOCK) {
        maxima.push(block_max(block));
    }
}

/// The sum of the weights of at most [`BLOCK`] tokens. Exact.
#[inline(always)]
fn block_mass(block: &[f32], max: f32, temperature: f32) -> f64 {
    // Weights first, then the sum: each loop by itself is one that compilers vectorise.
    let mut weights = [0.0; BLOCK];
    for (slot, &logit) in weights.iter_mut().zip(block) {
        *slot = weight(logit, max, temperature);
    }
    let mut sums = [0.0f64; LANES];
    for chunk in weights.as_chunks::<LANES>().0 {
        for (sum, &weight) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(weight);
        }
    }
    sums.iter().sum()
}

/// The greatest logit of a block, as [`clean`] sees it; -inf where there is none.
#[inline(always)]
pub(super) fn block_max(block: &[f32]) -> f32 {
    let mut maxima = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = block.as_chunks::<LANES>();
    for chunk in chunks {
        for (max, &logit) in maxima.iter_mut().zip(chunk) {
            *max = if logit > *max { logit } else { *max };
        }
    }
    let mut max = f32::NEG_INFINITY;
    for &logit in maxima.iter().chain(rest) {
        max = if logit > max { logit } else { max };
    }
    clean(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_and_ends_well() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(-87.5), 0.0);
        assert_eq!(exp(f32::MIN), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::NAN), 0.0);
        for step in 0..870_000 {
            let x = step as f32 * -1e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.0 * f64::from(f32::EPSILON), "exp({x}): relative error {error:e}");
        }
    }

    #[test]
    fn weights_lie_on_the_grid_and_close_to_the_exponential() {
        for step in 0..40_000 {
            let x = step as f32 * -1e-3;
            let weight = f64::from(weight(x, 0.0, 1.0));
            let in_grid = weight * (1u64 << 34) as f64;
            assert_eq!(in_grid, in_grid.round(), "weight at {x}");
            let exact = f64::from(x).exp();
            assert!((weight - exact).abs() < exact * 3e-7 + 2f64.powi(-35), "weight at {x}: {weight:e}, not {exact:e}");
        }
    }

    #[test]
    fn odd_logits_are_cleaned() {
        let odd = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY, -0.0, 1.5];
        assert_eq!(odd.map(clean), [f32::NEG_INFINITY, f32::NEG_INFINITY, f32::MAX, 0.0, 1.5]);
        assert_eq!(block_max(&odd), f32::MAX);
        assert_eq!(block_max(&[f32::NAN; 20]), f32::NEG_INFINITY);
        assert_eq!(block_max(&[]), f32::NEG_INFINITY);
        assert_eq!(odd.map(|logit| weight(logit, f32::MAX, 1.0)), [0.0, 0.0, 1.0, 0.0, 0.0]);
        assert_eq!(weight(-1.0, 0.0, f32::from_bits(1)), 0.0);
        assert_eq!(weight(0.0, 0.0, f32::from_bits(1)), 1.0);
    }

    #[test]
    fn blocks_of_every_length_are_summed_whole() {
        for len in 0..=BLOCK {
            let block: Vec<f32> = (0..len).map(|i| -(i as f32) * 0.37).collect();
            let expected: f64 = block.iter().rev().map(|&logit| f64::from(weight(logit, 0.0, 0.9))).sum();
            assert_eq!(block_mass(&block, 0.0, 0.9), expected, "{len} tokens");
            assert_eq!(block_max(&block), if len == 0 { f32::NEG_INFINITY } else { 0.0 }, "{len} tokens");
        }
    }
}
