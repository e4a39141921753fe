//! [`load`]: files to a running engine.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Instant;

use super::core::{CacheConfig, Engine, State};
use super::drafts::max_drafting_rows;
use super::files::ModelFiles;
use super::handle::{EngineHandle, HandleInner};
use super::inspect::end_token_ids;
use super::models::{Models, Opened, Part};
use super::pooling::Pooling;
use super::progress::{NoProgress, Progress};
use super::running::Limits;
use super::status::{EngineStatus, ModelInfo};
use crate::backend::cpu::{CpuBackend, release_freed};
use crate::backend::cuda::{self, CudaBackend, GpuInfo, SharedGpu};
use crate::backend::{Backend, Checked, OpProfile, Profiled};
use crate::config::{DeviceKind, EngineConfig, MatmulPrecision, WeightDtype};
use crate::error::{Error, Result};
use crate::models;
use crate::sched::SchedulerConfig;
use crate::text::{AnswerForm, GrammarCompiler, Tokenizer};
use crate::weights::Dtype;

/// Rows of logits that prompts may take in one step, beyond one a sequence.
pub(super) const MAX_PROMPT_LOGITS: usize = 32;
/// What a GPU's element may differ by from the CPU's, as a share of the greatest of its operation's result: some units in the
/// last place of bf16.
const CHECK_TOLERANCE: f32 = 2e-2;

/// Loads a model and starts its engine. `path` is a GGUF file, or a folder with config.json, tokenizer.json and
/// safetensors; `id` is the name under which it is served. Returns once it is ready for requests.
pub fn load(id: &str, path: &Path, config: &EngineConfig, progress: &dyn Progress) -> Result<EngineHandle> {
    load_with_draft((id, path), None, config, progress)
}

/// The same of `model`, its id and path, beside a smaller model of the same vocabulary that drafts for it (speculative decoding).
/// Answers are the model's own, and come sooner where the smaller one often says the same.
pub fn load_with_draft(
    model: (&str, &Path),
    draft: Option<(&str, &Path)>,
    config: &EngineConfig,
    progress: &dyn Progress,
) -> Result<EngineHandle> {
    let start = Instant::now();
    if config.adapters.iter().any(|adapter| adapter.name == model.0) {
        return Err(Error::config("lora", format!("{:?} is the model's own name", model.0)));
    }
    let config = &with_defaults(config, draft.is_some())?;
    let draft_config = draft_config(config);
    let files = ModelFiles::open(model.1, config)?;
    let draft = draft.map(|model| Ok((model, ModelFiles::open(model.1, &draft_config)?)));
    let draft = draft.transpose()?;
    let stored = files.stored_dtype()?;
    let gpu = choose_gpu(config, stored)?;
    let profile = config.profile_ops.then(Arc::default);
    let launch = Launch { progress, gpu: gpu.as_ref().map(CudaBackend::index), profile };
    let handle = match gpu {
        None if config.check_ops => {
            Err(Error::config("check-ops", "there is no GPU whose operations could be checked"))
        }
        None => {
            // Each has threads of its own: while one computes the other's sleep.
            let threads = config.num_threads;
            let cpu = |config: &EngineConfig| {
                let precision = config.matmul_precision;
                move || Ok(CpuBackend::new(threads).with_matmul_precision(precision))
            };
            let open = |(model, files), config: &EngineConfig| {
                let backend = cpu(config)()?;
                Ok((Part::new(model, config, config.dtype, cpu(config)), Opened { files, backend }))
            };
            let target = open((model, files), config)?;
            launch.start_timed(target, draft.map(|draft| open(draft, &draft_config)).transpose()?)
        }
        Some(gpu) => {
            let shared = Arc::new(SharedGpu::of(&gpu));
            let open = |(model, files): (_, ModelFiles), config: &EngineConfig| {
                let (asked, stored, precision) = (config.dtype, files.stored_dtype()?, config.matmul_precision);
                let shared = Arc::clone(&shared);
                let again = move || Ok(shared.open(asked, stored)?.with_matmul_precision(precision));
                let backend = again()?;
                Ok::<_, Error>((Part::new(model, config, backend.weight_dtype(), again), Opened { files, backend }))
            };
            let target = open((model, files), config)?;
            let draft = draft.map(|draft| open(draft, &draft_config)).transpose()?;
            // They have it now.
            drop(gpu);
            if config.check_ops {
                let threads = config.num_threads;
                let check = move |gpu| Checked::new(gpu, CpuBackend::new(threads), CHECK_TOLERANCE);
                launch.start(mapped(target, check), draft.map(|draft| mapped(draft, check)))
            } else {
                launch.start_timed(target, draft)
            }
        }
    }?;
    release_freed();
    let info = handle.info();
    tracing::info!(
        "{}: ready in {:.2} s on {}: weights {}, KV pool {} of {} ({} blocks, {} tokens{}), context {} tokens{}",
        info.id,
        start.elapsed().as_secs_f32(),
        info.device,
        mebibytes(info.weight_bytes),
        mebibytes(info.kv_cache_bytes),
        info.kv_dtype,
        info.num_kv_blocks,
        info.num_kv_tokens,
        if info.layers.groups().len() > 1 { " of one sequence" } else { "" },
        info.max_model_len,
        info.draft_model.as_ref().map_or(String::new(), |draft| format!(", drafts by {draft}")),
    );
    for adapter in &info.adapters {
        tracing::info!("{}: adapter {} of {}", info.id, adapter.name, adapter.origin);
    }
    Ok(handle)
}

