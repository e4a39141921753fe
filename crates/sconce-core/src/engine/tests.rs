//! A step that fails takes down the requests in it, and nothing else.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::oneshot;

use super::Inbox;
use super::compute::Compute;
use super::core::{CacheConfig, Engine, State};
use super::embedder::QueuedEmbeddings;
use super::embedding::EmbeddingOutput;
use super::models::Models;
use super::pooling::Pooling;
use super::running::{Caller, Limits, QueuedRequest};
use super::status::EngineStatus;
use super::stream::{PromptInfo, TokenStream};
use crate::backend::cpu::CpuBackend;
use crate::backend::cuda::CudaBackend;
use crate::backend::cuda::device::ElemType;
use crate::backend::cuda::host::{HostDevice, Watch};
use crate::backend::{Backend, KvCacheShape, KvDtype, StepLimits, Workspace};
use crate::config::{Activation, KvCacheDtype, ModelConfig, RopeConfig, RopeScaling, SamplingParams};
use crate::error::{Error, ErrorKind, Result};
use crate::kv::LayerGroups;
use crate::models::{Model, Step};
use crate::sched::SchedulerConfig;
use crate::text::Tokenizer;

/// A prompt with this token makes the device fail.
const FAILS: u32 = 1;
/// A prompt with this token makes the model panic.
const PANICS: u32 = 2;
/// After a prompt with this token the model's logits are no numbers.
const NO_NUMBER: u32 = 4;
const VOCAB_SIZE: usize = 5;

/// A model without layers that gives equal logits, or fails when it is told to.
struct Faulty {
    config: ModelConfig,
}

impl Model<CpuBackend> for Faulty {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embed(&self, step: &mut Step<'_, CpuBackend>) -> Result<()> {
        assert!(!step.batch.token_ids.contains(&PANICS), "asked to panic");
        if step.batch.token_ids.contains(&FAILS) {
            return Err(Error::Device { message: "asked to fail".into() });
        }
        Ok(())
    }

    fn layer(&self, _idx: usize, _step: &mut Step<'_, CpuBackend>) -> Result<()> {
        Ok(())
    }

    fn final_norm(&self, step: &mut Step<'_, CpuBackend>) -> Result<()> {
        step.ws.last_normed.set_rows(step.batch.logit_rows.len());
        let is_number = !step.batch.token_ids.contains(&NO_NUMBER);
        step.ws.last_normed.data_mut().fill(if is_number { 1.0 } else { f32::NAN });
        Ok(())
    }

    fn head(&self, step: &mut Step<'_, CpuBackend>) -> Result<()> {
        step.ws.logits.set_rows(step.batch.logit_rows.len());
        let is_number = !step.batch.token_ids.contains(&NO_NUMBER);
        step.ws.logits.data_mut().fill(if is_number { 0.0 } else { f32::NAN });
        Ok(())
    }
}

pub(super) fn tiny_config() -> ModelConfig {
    ModelConfig {
        architecture: "Faulty".into(),
        hidden_size: 2,
        intermediate_size: 2,
        experts: None,
        num_hidden_layers: 0,
        num_attention_heads: 1,
        num_key_value_heads: 1,
        head_dim: 2,
        vocab_size: VOCAB_SIZE,
        max_position_embeddings: 64,
        norm_eps: 1e-5,
        rope: RopeConfig { rope_theta: 1e4, rotary_dim: 2, scaling: RopeScaling::Default },
        local_rope: None,
        rope_layers: Vec::new(),
        interleaved_rope: false,
        qk_norm: None,
        norm_offset: 0.0,
        embedding_scale: 1.0,
        tie_word_embeddings: true,
        attention_bias: false,
        mlp_bias: false,
        hidden_act: Activation::Silu,
        attention_scale: 1.0,
        attn_logit_softcapping: None,
        logit_scale: 1.0,
        final_logit_softcapping: None,
        sliding_window: vec![None],
        bos_token_id: None,
        eos_token_ids: vec![],
    }
}

/// A letter a token.
pub(super) fn tokenizer(vocab_size: usize) -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    let letters = ('A'..='Z').chain('a'..='z').take(vocab_size).enumerate();
    let vocab: serde_json::Map<_, _> = letters.map(|(id, letter)| (letter.to_string(), id.into())).collect();
    let json = serde_json::json!({"version": "1.0", "model": {"type": "BPE", "vocab": vocab, "merges": []}});
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    Tokenizer::from_dir(dir.path()).unwrap()
}

const BLOCK_SIZE: usize = 8;
const NUM_BLOCKS: usize = 8;

