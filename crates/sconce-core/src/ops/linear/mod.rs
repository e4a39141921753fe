//! `linear`: out = x . W^T + bias, W in any type that weight files store.
//!
//! Float weights are multiplied in f32. For quantized ones the CPU's kernel quantizes the inputs too, to 16 bits in
//! groups of 32, so that the products are integers: `vpmaddwd` takes 16 bits at no cost over 8, and at 16 the error is
//! that of f32 (8 bits, as llama.cpp has them, move the starter model's log-probabilities by 0.09 on average). Each output element is a sum in a fixed order over one row of W and one
//! of x: it depends on no other row. Bounded by W's bytes for few rows, by FLOPs (2 * rows * cols a token) for many.

mod dense;
mod int8;
mod quantized;
#[cfg(test)]
mod tests;

pub(crate) use quantized::QuantizedRows;

use crate::backend::cpu::{Buffer, Cpu, Matrix, MatrixPart, SharedSlice, memory_dtype};
use crate::config::WeightDtype;
use crate::weights::{Dtype, TensorView, quant};

/// `x`: [n, cols]; `weight`: [rows, cols]; `out`: [n, rows]. Weights are dequantized; sums are taken in f64.
pub fn reference(out: &mut Buffer, x: &Buffer, weight: &Matrix) {
    assert_eq!((x.cols(), out.cols()), (weight.cols, weight.rows()), "invariant: shapes fit");
    out.set_rows(x.rows());
    let (mut row, mut offset) = (vec![0.0; weight.cols], 0);
    for part in &weight.parts {
        for r in 0..part.rows {
            quant::dequantize(part.dtype, part_row(part, weight.cols, r), &mut row);
            for t in 0..x.rows() {
                let sum: f64 = row.iter().zip(x.row(t)).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
                let bias = weight.bias.as_ref().map_or(0.0, |b| b[offset + r]);
                let idx = t * out.cols() + offset + r;
                out.data_mut()[idx] = sum as f32 + bias;
            }
        }
        offset += part.rows;
    }
}

/// The CPU's kernels: rows of W are shared among the threads.
pub(crate) fn cpu(cpu: &mut Cpu, out: &mut Buffer, x: &Buffer, weight: &Matrix) {
    assert_eq!((x.cols(), out.cols()), (weight.cols, weight.rows()), "invariant: shapes fit");
    out.set_rows(x.rows());
    let (out_cols, isa) = (out.cols(), cpu.isa);
    if weight.parts.iter().any(|p| p.dtype.is_quantized()) {
        cpu.quantized.fill(isa, x);
    }
    let (pool, quantized) = (&mut cpu.pool, &cpu.quantized);
    let shared = SharedSlice::new(out.data_mut());
    let mut offset = 0;
    for part in &weight.parts {
        let task_rows = rows_per_task(part.rows, pool.num_threads());
        pool.run(part.rows.div_ceil(task_rows), &|task| {
            let start = task * task_rows;
            let target = Target {
                out: shared,
                out_cols,
                first_col: offset + start,
                bias: weight.bias.as_deref().map(|b| &b[offset + start..]),
            };
            let num_rows = task_rows.min(part.rows - start);
            let row_bytes = part.dtype.row_bytes(weight.cols);
            let rows = &part.data[start * row_bytes..(start + num_rows) * row_bytes];
            if part.dtype.is_quantized() {
                quantized::rows(isa, &target, quantized, part.dtype, rows);
            } else {
                dense::rows(isa, &target, x, part.dtype, rows);
            }
        });
        offset += part.rows;
    }
}

/// Enough tasks that the threads end together, and rows enough in each that the inputs are read from the cache.
fn rows_per_task(rows: usize, num_threads: usize) -> usize {
    rows.div_ceil(num_threads * 8).next_multiple_of(8).clamp(8, 128)
}

/// Where a task's results go: columns `first_col..` of every row of `out`.
struct Target<'a> {
    out: SharedSlice<'a, f32>,
    out_cols: usize,
    first_col: usize,
    /// From the task's first row on.
    bias: Option<&'a [f32]>,
}

impl Target<'_> {
    /// Writes row `row` of the task's weights times token `t`.
    #[inline(always)]
    fn set(&self, t: usize, row: usize, value: f32) {
        // SAFETY: tasks have disjoint rows of W, hence disjoint columns of `out`.
        let cell = unsafe { self.out.range(t * self.out_cols + self.first_col + row, 1) };
        cell[0] = value + self.bias.map_or(0.0, |b| b[row]);
    }
}

/// A weight as it is kept in memory: as stored, or converted.
pub(crate) fn load_part(tensor: TensorView<'_>, asked: WeightDtype) -> MatrixPart {
    let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
    let dtype = memory_dtype(tensor.dtype, asked);
    let data = if dtype == tensor.dtype {
        // No copy of what was made for this: the page faults of a second one take as long as the first.
        tensor.data.into_owned().into_boxed_slice()
    } else {
        convert(&tensor.data, tensor.dtype, dtype, rows, cols)
    };
    MatrixPart { dtype, rows, data }
}

fn convert(data: &[u8], from: Dtype, to: Dtype, rows: usize, cols: usize) -> Box<[u8]> {
    let mut out = Vec::with_capacity(rows * to.row_bytes(cols));
    let mut row = vec![0.0; cols];
    for src in data.chunks_exact(from.row_bytes(cols)) {
        quant::dequantize(from, src, &mut row);
        if to == Dtype::F32 {
            out.extend_from_slice(bytemuck::cast_slice(&row));
        } else {
            row.iter().for_each(|&x| out.extend_from_slice(&half::bf16::from_f32(x).to_le_bytes()));
        }
    }
    out.into()
}

fn part_row(part: &MatrixPart, cols: usize, row: usize) -> &[u8] {
    let row_bytes = part.dtype.row_bytes(cols);
    &part.data[row * row_bytes..(row + 1) * row_bytes]
}
