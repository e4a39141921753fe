//! [`EngineHandle`]: how callers reach the engine's thread; [`TokenStream`]: how it answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use super::output::{GenerationOutput, StreamEvent};
use super::request::GenerationRequest;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::text::{ChatTemplate, Tokenizer};

/// What is known of a loaded model.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// The id under which it is served.
    pub id: String,
    /// Its normalised config.
    pub config: ModelConfig,
    /// The longest sequence that this engine runs, prompt and output together, in tokens.
    pub max_model_len: usize,
    /// KV blocks in the pool, and tokens in a block.
    pub num_kv_blocks: usize,
    /// Tokens in one KV block.
    pub block_size: usize,
    /// Bytes of weights in memory.
    pub weight_bytes: usize,
    /// Bytes of the KV pool.
    pub kv_cache_bytes: usize,
    /// Where it runs, in words: `cpu (2 threads, avx512)`.
    pub device: String,
}

/// Counters that the engine keeps up to date once a step. Read at any time, from any thread.
#[derive(Debug, Default)]
pub struct EngineStatus {
    /// Sequences that hold KV blocks.
    pub num_running: AtomicUsize,
    /// Sequences that wait for KV blocks, and requests in the inbox.
    pub num_waiting: AtomicUsize,
    /// KV blocks in use.
    pub num_used_blocks: AtomicUsize,
    /// KV blocks in the pool.
    pub num_total_blocks: AtomicUsize,
    /// Steps run.
    pub num_steps: AtomicUsize,
    /// Sequences whose KV blocks were taken for others, to be recomputed.
    pub num_preemptions: AtomicUsize,
    /// Prompt tokens computed.
    pub num_prompt_tokens: AtomicUsize,
    /// Tokens generated.
    pub num_generated_tokens: AtomicUsize,
    /// Requests ended, cancelled ones among them.
    pub num_finished_requests: AtomicUsize,
    /// Requests whose caller went away.
    pub num_cancelled_requests: AtomicUsize,
    /// Whether the engine's thread runs.
    pub alive: AtomicBool,
    /// Milliseconds since the engine's start at the last step or idle check, to see whether it is stuck.
    pub last_progress_ms: AtomicUsize,
}

impl EngineStatus {
    /// Reads one counter.
    pub fn get(counter: &AtomicUsize) -> usize {
        counter.load(Ordering::Relaxed)
    }
}

/// The caller's side of a running engine. Cheap to clone; the engine stops when the last one is gone.
#[derive(Clone)]
pub struct EngineHandle {
    inner: Arc<HandleInner>,
}

struct HandleInner {}

impl EngineHandle {
    /// Renders, tokenizes, validates and queues a request. Does not wait. Errors: `InvalidRequest` names the field;
    /// `Overloaded` when the inbox is full; `Unavailable` when the engine has stopped.
    pub fn submit(&self, request: GenerationRequest) -> Result<TokenStream> {
        todo!()
    }
    /// The loaded model.
    pub fn info(&self) -> &ModelInfo {
        todo!()
    }
    /// Counters, kept up to date once a step.
    pub fn status(&self) -> &EngineStatus {
        todo!()
    }
    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        todo!()
    }
    /// The model's chat template, if it has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        todo!()
    }
    /// Whether the engine runs and has made progress within `limit`.
    pub fn is_healthy(&self, limit: Duration) -> bool {
        todo!()
    }
    /// Takes no more requests; returns once running ones have ended or `limit` has passed, then aborts the rest.
    pub fn shutdown(&self, limit: Duration) {
        todo!()
    }
}

/// Answers to one request. Dropping it cancels the request: its KV blocks are free on the next step.
pub struct TokenStream {}

impl TokenStream {
    /// The prompt's token ids, after truncation.
    pub fn prompt_token_ids(&self) -> &[u32] {
        todo!()
    }
    /// The prompt as text, when it was given as text or rendered from a conversation.
    pub fn prompt_text(&self) -> Option<&str> {
        todo!()
    }
    /// Number of sequences.
    pub fn num_sequences(&self) -> usize {
        todo!()
    }
    /// The next event; `None` after `Done` or an error.
    pub async fn next(&mut self) -> Option<Result<StreamEvent>> {
        todo!()
    }
    /// The same, waiting on this thread. Panics inside an async runtime.
    pub fn blocking_next(&mut self) -> Option<Result<StreamEvent>> {
        todo!()
    }
    /// Everything, at the end.
    pub async fn collect(self) -> Result<GenerationOutput> {
        todo!()
    }
    /// The same, waiting on this thread. Panics inside an async runtime.
    pub fn blocking_collect(self) -> Result<GenerationOutput> {
        todo!()
    }
}
