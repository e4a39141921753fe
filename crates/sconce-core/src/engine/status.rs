//! [`EngineStatus`]: counters of a running engine; [`ModelInfo`]: what is known of its model.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::footprint::TokenCost;
use crate::backend::KvDtype;
use crate::config::{AdapterSource, ModelConfig};
use crate::kv::LayerGroups;

/// What is known of a loaded model.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// The id under which it is served.
    pub id: String,
    /// The id of the model that drafts for it, if there is one.
    pub draft_model: Option<String>,
    /// The adapters that requests may choose.
    pub adapters: Vec<AdapterSource>,
    /// Its normalised config.
    pub config: ModelConfig,
    /// Whether it generates: a checkpoint without a head, as embedders are saved, makes embeddings alone.
    pub has_head: bool,
    /// The longest sequence that this engine runs, prompt and output together, in tokens.
    pub max_model_len: usize,
    /// Most sequences that run at once.
    pub max_num_seqs: usize,
    /// KV blocks in the pool.
    pub num_kv_blocks: usize,
    /// Tokens that have room in the pool: where layers with a window share it with others, of a single sequence.
    pub num_kv_tokens: usize,
    /// How layers share the pool's blocks.
    pub layers: LayerGroups,
    /// Tokens in one block of a layer's keys and values.
    pub block_size: usize,
    /// Bytes of its weights in memory.
    pub weight_bytes: usize,
    /// What the weights cost a token.
    pub token_cost: TokenCost,
    /// Bytes of the KV pool, that of the model that drafts included.
    pub kv_cache_bytes: usize,
    /// The type of its elements.
    pub kv_dtype: KvDtype,
    /// Where it runs, in words: `cpu (2 threads, avx512)`.
    pub device: String,
    /// The GPU's number; `None`: the CPU.
    pub gpu: Option<usize>,
}

impl ModelInfo {
    /// Tokens that so many of the pool's blocks hold: as many as there are where all are in use, by their share.
    pub fn kv_tokens(&self, num_blocks: usize) -> usize {
        num_blocks * self.num_kv_tokens / self.num_kv_blocks.max(1)
    }
}

/// Counters that the engine keeps up to date once a step. Read at any time, from any thread.
#[derive(Debug)]
pub struct EngineStatus {
    /// Requests submitted and not ended, those in the inbox among them.
    pub num_unfinished_requests: AtomicUsize,
    /// Sequences that hold KV blocks.
    pub num_running: AtomicUsize,
    /// Sequences that wait for KV blocks.
    pub num_waiting: AtomicUsize,
    /// KV blocks in use.
    pub num_used_blocks: AtomicUsize,
    /// Most KV blocks that have been in use at once. Who measures may set it to 0.
    pub peak_used_blocks: AtomicUsize,
    /// KV blocks in the pool.
    pub num_total_blocks: AtomicUsize,
    /// Steps run.
    pub num_steps: AtomicUsize,
    /// Of these, steps that were launched before the one before them had been read.
    pub num_steps_ahead: AtomicUsize,
    /// Sequences whose KV blocks were taken for others, to be recomputed.
    pub num_preemptions: AtomicUsize,
    /// Prompt tokens of the requests taken up.
    pub num_prompt_tokens: AtomicUsize,
    /// Of these, tokens that were found in the prefix cache.
    pub num_cached_prompt_tokens: AtomicUsize,
    /// Tokens generated; in a beam search, of all beams that go on.
    pub num_generated_tokens: AtomicUsize,
    /// Drafts computed, of speculative decoding.
    pub num_draft_tokens: AtomicUsize,
    /// Of these, tokens that turned out to be the sequence's.
    pub num_accepted_tokens: AtomicUsize,
    /// Requests ended, cancelled ones among them.
    pub num_finished_requests: AtomicUsize,
    /// Requests whose caller went away.
    pub num_cancelled_requests: AtomicUsize,
    /// Whether the engine's thread runs.
    pub is_alive: AtomicBool,
    /// Milliseconds from `start` to the last step, or to the last look into an empty inbox.
    pub last_progress_ms: AtomicUsize,
    start: Instant,
}

impl Default for EngineStatus {
    fn default() -> Self {
        Self {
            num_unfinished_requests: AtomicUsize::new(0),
            num_running: AtomicUsize::new(0),
            num_waiting: AtomicUsize::new(0),
            num_used_blocks: AtomicUsize::new(0),
            peak_used_blocks: AtomicUsize::new(0),
            num_total_blocks: AtomicUsize::new(0),
            num_steps: AtomicUsize::new(0),
            num_steps_ahead: AtomicUsize::new(0),
            num_preemptions: AtomicUsize::new(0),
            num_prompt_tokens: AtomicUsize::new(0),
            num_cached_prompt_tokens: AtomicUsize::new(0),
            num_generated_tokens: AtomicUsize::new(0),
            num_draft_tokens: AtomicUsize::new(0),
            num_accepted_tokens: AtomicUsize::new(0),
            num_finished_requests: AtomicUsize::new(0),
            num_cancelled_requests: AtomicUsize::new(0),
            is_alive: AtomicBool::new(true),
            last_progress_ms: AtomicUsize::new(0),
            start: Instant::now(),
        }
    }
}

impl EngineStatus {
    /// Reads one counter.
    pub fn get(counter: &AtomicUsize) -> usize {
        counter.load(Ordering::Relaxed)
    }

    /// Whether the engine runs and has made progress within `limit`.
    pub fn is_healthy(&self, limit: Duration) -> bool {
        let now = self.start.elapsed().as_millis() as usize;
        let idle = now.saturating_sub(Self::get(&self.last_progress_ms));
        self.is_alive.load(Ordering::Relaxed) && (idle as u128) <= limit.as_millis()
    }

    /// So many requests have ended, however they did.
    pub(super) fn finish_requests(&self, count: usize) {
        self.num_finished_requests.fetch_add(count, Ordering::Relaxed);
        self.num_unfinished_requests.fetch_sub(count, Ordering::SeqCst);
    }

    pub(super) fn progressed(&self) {
        self.last_progress_ms.store(self.start.elapsed().as_millis() as usize, Ordering::Relaxed);
    }
}
