//! Rows of f32, f16 or bf16 weights times f32 inputs.

use std::cell::RefCell;

use super::Target;
use crate::backend::cpu::{Buffer, Isa, multiversion};
use crate::ops::simd::{self, LANES};
use crate::weights::{Dtype, quant};

/// Tokens whose sums run side by side, so that a weight is loaded once for all of them.
const TILE: usize = 4;

thread_local! {
    static ROW: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Every row of `rows` times every token of `x`.
pub(super) fn rows(isa: Isa, target: &Target<'_>, x: &Buffer, dtype: Dtype, rows: &[u8]) {
    ROW.with_borrow_mut(|scratch| {
        scratch.resize(x.cols(), 0.0);
        all_rows(isa, target, x, dtype, rows, scratch);
    });
}

multiversion! {
    fn all_rows(target: &Target<'_>, x: &Buffer, dtype: Dtype, rows: &[u8], scratch: &mut [f32]) = all_rows_body
}

#[inline(always)]
fn all_rows_body<const FMA: bool>(target: &Target<'_>, x: &Buffer, dtype: Dtype, rows: &[u8], scratch: &mut [f32]) {
    for (r, row) in rows.chunks_exact(dtype.row_bytes(x.cols())).enumerate() {
        quant::dequantize(dtype, row, scratch);
        let mut t = 0;
        while t + TILE <= x.rows() {
            let sums = dots::<FMA, TILE>(scratch, [x.row(t), x.row(t + 1), x.row(t + 2), x.row(t + 3)]);
            for i in 0..TILE {
                target.set(t + i, r, sums[i]);
            }
            t += TILE;
        }
        for t in t..x.rows() {
            target.set(t, r, dots::<FMA, 1>(scratch, [x.row(t)])[0]);
        }
    }
}

/// Products of one row with T tokens. Each sum's order is the same whatever T is.
#[inline(always)]
fn dots<const FMA: bool, const T: usize>(w: &[f32], x: [&[f32]; T]) -> [f32; T] {
    let mut acc = [[0.0; LANES]; T];
    let (w_chunks, w_rest) = w.as_chunks::<LANES>();
    for (c, w) in w_chunks.iter().enumerate() {
        for t in 0..T {
            let (x, _) = x[t][c * LANES..].as_chunks::<LANES>();
            simd::add_products::<FMA>(&mut acc[t], w, &x[0]);
        }
    }
    let mut sums = [0.0; T];
    for t in 0..T {
        let x_rest = &x[t][w.len() - w_rest.len()..];
        sums[t] = simd::sum_lanes(acc[t]) + simd::dot_rest::<FMA>(w_rest, x_rest);
    }
    sums
}
