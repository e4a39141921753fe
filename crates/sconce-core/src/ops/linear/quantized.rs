//! Rows of quantized weights times inputs quantized to 8 bits.
//!
//! With w[i] = scale[g] * q[i] + offset[g] and x[i] = d[h] * p[i]:
//! sum of w[i] * x[i] = sum over g of scale[g] * d[h] * sum(q[i] * p[i]) + offset[g] * d[h] * sum(p[i]).

use std::cell::RefCell;

use super::Target;
use crate::backend::cpu::{Buffer, Isa, multiversion};
use crate::ops::simd;
use crate::weights::Dtype;
use crate::weights::quant::{self, Unpacked};

/// Elements of x that share a scale.
const GROUP: usize = 32;
/// Tokens whose sums run side by side.
const TILE: usize = 4;
/// Rows of W that are unpacked together, so that a tile of tokens is read from the nearest cache for all of them.
const ROW_BLOCK: usize = 8;

/// Input rows quantized to 8 bits: x[i] = scale[i / 32] * q[i]. Kept as i16, which the products want.
#[derive(Debug, Default)]
pub(crate) struct QuantizedRows {
    rows: usize,
    cols: usize,
    /// [rows, cols], -127..=127.
    q: Vec<i16>,
    /// [rows, cols / 32].
    scale: Vec<f32>,
    /// [rows, cols / 16]: scale * sum of q over 16 elements.
    sum16: Vec<f32>,
    /// [rows, cols / 32]: the same over 32.
    sum32: Vec<f32>,
}

impl QuantizedRows {
    /// Quantizes the rows of `x`, whose length is a multiple of 32 (every quantized weight's row is).
    pub(crate) fn fill(&mut self, isa: Isa, x: &Buffer) {
        assert_eq!(x.cols() % GROUP, 0, "invariant: rows of quantized weights are whole blocks");
        (self.rows, self.cols) = (x.rows(), x.cols());
        let len = self.rows * self.cols;
        // A longer buffer than this step needs stays: steps alternate between lengths.
        self.q.resize(len.max(self.q.len()), 0);
        self.scale.resize((len / GROUP).max(self.scale.len()), 0.0);
        self.sum32.resize((len / GROUP).max(self.sum32.len()), 0.0);
        self.sum16.resize((len / 16).max(self.sum16.len()), 0.0);
        quantize(isa, self, x.data());
    }

    /// The rows as the products see them.
    #[cfg(test)]
    pub(super) fn dequantize(&self) -> Buffer {
        let q = self.q[..self.rows * self.cols].iter().enumerate();
        Buffer::from_vec(q.map(|(i, &q)| self.scale[i / GROUP] * f32::from(q)).collect(), self.cols)
    }
}

multiversion! {
    fn quantize(out: &mut QuantizedRows, x: &[f32]) = quantize_body
}

#[inline(always)]
fn quantize_body<const FMA: bool>(out: &mut QuantizedRows, x: &[f32]) {
    for (g, x) in x.chunks_exact(GROUP).enumerate() {
        let max = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let (scale, inverse) = if max > 0.0 { (max / 127.0, 127.0 / max) } else { (0.0, 0.0) };
        let q = &mut out.q[g * GROUP..(g + 1) * GROUP];
        let mut sums = [0i32; 2];
        for (half, sum) in sums.iter_mut().enumerate() {
            for i in half * 16..half * 16 + 16 {
                let rounded = (x[i] * inverse).round_ties_even() as i32;
                q[i] = rounded as i16;
                *sum += rounded;
            }
        }
        out.scale[g] = scale;
        out.sum16[2 * g] = scale * sums[0] as f32;
        out.sum16[2 * g + 1] = scale * sums[1] as f32;
        out.sum32[g] = scale * (sums[0] + sums[1]) as f32;
    }
}

