//! The engine: it owns the model, the KV pool and the scheduler on one thread.

mod handle;
mod output;
mod request;

pub use handle::{EngineHandle, EngineStatus, ModelInfo, TokenStream};
pub use output::{
    CompletionOutput, Finish, FinishReason, GenerationOutput, Logprob, StopReason, StreamEvent, TokenEvent,
    TokenLogprobs, Usage,
};
pub use request::{GenerationRequest, Prompt};
