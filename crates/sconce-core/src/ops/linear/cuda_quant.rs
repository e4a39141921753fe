//! The launches of `kernels/linear_quant.cu`: products with weights that stay in block formats, and [`Expansion`], in which those
//! of many tokens find them in 16 bits.

#[cfg(test)]
pub(in crate::ops) mod tests;

use std::sync::Arc;

use super::cuda::{MAX_ROWS, Segments, args, stream_dims, tile_count};
use crate::backend::StepLimits;
use crate::backend::cuda::device::{Args, Device, Dims, ElemType};
use crate::backend::cuda::quant::{COLUMNS, ROWS, tile_bytes};
use crate::backend::cuda::storage::{Buffer, Form, Matrix, Memory};
use crate::error::Result;
use crate::weights::Dtype;

/// From so many tokens on weights are expanded first where no trial says otherwise, and multiplied by the kernels for 16 bits: those
/// are faster, but the expanded weights are written and read, once for all tokens. Where no step has so many there is no room for it.
pub(super) const MIN_EXPANDED_TOKENS: usize = 512;

/// A tile of products, as `linear_quant.cu` has it.
const TILE: usize = 64;
const TILE_THREADS: usize = 128;
const STAGES: usize = 3;
/// Bytes of a warp's tiles, where it streams them.
pub(crate) const STREAM_BYTES: usize = 8704;

/// The kernel of a format whose name begins so.
macro_rules! kernel_of {
    ($prefix:literal, $dtype:expr) => {
        match $dtype {
            Dtype::Q4_0 => concat!($prefix, "_q4_0_bf16"),
            Dtype::Q4_1 => concat!($prefix, "_q4_1_bf16"),
            Dtype::Q5_0 => concat!($prefix, "_q5_0_bf16"),
            Dtype::Q5_1 => concat!($prefix, "_q5_1_bf16"),
            Dtype::Q8_0 => concat!($prefix, "_q8_0_bf16"),
            Dtype::Q4K => concat!($prefix, "_q4_k_bf16"),
            Dtype::Q5K => concat!($prefix, "_q5_k_bf16"),
            Dtype::Q6K => concat!($prefix, "_q6_k_bf16"),
            Dtype::Int4G32 => concat!($prefix, "_int4_g32_bf16"),
            Dtype::Int4G128 => concat!($prefix, "_int4_g128_bf16"),
            Dtype::Mxfp4 => concat!($prefix, "_mxfp4_bf16"),
            dtype => unreachable!("{dtype} is expanded when it is loaded"),
        }
    };
}
pub(crate) use kernel_of;

/// Who multiplies: kernels of one format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    Rows8,
    Rows16,
    Tile,
}

impl Kernel {
    pub(super) fn choose(num_tokens: usize) -> Self {
        match num_tokens {
            0..=8 => Self::Rows8,
            9..=MAX_ROWS => Self::Rows16,
            _ => Self::Tile,
        }
    }

    /// All that can multiply so many tokens.
    pub(super) fn all(num_tokens: usize) -> impl Iterator<Item = Self> {
        let most = |kernel| match kernel {
            Self::Rows8 => 8,
            Self::Rows16 => MAX_ROWS,
            Self::Tile => usize::MAX,
        };
        [Self::Rows8, Self::Rows16, Self::Tile].into_iter().filter(move |&kernel| num_tokens <= most(kernel))
    }

    pub(super) fn name(self, dtype: Dtype) -> &'static str {
        match self {
            Self::Rows8 => kernel_of!("linear_rows8", dtype),
            Self::Rows16 => kernel_of!("linear_rows16", dtype),
            Self::Tile => kernel_of!("linear_tile64x64", dtype),
        }
    }
}

/// Each part of `weight` by `kernel`.
pub(super) fn launch(device: &dyn Device, kernel: Kernel, out: &Buffer, x: &Buffer, weight: &Matrix) -> Result<()> {
    let segments = Segments::of(weight);
    for part in weight.quant_parts() {
        let args = args(out, x, weight, part.first_row..part.first_row + part.rows, part.start);
        let (dims, args) = if kernel == Kernel::Tile {
            let dims = Dims::linear(tile_count(TILE, TILE, x.rows(), part.rows), TILE_THREADS);
            (dims.with_shared(shared_bytes(part.dtype, segments.len < weight.cols)), args)
        } else {
            (stream_dims(device, x.rows(), part.rows, segments.splits, STREAM_BYTES), args.with(segments.splits))
        };
        // SAFETY: the caller compared the shapes; grids and shared memory are as the kernels' head says.
        unsafe { device.launch(kernel.name(part.dtype), &dims, &args)? };
    }
    Ok(())
}

