//! [`GgufWriter`]: writes a GGUF, for tests and small tools that make model files.

use std::io::Write;
use std::path::Path;

use super::{Dtype, GgufValue};
use crate::error::{Error, Result};

const ALIGNMENT: usize = 32;

/// Collects metadata and tensors, then writes a version 3 file.
///
/// Integers are written as 32 bits where they fit, else as 64; floats as 32 bits.
#[derive(Debug, Default)]
pub struct GgufWriter {
    metadata: Vec<u8>,
    num_pairs: u64,
    infos: Vec<u8>,
    num_tensors: u64,
    data: Vec<u8>,
}

impl GgufWriter {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a metadata pair.
    pub fn set(&mut self, key: &str, value: &GgufValue) -> &mut Self {
        let out = &mut self.metadata;
        string(out, key);
        match value {
            GgufValue::Int(v) => scalar(out, int_kind(&[*v]), |out, kind| int(out, kind, *v)),
            GgufValue::Float(v) => scalar(out, 6, |out, _| out.extend((*v as f32).to_le_bytes())),
            GgufValue::Bool(v) => scalar(out, 7, |out, _| out.push(u8::from(*v))),
            GgufValue::String(v) => scalar(out, 8, |out, _| string(out, v)),
            GgufValue::Ints(v) => list(out, int_kind(v), v, |out, kind, v| int(out, kind, *v)),
            GgufValue::Floats(v) => list(out, 6, v, |out, _, v| out.extend(v.to_le_bytes())),
            GgufValue::Bools(v) => list(out, 7, v, |out, _, v| out.push(u8::from(*v))),
            GgufValue::Strings(v) => list(out, 8, v, |out, _, v| string(out, v)),
        }
        self.num_pairs += 1;
        self
    }

    /// Adds a tensor; `shape` has the slowest length first, `data` is in the layout of `dtype`.
    ///
    /// # Panics
    ///
    /// For a type that GGUF does not have: F8_E4M3.
    pub fn tensor(&mut self, name: &str, dtype: Dtype, shape: &[usize], data: &[u8]) -> &mut Self {
        self.data.resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
        string(&mut self.infos, name);
        self.infos.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&len| self.infos.extend((len as u64).to_le_bytes()));
        let id = dtype.ggml_id().expect("invariant: a type that GGUF has");
        self.infos.extend(id.to_le_bytes());
        self.infos.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend_from_slice(data);
        self.num_tensors += 1;
        self
    }

    /// The bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(self.num_tensors.to_le_bytes());
        out.extend(self.num_pairs.to_le_bytes());
        out.extend_from_slice(&self.metadata);
        out.extend_from_slice(&self.infos);
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out.extend_from_slice(&self.data);
        out
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) -> Result<()> {
        let write = || std::fs::File::create(path)?.write_all(&self.to_bytes());
        write().map_err(|e| Error::io(path, e))
    }
}

fn scalar(out: &mut Vec<u8>, kind: u32, write: impl FnOnce(&mut Vec<u8>, u32)) {
    out.extend(kind.to_le_bytes());
    write(out, kind);
}

fn list<T>(out: &mut Vec<u8>, kind: u32, values: &[T], write: impl Fn(&mut Vec<u8>, u32, &T)) {
    out.extend(9u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((values.len() as u64).to_le_bytes());
    values.iter().for_each(|value| write(out, kind, value));
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Signed 32 bits if all of `values` fit, else signed 64.
fn int_kind(values: &[i64]) -> u32 {
    if values.iter().all(|&v| i32::try_from(v).is_ok()) { 5 } else { 11 }
}

fn int(out: &mut Vec<u8>, kind: u32, value: i64) {
    match kind {
        5 => out.extend((value as i32).to_le_bytes()),
        _ => out.extend(value.to_le_bytes()),
    }
}
