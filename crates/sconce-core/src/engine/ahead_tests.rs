//! A step that is launched before the one before it has been read changes nothing in any request.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::core::{CacheConfig, State};
use super::output::{CompletionOutput, FinishReason, StopReason, StreamEvent, TokenEvent, Usage};
use super::running::Limits;
use super::tests::{Reload, compute, start_with, submit_with, tiny_config};
use super::{EngineStatus, Inbox, TokenLogprobs, TokenStream};
use crate::backend::cpu::CpuBackend;
use crate::backend::cuda::CudaBackend;
use crate::backend::cuda::device::ElemType;
use crate::backend::cuda::host::{HostDevice, Watch};
use crate::backend::{Backend, KvDtype, StepLimits};
use crate::config::{BeamParams, LogprobsMode, ModelConfig, SamplingParams, WeightDtype};
use crate::error::{Error, Result};
use crate::kv::LayerGroups;
use crate::models::{Model, Step};
use crate::ops::testing::{random, round};
use crate::sched::SchedulerConfig;
use crate::weights::{Dtype, TensorView};

const VOCAB_SIZE: usize = 40;
const EOS: u32 = 39;
const BLOCK_SIZE: usize = 4;
const MAX_MODEL_LEN: usize = 500;
/// The longest sequence of the many requests.
const LONGEST: usize = 64;

/// A model whose logits are rows of its embedding table, so that a CPU and a device have the same, bit for bit.
struct Bigrams<B: Backend> {
    config: ModelConfig,
    table: B::Matrix,
    fault: Fault,
    num_passes: AtomicUsize,
}

/// In which pass the model fails, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Never,
    Error(usize),
    Panic(usize),
}

impl<B: Backend> Bigrams<B> {
    fn new(backend: &B, fault: Fault) -> Self {
        let config = ModelConfig { hidden_size: VOCAB_SIZE, vocab_size: VOCAB_SIZE, ..tiny_config() };
        let logits: Vec<f32> = random(VOCAB_SIZE * VOCAB_SIZE, 5).iter().map(|x| x * 3.0).collect();
        let data = bytemuck::cast_slice(&round(&logits, ElemType::Bf16)).to_vec();
        let view = TensorView::new(Dtype::F32, vec![VOCAB_SIZE; 2], data);
        let table = backend.matrix(vec![view], None, WeightDtype::Bf16).unwrap();
        Self { config, table, fault, num_passes: AtomicUsize::new(0) }
    }
}

impl<B: Backend> Model<B> for Bigrams<B> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embed(&self, step: &mut Step<'_, B>) -> Result<()> {
        let pass = self.num_passes.fetch_add(1, Ordering::Relaxed) + 1;
        assert_ne!(self.fault, Fault::Panic(pass), "asked to panic");
        if self.fault == Fault::Error(pass) {
            return Err(Error::Device { message: "asked to fail".into() });
        }
        step.backend.embed(&mut step.ws.residual, &self.table, step.batch, 1.0)
    }

    fn layer(&self, _idx: usize, _step: &mut Step<'_, B>) -> Result<()> {
        Ok(())
    }

    fn final_norm(&self, _step: &mut Step<'_, B>) -> Result<()> {
        Ok(())
    }

    fn head(&self, step: &mut Step<'_, B>) -> Result<()> {
        step.backend.gather_rows(&mut step.ws.logits, &step.ws.residual, step.batch)
    }
}

/// What an engine has of everything.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    num_blocks: usize,
    max_num_seqs: usize,
    max_num_batched_tokens: usize,
}

const LARGE: Sizes = Sizes { num_blocks: 2000, max_num_seqs: 64, max_num_batched_tokens: 512 };
/// Prompts come in chunks, and the pool holds one of the longest sequences and a little more.
const SMALL: Sizes = Sizes { num_blocks: LONGEST / BLOCK_SIZE + 8, max_num_seqs: 9, max_num_batched_tokens: 17 };

/// An engine that runs.
struct Running {
    inbox: mpsc::Sender<Inbox>,
    status: Arc<EngineStatus>,
}

impl Running {
    fn start<B: Backend>(backend: B, sizes: Sizes) -> Self {
        Self::start_faulty(backend, sizes, Fault::Never, Box::new(|| unreachable!("this device is not lost")))
    }

