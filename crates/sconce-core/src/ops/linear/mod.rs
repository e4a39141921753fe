//! `linear`: out = x . W^T + bias, W in any type that weight files store.
//!
//! Float weights are packed once at load ([`FloatPanels`]) and multiplied in f32; e4m3 as bf16, which has all of its
//! numbers, with the rows' scales applied to the sums. For quantized ones the CPU's kernels
//! quantize the inputs too, in groups of 32, so that the products are integers. At 16 bits the error is that of f32; at 8,
//! as llama.cpp has them, the starter model's log-probabilities move by 0.09 on average. Where the machine has AVX2, or
//! on Arm `sdot`, these weights are packed too ([`Panels`]); by `vpdpbusd` and `sdot` 16 bits are two planes of 8, by `vpmaddwd` words,
//! with the same bits.
//! Elsewhere rows are unpacked for each call. [`MatmulPrecision::Fast`](crate::config::MatmulPrecision)
//! takes one plane, and bf16 inputs for bf16 weights; `Mixed` a second plane only in groups with
//! outliers. Each output element is a sum in a fixed order over one row of W and one of x: it depends on no other row, on a
//! device ([`cuda`](mod@cuda)) as here. Bounded by W's bytes for few rows, by FLOPs (2 * rows * cols a token) for many.

mod algorithm;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_tiles;
#[cfg(target_arch = "x86_64")]
mod bf16;
pub(crate) mod cuda;
pub(crate) mod cuda_quant;
mod float;
mod float_panels;
pub(crate) mod hopper;
#[cfg(target_arch = "aarch64")]
mod neon;
mod panels;
mod planes;
mod quantized;
pub(crate) mod space;
#[cfg(test)]
mod tests;
pub(crate) mod timing;
mod tuned;
#[cfg(target_arch = "x86_64")]
mod vnni;

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
pub(crate) use bf16::Bf16Rows;
pub use float_panels::FloatPanels;
pub use panels::Panels;
use planes::Forms;
pub(crate) use planes::Planes;
pub(crate) use quantized::QuantizedRows;

use crate::backend::cpu::{
    Arena, Buffer, Cpu, Isa, Matrix, MatrixPart, PartData, SharedSlice, ThreadPool, memory_dtype,
};
#[cfg(target_arch = "x86_64")]
use crate::config::MatmulPrecision;
use crate::config::WeightDtype;
use crate::error::Result;
use crate::ops::gather_columns;
#[cfg(any(target_arch = "x86_64", test))]
use crate::weights::Dtype;
use crate::weights::{TensorView, convert, quant};

/// Tasks that a matrix is cut into, for every thread.
pub(super) const TASKS_A_THREAD: usize = 6;
/// Rows of two panels.
pub(super) const PAIR: usize = 2 * panels::ROWS;

/// `x`: [n, cols]; `weight`: [rows, cols]; `out`: [n, rows]. Weights are dequantized; sums are taken in f64.
pub fn reference(out: &mut Buffer, x: &Buffer, weight: &Matrix) {
    assert_eq!((x.cols(), out.cols()), (weight.cols, weight.rows()), "invariant: shapes fit");
    out.set_rows(x.rows());
    let mut ordered = Buffer::default();
    let x = match &weight.column_order {
        Some(order) => {
            gather_columns::reference(&mut ordered, x, order);
            &ordered
        }
        None => x,
    };
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
    let cols = out.cols();
    let (pool, inputs) = Inputs::of(cpu, x, std::slice::from_ref(weight), weight.column_order.as_deref());
    let shared = SharedSlice::new(out.data_mut());
    for_shares(pool, num_pairs(weight), &|pairs| {
        inputs.multiply(weight, pairs, 0..x.rows(), Place { out: shared, cols, first_row: 0, first: 0 })
    });
}

/// Calls `task` on all threads with shares of pairs of panels. They are enough that the threads end together, and no more: each
/// reads the inputs anew.
pub(super) fn for_shares(pool: &mut ThreadPool, num_pairs: usize, task: &(dyn Fn(Range<usize>) + Sync)) {
    let num_tasks = num_pairs.min(pool.num_threads() * TASKS_A_THREAD);
    pool.run(num_tasks, &|idx| task(idx * num_pairs / num_tasks..(idx + 1) * num_pairs / num_tasks));
}

