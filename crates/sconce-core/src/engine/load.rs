//! [`load`]: files to a running engine.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Instant;

use super::core::{Engine, State};
use super::handle::{EngineHandle, HandleInner};
use super::progress::Progress;
use super::running::Limits;
use super::status::{EngineStatus, ModelInfo};
use crate::backend::cpu::CpuBackend;
use crate::backend::{Backend, KvCacheShape, Workspace};
use crate::config::{DeviceKind, EngineConfig, LoadFormat, ModelConfig, RopeScaling};
use crate::error::{Error, Result};
use crate::models::{self, Loader, RawConfig};
use crate::sched::SchedulerConfig;
use crate::text::{ChatTemplate, Tokenizer};
use crate::weights::{Dtype, GgufFile, WeightStore};

/// Rows of logits that prompts may take in one step, beyond one a sequence.
const MAX_PROMPT_LOGITS: usize = 32;
/// Bytes of one element of the KV cache.
const KV_ELEM_BYTES: usize = 4;
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
    let backend = CpuBackend::new(config.num_threads);
    let files = ModelFiles::open::<CpuBackend>(path, config)?;
    let handle = start_engine(id, backend, files, config, progress)?;
    let info = handle.info();
    tracing::info!(
        "{id}: ready in {:.2} s on {}: weights {}, KV pool {} ({} blocks of {} tokens), context {} tokens",
        start.elapsed().as_secs_f32(),
        info.device,
        mebibytes(info.weight_bytes),
        mebibytes(info.kv_cache_bytes),
        info.num_kv_blocks,
        info.block_size,
        info.max_model_len,
    );
    Ok(handle)
}

/// Everything that a model's files say, before its weights are loaded.
struct ModelFiles {
    path: PathBuf,
    raw: RawConfig,
    config: ModelConfig,
    store: WeightStore,
    tokenizer: Tokenizer,
    chat_template: Option<ChatTemplate>,
}

impl ModelFiles {
    fn open<B: Backend>(path: &Path, config: &EngineConfig) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if !metadata.is_dir() {
            return Self::open_gguf::<B>(path);
        }
        if path.join("config.json").exists() {
            return Self::open_dir::<B>(path, config);
        }
        Self::open_gguf::<B>(&only_gguf(path)?)
    }

    fn open_dir<B: Backend>(dir: &Path, config: &EngineConfig) -> Result<Self> {
        let raw = RawConfig::from_dir(dir)?;
        let model_config = (models::find::<B>(&raw)?.parse_config)(&raw)?;
        let store = match config.load_format {
            LoadFormat::Auto => WeightStore::open_safetensors(dir)?,
            LoadFormat::Dummy => WeightStore::dummy(0, Dtype::BF16),
        };
        let tokenizer = Tokenizer::from_dir(dir)?;
        let chat_template = ChatTemplate::from_dir(dir, &tokenizer)?;
        Ok(Self { path: dir.into(), raw, config: model_config, store, tokenizer, chat_template })
    }

    fn open_gguf<B: Backend>(path: &Path) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let raw = RawConfig::from_gguf(file.metadata(), !file.contains("output.weight"))?;
        let mut config = (models::find::<B>(&raw)?.parse_config)(&raw)?;
        let tokenizer = Tokenizer::from_gguf(path, file.metadata())?;
        let chat_template = ChatTemplate::from_gguf(path, file.metadata(), &tokenizer)?;
        let store = WeightStore::open_gguf(file, &config)?;
        if store.contains("rope_freqs.weight") {
            let len = config.rope.rotary_dim / 2;
            let tensor = store.get("rope_freqs.weight", &[len])?;
            let mut factors = vec![0.0; len];
            crate::weights::quant::dequantize(tensor.dtype, &tensor.data, &mut factors);
            config.rope.scaling = RopeScaling::Factors(factors);
        }
        Ok(Self { path: path.into(), raw, config, store, tokenizer, chat_template })
    }
}

/// The one GGUF of a folder without config.json.
fn only_gguf(dir: &Path) -> Result<PathBuf> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))?;
    let mut found: Vec<_> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "gguf")).collect();
    found.sort();
    match found.as_slice() {
        [path] => Ok(path.clone()),
        [] => Err(Error::file(dir, "holds neither config.json nor a GGUF file")),
        many => {
            let names: Vec<_> = many.iter().filter_map(|p| p.file_name()).map(|n| n.to_string_lossy()).collect();
            Err(Error::file(dir, format!("holds several GGUF files; name one of: {}", names.join(", "))))
        }
    }
}

fn start_engine<B: Backend>(
    id: &str,
    backend: B,
    files: ModelFiles,
    config: &EngineConfig,
    progress: &dyn Progress,
) -> Result<EngineHandle> {
    let ModelFiles { path, raw, config: model_config, store, tokenizer, chat_template } = files;
    model_config.validate(&path)?;
    let wanted_len = wanted_model_len(&model_config, config)?;
    progress.start(&format!("loading {id}"), Some(store.total_bytes()));
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
    let pool = size_kv_pool(&backend, &model_config, config, wanted_len)?;
    let kv = backend.kv_cache(KvCacheShape {
        num_layers: model_config.num_hidden_layers,
        num_blocks: pool.num_blocks,
        block_size: config.block_size,
        num_kv_heads: model_config.num_key_value_heads,
        head_dim: model_config.head_dim,
    })?;
    let info = ModelInfo {
        id: id.into(),
        max_model_len: pool.max_model_len,
        num_kv_blocks: pool.num_blocks,
        block_size: config.block_size,
        weight_bytes: store.total_bytes() as usize,
        kv_cache_bytes: pool.num_blocks * config.block_size * model_config.kv_bytes_per_token(KV_ELEM_BYTES),
        device: backend.description(),
        config: model_config,
    };
    let scheduler_config = SchedulerConfig {
        max_num_batched_tokens: config.max_num_batched_tokens,
        max_num_seqs: config.max_num_seqs,
        max_prompt_logits: MAX_PROMPT_LOGITS,
    };
    let mut eos_token_ids = info.config.eos_token_ids.clone();
    eos_token_ids.extend(tokenizer.end_token_ids());
    eos_token_ids.sort_unstable();
    eos_token_ids.dedup();
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
        state: State::new(scheduler_config, pool.num_blocks, config.block_size, info.config.vocab_size),
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
fn wanted_model_len(model: &ModelConfig, config: &EngineConfig) -> Result<usize> {
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
    wanted_len: usize,
) -> Result<KvPool> {
    let block_bytes = config.block_size * model.kv_bytes_per_token(KV_ELEM_BYTES);
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
