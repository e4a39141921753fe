//! The engine on a GPU's kernels: what runs beside a request changes nothing in it.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::path::Path;

use common::{ROPE_FACTORS, prompt, write_adapter, write_long_rope_model, write_tiny_model};

use super::compute::{num_seqs, step_tokens};
use super::load::Launch;
use super::models::Part;
use super::{EmbeddingRequest, EngineHandle, EngineStatus, GenerationOutput, GenerationRequest, NoProgress, Prompt};
use crate::backend::cpu::CpuBackend;
use crate::backend::cuda::CudaBackend;
use crate::backend::cuda::device::ElemType;
use crate::backend::cuda::host::HostDevice;
use crate::config::{BeamParams, EngineConfig, KvCacheDtype, LoadFormat, SamplingParams, WeightDtype};
use crate::ops::testing::devices;

/// Bytes of one KV block of the tiny model: 16 tokens, 2 layers, 2 heads of 16, keys and values in bf16.
const BLOCK_BYTES: usize = 16 * 2 * 2 * 16 * 2 * 2;

/// The same with keys and values of 8 bits: 16 numbers and a scale of 16 bits.
const INT8_BLOCK_BYTES: usize = 16 * 2 * 2 * (16 + 2) * 2;

/// How steps follow one another.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Order {
    /// Each is read before the next is launched.
    ReadFirst,
    /// The next is launched before, where it can be.
    Ahead,
    /// The same on a device that does nothing before it is waited for.
    AheadLate,
}

/// Where tests run on a GPU there is no device that is late.
fn orders_ahead() -> impl Iterator<Item = Order> {
    let is_host = devices()[0].name() == HostDevice::NAME;
    [Order::Ahead, Order::AheadLate].into_iter().take(if is_host { 2 } else { 1 })
}

fn engine(order: Order, change: impl Fn(&mut EngineConfig)) -> EngineHandle {
    start(order, false, change)
}

/// With a draft model it is the model itself.
fn start(order: Order, has_draft_model: bool, change: impl Fn(&mut EngineConfig)) -> EngineHandle {
    start_with(&|dir| write_tiny_model(dir), order, has_draft_model, change)
}

/// The same of the model that `write` writes.
fn start_with(
    write: &dyn Fn(&Path),
    order: Order,
    has_draft_model: bool,
    change: impl Fn(&mut EngineConfig),
) -> EngineHandle {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let mut config = EngineConfig {
        load_format: LoadFormat::Dummy,
        kv_cache_bytes: Some(256 * BLOCK_BYTES),
        max_num_seqs: Some(24),
        ..Default::default()
    };
    change(&mut config);
    let launch = Launch { progress: &NoProgress, gpu: Some(0), profile: None };
    let open = move || {
        let device = if order == Order::AheadLate { HostDevice::watched(true).0 } else { devices().remove(0) };
        let backend = CudaBackend::new(device, ElemType::Bf16);
        Ok(if order == Order::ReadFirst { backend.without_running_ahead() } else { backend })
    };
    let part = || {
        let part = Part::new(("tiny", dir.path()), &config, WeightDtype::Bf16, open);
        let opened = part.open().unwrap();
        (part, opened)
    };
    launch.start(part(), has_draft_model.then(part)).unwrap()
}

