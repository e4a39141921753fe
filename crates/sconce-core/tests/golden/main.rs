//! Tiny random models against outputs of transformers: logits, hidden states, greedy continuations, text.
//!
//! Every folder of `tests/golden` at the root of the repository, and of a family of fixtures beside the repository
//! where it is there, is one model directory with a `golden` folder, as `scripts/make_golden.py` describes it; a
//! fixture whose architecture is not in the registry is reported as skipped.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod beams;
mod compare;
mod engine;
mod fixture;
mod gguf;
mod report;
mod runner;
mod text;

use compare::max_error;
use report::check_all;
use runner::{BLOCK_SIZE, Runner};
use sconce_core::backend::cpu::CpuBackend;
use sconce_core::config::WeightDtype;

/// What f32 kernels may differ from transformers' f32 kernels.
const LOGITS_TOLERANCE: f32 = 2e-4;
/// With bf16 weights: the least share of positions whose most probable token is the golden one, and the greatest mean
/// of KL(golden || found).
const BF16_MIN_AGREEMENT: f64 = 0.95;
const BF16_MAX_DIVERGENCE: f64 = 2e-3;

#[test]
fn logits_equal_the_golden_ones() {
    check_all("logits", |fixture| {
        let mut runner = Runner::new(fixture, WeightDtype::F32, CpuBackend::new(Some(2)));
        let mut worst = 0.0_f32;
        for (i, prompt) in fixture.prompts().iter().enumerate() {
            let found = runner.logits(&[&prompt.input_ids], prompt.input_ids.len());
            let error = max_error(&found[0], &fixture.logits(i));
            assert!(error <= LOGITS_TOLERANCE, "{} prompt {i}: max error {error}", fixture.name);
            worst = worst.max(error);
        }
        Ok(format!("{worst:.1e}"))
    });
}

#[test]
fn a_common_prompt_changes_nothing() {
    check_all("common prompt", |fixture| {
        let mut runner = Runner::new(fixture, WeightDtype::F32, CpuBackend::new(Some(2)));
        let prompt = &fixture.prompts()[0].input_ids[..BLOCK_SIZE];
        let sequences = [&prompt[..3], &prompt[3..6], &prompt[1..4]];
        runner.logits(&[prompt], prompt.len());
        let found = runner.continued(1, &sequences, true);
        assert!(found == runner.continued(1, &sequences, false), "{}", fixture.name);
        Ok("equal".into())
    });
}

/// Reports the first layer that differs.
#[test]
fn hidden_states_equal_the_golden_ones() {
    check_all("layers", |fixture| {
        let prompt = &fixture.prompts()[0].input_ids;
        let hidden = Runner::new(fixture, WeightDtype::F32, CpuBackend::new(Some(2))).hidden_states(prompt);
        // The last golden state is after the final norm, which the head applies to the wanted rows alone.
        for (k, found) in hidden.iter().enumerate() {
            let error = max_error(found, &fixture.hidden(k));
            assert!(error <= LOGITS_TOLERANCE, "{}: the state after layer {k} is off by {error}", fixture.name);
        }
        Ok("ok".into())
    });
}

#[test]
fn chunks_change_nothing() {
    check_all("chunked", |fixture| {
        let mut runner = Runner::new(fixture, WeightDtype::F32, CpuBackend::new(Some(2)));
        for (i, prompt) in fixture.prompts().iter().enumerate() {
            let ids = prompt.input_ids.as_slice();
            let whole = runner.logits(&[ids], ids.len());
            for chunk_len in [1, 7] {
                let chunked = runner.logits(&[ids], chunk_len);
                assert!(chunked == whole, "{} prompt {i} in chunks of {chunk_len}", fixture.name);
            }
        }
        Ok("equal".into())
    });
}

#[test]
fn batches_change_nothing() {
    check_all("batched", |fixture| {
        let mut runner = Runner::new(fixture, WeightDtype::F32, CpuBackend::new(Some(2)));
        let prompts = fixture.prompts();
        let alone: Vec<_> =
            prompts.iter().map(|p| runner.logits(&[&p.input_ids], p.input_ids.len()).remove(0)).collect();
        let eight: Vec<&[u32]> = prompts.iter().map(|p| p.input_ids.as_slice()).cycle().take(8).collect();
        for chunk_len in [7, 1000] {
            for (i, found) in runner.logits(&eight, chunk_len).iter().enumerate() {
                let prompt = i % prompts.len();
                assert!(found == &alone[prompt], "{} prompt {prompt} in a batch of 8", fixture.name);
            }
        }
        Ok("equal".into())
    });
}

#[test]
fn bf16_weights_keep_the_distribution() {
    check_all("bf16", |fixture| {
        let mut runner = Runner::new(fixture, WeightDtype::Bf16, CpuBackend::new(Some(2)));
        Ok(runner.check_distribution(fixture, BF16_MIN_AGREEMENT, BF16_MAX_DIVERGENCE))
    });
}

#[test]
fn beam_hypotheses_equal_the_golden_ones() {
    check_all("beams", beams::check);
}
