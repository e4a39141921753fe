//! Safetensors files, single or sharded, by mmap.
//!
//! The types of the header are the `safetensors` crate's. Where they lie in the file is checked
//! here, so that errors name the tensor, and no size that a header claims is added unchecked.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use ::safetensors::tensor::TensorInfo as HeaderEntry;
use serde_json::Value;

use super::mapped::MappedFile;
use super::packed::{Packed, Packing, Raw};
use super::{Dtype, StoredForm, TensorInfo, TensorView};
use crate::error::{Error, Result};

mod fused;
mod scales;

use fused::Fused;
use scales::Scales;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The key of the header that is not a tensor.
const METADATA: &str = "__metadata__";
/// The embedding's name where names do not begin with `model.`.
const BARE_EMBEDDING: &str = "embed_tokens.weight";
/// Bytes of the header's length, at the beginning of a file.
const LEN_BYTES: usize = 8;

/// The name that a tensor of a text model has by itself, where it is a part of one that sees images; of older and of newer files.
pub(super) fn of_text(name: String) -> String {
    match (name.strip_prefix("language_model."), name.strip_prefix("model.language_model.")) {
        (Some(name), _) => name.into(),
        (_, Some(name)) => format!("model.{name}"),
        _ => name,
    }
}

/// The name in full of a tensor of a model without its head, as embedders are saved.
fn with_prefix(name: String) -> String {
    if name.starts_with("model.") || name.starts_with("lm_head.") { name } else { format!("model.{name}") }
}

/// The tensors of `model.safetensors`, or of the shards that an index names.
#[derive(Debug)]
pub(super) struct Safetensors {
    /// The single file, or the index.
    path: PathBuf,
    files: Vec<MappedFile>,
    tensors: HashMap<String, Location>,
    /// What config.json says of matrices.
    form: StoredForm,
}

#[derive(Debug)]
struct Location {
    file_idx: usize,
    info: Entry,
}

/// One tensor of one file.
#[derive(Debug)]
struct Entry {
    /// As the file spells it.
    dtype: ::safetensors::Dtype,
    shape: Vec<usize>,
    /// Bytes of the file; it holds them all.
    data: Range<usize>,
}

impl Safetensors {
    /// Opens the model in `dir`.
    pub(super) fn open(dir: &Path, form: StoredForm) -> Result<Self> {
        let mut this = Self { form, ..Self::open_plain(dir)? };
        let num_tensors = this.tensors.len();
        this.tensors = this.tensors.into_iter().map(|(name, location)| (of_text(name), location)).collect();
        if this.tensors.contains_key(BARE_EMBEDDING) {
            this.tensors = this.tensors.into_iter().map(|(name, location)| (with_prefix(name), location)).collect();
        }
        if this.tensors.len() < num_tensors {
            return Err(Error::file(
                &this.path,
                "a tensor of the text model is there twice, by two of its names: with and without language_model, or model",
            ));
        }
        Ok(this)
    }

    fn open_plain(dir: &Path) -> Result<Self> {
        let single = dir.join(SINGLE);
        if single.exists() {
            return Self::open_file(&single);
        }
        let index = dir.join(INDEX);
        if !index.exists() {
            return Err(Error::file(dir, format!("neither {SINGLE} nor {INDEX} is there")));
        }
        Self::open_sharded(index, dir)
    }

    /// One file, whatever its name.
    pub(super) fn open_file(path: &Path) -> Result<Self> {
        let mut this = Self { path: path.into(), files: Vec::new(), tensors: HashMap::new(), form: StoredForm::Plain };
        this.add(path)?;
        Ok(this)
    }

    fn open_sharded(index: PathBuf, dir: &Path) -> Result<Self> {
        let weight_map = weight_map(&index)?;
        let mut this = Self { path: index, files: Vec::new(), tensors: HashMap::new(), form: StoredForm::Plain };
        let mut shards: Vec<&str> = weight_map.values().map(String::as_str).collect();
        shards.sort_unstable();
        shards.dedup();
        for shard in &shards {
            let path = dir.join(shard);
            if !path.exists() {
                return Err(Error::file(&this.path, format!("the shard {shard} that it names is not there")));
            }
            this.add(&path)?;
        }
        for (tensor, shard) in &weight_map {
            let path = dir.join(shard);
            match this.tensors.get(tensor).map(|location| this.files[location.file_idx].path()) {
                Some(found) if found == path => {}
                Some(found) => {
                    let message = format!("expected in {shard}, found in {}", found.display());
                    return Err(Error::tensor(&this.path, tensor, message));
                }
                None => return Err(Error::tensor(&this.path, tensor, format!("expected in {shard}, which lacks it"))),
            }
        }
        Ok(this)
    }

