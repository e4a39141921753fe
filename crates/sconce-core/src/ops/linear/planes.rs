//! [`Planes`]: inputs in one or two planes of signed bytes, for products with unsigned codes.

use super::panels::GROUP;
use crate::backend::cpu::{Buffer, Isa, SharedSlice, ThreadPool, multiversion};
use crate::config::MatmulPrecision;
use crate::ops::simd;

/// The greatest input in two planes: 256 * 127 + 127.
const MAX_16: f32 = 32639.0;
/// The same in one.
const MAX_8: f32 = 127.0;
/// A group has 16 bits, where some have, if its greatest magnitude is above so many times the row's root mean square. On
/// the starter model that is one group in 13; they hold the outliers that cause most of the error of 8 bits.
const OUTLIER: f32 = 6.0;
/// Rows that one task quantizes.
const TASK_ROWS: usize = 8;

/// Input rows as integers: x[i] = scale[i / 32] * q[i], q = 256 * hi + lo in 16 bits and q = hi in 8. Where a row has groups
/// of both kinds ([`MatmulPrecision::Mixed`]), q = 256 * hi + lo in all, and lo is 0 in groups of 8 bits. Which these are
/// depends on the row alone.
#[derive(Debug, Default)]
pub(crate) struct Planes {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) precision: MatmulPrecision,
    /// [rows, cols].
    pub(super) hi: Vec<i8>,
    /// [rows, cols]; not written in 8 bits.
    pub(super) lo: Vec<i8>,
    /// [rows, cols / 32]: whether lo is used, where some groups have 16 bits.
    pub(super) has_low: Vec<bool>,
    /// [rows, cols / 32].
    pub(super) scale: Vec<f32>,
    /// [rows, cols / 32]: scale * sum of q.
    pub(super) scaled_sum: Vec<f32>,
    /// [rows, cols / 16]: sums of q.
    pub(super) sum16: Vec<i32>,
    /// [rows, cols / 32]: the same over 32.
    pub(super) sum32: Vec<i32>,
}

impl Planes {
    /// Quantizes the rows of `x`, whose length is a multiple of 32.
    pub(crate) fn fill(&mut self, pool: &mut ThreadPool, isa: Isa, precision: MatmulPrecision, x: &Buffer) {
        assert_eq!(x.cols() % GROUP, 0, "invariant: rows of quantized weights are whole blocks");
        (self.rows, self.cols, self.precision) = (x.rows(), x.cols(), precision);
        let len = self.rows * self.cols;
        // A longer buffer than this step needs stays: steps alternate between lengths.
        self.hi.resize(len.max(self.hi.len()), 0);
        self.lo.resize(len.max(self.lo.len()), 0);
        self.has_low.resize((len / GROUP).max(self.has_low.len()), false);
        self.scale.resize((len / GROUP).max(self.scale.len()), 0.0);
        self.scaled_sum.resize((len / GROUP).max(self.scaled_sum.len()), 0.0);
        self.sum32.resize((len / GROUP).max(self.sum32.len()), 0);
        self.sum16.resize((len / 16).max(self.sum16.len()), 0);
        let (hi, lo) = (SharedSlice::new(&mut self.hi), SharedSlice::new(&mut self.lo));
        let (scale, scaled_sum) = (SharedSlice::new(&mut self.scale), SharedSlice::new(&mut self.scaled_sum));
        let has_low = SharedSlice::new(&mut self.has_low);
        let (sum16, sum32) = (SharedSlice::new(&mut self.sum16), SharedSlice::new(&mut self.sum32));
        pool.run(x.rows().div_ceil(TASK_ROWS), &|task| {
            for row in task * TASK_ROWS..x.rows().min((task + 1) * TASK_ROWS) {
                let (start, cols) = (row * x.cols(), x.cols());
                let (group, groups) = (start / GROUP, cols / GROUP);
                // SAFETY: each task has rows of its own.
                let out = unsafe {
                    RowMut {
                        hi: hi.range(start, cols),
                        lo: lo.range(start, cols),
                        has_low: has_low.range(group, groups),
                        scale: scale.range(group, groups),
                        scaled_sum: scaled_sum.range(group, groups),
                        sum16: sum16.range(2 * group, 2 * groups),
                        sum32: sum32.range(group, groups),
                    }
                };
                let x = x.row(row);
                // The greatest magnitude of a group in 8 bits.
                let limit = match precision {
                    MatmulPrecision::Mixed => OUTLIER * root_mean_square(isa, x),
                    MatmulPrecision::Exact => -1.0,
                    MatmulPrecision::Fast => f32::INFINITY,
                };
                #[cfg(target_arch = "x86_64")]
                if isa >= Isa::Avx512Vnni {
                    // SAFETY: Isa::detect found the instructions on this machine.
                    unsafe { x86::quantize(precision, limit, out, x) };
                    continue;
                }
                quantize(precision, limit, out, x);
            }
        });
    }

