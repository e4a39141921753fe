//! [`Compute`]: a model and all that its steps work on, on one device.

use super::footprint::Footprint;
use super::load::{MAX_PROMPT_LOGITS, mebibytes};
use super::progress::Progress;
use super::step::NUM_SLOTS;
use crate::backend::{Backend, KvCacheShape, StepLimits, Workspace};
use crate::config::{EngineConfig, ModelConfig, WeightDtype};
use crate::error::{Error, Result};
use crate::kv::LayerGroups;
use crate::models::{self, Loader, Model, RawConfig};
use crate::weights::{Adapters, WeightStore};

/// A model and all that its steps work on.
pub(super) struct Compute<B: Backend> {
    pub(super) model: Box<dyn Model<B>>,
    pub(super) ws: Workspace<B>,
    pub(super) kv: B::KvCache,
    pub(super) batch: B::Batch,
    /// Of each slot of the steps.
    pub(super) answers: [B::Answers; NUM_SLOTS],
    pub(super) backend: B,
    /// The row of the RoPE table by which the first token of a long sequence turns.
    pub(super) first_long_row: usize,
}

/// What is loaded, and how.
pub(super) struct Source<'a> {
    pub(super) id: &'a str,
    pub(super) raw: &'a RawConfig,
    pub(super) model: &'a ModelConfig,
    pub(super) store: &'a WeightStore,
    pub(super) adapters: &'a Adapters,
    pub(super) config: &'a EngineConfig,
    /// The type that weights have in memory.
    pub(super) dtype: WeightDtype,
    /// Whether layers with a window keep what is before it too.
    pub(super) keeps_all: bool,
}

/// A model and all that its steps work on, but for keys and values: their memory is what is left when all else has been taken.
pub(super) struct Loaded<B: Backend> {
    model: Box<dyn Model<B>>,
    ws: Workspace<B>,
    batch: B::Batch,
    answers: [B::Answers; NUM_SLOTS],
    pub(super) backend: B,
    first_long_row: usize,
    pub(super) footprint: Footprint,
    /// How layers share the blocks of keys and values.
    pub(super) layers: LayerGroups,
    /// Of keys and values: no blocks yet.
    shape: KvCacheShape,
    /// The longest sequence that is asked for.
    asked_len: usize,
    /// The longest sequence that there is a place for everywhere else.
    pub(super) wanted_len: usize,
    pub(super) max_num_seqs: usize,
    pub(super) max_step_tokens: usize,
}

impl<B: Backend> Loaded<B> {
    /// Reads the weights. `wanted_len`: the longest sequence, where that has been found out before. `least_seqs`: a step has room for
    /// so many at least, however few run at once.
    pub(super) fn load(
        backend: B,
        source: &Source<'_>,
        wanted_len: Option<usize>,
        least_seqs: usize,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let Source { id, raw, model: model_config, store, adapters, config, dtype, keeps_all } = *source;
        let max_num_seqs = num_seqs(&backend, config);
        let max_step_tokens = step_tokens(&backend, config);
        let asked_len = wanted_model_len(model_config, config)?;
        let layers = if keeps_all {
            LayerGroups::one(&vec![None; model_config.num_hidden_layers], config.block_size)
        } else {
            LayerGroups::choose(&model_config.sliding_window, config.block_size, asked_len, max_step_tokens)
        };
        let shape = KvCacheShape {
            dtype: backend.kv_dtype(config.kv_cache_dtype)?,
            num_layers: layers.num_arrays(),
            num_blocks: 0,
            block_size: config.block_size,
            num_kv_heads: model_config.num_key_value_heads,
            head_dim: model_config.head_dim,
        };
        // What no pool could hold takes no room in tables of positions either.
        let wanted_len = match wanted_len {
            Some(len) => len,
            None => {
                let one = KvCacheShape { num_blocks: layers.num_parts(), ..shape };
                let num_blocks = kv_bytes(&backend, config)? / backend.kv_cache_bytes(&one);
                // Two blocks at least.
                asked_len.min(layers.most_tokens(num_blocks, max_step_tokens).max(2 * config.block_size))
            }
        };
        // Before the first tensor is read, so that what cannot be loaded is refused at once. A draft model's keys and values come on top.
        if config.kv_cache_bytes.is_some() {
            let block_bytes = backend.kv_cache_bytes(&KvCacheShape { num_blocks: layers.num_parts(), ..shape });
            KvPool::new(&backend, config, (&layers, block_bytes), max_step_tokens, [asked_len, wanted_len])?;
        }
        let footprint =
            Footprint::new(raw, model_config, (store, adapters), &|stored| backend.memory_dtype(stored, dtype))?;
        progress.start(&format!("loading {id}"), Some(footprint.stored_bytes));
        let loader = Loader {
            backend: &backend,
            store,
            config: model_config,
            adapters,
            dtype,
            max_model_len: wanted_len,
            progress,
        };
        let model = (models::find::<B>(raw)?.load)(&loader)?;
        progress.finish();
        let max_seqs = max_num_seqs.max(least_seqs);
        let limits = StepLimits {
            max_tokens: max_step_tokens,
            max_seqs,
            max_logits: max_seqs + MAX_PROMPT_LOGITS,
            max_model_len: wanted_len,
            block_size: config.block_size,
            num_groups: layers.groups().len(),
            kv_dtype: shape.dtype,
        };
        let ws = Workspace::new(&backend, model_config, limits.max_tokens, limits.max_logits)?;
        let batch = backend.batch(model_config, &limits)?;
        let answers = [backend.answers()?, backend.answers()?];
        Ok(Self {
            model,
            ws,
            batch,
            answers,
            backend,
            first_long_row: model_config.rope.short_len(wanted_len).unwrap_or(0),
            footprint,
            layers,
            shape,
            asked_len,
            wanted_len,
            max_num_seqs,
            max_step_tokens,
        })
    }

