//! [`load`]: files to a running engine.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Instant;

use super::compute::{Compute, Sizes, Source};
use super::core::{CacheConfig, Engine, State};
use super::files::ModelFiles;
use super::handle::{EngineHandle, HandleInner};
use super::inspect::end_token_ids;
use super::progress::{NoProgress, Progress};
use super::running::Limits;
use super::status::{EngineStatus, ModelInfo};
use crate::backend::cpu::{CpuBackend, release_freed};
use crate::backend::cuda::{self, CudaBackend, GpuInfo};
use crate::backend::{Backend, Checked, OpProfile, Profiled};
use crate::config::{DeviceKind, EngineConfig, WeightDtype};
use crate::error::{Error, Result};
use crate::sched::SchedulerConfig;
use crate::weights::Dtype;

/// Rows of logits that prompts may take in one step, beyond one a sequence.
pub(super) const MAX_PROMPT_LOGITS: usize = 32;
/// What a GPU's element may differ by from the CPU's, as a share of the greatest of its operation's result: some units in the
/// last place of bf16.
const CHECK_TOLERANCE: f32 = 2e-2;

/// Loads a model and starts its engine. `path` is a GGUF file, or a folder with config.json, tokenizer.json and
/// safetensors; `id` is the name under which it is served. Returns once it is ready for requests.
pub fn load(id: &str, path: &Path, config: &EngineConfig, progress: &dyn Progress) -> Result<EngineHandle> {
    config.validate()?;
    let start = Instant::now();
    let files = ModelFiles::open(path, config)?;
    let stored = files.stored_dtype()?;
    let gpu = choose_gpu(config, stored)?;
    let profile = config.profile_ops.then(Arc::default);
    let launch = Launch { id, path, config, progress, gpu: gpu.as_ref().map(CudaBackend::index), profile };
    let handle = match gpu {
        None if config.check_ops => {
            Err(Error::config("check-ops", "there is no GPU whose operations could be checked"))
        }
        None => {
            let (threads, precision) = (config.num_threads, config.matmul_precision);
            let open = move || Ok(CpuBackend::new(threads).with_matmul_precision(precision));
            launch.start_timed(files, open()?, config.dtype, open)
        }
        Some(gpu) => {
            let (index, asked, precision) = (gpu.index(), config.dtype, config.matmul_precision);
            let open = move || Ok(CudaBackend::open(index, asked, stored)?.with_matmul_precision(precision));
            let (dtype, gpu) = (gpu.weight_dtype(), gpu.with_matmul_precision(precision));
            if config.check_ops {
                let threads = config.num_threads;
                let check = move |gpu| Checked::new(gpu, CpuBackend::new(threads), CHECK_TOLERANCE);
                launch.start(files, check(gpu), dtype, Box::new(move || Ok(check(open()?))))
            } else {
                launch.start_timed(files, gpu, dtype, open)
            }
        }
    }?;
    release_freed();
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

/// The GPU that the model is to run on; `None`: the CPU. A GPU that was not asked for by name and cannot be used is no
/// error.
fn choose_gpu(config: &EngineConfig, stored: Dtype) -> Result<Option<CudaBackend>> {
    match config.device {
        DeviceKind::Cpu => Ok(None),
        DeviceKind::Cuda(index) => CudaBackend::open(index, config.dtype, stored).map(Some),
        // Asked for in f32, which is for the CPU.
        DeviceKind::Auto if config.dtype == WeightDtype::F32 => Ok(None),
        DeviceKind::Auto => {
            let Some(gpu) = first_gpu() else { return Ok(None) };
            let unusable = |error: &Error| {
                tracing::warn!("cuda:{} ({}) cannot be used, so the CPU is: {error}", gpu.index, gpu.name);
            };
            Ok(CudaBackend::open(gpu.index, config.dtype, stored).inspect_err(unusable).ok())
        }
    }
}

/// The first GPU that can be used.
fn first_gpu() -> Option<GpuInfo> {
    let gpus = cuda::available().inspect_err(|error| tracing::debug!("no GPU: {error}")).unwrap_or_default();
    gpus.into_iter().find(|gpu| gpu.problem().is_none())
}

/// Whether a model is loaded onto a GPU, which need not be there if it is asked for by name.
pub(super) fn is_for_gpu(config: &EngineConfig) -> bool {
    match config.device {
        DeviceKind::Cpu => false,
        DeviceKind::Cuda(_) => true,
        DeviceKind::Auto => config.dtype != WeightDtype::F32 && first_gpu().is_some(),
    }
}

/// What is to be started.
pub(super) struct Launch<'a> {
    pub(super) id: &'a str,
    pub(super) path: &'a Path,
    pub(super) config: &'a EngineConfig,
    pub(super) progress: &'a dyn Progress,
    pub(super) gpu: Option<usize>,
    /// Where the times of operations go, if they are taken.
    pub(super) profile: Option<Arc<OpProfile>>,
}

