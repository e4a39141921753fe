//! Beam search on tiny random models against that of transformers: the same hypotheses in the same order.
//!
//! No engine: the model runs whole sequences, so that what is tested is the search alone.

use std::collections::HashMap;

use sconce_core::config::{BeamParams, EarlyStopping, WeightDtype};
use sconce_core::sample::{self, BeamCandidate, BeamLimits, BeamSearch, FinishKind, Selector};
use serde_json::Value;

use crate::fixture::Fixture;
use crate::runner::Runner;

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
    let Ok(bytes) = std::fs::read(fixture.dir.join("golden/beam.json")) else { return Vec::new() };
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
    serde_json::from_slice::<Value>(&bytes).unwrap().as_array().unwrap().iter().map(case).collect()
}

/// A model whose answers are remembered, for the cases of a fixture ask for the same sequences again and again.
struct Model {
    runner: Runner,
    logprobs: HashMap<Vec<u32>, Vec<f32>>,
}

impl Model {
    /// Logprobs of the token after a sequence.
    fn logprobs(&mut self, sequence: &[u32]) -> &[f32] {
        let runner = &mut self.runner;
        self.logprobs.entry(sequence.to_vec()).or_insert_with(|| {
            let logits = runner.logits(&[sequence], sequence.len()).remove(0);
            let mut row = logits[logits.len() / sequence.len() * (sequence.len() - 1)..].to_vec();
            sample::log_softmax(&mut row);
            row
        })
    }
}

fn search(model: &mut Model, prompt: &[u32], case: &Case) -> Vec<Hypothesis> {
    let (prompt_len, num_end_token_ids) = (prompt.len(), case.end_token_ids.len());
    let limits = BeamLimits { prompt_len, max_tokens: case.max_tokens, num_end_token_ids };
    let mut search = BeamSearch::new(case.params, limits);
    let mut selector = Selector::new(0);
    let (mut top, mut candidates) = (Vec::new(), Vec::new());
    let mut beams = vec![prompt.to_vec()];
    while !search.is_done() {
        candidates.clear();
        for (parent, beam) in beams.iter().enumerate() {
            sample::top_candidates(model.logprobs(beam), search.num_candidates(), &mut selector, &mut top);
            candidates.extend(top.iter().map(|&(token_id, logprob)| BeamCandidate { parent, token_id, logprob }));
        }
        let step = search
            .step(&candidates, |_, token_id| case.end_token_ids.contains(&token_id).then_some(FinishKind::EndToken));
        beams = step.beams.iter().map(|beam| [beams[beam.parent].as_slice(), &[beam.token_id]].concat()).collect();
    }
    let hypothesis = |h: sample::BeamHypothesis| Hypothesis {
        token_ids: search.token_ids(h.source),
        score: h.score,
        is_stopped: h.finish == Some(FinishKind::EndToken),
    };
    search.best(case.results.len()).into_iter().map(hypothesis).collect()
}

/// Every case's hypotheses: how many cases there are.
pub(crate) fn check(fixture: &Fixture) -> Result<String, &'static str> {
    let mut model = Model { runner: Runner::new(fixture, WeightDtype::F32), logprobs: HashMap::new() };
    let prompts = fixture.prompts();
    let cases = cases(fixture);
    if cases.is_empty() {
        return Err("there are no cases");
    }
    for (i, case) in cases.iter().enumerate() {
        let found = search(&mut model, &prompts[case.prompt].input_ids, case);
        let name = format!("{} beam case {i}", fixture.name);
        assert_eq!(found.len(), case.results.len(), "{name}");
        for (found, expected) in found.iter().zip(&case.results) {
            assert_eq!(found.token_ids, expected.token_ids, "{name}");
            assert_eq!(found.is_stopped, expected.is_stopped, "{name}: {found:?}");
            assert!((found.score - expected.score).abs() <= SCORE_TOLERANCE, "{name}: {found:?}, {expected:?}");
        }
    }
    Ok(format!("{0}/{0}", cases.len()))
}
