//! `lora`: out += scale * B . (A . x), where each row has an adapter's A and B, or none (Hu et al. 2021). Beside [`linear`](super::linear),
//! whose outputs these are.
//!
//! Sums are of f32, over one row of A, then over the ranks in order: a row's bits depend on that row and its adapter alone, on a device
//! as here. Rows without an adapter are not touched and cost nothing. Bounded by the bytes of A and B for few rows, by FLOPs
//! (2 * rank * (rows + cols) a row) for many.

pub(crate) mod cuda;
#[cfg(test)]
mod tests;

use std::ops::Range;

use super::simd;
use crate::backend::cpu::{Buffer, Cpu, SharedSlice, multiversion};
use crate::weights::LoraUpdate;

/// Rows of one adapter that a task takes together, so that weights are read once for them.
const GROUP_ROWS: usize = 16;
/// Rows of A, and columns of the output, that a task takes.
const TASK_RANKS: usize = 8;
const TASK_COLS: usize = 512;

/// What adapters add to the products of one matrix, which may have several parts over each other.
pub struct Lora {
    /// Rows of the matrix: elements of an output row.
    rows: usize,
    /// Columns: elements of an input row.
    cols: usize,
    /// Of each part its first row, and behind them all rows.
    part_starts: Vec<usize>,
    /// Of each adapter, by number.
    adapters: Vec<Vec<Update>>,
}

/// What an adapter adds to a part.
struct Update {
    part: usize,
    rank: usize,
    /// [rank, cols].
    a: Box<[f32]>,
    /// [rank, rows of the part]: B's columns, scaled.
    b: Box<[f32]>,
}

impl Lora {
    /// Of a matrix whose parts have so many rows each, and of its columns.
    pub fn new((part_rows, cols): (&[usize], usize), num_adapters: usize, updates: &[LoraUpdate<'_>]) -> Self {
        let mut part_starts = vec![0];
        part_rows.iter().for_each(|rows| part_starts.push(part_starts[part_starts.len() - 1] + rows));
        let mut adapters: Vec<_> = (0..num_adapters).map(|_| Vec::new()).collect();
        for update in updates {
            let (rank, rows, stored) = (update.rank(), part_rows[update.part], update.b.to_f32());
            let b = (0..rank).flat_map(|r| (0..rows).map(move |row| row * rank + r));
            let b = b.map(|at| stored[at] * update.scale).collect();
            adapters[update.adapter].push(Update { part: update.part, rank, a: update.a.to_f32().into(), b });
        }
        Self { rows: part_starts[part_rows.len()], cols, part_starts, adapters }
    }

    /// What the adapter of a row adds; nothing where it has none.
    fn of_row(&self, adapter: u32) -> &[Update] {
        adapter.checked_sub(1).map_or(&[], |number| &self.adapters[number as usize])
    }

    /// The most ranks of an adapter, those of all parts together.
    fn max_ranks(&self) -> usize {
        self.adapters.iter().map(|updates| updates.iter().map(|update| update.rank).sum()).max().unwrap_or(0)
    }

    fn check(&self, out: &Buffer, x: &Buffer, adapters: &[u32]) {
        assert_eq!((x.cols(), out.cols()), (self.cols, self.rows), "invariant: shapes fit");
        assert_eq!((out.rows(), adapters.len()), (x.rows(), x.rows()), "invariant: an adapter or none for each row");
    }
}

/// `x`: [n, cols]; `out`: [n, rows], which is added to; `adapters`: of each row its adapter's number from 1 on, or 0. Sums are taken in
/// f64.
pub fn reference(out: &mut Buffer, x: &Buffer, lora: &Lora, adapters: &[u32]) {
    lora.check(out, x, adapters);
    for (t, &adapter) in adapters.iter().enumerate() {
        for Update { part, rank, a, b } in lora.of_row(adapter) {
            let (first, end) = (lora.part_starts[*part], lora.part_starts[part + 1]);
            let hidden: Vec<f64> = (0..*rank)
                .map(|r| a[r * lora.cols..].iter().zip(x.row(t)).map(|(&a, &x)| f64::from(a) * f64::from(x)).sum())
                .collect();
            for row in first..end {
                let b = b.iter().skip(row - first).step_by(end - first);
                let sum: f64 = b.zip(&hidden).map(|(&b, hidden)| f64::from(b) * hidden).sum();
                out.data_mut()[t * lora.rows + row] += sum as f32;
            }
        }
    }
}

/// What the CPU's kernel needs beside its arguments.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Adapters and rows that have one, by adapter.
    rows: Vec<(u32, u32)>,
    /// Rows of one adapter, as ranges of `rows`.
    groups: Vec<Range<usize>>,
    /// Of `rows` A . x, [rows, ranks].
    hidden: Vec<f32>,
}

