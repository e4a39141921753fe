//! [`FloatPanels`]: weights of a float type as vectors read them.
//!
//! A panel is 16 rows side by side, two columns after another: a lane of a register is a row. Of bf16 the two columns
//! stand together in 32 bits, which is what `vdpbf16ps` multiplies; of other types one column's 16 rows come first. Panels
//! are as large as the rows were, but for rows up to a multiple of 16 and an odd last column.

use super::panels::{Line, ROWS};
use crate::backend::cpu::{Arena, ArenaSlice, SharedSlice, ThreadPool};
use crate::error::Result;
use crate::weights::{Dtype, quant};

/// Rows of one float type, 16 to a panel. Rows beyond the last, and a column that makes their number even, are zeros.
#[derive(Debug)]
pub struct FloatPanels {
    dtype: Dtype,
    cols: usize,
    /// [panels, pairs of columns, lines of a pair].
    lines: ArenaSlice<Line>,
}

/// Lines of two columns.
pub(super) const fn lines_of_pair(dtype: Dtype) -> usize {
    if matches!(dtype, Dtype::F32) { 2 } else { 1 }
}

impl FloatPanels {
    /// Packs `rows` rows of a float type.
    pub(crate) fn pack(
        (pool, arena): (&mut ThreadPool, &mut Arena),
        dtype: Dtype,
        rows: usize,
        cols: usize,
        data: &[u8],
    ) -> Result<Self> {
        assert!(!dtype.is_quantized(), "invariant: a float type");
        let (num_panels, size) = (rows.div_ceil(ROWS), dtype.row_bytes(1));
        let panel_len = cols.div_ceil(2) * lines_of_pair(dtype);
        let mut panels = Self { dtype, cols, lines: arena.zeroed(num_panels * panel_len)? };
        let lines = SharedSlice::new(&mut panels.lines);
        pool.run(num_panels, &|panel| {
            // SAFETY: each task has a panel of its own.
            let out: &mut [u8] = bytemuck::cast_slice_mut(unsafe { lines.range(panel * panel_len, panel_len) });
            let row_bytes = dtype.row_bytes(cols);
            for (lane, row) in data[panel * ROWS * row_bytes..].chunks_exact(row_bytes).take(ROWS).enumerate() {
                for (col, bytes) in row.chunks_exact(size).enumerate() {
                    out[place(dtype, lane, col)..][..size].copy_from_slice(bytes);
                }
            }
        });
        Ok(panels)
    }

    pub(super) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The lines of a panel.
    pub(super) fn lines_of(&self, panel: usize) -> &[Line] {
        let len = self.cols.div_ceil(2) * lines_of_pair(self.dtype);
        &self.lines[panel * len..(panel + 1) * len]
    }

    /// One row in f32.
    pub(crate) fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let (dtype, size) = (self.dtype, self.dtype.row_bytes(1));
        let bytes: &[u8] = bytemuck::cast_slice(self.lines_of(row / ROWS));
        for (col, out) in out[..self.cols].iter_mut().enumerate() {
            let at = place(dtype, row % ROWS, col);
            quant::dequantize(dtype, &bytes[at..at + size], std::slice::from_mut(out));
        }
    }
}

/// Where in a panel an element's bytes begin.
fn place(dtype: Dtype, lane: usize, col: usize) -> usize {
    let size = dtype.row_bytes(1);
    match dtype {
        Dtype::BF16 => (col / 2 * ROWS + lane) * 2 * size + col % 2 * size,
        _ => (col * ROWS + lane) * size,
    }
}
