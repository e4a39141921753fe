//! [`WeightStore`]: tensors by their Hugging Face names, from whichever files a model has.

use std::borrow::Cow;
use std::path::Path;

use super::dummy::DummyWeights;
use super::gguf::GgufFile;
use super::gguf::names::Place;
use super::gguf_weights::GgufWeights;
use super::packed::StoredForm;
use super::safetensors::Safetensors;
use super::{Dtype, GgufMetadata, RandomWeights, TensorInfo, fp8, quant};
use crate::config::{ModelConfig, Quantization};
use crate::error::{Error, Result};

/// Stands for a file in messages about dummy weights.
pub(super) const DUMMY_PATH: &str = "(dummy weights)";
/// Rows of it are looked up by token.
const EMBEDDING: &str = "model.embed_tokens.weight";

/// One tensor, row-major; a matrix has the shape [out_features, in_features].
#[derive(Debug, Clone)]
pub struct TensorView<'a> {
    /// Element or block type.
    pub dtype: Dtype,
    /// Lengths, slowest first.
    pub shape: Vec<usize>,
    /// The elements: product of `shape` without its last, times `dtype.row_bytes(last)` bytes.
    /// They need not be aligned for their type.
    pub data: Cow<'a, [u8]>,
    /// Of e4m3: what the elements of each row are to be multiplied with.
    pub row_scales: Option<Vec<f32>>,
    /// Of a matrix whose columns are not stored in order: which one each of them is.
    pub column_order: Option<Vec<u32>>,
}

impl<'a> TensorView<'a> {
    /// Elements without scales, in order.
    pub fn new(dtype: Dtype, shape: Vec<usize>, data: impl Into<Cow<'a, [u8]>>) -> Self {
        Self { dtype, shape, data: data.into(), row_scales: None, column_order: None }
    }

    /// The same matrix in f32, without scales, in order.
    pub(crate) fn in_f32(&self) -> TensorView<'static> {
        let data = quant::encode(Dtype::F32, &self.to_f32()).expect("invariant: floats of any number are encoded");
        TensorView::new(Dtype::F32, self.shape.clone(), data)
    }

    /// The elements as f32, scales included, columns in order.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.shape.iter().product()];
        quant::dequantize(self.dtype, &self.data, &mut out);
        if let Some(scales) = &self.row_scales {
            let row_len = out.len().checked_div(scales.len()).unwrap_or(0).max(1);
            for (row, scale) in out.chunks_exact_mut(row_len).zip(scales) {
                row.iter_mut().for_each(|x| *x *= scale);
            }
        }
        if let Some(order) = &self.column_order {
            for row in out.chunks_exact_mut(order.len()) {
                let stored = row.to_vec();
                order.iter().zip(stored).for_each(|(&col, x)| row[col as usize] = x);
            }
        }
        out
    }
}

/// Tensors of one model by their Hugging Face names (`model.layers.0.self_attn.q_proj.weight`).
///
/// Whatever the file, a tensor has the layout that Hugging Face gives it: where the conversion to
/// GGUF reordered rows (the q and k projections of `llama`), fused tensors (q, k, v of `phi2`) or
/// added one (the norms of `gemma2`), that is undone here, and no model file knows of it.
#[derive(Debug)]
pub struct WeightStore {
    source: Source,
    quantization: Quantization,
}

#[derive(Debug)]
enum Source {
    Safetensors(Safetensors),
    Gguf(GgufWeights),
    Dummy(DummyWeights),
}

impl WeightStore {
    /// `model.safetensors`, or the shards that `model.safetensors.index.json` names. `form`: as config.json says.
    pub fn open_safetensors(dir: &Path, form: StoredForm) -> Result<Self> {
        Ok(Self::of(Source::Safetensors(Safetensors::open(dir, form)?)))
    }

    /// The tensors of `file`; `config` is the model's own, made from the file's metadata.
    ///
    /// A name that is not of Hugging Face is looked for as it stands: `rope_freqs.weight`.
    pub fn open_gguf(file: GgufFile, config: &ModelConfig) -> Result<Self> {
        Ok(Self::of(Source::Gguf(GgufWeights::new(file, config)?)))
    }

    /// Random weights, the same for the same seed, name and shape: matrices nearly normal with a
    /// standard deviation of 0.02, norms (`*norm*.weight`) ones, biases zeros.
    ///
    /// Matrices are of `dtype`, one of F32, F16, BF16, Q4_0, Q4_1, Q8_0; norms and biases too, but
    /// F32 where that is a block type.
    pub fn dummy(seed: u64, dtype: Dtype) -> Self {
        Self::dummy_of(seed, dtype, StoredForm::Plain)
    }

