//! [`GgufWeights`]: a GGUF's tensors under their Hugging Face names, in the layout that those have.

use std::borrow::Cow;

use super::gguf::GgufFile;
use super::gguf::names::{Names, Place, Stored};
use super::{Dtype, TensorInfo, TensorView, quant};
use crate::config::ModelConfig;
use crate::error::{Error, Result};

/// A GGUF's tensors under their Hugging Face names.
#[derive(Debug)]
pub(super) struct GgufWeights {
    file: GgufFile,
    names: &'static Names,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
}

impl GgufWeights {
    /// The tensors of `file`, whose metadata `config` was made from.
    pub(super) fn new(file: GgufFile, config: &ModelConfig) -> Result<Self> {
        const KEY: &str = "general.architecture";
        let metadata = file.metadata();
        let architecture = metadata.string(KEY)?.ok_or_else(|| metadata.missing(KEY))?;
        let Some(names) = Names::of(architecture) else {
            let message =
                format!("metadata key {KEY}: expected one of {}, found {architecture:?}", Names::architectures());
            return Err(Error::file(file.path(), message));
        };
        Ok(Self {
            file,
            names,
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        })
    }

    pub(super) fn file(&self) -> &GgufFile {
        &self.file
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.names.places(name).iter().any(|place| self.file.contains(&place.name))
    }

    /// The tensor in the layout that Hugging Face gives it, or where it was looked for.
    pub(super) fn tensor(&self, name: &str) -> Result<Result<TensorView<'_>, Vec<Place>>> {
        let places = self.names.places(name);
        let found = places.iter().find_map(|place| Some((self.file.tensor(&place.name)?, place)));
        match found {
            Some((tensor, place)) => self.restore(place, tensor).map(Ok),
            None => Ok(Err(places)),
        }
    }

    /// What [`GgufWeights::tensor`] would give, without its data.
    pub(super) fn describe(&self, name: &str) -> Result<Result<TensorInfo, Vec<Place>>> {
        let places = self.names.places(name);
        let found = places.iter().find_map(|place| Some((self.file.describe(&place.name)?, place)));
        let Some((mut info, place)) = found else { return Ok(Err(places)) };
        if place.stored == Stored::PlusOne {
            info.dtype = Dtype::F32;
        }
        if let (Some((first, len)), Some(rows)) = (self.rows_in_fused(place), info.shape.first_mut()) {
            self.check_rows(&place.name, *rows, first, len)?;
            *rows = len;
        }
        if place.stored == Stored::Expert {
            info.shape.remove(0);
        }
        Ok(Ok(info))
    }

    /// Where the rows of one projection are in a fused tensor, the first and how many; or one expert's matrix among those of all.
    fn rows_in_fused(&self, place: &Place) -> Option<(usize, usize)> {
        // Saturated, they are more rows than any tensor has.
        let q_rows = self.num_attention_heads.saturating_mul(self.head_dim);
        let k_rows = self.num_key_value_heads.saturating_mul(self.head_dim);
        match place.stored {
            Stored::Same | Stored::InterleavedQ | Stored::InterleavedK | Stored::PlusOne => None,
            Stored::Expert => Some((place.expert, 1)),
            Stored::RowsQ => Some((0, q_rows)),
            Stored::RowsK => Some((q_rows, k_rows)),
            Stored::RowsV => Some((q_rows.saturating_add(k_rows), k_rows)),
        }
    }

    fn check_rows(&self, name: &str, num_rows: usize, first: usize, len: usize) -> Result<()> {
        let end = first.saturating_add(len);
        if end <= num_rows {
            return Ok(());
        }
        let message = format!("expected rows {first} to {end}, found {num_rows} rows");
        Err(Error::tensor(self.file.path(), name, message))
    }

    fn restore<'a>(&self, place: &Place, tensor: TensorView<'a>) -> Result<TensorView<'a>> {
        let name = &place.name;
        if let Some((first, len)) = self.rows_in_fused(place) {
            let mut rows = self.rows(name, tensor, first, len)?;
            if place.stored == Stored::Expert {
                rows.shape.remove(0);
            }
            return Ok(rows);
        }
        match place.stored {
            Stored::InterleavedQ => self.deinterleave(name, tensor, self.num_attention_heads),
            Stored::InterleavedK => self.deinterleave(name, tensor, self.num_key_value_heads),
            Stored::PlusOne => Ok(minus_one(tensor)),
            Stored::Same | Stored::RowsQ | Stored::RowsK | Stored::RowsV | Stored::Expert => Ok(tensor),
        }
    }

    /// Row 2i + j of a head becomes row j * half + i.
    fn deinterleave<'a>(&self, name: &str, tensor: TensorView<'a>, num_heads: usize) -> Result<TensorView<'a>> {
        let (num_rows, _) = self.rows_of(name, &tensor)?;
        let halves = num_heads.saturating_mul(2);
        let half = num_rows.checked_div(halves).unwrap_or(0);
        if half * halves != num_rows {
            let message = format!("{num_rows} rows are not {num_heads} heads of an even length");
            return Err(Error::tensor(self.file.path(), name, message));
        }
        Ok(tensor.in_halves(2 * half, 2 * half))
    }

    /// Rows `first..first + len` of a fused tensor.
    fn rows<'a>(&self, name: &str, tensor: TensorView<'a>, first: usize, len: usize) -> Result<TensorView<'a>> {
        let (num_rows, row_bytes) = self.rows_of(name, &tensor)?;
        self.check_rows(name, num_rows, first, len)?;
        let bytes = first * row_bytes..(first + len) * row_bytes;
        let data = match tensor.data {
            Cow::Borrowed(data) => Cow::Borrowed(&data[bytes]),
            Cow::Owned(data) => Cow::Owned(data[bytes].to_vec()),
        };
        let mut shape = tensor.shape;
        shape[0] = len;
        Ok(TensorView::new(tensor.dtype, shape, data))
    }

    /// Number of rows and bytes of one; a vector's rows are its elements.
    fn rows_of(&self, name: &str, tensor: &TensorView<'_>) -> Result<(usize, usize)> {
        let row_len: usize = tensor.shape[1..].iter().product();
        if !row_len.is_multiple_of(tensor.dtype.block_len()) {
            let message = format!("rows of {row_len} elements are not whole blocks of {}", tensor.dtype);
            return Err(Error::tensor(self.file.path(), name, message));
        }
        Ok((tensor.shape[0], tensor.dtype.row_bytes(row_len)))
    }
}

/// The conversion of Gemma adds one to its norms in f32, whatever the type of the matrices.
fn minus_one(tensor: TensorView<'_>) -> TensorView<'static> {
    let mut values = vec![0.0; tensor.shape.iter().product()];
    quant::dequantize(tensor.dtype, &tensor.data, &mut values);
    let data: Vec<u8> = values.iter().flat_map(|v| (v - 1.0).to_le_bytes()).collect();
    TensorView::new(Dtype::F32, tensor.shape, data)
}
