//! Every golden sampling case: processors in the order that the case names, against what transformers left.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::*;
use crate::sample::filters;
use crate::sample::select::Candidate;
use crate::sample::softmax::Softmax;

/// The order in which the sampler applies what cases name. The two additive penalties commute.
const ORDER: [&[&str]; 6] = [
    &["repetition_penalty"],
    &["frequency_penalty", "presence_penalty"],
    &["temperature"],
    &["top_k"],
    &["top_p"],
    &["min_p"],
];

fn stage(processor: &str) -> usize {
    ORDER.iter().position(|stage| stage.contains(&processor)).unwrap()
}

fn set(params: &mut SamplingParams, processor: &str, value: f64) {
    match processor {
        "repetition_penalty" => params.repetition_penalty = value as f32,
        "frequency_penalty" => params.frequency_penalty = value as f32,
        "presence_penalty" => params.presence_penalty = value as f32,
        "temperature" => params.temperature = value as f32,
        "top_k" => params.top_k = Some(value as usize),
        "top_p" => params.top_p = value as f32,
        "min_p" => params.min_p = value as f32,
        other => panic!("unknown processor {other}"),
    }
}

/// What is left of a row where processors come in another order than the sampler's: each by itself, as it comes.
fn one_by_one(case: &Case, order: &[(&str, f64)]) -> Vec<(u32, f64)> {
    let mut row = case.row.clone();
    let mut temperature = 1.0;
    let is_filter = |processor: &str| ["top_k", "top_p", "min_p"].contains(&processor);
    for &(processor, value) in order.iter().filter(|(processor, _)| !is_filter(processor)) {
        let mut params = SamplingParams::default();
        set(&mut params, processor, value);
        case.counts.penalize(&mut row, &params);
        temperature *= params.temperature;
    }
    let mut selector = Selector::default();
    let max = selector.scan(&row);
    selector.gather(&row, f32::NEG_INFINITY);
    let candidates = &mut selector.candidates;
    filters::weigh(candidates, max, temperature);
    for &(processor, value) in order {
        let total = filters::mass(candidates);
        match processor {
            "top_k" => filters::keep_top_k(candidates, value as usize),
            "top_p" => filters::keep_top_p(candidates, value as f32, total),
            "min_p" => filters::keep_min_p(candidates, value as f32),
            _ => {}
        }
    }
    let total = filters::mass(candidates);
    candidates.sort_by_key(|candidate| candidate.rank_key());
    let softmax = Softmax::new(max, temperature, total);
    let probability = |candidate: &Candidate| f64::from(softmax.logprob(candidate.logit())).exp();
    candidates.iter().map(|candidate| (candidate.token_id(), probability(candidate))).collect()
}

fn check(name: &str, survivors: &[(u32, f64)], golden: &Value, processed: &[f32]) {
    let ids: Vec<u32> = survivors.iter().map(|&(id, _)| id).collect();
    let left = (0..processed.len() as u32).filter(|&id| processed[id as usize] > f32::NEG_INFINITY);
    let mut sorted_ids = ids.clone();
    sorted_ids.sort_unstable();
    assert_eq!(sorted_ids, left.collect::<Vec<_>>(), "{name}: surviving tokens");
    assert_eq!(ids.len() as u64, golden["n_surviving"].as_u64().unwrap(), "{name}: n_surviving");

    // Processed logits are compared up to the constant that the softmax takes out.
    let log_total = processed.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
    for &(id, probability) in survivors {
        let expected = f64::from(processed[id as usize]) - log_total;
        assert!((probability.ln() - expected).abs() < 2e-5, "{name}: token {id}: {}, not {expected}", probability.ln());
    }
    if let Some(golden_ids) = golden["surviving_ids"].as_array() {
        assert_eq!(ids, golden_ids.iter().map(|id| id.as_u64().unwrap() as u32).collect::<Vec<_>>(), "{name}");
        for ((id, found), expected) in survivors.iter().zip(golden["probs"].as_array().unwrap()) {
            let expected = expected.as_f64().unwrap();
            assert!((found - expected).abs() < 1e-5, "{name}: token {id}: {found}, not {expected}");
        }
    }
    for ((id, found), expected) in survivors.iter().zip(golden["top"].as_array().unwrap()) {
        assert_eq!(u64::from(*id), expected[0].as_u64().unwrap(), "{name}: top");
        assert!((found - expected[1].as_f64().unwrap()).abs() < 1e-5, "{name}: token {id}: {found}, not {expected}");
    }
}

fn token_ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Runs the cases of one model; returns how many went through the sampler, and how many one by one.
fn check_model(golden_dir: &Path) -> (usize, usize) {
    let contexts: Value = serde_json::from_slice(&std::fs::read(golden_dir.join("sampling.json")).unwrap()).unwrap();
    let bytes = std::fs::read(golden_dir.join("sampling.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let row_of = |name: &str| -> Vec<f32> {
        let data = tensors.tensor(name).unwrap().data();
        data.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
    };
    let (mut num_whole, mut num_single) = (0, 0);
    for context in contexts.as_array().unwrap() {
        let row = row_of(&format!("{}.logits", context["ctx"].as_str().unwrap()));
        let counts =
            TokenCounts::from_tokens(&token_ids(&context["prompt_ids"]), &token_ids(&context["generated_ids"]));
        for golden in context["cases"].as_array().unwrap() {
            let id = golden["id"].as_str().unwrap();
            let order: Vec<(&str, f64)> = golden["order"]
                .as_array()
                .unwrap()
                .iter()
                .map(|step| (step[0].as_str().unwrap(), step[1].as_f64().unwrap()))
                .collect();
            let mut params = SamplingParams::default();
            order.iter().for_each(|&(processor, value)| set(&mut params, processor, value));
            let case = Case { counts: counts.clone(), ..Case::new(&row, params) };
            let processed = row_of(&format!("{id}.processed"));
            let name = format!("{} {id} {order:?}", golden_dir.display());
            check(&name, &one_by_one(&case, &order), golden, &processed);
            num_single += 1;
            if order.is_sorted_by_key(|&(processor, _)| stage(processor)) {
                check(&name, &case.survivors(), golden, &processed);
                num_whole += 1;
            }
        }
    }
    (num_whole, num_single)
}

#[test]
fn golden_sampling_cases() {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures");
    let models = ["gemma2", "llama", "mistral", "mistral-swa", "phi", "phi3"];
    let golden_dirs: Vec<PathBuf> = models.iter().map(|model| fixtures.join(model).join("golden")).collect();
    if !golden_dirs.iter().all(|dir| dir.exists()) {
        println!("skipped: there are no golden sampling cases at {}", fixtures.display());
        return;
    }
    let counts: Vec<(usize, usize)> = golden_dirs.iter().map(|dir| check_model(dir)).collect();
    let num_whole: usize = counts.iter().map(|count| count.0).sum();
    let num_single: usize = counts.iter().map(|count| count.1).sum();
    println!("{num_whole} of {num_single} golden cases through the whole sampler, all of them one by one");
    assert!(0 < num_whole && num_whole <= num_single);
}