    /// The same, whose layers' matrices are what a checkpoint of this form would have, quantized from such numbers.
    pub fn dummy_of(seed: u64, dtype: Dtype, form: StoredForm) -> Self {
        Self::of(Source::Dummy(DummyWeights::new(seed, dtype, form)))
    }

    fn of(source: Source) -> Self {
        Self { source, quantization: Quantization::None }
    }

    /// The same, whose matrices are quantized when they are asked for, as far as [`Quantization`] says. Asking for one that is stored in
    /// blocks is an error; where e4m3 is asked for, one that is stored in it stays as it is.
    pub fn quantized(self, quantization: Quantization) -> Self {
        Self { quantization, ..self }
    }

    /// What this tensor becomes, if it is to be quantized.
    fn target(&self, name: &str, info: &TensorInfo) -> Result<Option<Dtype>> {
        let target = match self.quantization {
            _ if info.shape.len() != 2 || is_router(name) => None,
            Quantization::None => None,
            Quantization::Fp8 => is_of_layer(name).then_some(Dtype::F8E4M3),
            Quantization::Q4_0 if is_of_layer(name) => Some(Dtype::Q4_0),
            Quantization::Q4_0 | Quantization::Q8_0 => Some(Dtype::Q8_0),
        };
        let Some(target) = target else { return Ok(None) };
        let asked = self.quantization.name();
        if info.dtype.is_quantized() {
            let message =
                format!("{asked} is for weights that are not quantized yet, and {name} is stored in {}", info.dtype);
            return Err(Error::config("quantization", message));
        }
        if !info.shape[1].is_multiple_of(target.block_len()) {
            let message = format!(
                "{asked} is for rows of whole blocks of {}, and those of {name} have {} elements",
                target.block_len(),
                info.shape[1]
            );
            return Err(Error::config("quantization", message));
        }
        Ok((info.dtype != target).then_some(target))
    }

