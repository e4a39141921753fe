//! Shared helpers of the examples.

use sconce::{Engine, EngineBuilder};

/// The model that the first argument names (a path or a Hugging Face id), else the starter model.
pub fn engine_from_args() -> EngineBuilder {
    match std::env::args().nth(1) {
        Some(model) => Engine::builder(model),
        None => Engine::starter(),
    }
}
