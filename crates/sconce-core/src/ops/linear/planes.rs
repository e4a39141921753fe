//! [`Planes`]: inputs in one or two planes of signed bytes, for products with unsigned codes.

use super::panels::GROUP;
use crate::backend::cpu::{Buffer, Isa, SharedSlice, ThreadPool};
use crate::config::MatmulPrecision;

/// The greatest input in two planes: 256 * 127 + 127.
const MAX_16: f32 = 32639.0;
/// The same in one.
const MAX_8: f32 = 127.0;
/// Rows that one task quantizes.
const TASK_ROWS: usize = 8;

/// Input rows as integers: x[i] = scale[i / 32] * q[i], q = 256 * hi + lo in 16 bits and q = hi in 8.
#[derive(Debug, Default)]
pub(crate) struct Planes {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) precision: MatmulPrecision,
    /// [rows, cols].
    pub(super) hi: Vec<i8>,
    /// [rows, cols]; not written in 8 bits.
    pub(super) lo: Vec<i8>,
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
        self.scale.resize((len / GROUP).max(self.scale.len()), 0.0);
        self.scaled_sum.resize((len / GROUP).max(self.scaled_sum.len()), 0.0);
        self.sum32.resize((len / GROUP).max(self.sum32.len()), 0);
        self.sum16.resize((len / 16).max(self.sum16.len()), 0);
        let (hi, lo) = (SharedSlice::new(&mut self.hi), SharedSlice::new(&mut self.lo));
        let (scale, scaled_sum) = (SharedSlice::new(&mut self.scale), SharedSlice::new(&mut self.scaled_sum));
        let (sum16, sum32) = (SharedSlice::new(&mut self.sum16), SharedSlice::new(&mut self.sum32));
        pool.run(x.rows().div_ceil(TASK_ROWS), &|task| {
            let start = task * TASK_ROWS * x.cols();
            let x = &x.data()[start..(start + TASK_ROWS * x.cols()).min(len)];
            let (group, num_groups) = (start / GROUP, x.len() / GROUP);
            // SAFETY: each task has rows of its own.
            let out = unsafe {
                PlanesMut {
                    hi: hi.range(start, x.len()),
                    lo: lo.range(start, x.len()),
                    scale: scale.range(group, num_groups),
                    scaled_sum: scaled_sum.range(group, num_groups),
                    sum16: sum16.range(2 * group, 2 * num_groups),
                    sum32: sum32.range(group, num_groups),
                }
            };
            #[cfg(target_arch = "x86_64")]
            if isa >= Isa::Avx512Vnni {
                // SAFETY: Isa::detect found the instructions on this machine.
                return unsafe { x86::quantize(precision, out, x) };
            }
            quantize(precision, out, x);
        });
    }

    /// The rows as the products see them.
    #[cfg(test)]
    pub(super) fn dequantize(&self) -> Buffer {
        let value = |i: usize| {
            let (hi, lo) = (i32::from(self.hi[i]), i32::from(self.lo[i]));
            let q = if self.precision == MatmulPrecision::Exact { 256 * hi + lo } else { hi };
            self.scale[i / GROUP] * q as f32
        };
        Buffer::from_vec((0..self.rows * self.cols).map(value).collect(), self.cols)
    }
}

/// Some rows, to be filled.
struct PlanesMut<'a> {
    hi: &'a mut [i8],
    lo: &'a mut [i8],
    scale: &'a mut [f32],
    scaled_sum: &'a mut [f32],
    sum16: &'a mut [i32],
    sum32: &'a mut [i32],
}

/// The plain form.
fn quantize(precision: MatmulPrecision, out: PlanesMut<'_>, x: &[f32]) {
    for (g, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
        let max = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let (scale, inverse) = scale_of(precision, max);
        let q = x.map(|x| (x * inverse).round_ties_even() as i32);
        for (i, q) in q.into_iter().enumerate() {
            // In 16 bits the low byte is a signed number, and what is left a multiple of 256.
            (out.hi[g * GROUP + i], out.lo[g * GROUP + i]) = match precision {
                MatmulPrecision::Exact => (((q + 128) >> 8) as i8, q as i8),
                MatmulPrecision::Fast => (q as i8, 0),
            };
        }
        let sums = [q[..16].iter().sum(), q[16..].iter().sum::<i32>()];
        out.sum16[2 * g..2 * g + 2].copy_from_slice(&sums);
        out.sum32[g] = sums[0] + sums[1];
        out.scale[g] = scale;
        out.scaled_sum[g] = scale * (sums[0] + sums[1]) as f32;
    }
}

/// A group's scale, and its inverse.
#[inline(always)]
fn scale_of(precision: MatmulPrecision, max: f32) -> (f32, f32) {
    let greatest = match precision {
        MatmulPrecision::Exact => MAX_16,
        MatmulPrecision::Fast => MAX_8,
    };
    if max > 0.0 { (max / greatest, greatest / max) } else { (0.0, 0.0) }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{GROUP, MatmulPrecision, PlanesMut, scale_of};

    /// The same with vectors of 16.
    ///
    /// # Safety
    /// The machine has AVX-512 F, BW, DQ and VL.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) unsafe fn quantize(precision: MatmulPrecision, out: PlanesMut<'_>, x: &[f32]) {
        for (g, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
            let (hi, lo) = (&mut out.hi[g * GROUP..(g + 1) * GROUP], &mut out.lo[g * GROUP..(g + 1) * GROUP]);
            // SAFETY: a group has 32 inputs, and 32 places in each plane.
            let sums = unsafe {
                let x = [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16))];
                let max = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(x[0]), _mm512_abs_ps(x[1])));
                let (scale, inverse) = scale_of(precision, max);
                out.scale[g] = scale;
                let inverse = _mm512_set1_ps(inverse);
                let mut sums = [0; 2];
                for half in 0..2 {
                    // Rounds to the nearest, halves to the even.
                    let q = _mm512_cvtps_epi32(_mm512_mul_ps(x[half], inverse));
                    sums[half] = _mm512_reduce_add_epi32(q);
                    let (hi, lo) = (hi.as_mut_ptr().add(16 * half), lo.as_mut_ptr().add(16 * half));
                    if precision == MatmulPrecision::Exact {
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
        for (precision, greatest) in [(MatmulPrecision::Exact, MAX_16), (MatmulPrecision::Fast, MAX_8)] {
            let mut plain = Planes::default();
            plain.fill(&mut ThreadPool::new(1), Isa::Baseline, precision, &x);
            for (x, found) in x.data().chunks_exact(GROUP).zip(plain.dequantize().data().chunks_exact(GROUP)) {
                let max = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                assert!(x.iter().zip(found).all(|(x, f)| (x - f).abs() <= 0.51 * max / greatest));
            }
            for isa in Isa::available() {
                let mut found = Planes::default();
                found.fill(&mut ThreadPool::new(2), isa, precision, &x);
                assert_eq!((&found.hi, &found.lo, &found.scale), (&plain.hi, &plain.lo, &plain.scale), "{isa:?}");
                assert_eq!((&found.sum16, &found.sum32), (&plain.sum16, &plain.sum32), "{isa:?}");
                assert_eq!(found.scaled_sum, plain.scaled_sum, "{isa:?}");
            }
        }
    }
}
