//! Run large language models from Rust: load a model, generate, stream.
//!
//! ```no_run
//! use sconce::{Engine, GenerationRequest, SamplingParams};
//!
//! # fn main() -> sconce::Result<()> {
//! let engine = Engine::starter().build()?;
//! let params = SamplingParams { max_tokens: Some(32), temperature: 0.0, ..Default::default() };
//! let answer = engine.generate(GenerationRequest::text("The capital of France is").with_params(params))?;
//! println!("{}", answer.outputs[0].text);
//! # Ok(())
//! # }
//! ```
//!
//! [`Engine::builder`] takes a path or a Hugging Face id; [`Engine::starter`] brings a small model by itself. An
//! [`Engine`] is cheap to clone and answers any number of requests at once: requests that run together share each
//! step of the model. [`hub`] is what brings models from the network and keeps them.

mod engine;
pub mod hub;

pub use engine::{Engine, EngineBuilder};
pub use sconce_core::backend::{KvDtype, OpProfile, OpTime, Peaks, StepShape};
pub use sconce_core::config::{
    Activation, AdapterSource, BeamLength, BeamParams, DeviceKind, EarlyStopping, EngineConfig, ExpertsConfig, Grammar,
    KvCacheDtype, LoadFormat, LogprobsMode, LongRope, MatmulPrecision, ModelConfig, Quantization, RopeConfig,
    RopeScaling, SamplingParams, WeightDtype, Yarn,
};
pub use sconce_core::engine::{
    ChatTemplateReport, CompletionOutput, EmbeddingOutput, EmbeddingRequest, EngineHandle, EngineStatus, Finish,
    FinishReason, Footprint, GenerationOutput, GenerationRequest, Logprob, ModelInfo, ModelReport, NoProgress,
    PendingEmbeddings, PredictionUsage, Progress, Prompt, StopReason, StreamEvent, TokenCost, TokenEvent,
    TokenLogprobs, TokenStream, TokenizerReport, Usage, WeightGroup, inspect,
};
pub use sconce_core::kv::{LayerGroup, LayerGroups};
pub use sconce_core::text::{
    AnswerForm, AnswerPart, AnswerReader, CallCount, CallForm, CallReader, ChatInput, ChatTemplate, Marks,
    ReasoningCount, Section, Tokenizer, ToolCall,
};
pub use sconce_core::weights::Dtype;
pub use sconce_core::{Error, ErrorKind, Result};

/// NVIDIA's GPUs: which there are, and whether they work.
pub mod cuda {
    pub use sconce_core::backend::cuda::{
        AttentionTime, AttentionWork, GpuInfo, ProductTime, available, release, self_test, time_attention,
        time_products,
    };
}