    fn start_faulty<B: Backend>(backend: B, sizes: Sizes, fault: Fault, reload: Reload<B>) -> Self {
        let scheduler_config = SchedulerConfig {
            max_num_batched_tokens: sizes.max_num_batched_tokens,
            max_num_seqs: sizes.max_num_seqs,
            max_prompt_logits: 3,
            short_len: None,
        };
        let Sizes { num_blocks, .. } = sizes;
        let cache_config = CacheConfig {
            num_blocks,
            groups: LayerGroups::one(&[], BLOCK_SIZE).groups().to_vec(),
            has_prefix_cache: true,
        };
        let max_model_len = MAX_MODEL_LEN.min(num_blocks * BLOCK_SIZE);
        let limits = Limits { eos_token_ids: vec![EOS], max_model_len };
        let state = State::new(scheduler_config, cache_config);
        let (inbox, status) = start_with(computing(backend, sizes, fault), reload, limits, state);
        Self { inbox, status }
    }

    fn submit(&self, prompt: &[u32], params: &SamplingParams) -> TokenStream {
        submit_with(&self.inbox, &self.status, prompt, params.clone())
    }

    /// All at once.
    fn run(&self, requests: &[(Vec<u32>, SamplingParams)]) -> Vec<Answer> {
        let streams: Vec<_> = requests.iter().map(|(prompt, params)| self.submit(prompt, params)).collect();
        let answers = streams.into_iter().map(|stream| Answer::of(stream).unwrap()).collect();
        self.wait_until_idle();
        answers
    }

    fn wait_until_idle(&self) {
        let (status, start) = (&self.status, Instant::now());
        while EngineStatus::get(&status.num_unfinished_requests) > 0 || EngineStatus::get(&status.num_used_blocks) > 0 {
            assert!(start.elapsed() < Duration::from_secs(60), "blocks or requests are left: {status:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn computing<B: Backend>(backend: B, sizes: Sizes, fault: Fault) -> super::compute::Compute<B> {
    let limits = StepLimits {
        max_tokens: sizes.max_num_batched_tokens,
        max_seqs: sizes.max_num_seqs,
        max_logits: sizes.max_num_seqs + 3,
        max_model_len: MAX_MODEL_LEN,
        block_size: BLOCK_SIZE,
        num_groups: 1,
        kv_dtype: KvDtype::Bf16,
    };
    let model = Box::new(Bigrams::new(&backend, fault));
    compute(backend, model, &limits, sizes.num_blocks)
}

/// A device by way of the shim.
fn device(is_late: bool) -> (CudaBackend, Watch) {
    let (device, watch) = HostDevice::watched(is_late);
    (CudaBackend::new(device, ElemType::Bf16), watch)
}

/// All that a caller is told, but for snapshots, which come as he takes them.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    prompt_logprobs: Vec<Option<TokenLogprobs>>,
    /// By sequence.
    tokens: BTreeMap<usize, Vec<TokenEvent>>,
    best: Vec<CompletionOutput>,
    usage: Usage,
}

impl Answer {
    fn of(mut stream: TokenStream) -> Result<Self> {
        stream.skip_snapshots();
        let mut answer = Self::default();
        while let Some(event) = stream.blocking_next() {
            match event? {
                StreamEvent::PromptLogprobs(logprobs) => answer.prompt_logprobs = logprobs,
                StreamEvent::Token(event) => answer.tokens.entry(event.index).or_default().push(event),
                StreamEvent::Best(outputs) => answer.best = outputs,
                StreamEvent::Done(usage) => answer.usage = Usage { cached_tokens: 0, ..usage },
            }
        }
        Ok(answer)
    }

    /// How its sequences have ended.
    fn ends(&self) -> impl Iterator<Item = (FinishReason, Option<StopReason>)> {
        let finishes = self.tokens.values().filter_map(|events| events.last()?.finish.as_ref());
        finishes.map(|finish| (finish.reason, finish.stop_reason.clone()))
    }
}

fn prompt(len: usize, seed: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 31 + seed * 17) % VOCAB_SIZE) as u32).collect()
}

fn endless(seed: usize) -> SamplingParams {
    SamplingParams { ignore_eos: true, seed: Some(seed as u64), ..Default::default() }
}

