//! The engine on a GPU's kernels: what runs beside a request changes nothing in it.

#[path = "../../tests/common/mod.rs"]
mod common;

use common::{prompt, write_tiny_model};

use super::compute::step_tokens;
use super::files::ModelFiles;
use super::load::Launch;
use super::{EngineHandle, EngineStatus, GenerationOutput, GenerationRequest, NoProgress};
use crate::backend::cpu::CpuBackend;
use crate::backend::cuda::CudaBackend;
use crate::backend::cuda::device::ElemType;
use crate::config::{BeamParams, EngineConfig, LoadFormat, SamplingParams, WeightDtype};
use crate::ops::testing::devices;

/// Bytes of one KV block of the tiny model: 16 tokens, 2 layers, 2 heads of 16, keys and values in bf16.
const BLOCK_BYTES: usize = 16 * 2 * 2 * 16 * 2 * 2;

fn engine(change: impl Fn(&mut EngineConfig)) -> EngineHandle {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path());
    let mut config = EngineConfig {
        load_format: LoadFormat::Dummy,
        kv_cache_bytes: Some(256 * BLOCK_BYTES),
        max_num_seqs: 24,
        ..Default::default()
    };
    change(&mut config);
    let files = ModelFiles::open(dir.path(), config.load_format).unwrap();
    let launch =
        Launch { id: "tiny", path: dir.path(), config: &config, progress: &NoProgress, gpu: Some(0), profile: None };
    let open = || Ok(CudaBackend::new(devices().remove(0), ElemType::Bf16));
    launch.start(files, open().unwrap(), WeightDtype::Bf16, Box::new(open)).unwrap()
}

#[test]
fn a_step_has_the_tokens_that_suit_the_device() {
    let tokens = |asked, max_num_seqs| {
        let config = EngineConfig { max_num_batched_tokens: asked, max_num_seqs, ..Default::default() };
        let gpu = CudaBackend::new(devices().remove(0), ElemType::Bf16);
        (step_tokens(&CpuBackend::new(Some(1)), &config), step_tokens(&gpu, &config))
    };
    assert_eq!(tokens(None, 128), (512, 2048));
    assert_eq!(tokens(None, 1000), (1000, 2048));
    assert_eq!(tokens(Some(300), 128), (300, 300));
}

/// Requests of every kind: greedy, drawn, filtered, several sequences of one prompt, logprobs, beams.
fn requests() -> Vec<GenerationRequest> {
    let request = |i: usize| {
        let params = SamplingParams {
            max_tokens: Some(10 + 5 * i),
            temperature: if i.is_multiple_of(2) { 0.0 } else { 0.8 },
            seed: Some(i as u64),
            n: 1 + i % 3,
            top_p: if i == 3 { 0.8 } else { 1.0 },
            repetition_penalty: if i == 1 { 1.3 } else { 1.0 },
            logprobs: (i % 3 == 2).then_some(3),
            prompt_logprobs: (i == 5).then_some(2),
            ignore_eos: true,
            ..Default::default()
        };
        // Longer than a block, so that sequences share some and write to others.
        GenerationRequest::tokens(prompt(1 + 9 * i, i)).with_params(params)
    };
    let beam = BeamParams::new(3);
    let params =
        SamplingParams { max_tokens: Some(20), temperature: 0.0, n: 3, beam: Some(beam), ..Default::default() };
    (0..6).map(request).chain([GenerationRequest::tokens(prompt(37, 9)).with_params(params)]).collect()
}

fn run_together(engine: &EngineHandle) -> Vec<GenerationOutput> {
    let streams: Vec<_> = requests().into_iter().map(|request| engine.submit(request).unwrap()).collect();
    streams.into_iter().map(|stream| answer(stream.blocking_collect().unwrap())).collect()
}

/// But for what was in the cache before.
fn answer(mut output: GenerationOutput) -> GenerationOutput {
    output.usage.cached_tokens = 0;
    output
}

#[test]
fn device_steps_give_each_request_what_it_gets_alone() {
    let lone = engine(|_| {});
    let alone: Vec<_> = requests()
        .into_iter()
        .map(|request| answer(lone.submit(request).unwrap().blocking_collect().unwrap()))
        .collect();
    assert_eq!(alone.iter().map(|output| output.outputs.len()).sum::<usize>(), 2 * (1 + 2 + 3) + 3);
    assert_eq!(run_together(&engine(|_| {})), alone);
    // Prompts in chunks beside decodes.
    assert_eq!(run_together(&engine(|config| config.max_num_batched_tokens = Some(24))), alone);
    // A pool that does not hold all of them.
    let small = engine(|config| config.kv_cache_bytes = Some(16 * BLOCK_BYTES));
    assert_eq!(run_together(&small), alone);
    assert!(EngineStatus::get(&small.status().num_preemptions) > 0, "the pool was meant to be too small");
}
