//! Speculative decoding changes no answer: tokens, texts, log-probabilities and ends are those without drafts.

use std::path::Path;

use crate::common::{BLOCK_BYTES, prompt, tiny_config, tiny_engine_of, used_blocks, wait_until, write_tiny_model};
use sconce_core::config::{BeamParams, EngineConfig, KvCacheDtype, Quantization, SamplingParams, WeightDtype};
use sconce_core::engine::{
    self, EngineHandle, EngineStatus, GenerationOutput, GenerationRequest, NoProgress, PredictionUsage,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Changes a file of a model.
type Edit<'a> = &'a dyn Fn(&mut Value);
/// Adjusts the settings of an engine.
type Change<'a> = &'a dyn Fn(&mut EngineConfig);

/// The tiny model, with a window in every layer if one is asked for.
fn engine(window: Option<usize>, change: impl Fn(&mut EngineConfig)) -> EngineHandle {
    tiny_engine_of(tiny_model(&windowed(window)).path(), change)
}

/// The tiny model with another config, as `change` makes it of its own.
fn tiny_model(change: Edit<'_>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path());
    edit(&dir.path().join("config.json"), change);
    dir
}

fn edit(path: &Path, change: Edit<'_>) {
    let mut value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

fn windowed(window: Option<usize>) -> impl Fn(&mut Value) {
    move |config| {
        if let Some(window) = window {
            config["architectures"] = json!(["MistralForCausalLM"]);
            config["sliding_window"] = json!(window);
        }
    }
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
    let changes: [Change<'_>; 5] = [
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
    for (n, penalty) in [(1, 0.0), (2, 0.0), (1, 0.3)] {
        let penalties = SamplingParams { presence_penalty: penalty, frequency_penalty: penalty, ..Default::default() };
        let request = letters(SamplingParams { n, repetition_penalty: 1.0 + penalty, ..penalties });
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
    refused(&engine, letters(plain()).with_prediction("A".repeat(257)), "has 257 tokens, more than the context of 256");
}

/// The tiny model with one that drafts for it.
fn drafted(target: &TempDir, draft: &TempDir, change: impl Fn(&mut EngineConfig)) -> sconce_core::Result<EngineHandle> {
    let draft = Some(("draft", draft.path()));
    engine::load_with_draft(("tiny", target.path()), draft, &tiny_config(change), &NoProgress)
}

/// Prompts that say nothing twice, so that the second model has to draft, and the others.
fn requests_of_all_kinds() -> Vec<GenerationRequest> {
    let params = |i: usize| SamplingParams {
        max_tokens: Some(40),
        temperature: if i == 1 { 0.7 } else { 0.0 },
        top_p: if i == 1 { 0.9 } else { 1.0 },
        seed: Some(i as u64),
        n: 1 + i % 2,
        repetition_penalty: if i == 2 { 1.3 } else { 1.0 },
        frequency_penalty: if i == 2 { 0.2 } else { 0.0 },
        ignore_eos: true,
        ..Default::default()
    };
    let new = (0..3).map(|i| GenerationRequest::tokens(prompt(30 + 7 * i, 20 + i)).with_params(params(i)));
    new.chain(requests()).collect()
}

#[test]
fn a_second_model_changes_no_answer() {
    let requests = requests_of_all_kinds();
    let same = |_: &mut Value| {};
    // The same; another with other keys and values; one with a shorter context; one that has fewer tokens.
    let drafts: [(&str, Edit<'_>); 4] = [
        ("same", &same),
        ("other", &|config| {
            config["num_hidden_layers"] = json!(1);
            config["num_key_value_heads"] = json!(4);
            config["hidden_size"] = json!(32);
        }),
        ("short", &|config| config["max_position_embeddings"] = json!(70)),
        ("small", &|config| (config["vocab_size"], config["eos_token_id"]) = (json!(200), json!(199))),
    ];
    for window in [None, Some(24)] {
        let plain = engine(window, |_| {});
        let expected = run_alone(&plain, &requests);
        let target = tiny_model(&windowed(window));
        for (name, change) in drafts {
            let is_same = name == "same" && window.is_none();
            let engine = drafted(&target, &tiny_model(change), |_| {}).unwrap();
            assert_eq!(engine.info().draft_model.as_deref(), Some("draft"));
            assert_eq!(run_alone(&engine, &requests), expected, "{name}, window {window:?}");
            let [num_drafts, num_accepted, num_steps] = counts(&engine);
            assert!(num_drafts > 100, "{name}: {num_drafts} drafts");
            // Some are looked up, and it computes less exactly.
            assert!(!is_same || 10 * num_accepted > 9 * num_drafts, "{num_accepted} of {num_drafts} drafts were right");
            assert!(!is_same || 2 * num_steps < counts(&plain)[2], "{num_steps} steps, {} without", counts(&plain)[2]);
            assert_eq!(run(&engine, &requests), expected, "{name}, window {window:?}, together");
            wait_until("blocks return to the pool", || used_blocks(&engine) == 0);
        }
    }
}

#[test]
fn a_second_model_with_little_of_everything() {
    let requests = requests_of_all_kinds();
    let expected = run_alone(&engine(None, |_| {}), &requests);
    let model = tiny_model(&|_| {});
    let changes: [Change<'_>; 5] = [
        &|config| (config.max_num_seqs, config.num_speculative_tokens) = (Some(2), 15),
        // The second model takes several steps to catch up.
        &|config| (config.max_num_seqs, config.max_num_batched_tokens) = (Some(2), Some(3)),
        &|config| (config.kv_cache_bytes, config.kv_cache_dtype) = (Some(16 * 2 * BLOCK_BYTES), KvCacheDtype::F32),
        &|config| config.prefix_cache = false,
        &|config| config.draft_quantization = Some(Quantization::Q4_0),
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let engine = drafted(&model, &model, change).unwrap();
        if i == 2 {
            assert_eq!((engine.info().num_kv_blocks, engine.info().kv_cache_bytes), (16, 32 * BLOCK_BYTES));
        }
        assert_eq!(run(&engine, &requests), expected, "change {i}");
        assert!(counts(&engine)[1] > 0, "change {i}: no draft was right");
        wait_until("blocks return to the pool", || used_blocks(&engine) == 0);
    }
}

/// One that is hardly ever right is seldom asked. Answers are the same, also where it computes what it has not for many steps.
#[test]
fn a_second_model_of_no_use_rests() {
    // Greedy, so that another model says another token; that none is said twice leaves nothing to look up.
    let params = SamplingParams {
        max_tokens: Some(120),
        temperature: 0.0,
        presence_penalty: 2.0,
        ignore_eos: true,
        ..Default::default()
    };
    let request = |i: usize| GenerationRequest::tokens(prompt(20 + 7 * i, 20 + i)).with_params(params.clone());
    let requests: Vec<_> = (0..6).map(request).collect();
    let expected = run_alone(&engine(None, |_| {}), &requests);
    let other = tiny_model(&|config| config["hidden_size"] = json!(32));
    let engine = drafted(&tiny_model(&|_| {}), &other, |_| {}).unwrap();
    assert_eq!(run_alone(&engine, &requests), expected);
    let [num_drafts, num_accepted, num_steps] = counts(&engine);
    assert!(
        num_accepted < 20 && 6 * num_drafts < num_steps,
        "{num_drafts} drafts in {num_steps} steps, {num_accepted} right"
    );
    assert_eq!(run(&engine, &requests), expected, "together");
    // Of six sequences at once, in some of the steps.
    let [num_together, num_steps] = [counts(&engine)[0] - num_drafts, counts(&engine)[2] - num_steps];
    assert!(2 * num_together < num_steps, "{num_together} drafts in {num_steps} steps of six sequences");
    wait_until("blocks return to the pool", || used_blocks(&engine) == 0);
}

/// A prompt that was computed before is not computed again, by neither model; what the second knows of it is still right.
#[test]
fn a_second_model_finds_what_it_has_computed() {
    let model = tiny_model(&|_| {});
    let engine = drafted(&model, &model, |_| {}).unwrap();
    let params = SamplingParams { max_tokens: Some(40), temperature: 0.0, ignore_eos: true, ..Default::default() };
    let ask = |tokens: Vec<u32>| {
        let request = GenerationRequest::tokens(tokens).with_params(params.clone());
        let before = counts(&engine);
        let output = engine.submit(request).unwrap().blocking_collect().unwrap();
        let [num_drafts, num_accepted, num_steps] = counts(&engine);
        (output, num_drafts - before[0], num_accepted - before[1], num_steps - before[2])
    };
    let (first, num_drafts, num_accepted, num_steps) = ask(prompt(100, 3));
    assert!(10 * num_accepted > 8 * num_drafts, "{num_accepted} of {num_drafts} drafts were right");
    assert!(num_steps <= 15, "{num_steps} steps for a prompt and 39 tokens, up to nine at a time");
    let further = [prompt(100, 3), first.outputs[0].token_ids.clone()].concat();
    let (second, num_drafts, num_accepted, _) = ask(further);
    assert!(second.usage.cached_tokens >= 128);
    // Some are wrong where two tokens are about as likely: it computes less exactly.
    assert!(10 * num_accepted > 8 * num_drafts, "{num_accepted} of {num_drafts} drafts were right");
}

#[test]
fn a_second_model_that_cannot_draft_is_refused() {
    let model = tiny_model(&|_| {});
    let refused = |draft: &TempDir, words: &str, change: Change<'_>| {
        let error = drafted(&model, draft, change).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    let other = tiny_model(&|_| {});
    edit(&other.path().join("tokenizer.json"), &|tokenizer| {
        let vocab = &mut tokenizer["model"]["vocab"];
        (vocab["a"], vocab["b"]) = (json!(98), json!(97));
    });
    let words = "draft-model: must have the model's vocabulary, and token 97 is \"a\" of tiny, but \"b\" of draft";
    refused(&other, words, &|_| {});
    let dir = tempfile::tempdir().unwrap();
    refused(&dir, "need a folder with config.json", &|_| {});
    let blocks: Change<'_> =
        &|config| (config.draft_quantization, config.dtype) = (Some(Quantization::Q4_0), WeightDtype::F32);
    refused(&model, "weights that become q4_0 stay in it with auto alone", blocks);
    let alone = tiny_config(|config| config.draft_quantization = Some(Quantization::Q4_0));
    let error = engine::load("tiny", model.path(), &alone, &NoProgress).map(|_| ()).unwrap_err().to_string();
    assert!(error.starts_with("draft-quantization: "), "{error}");
}