    /// Adds the tensors of one file.
    fn add(&mut self, path: &Path) -> Result<()> {
        let file = MappedFile::open(path)?;
        let file_idx = self.files.len();
        for (name, info) in entries(path, file.bytes())? {
            if let Some(other) = self.tensors.get(&name) {
                let other = self.files[other.file_idx].path().display();
                return Err(Error::tensor(path, name, format!("{other} has this tensor too")));
            }
            self.tensors.insert(name, Location { file_idx, info });
        }
        self.files.push(file);
        Ok(())
    }

    /// As [`MappedFile::release`], of all files.
    pub(super) fn release(&self) {
        self.files.iter().for_each(MappedFile::release);
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name, as it is or packed.
    pub(super) fn contains(&self, name: &str) -> bool {
        let codes = self.packing().and_then(|packing| packing.codes_name(name));
        self.tensors.contains_key(name)
            || codes.is_some_and(|codes| self.tensors.contains_key(&codes))
            || Fused::is_there(self, name)
    }

    /// How matrices are packed that are not there as they are.
    fn packing(&self) -> Option<Packing> {
        if let StoredForm::Packed(packing) = self.form { Some(packing) } else { None }
    }

    /// The block format of a matrix of experts, or a packed one, if any is read in one.
    pub(super) fn block_format(&self) -> Option<Dtype> {
        if self.names().any(fused::are_blocks) {
            return Some(Dtype::Mxfp4);
        }
        let packing = self.packing()?;
        let dtype_of =
            |name: &str| self.packed(&packing.matrix_of_codes(name)?).ok()?.map(|packed| packed.info().dtype);
        self.names().filter_map(dtype_of).find(|dtype| dtype.is_quantized())
    }

    /// A tensor of any type, as the file has it.
    pub(super) fn raw(&self, name: &str) -> Option<Raw<'_>> {
        self.tensors.get(name).map(|location| Raw { dtype: location.info.dtype, shape: &location.info.shape })
    }

    /// The bytes of a tensor that [`Safetensors::raw`] has found.
    pub(super) fn data(&self, name: &str) -> &[u8] {
        let Location { file_idx, info } = &self.tensors[name];
        self.files[*file_idx].prefetched(info.data.clone())
    }

    /// Some of them.
    fn part(&self, name: &str, range: Range<usize>) -> &[u8] {
        let Location { file_idx, info } = &self.tensors[name];
        let Range { start, end } = info.data;
        let (first, last) = (start + range.start, start + range.end);
        assert!(first <= last && last <= end, "invariant: a part of the tensor");
        self.files[*file_idx].prefetched(first..last)
    }

    /// The file that has a tensor, or where one would be looked for.
    pub(super) fn path_of(&self, name: &str) -> &Path {
        self.tensors.get(name).map_or(&self.path, |location| self.files[location.file_idx].path())
    }

    /// The matrix `name`, where it is packed.
    fn packed(&self, name: &str) -> Result<Option<Packed<'_>>> {
        self.packing().map_or(Ok(None), |packing| Packed::find(self, &packing, name))
    }

    pub(super) fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.info.data.len() as u64).sum()
    }

    /// The tensor, if there is one; an error if it is of a type that is not for weights.
    pub(super) fn tensor(&self, name: &str) -> Result<Option<TensorView<'_>>> {
        if let Some(packed) = self.packed(name)? {
            return packed.read().map(Some);
        }
        if let Some(fused) = Fused::find(self, name)? {
            return Ok(Some(fused.read()));
        }
        let Some(TensorInfo { dtype, shape }) = self.describe(name)? else { return Ok(None) };
        if self.raw(name).is_some_and(|raw| raw.dtype == ::safetensors::Dtype::F8_E4M3) {
            return self.fp8_tensor(name, shape).map(Some);
        }
        Ok(Some(TensorView::new(dtype, shape, self.data(name))))
    }

    /// The same without its data.
    pub(super) fn describe(&self, name: &str) -> Result<Option<TensorInfo>> {
        if let Some(packed) = self.packed(name)? {
            return Ok(Some(packed.info()));
        }
        if let Some(fused) = Fused::find(self, name)? {
            return Ok(Some(fused.info()));
        }
        let Some(Location { info, .. }) = self.tensors.get(name) else { return Ok(None) };
        let dtype = match info.dtype {
            ::safetensors::Dtype::F32 => Dtype::F32,
            ::safetensors::Dtype::F16 => Dtype::F16,
            ::safetensors::Dtype::BF16 => Dtype::BF16,
            ::safetensors::Dtype::F8_E4M3 => Dtype::F8E4M3,
            other => {
                let message = format!("expected F32, F16, BF16 or F8_E4M3, found {other:?}");
                return Err(Error::tensor(self.path_of(name), name, message));
            }
        };
        let has_blocks = dtype == Dtype::F8E4M3 && matches!(self.scales(name, &info.shape)?.1, Scales::Blocks(_));
        let dtype = if has_blocks { Dtype::BF16 } else { dtype };
        Ok(Some(TensorInfo { dtype, shape: info.shape.clone() }))
    }
}

