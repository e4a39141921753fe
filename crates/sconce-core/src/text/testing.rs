//! Golden data for tests: `shared/` beside the repository, which not every checkout has.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::path::PathBuf;

use serde_json::Value;

use crate::text::Tokenizer;

/// The five real tokenizers, then the six fixtures: folders with a tokenizer.json, under `shared/`.
pub(super) const TOKENIZERS: [&str; 11] = [
    "tokenizers/gemma-2-9b-it",
    "tokenizers/llama-3.1-8b-instruct",
    "tokenizers/mistral-7b-instruct-v0.2",
    "tokenizers/phi-2",
    "tokenizers/phi-3-mini-4k-instruct",
    "fixtures/gemma2",
    "fixtures/llama",
    "fixtures/mistral",
    "fixtures/mistral-swa",
    "fixtures/phi",
    "fixtures/phi3",
];

/// `name` under `shared/`; None, and a line that says so, if it is not there.
pub(super) fn shared(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared")).join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: there is no {}", path.display());
    None
}

/// A JSON file under `shared/`.
pub(super) fn shared_json(name: &str) -> Option<Value> {
    let path = shared(name)?;
    let text = std::fs::read_to_string(&path).unwrap();
    Some(serde_json::from_str(&text).unwrap())
}

/// The tokenizer in a folder under `shared/`.
pub(super) fn shared_tokenizer(name: &str) -> Option<Tokenizer> {
    Some(Tokenizer::from_dir(&shared(name)?).unwrap())
}

/// A list of ids in golden data.
pub(super) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Mistral's tokenizer as it was before its space prefix became one at the beginning only.
pub(super) fn legacy_mistral() -> Option<Tokenizer> {
    let from = shared("tokenizers/mistral-7b-instruct-v0.2")?;
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("tokenizer.legacy-prepend.json"), dir.path().join("tokenizer.json")).unwrap();
    std::fs::copy(from.join("tokenizer_config.json"), dir.path().join("tokenizer_config.json")).unwrap();
    Some(Tokenizer::from_dir(dir.path()).unwrap())
}
