//! Speculative decoding changes no answer: tokens, texts, log-probabilities and ends are those without drafts.

#![allow(clippy::unwrap_used)]

mod common;

use common::{BLOCK_BYTES, prompt, tiny_engine_of, used_blocks, wait_until, write_tiny_model};
use sconce_core::config::{BeamParams, EngineConfig, SamplingParams};
use sconce_core::engine::{EngineHandle, EngineStatus, GenerationOutput, GenerationRequest, PredictionUsage};
use serde_json::{Value, json};

/// The tiny model, with a window in every layer if one is asked for.
fn engine(window: Option<usize>, change: impl Fn(&mut EngineConfig)) -> EngineHandle {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path());
    if let Some(window) = window {
        let path = dir.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["architectures"] = json!(["MistralForCausalLM"]);
        config["sliding_window"] = json!(window);
        std::fs::write(&path, config.to_string()).unwrap();
    }
    tiny_engine_of(dir.path(), change)
}

/// Prompts that say everything twice, asked in every way that there can be drafts for, and in some that there cannot.
fn requests() -> Vec<GenerationRequest> {
    let plain = |i: usize| SamplingParams {
        max_tokens: Some(60 + i),
        temperature: if i.is_multiple_of(2) { 0.0 } else { 0.3 },
        seed: Some(i as u64),
        logprobs: (i % 3 == 2).then_some(3),
        ignore_eos: true,
        ..Default::default()
    };
    let others = [
        SamplingParams { n: 3, ..plain(1) },
        SamplingParams { ignore_eos: false, min_tokens: 20, logit_bias: vec![(257, 4.0)], ..plain(0) },
        SamplingParams { repetition_penalty: 1.2, ..plain(0) },
        SamplingParams { prompt_logprobs: Some(1), ..plain(0) },
        SamplingParams { max_tokens: Some(2), ..plain(0) },
        SamplingParams { stop: vec!["b".into(), "\u{1f}".into()], min_tokens: 10, ..plain(0) },
        SamplingParams { stop_token_ids: (0..40).step_by(3).take(16).collect(), min_tokens: 10, ..plain(0) },
        SamplingParams { best_of: Some(3), ..plain(1) },
        SamplingParams { beam: Some(BeamParams::new(2)), max_tokens: Some(12), ..plain(0) },
    ];
    let params = (0..6).map(plain).chain(others).enumerate();
    let twice = |i: usize| [prompt(10 + 7 * i, i), prompt(10 + 7 * i, i)].concat();
    params.map(|(i, params)| GenerationRequest::tokens(twice(i % 6)).with_params(params)).collect()
}

fn run(engine: &EngineHandle, requests: &[GenerationRequest]) -> Vec<GenerationOutput> {
    let streams: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let answer = |output: GenerationOutput| {
        // But for what was in the cache before.
        let mut output = output;
        output.usage.cached_tokens = 0;
        output
    };
    streams.into_iter().map(|stream| answer(stream.blocking_collect().unwrap())).collect()
}

fn run_alone(engine: &EngineHandle, requests: &[GenerationRequest]) -> Vec<GenerationOutput> {
    requests.iter().flat_map(|request| run(engine, std::slice::from_ref(request))).collect()
}

/// Returns the drafts, those that were right, and the steps.
fn counts(engine: &EngineHandle) -> [usize; 3] {
    let status = engine.status();
    [&status.num_draft_tokens, &status.num_accepted_tokens, &status.num_steps].map(EngineStatus::get)
}

#[test]
fn drafts_change_no_answer() {
    let requests = requests();
    for window in [None, Some(24)] {
        let plain = engine(window, |_| {});
        let expected = run_alone(&plain, &requests);
        assert_eq!(counts(&plain)[..2], [0, 0]);
        for drafts in [1, 4, 15] {
            let engine = engine(window, |config| config.num_speculative_tokens = drafts);
            assert_eq!(run_alone(&engine, &requests), expected, "window {window:?}, {drafts} drafts");
            let [num_drafts, num_accepted, num_steps] = counts(&engine);
            assert!(num_drafts > num_accepted, "some of {num_drafts} drafts were meant to be wrong");
            assert!(num_accepted > 20, "{num_accepted} of {num_drafts} drafts were right");
            assert!(num_steps < counts(&plain)[2], "{num_steps} steps, {} without drafts", counts(&plain)[2]);
            assert_eq!(run(&engine, &requests), expected, "window {window:?}, {drafts} drafts, together");
            wait_until("blocks return to the pool", || used_blocks(&engine) == 0);
        }
    }
}