/// Of a tile of products: its stages and behind them the sums of finished segments, where there is more than one, or in their place the
/// results.
pub(crate) fn shared_bytes(dtype: Dtype, has_totals: bool) -> usize {
    let (num_chunks, chunk_bytes) = (COLUMNS / 32, TILE * 64 + 64);
    let stages = STAGES * (TILE / ROWS * tile_bytes(dtype) + num_chunks * chunk_bytes);
    let totals = if has_totals { TILE * TILE * 4 } else { 0 };
    (stages + totals).max(TILE * (TILE + 4) * 4)
}

/// The kernel for gate, up and their product of at most [`MAX_ROWS`] tokens.
pub(super) fn gated_name(num_tokens: usize, dtype: Dtype) -> &'static str {
    match Kernel::choose(num_tokens) {
        Kernel::Rows8 => kernel_of!("linear_gated_rows8", dtype),
        _ => kernel_of!("linear_gated_rows16", dtype),
    }
}

/// Room for one matrix in 16 bits, for products of many tokens.
pub(super) struct Expansion {
    memory: Memory,
    /// The room as a matrix of each shape, without a bias.
    matrices: Vec<Matrix>,
}

impl Expansion {
    /// For those of the matrices, [rows, columns], that so many tokens may be multiplied with: few are with the head, which has a row a
    /// token of the vocabulary. `None`: there are none.
    pub(super) fn needed(
        device: &Arc<dyn Device>,
        mut shapes: Vec<[usize; 2]>,
        vocab_size: usize,
        limits: &StepLimits,
    ) -> Result<Option<Self>> {
        let most_tokens = |rows: usize| if rows == vocab_size { limits.max_logits } else { limits.max_tokens };
        shapes.retain(|[rows, _]| most_tokens(*rows) >= MIN_EXPANDED_TOKENS);
        shapes.sort_unstable();
        shapes.dedup();
        if shapes.is_empty() { Ok(None) } else { Self::new(device, &shapes).map(Some) }
    }

    /// For matrices of these shapes.
    pub(super) fn new(device: &Arc<dyn Device>, shapes: &[[usize; 2]]) -> Result<Self> {
        const ELEM: ElemType = ElemType::Bf16;
        let num_elements = shapes.iter().map(|[rows, cols]| rows * cols).max().unwrap_or(0);
        let memory = Memory::new(device, num_elements * ELEM.bytes())?;
        let matrix = |&shape: &[usize; 2]| Matrix::new(memory.clone(), shape, ELEM, Form::Scratch, None);
        Ok(Self { matrices: shapes.iter().map(matrix).collect::<Result<_>>()?, memory })
    }

    /// The room as matrices, of each shape one.
    pub(super) fn matrices(&self) -> &[Matrix] {
        &self.matrices
    }

    /// The matrix that [`Expansion::fill`] makes of `weight`; `None` where there is no room for it.
    pub(super) fn matrix(&self, weight: &Matrix) -> Option<Matrix> {
        let fits = |matrix: &&Matrix| (matrix.rows, matrix.cols) == (weight.rows, weight.cols);
        self.matrices.iter().find(fits).map(|matrix| matrix.with_bias_of(weight))
    }

    /// Expands `weight` to what [`Expansion::matrix`] gives. What was there before is gone.
    pub(super) fn fill(&self, device: &dyn Device, weight: &Matrix) -> Result<()> {
        let row_bytes = weight.cols * weight.elem.bytes();
        for part in weight.quant_parts() {
            let out = self.memory.ptr().offset(part.first_row * row_bytes);
            let args = Args::new().with(out).with(weight.memory.ptr().offset(part.start));
            let args = args.with(part.rows).with(weight.cols);
            // A warp a tile.
            let dims = Dims::over_rows(part.rows.div_ceil(ROWS), weight.cols.div_ceil(COLUMNS) * 32);
            // SAFETY: `matrix` found that the rows fit; a part's tiles are in the matrix's memory.
            unsafe { device.launch(kernel_of!("linear_expand", part.dtype), &dims, &args)? };
        }
        Ok(())
    }
}