/// What an engine works on, for a model without layers.
pub(super) fn compute<B: Backend>(
    backend: B,
    model: Box<dyn Model<B>>,
    limits: &StepLimits,
    num_blocks: usize,
) -> Compute<B> {
    let config = model.config().clone();
    let shape = KvCacheShape {
        dtype: backend.kv_dtype(KvCacheDtype::Auto).unwrap(),
        num_layers: 0,
        num_blocks,
        block_size: limits.block_size,
        num_kv_heads: 1,
        head_dim: 2,
    };
    Compute {
        ws: Workspace::new(&backend, &config, limits.max_tokens, limits.max_logits).unwrap(),
        kv: backend.kv_cache(shape, &[]).unwrap(),
        batch: backend.batch(&config, limits).unwrap(),
        answers: [(); 2].map(|()| backend.answers().unwrap()),
        backend,
        model,
        first_long_row: 0,
    }
}

fn small_compute<B: Backend>(backend: B, model: Box<dyn Model<B>>) -> Compute<B> {
    let limits = StepLimits {
        max_tokens: 16,
        max_seqs: 4,
        max_logits: 8,
        max_model_len: 64,
        block_size: BLOCK_SIZE,
        num_groups: 1,
        kv_dtype: KvDtype::Bf16,
    };
    compute(backend, model, &limits, NUM_BLOCKS)
}

fn start() -> (mpsc::Sender<Inbox>, Arc<EngineStatus>) {
    let model = Box::new(Faulty { config: tiny_config() });
    start_small(small_compute(CpuBackend::new(Some(1)), model), Box::new(|| unreachable!("a CPU is never lost")))
}

/// Makes what an engine works on anew.
pub(super) type Reload<B> = Box<dyn Fn() -> Result<Compute<B>> + Send>;

fn start_small<B: Backend>(compute: Compute<B>, reload: Reload<B>) -> (mpsc::Sender<Inbox>, Arc<EngineStatus>) {
    let scheduler_config =
        SchedulerConfig { max_num_batched_tokens: 16, max_num_seqs: 4, max_prompt_logits: 1, short_len: None };
    let cache_config = CacheConfig {
        num_blocks: NUM_BLOCKS,
        groups: LayerGroups::one(&[], BLOCK_SIZE).groups().to_vec(),
        has_prefix_cache: true,
    };
    let limits = Limits { eos_token_ids: vec![], max_model_len: 64 };
    start_with(compute, reload, limits, State::new(scheduler_config, cache_config))
}

/// Starts an engine on a thread of its own.
pub(super) fn start_with<B: Backend>(
    compute: Compute<B>,
    reload: Reload<B>,
    limits: Limits,
    state: State,
) -> (mpsc::Sender<Inbox>, Arc<EngineStatus>) {
    let (sender, inbox) = mpsc::channel();
    let status = Arc::new(EngineStatus::default());
    let tokenizer = Arc::new(tokenizer(compute.model.config().vocab_size));
    let models = Models { target: compute, draft: None };
    let reload = Box::new(move || Ok(Models { target: reload()?, draft: None }));
    let engine = Engine { models, reload, tokenizer, limits, status: Arc::clone(&status), inbox, state };
    std::thread::spawn(move || engine.run());
    (sender, status)
}

fn submit(inbox: &mpsc::Sender<Inbox>, status: &EngineStatus, prompt: &[u32]) -> TokenStream {
    let params = SamplingParams { max_tokens: Some(5), temperature: 0.0, ..Default::default() };
    submit_with(inbox, status, prompt, params)
}

/// Puts a request into an engine's inbox.
pub(super) fn submit_with(
    inbox: &mpsc::Sender<Inbox>,
    status: &EngineStatus,
    prompt: &[u32],
    params: SamplingParams,
) -> TokenStream {
    let (events, receiver) = unbounded_channel();
    let prompt = PromptInfo { token_ids: prompt.to_vec(), ..PromptInfo::default() };
    let stream = TokenStream::new(receiver, prompt, params.n);
    status.num_unfinished_requests.fetch_add(1, Ordering::SeqCst);
    let caller = Caller { events, gate: stream.gate() };
    let request = QueuedRequest { prompt: stream.prompt(), params, adapter: 0, grammar: None, caller };
    inbox.send(Inbox::Request(Box::new(request))).unwrap();
    stream
}

/// The same of a request for vectors.
fn submit_embeddings(
    inbox: &mpsc::Sender<Inbox>,
    status: &EngineStatus,
    inputs: &[&[u32]],
) -> oneshot::Receiver<Result<EmbeddingOutput>> {
    let (reply, receiver) = oneshot::channel();
    let inputs = inputs.iter().map(|input| input.to_vec()).collect();
    status.num_unfinished_requests.fetch_add(1, Ordering::SeqCst);
    let request = QueuedEmbeddings { inputs, adapter: 0, pooling: Pooling::PLAIN, len: 2, reply };
    inbox.send(Inbox::Embeddings(Box::new(request))).unwrap();
    receiver
}

