//! Matrices of integers that checkpoints of safetensors pack: GPTQ, AWQ and compressed-tensors. They become blocks with the same
//! numbers: of 8 bits Q8_0; of 4 bits INT4_G128 where groups are whole ones of 128 columns, and elsewhere Q4_0 or INT4_G32, without and
//! with zero points.
//!
//! A weight is scale * (code - zero), with a scale and a zero point for each group of columns of a row. `X.weight` is packed in
//!
//! | layout | codes | zero points | scales |
//! |---|---|---|---|
//! | GPTQ | `X.qweight` [cols / n, rows] | `X.qzeros` [groups, rows / n], less 1 | `X.scales` [groups, rows] |
//! | GPTQ v2 | the same | the same, as they are | the same |
//! | AWQ | `X.qweight` [cols, rows / 8] | `X.qzeros` [groups, rows / 8] | the same |
//! | pack-quantized | `X.weight_packed` [rows, cols / n] | `X.weight_zero_point` [rows / n, groups] | `X.weight_scale` [rows, groups] |
//! | int-quantized | `X.weight` [rows, cols], signed bytes | | the same |
//!
//! Codes and zero points lie in words of 32 bits, n = 32 / bits in each, the first in the lowest bits; those of AWQ in the order 0, 2,
//! 4, 6, 1, 3, 5, 7. `X.g_idx` or `X.weight_g_idx` may say which group each column belongs to: where those of a group are not neighbours
//! (act-order), columns are brought together ([`TensorView::column_order`]).

mod rows;
#[cfg(test)]
mod tests;

use ::safetensors::Dtype as StDtype;

use super::safetensors::Safetensors;
use super::{Dtype, TensorInfo, TensorView};
use crate::error::{Error, Result};

/// How a checkpoint packs its matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packing {
    /// Which tensors hold what.
    pub layout: PackedLayout,
    /// Of a code: 4 or 8.
    pub bits: usize,
    /// Neighbouring columns that share a scale; `None`: all of a row.
    pub group_size: Option<usize>,
    /// Whether the zero point is the middle of the codes everywhere. With 8 bits it is.
    pub is_symmetric: bool,
}

/// What the matrices of a checkpoint's layers are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StoredForm {
    /// Floats, or what their tensors say.
    #[default]
    Plain,
    /// e4m3, which their tensors say too.
    Fp8,
    /// The same, with a scale for so many rows and columns. They become bf16.
    Fp8Blocks([usize; 2]),
    /// Integers.
    Packed(Packing),
    /// Experts in MXFP4, which their tensors say too; other matrices are floats.
    Mxfp4,
}

/// Which tensors hold what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackedLayout {
    /// GPTQ, as most tools write it.
    Gptq,
    /// GPTQ, with zero points as they are.
    GptqV2,
    /// AWQ of the version GEMM, always of 4 bits.
    Awq,
    /// compressed-tensors of the format pack-quantized.
    PackQuantized,
    /// compressed-tensors of the format int-quantized, always of 8 bits.
    IntQuantized,
}

impl PackedLayout {
    /// What stands in place of `weight` in the names of codes, scales, zero points and columns' groups.
    fn suffixes(self) -> [&'static str; 4] {
        match self {
            Self::Gptq | Self::GptqV2 | Self::Awq => ["qweight", "scales", "qzeros", "g_idx"],
            Self::PackQuantized => ["weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx"],
            Self::IntQuantized => ["weight", "weight_scale", "weight_zero_point", "weight_g_idx"],
        }
    }

    /// Whether scales are [groups, rows].
    fn has_groups_first(self) -> bool {
        matches!(self, Self::Gptq | Self::GptqV2 | Self::Awq)
    }
}

impl Packing {
    /// The name of the codes of the matrix `name`, were it packed.
    pub(super) fn codes_name(&self, name: &str) -> Option<String> {
        Some(format!("{}.{}", name.strip_suffix(".weight")?, self.layout.suffixes()[0]))
    }

    /// The matrix whose codes have this name.
    pub(super) fn matrix_of_codes(&self, codes: &str) -> Option<String> {
        let matrix = codes.strip_suffix(self.layout.suffixes()[0])?.strip_suffix('.')?;
        Some(format!("{matrix}.weight"))
    }

    /// Columns of a group of rows of `cols`. Errors: what is wrong with them.
    pub(super) fn group_len(&self, cols: usize) -> Result<usize, String> {
        let len = self.group_size.unwrap_or(cols);
        if len == 0 || !cols.is_multiple_of(len) || !len.is_multiple_of(32) {
            return Err(format!(
                "groups of {len} columns of {cols} are not supported: only whole ones of a multiple of 32"
            ));
        }
        Ok(len)
    }

    /// What a matrix becomes that has groups of so many columns.
    pub(super) fn block_dtype(&self, group_len: usize) -> Dtype {
        match self.bits {
            8 => Dtype::Q8_0,
            _ if group_len.is_multiple_of(128) => Dtype::Int4G128,
            _ if self.is_symmetric => Dtype::Q4_0,
            _ => Dtype::Int4G32,
        }
    }

    /// Codes in a word.
    fn codes_a_word(&self) -> usize {
        32 / self.bits
    }
}

/// One tensor of a file, of any type.
#[derive(Debug, Clone, Copy)]
pub(super) struct Raw<'a> {
    pub(super) dtype: StDtype,
    pub(super) shape: &'a [usize],
}

/// A packed matrix whose tensors fit each other.
pub(super) struct Packed<'a> {
    files: &'a Safetensors,
    packing: Packing,
    /// Of codes, scales, zero points and columns' groups.
    names: [String; 4],
    rows: usize,
    cols: usize,
    /// Columns of a group, a multiple of 32.
    group_len: usize,
    /// What it becomes.
    blocks: Dtype,
    scales: StDtype,
    /// In which columns of a group are neighbours, where they are not.
    column_order: Option<Vec<u32>>,
}

