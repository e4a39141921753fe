//! Rows of quantized weights times inputs quantized to 16 bits, by what every machine has: where there is more, weights are packed instead.
//!
//! With w[i] = scale[g] * q[i] + offset[g] and x[i] = d[h] * p[i]:
//! sum of w[i] * x[i] = sum over g of scale[g] * d[h] * sum(q[i] * p[i]) + offset[g] * d[h] * sum(p[i]).

use std::cell::RefCell;

use super::Target;
use crate::backend::cpu::Buffer;
use crate::ops::simd;
use crate::weights::Dtype;
use crate::weights::quant::{self, Unpacked};

/// Elements of x that share a scale.
const GROUP: usize = 32;
/// Rows of W that are unpacked together, so that a token is read from the nearest cache for all of them.
const ROW_BLOCK: usize = 8;

/// The greatest quantized input. A group's products with 8-bit weights add up to at most 32 * 128 * 32767, which an
/// i32 holds.
const MAX_INPUT: f32 = 32767.0;

/// As [`planes`](super::planes) have it.
const LEAST: f32 = 1e-30;

/// Input rows quantized to 16 bits: x[i] = scale[i / 32] * q[i].
#[derive(Debug, Default)]
pub(crate) struct QuantizedRows {
    rows: usize,
    cols: usize,
    /// [rows, cols], -32767..=32767.
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
    pub(crate) fn fill(&mut self, x: &Buffer) {
        assert_eq!(x.cols() % GROUP, 0, "invariant: rows of quantized weights are whole blocks");
        (self.rows, self.cols) = (x.rows(), x.cols());
        let len = self.rows * self.cols;
        // A longer buffer than this step needs stays: steps alternate between lengths.
        self.q.resize(len.max(self.q.len()), 0);
        self.scale.resize((len / GROUP).max(self.scale.len()), 0.0);
        self.sum32.resize((len / GROUP).max(self.sum32.len()), 0.0);
        self.sum16.resize((len / 16).max(self.sum16.len()), 0.0);
        quantize(self, x.data());
    }

    /// The rows as the products see them.
    #[cfg(test)]
    pub(super) fn dequantize(&self) -> Buffer {
        let q = self.q[..self.rows * self.cols].iter().enumerate();
        Buffer::from_vec(q.map(|(i, &q)| self.scale[i / GROUP] * f32::from(q)).collect(), self.cols)
    }
}

fn quantize(out: &mut QuantizedRows, x: &[f32]) {
    for (g, x) in x.chunks_exact(GROUP).enumerate() {
        let mut max = 0.0f32;
        for x in x {
            max = max.max(x.abs());
        }
        let (scale, inverse) = if max > LEAST { (max / MAX_INPUT, MAX_INPUT / max) } else { (0.0, 0.0) };
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

/// Every row of `rows` times the target's tokens.
pub(super) fn rows(target: &Target<'_>, x: &QuantizedRows, dtype: Dtype, rows: &[u8]) {
    SCRATCH.with_borrow_mut(|scratch| {
        let groups = x.cols / quant::group_len(dtype);
        scratch.q.resize(ROW_BLOCK * x.cols, 0);
        scratch.scale.resize(ROW_BLOCK * groups, 0.0);
        scratch.offset.resize(ROW_BLOCK * groups, 0.0);
        let task = Task { target, x, dtype, rows };
        if quant::group_len(dtype) == 16 {
            all_rows::<16>(&task, scratch);
        } else {
            all_rows::<32>(&task, scratch);
        }
    });
}

/// What one task multiplies.
struct Task<'a> {
    target: &'a Target<'a>,
    x: &'a QuantizedRows,
    dtype: Dtype,
    rows: &'a [u8],
}

/// `G`: elements of W that share a scale.
fn all_rows<const G: usize>(task: &Task<'_>, scratch: &mut Scratch) {
    let Task { target, x, dtype, rows } = *task;
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
        for t in target.first_token..target.end_token {
            for r in 0..block.len() / row_bytes {
                let w = Row {
                    q: &scratch.q[r * cols..(r + 1) * cols],
                    scale: &scratch.scale[r * groups..(r + 1) * groups],
                };
                let mut sum = dot::<G>(&w, x, t);
                if quant::has_offset(dtype) {
                    let x_sums = if G == 16 { &x.sum16 } else { &x.sum32 };
                    let x_sums = &x_sums[t * groups..(t + 1) * groups];
                    sum += simd::dot::<false>(&scratch.offset[r * groups..(r + 1) * groups], x_sums);
                }
                target.set(t, block_idx * ROW_BLOCK + r, sum);
            }
        }
    }
}

/// The product of a row of W with token `t`. Two accumulators take the groups in turn.
fn dot<const G: usize>(w: &Row<'_>, x: &QuantizedRows, t: usize) -> f32 {
    let mut acc = [0.0f32; 2];
    for (g, q) in w.q.chunks_exact(G).enumerate() {
        let start = t * x.cols + g * G;
        let mut product = 0i32;
        for (&q, &p) in q.iter().zip(&x.q[start..start + G]) {
            product += i32::from(q) * i32::from(p);
        }
        acc[g % 2] += product as f32 * (w.scale[g] * x.scale[start / GROUP]);
    }
    acc[0] + acc[1]
}

/// One unpacked row of W.
struct Row<'a> {
    /// [cols].
    q: &'a [i8],
    /// [cols / G].
    scale: &'a [f32],
}
