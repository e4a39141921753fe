//! Layers with a window keep few KV blocks, in models that have no others and beside others, and say the same whatever runs beside them.

use crate::common::{tiny_engine_of, write_tiny_model};
use sconce_core::config::{EngineConfig, SamplingParams};
use sconce_core::engine::{CompletionOutput, EngineHandle, EngineStatus, GenerationRequest, TokenStream};
use serde_json::{Value, json};

const WINDOW: usize = 24;
/// Bytes of one KV block of the tiny model: 16 tokens, 2 layers, 2 heads of 16, keys and values in f32.
const BLOCK_BYTES: usize = 16 * 2 * 2 * 16 * 2 * 4;

/// The tiny model with some other fields in its config.
fn engine_with(fields: &[(&str, Value)], change: impl Fn(&mut EngineConfig)) -> EngineHandle {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path());
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    fields.iter().for_each(|(name, value)| config[*name] = value.clone());
    std::fs::write(&path, config.to_string()).unwrap();
    tiny_engine_of(dir.path(), change)
}

/// The tiny model with a window in every layer.
fn window_engine(change: impl Fn(&mut EngineConfig)) -> EngineHandle {
    engine_with(&[("architectures", json!(["MistralForCausalLM"])), ("sliding_window", json!(WINDOW))], change)
}

/// Four layers, of which the first sees all tokens, in small steps.
fn mixed_engine(change: impl Fn(&mut EngineConfig)) -> EngineHandle {
    let fields = [
        ("architectures", json!(["Qwen2ForCausalLM"])),
        ("num_hidden_layers", json!(4)),
        ("use_sliding_window", json!(true)),
        ("max_window_layers", json!(1)),
        ("sliding_window", json!(WINDOW)),
    ];
    engine_with(&fields, |config| {
        config.max_num_batched_tokens = Some(32);
        change(config);
    })
}

fn submit(engine: &EngineHandle, seed: usize, n: usize) -> TokenStream {
    let prompt = (0..40 + 5 * seed).map(|i| ((i * 31 + seed * 17) % 250) as u32);
    let params = SamplingParams { n, seed: Some(seed as u64), ignore_eos: true, ..Default::default() };
    engine.submit(GenerationRequest::tokens(prompt.collect::<Vec<_>>()).with_params(params)).unwrap()
}

/// What requests say, together or one after another.
fn run(engine: &EngineHandle, together: bool) -> Vec<Vec<CompletionOutput>> {
    let collect = |stream: TokenStream| {
        let mut outputs = stream.blocking_collect().unwrap().outputs;
        outputs.sort_by_key(|o| o.index);
        outputs
    };
    if together {
        let streams: Vec<_> = (0..8).map(|seed| submit(engine, seed, 1 + seed % 3)).collect();
        streams.into_iter().map(collect).collect()
    } else {
        (0..8).map(|seed| collect(submit(engine, seed, 1 + seed % 3))).collect()
    }
}

/// The most blocks in use while a sequence of the whole context is generated.
fn most_blocks(engine: &EngineHandle) -> usize {
    let mut stream = submit(engine, 0, 1);
    let mut num_tokens = 0;
    while let Some(event) = stream.blocking_next() {
        event.unwrap();
        num_tokens += 1;
    }
    assert!(num_tokens > 200, "{num_tokens} tokens");
    EngineStatus::get(&engine.status().peak_used_blocks)
}

#[test]
fn a_long_generation_uses_few_blocks() {
    let most = most_blocks(&window_engine(|_| {}));
    // The 24 tokens touch at most 3 blocks; without the window it would be 16.
    assert!((1..=3).contains(&most), "{most} blocks");
}

#[test]
fn blocks_given_back_are_not_missed() {
    let alone = run(&window_engine(|_| {}), false);
    assert_eq!(run(&window_engine(|c| (c.max_num_batched_tokens, c.max_num_seqs) = (Some(24), Some(20))), true), alone);
    // 16 blocks hold one sequence of the whole context.
    let small = window_engine(|c| c.kv_cache_bytes = Some(16 * BLOCK_BYTES));
    assert_eq!(run(&small, true), alone);
}

#[test]
fn layers_with_a_window_give_back_beside_others() {
    let engine = mixed_engine(|_| {});
    assert_eq!((engine.info().layers.groups().len(), engine.info().layers.num_parts()), (2, 3));
    // 6 blocks of 48 tokens for one layer, and 2 or 3 of 16 for three. In all layers all tokens would take 16 blocks of 4 layers.
    let most = most_blocks(&engine);
    assert!((8..=9).contains(&most), "{most} blocks");
}

#[test]
fn blocks_given_back_beside_others_are_not_missed() {
    // So long a block has all tokens: there is nothing to give back, and all layers are in one group.
    let all = mixed_engine(|c| c.block_size = 256);
    assert_eq!(all.info().layers.groups().len(), 1);
    let expected = run(&all, false);
    assert_eq!(run(&mixed_engine(|c| c.prefix_cache = false), false), expected);
    // Twice: the second time prompts are found, of which only the last window is there.
    let engine = mixed_engine(|c| c.max_num_seqs = Some(20));
    assert_eq!([run(&engine, true), run(&engine, true)], [expected.clone(), expected.clone()]);
    let num_cached = EngineStatus::get(&engine.status().num_cached_prompt_tokens);
    // The first block's 48 of the six prompts that are longer, unless others' blocks took their place.
    assert!((192..=288).contains(&num_cached), "{num_cached} tokens were found");
    // One sequence of the whole context has room: 6 blocks, and 5 with a step of 32 tokens.
    let small = mixed_engine(|c| c.kv_cache_bytes = Some(11 * 3 * BLOCK_BYTES / 2));
    assert_eq!((small.info().num_kv_blocks, small.info().max_model_len), (11, 256));
    assert_eq!(run(&small, true), expected);
    assert!(EngineStatus::get(&small.status().num_preemptions) > 0);
    let drafting = mixed_engine(|c| c.num_speculative_tokens = 4);
    assert_eq!(run(&drafting, false), expected);
    assert!(EngineStatus::get(&drafting.status().num_draft_tokens) > 0);
}