/// Pairs of panels of 16 rows, as the tiles of several tokens take them. A last panel of a part without another counts as one.
pub(super) fn num_pairs(weight: &Matrix) -> usize {
    weight.parts.iter().map(pairs_of_part).sum()
}

fn pairs_of_part(part: &MatrixPart) -> usize {
    part.rows.div_ceil(PAIR)
}

/// Inputs of an operation, as the kernels of its weights take them.
pub(super) struct Inputs<'a> {
    isa: Isa,
    x: &'a Buffer,
    planes: &'a Planes,
    quantized: &'a QuantizedRows,
    #[cfg(target_arch = "x86_64")]
    bf16: Option<&'a Bf16Rows>,
}

/// Where products go: of the first token and row `first_row` of the weights to element `first` of `out`, [n, cols], those of rows
/// below it beside that.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) out: SharedSlice<'a, f32>,
    pub(super) cols: usize,
    pub(super) first_row: usize,
    pub(super) first: usize,
}

impl<'a> Inputs<'a> {
    /// Converts `x` for each of `weights`, and leaves the threads to whoever multiplies. `order`: of columns, where x has them in another
    /// than the weights.
    pub(super) fn of(
        cpu: &'a mut Cpu,
        x: &'a Buffer,
        weights: &[Matrix],
        order: Option<&[u32]>,
    ) -> (&'a mut ThreadPool, Self) {
        let x = match order {
            Some(order) => {
                gather_columns::cpu(&mut cpu.pool, &mut cpu.ordered, x, order);
                &cpu.ordered
            }
            None => x,
        };
        let parts = || weights.iter().flat_map(|weight| &weight.parts);
        let isa = cpu.isa;
        let has_panels = |is_planes: bool| {
            parts().any(|part| matches!(&part.data, PartData::Panels(panels) if has_planes(isa, panels) == is_planes))
        };
        let forms = Forms { planes: has_panels(true), words: has_panels(false) };
        if forms.planes || forms.words {
            cpu.planes.fill(&mut cpu.pool, isa, (cpu.precision, forms), x);
        }
        if parts().any(|part| matches!(part.data, PartData::Rows(_))) {
            cpu.quantized.fill(x);
        }
        #[cfg(target_arch = "x86_64")]
        let in_bf16 = cpu.precision != MatmulPrecision::Exact
            && cpu.isa >= Isa::Avx512Bf16
            && parts().any(|part| part.dtype == Dtype::BF16);
        #[cfg(target_arch = "x86_64")]
        if in_bf16 {
            cpu.bf16.fill(&mut cpu.pool, x);
        }
        let inputs = Self {
            isa: cpu.isa,
            x,
            planes: &cpu.planes,
            quantized: &cpu.quantized,
            #[cfg(target_arch = "x86_64")]
            bf16: in_bf16.then_some(&cpu.bf16),
        };
        (&mut cpu.pool, inputs)
    }

    /// The instructions that products are taken with.
    pub(super) fn isa(&self) -> Isa {
        self.isa
    }

    /// The products of some inputs with pairs of panels.
    pub(super) fn multiply(&self, weight: &Matrix, pairs: Range<usize>, tokens: Range<usize>, place: Place<'_>) {
        let (mut before, mut rows) = (0, 0);
        for part in &weight.parts {
            let num_pairs = pairs_of_part(part);
            let [first, end] = [pairs.start, pairs.end].map(|pair| pair.saturating_sub(before).min(num_pairs));
            if first < end {
                let (start, end) = (first * PAIR, part.rows.min(end * PAIR));
                let bias = weight.bias.as_deref().map(|bias| &bias[rows + start..]);
                let target = Target {
                    out: place.out,
                    out_cols: place.cols,
                    first: place.first + rows + start - place.first_row,
                    num_rows: end - start,
                    first_token: tokens.start,
                    end_token: tokens.end,
                    // Scales come before it.
                    bias: if part.row_scales.is_some() { None } else { bias },
                };
                self.multiply_part(part, start, &target);
                if let Some(scales) = &part.row_scales {
                    target.scale(&scales[start..end], bias);
                }
            }
            (before, rows) = (before + num_pairs, rows + part.rows);
        }
    }