impl Scratch {
    /// Finds the rows to which anything is added, in groups.
    fn group(&mut self, lora: &Lora, adapters: &[u32]) {
        let Self { rows, groups, .. } = self;
        let with_adapter = (0u32..).zip(adapters).filter(|&(_, &adapter)| !lora.of_row(adapter).is_empty());
        rows.clear();
        rows.extend(with_adapter.map(|(row, &adapter)| (adapter, row)));
        rows.sort_unstable();
        groups.clear();
        let mut start = 0;
        for alike in rows.chunk_by(|a, b| a.0 == b.0) {
            let end = start + alike.len();
            groups.extend((start..end).step_by(GROUP_ROWS).map(|start| start..end.min(start + GROUP_ROWS)));
            start = end;
        }
    }
}

/// The same in f32: groups of rows of one adapter, cut by ranks, then by columns of the output, over the threads.
pub(crate) fn cpu(cpu: &mut Cpu, out: &mut Buffer, x: &Buffer, lora: &Lora, adapters: &[u32]) {
    lora.check(out, x, adapters);
    let (isa, scratch, num_ranks) = (cpu.isa, &mut cpu.lora, lora.max_ranks());
    scratch.group(lora, adapters);
    let Scratch { rows, groups, hidden } = scratch;
    let len = rows.len() * num_ranks;
    // What is there for more rows or ranks stays.
    hidden.resize(len.max(hidden.len()), 0.0);
    let hidden = &mut hidden[..len];
    let group = |idx: usize| {
        let rows = &rows[groups[idx].clone()];
        (groups[idx].start, rows, lora.of_row(rows[0].0))
    };
    let shared = SharedSlice::new(&mut *hidden);
    let (num_groups, num_tasks) = (groups.len(), num_ranks.div_ceil(TASK_RANKS));
    cpu.pool.run(num_groups * num_tasks, &|task| {
        let ((first, rows, updates), begin) = (group(task / num_tasks), task % num_tasks * TASK_RANKS);
        let a = updates.iter().flat_map(|update| update.a.chunks_exact(lora.cols)).enumerate();
        for (rank, a) in a.skip(begin).take(TASK_RANKS) {
            for (at, &(_, row)) in (first..).zip(rows) {
                // SAFETY: this task alone has these ranks of these rows.
                let hidden = unsafe { shared.range(at * num_ranks + rank, 1) };
                hidden[0] = dot(isa, a, x.row(row as usize));
            }
        }
    });
    let (hidden, out) = (&*hidden, SharedSlice::new(out.data_mut()));
    let num_tasks = lora.rows.div_ceil(TASK_COLS);
    cpu.pool.run(num_groups * num_tasks, &|task| {
        let ((first, rows, updates), begin) = (group(task / num_tasks), task % num_tasks * TASK_COLS);
        let mut first_rank = 0;
        for Update { part, rank, b, .. } in updates {
            let (start, end) = (lora.part_starts[*part], lora.part_starts[part + 1]);
            let cols = start.max(begin)..end.min(begin + TASK_COLS);
            for (at, &(_, row)) in (first..).zip(rows).filter(|_| !cols.is_empty()) {
                let hidden = &hidden[at * num_ranks + first_rank..][..*rank];
                // SAFETY: this task alone has these columns of these rows.
                let out = unsafe { out.range(row as usize * lora.rows + cols.start, cols.len()) };
                add_columns(isa, out, hidden, &b[cols.start - start..], end - start);
            }
            first_rank += rank;
        }
    });
}

multiversion! {
    fn dot(a: &[f32], b: &[f32]) -> f32 = dot_body
}

#[inline(always)]
fn dot_body<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    simd::dot::<FMA>(a, b)
}

multiversion! {
    /// out[i] += sum of hidden[r] * b[r * stride + i].
    fn add_columns(out: &mut [f32], hidden: &[f32], b: &[f32], stride: usize) = add_columns_body
}

#[inline(always)]
fn add_columns_body<const FMA: bool>(out: &mut [f32], hidden: &[f32], b: &[f32], stride: usize) {
    let (blocks, rest) = out.as_chunks_mut::<{ simd::LANES }>();
    let first_of_rest = blocks.len() * simd::LANES;
    for (block, first) in blocks.iter_mut().zip((0..).step_by(simd::LANES)) {
        let mut sum = [0.0; simd::LANES];
        for (r, &hidden) in hidden.iter().enumerate() {
            let b = b[r * stride + first..].first_chunk().expect("invariant: as many columns as the output");
            simd::add_products::<FMA>(&mut sum, &[hidden; simd::LANES], b);
        }
        for i in 0..simd::LANES {
            block[i] += sum[i];
        }
    }
    for (i, out) in rest.iter_mut().enumerate() {
        let mut sum = 0.0;
        for (r, &hidden) in hidden.iter().enumerate() {
            sum = simd::mul_add::<FMA>(hidden, b[r * stride + first_of_rest + i], sum);
        }
        *out += sum;
    }
}
