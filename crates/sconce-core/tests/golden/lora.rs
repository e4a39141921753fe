//! Adapters of the fixtures' models against what peft and transformers compute with them, beside each other and the model as it is.

use sconce_core::backend::cpu::CpuBackend;
use sconce_core::config::{MatmulPrecision, WeightDtype};
use sconce_core::models::{self, RawConfig};
use sconce_core::weights::{Adapters, Dtype, StoredForm, WeightStore};

use crate::compare::{divergence, max_error};
use crate::fixture::Fixture;
use crate::report::check_all;
use crate::runner::Runner;
use crate::{LOGITS_TOLERANCE, beams, engine, gguf};

const NONE: &str = "it has no adapters";
/// Weights in blocks beside the same numbers in f32, whose products take other sums: the greatest mean of the divergence.
const BLOCKS_MAX_DIVERGENCE: f64 = 1e-6;

fn adapters_of(all: &[Fixture]) -> Adapters {
    Adapters::open(&all.iter().map(Fixture::adapter_source).collect::<Vec<_>>()).unwrap()
}

fn runner(fixture: &Fixture, all: &[Fixture]) -> Runner<CpuBackend> {
    let raw = RawConfig::from_dir(&fixture.dir).unwrap();
    let config = (models::find::<CpuBackend>(&raw).unwrap().parse_config)(&raw).unwrap();
    let store = WeightStore::open_safetensors(&fixture.dir, StoredForm::Plain).unwrap();
    Runner::of_adapters(&raw, config, (&store, &adapters_of(all)), WeightDtype::F32, CpuBackend::new(Some(2)))
}

/// All prompts through all adapters and none: one batch, in chunks, and each alone.
#[test]
fn logits_through_adapters_equal_the_golden_ones() {
    check_all("lora", |fixture| {
        let adapters = fixture.adapters();
        if adapters.is_empty() {
            return Err(NONE);
        }
        let mut runner = runner(fixture, &adapters);
        let prompts = fixture.prompts();
        // The numbers of adapters change from each sequence to the next.
        let (mut ids, mut numbers) = (Vec::new(), Vec::new());
        for prompt in prompts.iter().take(2) {
            ids.extend(vec![prompt.input_ids.as_slice(); adapters.len() + 1]);
            numbers.extend(0..=adapters.len() as u32);
        }
        let mut plain = Runner::new(fixture, WeightDtype::F32, CpuBackend::new(Some(2)));
        let mut worst = 0.0_f32;
        let mut alone = Vec::new();
        for (i, (ids, &number)) in ids.iter().zip(&numbers).enumerate() {
            let prompt = i / (adapters.len() + 1);
            let found = runner.logits_through(&[ids], &[number], ids.len()).remove(0);
            if number == 0 {
                assert!(found == plain.logits(&[ids], ids.len())[0], "{}: the model as it is", fixture.name);
            } else {
                let of = &adapters[number as usize - 1];
                let error = max_error(&found, &of.logits(prompt));
                assert!(error <= LOGITS_TOLERANCE, "{} prompt {prompt}: max error {error}", of.name);
                assert!(max_error(&found, &fixture.logits(prompt)) > 0.5, "{}: it makes no difference", of.name);
                worst = worst.max(error);
            }
            alone.push(found);
        }
        for chunk_len in [1, 7, 1000] {
            let found = runner.logits_through(&ids, &numbers, chunk_len);
            assert!(found == alone, "{} in chunks of {chunk_len}", fixture.name);
        }
        Ok(format!("{worst:.1e}"))
    });
}

/// Greedy continuations and beams through all adapters and none at once, from prompts that begin alike.
#[test]
fn continuations_through_adapters_equal_the_golden_ones() {
    check_all("lora greedy", |fixture| {
        let adapters = fixture.adapters();
        if adapters.is_empty() {
            return Err(NONE);
        }
        let engine = engine::load_with(fixture, &fixture.dir, |config| {
            config.adapters = adapters.iter().map(Fixture::adapter_source).collect();
        });
        let engine = &engine;
        // The second time prompts are found in the cache.
        for _ in 0..2 {
            std::thread::scope(|scope| {
                for fixture in adapters.iter().chain([fixture]) {
                    scope.spawn(move || engine::check_greedy(fixture, engine));
                    scope.spawn(move || beams::check_on(fixture, engine).unwrap());
                }
            });
        }
        Ok("equal".into())
    });
}

/// What is added to products of weights in blocks is what is added to those of the same numbers.
#[test]
fn adapters_go_with_quantized_weights() {
    check_all("lora gguf", |fixture| {
        let adapters = fixture.adapters();
        if adapters.is_empty() {
            return Err(NONE);
        }
        let mut worst = 0.0_f64;
        for dtype in [Dtype::F32, Dtype::Q8_0, Dtype::Q4_0] {
            let (raw, config, store) = gguf::open(fixture, dtype)?;
            let opened = adapters_of(&adapters);
            let new = |weights| {
                let cpu = CpuBackend::new(Some(2)).with_matmul_precision(MatmulPrecision::Exact);
                Runner::of_adapters(&raw, config.clone(), (&store, &opened), weights, cpu)
            };
            let (mut blocks, mut floats) = (new(WeightDtype::Auto), new(WeightDtype::F32));
            for (number, of) in (1..).zip(&adapters) {
                let ids = &fixture.prompts()[0].input_ids;
                let logits = |runner: &mut Runner<CpuBackend>| runner.logits_through(&[ids], &[number], 7).remove(0);
                let (found, expected) = (logits(&mut blocks), logits(&mut floats));
                if dtype == Dtype::F32 {
                    let error = max_error(&found, &of.logits(0));
                    assert!(error <= LOGITS_TOLERANCE, "{}: a GGUF's are off by {error}", of.name);
                }
                let rows = |logits: &[f32]| {
                    logits.chunks_exact(logits.len() / ids.len()).map(<[f32]>::to_vec).collect::<Vec<_>>()
                };
                let (found, expected) = (rows(&found), rows(&expected));
                let sum: f64 = found.iter().zip(&expected).map(|(found, expected)| divergence(found, expected)).sum();
                let mean = sum / ids.len() as f64;
                assert!(mean <= BLOCKS_MAX_DIVERGENCE, "{} in {dtype:?}: the mean divergence is {mean:.1e}", of.name);
                worst = worst.max(mean);
            }
        }
        Ok(format!("KL {worst:.0e}"))
    });
}
