//! The starter model against transformers on the same weights, dequantized: log-probabilities of greedy continuations.
//!
//! The model is small and its weights are coarse, so one-word facts flip with rounding; log-probabilities do not.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::Path;
use std::sync::Arc;

use sconce::{Engine, GenerationRequest, KvCacheDtype, NoProgress, SamplingParams, TokenLogprobs, WeightDtype, hub};
use serde_json::Value;

/// All that differs is the order of sums.
const F32_TOLERANCE: f64 = 2e-4;
/// The inputs of quantized weights have 16 bits.
const QUANTIZED_TOLERANCE: f64 = 5e-3;

/// Keys and values have 11 bits.
const F16_TOLERANCE: f64 = 2e-2;
/// The same beside quantized weights: without VNNI one log-probability of 863 is off by 3.7e-2, the mean error is 1.1e-3 everywhere.
const QUANTIZED_F16_TOLERANCE: f64 = 5e-2;

struct Case {
    prompt_ids: Vec<u32>,
    steps: Vec<Value>,
}

fn cases() -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/starter/logprobs.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let case = |case: &Value| Case {
        prompt_ids: case["prompt_ids"].as_array().unwrap().iter().map(id).collect(),
        steps: case["steps"].as_array().unwrap().clone(),
    };
    golden["cases"].as_array().unwrap().iter().map(case).collect()
}

fn id(value: &Value) -> u32 {
    value.as_u64().unwrap() as u32
}

/// The model as a GGUF, which the golden values are of; `None`, and a line that says so, where there is another copy
/// or none can be brought.
fn starter(dtype: WeightDtype, kv_dtype: KvCacheDtype) -> Option<Engine> {
    match hub::starter(None, &NoProgress) {
        Ok(path) if path.extension().is_some_and(|e| e == "gguf") => {
            let builder = Engine::builder(path.to_str().unwrap()).dtype(dtype).kv_cache_dtype(kv_dtype);
            Some(builder.kv_cache_bytes(64 << 20).max_model_len(512).progress(Arc::new(NoProgress)).build().unwrap())
        }
        Ok(path) => {
            println!("skipped: the golden values are of the GGUF, and the cache holds {}", path.display());
            None
        }
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

/// The golden continuation's log-probabilities, as this engine scores it.
fn scores(engine: &Engine, case: &Case) -> Vec<TokenLogprobs> {
    let continuation = case.steps.iter().map(|s| id(&s["token_id"]));
    let ids: Vec<u32> = case.prompt_ids.iter().copied().chain(continuation).collect();
    let params = SamplingParams { prompt_logprobs: Some(5), max_tokens: Some(1), ..Default::default() };
    let output = engine.generate(GenerationRequest::tokens(ids).with_params(params)).unwrap();
    output.prompt_logprobs.unwrap().into_iter().skip(case.prompt_ids.len()).flatten().collect()
}

/// Errors of every chosen token's and every top token's log-probability, where both sides list it.
fn errors(engine: &Engine) -> Vec<f64> {
    let mut errors = Vec::new();
    for case in cases() {
        for (found, step) in scores(engine, &case).iter().zip(&case.steps) {
            assert_eq!(found.chosen.token_id, id(&step["token_id"]));
            errors.push((f64::from(found.chosen.logprob) - step["logprob"].as_f64().unwrap()).abs());
            for top in step["top"].as_array().unwrap() {
                if let Some(same) = found.top.iter().find(|t| t.token_id == id(&top[0])) {
                    errors.push((f64::from(same.logprob) - top[1].as_f64().unwrap()).abs());
                }
            }
        }
    }
    errors
}

fn check(dtype: WeightDtype, kv_dtype: KvCacheDtype, tolerance: f64) {
    let Some(engine) = starter(dtype, kv_dtype) else { return };
    let errors = errors(&engine);
    let max = errors.iter().copied().fold(0.0, f64::max);
    let mean = errors.iter().sum::<f64>() / errors.len() as f64;
    println!(
        "{dtype:?}, keys and values {kv_dtype:?}: {} log-probabilities, error {max:.1e}, mean {mean:.1e}",
        errors.len()
    );
    assert!(errors.len() > 800 && max <= tolerance, "greatest error {max}");
    // All at once: none may change another.
    let submit = |case: Case| {
        let num_tokens = case.steps.len();
        let params =
            SamplingParams { temperature: 0.0, max_tokens: Some(num_tokens), ignore_eos: true, ..Default::default() };
        (engine.stream(GenerationRequest::tokens(case.prompt_ids).with_params(params)).unwrap(), case.steps)
    };
    let streams: Vec<_> = cases().into_iter().map(submit).collect();
    for (stream, steps) in streams {
        let expected: Vec<u32> = steps.iter().map(|s| id(&s["token_id"])).collect();
        assert_eq!(stream.blocking_collect().unwrap().outputs[0].token_ids, expected);
    }
}

#[test]
fn f32_weights_agree_with_transformers() {
    check(WeightDtype::F32, KvCacheDtype::F32, F32_TOLERANCE);
}

#[test]
fn quantized_weights_agree_with_transformers() {
    check(WeightDtype::Auto, KvCacheDtype::F32, QUANTIZED_TOLERANCE);
}

#[test]
fn half_keys_and_values_agree_with_transformers() {
    check(WeightDtype::F32, KvCacheDtype::F16, F16_TOLERANCE);
    check(WeightDtype::Auto, KvCacheDtype::F16, QUANTIZED_F16_TOLERANCE);
    check(WeightDtype::F32, KvCacheDtype::Bf16, 0.1);
}
