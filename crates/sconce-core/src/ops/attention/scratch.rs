//! [`Scratch`]: what a thread keeps of the softmax that it is at.

use std::f32::consts::LN_2;

use super::products::SPAN;
use super::softmax::LOG2_E;
use super::tile::Tile;
use crate::backend::cpu::SharedSlice;
use crate::ops::simd::{self, LANES};

/// 16 numbers on a cache line of their own: a vector that lies on two is read at half the speed.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// Numbers from the beginning of a cache line on.
#[derive(Debug, Default)]
pub(super) struct Floats {
    lines: Vec<Line>,
}

impl Floats {
    /// Room for `len` numbers at least; they are what they were.
    pub(super) fn reserve(&mut self, len: usize) {
        let num_lines = len.div_ceil(LANES);
        if num_lines > self.lines.len() {
            self.lines.resize(num_lines, Line([0.0; LANES]));
        }
    }

    fn fill(&mut self, len: usize, x: f32) {
        self.reserve(len);
        self[..len].fill(x);
    }
}

impl std::ops::Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: lines are arrays of f32 without padding between them.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * LANES) }
    }
}

impl std::ops::DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and the lines are borrowed for as long.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * LANES) }
    }
}

/// A softmax on its way, in powers of two: of each row (query head) the greatest score, the sum of the weights, and the
/// weighted sum of values.
#[derive(Debug, Default)]
pub(super) struct Sums {
    /// [rows]; `f32::MIN` where no key is seen, so that differences are numbers.
    pub(super) max: Floats,
    /// [rows].
    pub(super) total: Floats,
    /// [rows, head_dim].
    pub(super) out: Floats,
}

impl Sums {
    fn clear(&mut self, rows: usize, dim: usize) {
        self.max.fill(rows.next_multiple_of(LANES), f32::MIN);
        self.total.fill(rows, 0.0);
        self.out.fill(rows * dim, 0.0);
    }
}

/// What a thread works on: rows are the query heads of a tile's queries, query after query.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    rows: usize,
    dim: usize,
    /// The part that is computed.
    pub(super) part: Sums,
    /// The parts before it.
    sums: Sums,
    /// [rows, 16]: sums of the part's weights, not yet added up.
    pub(super) totals: Floats,
    /// [rows, SPAN]: scores, then weights.
    pub(super) scores: Floats,
    /// [rows]: the greatest scores of a span.
    pub(super) greatest: Floats,
    /// [rows]: what a span multiplies the sums before it with.
    pub(super) shrink: Floats,
    /// [head_dim, SPAN]: a span's keys in f32; or pairs of bf16, [head_dim / 2, SPAN].
    pub(super) keys: Floats,
    /// [SPAN, head_dim]: its values; or pairs of bf16, [SPAN / 2, head_dim].
    pub(super) values: Floats,
    /// [rows, head_dim / 2]: queries in pairs of bf16.
    pub(super) queries: Floats,
    /// [SPAN, head_dim]: zeros, which stand for values that no query sees.
    pub(super) zeros: Floats,
}

impl Scratch {
    pub(super) fn begin(&mut self, rows: usize, dim: usize) {
        (self.rows, self.dim) = (rows, dim);
        self.part.clear(rows, dim);
        self.sums.clear(rows, dim);
        self.totals.fill(rows * LANES, 0.0);
        self.scores.reserve(rows * SPAN);
        self.greatest.reserve(rows.next_multiple_of(LANES));
        self.shrink.reserve(rows.next_multiple_of(LANES));
        self.keys.reserve(dim * SPAN);
        self.values.reserve(dim * SPAN);
        self.queries.reserve(rows * dim.div_ceil(2));
        self.zeros.reserve(dim * SPAN);
    }

    /// Adds up the part's weights.
    pub(super) fn end_part(&mut self) {
        let (lanes, _) = self.totals.as_chunks::<LANES>();
        for (total, lanes) in self.part.total[..self.rows].iter_mut().zip(lanes) {
            *total = simd::sum_lanes(*lanes);
        }
    }

    /// Adds the part to those before it, and makes room for the next.
    pub(super) fn merge_part(&mut self) {
        let Self { rows, dim, part, sums, .. } = self;
        for row in 0..*rows {
            if part.total[row] == 0.0 {
                continue; // it sees no key there
            }
            let max = part.max[row].max(sums.max[row]);
            let (old, new) = ((sums.max[row] - max) * LN_2, (part.max[row] - max) * LN_2);
            let (old, new) = (simd::exp::<false>(old), simd::exp::<false>(new));
            sums.max[row] = max;
            sums.total[row] = sums.total[row] * old + part.total[row] * new;
            let range = row * *dim..(row + 1) * *dim;
            for (sum, &x) in sums.out[range.clone()].iter_mut().zip(&part.out[range]) {
                *sum = *sum * old + x * new;
            }
        }
        part.clear(*rows, *dim);
        self.totals.fill(*rows * LANES, 0.0);
    }

    /// Puts the part away: sums, then maxima and totals.
    pub(super) fn save_part(&self, dst: &mut [f32]) {
        let (out, rest) = dst.split_at_mut(self.rows * self.dim);
        let (max, total) = rest.split_at_mut(self.rows);
        out.copy_from_slice(&self.part.out[..self.rows * self.dim]);
        max.copy_from_slice(&self.part.max[..self.rows]);
        total.copy_from_slice(&self.part.total[..self.rows]);
    }

    /// Takes up a part that was put away.
    pub(super) fn load_part(&mut self, src: &[f32]) {
        let (out, rest) = src.split_at(self.rows * self.dim);
        let (max, total) = rest.split_at(self.rows);
        self.part.out[..self.rows * self.dim].copy_from_slice(out);
        self.part.max[..self.rows].copy_from_slice(max);
        self.part.total[..self.rows].copy_from_slice(total);
    }

    /// Adds to what the parts came to the weights of the sinks of the key head's query heads, which have no value.
    pub(super) fn add_sinks(&mut self, sinks: Option<&[f32]>) {
        let Some(sinks) = sinks else { return };
        let Self { rows, dim, sums, .. } = self;
        for (row, sink) in (0..*rows).zip(sinks.iter().cycle()) {
            let sink = sink * LOG2_E;
            let max = sums.max[row].max(sink);
            let (old, new) = ((sums.max[row] - max) * LN_2, (sink - max) * LN_2);
            let (old, new) = (simd::exp::<false>(old), simd::exp::<false>(new));
            sums.max[row] = max;
            sums.total[row] = sums.total[row] * old + new;
            sums.out[row * *dim..(row + 1) * *dim].iter_mut().for_each(|x| *x *= old);
        }
    }

    /// Writes what the parts came to.
    pub(super) fn write(&self, tile: &Tile, head: usize, group: usize, cols: usize, out: SharedSlice<'_, f32>) {
        let len = group * self.dim;
        for query in 0..tile.num_rows {
            // SAFETY: the task of this tile and key head alone writes the head's query heads of these rows.
            let dst = unsafe { out.range((tile.first_row + query) * cols + head * len, len) };
            let rows = query * group..(query + 1) * group;
            let src = self.sums.out[query * len..(query + 1) * len].chunks_exact(self.dim);
            for ((dst, src), total) in dst.chunks_exact_mut(self.dim).zip(src).zip(&self.sums.total[rows]) {
                let factor = 1.0 / total;
                dst.iter_mut().zip(src).for_each(|(dst, src)| *dst = src * factor);
            }
        }
    }
}
