//! The header of a GGUF: what comes before the tensors' data.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::path::Path;

use super::metadata::{GgufMetadata, GgufValue};
use super::reader::Reader;
use crate::error::{Error, Result};
use crate::weights::Dtype;

const MAGIC: &[u8; 4] = b"GGUF";
const DEFAULT_ALIGNMENT: usize = 32;
/// ggml's own limit.
const MAX_DIMS: u32 = 4;
/// The shortest key-value pair: an empty key's length, the type, one byte.
const MIN_PAIR_BYTES: usize = 8 + 4 + 1;
/// The shortest tensor entry: an empty name's length, number of dimensions, one of them, type, offset.
const MIN_TENSOR_BYTES: usize = 8 + 4 + 8 + 4 + 8;

/// All that a file says of itself, checked.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: GgufMetadata,
    pub(super) tensors: HashMap<String, TensorEntry>,
}

/// Where a tensor lies in its file.
#[derive(Debug)]
pub(super) struct TensorEntry {
    pub(super) dtype: Dtype,
    /// Slowest first.
    pub(super) shape: Vec<usize>,
    /// Bytes of the file; it holds them all.
    pub(super) data: Range<usize>,
}

/// Reads the header from the bytes of the whole file.
pub(super) fn header(path: &Path, bytes: &[u8]) -> Result<Header> {
    let mut reader = Reader::new(path, bytes);
    check_version(&mut reader)?;
    let num_tensors = reader.count(MIN_TENSOR_BYTES, "number of tensors")?;
    let num_pairs = reader.count(MIN_PAIR_BYTES, "number of metadata keys")?;
    let metadata = metadata(&mut reader, path, num_pairs)?;
    check_whole(&metadata)?;
    let alignment = alignment(&metadata)?;
    // Counts are not trusted with memory: collections grow as entries are read.
    let mut infos = Vec::new();
    for _ in 0..num_tensors {
        infos.push(TensorInfo::read(&mut reader)?);
    }
    // Saturated, the position is beyond any file: no tensor with data fits there.
    let data_start = reader.position().checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
    let mut tensors = HashMap::new();
    for info in infos {
        let entry = info.locate(path, bytes.len(), data_start, alignment)?;
        if tensors.insert(info.name.to_owned(), entry).is_some() {
            return Err(Error::tensor(path, info.name, "the file lists this tensor twice"));
        }
    }
    Ok(Header { metadata, tensors })
}

fn check_version(reader: &mut Reader<'_>) -> Result<()> {
    let magic = reader.bytes(MAGIC.len(), "magic")?;
    if magic != MAGIC {
        return Err(reader.error(format!("not a GGUF file: it begins with {:?}", String::from_utf8_lossy(magic))));
    }
    let version = reader.u32("version")?;
    match version {
        2 | 3 => Ok(()),
        1 => Err(reader.error("GGUF version 1 is not supported: convert the model again, to version 3")),
        _ if matches!(version.swap_bytes(), 1..=3) => {
            Err(reader.error("this is a big-endian GGUF file: only little-endian ones are supported"))
        }
        _ => Err(reader.error(format!("GGUF version: expected 2 or 3, found {version}"))),
    }
}

fn metadata(reader: &mut Reader<'_>, path: &Path, num_pairs: usize) -> Result<GgufMetadata> {
    let mut values = HashMap::new();
    for _ in 0..num_pairs {
        let key = reader.string("metadata key")?;
        let what = format!("metadata key {key}");
        let kind = reader.u32(&what)?;
        let value = value(reader, kind, &what)?;
        match values.entry(key.to_owned()) {
            Entry::Vacant(entry) => entry.insert(value),
            Entry::Occupied(_) => return Err(reader.error(format!("{what}: the file has this key twice"))),
        };
    }
    Ok(GgufMetadata::new(path, values))
}

// The types of values, as GGUF numbers them.
const U8: u32 = 0;
const I8: u32 = 1;
const U16: u32 = 2;
const I16: u32 = 3;
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const U64: u32 = 10;
const I64: u32 = 11;
const F64: u32 = 12;

fn value(reader: &mut Reader<'_>, kind: u32, what: &str) -> Result<GgufValue> {
    Ok(match kind {
        U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64 => GgufValue::Int(int(reader, kind, what)?),
        F32 | F64 => GgufValue::Float(float(reader, kind, what)?),
        BOOL => GgufValue::Bool(boolean(reader, what)?),
        STRING => GgufValue::String(reader.string(what)?.to_owned()),
        ARRAY => array(reader, what)?,
        _ => return Err(unknown_kind(reader, kind, what)),
    })
}

fn array(reader: &mut Reader<'_>, what: &str) -> Result<GgufValue> {
    let kind = reader.u32(what)?;
    let min_bytes = match kind {
        U8 | I8 | BOOL => 1,
        U16 | I16 => 2,
        U32 | I32 | F32 => 4,
        U64 | I64 | F64 | STRING => 8,
        ARRAY => return Err(reader.error(format!("{what}: a list of lists is not supported"))),
        _ => return Err(unknown_kind(reader, kind, what)),
    };
    let len = 0..reader.count(min_bytes, what)?;
    Ok(match kind {
        F32 | F64 => GgufValue::Floats(len.map(|_| Ok(float(reader, kind, what)? as f32)).collect::<Result<_>>()?),
        BOOL => GgufValue::Bools(len.map(|_| boolean(reader, what)).collect::<Result<_>>()?),
        STRING => GgufValue::Strings(len.map(|_| Ok(reader.string(what)?.to_owned())).collect::<Result<_>>()?),
        _ => GgufValue::Ints(len.map(|_| int(reader, kind, what)).collect::<Result<_>>()?),
    })
}

