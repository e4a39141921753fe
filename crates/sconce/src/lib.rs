#![allow(unused, clippy::todo)] // STUB
//! Run large language models from Rust: load a model, generate, stream.

use std::path::PathBuf;
use std::sync::Arc;

pub use sconce_core::config::{
    DeviceKind, EngineConfig, LoadFormat, LogprobsMode, ModelConfig, SamplingParams, WeightDtype,
};
pub use sconce_core::engine::{
    CompletionOutput, EngineHandle, EngineStatus, Finish, FinishReason, GenerationOutput, GenerationRequest, Logprob,
    ModelInfo, NoProgress, Progress, Prompt, StopReason, StreamEvent, TokenEvent, TokenLogprobs, TokenStream, Usage,
};
pub use sconce_core::text::{ChatInput, ChatTemplate, Tokenizer};
pub use sconce_core::{Error, ErrorKind, Result};

/// A loaded model, ready for requests.
#[derive(Clone)]
pub struct Engine {
    handle: EngineHandle,
}

/// Settings of an [`Engine`] that is to be built.
pub struct EngineBuilder {
    model: String,
    config: EngineConfig,
    served_name: Option<String>,
    cache_dir: Option<PathBuf>,
    progress: Arc<dyn Progress>,
}

impl Engine {
    /// An engine for a path (a GGUF file, a folder) or a Hugging Face id.
    pub fn builder(model: impl Into<String>) -> EngineBuilder {
        todo!()
    }
    /// An engine for the starter model, SmolLM2-135M-Instruct.
    pub fn starter() -> EngineBuilder {
        todo!()
    }
    /// The answer to one request, waiting on this thread.
    pub fn generate(&self, request: GenerationRequest) -> Result<GenerationOutput> {
        todo!()
    }
    /// The answer to one request.
    pub async fn generate_async(&self, request: GenerationRequest) -> Result<GenerationOutput> {
        todo!()
    }
    /// The answer to one request, token by token.
    pub fn stream(&self, request: GenerationRequest) -> Result<TokenStream> {
        todo!()
    }
    /// The engine's handle: tokenizer, status, shutdown.
    pub fn handle(&self) -> &EngineHandle {
        &self.handle
    }
}

impl EngineBuilder {
    /// All settings at once.
    pub fn config(mut self, config: EngineConfig) -> Self {
        self.config = config;
        self
    }
    /// The name under which the model is served; by default the id, or the file's name.
    pub fn served_name(mut self, name: impl Into<String>) -> Self {
        self.served_name = Some(name.into());
        self
    }
    /// Where downloaded models are kept.
    pub fn cache_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(dir.into());
        self
    }
    /// Who is told of downloads and loading.
    pub fn progress(mut self, progress: Arc<dyn Progress>) -> Self {
        self.progress = progress;
        self
    }
    /// Brings the model's files if they are not there, loads them, and starts the engine.
    pub fn build(self) -> Result<Engine> {
        todo!()
    }
}
