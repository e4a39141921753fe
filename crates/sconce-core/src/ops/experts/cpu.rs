//! The CPU's kernels: rows of all experts at once, so that a step has four operations on the threads however many experts it meets.

use std::ops::Range;

use super::{Pick, check, route};
use crate::backend::ExpertsSpec;
use crate::backend::cpu::{Buffer, Cpu, Matrix, SharedSlice, ThreadPool};
use crate::ops::linear::{self, Inputs, PAIR, Place, TASKS_A_THREAD};
use crate::ops::{gate_act_mul, gated_linear};

/// Rows that one task routes, or copies.
const TASK_ROWS: usize = 8;

/// Room for a step's rows. A pair is a token and one of its experts: token t has the pairs `t * per_token..` by rank.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Of each pair.
    picks: Vec<Pick>,
    /// Where each pair's rows are in the buffers, and which pair is at each place.
    places: Vec<usize>,
    pairs: Vec<usize>,
    /// Experts that have rows, and which.
    groups: Vec<Group>,
    inputs: Buffer,
    gate_up: Buffer,
    act: Buffer,
    /// The same with columns in the order in which `down` has them.
    ordered: Buffer,
    results: Buffer,
}

/// The rows of one expert.
#[derive(Debug, Clone, Default)]
struct Group {
    expert: usize,
    rows: Range<usize>,
}

/// What [`reference`](super::reference) computes.
pub(crate) fn cpu(
    cpu: &mut Cpu,
    out: &mut Buffer,
    x: &Buffer,
    logits: &Buffer,
    [gate_up, down]: [&[Matrix]; 2],
    spec: &ExpertsSpec,
) {
    check(out, x, logits, [gate_up, down]);
    out.set_rows(x.rows());
    if x.rows() == 0 {
        return;
    }
    let mut scratch = std::mem::take(&mut cpu.experts);
    scratch.route(&mut cpu.pool, logits, spec);
    scratch.sort(logits.cols());
    scratch.gather(&mut cpu.pool, x, gate_up, spec.per_token);
    scratch.gate(cpu, gate_up, down[0].cols, spec);
    scratch.down(cpu, down, out.cols());
    scratch.combine(&mut cpu.pool, out, spec.per_token);
    cpu.experts = scratch;
}

impl Scratch {
    fn route(&mut self, pool: &mut ThreadPool, logits: &Buffer, spec: &ExpertsSpec) {
        let (num_tokens, per_token) = (logits.rows(), spec.per_token);
        self.picks.resize(num_tokens * per_token, Pick::default());
        let picks = SharedSlice::new(&mut self.picks);
        pool.run(num_tokens.div_ceil(TASK_ROWS), &|task| {
            for t in task * TASK_ROWS..num_tokens.min((task + 1) * TASK_ROWS) {
                // SAFETY: each task has tokens of its own.
                let picks = unsafe { picks.range(t * per_token, per_token) };
                route(logits.row(t), spec.normalizes, picks);
            }
        });
    }

    /// Gives each pair its place: those of an expert are neighbours, in the order of their tokens.
    fn sort(&mut self, num_experts: usize) {
        self.places.resize(self.picks.len(), 0);
        self.pairs.resize(self.picks.len(), 0);
        self.groups.clear();
        self.groups.extend((0..num_experts).map(|expert| Group { expert, rows: 0..0 }));
        self.picks.iter().for_each(|pick| self.groups[pick.expert as usize].rows.end += 1);
        let mut first = 0;
        for group in &mut self.groups {
            let count = group.rows.end;
            group.rows = first..first;
            first += count;
        }
        for (pair, pick) in self.picks.iter().enumerate() {
            let place = &mut self.groups[pick.expert as usize].rows.end;
            (self.places[pair], self.pairs[*place]) = (*place, pair);
            *place += 1;
        }
        self.groups.retain(|group| !group.rows.is_empty());
    }

    /// Copies the input of each pair to its place, with columns in the order in which its expert has them.
    fn gather(&mut self, pool: &mut ThreadPool, x: &Buffer, weights: &[Matrix], per_token: usize) {
        let (pairs, picks) = (&self.pairs, &self.picks);
        self.inputs.reshape(pairs.len(), x.cols());
        fill_rows(pool, &mut self.inputs, &|place, out| {
            let pair = pairs[place];
            copy_columns(out, x.row(pair / per_token), &weights[picks[pair].expert as usize]);
        });
    }