/// Tensor to file name, from the index. Sorted, so that the first error does not change from run to run.
fn weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
    let text = std::fs::read(index).map_err(|e| Error::io(index, e))?;
    let json: Value = serde_json::from_slice(&text).map_err(|e| Error::file(index, format!("not JSON: {e}")))?;
    let Some(Value::Object(map)) = json.get("weight_map") else {
        return Err(Error::file(index, "weight_map: expected an object that names the shard of each tensor"));
    };
    let mut shards = BTreeMap::new();
    for (tensor, shard) in map {
        // A shard lies beside its index: a path could name any file of the machine.
        let plain_name = shard.as_str().filter(|name| Path::new(name).file_name() == Some(name.as_ref()));
        let Some(name) = plain_name else {
            return Err(Error::tensor(index, tensor, format!("weight_map: expected a file name, found {shard}")));
        };
        shards.insert(tensor.clone(), name.to_owned());
    }
    Ok(shards)
}

/// The tensors that the bytes of one file hold.
fn entries(path: &Path, bytes: &[u8]) -> Result<Vec<(String, Entry)>> {
    let (header, data_start) = header(path, bytes)?;
    let mut entries = Vec::new();
    for (name, value) in header {
        if name != METADATA {
            let entry = entry(path, &name, value, data_start, bytes.len())?;
            entries.push((name, entry));
        }
    }
    check_contiguous(path, &mut entries, data_start, bytes.len())?;
    Ok(entries)
}

/// The JSON of the header, and where the data starts.
fn header(path: &Path, bytes: &[u8]) -> Result<(serde_json::Map<String, Value>, usize)> {
    let Some((len, rest)) = bytes.split_first_chunk::<LEN_BYTES>() else {
        return Err(Error::file(path, format!("expected a safetensors file, found only {} bytes", bytes.len())));
    };
    let len = u64::from_le_bytes(*len);
    let Some(header) = usize::try_from(len).ok().and_then(|len| rest.get(..len)) else {
        let message = format!("expected a header of {len} bytes, found {} before the end of the file", rest.len());
        return Err(Error::file(path, message));
    };
    let json = serde_json::from_slice(header).map_err(|e| Error::file(path, format!("corrupt header: {e}")))?;
    Ok((json, LEN_BYTES + header.len()))
}

fn entry(path: &Path, name: &str, value: Value, data_start: usize, file_len: usize) -> Result<Entry> {
    let error = |message: String| Error::tensor(path, name, message);
    let HeaderEntry { dtype, shape, data_offsets: (start, end) } =
        serde_json::from_value(value).map_err(|e| error(format!("corrupt header: {e}")))?;
    if start > end || end > file_len - data_start {
        return Err(error(format!(
            "expected bytes {start} to {end} of the data, found {} before the end of the file",
            file_len - data_start
        )));
    }
    let num_elements = shape.iter().try_fold(1usize, |product, &len| product.checked_mul(len));
    let num_bits = num_elements.and_then(|n| n.checked_mul(dtype.bitsize()));
    if num_bits != (end - start).checked_mul(8) {
        return Err(error(format!("{} bytes are not a tensor of shape {shape:?} and type {dtype:?}", end - start)));
    }
    Ok(Entry { dtype, shape, data: data_start + start..data_start + end })
}

/// Sorts by position and checks that every byte of the data belongs to one tensor.
fn check_contiguous(path: &Path, entries: &mut [(String, Entry)], data_start: usize, file_len: usize) -> Result<()> {
    entries.sort_unstable_by_key(|(_, entry)| (entry.data.start, entry.data.end));
    let mut end = data_start;
    for (name, entry) in entries {
        if entry.data.start != end {
            let (expected, found) = (end - data_start, entry.data.start - data_start);
            return Err(Error::tensor(
                path,
                &*name,
                format!("expected at byte {expected} of the data, found at {found}"),
            ));
        }
        end = entry.data.end;
    }
    if end != file_len {
        return Err(Error::file(path, format!("{} bytes after the last tensor belong to none", file_len - end)));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
