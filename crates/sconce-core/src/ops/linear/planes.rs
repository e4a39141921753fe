//! [`Planes`]: inputs in one or two planes of signed bytes, for products with unsigned codes, or in words.

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

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
/// A group whose greatest magnitude is not above it counts as zeros: what its inputs are multiplied with would not be finite.
const LEAST: f32 = 1e-30;
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
                #[cfg(target_arch = "aarch64")]
                if forms.planes && isa > Isa::Baseline {
                    neon::quantize(precision, limit, &mut out, x);
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
    pub(super) fn integers(&self) -> Vec<i32> {
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
        let (scale, inverse) = if max > LEAST { (max / greatest, greatest / max) } else { (0.0, 0.0) };
        if has_low || precision == MatmulPrecision::Fast {
            return Self { has_low, scale, inverse, shift: 0 };
        }
        Self { has_low, scale: scale / 256.0, inverse, shift: 8 }
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
        data[32..64].fill(1e-38);
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
            let most = if max > LEAST { 0.51 * max / greatest } else { max };
            assert!(x.iter().zip(found).all(|(x, f)| (x - f).abs() <= most));
            let is_whole = |q: &i32| precision == MatmulPrecision::Fast || q % 256 == 0;
            let integers = &integers[g * GROUP..(g + 1) * GROUP];
            assert!(plain.has_low[g] || integers.iter().all(is_whole), "group {g}");
        }
        let both = [true, false].into_iter().flat_map(|planes| [true, false].map(|words| Forms { planes, words }));
        for (isa, forms) in Isa::available().into_iter().flat_map(|isa| both.clone().map(move |forms| (isa, forms))) {
            // Who has no products of bytes never asks for planes, and who has them on Arm not for words.
            if forms.planes && (Isa::Avx2..Isa::Avx512Vnni).contains(&isa) || forms.words && isa == Isa::NeonDotprod {
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
