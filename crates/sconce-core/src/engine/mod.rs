//! The engine: it owns the model, the KV pool and the scheduler on one thread.

mod handle;
mod output;
mod progress;
mod request;

pub use handle::{EngineHandle, EngineStatus, ModelInfo, TokenStream};
pub use output::{
    CompletionOutput, Finish, FinishReason, GenerationOutput, Logprob, StopReason, StreamEvent, TokenEvent,
    TokenLogprobs, Usage,
};
pub use progress::{NoProgress, Progress};
pub use request::{GenerationRequest, Prompt};

/// Loads a model and starts its engine. `path` is a GGUF file, or a folder with config.json, tokenizer.json and
/// safetensors; `id` is the name under which it is served. Returns once it is ready for requests.
pub fn load(
    id: &str,
    path: &std::path::Path,
    config: &crate::config::EngineConfig,
    progress: &dyn Progress,
) -> crate::Result<EngineHandle> {
    todo!()
}