#[test]
fn whatever_there_is_little_of() {
    let requests = requests();
    let expected = run_alone(&engine(None, |_| {}), &requests);
    let changes: [&dyn Fn(&mut EngineConfig); 5] = [
        &|config| config.max_num_seqs = Some(1),
        // Rows of drafts beside those of a prompt.
        &|config| (config.max_num_seqs, config.num_speculative_tokens) = (Some(2), 15),
        &|config| (config.max_num_seqs, config.max_num_batched_tokens) = (Some(2), Some(3)),
        // 16 blocks hold one sequence of the whole context.
        &|config| config.kv_cache_bytes = Some(16 * BLOCK_BYTES),
        &|config| config.prefix_cache = false,
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let engine = engine(None, |config| {
            config.num_speculative_tokens = 5;
            change(config);
        });
        assert_eq!(run(&engine, &requests), expected, "change {i}");
        assert!(counts(&engine)[0] > 0, "change {i}: nothing was drafted");
        wait_until("blocks return to the pool", || used_blocks(&engine) == 0);
    }
}

/// Answers of 60 capital letters, so that they are text.
fn letters(params: SamplingParams) -> GenerationRequest {
    let logit_bias = (65..91).map(|id| (id, 60.0)).collect();
    let params = SamplingParams { max_tokens: Some(60), ignore_eos: true, seed: Some(1), logit_bias, ..params };
    GenerationRequest::tokens(prompt(20, 1)).with_params(params)
}

#[test]
fn predictions_save_steps_and_change_no_answer() {
    let engine = engine(None, |config| config.num_speculative_tokens = 8);
    let num_steps = || counts(&engine)[2];
    for n in [1, 2] {
        let request = letters(SamplingParams { n, ..Default::default() });
        let expected = run(&engine, std::slice::from_ref(&request)).remove(0);
        assert_eq!(expected.usage.prediction, None);
        let text = expected.outputs[0].text.clone();
        let predict = |prediction: &str| {
            let before = num_steps();
            let found = run(&engine, &[request.clone().with_prediction(prediction)]).remove(0);
            assert_eq!(found.outputs, expected.outputs, "{prediction}");
            let PredictionUsage { accepted_tokens, rejected_tokens } = found.usage.prediction.unwrap();
            (accepted_tokens, rejected_tokens, num_steps() - before)
        };
        // A prompt's step, and then nine tokens at a time.
        let (accepted, rejected, steps) = predict(&text);
        assert!(accepted >= 50, "{accepted} accepted, {rejected} rejected");
        assert!(n > 1 || (rejected, steps) == (0, 8), "{accepted} accepted, {rejected} rejected, {steps} steps");
        // Another letter in the middle, and a text that goes on.
        let edited = format!("{}{}{}more", &text[..30], if &text[30..31] == "A" { "B" } else { "A" }, &text[31..]);
        let (accepted, rejected, steps) = predict(&edited);
        assert!(accepted >= 35 && rejected > 0, "{accepted} accepted, {rejected} rejected");
        assert!(n > 1 || steps <= 20, "{steps} steps");
        assert_eq!(predict("nothing of it").0, 0);
        assert_eq!(predict("").0, 0);
    }
    wait_until("blocks return to the pool", || used_blocks(&engine) == 0);
}

#[test]
fn predictions_that_cannot_be_followed_are_refused() {
    let refused = |engine: &EngineHandle, request: GenerationRequest, words: &str| {
        let error = engine.submit(request).unwrap_err().to_string();
        assert!(error.contains("prediction: ") && error.contains(words), "{error}");
    };
    let plain = SamplingParams::default;
    refused(&engine(None, |_| {}), letters(plain()).with_prediction("A"), "--num-speculative-tokens");
    let engine = engine(None, |config| config.num_speculative_tokens = 1);
    let beams = SamplingParams { beam: Some(BeamParams::new(2)), temperature: 0.0, ..plain() };
    refused(&engine, letters(beams).with_prediction("A"), "a beam search");
    refused(&engine, letters(SamplingParams { presence_penalty: 1.0, ..plain() }).with_prediction("A"), "penalties");
    refused(&engine, letters(plain()).with_prediction("A".repeat(257)), "has 257 tokens, more than the context of 256");
}
