//! A whole engine on a fixture, from its folder or from a GGUF made of it.

use std::path::Path;

use sconce_core::config::{EngineConfig, KvCacheDtype, SamplingParams, WeightDtype};
use sconce_core::engine::{self, EngineHandle, FinishReason, GenerationRequest, NoProgress};
use sconce_core::weights::Dtype;

use crate::compare::{log_softmax, max_error};
use crate::fixture::{Fixture, GreedyCase};
use crate::gguf;
use crate::report::check_all;

const LOGPROB_TOLERANCE: f32 = 1e-3;

pub(crate) fn load(fixture: &Fixture, path: &Path) -> EngineHandle {
    load_with(fixture, path, |_| {})
}

/// The same with other settings.
pub(crate) fn load_with(fixture: &Fixture, path: &Path, change: impl FnOnce(&mut EngineConfig)) -> EngineHandle {
    let mut config = EngineConfig {
        dtype: WeightDtype::F32,
        kv_cache_dtype: KvCacheDtype::F32,
        kv_cache_bytes: Some(16 << 20),
        num_threads: Some(2),
        ..Default::default()
    };
    change(&mut config);
    engine::load(&fixture.name, path, &config, &NoProgress).unwrap()
}

/// Runs every case, all at once: none may change another.
pub(crate) fn check_greedy(fixture: &Fixture, engine: &EngineHandle) -> String {
    let prompts = fixture.prompts();
    let cases = fixture.greedy();
    let submit = |case: &GreedyCase| {
        let params = SamplingParams {
            temperature: 0.0,
            max_tokens: Some(case.max_new_tokens),
            // The stop ids of a case are all that ends it.
            ignore_eos: true,
            stop_token_ids: case.stop_token_ids.clone(),
            repetition_penalty: case.repetition_penalty,
            presence_penalty: case.presence_penalty,
            frequency_penalty: case.frequency_penalty,
            logprobs: Some(0),
            ..Default::default()
        };
        let request = GenerationRequest::tokens(prompts[case.prompt].input_ids.clone()).with_params(params);
        engine.submit(GenerationRequest { adapter: fixture.adapter.clone(), ..request }).unwrap()
    };
    let streams: Vec<_> = cases.iter().map(submit).collect();
    for (i, (stream, case)) in streams.into_iter().zip(&cases).enumerate() {
        let output = stream.blocking_collect().unwrap().outputs.remove(0);
        assert_eq!(output.token_ids, case.output_ids, "{} greedy case {i}", fixture.name);
        let reason = output.finish.unwrap().reason;
        assert_eq!(reason == FinishReason::Stop, case.is_stopped, "{} greedy case {i}", fixture.name);
        if let Some(expected) = &case.token_logprobs {
            let logprobs: Vec<f32> = output.logprobs.iter().map(|l| l.chosen.logprob).collect();
            assert!(max_error(&logprobs, expected) <= LOGPROB_TOLERANCE, "{} greedy case {i}", fixture.name);
        }
    }
    format!("{n}/{n}", n = cases.len())
}

/// The greatest error of the most probable tokens' log-probabilities, over the positions of all prompts.
fn check_prompt_logprobs(fixture: &Fixture, engine: &EngineHandle) -> f32 {
    let mut worst = 0.0_f32;
    for (i, prompt) in fixture.prompts().iter().enumerate() {
        let params = SamplingParams {
            max_tokens: Some(1),
            prompt_logprobs: Some(SamplingParams::MAX_LOGPROBS),
            ..Default::default()
        };
        let request = GenerationRequest::tokens(prompt.input_ids.clone()).with_params(params);
        let output = engine.submit(request).unwrap().blocking_collect().unwrap();
        let logprobs = output.prompt_logprobs.unwrap();
        assert_eq!(logprobs.len(), prompt.input_ids.len());
        let logits = fixture.logits(i);
        // The first token has none: those of a token come of the row before it.
        let rows = logits.chunks_exact(logits.len() / prompt.input_ids.len());
        for (row, found) in rows.zip(&logprobs[1..]) {
            let golden = log_softmax(row);
            for found in &found.as_ref().unwrap().top {
                worst = worst.max((found.logprob - golden[found.token_id as usize]).abs());
            }
        }
    }
    assert!(worst <= LOGPROB_TOLERANCE, "{}: a log-probability of a prompt is off by {worst}", fixture.name);
    worst
}

#[test]
fn greedy_continuations_equal_the_golden_ones() {
    check_all("greedy", |fixture| Ok(check_greedy(fixture, &load(fixture, &fixture.dir))));
}

/// Tokenizer, config and tensors all come from the file.
#[test]
fn gguf_files_give_the_golden_outputs() {
    check_all("gguf", |fixture| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        gguf::write(fixture, &path, Dtype::F32)?;
        let engine = load(fixture, &path);
        // A SentencePiece GGUF puts a space after a control token, which newer tokenizer.json do not: texts without.
        for prompt in fixture.prompts().iter().filter(|p| p.kind == "completion") {
            assert_eq!(engine.tokenizer().encode(&prompt.text, true).unwrap(), prompt.input_ids, "{}", fixture.name);
        }
        check_prompt_logprobs(fixture, &engine);
        Ok(check_greedy(fixture, &engine))
    });
}