/// Requests of every kind. `are_read_first`: some of them have to be read before they go on.
fn requests(are_read_first: bool) -> Vec<(Vec<u32>, SamplingParams)> {
    let request = |i: usize| {
        let prompt = prompt(1 + i * 7 % 40, i);
        let is_every = |n: usize, of: usize| i % n == of;
        let n = if is_every(5, 4) { 3 } else { 1 };
        let mut params = SamplingParams {
            max_tokens: Some(if is_every(7, 3) { LONGEST - prompt.len() } else { 1 + 5 * i % 37 }),
            temperature: if is_every(3, 0) { 0.0 } else { 0.6 + 0.1 * (i % 5) as f32 },
            seed: Some(i as u64),
            n,
            best_of: is_every(11, 7).then_some(n + 2),
            top_k: is_every(4, 0).then_some(9),
            top_p: if is_every(5, 1) { 0.8 } else { 1.0 },
            min_p: if is_every(7, 2) { 0.05 } else { 0.0 },
            min_tokens: if is_every(6, 1) { 4 } else { 0 },
            stop: if is_every(4, 1) { vec!["B".into(), "aF".into()] } else { vec![] },
            stop_token_ids: if is_every(4, 2) { vec![3, 11] } else { vec![] },
            ignore_eos: is_every(8, 7),
            logprobs: is_every(3, 1).then_some(i % 4),
            logprobs_mode: if is_every(2, 0) { LogprobsMode::Raw } else { LogprobsMode::Processed },
            prompt_logprobs: is_every(9, 5).then_some(2),
            logit_bias: if is_every(10, 8) { vec![(5, 2.0), (EOS, 1.5)] } else { vec![] },
            ..Default::default()
        };
        if are_read_first {
            params.repetition_penalty = if is_every(13, 5) { 1.4 } else { 1.0 };
            params.presence_penalty = if is_every(13, 2) { 0.7 } else { 0.0 };
            if is_every(12, 9) {
                (params.n, params.best_of, params.temperature) = (3, None, 0.0);
                params.beam = Some(BeamParams::new(3));
            }
        }
        (prompt, params)
    };
    (0..24).map(request).collect()
}

#[test]
fn answers_are_those_of_the_cpu_and_of_steps_that_are_read_first() {
    for are_read_first in [false, true] {
        let requests = requests(are_read_first);
        let expected = Running::start(CpuBackend::new(Some(1)), LARGE).run(&requests);
        let ends: Vec<_> = expected.iter().flat_map(Answer::ends).collect();
        for end in [
            (FinishReason::Length, None),
            (FinishReason::Stop, None),
            (FinishReason::Stop, Some(StopReason::Text("B".into()))),
            (FinishReason::Stop, Some(StopReason::Token(3))),
        ] {
            assert!(ends.contains(&end), "no sequence ends with {end:?}");
        }
        let orders = [(SMALL, true, true), (LARGE, false, true), (SMALL, false, false)];
        for (sizes, is_late, runs_ahead) in orders.into_iter().take(if are_read_first { 1 } else { 3 }) {
            let (backend, watch) = device(is_late);
            let backend = if runs_ahead { backend } else { backend.without_running_ahead() };
            let engine = Running::start(backend, sizes);
            for (i, (found, expected)) in engine.run(&requests).iter().zip(&expected).enumerate() {
                assert_eq!(found, expected, "request {i} of {sizes:?}, late {is_late}, ahead {runs_ahead}");
            }
            let [num_ahead, num_preempted, num_early_waits] =
                [&engine.status.num_steps_ahead, &engine.status.num_preemptions, &watch.num_early_waits]
                    .map(EngineStatus::get);
            assert_eq!(num_ahead > 0, runs_ahead, "{num_ahead} steps ahead");
            assert_eq!(num_early_waits > 0, is_late && runs_ahead, "{num_early_waits} early waits");
            assert_eq!(num_preempted > 0, sizes.num_blocks == SMALL.num_blocks, "{num_preempted} preempted");
            assert!(are_read_first || !runs_ahead || num_ahead > 20, "{num_ahead} steps ahead");
        }
    }
}

#[test]
fn each_step_but_the_last_is_read_while_the_next_is_under_way() {
    for (runs_ahead, expected) in [(true, 19), (false, 0)] {
        let (backend, watch) = device(true);
        let backend = if runs_ahead { backend } else { backend.without_running_ahead() };
        let engine = Running::start(backend, LARGE);
        let params = SamplingParams { max_tokens: Some(20), ..endless(3) };
        let answer = Answer::of(engine.submit(&prompt(9, 1), &params)).unwrap();
        assert_eq!(answer.tokens[&0].len(), 20);
        assert_eq!([&engine.status.num_steps, &engine.status.num_steps_ahead].map(EngineStatus::get), [20, expected]);
        assert_eq!(EngineStatus::get(&watch.num_early_waits), expected);
    }
}

