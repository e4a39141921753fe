//! The engine: it owns the model, the KV pool and the scheduler on one thread.

#[cfg(test)]
mod ahead_tests;
mod compute;
mod core;
#[cfg(test)]
mod cuda_tests;
mod draft_model;
mod drafts;
mod embedder;
mod embedding;
mod files;
mod footprint;
mod handle;
mod inspect;
mod load;
mod models;
mod output;
mod pooling;
mod progress;
mod request;
mod running;
mod status;
mod step;
mod stream;
#[cfg(test)]
mod tests;
mod trust;

pub use embedding::{EmbeddingOutput, EmbeddingRequest, PendingEmbeddings};
pub use footprint::{Footprint, TokenCost, WeightGroup};
pub use handle::EngineHandle;
pub use inspect::{ChatTemplateReport, ModelReport, TokenizerReport, inspect};
pub use load::{load, load_with_draft};
pub use output::{
    CompletionOutput, Finish, FinishReason, GenerationOutput, PredictionUsage, StopReason, StreamEvent, TokenEvent,
    Usage,
};
pub use progress::{NoProgress, Progress};
pub use request::{GenerationRequest, Prompt};
pub use status::{EngineStatus, ModelInfo};
pub use stream::TokenStream;

pub use crate::sample::{Logprob, TokenLogprobs};

use crate::error::Error;
use embedder::QueuedEmbeddings;
use pooling::Pooling;
use running::QueuedRequest;

/// What reaches the engine's thread.
pub(crate) enum Inbox {
    /// A validated request.
    Request(Box<QueuedRequest>),
    /// A validated request for vectors.
    Embeddings(Box<QueuedEmbeddings>),
    /// Abort what runs, and end.
    Stop,
}

/// A request cannot go on: what the model gave `place` is no number.
fn no_number(place: &str) -> Error {
    Error::internal(format!(
        "the model gave no number {place}: its weights, or the adapter's, have numbers that are none (NaN), or are beyond the \
         range of their type"
    ))
}
