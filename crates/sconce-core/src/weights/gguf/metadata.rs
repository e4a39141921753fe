//! [`GgufMetadata`]: the key-value part of a GGUF.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// One metadata value. Integers of every width are `Int`, floats of either width `Float`.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufValue {
    /// Any integer.
    Int(i64),
    /// Any float.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A string.
    String(String),
    /// A list of integers.
    Ints(Vec<i64>),
    /// A list of floats.
    Floats(Vec<f32>),
    /// A list of booleans.
    Bools(Vec<bool>),
    /// A list of strings.
    Strings(Vec<String>),
}

/// The key-value part of a GGUF.
#[derive(Debug, Clone, Default)]
pub struct GgufMetadata {
    path: PathBuf,
    values: HashMap<String, GgufValue>,
}

impl GgufMetadata {
    /// Metadata from `values`; `path` is for error messages.
    pub fn new(path: &Path, values: HashMap<String, GgufValue>) -> Self {
        Self { path: path.into(), values }
    }

    /// The file, for error messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value of `key`, whatever its type.
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.values.get(key)
    }

    /// All keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// A string, if the key is there; an error if it is there with another type.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::String(v)) => Ok(Some(v)),
            Some(other) => Err(self.mistyped(key, "a string", other)),
        }
    }

    /// A non-negative integer, if the key is there.
    pub fn uint(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Int(v)) if *v >= 0 => Ok(Some(*v as usize)),
            Some(other) => Err(self.mistyped(key, "a non-negative integer", other)),
        }
    }

    /// A number, if the key is there.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Float(v)) => Ok(Some(*v)),
            Some(GgufValue::Int(v)) => Ok(Some(*v as f64)),
            Some(other) => Err(self.mistyped(key, "a number", other)),
        }
    }

    /// A boolean, if the key is there.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Bool(v)) => Ok(Some(*v)),
            Some(other) => Err(self.mistyped(key, "a boolean", other)),
        }
    }

    /// A list of strings, if the key is there.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Strings(v)) => Ok(Some(v)),
            Some(other) => Err(self.mistyped(key, "a list of strings", other)),
        }
    }

    /// A list of integers, if the key is there.
    pub fn ints(&self, key: &str) -> Result<Option<&[i64]>> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Ints(v)) => Ok(Some(v)),
            Some(other) => Err(self.mistyped(key, "a list of integers", other)),
        }
    }

    /// A list of floats, if the key is there.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Floats(v)) => Ok(Some(v)),
            Some(other) => Err(self.mistyped(key, "a list of floats", other)),
        }
    }

    /// An error that the file lacks `key`.
    pub fn missing(&self, key: &str) -> Error {
        Error::file(&self.path, format!("metadata key {key} is missing"))
    }

    fn mistyped(&self, key: &str, expected: &str, found: &GgufValue) -> Error {
        let found = match found {
            GgufValue::Int(v) => format!("the integer {v}"),
            GgufValue::Float(v) => format!("the number {v}"),
            GgufValue::Bool(v) => format!("the boolean {v}"),
            GgufValue::String(v) => format!("the string {v:?}"),
            GgufValue::Ints(_) => "a list of integers".into(),
            GgufValue::Floats(_) => "a list of floats".into(),
            GgufValue::Bools(_) => "a list of booleans".into(),
            GgufValue::Strings(_) => "a list of strings".into(),
        };
        Error::file(&self.path, format!("metadata key {key}: expected {expected}, found {found}"))
    }
}
