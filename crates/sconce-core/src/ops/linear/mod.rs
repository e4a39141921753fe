//! `linear`: out = x . W^T + bias, W in any type that weight files store.
//!
//! Float weights are packed once at load ([`FloatPanels`]) and multiplied in f32; e4m3 as bf16, which has all of its
//! numbers, with the rows' scales applied to the sums. For quantized ones the CPU's kernels
//! quantize the inputs too, in groups of 32, so that the products are integers. At 16 bits the error is that of f32; at 8,
//! as llama.cpp has them, the starter model's log-probabilities move by 0.09 on average. Where the machine has `vpdpbusd`
//! these weights are packed too ([`Panels`]), and 16 bits are two planes of 8; elsewhere, and for the rarer formats, rows
//! are unpacked for each call and multiplied by `vpmaddwd`. [`MatmulPrecision::Fast`](crate::config::MatmulPrecision)
//! takes one plane, and bf16 inputs for bf16 weights; `Mixed` a second plane only in groups with
//! outliers. Each output element is a sum in a fixed order over one row of W and one of x: it depends on no other row, on a
//! device ([`cuda`](mod@cuda)) as here. Bounded by W's bytes for few rows, by FLOPs (2 * rows * cols a token) for many.

#[cfg(target_arch = "x86_64")]
mod bf16;
pub(crate) mod cuda;
mod float;
mod float_panels;
mod int8;
mod panels;
mod planes;
mod quantized;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vnni;

#[cfg(target_arch = "x86_64")]
pub(crate) use bf16::Bf16Rows;
pub use float_panels::FloatPanels;
pub use panels::Panels;
pub(crate) use planes::Planes;
pub(crate) use quantized::QuantizedRows;

use crate::backend::cpu::{
    Arena, Buffer, Cpu, Isa, Matrix, MatrixPart, PartData, SharedSlice, ThreadPool, memory_dtype,
};
#[cfg(target_arch = "x86_64")]
use crate::config::MatmulPrecision;
use crate::config::WeightDtype;
use crate::error::Result;
use crate::weights::{Dtype, TensorView, convert, quant};

/// Tasks that the panels of a part are cut into, for every thread.
const TASKS_A_THREAD: usize = 6;