    /// Bytes that one of the pool's blocks of keys and values takes.
    pub(super) fn block_bytes(&self) -> usize {
        self.backend.kv_cache_bytes(&self.kv_shape(1))
    }

    /// Of keys and values, with so many of the pool's blocks.
    pub(super) fn kv_shape(&self, num_blocks: usize) -> KvCacheShape {
        KvCacheShape { num_blocks: num_blocks * self.layers.num_parts(), ..self.shape }
    }

    /// The pool that the setting or the free memory allows, where a block takes so many bytes in all.
    pub(super) fn pool(&self, config: &EngineConfig, block_bytes: usize) -> Result<KvPool> {
        let lens = [self.asked_len, self.wanted_len];
        let pool = KvPool::new(&self.backend, config, (&self.layers, block_bytes), self.max_step_tokens, lens)?;
        let KvPool { num_blocks, max_model_len } = pool;
        if max_model_len < self.asked_len {
            let have = mebibytes(num_blocks.saturating_mul(block_bytes));
            tracing::warn!(
                "the KV pool of {have} holds {max_model_len} of the model's {} tokens of context",
                self.asked_len
            );
        }
        Ok(pool)
    }

    /// The same with so many of the pool's blocks of keys and values.
    pub(super) fn with_blocks(self, num_blocks: usize) -> Result<Compute<B>> {
        let kv = self.backend.kv_cache(self.kv_shape(num_blocks), self.layers.places())?;
        let Self { model, ws, batch, answers, backend, first_long_row, .. } = self;
        Ok(Compute { model, ws, kv, batch, answers, backend, first_long_row })
    }
}

/// Most tokens of a step. Every running sequence can decode in it.
pub(super) fn step_tokens<B: Backend>(backend: &B, config: &EngineConfig) -> usize {
    config.max_num_batched_tokens.unwrap_or_else(|| backend.default_step_tokens().max(num_seqs(backend, config)))
}

/// Most sequences that run at once.
pub(super) fn num_seqs<B: Backend>(backend: &B, config: &EngineConfig) -> usize {
    let most = config.max_num_batched_tokens.unwrap_or(usize::MAX);
    config.max_num_seqs.unwrap_or_else(|| backend.default_num_seqs().min(most))
}

/// The longest sequence, before it is known what the KV pool holds.
pub(super) fn wanted_model_len(model: &ModelConfig, config: &EngineConfig) -> Result<usize> {
    let limit = model.max_position_embeddings;
    match config.max_model_len {
        Some(len) if len > limit => {
            Err(Error::config("max-model-len", format!("{len} is beyond the model's context of {limit} tokens")))
        }
        len => Ok(len.unwrap_or(limit)),
    }
}

/// Bytes that keys and values may take, by the setting or the memory that is free now.
fn kv_bytes<B: Backend>(backend: &B, config: &EngineConfig) -> Result<usize> {
    config.kv_cache_bytes.map_or_else(|| backend.kv_pool_memory(), Ok)
}

/// How many blocks of keys and values there are, and what they hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct KvPool {
    pub(super) num_blocks: usize,
    pub(super) max_model_len: usize,
}

impl KvPool {
    /// As many blocks as the setting or the free memory allows, and no more than can ever be used. `block_bytes`: of one, `asked_len`: the
    /// longest sequence that is asked for; `wanted_len`: that there is a place for everywhere else.
    fn new<B: Backend>(
        backend: &B,
        config: &EngineConfig,
        (layers, block_bytes): (&LayerGroups, usize),
        step_tokens: usize,
        [asked_len, wanted_len]: [usize; 2],
    ) -> Result<Self> {
        let blocks_for_one = layers.most_blocks(asked_len, step_tokens);
        let most = blocks_for_one.saturating_mul(num_seqs(backend, config));
        let bytes = match config.kv_cache_bytes {
            Some(bytes) => bytes,
            None => backend.kv_pool_memory()?.min(most.saturating_mul(block_bytes)),
        };
        let most_slots = u32::MAX as usize / (config.block_size * layers.num_parts());
        let num_blocks = (bytes / block_bytes).min(most_slots);
        if num_blocks >= blocks_for_one && wanted_len == asked_len {
            return Ok(Self { num_blocks, max_model_len: asked_len });
        }
        let most_tokens = layers.most_tokens(num_blocks, step_tokens);
        if most_tokens < 2 * config.block_size || config.max_model_len.is_some() {
            let (needed, have) = (mebibytes(blocks_for_one.saturating_mul(block_bytes)), mebibytes(bytes));
            let message = format!(
                "a sequence of {asked_len} tokens needs {needed} of KV cache, and there are {have}; \
                 set a greater kv-cache-bytes or a smaller max-model-len"
            );
            return Err(Error::config("kv-cache-bytes", message));
        }
        Ok(Self { num_blocks, max_model_len: most_tokens.min(wanted_len) })
    }
}
