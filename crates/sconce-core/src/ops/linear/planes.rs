//! [`Planes`]: inputs in one or two planes of signed bytes, for products with unsigned codes, or in words.

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
/// depends on the row alone. Where the machine has no products of bytes, words of 16 bits have q in place of the planes.
#[derive(Debug, Default)]
pub(crate) struct Planes {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) precision: MatmulPrecision,
    /// [rows, cols]; beside words in 8 bits alone.
    pub(super) hi: Vec<i8>,
    /// [rows, cols]; not in 8 bits, and not beside words.
    pub(super) lo: Vec<i8>,
    /// [rows, cols]: q; of every 4 columns the first, third, second and fourth.
    pub(super) words: Vec<i16>,
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

/// In which forms inputs are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Forms {
    pub(super) planes: bool,
    pub(super) words: bool,
}

impl Planes {
    /// Quantizes the rows of `x`, whose length is a multiple of 32.
    pub(super) fn fill(
        &mut self,
        pool: &mut ThreadPool,
        isa: Isa,
        (precision, forms): (MatmulPrecision, Forms),
        x: &Buffer,
    ) {
        assert_eq!(x.cols() % GROUP, 0, "invariant: rows of quantized weights are whole blocks");
        (self.rows, self.cols, self.precision) = (x.rows(), x.cols(), precision);
        let len = self.rows * self.cols;
        // A longer buffer than this step needs stays: steps alternate between lengths.
        let has_hi = forms.planes || precision == MatmulPrecision::Fast;
        self.hi.resize(if has_hi { len } else { 0 }.max(self.hi.len()), 0);
        self.lo.resize(if forms.planes { len } else { 0 }.max(self.lo.len()), 0);
        self.words.resize(if forms.words { len } else { 0 }.max(self.words.len()), 0);
        self.has_low.resize((len / GROUP).max(self.has_low.len()), false);
        self.scale.resize((len / GROUP).max(self.scale.len()), 0.0);
        self.scaled_sum.resize((len / GROUP).max(self.scaled_sum.len()), 0.0);
        self.sum32.resize((len / GROUP).max(self.sum32.len()), 0);
        self.sum16.resize((len / 16).max(self.sum16.len()), 0);
        let (hi, lo) = (SharedSlice::new(&mut self.hi), SharedSlice::new(&mut self.lo));
        let words = SharedSlice::new(&mut self.words);
        let (scale, scaled_sum) = (SharedSlice::new(&mut self.scale), SharedSlice::new(&mut self.scaled_sum));
        let has_low = SharedSlice::new(&mut self.has_low);
        let (sum16, sum32) = (SharedSlice::new(&mut self.sum16), SharedSlice::new(&mut self.sum32));
        pool.run(x.rows().div_ceil(TASK_ROWS), &|task| {
            for row in task * TASK_ROWS..x.rows().min((task + 1) * TASK_ROWS) {
                let (start, cols) = (row * x.cols(), x.cols());
                let (group, groups) = (start / GROUP, cols / GROUP);
                let part = |is_wanted: bool| if is_wanted { (start, cols) } else { (0, 0) };
                let (of_hi, of_lo, of_words) = (part(has_hi), part(forms.planes), part(forms.words));
                // SAFETY: each task has rows of its own.
                let mut out = unsafe {
                    RowMut {
                        hi: hi.range(of_hi.0, of_hi.1),
                        lo: lo.range(of_lo.0, of_lo.1),
                        words: words.range(of_words.0, of_words.1),
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
                if forms.planes && isa >= Isa::Avx512Vnni {
                    // SAFETY: Isa::detect found the instructions on this machine.
                    unsafe { x86::quantize(precision, limit, &mut out, x) };
                    if !forms.words {
                        continue;
                    }
                }
                #[cfg(target_arch = "x86_64")]
                if forms.words && isa >= Isa::Avx2 {
                    // SAFETY: as above.
                    unsafe { x86::quantize_words(precision, limit, &mut out, x) };
                    continue;
                }
                quantize(precision, limit, &mut out, x);
            }
        });
    }

    /// The rows as the products see them.
    #[cfg(test)]
    pub(super) fn dequantize(&self) -> Buffer {
        let values = self.integers().into_iter().enumerate().map(|(i, q)| self.scale[i / GROUP] * q as f32);
        Buffer::from_vec(values.collect(), self.cols)
    }

    /// q of all rows, whichever form they are in.
    #[cfg(test)]
    fn integers(&self) -> Vec<i32> {
        let integer = |i: usize| {
            if !self.words.is_empty() {
                return i32::from(self.words[i / 4 * 4 + word_of(i % 4)]);
            }
            let (hi, lo) = (i32::from(self.hi[i]), i32::from(self.lo[i]));
            if self.precision == MatmulPrecision::Fast { hi } else { 256 * hi + lo }
        };
        (0..self.rows * self.cols).map(integer).collect()
    }
}

/// Where the word of a column stands among those of its four: its own inverse.
fn word_of(column: usize) -> usize {
    [0, 2, 1, 3][column]
}

/// One row, to be filled: its planes, or its words; what is not wanted is empty.
struct RowMut<'a> {
    hi: &'a mut [i8],
    lo: &'a mut [i8],
    words: &'a mut [i16],
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
fn quantize(precision: MatmulPrecision, limit: f32, out: &mut RowMut<'_>, x: &[f32]) {
    for (g, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
        let max = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let form = Form::of(precision, limit, max);
        let q = x.map(|x| ((x * form.inverse).round_ties_even() as i32) << form.shift);
        // In two planes the low byte is a signed number, and what is left a multiple of 256.
        let is_one = precision == MatmulPrecision::Fast;
        for (i, q) in q.into_iter().enumerate() {
            let at = g * GROUP + i;
            out.hi.get_mut(at).into_iter().for_each(|hi| *hi = if is_one { q } else { (q + 128) >> 8 } as i8);
            out.lo.get_mut(at).into_iter().for_each(|lo| *lo = if is_one { 0 } else { q as i8 });
            out.words.get_mut(at / 4 * 4 + word_of(at % 4)).into_iter().for_each(|word| *word = q as i16);
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

    use super::{Form, GROUP, MAX_8, MAX_16, MatmulPrecision, RowMut};

    /// Groups that are quantized together, so that what is one number a group is found for all of them at once.
    const GROUPS: usize = 4;

    /// The same, by vectors.
    ///
    /// # Safety
    /// The machine has AVX-512 F, BW, DQ, VL and VNNI.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub(super) unsafe fn quantize(precision: MatmulPrecision, limit: f32, out: &mut RowMut<'_>, x: &[f32]) {
        let num_groups = x.len() / GROUP;
        if num_groups < GROUPS {
            return super::quantize(precision, limit, out, x);
        }
        for first in (0..num_groups).step_by(GROUPS) {
            // SAFETY: the groups are there. The last ones may be quantized twice, to the same.
            unsafe { groups(precision, limit, out, x, first.min(num_groups - GROUPS)) };
        }
    }

    /// Groups `first..first + GROUPS`.
    ///
    /// # Safety
    /// The machine has the instructions; the row has the groups.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn groups(precision: MatmulPrecision, limit: f32, out: &mut RowMut<'_>, x: &[f32], first: usize) {
        let (x, at) = (x[first * GROUP..].as_ptr(), first * GROUP);
        let mut max = [_mm256_setzero_ps(); GROUPS];
        for (g, max) in max.iter_mut().enumerate() {
            // SAFETY: a group has 32 inputs.
            let (a, b) = unsafe { (_mm512_loadu_ps(x.add(g * GROUP)), _mm512_loadu_ps(x.add(g * GROUP + 16))) };
            let both = _mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b));
            *max = _mm256_max_ps(_mm512_castps512_ps256(both), _mm512_extractf32x8_ps::<1>(both));
        }
        let max = max_of_each(max);
        // As `Form::of` has them.
        let has_low = _mm_cmp_ps_mask::<_CMP_GT_OQ>(max, _mm_set1_ps(limit));
        let greatest = _mm_mask_blend_ps(has_low, _mm_set1_ps(MAX_8), _mm_set1_ps(MAX_16));
        let is_any = _mm_cmp_ps_mask::<_CMP_GT_OQ>(max, _mm_setzero_ps());
        let (mut scale, inverse) = (_mm_maskz_div_ps(is_any, max, greatest), _mm_maskz_div_ps(is_any, greatest, max));
        let is_shifted = if precision == MatmulPrecision::Fast { 0 } else { !has_low };
        scale = _mm_mask_mul_ps(scale, is_shifted, scale, _mm_set1_ps(1.0 / 256.0));
        let shift = _mm_maskz_set1_epi32(is_shifted, 8);
        let (mut inverses, mut shifts) = ([0.0; GROUPS], [0; GROUPS]);
        let (mut hi_sums, mut lo_sums) = ([_mm256_setzero_si256(); GROUPS], [_mm256_setzero_si256(); GROUPS]);
        let (ones, zero) = (_mm256_set1_epi8(1), _mm256_setzero_si256());
        // SAFETY: places for 4 numbers, and for the 32 of each group in each plane.
        unsafe {
            _mm_storeu_ps(inverses.as_mut_ptr(), inverse);
            _mm_storeu_si128(shifts.as_mut_ptr().cast(), shift);
            for g in 0..GROUPS {
                let (inverse, shift) = (_mm512_set1_ps(inverses[g]), _mm512_set1_epi32(shifts[g]));
                let (mut hi, mut lo) = ([_mm_setzero_si128(); 2], [_mm_setzero_si128(); 2]);
                for half in 0..2 {
                    // Rounds to the nearest, halves to the even.
                    let x = _mm512_loadu_ps(x.add(g * GROUP + 16 * half));
                    let q = _mm512_sllv_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)), shift);
                    if precision == MatmulPrecision::Fast {
                        hi[half] = _mm512_cvtepi32_epi8(q);
                    } else {
                        let high = _mm512_srai_epi32::<8>(_mm512_add_epi32(q, _mm512_set1_epi32(128)));
                        (hi[half], lo[half]) = (_mm512_cvtepi32_epi8(high), _mm512_cvtepi32_epi8(q));
                    }
                }
                let (hi, lo) = (_mm256_set_m128i(hi[1], hi[0]), _mm256_set_m128i(lo[1], lo[0]));
                _mm256_storeu_si256(out.hi.as_mut_ptr().add(at + g * GROUP).cast(), hi);
                hi_sums[g] = _mm256_dpbusd_epi32(zero, ones, hi);
                if precision != MatmulPrecision::Fast {
                    _mm256_storeu_si256(out.lo.as_mut_ptr().add(at + g * GROUP).cast(), lo);
                    lo_sums[g] = _mm256_dpbusd_epi32(zero, ones, lo);
                }
            }
            // Of each half: [sums of the first halves, sums of the second ones].
            let sums = match precision {
                MatmulPrecision::Fast => sum_of_each(hi_sums),
                _ => _mm256_add_epi32(_mm256_slli_epi32::<8>(sum_of_each(hi_sums)), sum_of_each(lo_sums)),
            };
            let of_halves = _mm256_permutevar8x32_epi32(sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            let of_groups = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
            let scaled = _mm_mul_ps(scale, _mm_cvtepi32_ps(of_groups));
            _mm256_storeu_si256(out.sum16[2 * first..2 * (first + GROUPS)].as_mut_ptr().cast(), of_halves);
            _mm_storeu_si128(out.sum32[first..first + GROUPS].as_mut_ptr().cast(), of_groups);
            _mm_storeu_ps(out.scale[first..first + GROUPS].as_mut_ptr(), scale);
            _mm_storeu_ps(out.scaled_sum[first..first + GROUPS].as_mut_ptr(), scaled);
        }
        for (g, has) in out.has_low[first..first + GROUPS].iter_mut().enumerate() {
            *has = has_low >> g & 1 == 1;
        }
    }

    /// One row in words.
    ///
    /// # Safety
    /// The machine has AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn quantize_words(precision: MatmulPrecision, limit: f32, out: &mut RowMut<'_>, x: &[f32]) {
        let sign = _mm256_set1_ps(-0.0);
        for (g, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
            // SAFETY: a group has 32 inputs, and as many words.
            unsafe {
                let x: [__m256; 4] = std::array::from_fn(|i| _mm256_loadu_ps(x[8 * i..].as_ptr()));
                let [a, b, c, d] = x.map(|x| _mm256_andnot_ps(sign, x));
                let max = _mm256_max_ps(_mm256_max_ps(a, b), _mm256_max_ps(c, d));
                let max = _mm_max_ps(_mm256_castps256_ps128(max), _mm256_extractf128_ps::<1>(max));
                let max = _mm_max_ps(max, _mm_movehl_ps(max, max));
                let max = _mm_cvtss_f32(_mm_max_ss(max, _mm_movehdup_ps(max)));
                let form = Form::of(precision, limit, max);
                let (inverse, shift) = (_mm256_set1_ps(form.inverse), _mm_cvtsi32_si128(form.shift as i32));
                let q = x.map(|x| _mm256_sll_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(x, inverse)), shift));
                if precision == MatmulPrecision::Fast {
                    let (first, last) = (_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
                    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
                    let bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(first, last), order);
                    _mm256_storeu_si256(out.hi[g * GROUP..][..GROUP].as_mut_ptr().cast(), bytes);
                }
                for half in 0..2 {
                    let both = _mm256_packs_epi32(q[2 * half], q[2 * half + 1]);
                    let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(both);
                    let words = _mm256_shufflehi_epi16::<0b11_01_10_00>(words);
                    let words = _mm256_shufflelo_epi16::<0b11_01_10_00>(words);
                    _mm256_storeu_si256(out.words[g * GROUP + 16 * half..][..16].as_mut_ptr().cast(), words);
                    out.sum16[2 * g + half] = sum(_mm256_add_epi32(q[2 * half], q[2 * half + 1]));
                }
                out.sum32[g] = out.sum16[2 * g] + out.sum16[2 * g + 1];
                out.has_low[g] = form.has_low;
                out.scale[g] = form.scale;
                out.scaled_sum[g] = form.scale * out.sum32[g] as f32;
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn sum(x: __m256i) -> i32 {
        let four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
        let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b11_10>(four));
        _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
    }

    /// The greatest of each vector's numbers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx2")]
    fn max_of_each([a, b, c, d]: [__m256; GROUPS]) -> __m128 {
        let ab = _mm256_max_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let cd = _mm256_max_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        let all = _mm256_max_ps(_mm256_shuffle_ps::<0x44>(ab, cd), _mm256_shuffle_ps::<0xee>(ab, cd));
        _mm_max_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps::<1>(all))
    }

    /// The sums of each vector's first four numbers, then those of the last four.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx2")]
    fn sum_of_each([a, b, c, d]: [__m256i; GROUPS]) -> __m256i {
        _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::random;

    #[test]
    fn all_forms_are_equal_and_keep_their_bits() {
        // Fewer groups than are quantized together, as many, and more.
        for cols in [96, 128, 352] {
            for precision in [MatmulPrecision::Mixed, MatmulPrecision::Exact, MatmulPrecision::Fast] {
                check(cols, precision);
            }
        }
    }

    fn check(cols: usize, precision: MatmulPrecision) {
        let mut data = random(9 * cols, 3);
        data[64..96].fill(0.0);
        data[cols + 4] = 50.0;
        let x = Buffer::from_vec(data, cols);
        let forms = Forms { planes: true, words: true };
        let mut plain = Planes::default();
        plain.fill(&mut ThreadPool::new(1), Isa::Baseline, (precision, forms), &x);
        let (found, integers) = (plain.dequantize(), plain.integers());
        for (g, (x, found)) in x.data().chunks_exact(GROUP).zip(found.data().chunks_exact(GROUP)).enumerate() {
            let max = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            let has_16_bits = precision == MatmulPrecision::Exact || precision == MatmulPrecision::Mixed && max == 50.0;
            assert_eq!(plain.has_low[g], has_16_bits, "group {g}");
            let greatest = if has_16_bits { MAX_16 } else { MAX_8 };
            assert!(x.iter().zip(found).all(|(x, f)| (x - f).abs() <= 0.51 * max / greatest));
            let is_whole = |q: &i32| precision == MatmulPrecision::Fast || q % 256 == 0;
            let integers = &integers[g * GROUP..(g + 1) * GROUP];
            assert!(plain.has_low[g] || integers.iter().all(is_whole), "group {g}");
        }
        let both = [true, false].into_iter().flat_map(|planes| [true, false].map(|words| Forms { planes, words }));
        for (isa, forms) in Isa::available().into_iter().flat_map(|isa| both.clone().map(move |forms| (isa, forms))) {
            // Who has no products of bytes never asks for planes.
            if forms.planes && (Isa::Avx2..Isa::Avx512Vnni).contains(&isa) {
                continue;
            }
            let mut found = Planes::default();
            found.fill(&mut ThreadPool::new(2), isa, (precision, forms), &x);
            let case = format!("{isa:?}, {forms:?}");
            if forms.planes {
                assert_eq!((&found.hi, &found.lo), (&plain.hi, &plain.lo), "{case}");
            }
            if forms.words {
                assert_eq!(found.words, plain.words, "{case}");
                assert!(precision != MatmulPrecision::Fast || found.hi == plain.hi, "{case}");
            }
            assert_eq!(
                (&found.sum16, &found.sum32, &found.scale),
                (&plain.sum16, &plain.sum32, &plain.scale),
                "{case}"
            );
            assert_eq!((&found.scaled_sum, &found.has_low), (&plain.scaled_sum, &plain.has_low), "{case}");
        }
        let of_planes = |i: usize| i32::from(plain.hi[i]) * if precision == MatmulPrecision::Fast { 1 } else { 256 };
        let both = (0..9 * cols).map(|i| of_planes(i) + i32::from(plain.lo[i]));
        assert!(both.eq(integers));
    }
}