fn int(reader: &mut Reader<'_>, kind: u32, what: &str) -> Result<i64> {
    Ok(match kind {
        U8 => u8::from_le_bytes(reader.array(what)?).into(),
        I8 => i8::from_le_bytes(reader.array(what)?).into(),
        U16 => u16::from_le_bytes(reader.array(what)?).into(),
        I16 => i16::from_le_bytes(reader.array(what)?).into(),
        U32 => u32::from_le_bytes(reader.array(what)?).into(),
        I32 => i32::from_le_bytes(reader.array(what)?).into(),
        I64 => i64::from_le_bytes(reader.array(what)?),
        U64 => {
            let value = reader.u64(what)?;
            let too_large = |_| reader.error(format!("{what}: expected at most {}, found {value}", i64::MAX));
            i64::try_from(value).map_err(too_large)?
        }
        _ => return Err(unknown_kind(reader, kind, what)),
    })
}

fn float(reader: &mut Reader<'_>, kind: u32, what: &str) -> Result<f64> {
    Ok(match kind {
        F32 => f32::from_le_bytes(reader.array(what)?).into(),
        _ => f64::from_le_bytes(reader.array(what)?),
    })
}

fn boolean(reader: &mut Reader<'_>, what: &str) -> Result<bool> {
    match reader.array(what)? {
        [0] => Ok(false),
        [1] => Ok(true),
        [other] => Err(reader.error(format!("{what}: expected a boolean, 0 or 1, found {other}"))),
    }
}

fn unknown_kind(reader: &Reader<'_>, kind: u32, what: &str) -> Error {
    reader.error(format!("{what}: expected a value type from 0 to 12, found {kind}"))
}

fn check_whole(metadata: &GgufMetadata) -> Result<()> {
    match metadata.uint("split.count")? {
        Some(parts) if parts > 1 => Err(Error::file(
            metadata.path(),
            format!("this is one of {parts} parts of a split GGUF (split.count): merge them into one file first"),
        )),
        _ => Ok(()),
    }
}

fn alignment(metadata: &GgufMetadata) -> Result<usize> {
    match metadata.uint("general.alignment")? {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(alignment) if alignment.is_power_of_two() => Ok(alignment),
        Some(alignment) => Err(Error::file(
            metadata.path(),
            format!("metadata key general.alignment: expected a power of two, found {alignment}"),
        )),
    }
}

/// A tensor's entry as the file has it.
struct TensorInfo<'a> {
    name: &'a str,
    /// Fastest first.
    dims: Vec<u64>,
    kind: u32,
    /// From the start of the data.
    offset: u64,
}

impl<'a> TensorInfo<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self> {
        let name = reader.string("tensor name")?;
        let what = format!("tensor {name}");
        let num_dims = reader.u32(&what)?;
        if !(1..=MAX_DIMS).contains(&num_dims) {
            return Err(reader.error(format!("{what}: expected 1 to {MAX_DIMS} dimensions, found {num_dims}")));
        }
        let dims = (0..num_dims).map(|_| reader.u64(&what)).collect::<Result<_>>()?;
        Ok(Self { name, dims, kind: reader.u32(&what)?, offset: reader.u64(&what)? })
    }

    /// Checks the entry against the file that it is of.
    fn locate(&self, path: &Path, file_len: usize, data_start: usize, alignment: usize) -> Result<TensorEntry> {
        let error = |message: String| Error::tensor(path, self.name, message);
        let dtype = Dtype::from_ggml(self.kind)
            .ok_or_else(|| error(format!("the type {} is not supported", ggml_name(self.kind))))?;
        let shape = self.dims.iter().rev().map(|&dim| usize::try_from(dim).ok()).collect::<Option<Vec<_>>>();
        let num_bytes = shape.as_ref().and_then(|shape| num_bytes(shape, dtype));
        let (Some(shape), Some(num_bytes)) = (shape, num_bytes) else {
            return Err(error(format!("the dimensions {:?} are too large", self.dims)));
        };
        if !shape[shape.len() - 1].is_multiple_of(dtype.block_len()) {
            return Err(error(format!(
                "rows of {} elements are not whole blocks of {}, which {dtype} needs",
                shape[shape.len() - 1],
                dtype.block_len()
            )));
        }
        if !self.offset.is_multiple_of(alignment as u64) {
            return Err(error(format!("the offset {} is not a multiple of the alignment, {alignment}", self.offset)));
        }
        let start = usize::try_from(self.offset).ok().and_then(|offset| data_start.checked_add(offset));
        let end = start.and_then(|start| start.checked_add(num_bytes)).filter(|end| *end <= file_len);
        match start.zip(end) {
            Some((start, end)) => Ok(TensorEntry { dtype, shape, data: start..end }),
            None => Err(error(format!(
                "expected {num_bytes} bytes at offset {} of the data, which starts at {data_start}; the file ends at {file_len}",
                self.offset
            ))),
        }
    }
}

/// Bytes of a tensor, if they can be counted.
fn num_bytes(shape: &[usize], dtype: Dtype) -> Option<usize> {
    let num_elements = shape.iter().try_fold(1usize, |product, &len| product.checked_mul(len))?;
    (num_elements / dtype.block_len()).checked_mul(dtype.block_bytes())
}

/// What other programs call a type that is not read here.
fn ggml_name(kind: u32) -> String {
    let name = match kind {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("number {kind}"),
    };
    format!("{name} (number {kind})")
}
