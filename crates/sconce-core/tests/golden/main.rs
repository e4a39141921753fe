//! Tiny random models against outputs of transformers: logits, hidden states, greedy continuations.
//!
//! Every folder of `tests/golden` at the root of the repository, and of a family of fixtures beside the repository
//! where it is there, is one model directory with a `golden` folder; a fixture whose architecture is not in the
//! registry is reported as skipped.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod fixture;
mod runner;

use fixture::Fixture;
use runner::Runner;
use sconce_core::config::{EngineConfig, SamplingParams, WeightDtype};
use sconce_core::engine::{self, FinishReason, GenerationRequest, NoProgress};

/// What f32 kernels may differ from transformers' f32 kernels.
const LOGITS_TOLERANCE: f32 = 2e-4;
const LOGPROB_TOLERANCE: f32 = 1e-3;

fn for_each_fixture(check: impl Fn(&Fixture)) {
    let fixtures = fixture::supported();
    if fixtures.is_empty() {
        println!("skipped: no fixtures found");
    }
    fixtures.iter().for_each(check);
}

fn max_error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let worse = |max: f32, (f, e): (&f32, &f32)| if f.is_nan() { f32::INFINITY } else { max.max((f - e).abs()) };
    found.iter().zip(expected).fold(0.0, worse)
}

#[test]
fn logits_equal_the_golden_ones() {
    for_each_fixture(|fixture| {
        let mut runner = Runner::new(fixture);
        for (i, prompt) in fixture.prompts().iter().enumerate() {
            let found = runner.logits(&[prompt], prompt.len());
            let error = max_error(&found[0], &fixture.logits(i));
            println!("{} prompt {i}, {} tokens: max error {error:.1e}", fixture.name, prompt.len());
            assert!(error <= LOGITS_TOLERANCE, "{} prompt {i}: max error {error}", fixture.name);
        }
    });
}

/// Reports the first layer that differs.
#[test]
fn hidden_states_equal_the_golden_ones() {
    for_each_fixture(|fixture| {
        let prompt = &fixture.prompts()[0];
        let hidden = Runner::new(fixture).hidden_states(prompt);
        // The last golden state is after the final norm, which the head applies to the wanted rows alone.
        for (k, found) in hidden.iter().enumerate() {
            let error = max_error(found, &fixture.hidden(k));
            assert!(error <= LOGITS_TOLERANCE, "{}: the state after layer {k} is off by {error}", fixture.name);
        }
    });
}

#[test]
fn chunks_and_batches_change_nothing() {
    for_each_fixture(|fixture| {
        let mut runner = Runner::new(fixture);
        let prompts = fixture.prompts();
        let alone: Vec<_> = prompts.iter().map(|p| runner.logits(&[p], p.len()).remove(0)).collect();
        for (prompt, alone) in prompts.iter().zip(&alone) {
            assert_eq!(&runner.logits(&[prompt], 7)[0], alone, "{}: in chunks of 7 tokens", fixture.name);
        }
        let eight: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).cycle().take(8).collect();
        for chunk_len in [7, 1000] {
            for (i, found) in runner.logits(&eight, chunk_len).iter().enumerate() {
                assert_eq!(found, &alone[i % prompts.len()], "{}: in a batch of 8", fixture.name);
            }
        }
    });
}

#[test]
fn greedy_continuations_equal_the_golden_ones() {
    for_each_fixture(|fixture| {
        let config = EngineConfig {
            dtype: WeightDtype::F32,
            kv_cache_bytes: Some(16 << 20),
            num_threads: Some(2),
            ..Default::default()
        };
        let engine = engine::load(&fixture.name, &fixture.dir, &config, &NoProgress).unwrap();
        let prompts = fixture.prompts();
        let cases = fixture.greedy();
        // All at once: none may change another.
        let submit = |case: &fixture::GreedyCase| {
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
            engine.submit(GenerationRequest::tokens(prompts[case.prompt].clone()).with_params(params)).unwrap()
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
        println!("{}: {} greedy cases equal", fixture.name, cases.len());
    });
}