    /// Rows of a part from `start` on, as many as `target` has.
    fn multiply_part(&self, part: &MatrixPart, start: usize, target: &Target<'_>) {
        let (first, count) = (start / panels::ROWS, target.num_rows.div_ceil(panels::ROWS));
        match &part.data {
            PartData::Rows(data) => {
                let row_bytes = part.dtype.row_bytes(self.x.cols());
                let data = &data[start * row_bytes..(start + target.num_rows) * row_bytes];
                quantized::rows(target, self.quantized, part.dtype, data);
            }
            PartData::Panels(panels) => multiply_panels(self.isa, target, panels, [first, count], self.planes),
            PartData::FloatPanels(panels) => {
                #[cfg(target_arch = "x86_64")]
                if let (Some(x), Dtype::BF16) = (self.bf16, part.dtype) {
                    // SAFETY: Isa::detect found the instructions.
                    unsafe { bf16::multiply(target, panels, first, count, x) };
                } else {
                    float::multiply(self.isa, target, panels, first, count, self.x);
                }
                #[cfg(not(target_arch = "x86_64"))]
                float::multiply(self.isa, target, panels, first, count, self.x);
            }
        }
    }
}

/// Whether panels are multiplied with planes of bytes; others are with words.
#[cfg(target_arch = "x86_64")]
fn has_planes(isa: Isa, weight: &Panels) -> bool {
    isa >= Isa::Avx512Vnni && vnni::supports(weight.dtype())
}

#[cfg(target_arch = "x86_64")]
fn multiply_panels(isa: Isa, target: &Target<'_>, weight: &Panels, [first, count]: [usize; 2], x: &Planes) {
    if has_planes(isa, weight) {
        // SAFETY: Isa::detect found the instructions.
        return unsafe { vnni::multiply(target, weight, first, count, x) };
    }
    // SAFETY: weights are packed only where Isa::detect found them.
    unsafe { avx2::multiply(target, weight, first, count, x) }
}

#[cfg(not(target_arch = "x86_64"))]
fn has_planes(_: Isa, _: &Panels) -> bool {
    true
}

#[cfg(target_arch = "aarch64")]
fn multiply_panels(_: Isa, target: &Target<'_>, weight: &Panels, [first, count]: [usize; 2], x: &Planes) {
    // SAFETY: weights are packed only where Isa::detect found the instructions.
    unsafe { neon::multiply(target, weight, first, count, x) }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn multiply_panels(_: Isa, _: &Target<'_>, _: &Panels, _: [usize; 2], _: &Planes) {
    unreachable!("weights are packed only on x86-64 and aarch64")
}

/// What a task multiplies, and where its results go: those of the first token are `num_rows` elements of `out` from `first` on, and those
/// of each further one `out_cols` behind.
#[derive(Clone, Copy)]
struct Target<'a> {
    out: SharedSlice<'a, f32>,
    out_cols: usize,
    first: usize,
    num_rows: usize,
    /// Among the inputs.
    first_token: usize,
    end_token: usize,
    /// From the task's first row on.
    bias: Option<&'a [f32]>,
}

impl<'a> Target<'a> {
    /// The element of token `t` and row `row`.
    #[inline(always)]
    fn at(&self, t: usize, row: usize) -> usize {
        (t - self.first_token) * self.out_cols + self.first + row
    }

    /// Writes row `row` of the task's weights times token `t`.
    #[inline(always)]
    fn set(&self, t: usize, row: usize, value: f32) {
        // SAFETY: tasks have disjoint rows of W, hence disjoint columns of `out`.
        let cell = unsafe { self.out.range(self.at(t, row), 1) };
        cell[0] = value + self.bias.map_or(0.0, |b| b[row]);
    }

    /// Where token `t` times rows from `row` on will be written, to be asked for ahead: memory is slow to take stores to
    /// lines that no cache holds.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn address(&self, t: usize, row: usize) -> *const f32 {
        self.out.address(self.at(t, row))
    }

    /// Multiplies what the task has written with the scales of its rows, and adds the bias. By itself, so that kernels stay as
    /// small as they are: outputs are few beside the products that they are sums of.
    #[inline(never)]
    fn scale(&self, scales: &[f32], bias: Option<&[f32]>) {
        for t in self.first_token..self.end_token {
            // SAFETY: tasks have disjoint rows of W, hence disjoint columns of `out`, and this one's are written.
            let cells = unsafe { self.out.range(self.at(t, 0), scales.len()) };
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
        // SAFETY: the caller's, and tasks have disjoint rows of W, hence disjoint columns of `out`.
        let cells = unsafe { self.out.range(self.at(t, row), panels::ROWS.min(self.num_rows - row)) };
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
    } else if isa > Isa::Baseline {
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
