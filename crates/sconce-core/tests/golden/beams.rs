//! Beam search on tiny random models against that of transformers: the same hypotheses in the same order.

use sconce_core::config::{BeamParams, EarlyStopping, SamplingParams};
use sconce_core::engine::{EngineHandle, FinishReason, GenerationRequest};
use serde_json::Value;

use crate::engine;
use crate::fixture::Fixture;

const SCORE_TOLERANCE: f64 = 1e-3;

struct Case {
    prompt: usize,
    params: BeamParams,
    max_tokens: usize,
    end_token_ids: Vec<u32>,
    results: Vec<Hypothesis>,
}

#[derive(Debug)]
struct Hypothesis {
    token_ids: Vec<u32>,
    score: f64,
    is_stopped: bool,
}

fn cases(fixture: &Fixture) -> Vec<Case> {
    let Some(cases) = fixture.opt_json("beam.json") else { return Vec::new() };
    let count = |value: &Value| value.as_u64().unwrap() as usize;
    let ids = |value: &Value| value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let hypothesis = |value: &Value| Hypothesis {
        token_ids: ids(&value["output_ids"]),
        score: value["score"].as_f64().unwrap(),
        is_stopped: value["finish_reason"] == "stop",
    };
    let case = |case: &Value| {
        let early_stopping = match case["early_stopping"].as_bool() {
            Some(true) => EarlyStopping::True,
            Some(false) => EarlyStopping::False,
            None => EarlyStopping::Never,
        };
        let length_penalty = case["length_penalty"].as_f64().unwrap() as f32;
        Case {
            prompt: count(&case["prompt"]),
            params: BeamParams { length_penalty, early_stopping, ..BeamParams::new(count(&case["num_beams"])) },
            max_tokens: count(&case["max_new_tokens"]),
            end_token_ids: ids(&case["eos_token_ids"]),
            results: case["results"].as_array().unwrap().iter().map(hypothesis).collect(),
        }
    };
    cases.as_array().unwrap().iter().map(case).collect()
}

impl Case {
    fn request(&self, prompt: &[u32]) -> GenerationRequest {
        let params = SamplingParams {
            n: self.results.len(),
            beam: Some(self.params),
            max_tokens: Some(self.max_tokens),
            // The end tokens of a case are all that ends it.
            ignore_eos: true,
            stop_token_ids: self.end_token_ids.clone(),
            logprobs: Some(0),
            ..Default::default()
        };
        GenerationRequest::tokens(prompt).with_params(params)
    }
}

/// Runs every case, all at once: how many there are, and the greatest error of a score.
pub(crate) fn check(fixture: &Fixture) -> Result<String, &'static str> {
    check_on(fixture, &engine::load(fixture, &fixture.dir))
}

/// The same on an engine that may have adapters.
pub(crate) fn check_on(fixture: &Fixture, engine: &EngineHandle) -> Result<String, &'static str> {
    let prompts = fixture.prompts();
    let cases = cases(fixture);
    if cases.is_empty() {
        return Err("there are no cases");
    }
    let submit = |case: &Case| {
        let request = case.request(&prompts[case.prompt].input_ids);
        engine.submit(GenerationRequest { adapter: fixture.adapter.clone(), ..request }).unwrap()
    };
    let streams: Vec<_> = cases.iter().map(submit).collect();
    let mut worst = 0.0_f64;
    for (i, (stream, case)) in streams.into_iter().zip(&cases).enumerate() {
        let name = format!("{} beam case {i}", fixture.name);
        let found = stream.blocking_collect().unwrap().outputs;
        assert_eq!(found.len(), case.results.len(), "{name}");
        for (found, expected) in found.iter().zip(&case.results) {
            assert_eq!(found.token_ids, expected.token_ids, "{name}");
            let finish = found.finish.as_ref().unwrap();
            assert_eq!(finish.reason == FinishReason::Stop, expected.is_stopped, "{name}: {finish:?}");
            let error = (finish.beam_score.unwrap() - expected.score).abs();
            assert!(error <= SCORE_TOLERANCE, "{name}: {finish:?}, {expected:?}");
            worst = worst.max(error);
            // The score is that of the tokens' own logprobs.
            let sum: f64 = found.logprobs.iter().map(|l| f64::from(l.chosen.logprob)).sum();
            let score = sum / (found.token_ids.len() as f64).powf(f64::from(case.params.length_penalty));
            assert!((finish.beam_score.unwrap() - score).abs() <= 1e-9, "{name}: {finish:?}, {score}");
        }
    }
    Ok(format!("{0}/{0}, {worst:.0e}", cases.len()))
}
