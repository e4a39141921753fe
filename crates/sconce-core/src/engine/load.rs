//! [`load`]: files to a running engine.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Instant;

use super::core::{CacheConfig, Engine, State};
use super::files::ModelFiles;
use super::footprint::Footprint;
use super::handle::{EngineHandle, HandleInner};
use super::inspect::end_token_ids;
use super::progress::Progress;
use super::running::Limits;
use super::status::{EngineStatus, ModelInfo};
use crate::backend::cpu::CpuBackend;
use crate::backend::{Backend, KvCacheShape, KvDtype, Workspace};
use crate::config::{DeviceKind, EngineConfig, ModelConfig};
use crate::error::{Error, Result};
use crate::models::{self, Loader};
use crate::sched::SchedulerConfig;

/// Rows of logits that prompts may take in one step, beyond one a sequence.
const MAX_PROMPT_LOGITS: usize = 32;
/// The share of the free memory that the KV pool takes by default: the other half stays for the rest of the machine.
const KV_MEMORY_SHARE: usize = 2;

/// Loads a model and starts its engine. `path` is a GGUF file, or a folder with config.json, tokenizer.json and
/// safetensors; `id` is the name under which it is served. Returns once it is ready for requests.
pub fn load(id: &str, path: &Path, config: &EngineConfig, progress: &dyn Progress) -> Result<EngineHandle> {
    config.validate()?;
    if config.device == DeviceKind::Cuda {
        return Err(Error::config("device", "cuda is not supported by this build; use cpu"));
    }
    let start = Instant::now();
    let backend = CpuBackend::new(config.num_threads).with_matmul_precision(config.matmul_precision);
    let files = ModelFiles::open(path, config.load_format)?;
    let handle = start_engine(id, backend, files, config, progress)?;
    let info = handle.info();
    tracing::info!(
        "{id}: ready in {:.2} s on {}: weights {}, KV pool {} of {} ({} blocks of {} tokens), context {} tokens",
        start.elapsed().as_secs_f32(),
        info.device,
        mebibytes(info.weight_bytes),
        mebibytes(info.kv_cache_bytes),
        info.kv_dtype,
        info.num_kv_blocks,
        info.block_size,
        info.max_model_len,
    );
    Ok(handle)
}

fn start_engine<B: Backend>(
    id: &str,
    backend: B,
    files: ModelFiles,
    config: &EngineConfig,
    progress: &dyn Progress,
) -> Result<EngineHandle> {
    let text = files.text();
    let ModelFiles { raw, config: model_config, store, .. } = files;
    let (store, (tokenizer, chat_template)) = (store?, text?);
    let wanted_len = wanted_model_len(&model_config, config)?;
    // Before the first tensor is read, so that what cannot be loaded is refused at once.
    let footprint = Footprint::new(&raw, &model_config, &store, config.dtype)?;
    progress.start(&format!("loading {id}"), Some(footprint.stored_bytes));
    let loader = Loader {
        backend: &backend,
        store: &store,
        config: &model_config,
        dtype: config.dtype,
        max_model_len: wanted_len,
        progress,
    };
    let model = (models::find::<B>(&raw)?.load)(&loader)?;
    progress.finish();
    let max_logits = config.max_num_seqs + MAX_PROMPT_LOGITS;
    let ws = Workspace::new(&backend, &model_config, config.max_num_batched_tokens, max_logits)?;
    let kv_dtype = backend.kv_dtype(config.kv_cache_dtype)?;
    let pool = size_kv_pool(&backend, &model_config, config, kv_dtype, wanted_len)?;
    let kv_shape = KvCacheShape {
        dtype: kv_dtype,
        num_layers: model_config.num_hidden_layers,
        num_blocks: pool.num_blocks,
        block_size: config.block_size,
        num_kv_heads: model_config.num_key_value_heads,
        head_dim: model_config.head_dim,
    };
    let kv = backend.kv_cache(kv_shape)?;
    let info = ModelInfo {
        id: id.into(),
        max_model_len: pool.max_model_len,
        num_kv_blocks: pool.num_blocks,
        block_size: config.block_size,
        weight_bytes: footprint.memory_bytes() as usize,
        token_cost: footprint.token_cost,
        kv_cache_bytes: kv_shape.num_bytes(),
        kv_dtype,
        device: backend.description(),
        config: model_config,
    };
    let scheduler_config = SchedulerConfig {
        max_num_batched_tokens: config.max_num_batched_tokens,
        max_num_seqs: config.max_num_seqs,
        max_prompt_logits: MAX_PROMPT_LOGITS,
        window: info.config.greatest_window(),
    };
    let cache_config = CacheConfig {
        num_blocks: pool.num_blocks,
        block_size: config.block_size,
        has_prefix_cache: config.prefix_cache,
    };
    let eos_token_ids = end_token_ids(&info.config, Some(&tokenizer));
    let (sender, inbox) = mpsc::channel();
    let (tokenizer, status) = (Arc::new(tokenizer), Arc::new(EngineStatus::default()));
    let engine = Engine {
        device_batch: backend.batch()?,
        backend,
        model,
        ws,
        kv,
        tokenizer: Arc::clone(&tokenizer),
        limits: Limits { eos_token_ids, max_model_len: info.max_model_len },
        status: Arc::clone(&status),
        inbox,
        state: State::new(scheduler_config, cache_config),
    };
    let thread = std::thread::Builder::new().name("sconce-engine".into()).spawn(move || engine.run());
    let thread = thread.map_err(|e| Error::internal(format!("the engine's thread could not be started: {e}")))?;
    Ok(EngineHandle::new(HandleInner {
        inbox: sender,
        info,
        status,
        tokenizer,
        chat_template,
        max_requests: config.max_num_seqs + config.max_waiting,
        is_closed: AtomicBool::new(false),
        thread: Mutex::new(Some(thread)),
    }))
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

struct KvPool {
    num_blocks: usize,
    max_model_len: usize,
}

/// As many blocks as the setting or the free memory allows, and no more than can ever be used.
fn size_kv_pool<B: Backend>(
    backend: &B,
    model: &ModelConfig,
    config: &EngineConfig,
    dtype: KvDtype,
    wanted_len: usize,
) -> Result<KvPool> {
    let block_bytes = config.block_size * model.kv_bytes_per_token(dtype.elem_bytes());
    let blocks_for_one = wanted_len.div_ceil(config.block_size);
    let most = blocks_for_one.saturating_mul(config.max_num_seqs);
    let bytes = match config.kv_cache_bytes {
        Some(bytes) => bytes,
        None => (backend.free_memory()? / KV_MEMORY_SHARE).min(most.saturating_mul(block_bytes)),
    };
    let num_blocks = (bytes / block_bytes).min(u32::MAX as usize / config.block_size);
    if num_blocks >= blocks_for_one {
        return Ok(KvPool { num_blocks, max_model_len: wanted_len });
    }
    let needed = mebibytes(blocks_for_one * block_bytes);
    let have = mebibytes(bytes);
    if num_blocks < 2 || config.max_model_len.is_some() {
        let message = format!(
            "a sequence of {wanted_len} tokens needs {needed} of KV cache, and there are {have}; \
             set a greater kv-cache-bytes or a smaller max-model-len"
        );
        return Err(Error::config("kv-cache-bytes", message));
    }
    let max_model_len = num_blocks * config.block_size;
    tracing::warn!("the KV pool of {have} holds {max_model_len} of the model's {wanted_len} tokens of context");
    Ok(KvPool { num_blocks, max_model_len })
}

fn mebibytes(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / (1024.0 * 1024.0))
}