#[test]
fn a_step_has_the_tokens_and_sequences_that_suit_the_device() {
    let sizes = |max_num_batched_tokens, max_num_seqs| {
        let config = EngineConfig { max_num_batched_tokens, max_num_seqs, ..Default::default() };
        let (cpu, gpu) = (CpuBackend::new(Some(1)), CudaBackend::new(devices().remove(0), ElemType::Bf16));
        [[step_tokens(&cpu, &config), num_seqs(&cpu, &config)], [step_tokens(&gpu, &config), num_seqs(&gpu, &config)]]
    };
    assert_eq!(sizes(None, None), [[512, 128], [2048, 256]]);
    assert_eq!(sizes(None, Some(1000)), [[1000, 1000], [2048, 1000]]);
    assert_eq!(sizes(Some(300), Some(130)), [[300, 130], [300, 130]]);
    assert_eq!(sizes(Some(200), None), [[200, 128], [200, 200]]);
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

fn run_together(engine: &EngineHandle, requests: &[GenerationRequest]) -> Vec<GenerationOutput> {
    let streams: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    streams.into_iter().map(|stream| answer(stream.blocking_collect().unwrap())).collect()
}

/// But for what was in the cache before.
fn answer(mut output: GenerationOutput) -> GenerationOutput {
    output.usage.cached_tokens = 0;
    output
}

#[test]
fn device_steps_give_each_request_what_it_gets_alone() {
    let requests = requests();
    let lone = engine(Order::ReadFirst, |_| {});
    let alone: Vec<_> =
        requests.iter().flat_map(|request| run_together(&lone, std::slice::from_ref(request))).collect();
    assert_eq!(alone.iter().map(|output| output.outputs.len()).sum::<usize>(), 2 * (1 + 2 + 3) + 3);
    assert_eq!(EngineStatus::get(&lone.status().num_steps_ahead), 0);
    let check = |order: Order, change: &dyn Fn(&mut EngineConfig)| {
        let engine = engine(order, change);
        assert_eq!(run_together(&engine, &requests), alone, "{order:?}");
        assert_eq!(EngineStatus::get(&engine.status().num_steps_ahead) > 0, order != Order::ReadFirst);
        EngineStatus::get(&engine.status().num_preemptions)
    };
    check(Order::ReadFirst, &|_| {});
    check(Order::Ahead, &|_| {});
    // Prompts in chunks beside decodes.
    check(Order::Ahead, &|config| config.max_num_batched_tokens = Some(24));
    // A pool that does not hold all of them.
    for order in orders_ahead() {
        let num_preempted = check(order, &|config| config.kv_cache_bytes = Some(16 * BLOCK_BYTES));
        assert!(num_preempted > 0, "the pool was meant to be too small");
    }
}

/// Requests through two adapters and none, which begin alike and share steps and a small pool.
#[test]
fn adapters_give_each_request_what_it_gets_alone() {
    let dir = tempfile::tempdir().unwrap();
    let adapters: Vec<_> =
        ["one", "two"].into_iter().zip(1..).map(|(name, seed)| write_adapter(dir.path(), name, seed)).collect();
    // Which adapter it is changes from each request to the next.
    let through = |request: GenerationRequest| {
        [None, Some("one"), Some("two")]
            .map(|name| GenerationRequest { adapter: name.map(str::to_owned), ..request.clone() })
    };
    let all: Vec<_> = requests().into_iter().skip(2).step_by(2).flat_map(through).collect();
    let plain = engine(Order::ReadFirst, |_| {});
    let lone = engine(Order::ReadFirst, |config| config.adapters.clone_from(&adapters));
    let alone: Vec<_> = all.iter().flat_map(|request| run_together(&lone, std::slice::from_ref(request))).collect();
    for (of_prompt, requests) in alone.chunks(3).zip(all.chunks(3)) {
        assert_eq!(run_together(&plain, &requests[..1]), of_prompt[..1], "the model as it is");
        let tokens = [0, 1, 2].map(|i| &of_prompt[i].outputs[0].token_ids);
        assert!(tokens[0] != tokens[1] && tokens[1] != tokens[2] && tokens[0] != tokens[2], "{tokens:?}");
    }
    for order in orders_ahead() {
        let small = engine(order, |config| {
            config.adapters.clone_from(&adapters);
            (config.kv_cache_bytes, config.num_speculative_tokens) = (Some(16 * BLOCK_BYTES), 3);
        });
        assert_eq!(run_together(&small, &all), alone, "{order:?}");
        assert!(EngineStatus::get(&small.status().num_preemptions) > 0, "the pool was meant to be too small");
    }
}

/// Texts beside requests that generate, which are launched ahead where nothing waits for a text: also such whose last token is all that
/// is computed of them, as it is of a decode, which is repeated from what was written down.
#[test]
fn embeddings_are_what_they_are_alone() {
    let inputs: Vec<_> = [1, 2, 16, 17, 40, 70, 1].into_iter().enumerate().map(|(i, len)| prompt(len, i)).collect();
    let embed = |engine: &EngineHandle, inputs: &[Vec<u32>]| {
        let inputs = inputs.iter().cloned().map(Prompt::Tokens).collect();
        engine.embed(EmbeddingRequest::new(inputs)).unwrap()
    };
    let lone = engine(Order::ReadFirst, |config| config.prefix_cache = false);
    let alone = inputs
        .iter()
        .flat_map(|input| embed(&lone, std::slice::from_ref(input)).blocking_collect().unwrap().embeddings);
    let alone: Vec<_> = alone.collect();
    let generating: Vec<_> = requests().into_iter().skip(2).step_by(2).collect();
    let expected: Vec<_> =
        generating.iter().flat_map(|request| run_together(&lone, std::slice::from_ref(request))).collect();
    for order in std::iter::once(Order::ReadFirst).chain(orders_ahead()) {
        let engine = engine(order, |config| {
            (config.max_num_batched_tokens, config.kv_cache_bytes) = (Some(24), Some(16 * BLOCK_BYTES));
        });
        // By itself first, and of what is found the last tokens alone.
        for _ in 0..2 {
            let ones = [inputs[0].clone(), inputs[6].clone(), inputs[3].clone()];
            let found = embed(&engine, &ones).blocking_collect().unwrap().embeddings;
            assert!(found == [&alone[0], &alone[6], &alone[3]].map(Vec::clone), "{order:?}");
        }
        let pending: Vec<_> = (0..2).map(|_| embed(&engine, &inputs)).collect();
        assert_eq!(run_together(&engine, &generating), expected, "{order:?}");
        for pending in pending {
            assert!(pending.blocking_collect().unwrap().embeddings == alone, "{order:?}");
        }
        assert_eq!(EngineStatus::get(&engine.status().num_steps_ahead) > 0, order != Order::ReadFirst);
    }
}

/// Sequences of more than 40 tokens turn otherwise than shorter ones: they are computed anew when they have so many.
#[test]
fn sequences_that_become_long_get_what_they_get_alone() {
    // They begin with 28 and 37 tokens, alone, two of one prompt, and as beams.
    let requests: Vec<_> = [3, 4, 6].map(|i| requests().swap_remove(i)).into();
    let new = |order, num_blocks: usize| {
        let write = |dir: &Path| write_long_rope_model(dir, 40, ROPE_FACTORS);
        start_with(&write, order, false, |config| config.kv_cache_bytes = Some(num_blocks * BLOCK_BYTES))
    };
    let lone = new(Order::ReadFirst, 256);
    let alone: Vec<_> =
        requests.iter().flat_map(|request| run_together(&lone, std::slice::from_ref(request))).collect();
    let ahead = new(orders_ahead().last().unwrap(), 16);
    assert_eq!(run_together(&ahead, &requests), alone);
    assert!(EngineStatus::get(&ahead.status().num_steps_ahead) > 0);
}

/// Pages with their scales are shared, copied, given up and found again as others are.
#[test]
fn int8_keys_and_values_give_each_request_what_it_gets_alone() {
    let requests = requests();
    let new = |order, num_blocks| {
        engine(order, |config| {
            config.kv_cache_dtype = KvCacheDtype::Int8;
            config.kv_cache_bytes = Some(num_blocks * INT8_BLOCK_BYTES);
        })
    };
    let lone = new(Order::ReadFirst, 256);
    let alone: Vec<_> =
        requests.iter().flat_map(|request| run_together(&lone, std::slice::from_ref(request))).collect();
    let small = new(Order::Ahead, 16);
    assert_eq!(small.info().num_kv_blocks, 16);
    assert_eq!(run_together(&small, &requests), alone);
    assert!(EngineStatus::get(&small.status().num_preemptions) > 0, "the pool was meant to be too small");
}

/// A step that has drafts and takes up so many others that the next would be launched before it is read, or would have more rows than
/// drafts leave room for.
#[test]
fn drafts_beside_requests_that_arrive_change_no_answer() {
    let params = |max_tokens| SamplingParams {
        max_tokens: Some(max_tokens),
        temperature: 0.0,
        ignore_eos: true,
        ..Default::default()
    };
    let looping = GenerationRequest::tokens([prompt(20, 1), prompt(20, 1)].concat()).with_params(params(60));
    let others: Vec<_> = (0..15).map(|i| GenerationRequest::tokens(prompt(9 + i, i)).with_params(params(3))).collect();
    let mut logprobs = GenerationRequest::tokens(prompt(60, 3)).with_params(params(3));
    logprobs.params.prompt_logprobs = Some(1);
    let lone = engine(Order::ReadFirst, |_| {});
    let all: Vec<_> = [&looping, &logprobs].into_iter().chain(&others).cloned().collect();
    let alone: Vec<_> = all.iter().flat_map(|request| run_together(&lone, std::slice::from_ref(request))).collect();
    for max_num_seqs in [2, 24] {
        let engine = engine(Order::Ahead, |config| {
            (config.num_speculative_tokens, config.max_num_seqs) = (15, Some(max_num_seqs));
        });
        let mut stream = engine.submit(looping.clone()).unwrap();
        while EngineStatus::get(&engine.status().num_accepted_tokens) == 0 {
            assert!(stream.blocking_next().is_some(), "nothing was drafted before its end");
        }
        assert_eq!(run_together(&engine, &all), alone, "{max_num_seqs} at once");
        assert!(EngineStatus::get(&engine.status().num_steps_ahead) > 0 || max_num_seqs == 2);
    }
}

/// Speculative decoding: whatever the requests are.
#[test]
fn drafts_change_no_answer() {
    let greedy = |i: usize| {
        let params = SamplingParams {
            max_tokens: Some(30),
            temperature: 0.0,
            logprobs: Some(2),
            n: 1 + i,
            ignore_eos: true,
            ..Default::default()
        };
        GenerationRequest::tokens([prompt(20, i), prompt(20, i)].concat()).with_params(params)
    };
    let requests: Vec<_> = requests().into_iter().skip(2).chain([greedy(0), greedy(1)]).collect();
    let lone = engine(Order::ReadFirst, |_| {});
    let alone: Vec<_> =
        requests.iter().flat_map(|request| run_together(&lone, std::slice::from_ref(request))).collect();
    let engine = engine(Order::Ahead, |config| {
        config.num_speculative_tokens = 5;
        config.kv_cache_bytes = Some(16 * BLOCK_BYTES);
    });
    let drafted = || [&engine.status().num_draft_tokens, &engine.status().num_accepted_tokens].map(EngineStatus::get);
    assert_eq!(run_together(&engine, &requests), alone);
    let [_, num_accepted] = drafted();
    for (request, expected) in requests.iter().zip(&alone).skip(requests.len() - 2) {
        let found = run_together(&engine, std::slice::from_ref(request));
        assert_eq!(found, std::slice::from_ref(expected));
    }
    let [num_drafts, accepted_in_all] = drafted();
    assert!(accepted_in_all > num_accepted + 5, "{accepted_in_all} of {num_drafts} drafts were right");
    assert!(num_drafts > accepted_in_all, "some were meant to be wrong");
}

/// A second model, which has graphs and memory of its own.
#[test]
fn a_second_model_changes_no_answer() {
    // Of the first, two sequences share all that the second model computes of the prompt.
    let params = SamplingParams { n: 2, seed: Some(6), max_tokens: Some(12), ignore_eos: true, ..Default::default() };
    let shared = GenerationRequest::tokens(prompt(48, 8)).with_params(params);
    let requests: Vec<_> = std::iter::once(shared).chain(requests().into_iter().skip(1).take(5)).collect();
    for kv_cache_dtype in [KvCacheDtype::Auto, KvCacheDtype::Int8] {
        let change = |config: &mut EngineConfig| config.kv_cache_dtype = kv_cache_dtype;
        let lone = engine(Order::ReadFirst, change);
        let run_alone = |engine: &EngineHandle| {
            let alone = requests.iter().flat_map(|request| run_together(engine, std::slice::from_ref(request)));
            alone.collect::<Vec<_>>()
        };
        let alone = run_alone(&lone);
        let engine = start(Order::Ahead, true, |config| {
            change(config);
            config.num_speculative_tokens = 7;
            config.max_num_batched_tokens = Some(24);
        });
        assert_eq!(run_alone(&engine), alone, "{kv_cache_dtype:?}");
        let counters = [&engine.status().num_draft_tokens, &engine.status().num_accepted_tokens];
        let [num_drafts, num_accepted] = counters.map(EngineStatus::get);
        // As it is the same model, all of its own are: a few others are looked up.
        assert!(10 * num_accepted > 9 * num_drafts && num_drafts > 50, "{num_accepted} of {num_drafts} were right");
        assert_eq!(run_together(&engine, &requests), alone, "{kv_cache_dtype:?}, together");
    }
}

/// What was computed before it was read is found in the prefix cache, with what belongs there.
#[test]
fn a_conversation_that_goes_on_is_found() {
    let params = |max_tokens| SamplingParams {
        max_tokens: Some(max_tokens),
        seed: Some(4),
        logprobs: Some(2),
        ignore_eos: true,
        ..Default::default()
    };
    let found = std::iter::once(Order::ReadFirst).chain(orders_ahead()).map(|order| {
        let engine = engine(order, |_| {});
        let run = |token_ids: Vec<u32>, max_tokens| {
            let request = GenerationRequest::tokens(token_ids).with_params(params(max_tokens));
            engine.submit(request).unwrap().blocking_collect().unwrap()
        };
        let first = run(prompt(21, 3), 30);
        let said = [prompt(21, 3), first.outputs[0].token_ids.clone(), vec![7; 3]].concat();
        let next = run(said, 9);
        assert_eq!(next.usage.cached_tokens, 48, "{order:?}: 50 tokens were computed, in blocks of 16");
        (first, next)
    });
    let found: Vec<_> = found.collect();
    assert!(found.len() > 1 && found.iter().all(|outputs| *outputs == found[0]), "{found:?}");
}