/// Unpacked rows of W, [ROW_BLOCK, ...].
#[derive(Default)]
struct Scratch {
    q: Vec<i8>,
    scale: Vec<f32>,
    offset: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Every row of `rows` times every token of `x`.
pub(super) fn rows(isa: Isa, target: &Target<'_>, x: &QuantizedRows, dtype: Dtype, rows: &[u8]) {
    SCRATCH.with_borrow_mut(|scratch| {
        let groups = x.cols / quant::group_len(dtype);
        scratch.q.resize(ROW_BLOCK * x.cols, 0);
        scratch.scale.resize(ROW_BLOCK * groups, 0.0);
        scratch.offset.resize(ROW_BLOCK * groups, 0.0);
        if quant::group_len(dtype) == 16 {
            all_rows_16(isa, target, x, dtype, rows, scratch);
        } else {
            all_rows_32(isa, target, x, dtype, rows, scratch);
        }
    });
}

multiversion! {
    fn all_rows_16(target: &Target<'_>, x: &QuantizedRows, dtype: Dtype, rows: &[u8], scratch: &mut Scratch)
        = all_rows_16_body
}

multiversion! {
    fn all_rows_32(target: &Target<'_>, x: &QuantizedRows, dtype: Dtype, rows: &[u8], scratch: &mut Scratch)
        = all_rows_32_body
}

#[inline(always)]
fn all_rows_16_body<const FMA: bool>(
    target: &Target<'_>,
    x: &QuantizedRows,
    dtype: Dtype,
    rows: &[u8],
    scratch: &mut Scratch,
) {
    all_rows::<FMA, 16>(target, x, dtype, rows, scratch);
}

#[inline(always)]
fn all_rows_32_body<const FMA: bool>(
    target: &Target<'_>,
    x: &QuantizedRows,
    dtype: Dtype,
    rows: &[u8],
    scratch: &mut Scratch,
) {
    all_rows::<FMA, 32>(target, x, dtype, rows, scratch);
}

/// `G`: elements of W that share a scale.
#[inline(always)]
fn all_rows<const FMA: bool, const G: usize>(
    target: &Target<'_>,
    x: &QuantizedRows,
    dtype: Dtype,
    rows: &[u8],
    scratch: &mut Scratch,
) {
    let (cols, groups) = (x.cols, x.cols / G);
    let row_bytes = dtype.row_bytes(cols);
    for (block_idx, block) in rows.chunks(ROW_BLOCK * row_bytes).enumerate() {
        for (r, row) in block.chunks_exact(row_bytes).enumerate() {
            let out = Unpacked {
                q: &mut scratch.q[r * cols..(r + 1) * cols],
                scale: &mut scratch.scale[r * groups..(r + 1) * groups],
                offset: &mut scratch.offset[r * groups..(r + 1) * groups],
            };
            quant::unpack_row(dtype, row, out);
        }
        let mut t = 0;
        while t < x.rows {
            let tile = TILE.min(x.rows - t);
            for r in 0..block.len() / row_bytes {
                let w = Row {
                    q: &scratch.q[r * cols..(r + 1) * cols],
                    scale: &scratch.scale[r * groups..(r + 1) * groups],
                    offset: quant::has_offset(dtype).then(|| &scratch.offset[r * groups..(r + 1) * groups]),
                };
                let row = block_idx * ROW_BLOCK + r;
                if tile == TILE {
                    let sums = dots::<FMA, G, TILE>(&w, x, t);
                    (0..TILE).for_each(|i| target.set(t + i, row, sums[i]));
                } else {
                    (t..t + tile).for_each(|t| target.set(t, row, dots::<FMA, G, 1>(&w, x, t)[0]));
                }
            }
            t += tile;
        }
    }
}

/// One unpacked row of W.
struct Row<'a> {
    q: &'a [i8],
    scale: &'a [f32],
    offset: Option<&'a [f32]>,
}

/// Lanes of the integer sums: pairs of products are added first, as `vpmaddwd` does.
const PAIRS: usize = 8;

/// Products of one row with tokens `t..t + T`. Each sum's order is the same whatever T is.
#[inline(always)]
fn dots<const FMA: bool, const G: usize, const T: usize>(w: &Row<'_>, x: &QuantizedRows, t: usize) -> [f32; T] {
    let cols = x.cols;
    let mut acc = [[0.0f32; PAIRS]; T];
    for (g, (q, &scale)) in w.q.chunks_exact(G).zip(w.scale).enumerate() {
        let q: [i16; G] = std::array::from_fn(|i| i16::from(q[i]));
        for i in 0..T {
            let start = (t + i) * cols + g * G;
            let p = &x.q[start..start + G];
            let factor = scale * x.scale[start / GROUP];
            let mut sums = [0i32; PAIRS];
            for j in 0..G / 2 {
                sums[j % PAIRS] +=
                    i32::from(q[2 * j]) * i32::from(p[2 * j]) + i32::from(q[2 * j + 1]) * i32::from(p[2 * j + 1]);
            }
            for j in 0..PAIRS {
                acc[i][j] = simd::mul_add::<FMA>(sums[j] as f32, factor, acc[i][j]);
            }
        }
    }
    std::array::from_fn(|i| {
        let mut lanes = [0.0; simd::LANES];
        lanes[..PAIRS].copy_from_slice(&acc[i]);
        let sum = simd::sum_lanes(lanes);
        let sums = if G == 16 { &x.sum16 } else { &x.sum32 };
        let start = (t + i) * cols / G;
        sum + w.offset.map_or(0.0, |offset| simd::dot::<FMA>(offset, &sums[start..start + cols / G]))
    })
}