    /// The rows as the products see them.
    #[cfg(test)]
    pub(super) fn dequantize(&self) -> Buffer {
        let value = |i: usize| {
            let (hi, lo) = (i32::from(self.hi[i]), i32::from(self.lo[i]));
            let q = if self.precision == MatmulPrecision::Fast { hi } else { 256 * hi + lo };
            self.scale[i / GROUP] * q as f32
        };
        Buffer::from_vec((0..self.rows * self.cols).map(value).collect(), self.cols)
    }
}

/// One row, to be filled.
struct RowMut<'a> {
    hi: &'a mut [i8],
    lo: &'a mut [i8],
    has_low: &'a mut [bool],
    scale: &'a mut [f32],
    scaled_sum: &'a mut [f32],
    sum16: &'a mut [i32],
    sum32: &'a mut [i32],
}

multiversion! {
    fn root_mean_square(x: &[f32]) -> f32 = root_mean_square_body
}

#[inline(always)]
fn root_mean_square_body<const FMA: bool>(x: &[f32]) -> f32 {
    (simd::dot::<FMA>(x, x) / x.len() as f32).sqrt()
}

/// The plain form.
fn quantize(precision: MatmulPrecision, limit: f32, out: RowMut<'_>, x: &[f32]) {
    for (g, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
        let max = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let form = Form::of(precision, limit, max);
        let q = x.map(|x| ((x * form.inverse).round_ties_even() as i32) << form.shift);
        for (i, q) in q.into_iter().enumerate() {
            // In two planes the low byte is a signed number, and what is left a multiple of 256.
            (out.hi[g * GROUP + i], out.lo[g * GROUP + i]) = match precision {
                MatmulPrecision::Fast => (q as i8, 0),
                _ => (((q + 128) >> 8) as i8, q as i8),
            };
        }
        let sums = [q[..16].iter().sum(), q[16..].iter().sum::<i32>()];
        out.sum16[2 * g..2 * g + 2].copy_from_slice(&sums);
        out.sum32[g] = sums[0] + sums[1];
        out.has_low[g] = form.has_low;
        out.scale[g] = form.scale;
        out.scaled_sum[g] = form.scale * (sums[0] + sums[1]) as f32;
    }
}

/// How a group becomes integers.
struct Form {
    has_low: bool,
    /// Of q.
    scale: f32,
    /// What inputs are multiplied with before they are rounded.
    inverse: f32,
    /// By how much the rounded ones are shifted then.
    shift: u32,
}

impl Form {
    #[inline(always)]
    fn of(precision: MatmulPrecision, limit: f32, max: f32) -> Self {
        let has_low = max > limit;
        let greatest = if has_low { MAX_16 } else { MAX_8 };
        let (scale, inverse) = if max > 0.0 { (max / greatest, greatest / max) } else { (0.0, 0.0) };
        if has_low || precision == MatmulPrecision::Fast {
            return Self { has_low, scale, inverse, shift: 0 };
        }
        Self { has_low, scale: scale / 256.0, inverse, shift: 8 }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Form, GROUP, MatmulPrecision, RowMut};

