//! A model whose every layer has a window keeps few KV blocks, and says the same whatever runs beside it.

#![allow(clippy::unwrap_used)]

mod common;

use common::{tiny_engine_of, write_tiny_model};
use sconce_core::config::{EngineConfig, SamplingParams};
use sconce_core::engine::{CompletionOutput, EngineHandle, EngineStatus, GenerationRequest, TokenStream};
use serde_json::{Value, json};

const WINDOW: usize = 24;
/// Bytes of one KV block of the tiny model: 16 tokens, 2 layers, 2 heads of 16, keys and values in f32.
const BLOCK_BYTES: usize = 16 * 2 * 2 * 16 * 2 * 4;

/// The tiny model with a window in every layer.
fn window_engine(change: impl Fn(&mut EngineConfig)) -> EngineHandle {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path());
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["architectures"] = json!(["MistralForCausalLM"]);
    config["sliding_window"] = json!(WINDOW);
    std::fs::write(&path, config.to_string()).unwrap();
    tiny_engine_of(dir.path(), change)
}

fn submit(engine: &EngineHandle, seed: usize, n: usize) -> TokenStream {
    let prompt = (0..40 + 5 * seed).map(|i| ((i * 31 + seed * 17) % 250) as u32);
    let params = SamplingParams { n, seed: Some(seed as u64), ignore_eos: true, ..Default::default() };
    engine.submit(GenerationRequest::tokens(prompt.collect::<Vec<_>>()).with_params(params)).unwrap()
}

#[test]
fn a_long_generation_uses_few_blocks() {
    let engine = window_engine(|_| {});
    let mut stream = submit(&engine, 0, 1);
    let mut num_tokens = 0;
    while let Some(event) = stream.blocking_next() {
        event.unwrap();
        num_tokens += 1;
    }
    let most = EngineStatus::get(&engine.status().peak_used_blocks);
    assert!(num_tokens > 200, "{num_tokens} tokens");
    // The 24 tokens touch at most 3 blocks; without the window it would be 16.
    assert!((1..=3).contains(&most), "{most} blocks");
}

#[test]
fn blocks_given_back_are_not_missed() {
    let run = |engine: &EngineHandle, together: bool| -> Vec<Vec<CompletionOutput>> {
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
    };
    let alone = run(&window_engine(|_| {}), false);
    assert_eq!(run(&window_engine(|c| (c.max_num_batched_tokens, c.max_num_seqs) = (Some(24), Some(20))), true), alone);
    // 16 blocks hold one sequence of the whole context.
    let small = window_engine(|c| c.kv_cache_bytes = Some(16 * BLOCK_BYTES));
    assert_eq!(run(&small, true), alone);
}
