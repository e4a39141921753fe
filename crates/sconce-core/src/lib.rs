//! Large-language-model inference: architectures, ops, KV cache, scheduler, sampling, tokenizer.
//!
//! This crate knows no HTTP and no wire format. Users depend on the `sconce` crate, which
//! re-exports what they need; ARCHITECTURE.md at the root of the repository is the map.

pub mod backend;
pub mod config;
pub mod engine;
pub mod error;
pub mod kv;
pub mod models;
pub mod ops;
pub mod sample;
pub mod sched;
pub mod text;
pub mod weights;

// Under the name that integration tests have for it: some of their helpers are unit tests' too.
#[cfg(test)]
extern crate self as sconce_core;

pub use error::{Error, ErrorKind, Result};