    /// act = act(gate) * up of each pair.
    fn gate(&mut self, cpu: &mut Cpu, weights: &[Matrix], inter: usize, spec: &ExpertsSpec) {
        self.act.reshape(self.pairs.len(), inter);
        let is_gated = weights.iter().all(gated_linear::has_whole_pairs);
        if !is_gated {
            self.gate_up.reshape(self.pairs.len(), 2 * inter);
        }
        let (pool, inputs) = Inputs::of(cpu, &self.inputs, weights, None);
        if is_gated {
            let out = SharedSlice::new(self.act.data_mut());
            for_groups(pool, &self.groups, |_| inter / PAIR, &|group, pairs| {
                let place = Place { out, cols: inter, first_row: 0, first: group.rows.start * inter };
                gated_linear::multiply(&inputs, &weights[group.expert], spec.act, pairs, group.rows.clone(), place);
            });
            return;
        }
        multiply(pool, &inputs, &mut self.gate_up, &self.groups, weights);
        gate_act_mul::cpu(cpu, &mut self.act, &self.gate_up, spec.act);
    }

    /// The result of each pair.
    fn down(&mut self, cpu: &mut Cpu, weights: &[Matrix], hidden: usize) {
        self.results.reshape(self.pairs.len(), hidden);
        let mut act = &self.act;
        if weights.iter().any(|weight| weight.column_order.is_some()) {
            let (pairs, picks) = (&self.pairs, &self.picks);
            self.ordered.reshape(pairs.len(), act.cols());
            fill_rows(&mut cpu.pool, &mut self.ordered, &|place, out| {
                copy_columns(out, act.row(place), &weights[picks[pairs[place]].expert as usize]);
            });
            act = &self.ordered;
        }
        let (pool, inputs) = Inputs::of(cpu, act, weights, None);
        multiply(pool, &inputs, &mut self.results, &self.groups, weights);
    }

    /// Each token's results with their weights, added in the order of ranks.
    fn combine(&self, pool: &mut ThreadPool, out: &mut Buffer, per_token: usize) {
        fill_rows(pool, out, &|t, out| {
            out.fill(0.0);
            for pair in t * per_token..(t + 1) * per_token {
                let (weight, row) = (self.picks[pair].weight, self.results.row(self.places[pair]));
                out.iter_mut().zip(row).for_each(|(out, x)| *out += weight * x);
            }
        });
    }
}

/// Each expert's rows of inputs times its matrix, to the same rows of `out`.
fn multiply(pool: &mut ThreadPool, inputs: &Inputs<'_>, out: &mut Buffer, groups: &[Group], weights: &[Matrix]) {
    let cols = out.cols();
    let out = SharedSlice::new(out.data_mut());
    for_groups(pool, groups, |expert| linear::num_pairs(&weights[expert]), &|group, pairs| {
        let place = Place { out, cols, first_row: 0, first: group.rows.start * cols };
        inputs.multiply(&weights[group.expert], pairs, group.rows.clone(), place);
    });
}

/// Calls `task` on all threads with each group and each share of its expert's pairs of panels. `num_pairs`: of an expert. A group's shares
/// are neighbours: they read the same inputs.
fn for_groups(
    pool: &mut ThreadPool,
    groups: &[Group],
    num_pairs: impl Fn(usize) -> usize + Sync,
    task: &(dyn Fn(&Group, Range<usize>) + Sync),
) {
    let num_shares = (pool.num_threads() * TASKS_A_THREAD).div_ceil(groups.len());
    pool.run(groups.len() * num_shares, &|idx| {
        let (group, share) = (&groups[idx / num_shares], idx % num_shares);
        let num_pairs = num_pairs(group.expert);
        let pairs = share * num_pairs / num_shares..(share + 1) * num_pairs / num_shares;
        if !pairs.is_empty() {
            task(group, pairs);
        }
    });
}

/// Each row of `out` by `fill`.
fn fill_rows(pool: &mut ThreadPool, out: &mut Buffer, fill: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    let (rows, cols) = (out.rows(), out.cols());
    let out = SharedSlice::new(out.data_mut());
    pool.run(rows.div_ceil(TASK_ROWS), &|task| {
        for row in task * TASK_ROWS..rows.min((task + 1) * TASK_ROWS) {
            // SAFETY: each task has rows of its own.
            fill(row, unsafe { out.range(row * cols, cols) });
        }
    });
}

fn copy_columns(out: &mut [f32], row: &[f32], weight: &Matrix) {
    match &weight.column_order {
        Some(order) => out.iter_mut().zip(order).for_each(|(out, &col)| *out = row[col as usize]),
        None => out.copy_from_slice(row),
    }
}