    /// The same with vectors of 16.
    ///
    /// # Safety
    /// The machine has AVX-512 F, BW, DQ and VL.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) unsafe fn quantize(precision: MatmulPrecision, limit: f32, out: RowMut<'_>, x: &[f32]) {
        for (g, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
            let (hi, lo) = (&mut out.hi[g * GROUP..(g + 1) * GROUP], &mut out.lo[g * GROUP..(g + 1) * GROUP]);
            // SAFETY: a group has 32 inputs, and 32 places in each plane.
            let sums = unsafe {
                let x = [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16))];
                let max = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(x[0]), _mm512_abs_ps(x[1])));
                let form = Form::of(precision, limit, max);
                (out.has_low[g], out.scale[g]) = (form.has_low, form.scale);
                let (inverse, shift) = (_mm512_set1_ps(form.inverse), _mm_cvtsi32_si128(form.shift as i32));
                let mut sums = [0; 2];
                for half in 0..2 {
                    // Rounds to the nearest, halves to the even.
                    let q = _mm512_sll_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(x[half], inverse)), shift);
                    sums[half] = _mm512_reduce_add_epi32(q);
                    let (hi, lo) = (hi.as_mut_ptr().add(16 * half), lo.as_mut_ptr().add(16 * half));
                    if precision != MatmulPrecision::Fast {
                        let high = _mm512_srai_epi32::<8>(_mm512_add_epi32(q, _mm512_set1_epi32(128)));
                        _mm_storeu_si128(hi.cast(), _mm512_cvtepi32_epi8(high));
                        _mm_storeu_si128(lo.cast(), _mm512_cvtepi32_epi8(q));
                    } else {
                        _mm_storeu_si128(hi.cast(), _mm512_cvtepi32_epi8(q));
                    }
                }
                sums
            };
            out.sum16[2 * g..2 * g + 2].copy_from_slice(&sums);
            out.sum32[g] = sums[0] + sums[1];
            out.scaled_sum[g] = out.scale[g] * (sums[0] + sums[1]) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::random;

    #[test]
    fn all_forms_are_equal_and_keep_their_bits() {
        let mut data = random(9 * 96, 3);
        data[64..96].fill(0.0);
        data[100] = 50.0;
        let x = Buffer::from_vec(data, 96);
        let precisions = [MatmulPrecision::Mixed, MatmulPrecision::Exact, MatmulPrecision::Fast];
        for precision in precisions {
            let mut plain = Planes::default();
            plain.fill(&mut ThreadPool::new(1), Isa::Baseline, precision, &x);
            let found = plain.dequantize();
            for (g, (x, found)) in x.data().chunks_exact(GROUP).zip(found.data().chunks_exact(GROUP)).enumerate() {
                let max = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                let has_16_bits =
                    precision == MatmulPrecision::Exact || precision == MatmulPrecision::Mixed && max == 50.0;
                assert_eq!(plain.has_low[g], has_16_bits || precision == MatmulPrecision::Exact, "group {g}");
                let greatest = if has_16_bits { MAX_16 } else { MAX_8 };
                assert!(x.iter().zip(found).all(|(x, f)| (x - f).abs() <= 0.51 * max / greatest));
                let low = &plain.lo[g * GROUP..(g + 1) * GROUP];
                assert!(plain.has_low[g] || low.iter().all(|&lo| lo == 0), "group {g}");
            }
            for isa in Isa::available() {
                let mut found = Planes::default();
                found.fill(&mut ThreadPool::new(2), isa, precision, &x);
                assert_eq!((&found.hi, &found.lo, &found.scale), (&plain.hi, &plain.lo, &plain.scale), "{isa:?}");
                assert_eq!((&found.sum16, &found.sum32), (&plain.sum16, &plain.sum32), "{isa:?}");
                assert_eq!(
                    (found.scaled_sum, found.has_low),
                    (plain.scaled_sum.clone(), plain.has_low.clone()),
                    "{isa:?}"
                );
            }
        }
    }
}
