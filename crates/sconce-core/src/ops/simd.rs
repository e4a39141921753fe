//! Pieces of kernels that the compiler vectorises when it inlines them into a [`multiversion`]ed function.
//!
//! They are loops, not closures: a closure is compiled as a function of its own, without the caller's instruction set,
//! and is then not inlined into it.
//!
//! Sums run in a fixed number of lanes whatever the machine's width, so that a row's result does not depend on which
//! rows are computed beside it.
//!
//! [`multiversion`]: crate::backend::cpu::multiversion

/// Lanes of every sum.
pub(super) const LANES: usize = 16;

/// a * b + c, fused where the machine does that in one instruction.
#[inline(always)]
pub(super) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Adds the lanes, pairwise.
#[inline(always)]
pub(super) fn sum_lanes(mut acc: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            acc[i] += acc[i + width];
        }
        width /= 2;
    }
    acc[0]
}

/// acc[i] += a[i] * b[i], lane by lane.
#[inline(always)]
pub(super) fn add_products<const FMA: bool>(acc: &mut [f32; LANES], a: &[f32; LANES], b: &[f32; LANES]) {
    #[cfg(target_arch = "x86_64")]
    if FMA {
        use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_loadu_ps, _mm256_storeu_ps};
        // The compiler turns the plain loop into pairs of lanes.
        // SAFETY: FMA stands only in functions compiled for AVX2 and FMA; the arrays have 16 elements each.
        unsafe {
            let (acc, a, b) = (acc.as_mut_ptr(), a.as_ptr(), b.as_ptr());
            let low = _mm256_fmadd_ps(_mm256_loadu_ps(a), _mm256_loadu_ps(b), _mm256_loadu_ps(acc));
            let high =
                _mm256_fmadd_ps(_mm256_loadu_ps(a.add(8)), _mm256_loadu_ps(b.add(8)), _mm256_loadu_ps(acc.add(8)));
            _mm256_storeu_ps(acc, low);
            _mm256_storeu_ps(acc.add(8), high);
        }
        return;
    }
    #[cfg(target_arch = "aarch64")]
    if FMA {
        use std::arch::aarch64::{vfmaq_f32, vld1q_f32, vst1q_f32};
        for i in (0..LANES).step_by(4) {
            // SAFETY: every aarch64 has NEON; the arrays have 16 elements each.
            unsafe {
                let (acc, a, b) = (acc.as_mut_ptr().add(i), a.as_ptr().add(i), b.as_ptr().add(i));
                vst1q_f32(acc, vfmaq_f32(vld1q_f32(acc), vld1q_f32(a), vld1q_f32(b)));
            }
        }
        return;
    }
    for i in 0..LANES {
        acc[i] = mul_add::<FMA>(a[i], b[i], acc[i]);
    }
}

/// Sum of a[i] * b[i].
#[inline(always)]
pub(super) fn dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut acc = [0.0; LANES];
    let ((a_chunks, a_rest), (b_chunks, b_rest)) = (a.as_chunks(), b.as_chunks());
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        add_products::<FMA>(&mut acc, a, b);
    }
    sum_lanes(acc) + dot_rest::<FMA>(a_rest, b_rest)
}

/// The same of fewer elements than lanes, one after the other: lanes that are indexed would leave the registers.
#[inline(always)]
pub(super) fn dot_rest<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut sum = 0.0;
    for (&a, &b) in a.iter().zip(b) {
        sum = mul_add::<FMA>(a, b, sum);
    }
    sum
}

/// Sum of x[i].
#[inline(always)]
pub(super) fn sum(x: &[f32]) -> f32 {
    let mut acc = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for x in chunks {
        for i in 0..LANES {
            acc[i] += x[i];
        }
    }
    let mut sum = 0.0;
    for x in rest {
        sum += x;
    }
    sum_lanes(acc) + sum
}

/// e^x within 2 units in the last place; 0 below -87.3, infinity above 88.7. (Range reduction and the polynomial as in
/// Moshier's Cephes `expf`.)
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.336_54, 88.722_83);
    let n = (clamped * std::f32::consts::LOG2_E).round_ties_even();
    let r = mul_add::<FMA>(n, -LN2_LO, mul_add::<FMA>(n, -LN2_HI, clamped));
    let mut p = 1.987_569_2e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = mul_add::<FMA>(p, r, c);
    }
    let y = mul_add::<FMA>(p * r, r, r) + 1.0;
    // 2^n in two factors: n reaches 128, whose power is no f32.
    let half = (n * 0.5).round_ties_even();
    let result = y * power_of_two(half) * power_of_two(n - half);
    if x < -87.336_54 {
        0.0
    } else if x > 88.722_83 {
        f32::INFINITY
    } else {
        result
    }
}

/// 2^n for an integer n from -126 to 127.
#[inline(always)]
fn power_of_two(n: f32) -> f32 {
    /// Adding it leaves an integer in the low bits: a conversion to i32, which compilers do not vectorise because it
    /// saturates, is not needed.
    const ROUND: f32 = 12_582_912.0;
    f32::from_bits(((n + ROUND).to_bits() << 23).wrapping_add(1.0f32.to_bits()))
}

/// Hyperbolic tangent within 3e-7, relatively. (The polynomial as in Moshier's Cephes `tanhf`.)
#[inline(always)]
pub(super) fn tanh<const FMA: bool>(x: f32) -> f32 {
    let square = x * x;
    let mut p = -5.704_988_7e-3;
    for c in [2.063_909e-2, -5.373_971_6e-2, 0.133_314_42, -0.333_332_84] {
        p = mul_add::<FMA>(p, square, c);
    }
    let small = mul_add::<FMA>(p * square, x, x);
    let large = 1.0 - 2.0 / (exp::<FMA>(2.0 * x) + 1.0);
    // The quotient cancels near 0, the polynomial serves only there.
    if x.abs() < 0.625 { small } else { large }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_two_ulps() {
        for i in -873_000..887_000 {
            let x = i as f32 * 1e-4;
            let (found, expected) = (f64::from(exp::<true>(x)), f64::from(x).exp());
            assert!((found - expected).abs() <= expected * 2.4e-7, "exp({x}) = {found}, expected {expected}");
        }
        assert_eq!(exp::<false>(-100.0), 0.0);
        assert_eq!(exp::<false>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<false>(100.0), f32::INFINITY);
        assert_eq!(exp::<false>(0.0), 1.0);
    }

    #[test]
    fn tanh_is_exact_to_3e_7() {
        for i in -200_000..=200_000 {
            let x = i as f32 * 1e-4;
            let (found, expected) = (f64::from(tanh::<true>(x)), f64::from(x).tanh());
            assert!((found - expected).abs() <= 3e-7 * expected.abs().max(1e-3), "tanh({x}) = {found}, {expected}");
        }
        assert_eq!((tanh::<false>(1e30), tanh::<false>(-1e30)), (1.0, -1.0));
    }

    #[test]
    fn dot_sums_every_length() {
        for len in 0..70 {
            let a: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let expected: f32 = a.iter().map(|x| x * x).sum();
            assert_eq!(dot::<false>(&a, &a), expected);
        }
    }
}
