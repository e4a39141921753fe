//! The server over real TCP.
#![allow(clippy::unwrap_used)]

mod connection;
mod embeddings;
mod loading;
mod reasoning;
mod support;
mod tools;
