//! [`Adapters`]: LoRA adapters of a model (Hu et al. 2021), in PEFT's form: adapter_config.json and adapter_model.safetensors.
//!
//! A linear layer W gives W x + scale * B (A x), where A is [rank, in] and B [out, rank]. Which layers there are is what the tensors
//! say; each must be of a matrix that the model multiplies its tokens with, and of its size.

mod config;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::safetensors::{Safetensors, of_text};
use super::{Dtype, TensorView};
use crate::config::AdapterSource;
use crate::error::{Error, Result};
use config::AdapterConfig;

const FILE: &str = "adapter_model.safetensors";
/// What PEFT puts before the model's own names.
const PREFIX: &str = "base_model.model.";
/// The most adapters of a model.
const MAX_ADAPTERS: usize = 1024;

/// What one adapter adds to the products of one part of a matrix: scale * B . (A . x).
#[derive(Debug, Clone)]
pub struct LoraUpdate<'a> {
    /// The adapter's number, from 0.
    pub adapter: usize,
    /// The part's number.
    pub part: usize,
    /// [rank, cols of the matrix].
    pub a: TensorView<'a>,
    /// [rows of the part, rank].
    pub b: TensorView<'a>,
    /// What B is multiplied with.
    pub scale: f32,
}

impl LoraUpdate<'_> {
    /// Rows of A.
    pub fn rank(&self) -> usize {
        self.a.shape[0]
    }
}

/// The adapters of a model. Their numbers are their places.
#[derive(Default)]
pub struct Adapters {
    adapters: Vec<Adapter>,
    /// Matrices that the model has asked about.
    asked: RefCell<BTreeSet<String>>,
}

impl Adapters {
    /// Opens them. Errors name the file, and the key or the tensor.
    pub fn open(sources: &[AdapterSource]) -> Result<Self> {
        if sources.len() > MAX_ADAPTERS {
            return Err(Error::config("lora", format!("at most {MAX_ADAPTERS} adapters, found {}", sources.len())));
        }
        let adapters = sources.iter().map(|source| Adapter::open(&source.path)).collect::<Result<_>>()?;
        Ok(Self { adapters, asked: RefCell::default() })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.adapters.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.adapters.is_empty()
    }

    /// What they add to a matrix of these parts, (name, rows), over each other.
    pub fn updates(&self, parts: &[(String, usize)], cols: usize) -> Result<Vec<LoraUpdate<'_>>> {
        let mut updates = Vec::new();
        for (part, (name, rows)) in parts.iter().enumerate() {
            self.asked.borrow_mut().insert(name.clone());
            for (number, adapter) in self.adapters.iter().enumerate() {
                let Some(module) = adapter.modules.get(name) else { continue };
                let a = adapter.tensor(&module.a, [module.rank, cols])?;
                let b = adapter.tensor(&module.b, [*rows, module.rank])?;
                updates.push(LoraUpdate { adapter: number, part, a, b, scale: module.scale });
            }
        }
        Ok(updates)
    }

    /// That each tensor is of a matrix that the model has asked about. Errors: the first that is not.
    pub fn check_all_are_asked_for(&self) -> Result<()> {
        let asked = self.asked.borrow();
        let unasked = |adapter: &Adapter| {
            adapter.modules.iter().find(|(name, _)| !asked.contains(*name)).map(|(_, module)| module.a.clone())
        };
        let Some((adapter, tensor)) = self.adapters.iter().find_map(|of| unasked(of).map(|tensor| (of, tensor))) else {
            return Ok(());
        };
        let mut ends: Vec<_> = asked.iter().filter_map(|name| name.splitn(4, '.').nth(3)).collect();
        ends.sort_unstable();
        ends.dedup();
        let message = format!(
            "the model has no such layer that can have an adapter; those of each of its blocks are {}",
            ends.join(", ")
        );
        Err(Error::tensor(adapter.tensors.path(), tensor, message))
    }

    /// Takes from memory what has been read so far; it has been copied.
    pub fn release(&self) {
        self.adapters.iter().for_each(|adapter| adapter.tensors.release());
    }
}

/// One adapter's files.
struct Adapter {
    tensors: Safetensors,
    /// By the names of the matrices, without `.weight`.
    modules: BTreeMap<String, Module>,
}

/// A matrix's pair of tensors.
struct Module {
    a: String,
    b: String,
    rank: usize,
    scale: f32,
}

impl Adapter {
    fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            let found = if dir.extension().is_some_and(|end| end == "gguf") { "a GGUF" } else { "a file" };
            let message = format!("expected an adapter in PEFT's form, a folder with {FILE}; {found} is not supported");
            return Err(Error::file(dir, message));
        }
        let config = AdapterConfig::open(dir)?;
        let path = dir.join(FILE);
        if !path.exists() {
            return Err(Error::file(dir, format!("holds no {FILE}; adapters in other files are not read")));
        }
        let tensors = Safetensors::open_file(&path)?;
        let mut names: Vec<_> = tensors.names().map(str::to_owned).collect();
        names.sort_unstable();
        let mut modules = BTreeMap::new();
        for name in &names {
            let module = module_of(&path, name)?;
            let pair = |side: &str| format!("{PREFIX}{module}.lora_{side}.weight");
            if let Some(missing) = ["A", "B"].map(pair).into_iter().find(|other| names.binary_search(other).is_err()) {
                return Err(Error::tensor(&path, name, format!("{missing}, which belongs to it, is not there")));
            }
            let (rank, scale) = (config.rank_of(module), config.scale_of(module));
            let entry = Module { a: pair("A"), b: pair("B"), rank, scale };
            if modules.insert(of_text(module.to_owned()), entry).is_some_and(|twice| twice.a != pair("A")) {
                return Err(Error::tensor(&path, name, "is there twice, under language_model and beside it"));
            }
        }
        if modules.is_empty() {
            return Err(Error::file(&path, format!("holds no tensors, though {} is there", config.path().display())));
        }
        Ok(Self { tensors, modules })
    }

    fn tensor(&self, name: &str, shape: [usize; 2]) -> Result<TensorView<'_>> {
        let path = self.tensors.path();
        let tensor = self.tensors.tensor(name)?.ok_or_else(|| Error::tensor(path, name, "is not there"))?;
        if tensor.shape != shape {
            let found = &tensor.shape;
            let message =
                format!("expected the shape {shape:?}, by the model's config and the adapter's rank, found {found:?}");
            return Err(Error::tensor(path, name, message));
        }
        if !matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(Error::tensor(path, name, format!("expected F32, F16 or BF16, found {:?}", tensor.dtype)));
        }
        Ok(tensor)
    }
}

/// The module that a tensor is of, by the model's name for it.
fn module_of<'a>(path: &Path, name: &'a str) -> Result<&'a str> {
    let module = name
        .strip_prefix(PREFIX)
        .and_then(|name| ["A", "B"].iter().find_map(|side| name.strip_suffix(&format!(".lora_{side}.weight"))));
    let what = [("lora_embedding", "embeddings"), ("lora_magnitude", "magnitudes (DoRA)"), ("bias", "biases")];
    module.ok_or_else(|| {
        let what = what.iter().find(|(part, _)| name.contains(part)).map_or("other tensors", |&(_, what)| what);
        let message = format!("{what} are not supported: expected {PREFIX}(layer).lora_A.weight or .lora_B.weight");
        Error::tensor(path, name, message)
    })
}