fn check_failure(bad_token: u32, kind: ErrorKind, words: &str) {
    let (inbox, status) = start();
    let error = submit(&inbox, &status, &[0, bad_token]).blocking_collect().unwrap_err();
    assert_eq!(error.kind(), kind);
    assert!(error.to_string().contains(words), "{error}");
    let embeddings = |inputs: &[&[u32]]| submit_embeddings(&inbox, &status, inputs).blocking_recv().unwrap();
    let error = embeddings(&[&[0, 3], &[0, bad_token]]).unwrap_err();
    assert!(error.to_string().contains(words), "{error}");
    let vectors = embeddings(&[&[0, 3], &[3]]).unwrap().embeddings;
    assert_eq!(vectors, [[0.5f32.sqrt(); 2]; 2]);
    let output = submit(&inbox, &status, &[0, 3]).blocking_collect().unwrap();
    assert_eq!(output.outputs[0].token_ids, [0; 5]);
    inbox.send(Inbox::Stop).unwrap();
    while status.is_alive.load(Ordering::Relaxed) {
        std::thread::yield_now();
    }
    assert_eq!(status.num_unfinished_requests.load(Ordering::SeqCst), 0);
    assert_eq!(status.num_used_blocks.load(Ordering::Relaxed), 0);
}

#[test]
fn a_device_error_fails_its_requests_and_the_engine_goes_on() {
    check_failure(FAILS, ErrorKind::System, "asked to fail");
}

#[test]
fn a_panic_fails_its_requests_and_the_engine_goes_on() {
    check_failure(PANICS, ErrorKind::System, "asked to panic");
}

#[test]
fn logits_that_are_no_numbers_fail_their_request() {
    check_failure(NO_NUMBER, ErrorKind::Internal, "gave no number");
}

#[test]
fn an_engine_that_ends_ends_its_streams() {
    let (inbox, status) = start();
    let stream = submit(&inbox, &status, &[0]);
    drop(inbox);
    // Either it was answered before the engine ended, or it was aborted: it ends.
    let output = stream.blocking_collect().unwrap();
    assert!(output.outputs[0].finish.is_some());
    let (inbox, status) = start();
    let reply = submit_embeddings(&inbox, &status, &[&[0][..]; 100]);
    drop(inbox);
    let reply = reply.blocking_recv().unwrap();
    assert!(reply.is_ok() || reply.is_err_and(|error| error.kind() == ErrorKind::Unavailable));
}

/// A model without layers on a device that is lost in the model's first step, unless there is nothing to lose it by.
struct Losing {
    config: ModelConfig,
    is_lost: Option<Arc<AtomicBool>>,
}

impl Model<CudaBackend> for Losing {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embed(&self, _step: &mut Step<'_, CudaBackend>) -> Result<()> {
        let Some(is_lost) = &self.is_lost else { return Ok(()) };
        is_lost.store(true, Ordering::Relaxed);
        Err(Error::Device { message: "an illegal address".into() })
    }

    fn layer(&self, _idx: usize, _step: &mut Step<'_, CudaBackend>) -> Result<()> {
        Ok(())
    }

    fn final_norm(&self, _step: &mut Step<'_, CudaBackend>) -> Result<()> {
        Ok(())
    }

    fn head(&self, step: &mut Step<'_, CudaBackend>) -> Result<()> {
        step.backend.write(&mut step.ws.logits, &[0.0; 2 * VOCAB_SIZE])
    }
}

fn losing(is_losing: bool) -> Compute<CudaBackend> {
    let (device, Watch { is_lost, .. }) = HostDevice::watched(false);
    let model = Losing { config: tiny_config(), is_lost: is_losing.then_some(is_lost) };
    small_compute(CudaBackend::new(device, ElemType::Bf16), Box::new(model))
}

#[test]
fn a_lost_device_is_made_anew() {
    let num_reloads = Arc::<AtomicUsize>::default();
    let counter = Arc::clone(&num_reloads);
    let reload = move || {
        counter.fetch_add(1, Ordering::SeqCst);
        Ok(losing(false))
    };
    let (inbox, status) = start_small(losing(true), Box::new(reload));
    let error = submit(&inbox, &status, &[0, 3]).blocking_collect().unwrap_err();
    assert!(error.to_string().contains("an illegal address"), "{error}");
    let output = submit(&inbox, &status, &[0, 3]).blocking_collect().unwrap();
    assert_eq!((output.outputs[0].token_ids.as_slice(), num_reloads.load(Ordering::SeqCst)), (&[0; 5][..], 1));
}

#[test]
fn an_engine_without_a_device_ends() {
    let gone = || Err(Error::Device { message: "there is no GPU any more".into() });
    let (inbox, status) = start_small(losing(true), Box::new(gone));
    submit(&inbox, &status, &[0, 3]).blocking_collect().unwrap_err();
    while status.is_alive.load(Ordering::Relaxed) {
        std::thread::yield_now();
    }
    assert_eq!(status.num_unfinished_requests.load(Ordering::SeqCst), 0);
}