impl Launch<'_> {
    /// [`Launch::start`], on a backend whose operations are timed if that is asked for.
    fn start_timed<B: Backend>(
        &self,
        files: ModelFiles,
        backend: B,
        dtype: WeightDtype,
        open: impl Fn() -> Result<B> + Send + 'static,
    ) -> Result<EngineHandle> {
        let Some(profile) = &self.profile else { return self.start(files, backend, dtype, Box::new(open)) };
        let profile = Arc::clone(profile);
        let timed = move |backend| Profiled::new(backend, Arc::clone(&profile));
        self.start(files, timed(backend), dtype, Box::new(move || Ok(timed(open()?))))
    }

    /// `open` makes the backend anew, should its device be lost.
    pub(super) fn start<B: Backend>(
        &self,
        files: ModelFiles,
        backend: B,
        dtype: WeightDtype,
        open: Box<dyn Fn() -> Result<B> + Send>,
    ) -> Result<EngineHandle> {
        let text = files.text();
        let ModelFiles { raw, config: model, store, .. } = files;
        let (store, (tokenizer, chat_template)) = (store?, text?);
        let Self { id, path, config, progress, gpu, .. } = *self;
        let device = backend.description();
        let source = Source { id, raw: &raw, model: &model, store: &store, config, dtype };
        let (compute, sizes) = Compute::load(backend, &source, None, progress)?;
        let info = ModelInfo {
            id: id.into(),
            max_model_len: sizes.max_model_len,
            max_num_seqs: sizes.max_num_seqs,
            num_kv_blocks: sizes.kv_shape.num_blocks,
            block_size: config.block_size,
            weight_bytes: sizes.footprint.memory_bytes() as usize,
            token_cost: sizes.footprint.token_cost,
            kv_cache_bytes: sizes.kv_cache_bytes,
            kv_dtype: sizes.kv_shape.dtype,
            device,
            gpu,
            config: model,
        };
        let max_requests = sizes.max_num_seqs + config.max_waiting;
        let scheduler_config = SchedulerConfig {
            max_num_batched_tokens: sizes.max_step_tokens,
            max_num_seqs: sizes.max_num_seqs,
            max_prompt_logits: MAX_PROMPT_LOGITS,
            window: info.config.greatest_window(),
        };
        let cache_config = CacheConfig {
            num_blocks: info.num_kv_blocks,
            block_size: config.block_size,
            has_prefix_cache: config.prefix_cache,
        };
        let eos_token_ids = end_token_ids(&info.config, Some(&tokenizer));
        let (sender, inbox) = mpsc::channel();
        let (tokenizer, status) = (Arc::new(tokenizer), Arc::new(EngineStatus::default()));
        let engine = Engine {
            compute,
            reload: reload(id, path, config, dtype, sizes, open),
            tokenizer: Arc::clone(&tokenizer),
            limits: Limits { eos_token_ids, max_model_len: info.max_model_len },
            status: Arc::clone(&status),
            inbox,
            state: State::new(scheduler_config, cache_config).with_drafts(config.num_speculative_tokens),
        };
        let thread = std::thread::Builder::new().name("sconce-engine".into()).spawn(move || engine.run());
        let thread = thread.map_err(|e| Error::internal(format!("the engine's thread could not be started: {e}")))?;
        Ok(EngineHandle::new(HandleInner {
            inbox: sender,
            info,
            status,
            tokenizer,
            chat_template,
            max_requests,
            makes_drafts: config.num_speculative_tokens > 0,
            is_closed: AtomicBool::new(false),
            thread: Mutex::new(Some(thread)),
            profile: self.profile.clone(),
        }))
    }
}

/// Loads the model once more, into memory of the same sizes, from files that are still there.
fn reload<B: Backend>(
    id: &str,
    path: &Path,
    config: &EngineConfig,
    dtype: WeightDtype,
    sizes: Sizes,
    open: Box<dyn Fn() -> Result<B> + Send>,
) -> Box<dyn Fn() -> Result<Compute<B>> + Send> {
    let (id, path, config) = (id.to_owned(), path.to_owned(), config.clone());
    Box::new(move || {
        let ModelFiles { raw, config: model, store, .. } = ModelFiles::open(&path, &config)?;
        let store = store?;
        let source = Source { id: &id, raw: &raw, model: &model, store: &store, config: &config, dtype };
        Ok(Compute::load(open()?, &source, Some(&sizes), &NoProgress)?.0)
    })
}

pub(super) fn mebibytes(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / (1024.0 * 1024.0))
}