/// The settings with what they leave open, checked.
fn with_defaults(config: &EngineConfig, has_draft: bool) -> Result<EngineConfig> {
    let mut config = config.clone();
    if has_draft && config.num_speculative_tokens == 0 {
        config.num_speculative_tokens = EngineConfig::DRAFT_MODEL_TOKENS;
    }
    config.validate()?;
    if !has_draft && config.draft_quantization.is_some() {
        return Err(Error::config("draft-quantization", "is for the weights of a draft model, and there is none"));
    }
    Ok(config)
}

/// Those of the model that drafts. No answer depends on how exactly it computes; operations that are checked are exact.
fn draft_config(config: &EngineConfig) -> EngineConfig {
    // A step has room for what all sequences that are drafted for have in a step.
    let least_tokens = max_drafting_rows(true, true);
    EngineConfig {
        quantization: config.draft_quantization.unwrap_or(config.quantization),
        matmul_precision: if config.check_ops { config.matmul_precision } else { MatmulPrecision::Fast },
        max_num_seqs: Some(1),
        max_num_batched_tokens: config.max_num_batched_tokens.map(|tokens| tokens.max(least_tokens)),
        max_model_len: None,
        num_speculative_tokens: 0,
        // Drafts are the model's own, whichever adapter they are for.
        adapters: Vec::new(),
        ..config.clone()
    }
}

/// That the model that drafts means the same by its tokens. Errors: the first that it does not.
fn check_vocabulary(target: (&str, &Tokenizer), draft: (&str, &Tokenizer)) -> Result<()> {
    let Some(id) = target.1.first_difference(draft.1) else { return Ok(()) };
    let [a, b] = [target, draft]
        .map(|(name, tokenizer)| format!("{:?} of {name}", tokenizer.id_to_token(id).unwrap_or_default()));
    Err(Error::config("draft-model", format!("must have the model's vocabulary, and token {id} is {a}, but {b}")))
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

/// A model that is to be started, and what is open of it.
type Start<B> = (Part<B>, Opened<B>);

/// The same on a backend that is made of its own.
fn mapped<B: Backend, C: Backend>(
    (part, Opened { files, backend }): Start<B>,
    make: impl Fn(B) -> C + Send + 'static,
) -> Start<C> {
    let backend = make(backend);
    (part.map(make), Opened { files, backend })
}

/// How models are started.
pub(super) struct Launch<'a> {
    pub(super) progress: &'a dyn Progress,
    pub(super) gpu: Option<usize>,
    /// Where the times of operations go, if they are taken.
    pub(super) profile: Option<Arc<OpProfile>>,
}