    /// The tensor, checked against the shape that the model's config asks for.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>> {
        let tensor = match &self.source {
            Source::Safetensors(files) => files.tensor(name)?.ok_or_else(|| self.missing(name, &[]))?,
            Source::Gguf(file) => file.tensor(name)?.map_err(|places| self.missing(name, &places))?,
            Source::Dummy(dummy) => dummy.tensor(name, shape)?,
        };
        let info = TensorInfo { dtype: tensor.dtype, shape: tensor.shape.clone() };
        self.check(name, shape, &info)?;
        if tensor.dtype == Dtype::Mxfp4
            && let Some(found) = quant::bad_scale(&tensor.data)
        {
            let message = format!("expected scales up to 2^125, found the exponent byte {found}");
            return Err(Error::tensor(self.path(), name, message));
        }
        if name == EMBEDDING && tensor.column_order.is_some() {
            return Err(Error::tensor(self.path(), name, "embeddings in act-order are not supported"));
        }
        let Some(target) = self.target(name, &info)? else { return Ok(tensor) };
        let infinite = || Error::tensor(self.path(), name, "there is a number among its elements that is not finite");
        let quantized = if target == Dtype::F8E4M3 { fp8::quantize(&tensor) } else { quant::quantize(&tensor, target) };
        quantized.ok_or_else(infinite)
    }

    /// What a random matrix is; `None`: it is a file's, or to be quantized to blocks.
    pub fn random(&self, name: &str) -> Option<RandomWeights> {
        match &self.source {
            Source::Dummy(_) if self.quantization.makes_blocks() => None,
            Source::Dummy(dummy) => {
                let stored = dummy.random_dtype(name)?;
                let is_fp8 = self.quantization == Quantization::Fp8 && is_of_layer(name);
                Some(RandomWeights { seed: dummy.seed_of(name), dtype: if is_fp8 { Dtype::F8E4M3 } else { stored } })
            }
            Source::Safetensors(_) | Source::Gguf(_) => None,
        }
    }

    /// Takes the pages of files that have been read from memory; they can be read again.
    pub fn release(&self) {
        match &self.source {
            Source::Safetensors(files) => files.release(),
            Source::Gguf(file) => file.file().release(),
            Source::Dummy(_) => {}
        }
    }

    /// What [`WeightStore::get`] would give, checked in the same way, without touching its data.
    pub fn describe(&self, name: &str, shape: &[usize]) -> Result<TensorInfo> {
        let info = match &self.source {
            Source::Safetensors(files) => files.describe(name)?.ok_or_else(|| self.missing(name, &[]))?,
            Source::Gguf(file) => file.describe(name)?.map_err(|places| self.missing(name, &places))?,
            Source::Dummy(dummy) => dummy.describe(name, shape)?,
        };
        self.check(name, shape, &info)?;
        let dtype = self.target(name, &info)?.unwrap_or(info.dtype);
        Ok(TensorInfo { dtype, ..info })
    }

    fn check(&self, name: &str, expected: &[usize], found: &TensorInfo) -> Result<()> {
        if found.shape != expected {
            let message = format!("expected the shape {expected:?}, found {:?}", found.shape);
            return Err(Error::tensor(self.path(), name, message));
        }
        if name == EMBEDDING && found.dtype == Dtype::F8E4M3 {
            return Err(Error::tensor(self.path(), name, "embeddings of F8_E4M3 are not supported"));
        }
        Ok(())
    }

    /// Whether the files have such a tensor. Always false for dummy weights, which are made when
    /// they are asked for by shape: so a model whose config ties its embeddings stays tied.
    pub fn contains(&self, name: &str) -> bool {
        match &self.source {
            Source::Safetensors(files) => files.contains(name),
            Source::Gguf(file) => file.contains(name),
            Source::Dummy(_) => false,
        }
    }

    /// The block format of a tensor of the files, if any is stored in one.
    pub(crate) fn block_format(&self) -> Option<Dtype> {
        let file = match &self.source {
            Source::Safetensors(files) => return files.block_format(),
            Source::Gguf(file) => file.file(),
            Source::Dummy(_) => return None,
        };
        file.tensor_names()
            .filter_map(|name| file.describe(name))
            .map(|info| info.dtype)
            .find(|dtype| dtype.is_quantized())
    }

    /// The names of all tensors as the files spell them, sorted; none for dummy weights.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = match &self.source {
            Source::Safetensors(files) => files.names().collect(),
            Source::Gguf(file) => file.file().tensor_names().collect(),
            Source::Dummy(_) => Vec::new(),
        };
        names.sort_unstable();
        names
    }

    /// The file, or the index of its shards, for messages.
    pub fn path(&self) -> &Path {
        match &self.source {
            Source::Safetensors(files) => files.path(),
            Source::Gguf(file) => file.file().path(),
            Source::Dummy(_) => Path::new(DUMMY_PATH),
        }
    }

    /// Bytes of all tensors; 0 for dummy weights.
    pub fn total_bytes(&self) -> u64 {
        match &self.source {
            Source::Safetensors(files) => files.total_bytes(),
            Source::Gguf(file) => file.file().total_bytes(),
            Source::Dummy(_) => 0,
        }
    }

    /// The metadata of a GGUF.
    pub fn gguf_metadata(&self) -> Option<&GgufMetadata> {
        match &self.source {
            Source::Gguf(file) => Some(file.file().metadata()),
            Source::Safetensors(_) | Source::Dummy(_) => None,
        }
    }

    /// `places`: where `name` would be in this file, if it is a GGUF.
    fn missing(&self, name: &str, places: &[Place]) -> Error {
        let looked_for: Vec<&str> = places.iter().map(|place| place.name.as_str()).collect();
        let mut message = String::from("there is no such tensor");
        if looked_for.iter().any(|other| *other != name) {
            message += &format!(" (looked for {})", looked_for.join(" and "));
        }
        let names = self.names();
        let asked = looked_for.first().copied().unwrap_or(name);
        if let Some(nearest) = nearest(asked, &names) {
            message += &format!("; the nearest name is {nearest}");
        }
        Error::tensor(self.path(), name, message)
    }
}

/// Whether a tensor belongs to one of a model's layers: not an embedding, nor the head. What chooses experts is not counted: it is
/// small, and nobody quantizes it.
pub(super) fn is_of_layer(name: &str) -> bool {
    name.contains(".layers.") && !is_router(name)
}

/// Whether a matrix is one of many, of which each token goes through some.
pub(super) fn is_of_expert(name: &str) -> bool {
    name.contains(".experts.")
}

/// Whether a matrix's products choose experts.
fn is_router(name: &str) -> bool {
    [".block_sparse_moe.gate.weight", ".mlp.gate.weight", ".mlp.router.weight"].iter().any(|end| name.ends_with(end))
}

/// The name that differs least from `asked`, if it is at all like it.
fn nearest<'a>(asked: &str, names: &[&'a str]) -> Option<&'a str> {
    let (name, distance) = names.iter().map(|name| (*name, distance(asked, name))).min_by_key(|(_, d)| *d)?;
    (distance <= asked.len() / 3).then_some(name)
}

/// Insertions, deletions and replacements of bytes from `a` to `b` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
