//! The engine, and what loading reads, from outside. One program: each is compiled, and linked, by itself.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod common;

mod beams;
mod drafts;
mod embeddings;
mod grammars;
mod inspect;
mod long_rope;
mod packed;
mod requests;
mod window;