/// `x`: [n, cols]; `weight`: [rows, cols]; `out`: [n, rows]. Weights are dequantized; sums are taken in f64.
pub fn reference(out: &mut Buffer, x: &Buffer, weight: &Matrix) {
    assert_eq!((x.cols(), out.cols()), (weight.cols, weight.rows()), "invariant: shapes fit");
    out.set_rows(x.rows());
    let (mut row, mut offset) = (vec![0.0; weight.cols], 0);
    for part in &weight.parts {
        for r in 0..part.rows {
            dequantize_row(part, r, &mut row);
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
    let (num_tokens, out_cols, isa) = (x.rows(), out.cols(), cpu.isa);
    let is_packed = |part: &MatrixPart| matches!(part.data, PartData::Panels(_));
    if weight.parts.iter().any(is_packed) {
        cpu.planes.fill(&mut cpu.pool, isa, cpu.precision, x);
    }
    if weight.parts.iter().any(|part| matches!(part.data, PartData::Rows(_))) {
        cpu.quantized.fill(isa, x);
    }
    #[cfg(target_arch = "x86_64")]
    let in_bf16 = cpu.precision != MatmulPrecision::Exact
        && isa >= Isa::Avx512Bf16
        && weight.parts.iter().any(|part| part.dtype == Dtype::BF16);
    #[cfg(target_arch = "x86_64")]
    if in_bf16 {
        cpu.bf16.fill(&mut cpu.pool, x);
    }
    let shared = SharedSlice::new(out.data_mut());
    let (planes, quantized) = (&cpu.planes, &cpu.quantized);
    #[cfg(target_arch = "x86_64")]
    let bf16 = in_bf16.then_some(&cpu.bf16);
    for_panels(&mut cpu.pool, &weight.parts, &|part, offset, first, count| {
        let start = first * panels::ROWS;
        let bias = weight.bias.as_deref().map(|b| &b[offset + start..]);
        let target = Target {
            out: shared,
            out_cols,
            first_col: offset + start,
            end_col: offset + part.rows,
            // Scales come before it.
            bias: if part.row_scales.is_some() { None } else { bias },
        };
        match &part.data {
            PartData::Rows(data) => {
                let row_bytes = part.dtype.row_bytes(weight.cols);
                let end = part.rows.min(start + count * panels::ROWS);
                quantized::rows(isa, &target, quantized, part.dtype, &data[start * row_bytes..end * row_bytes]);
            }
            PartData::Panels(panels) => multiply_panels(&target, panels, first, count, planes),
            PartData::FloatPanels(panels) => {
                #[cfg(target_arch = "x86_64")]
                if let (Some(x), Dtype::BF16) = (bf16, part.dtype) {
                    // SAFETY: Isa::detect found the instructions.
                    unsafe { bf16::multiply(&target, panels, first, count, x) };
                } else {
                    float::multiply(isa, &target, panels, first, count, x);
                }
                #[cfg(not(target_arch = "x86_64"))]
                float::multiply(isa, &target, panels, first, count, x);
            }
        }
        if let Some(scales) = &part.row_scales {
            target.scale(num_tokens, &scales[start..part.rows.min(start + count * panels::ROWS)], bias);
        }
    });
}

/// Shares the parts' panels of 16 rows among the threads, in pairs as the tiles of several tokens take them: `task` is given
/// a part, the rows before it, a panel of it, and how many from there on. Tasks are enough that the threads end together, and
/// no more: each reads the inputs anew.
fn for_panels(pool: &mut ThreadPool, parts: &[MatrixPart], task: &(dyn Fn(&MatrixPart, usize, usize, usize) + Sync)) {
    let num_panels = |part: &MatrixPart| part.rows.div_ceil(panels::ROWS);
    let num_pairs = parts.iter().map(|part| num_panels(part).div_ceil(2)).sum::<usize>();
    let num_tasks = num_pairs.min(pool.num_threads() * TASKS_A_THREAD);
    pool.run(num_tasks, &|idx| {
        let [start, end] = [idx, idx + 1].map(|idx| 2 * (idx * num_pairs / num_tasks));
        // The panels before a part, a last one without its pair counted as two; and the rows.
        let (mut before, mut rows) = (0, 0);
        for part in parts {
            let num_panels = num_panels(part);
            let first = start.saturating_sub(before);
            let last = end.saturating_sub(before).min(num_panels);
            if first < last {
                task(part, rows, first, last - first);
            }
            (before, rows) = (before + num_panels.next_multiple_of(2), rows + part.rows);
        }
    });
}

#[cfg(target_arch = "x86_64")]
fn multiply_panels(target: &Target<'_>, weight: &Panels, first: usize, count: usize, x: &Planes) {
    // SAFETY: weights are packed only where Isa::detect found the instructions.
    unsafe { vnni::multiply(target, weight, first, count, x) }
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply_panels(_: &Target<'_>, _: &Panels, _: usize, _: usize, _: &Planes) {
    unreachable!("weights are packed only on x86-64")
}

/// Where a task's results go: columns `first_col..` of every row of `out`.
#[derive(Clone, Copy)]
struct Target<'a> {
    out: SharedSlice<'a, f32>,
    out_cols: usize,
    first_col: usize,
    /// One past the last column of the part.
    end_col: usize,
    /// From the task's first row on.
    bias: Option<&'a [f32]>,
}

impl<'a> Target<'a> {
    /// Writes row `row` of the task's weights times token `t`.
    #[inline(always)]
    fn set(&self, t: usize, row: usize, value: f32) {
        // SAFETY: tasks have disjoint rows of W, hence disjoint columns of `out`.
        let cell = unsafe { self.out.range(t * self.out_cols + self.first_col + row, 1) };
        cell[0] = value + self.bias.map_or(0.0, |b| b[row]);
    }

    /// Where token `t` times rows from `row` on will be written, to be asked for ahead: memory is slow to take stores to
    /// lines that no cache holds.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn address(&self, t: usize, row: usize) -> *const f32 {
        self.out.address(t * self.out_cols + self.first_col + row)
    }

    /// Multiplies what the task has written with the scales of its rows, and adds the bias. By itself, so that kernels stay as
    /// small as they are: outputs are few beside the products that they are sums of.
    #[inline(never)]
    fn scale(&self, num_tokens: usize, scales: &[f32], bias: Option<&[f32]>) {
        for t in 0..num_tokens {
            // SAFETY: tasks have disjoint rows of W, hence disjoint columns of `out`, and this one's are written.
            let cells = unsafe { self.out.range(t * self.out_cols + self.first_col, scales.len()) };
            cells.iter_mut().zip(scales).for_each(|(x, scale)| *x *= scale);
            if let Some(bias) = bias {
                cells.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
            }
        }
    }

    /// Where token `t` times rows `row..row + 16` of the task's weights go, as far as there are such rows, and the bias
    /// there.
    ///
    /// # Safety
    /// Nobody else holds these cells.
    #[inline(always)]
    unsafe fn cells(self, t: usize, row: usize) -> (&'a mut [f32], Option<&'a [f32]>) {
        let col = self.first_col + row;
        // SAFETY: the caller's, and tasks have disjoint rows of W, hence disjoint columns of `out`.
        let cells = unsafe { self.out.range(t * self.out_cols + col, panels::ROWS.min(self.end_col - col)) };
        let bias = self.bias.map(|bias| &bias[row..row + cells.len()]);
        (cells, bias)
    }
}

/// A weight as it is kept in memory: as stored, converted, or packed for the machine's products.
pub(crate) fn load_part(
    memory: (&mut ThreadPool, &mut Arena),
    isa: Isa,
    tensor: TensorView<'_>,
    asked: WeightDtype,
) -> Result<MatrixPart> {
    let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
    let dtype = memory_dtype(tensor.dtype, asked);
    let mut converted = Vec::new();
    let stored = if dtype == tensor.dtype {
        &*tensor.data
    } else {
        convert(tensor.dtype, &tensor.data, dtype, &mut converted);
        &converted
    };
    let data = if !dtype.is_quantized() {
        PartData::FloatPanels(FloatPanels::pack(memory, dtype, rows, cols, stored)?)
    } else if isa >= Isa::Avx512Vnni && Panels::supports(dtype) {
        PartData::Panels(Panels::pack(memory, dtype, rows, cols, stored)?)
    } else {
        PartData::Rows(stored.into())
    };
    Ok(MatrixPart { dtype, rows, data, row_scales: tensor.row_scales.map(Into::into) })
}

/// One row of a part in f32, however it is kept.
pub(crate) fn dequantize_row(part: &MatrixPart, row: usize, out: &mut [f32]) {
    match &part.data {
        PartData::Rows(data) => {
            let row_bytes = part.dtype.row_bytes(out.len());
            quant::dequantize(part.dtype, &data[row * row_bytes..(row + 1) * row_bytes], out);
        }
        PartData::Panels(panels) => panels.dequantize_row(row, out),
        PartData::FloatPanels(panels) => panels.dequantize_row(row, out),
    }
    if let Some(scales) = &part.row_scales {
        out.iter_mut().for_each(|x| *x *= scales[row]);
    }
}
