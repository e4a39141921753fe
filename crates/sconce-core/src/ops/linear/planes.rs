//! [`Planes`]: inputs in one or two planes of signed bytes, for products with unsigned codes.

use super::panels::GROUP;
use crate::backend::cpu::{Buffer, InputBits, Isa, SharedSlice, ThreadPool, multiversion};

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
    pub(super) bits: InputBits,
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
    pub(crate) fn fill(&mut self, pool: &mut ThreadPool, isa: Isa, bits: InputBits, x: &Buffer) {
        assert_eq!(x.cols() % GROUP, 0, "invariant: rows of quantized weights are whole blocks");
        (self.rows, self.cols, self.bits) = (x.rows(), x.cols(), bits);
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
            match bits {
                InputBits::Sixteen => quantize_16(isa, out, x),
                InputBits::Eight => quantize_8(isa, out, x),
            }
        });
    }

    /// The rows as the products see them.
    #[cfg(test)]
    pub(super) fn dequantize(&self) -> Buffer {
        let value = |i: usize| {
            let (hi, lo) = (i32::from(self.hi[i]), i32::from(self.lo[i]));
            let q = if self.bits == InputBits::Sixteen { 256 * hi + lo } else { hi };
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

multiversion! {
    fn quantize_16(out: PlanesMut<'_>, x: &[f32]) = quantize_16_body
}

multiversion! {
    fn quantize_8(out: PlanesMut<'_>, x: &[f32]) = quantize_8_body
}

#[inline(always)]
fn quantize_16_body<const FMA: bool>(out: PlanesMut<'_>, x: &[f32]) {
    quantize_body::<true>(out, x, MAX_16);
}

#[inline(always)]
fn quantize_8_body<const FMA: bool>(out: PlanesMut<'_>, x: &[f32]) {
    quantize_body::<false>(out, x, MAX_8);
}

#[inline(always)]
fn quantize_body<const HAS_LO: bool>(out: PlanesMut<'_>, x: &[f32], greatest: f32) {
    for (g, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
        // Magnitudes have the order of their bits, and a maximum of integers is a vector operation.
        let mut max_bits = 0;
        for x in x {
            max_bits = max_bits.max(x.to_bits() & 0x7fff_ffff);
        }
        let max = f32::from_bits(max_bits);
        let (scale, inverse) = if max > 0.0 { (max / greatest, greatest / max) } else { (0.0, 0.0) };
        let hi: &mut [i8; GROUP] = (&mut out.hi[g * GROUP..(g + 1) * GROUP]).try_into().expect("invariant: 32 columns");
        let lo: &mut [i8; GROUP] = (&mut out.lo[g * GROUP..(g + 1) * GROUP]).try_into().expect("invariant: 32 columns");
        let mut q = [0i32; GROUP];
        for i in 0..GROUP {
            q[i] = (x[i] * inverse).round_ties_even() as i32;
        }
        let mut sums = [0i32; 2];
        for i in 0..16 {
            sums[0] += q[i];
            sums[1] += q[16 + i];
        }
        if HAS_LO {
            for i in 0..GROUP {
                // The low byte as a signed number; what is left is a multiple of 256.
                lo[i] = q[i] as i8;
                hi[i] = ((q[i] + 128) >> 8) as i8;
            }
        } else {
            for i in 0..GROUP {
                hi[i] = q[i] as i8;
            }
        }
        out.scale[g] = scale;
        out.sum16[2 * g] = sums[0];
        out.sum16[2 * g + 1] = sums[1];
        out.sum32[g] = sums[0] + sums[1];
        out.scaled_sum[g] = scale * (sums[0] + sums[1]) as f32;
    }
}