impl Launch<'_> {
    /// [`Launch::start`], on backends whose operations are timed if that is asked for.
    fn start_timed<B: Backend>(&self, target: Start<B>, draft: Option<Start<B>>) -> Result<EngineHandle> {
        let Some(profile) = &self.profile else { return self.start(target, draft) };
        let timed = || {
            let profile = Arc::clone(profile);
            move |backend| Profiled::new(backend, Arc::clone(&profile))
        };
        self.start(mapped(target, timed()), draft.map(|draft| mapped(draft, timed())))
    }

    /// Loads the model, and the one that drafts for it, and starts the engine.
    pub(super) fn start<B: Backend>(&self, target: Start<B>, draft: Option<Start<B>>) -> Result<EngineHandle> {
        let (target, opened) = target;
        let (tokenizer, chat_template) = opened.files.text()?;
        let (model, device) = (opened.files.config.clone(), opened.backend.description());
        let has_head = !models::is_headless(&opened.files.raw)?;
        let pooling = Pooling::of(&opened.files).map_err(|error| error.to_string());
        if let Some((part, opened)) = &draft {
            if models::is_headless(&opened.files.raw)? {
                return Err(Error::config("draft-model", format!("{} has no head, and cannot draft", part.id)));
            }
            check_vocabulary((&target.id, &tokenizer), (&part.id, &opened.files.text()?.0))?;
        }
        let (draft, draft_opened) = draft.unzip();
        let draft_opened = draft.as_ref().zip(draft_opened);
        let config = target.config.clone();
        let drafting_rows = match config.num_speculative_tokens {
            0 => 0,
            _ => max_drafting_rows(self.gpu.is_some(), draft.is_some()),
        };
        let (models, sizes) = Models::load((&target, opened), draft_opened, drafting_rows, None, self.progress)?;
        let info = ModelInfo {
            id: target.id.clone(),
            draft_model: draft.as_ref().map(|draft| draft.id.clone()),
            adapters: config.adapters.clone(),
            has_head,
            max_model_len: sizes.max_model_len,
            max_num_seqs: sizes.max_num_seqs,
            num_kv_blocks: sizes.num_blocks,
            num_kv_tokens: sizes.num_kv_tokens(),
            layers: sizes.layers.clone(),
            block_size: config.block_size,
            weight_bytes: sizes.footprint.memory_bytes() as usize,
            token_cost: sizes.footprint.token_cost,
            kv_cache_bytes: sizes.kv_cache_bytes,
            kv_dtype: sizes.kv_dtype,
            device,
            gpu: self.gpu,
            config: model,
        };
        let answer_form = chat_template
            .as_ref()
            .map_or_else(AnswerForm::plain, |template| AnswerForm::of(template.source(), &tokenizer));
        let max_requests = sizes.max_num_seqs + config.max_waiting;
        let scheduler_config = SchedulerConfig {
            max_num_batched_tokens: sizes.max_step_tokens,
            max_num_seqs: sizes.max_num_seqs,
            max_prompt_logits: MAX_PROMPT_LOGITS,
            short_len: info.config.rope.short_len(info.max_model_len),
        };
        let cache_config = CacheConfig {
            num_blocks: info.num_kv_blocks,
            groups: sizes.layers.groups().to_vec(),
            has_prefix_cache: config.prefix_cache,
        };
        let eos_token_ids = end_token_ids(&info.config, Some(&tokenizer));
        let (sender, inbox) = mpsc::channel();
        let (tokenizer, status) = (Arc::new(tokenizer), Arc::new(EngineStatus::default()));
        let grammars = GrammarCompiler::new(Arc::clone(&tokenizer), eos_token_ids.clone());
        let reload = move || {
            let opened = draft.as_ref().map(|draft| Ok((draft, draft.open()?))).transpose()?;
            Ok(Models::load((&target, target.open()?), opened, drafting_rows, Some(&sizes), &NoProgress)?.0)
        };
        let engine = Engine {
            models,
            reload: Box::new(reload),
            tokenizer: Arc::clone(&tokenizer),
            limits: Limits { eos_token_ids, max_model_len: info.max_model_len },
            status: Arc::clone(&status),
            inbox,
            state: State::new(scheduler_config, cache_config).with_drafts(config.num_speculative_tokens, drafting_rows),
        };
        let thread = std::thread::Builder::new().name("sconce-engine".into()).spawn(move || engine.run());
        let thread = thread.map_err(|e| Error::internal(format!("the engine's thread could not be started: {e}")))?;
        Ok(EngineHandle::new(HandleInner {
            inbox: sender,
            info,
            status,
            tokenizer,
            chat_template,
            answer_form,
            grammars,
            pooling,
            max_requests,
            makes_drafts: config.num_speculative_tokens > 0,
            is_closed: AtomicBool::new(false),
            thread: Mutex::new(Some(thread)),
            profile: self.profile.clone(),
        }))
    }
}

pub(super) fn mebibytes(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / (1024.0 * 1024.0))
}