impl<'a> Packed<'a> {
    /// The matrix `name`, if its codes are there.
    pub(super) fn find(files: &'a Safetensors, packing: &Packing, name: &str) -> Result<Option<Self>> {
        let Some(prefix) = name.strip_suffix(".weight") else { return Ok(None) };
        let names = packing.layout.suffixes().map(|suffix| format!("{prefix}.{suffix}"));
        let is_bytes = packing.layout == PackedLayout::IntQuantized;
        // Where codes have the matrix's own name, it may as well have floats.
        let Some(codes) = files.raw(&names[0]).filter(|raw| !is_bytes || raw.dtype == StDtype::I8) else {
            return Ok(None);
        };
        let error = |name: &str, message: String| Err(Error::tensor(files.path_of(name), name, message));
        let &[first, second] = codes.shape else {
            return error(&names[0], format!("expected two dimensions, found the shape {:?}", codes.shape));
        };
        if !is_bytes && codes.dtype != StDtype::I32 {
            return error(&names[0], format!("expected I32, found {:?}", codes.dtype));
        }
        let n = packing.codes_a_word();
        let [rows, cols] = match packing.layout {
            PackedLayout::Gptq | PackedLayout::GptqV2 => [second, first * n],
            PackedLayout::Awq => [second * n, first],
            PackedLayout::PackQuantized => [first, second * n],
            PackedLayout::IntQuantized => [first, second],
        };
        let group_len = match packing.group_len(cols) {
            Ok(group_len) => group_len,
            Err(message) => return error(&names[0], message),
        };
        let blocks = packing.block_dtype(group_len);
        let (scales, scales_shape) = match files.raw(&names[1]) {
            Some(raw) => (raw.dtype, raw.shape),
            None => return error(&names[1], format!("{} needs it, and it is not there", names[0])),
        };
        let mut this =
            Self { files, packing: *packing, names, rows, cols, group_len, blocks, scales, column_order: None };
        let groups = this.num_groups();
        let shape = if packing.layout.has_groups_first() { [groups, rows] } else { [rows, groups] };
        if scales_shape != shape {
            return error(&this.names[1], format!("expected the shape {shape:?}, found {scales_shape:?}"));
        }
        if !matches!(scales, StDtype::F16 | StDtype::BF16 | StDtype::F32) {
            return error(&this.names[1], format!("expected F16, BF16 or F32, found {scales:?}"));
        }
        this.check_zeros()?;
        this.column_order = this.read_order()?;
        Ok(Some(this))
    }

    fn num_groups(&self) -> usize {
        self.cols / self.group_len
    }

    /// An error about codes (0), scales, zero points or groups (3).
    fn error(&self, idx: usize, message: impl Into<String>) -> Error {
        let name = &self.names[idx];
        Error::tensor(self.files.path_of(name), name, message)
    }

    /// Whether a file says what the zero points are.
    fn has_zeros(&self) -> bool {
        self.packing.layout.has_groups_first() || !self.packing.is_symmetric
    }

    fn check_zeros(&self) -> Result<()> {
        let (groups, n) = (self.num_groups(), self.packing.codes_a_word());
        if self.packing.layout.has_groups_first() && !self.rows.is_multiple_of(n) {
            return Err(self.error(0, format!("expected a multiple of {n} rows, found {}", self.rows)));
        }
        let words = self.rows.div_ceil(n);
        match self.files.raw(&self.names[2]) {
            None if self.has_zeros() => Err(self.error(2, format!("{} needs it, and it is not there", self.names[0]))),
            Some(_) if !self.has_zeros() => {
                Err(self.error(2, "quantization_config says that weights are symmetric, and here are zero points"))
            }
            Some(Raw { dtype, shape }) => {
                let expected = if self.packing.layout.has_groups_first() { [groups, words] } else { [words, groups] };
                if dtype != StDtype::I32 || shape != expected {
                    let message = format!("expected I32 of the shape {expected:?}, found {dtype:?} of {shape:?}");
                    return Err(self.error(2, message));
                }
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn read_order(&self) -> Result<Option<Vec<u32>>> {
        let Some(Raw { dtype, shape }) = self.files.raw(&self.names[3]) else { return Ok(None) };
        if dtype != StDtype::I32 || shape != [self.cols] {
            let message = format!("expected I32 of the shape [{}], found {dtype:?} of {shape:?}", self.cols);
            return Err(self.error(3, message));
        }
        let groups: Vec<u32> =
            self.files.data(&self.names[3]).as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect();
        let mut order: Vec<u32> = (0..self.cols as u32).collect();
        order.sort_by_key(|&col| groups[col as usize]);
        let mut in_order = order.iter().map(|&col| groups[col as usize]).enumerate();
        if let Some((i, group)) = in_order.find(|&(i, group)| group as usize != i / self.group_len) {
            let message = format!(
                "expected {} columns of each group from 0 on, found column {} in {group}",
                self.group_len, order[i]
            );
            return Err(self.error(3, message));
        }
        Ok((!order.is_sorted()).then_some(order))
    }

    /// What it becomes.
    pub(super) fn info(&self) -> TensorInfo {
        TensorInfo { dtype: self.blocks, shape: vec![self.rows, self.cols] }
    }

    /// The same, with its data.
    pub(super) fn read(&self) -> Result<TensorView<'static>> {
        let TensorInfo { dtype, shape } = self.info();
        let (data, column_order) = (rows::convert(self)?, self.column_order.clone());
        Ok(TensorView { column_order, ..TensorView::new(dtype, shape, data) })
    }
}
