//! What the CPU backend keeps: activations and weights.

use crate::ops::linear::{FloatPanels, Panels};
use crate::weights::Dtype;

/// f32 activations, [rows, cols].
#[derive(Debug, Default)]
pub struct Buffer {
    data: Vec<f32>,
    rows: usize,
    cols: usize,
}

impl Buffer {
    /// Room for `max_rows` rows, none in use.
    pub fn new(max_rows: usize, cols: usize) -> Self {
        Self { data: vec![0.0; max_rows * cols], rows: 0, cols }
    }

    /// A buffer that holds `data`, row after row.
    pub fn from_vec(data: Vec<f32>, cols: usize) -> Self {
        assert_eq!(data.len() % cols.max(1), 0, "invariant: whole rows");
        Self { rows: data.len() / cols.max(1), data, cols }
    }

    /// Rows in use.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Takes another shape, with all rows in use, whose contents are whatever was there.
    pub(crate) fn reshape(&mut self, rows: usize, cols: usize) {
        // A longer buffer than this step needs stays.
        self.data.resize((rows * cols).max(self.data.len()), 0.0);
        (self.rows, self.cols) = (rows, cols);
    }

    /// Sets the rows in use; their contents are whatever was there.
    pub fn set_rows(&mut self, rows: usize) {
        assert!(rows * self.cols <= self.data.len(), "invariant: a step fits the workspace");
        self.rows = rows;
    }

    /// The rows in use.
    pub fn data(&self) -> &[f32] {
        &self.data[..self.rows * self.cols]
    }

    /// The rows in use, to be written.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.rows * self.cols]
    }

    /// One row.
    pub fn row(&self, idx: usize) -> &[f32] {
        &self.data()[idx * self.cols..(idx + 1) * self.cols]
    }
}

/// Rows of one type within a [`Matrix`].
#[derive(Debug)]
pub struct MatrixPart {
    /// Type of the elements.
    pub dtype: Dtype,
    /// Rows.
    pub rows: usize,
    /// The elements.
    pub data: PartData,
    /// What each row's products are to be multiplied with, where it is not 1.
    pub row_scales: Option<Box<[f32]>>,
}

/// How the elements of a [`MatrixPart`] are kept.
#[derive(Debug)]
pub enum PartData {
    /// Quantized row after row as in a file, each `dtype.row_bytes(cols)` bytes.
    Rows(Box<[u8]>),
    /// Quantized and packed for the machine's integer products.
    Panels(Panels),
    /// Of a float type, packed.
    FloatPanels(FloatPanels),
}

/// Weights of a linear operation: parts over each other, which may differ in type.
#[derive(Debug)]
pub struct Matrix {
    /// From the top.
    pub parts: Vec<MatrixPart>,
    /// Columns: elements of an input row.
    pub cols: usize,
    /// One entry a row.
    pub bias: Option<Box<[f32]>>,
    /// Which column each stored one is, where they are not in order.
    pub column_order: Option<Box<[u32]>>,
}

impl Matrix {
    /// Rows of all parts: elements of an output row.
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|p| p.rows).sum()
    }
}

/// Cosines and sines, [rows, rotary_dim / 2] each. A row is that of its position, or there are two sets of them.
#[derive(Debug)]
pub struct RopeTable {
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
    /// How many of a head's dimensions turn.
    pub rotary_dim: usize,
}

impl RopeTable {
    /// Cosines and sines of a row.
    pub(crate) fn row(&self, idx: usize) -> (&[f32], &[f32]) {
        let half = self.rotary_dim / 2;
        (&self.cos[idx * half..(idx + 1) * half], &self.sin[idx * half..(idx + 1) * half])
    }
}
