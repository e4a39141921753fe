//! `sample`: what is wanted of each row of logits, answered by [`Sampler`], which says what it computes.
//!
//! Several things may be wanted of one row, and rows are only read. An answer depends on its row and its
//! [`SampleKind`](crate::sample::SampleKind) alone. Bounded by the passes over the rows, which are as long as the
//! vocabulary: two to four, where other operations have just written them.
//!
//! On a device logits stay where they are: `encode` writes down what is wanted, with the random numbers and the edits,
//! `kernels/sample.cu` chooses, `decode` reads tokens, ranks, logits and sums, and takes the logarithms. The kernels sum
//! integers and compute weights in the CPU's operations, so that every answer is the reference's, bit for bit.

pub(crate) mod cuda;
mod decode;
mod encode;

use crate::backend::cpu::{Buffer, Cpu, SharedSlice};
use crate::sample::{SampleResults, SampleRow, Sampler};

/// One after the other.
pub fn reference(out: &mut SampleResults, logits: &Buffer, rows: &[SampleRow<'_>]) {
    out.clear();
    let mut sampler = Sampler::new(logits.cols());
    for row in rows {
        sampler.answer(logits.row(row.row), &row.kind, out);
    }
}

/// What a task works with.
#[derive(Debug)]
pub(crate) struct Share {
    sampler: Sampler,
    results: SampleResults,
}

impl Share {
    fn new(vocab_size: usize) -> Self {
        Self { sampler: Sampler::new(vocab_size), results: SampleResults::default() }
    }
}

/// The same with neighbouring rows shared among the threads.
pub(crate) fn cpu(cpu: &mut Cpu, out: &mut SampleResults, logits: &Buffer, rows: &[SampleRow<'_>]) {
    let Cpu { pool, sample_shares, .. } = cpu;
    let num_shares = pool.num_threads().min(rows.len());
    if sample_shares.len() < num_shares {
        sample_shares.resize_with(num_shares, || Share::new(logits.cols()));
    }
    let shares = &mut sample_shares[..num_shares];
    let shared = SharedSlice::new(shares);
    pool.run(num_shares, &|task| {
        // SAFETY: each task has a share of its own.
        let Share { sampler, results } = unsafe { &mut shared.range(task, 1)[0] };
        results.clear();
        let start = |task: usize| task * rows.len() / num_shares;
        for row in &rows[start(task)..start(task + 1)] {
            sampler.answer(logits.row(row.row), &row.kind, results);
        }
    });
    out.clear();
    for share in shares {
        out.append(&mut share.results);
    }
}

#[cfg(test)]
mod tests;