#[test]
fn callers_that_go_while_a_step_is_under_way_leave_nothing_behind() {
    let (backend, _) = device(true);
    let engine = Running::start(backend, LARGE);
    let kept = |i: usize| (prompt(20, i), SamplingParams { max_tokens: Some(40), n: 1 + i % 2, ..endless(i) });
    let kept: Vec<_> = (0..6).map(kept).collect();
    let expected = Running::start(CpuBackend::new(Some(1)), LARGE).run(&kept);
    let streams: Vec<_> = kept.iter().map(|(prompt, params)| engine.submit(prompt, params)).collect();
    let going = |i: usize| engine.submit(&prompt(11, i), &SamplingParams { n: 1 + i % 2, ..endless(i) });
    let mut going: Vec<_> = (6..12).map(going).collect();
    going.iter_mut().for_each(|stream| assert!(matches!(stream.blocking_next(), Some(Ok(StreamEvent::Token(_))))));
    drop(going);
    let answers: Vec<_> = streams.into_iter().map(|stream| Answer::of(stream).unwrap()).collect();
    assert_eq!(answers, expected);
    engine.wait_until_idle();
    assert_eq!(EngineStatus::get(&engine.status.num_cancelled_requests), 6);
    // Nobody is left while a step is under way.
    let mut last = engine.submit(&prompt(3, 2), &endless(1));
    assert!(matches!(last.blocking_next(), Some(Ok(_))));
    drop(last);
    engine.wait_until_idle();
    assert_eq!(engine.run(&kept), expected);
}

#[test]
fn a_device_that_is_lost_under_a_step_is_made_anew() {
    let (backend, watch) = device(true);
    let num_reloads = Arc::<AtomicUsize>::default();
    let counter = Arc::clone(&num_reloads);
    let reload = move || {
        counter.fetch_add(1, Ordering::SeqCst);
        Ok(computing(device(true).0, LARGE, Fault::Never))
    };
    let engine = Running::start_faulty(backend, LARGE, Fault::Never, Box::new(reload));
    let mut streams: Vec<_> = (0..3).map(|i| engine.submit(&prompt(5, i), &endless(i))).collect();
    streams.iter_mut().for_each(|stream| assert!(matches!(stream.blocking_next(), Some(Ok(_)))));
    watch.is_lost.store(true, Ordering::Relaxed);
    for stream in streams {
        let error = Answer::of(stream).unwrap_err().to_string();
        assert!(error.contains("the device is lost"), "{error}");
    }
    let request = [(prompt(5, 1), SamplingParams { max_tokens: Some(30), ..endless(8) })];
    let expected = Running::start(CpuBackend::new(Some(1)), LARGE).run(&request);
    assert_eq!((engine.run(&request), num_reloads.load(Ordering::SeqCst)), (expected, 1));
}

/// A step that cannot be launched takes no answer of the step before it along.
#[test]
fn a_launch_that_fails_fails_after_what_was_under_way() {
    for (fault, words) in [(Fault::Error(5), "asked to fail"), (Fault::Panic(5), "asked to panic")] {
        for runs_ahead in [true, false] {
            let (backend, _) = device(true);
            // Graphs would repeat a pass without the model.
            let backend = backend.without_graphs();
            let backend = if runs_ahead { backend } else { backend.without_running_ahead() };
            let engine =
                Running::start_faulty(backend, LARGE, fault, Box::new(|| unreachable!("this device is not lost")));
            let mut stream = engine.submit(&prompt(5, 1), &endless(1));
            let mut num_tokens = 0;
            let error = loop {
                match stream.blocking_next() {
                    Some(Ok(_)) => num_tokens += 1,
                    Some(Err(error)) => break error.to_string(),
                    None => panic!("the stream has ended without an error"),
                }
            };
            assert!(error.contains(words), "{error}");
            // A panic is no error that could wait.
            let is_lost = runs_ahead && fault == Fault::Panic(5);
            assert_eq!(num_tokens, if is_lost { 3 } else { 4 }, "{fault:?}, ahead {runs_ahead}");
            let request = [(prompt(5, 1), SamplingParams { max_tokens: Some(30), ..endless(8) })];
            let expected = Running::start(CpuBackend::new(Some(1)), LARGE).run(&request);
            assert_eq!(engine.run(&request), expected);
        }
    }
}

#[test]
fn an_engine_that_is_stopped_with_a_step_under_way_ends_its_streams() {
    let (backend, _) = device(true);
    let engine = Running::start(backend, LARGE);
    let mut stream = engine.submit(&prompt(5, 1), &endless(1));
    assert!(matches!(stream.blocking_next(), Some(Ok(_))));
    engine.inbox.send(Inbox::Stop).unwrap();
    let answer = Answer::of(stream).unwrap();
    assert_eq!(answer.ends().collect::<Vec<_>>(), [(FinishReason::Abort, None)]);
    while engine.status.is_alive.load(Ordering::Relaxed) {
        std::thread::yield_now();
    }
    engine.wait_until_idle();
}
