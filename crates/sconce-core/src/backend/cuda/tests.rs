//! The golden fixtures on a device: all kernels together, as models use them.

#[allow(dead_code, reason = "shared with the golden tests on the CPU")]
#[path = "../../../tests/golden/compare.rs"]
mod compare;
#[allow(dead_code, reason = "shared with the golden tests on the CPU")]
#[path = "../../../tests/golden/fixture.rs"]
mod fixture;
#[path = "../../../tests/golden/report.rs"]
mod report;
#[allow(dead_code, reason = "shared with the golden tests on the CPU")]
#[path = "../../../tests/golden/runner.rs"]
mod runner;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fixture::Fixture;
use report::check_some;
use runner::{BLOCK_SIZE, Runner};

use super::CudaBackend;
use super::device::{Device, ElemType};
use super::host::HostDevice;
use super::storage::Matrix;
use crate::backend::cpu::CpuBackend;
use crate::backend::{Backend, BufferRole, Checked, KvDtype, StepLimits};
use crate::config::{Activation, KvCacheDtype, MatmulPrecision, ModelConfig, Quantization, WeightDtype};
use crate::models::{self, RawConfig};
use crate::ops::linear::hopper::adds_alike;
use crate::ops::testing::{devices, random};
use crate::weights::quant::random_blocks;
use crate::weights::{Dtype, StoredForm, TensorView, WeightStore};

/// A type of weights and activations; the least share of positions whose most probable token is the golden one, which was
/// computed in f32; and the greatest mean of KL(golden || found). transformers in bf16 has 91.8 % and 6.1e-3 on the worst of
/// these fixtures but one, in f16 98.1 % and 1.0e-4.
const BOUNDS: [(ElemType, &str, f64, f64); 2] =
    [(ElemType::Bf16, "cuda bf16", 0.92, 5e-3), (ElemType::F16, "cuda f16", 0.98, 1.2e-4)];
/// The same of the one that little moves far: transformers has 92.6 % and 1.3e-2, 97.5 % and 6.6e-4.
const MOVED: &str = "golden/smollm3";
const BOUNDS_OF_MOVED: [(f64, f64); 2] = [(0.92, 2e-2), (0.96, 1e-3)];

/// On every fixture of the repository: the shim is slow, and those kept beside it are of the same architectures.
fn check_all(column: &str, check: impl Fn(&Fixture) -> Result<String, &'static str>) {
    let mut fixtures = fixture::supported();
    fixtures.retain(|fixture| fixture.name.starts_with("golden/"));
    check_some(fixtures, column, check);
}

fn runners(fixture: &Fixture, elem: ElemType) -> Vec<Runner<CudaBackend>> {
    let new = |device| Runner::new(fixture, WeightDtype::Auto, CudaBackend::new(device, elem));
    devices().into_iter().map(new).collect()
}

#[test]
fn models_keep_the_distribution() {
    for ((elem, column, min_agreement, max_divergence), of_moved) in BOUNDS.into_iter().zip(BOUNDS_OF_MOVED) {
        check_all(column, |fixture| {
            let of_others = (min_agreement, max_divergence);
            let (min_agreement, max_divergence) = if fixture.name == MOVED { of_moved } else { of_others };
            let check = |mut runner: Runner<_>| runner.check_distribution(fixture, min_agreement, max_divergence);
            Ok(runners(fixture, elem).into_iter().map(check).collect::<Vec<_>>().join("; "))
        });
    }
}

fn fp8_runner<B: crate::backend::Backend>(fixture: &Fixture, backend: B) -> Runner<B> {
    let raw = RawConfig::from_dir(&fixture.dir).unwrap();
    let config = (models::find::<B>(&raw).unwrap().parse_config)(&raw).unwrap();
    let store = WeightStore::open_safetensors(&fixture.dir, StoredForm::Plain).unwrap().quantized(Quantization::Fp8);
    Runner::of_weights(&raw, config, &store, WeightDtype::Auto, backend)
}

/// What the weights lose is not the device's matter: the CPU has the same. It is another model than the bounds are of, which 16 bits may
/// move half as much again.
#[test]
fn fp8_weights_keep_the_cpus_distribution() {
    for (elem, column, min_agreement, max_divergence) in BOUNDS {
        check_all(&format!("{column} fp8"), |fixture| {
            if fixture.name.ends_with("phi3-long") || fixture.name == MOVED {
                return Err("16 bits alone move it about as far as the bounds");
            }
            if fixture.is_quantized() {
                return Err("it is stored in a quantized form");
            }
            let mut cpu = fp8_runner(fixture, CpuBackend::new(Some(2)));
            let check = |device| {
                let mut runner = fp8_runner(fixture, CudaBackend::new(device, elem));
                let expected = |_: usize, ids: &[u32]| cpu.logits(&[ids], ids.len()).remove(0);
                runner.check_against(fixture, expected, min_agreement, 1.5 * max_divergence)
            };
            Ok(devices().into_iter().map(check).collect::<Vec<_>>().join("; "))
        });
    }
}

/// Keys and values of 8 bits lose as much again as bf16 does.
#[test]
fn int8_keys_and_values_keep_the_distribution() {
    for (elem, column, _, _) in BOUNDS {
        let (min_agreement, max_divergence) = if elem == ElemType::F16 { (0.92, 4e-3) } else { (0.9, 9e-3) };
        check_all(&format!("{column} int8 kv"), |fixture| {
            if fixture.name.ends_with("gpt-oss") {
                return Err("with such keys and values transformers is off by 4.7e-3 in f32, by 1.9e-2 in bf16");
            }
            if fixture.name == MOVED {
                return Err("16 bits alone move it further than the bounds");
            }
            let runners = runners(fixture, elem).into_iter().map(|runner| runner.with_kv(KvCacheDtype::Int8));
            let check = |mut runner: Runner<_>| runner.check_distribution(fixture, min_agreement, max_divergence);
            Ok(runners.map(check).collect::<Vec<_>>().join("; "))
        });
    }
}

/// Single tokens run as graphs, and several as launches.
#[test]
fn chunks_batches_and_graphs_change_no_bit() {
    check_bits("cuda bits", KvCacheDtype::Auto, &[1, 7, 1000]);
}

#[test]
fn chunks_batches_and_graphs_change_no_bit_with_int8_keys_and_values() {
    check_bits("cuda bits int8 kv", KvCacheDtype::Int8, &[7]);
}

/// `chunk_lens`: beside token by token, of the shortest prompt.
fn check_bits(column: &str, kv: KvCacheDtype, chunk_lens: &[usize]) {
    check_all(column, |fixture| {
        for (runner, device) in runners(fixture, ElemType::Bf16).into_iter().zip(devices()) {
            let mut runner = runner.with_kv(kv);
            let prompts = fixture.prompts();
            let ids: Vec<&[u32]> = prompts.iter().map(|p| p.input_ids.as_slice()).take(3).collect();
            let whole: Vec<_> = ids.iter().map(|ids| runner.logits(&[ids], ids.len()).remove(0)).collect();
            for &chunk_len in chunk_lens {
                let found = runner.logits(&ids, chunk_len);
                assert!(found == whole, "{} in chunks of {chunk_len}", fixture.name);
            }
            // The shortest: how long it is makes no difference to what follows.
            let (shortest, whole) = ids.iter().zip(&whole).min_by_key(|(ids, _)| ids.len()).unwrap();
            let alone = runner.logits(&[shortest], 1).remove(0);
            assert!(alone == *whole, "{} alone, token by token", fixture.name);
            assert!(runner.backend.num_graphs() > 0, "single tokens were not written down");
            let backend = CudaBackend::new(device, ElemType::Bf16).without_graphs();
            let mut eager = Runner::new(fixture, WeightDtype::Auto, backend).with_kv(kv);
            let found = eager.logits(&[shortest], 1).remove(0);
            assert_eq!(eager.backend.num_graphs(), 0);
            assert!(found == *whole, "{} without graphs", fixture.name);
        }
        Ok("equal".into())
    });
}

/// A model that is wider than the fixtures' are.
fn wide_model(intermediate_size: usize, max_len: usize, ties_embeddings: bool) -> (RawConfig, ModelConfig) {
    wide_model_of("LlamaForCausalLM", intermediate_size, max_len, ties_embeddings)
}

fn wide_model_of(
    architecture: &str,
    intermediate_size: usize,
    max_len: usize,
    ties_embeddings: bool,
) -> (RawConfig, ModelConfig) {
    let config = format!(
        r#"{{"architectures": ["{architecture}"], "hidden_size": 128,
        "intermediate_size": {intermediate_size}, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "vocab_size": 576, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "max_position_embeddings": {max_len}, "tie_word_embeddings": {ties_embeddings}, "bos_token_id": 1, "eos_token_id": 2}}"#
    );
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let raw = RawConfig::from_dir(dir.path()).unwrap();
    let config = (models::find::<CudaBackend>(&raw).unwrap().parse_config)(&raw).unwrap();
    (raw, config)
}

/// Kernels expand weights to the numbers that loading would make of them.
#[test]
fn weights_that_stay_in_blocks_change_no_bit() {
    for (quantization, ties_embeddings) in [(Quantization::Q8_0, true), (Quantization::Q4_0, false)] {
        let (raw, config) = wide_model(288, 320, ties_embeddings);
        let ids: Vec<u32> = (0..320).map(|i| i * 7 % 576).collect();
        for device in devices() {
            let store = WeightStore::dummy(0, Dtype::BF16).quantized(quantization);
            let logits = |backend: CudaBackend, sequences: &[&[u32]], chunk_len| {
                let mut runner = Runner::of_weights(&raw, config.clone(), &store, WeightDtype::Auto, backend);
                runner.logits(sequences, chunk_len)
            };
            let backend = || CudaBackend::new(device.clone(), ElemType::Bf16);
            // So many tokens in a step that weights are expanded.
            let (first, second) = (&ids[..300], &ids[20..]);
            let expected = logits(backend().without_blocks(), &[first, second], 300);
            assert!(logits(backend(), &[first, second], 300) == expected, "{quantization:?}");
            if adds_alike(&device, ElemType::Bf16).unwrap() {
                let found = logits(backend().with_hopper(), &[first, second], 300);
                assert!(found == expected, "{quantization:?} with kernels for Hopper");
            }
            // Tiles and rows.
            for chunk_len in [40, 17, 12, 1] {
                let found = logits(backend(), &[&first[..40]], chunk_len);
                assert!(found[0] == expected[0][..40 * 576], "{quantization:?} in chunks of {chunk_len}");
            }
        }
    }
}

/// Experts of every form of weights that loading makes, by all their kernels.
#[test]
fn chunks_change_no_bit_of_experts() {
    let (raw, config) = wide_model_of("MixtralForCausalLM", 96, 320, false);
    let ids: Vec<u32> = (0..40).map(|i| i * 7 % 576).collect();
    for quantization in [Quantization::None, Quantization::Fp8, Quantization::Q8_0, Quantization::Q4_0] {
        let store = WeightStore::dummy(0, Dtype::BF16).quantized(quantization);
        for device in devices() {
            let backend = CudaBackend::new(device, ElemType::Bf16);
            let mut runner = Runner::of_weights(&raw, config.clone(), &store, WeightDtype::Auto, backend);
            let whole = runner.logits(&[&ids], 40);
            assert!(whole[0].iter().all(|x| x.is_finite()) && whole[0].iter().any(|&x| x != whole[0][0]));
            for chunk_len in [1, 9] {
                assert!(runner.logits(&[&ids], chunk_len) == whole, "{quantization:?} in chunks of {chunk_len}");
            }
        }
    }
}

/// Layers with a window give back what is before it, and share blocks with one without, which does not turn: by kernels for Hopper, by portable ones, in
/// graphs, and from 8 bits.
#[test]
fn blocks_given_back_change_no_bit() {
    let (raw, mut config) = wide_model(264, 320, false);
    (config.num_hidden_layers, config.sliding_window) = (3, vec![Some(40), None, Some(23)]);
    config.rope_layers = vec![true, false, true];
    let store = WeightStore::dummy(0, Dtype::BF16);
    let ids: Vec<u32> = (0..150).map(|i| i * 7 % 576).collect();
    let (both, short) = ([&ids[..], &ids[20..90]], [&ids[20..90]]);
    for (device, kv) in devices()
        .into_iter()
        .flat_map(|device| [KvCacheDtype::Auto, KvCacheDtype::Int8].map(|kv| (Arc::clone(&device), kv)))
    {
        let backend = || CudaBackend::new(Arc::clone(&device), ElemType::Bf16);
        let runner = |backend| Runner::of_weights(&raw, config.clone(), &store, WeightDtype::Auto, backend);
        let expected = runner(backend()).with_kv(kv).logits(&both, ids.len());
        let adds_alike = adds_alike(&device, ElemType::Bf16).unwrap();
        for chunk_len in [ids.len(), 50] {
            let found = runner(backend().with_hopper()).with_groups(kv).logits(&both, chunk_len);
            assert!(!adds_alike || found == expected, "{kv:?}: kernels for Hopper, chunks of {chunk_len}");
        }
        let mut runner = runner(backend()).with_groups(kv);
        assert!(runner.logits(&both, 19) == expected, "{kv:?}: in chunks of 19");
        assert!(runner.logits(&short, 1)[0] == expected[1], "{kv:?}: token by token");
        assert!(runner.backend.num_graphs() > 0, "single tokens were not written down");
    }
}

#[test]
fn inputs_follow_the_order_of_columns() {
    let (_, config) = wide_model(288, 320, true);
    let limits = StepLimits {
        max_tokens: 64,
        max_logits: 8,
        max_seqs: 8,
        max_model_len: 64,
        block_size: BLOCK_SIZE,
        num_groups: 1,
        kv_dtype: KvDtype::Bf16,
    };
    let order: Vec<u32> = (0..128).map(|i| i * 5 % 128).collect();
    for device in devices() {
        let backend = CudaBackend::new(device, ElemType::Bf16);
        for (dtype, data) in [
            (Dtype::Int4G32, random_blocks(Dtype::Int4G32, 64 * 4, 1)),
            (Dtype::F32, random(64 * 128, 1).iter().flat_map(|x| x.to_le_bytes()).collect()),
        ] {
            let matrix = |column_order: Option<Vec<u32>>| {
                let view = TensorView { column_order, ..TensorView::new(dtype, vec![64, 128], &data[..]) };
                backend.matrix(vec![view], None, WeightDtype::Auto).unwrap()
            };
            let (plain, ordered) = (matrix(None), matrix(Some(order.clone())));
            backend.batch(&config, &limits).unwrap();
            for num_tokens in [1, 12, 40] {
                let data = random(num_tokens * 128, 2);
                let gathered: Vec<f32> =
                    data.chunks(128).flat_map(|row| order.iter().map(|&col| row[col as usize])).collect();
                let run = |data: &[f32], weight: &Matrix| {
                    let buffer = |cols| backend.buffer(num_tokens, cols, BufferRole::Activation).unwrap();
                    let [mut x, mut out, mut gate_up, mut gated] = [128, 64, 64, 32].map(buffer);
                    backend.write(&mut x, data).unwrap();
                    backend.linear(&mut out, &x, weight).unwrap();
                    backend.gated_linear(&mut gated, &mut gate_up, &x, weight, Activation::Silu).unwrap();
                    [out, gated].map(|out| backend.read(&out, num_tokens).unwrap())
                };
                assert!(run(&data, &ordered) == run(&gathered, &plain), "{dtype}, {num_tokens} tokens");
            }
        }
    }
}

/// The fixtures' models are too narrow for kernels for Hopper. This one has products of all of their shapes.
#[test]
fn kernels_for_hopper_change_no_bit() {
    let (raw, config) = wide_model(264, 320, false);
    let ids: Vec<u32> = (0..300).map(|i| i * 7 % 576).collect();
    for device in devices() {
        let store = WeightStore::dummy(0, Dtype::BF16);
        let logits = |backend, chunk_len| {
            let mut runner = Runner::of_weights(&raw, config.clone(), &store, WeightDtype::Auto, backend);
            runner.logits(&[&ids], chunk_len)
        };
        let backend = || CudaBackend::new(device.clone(), ElemType::Bf16);
        let adds_alike = adds_alike(&device, ElemType::Bf16).unwrap();
        let portable = logits(backend(), ids.len());
        for chunk_len in [ids.len(), 160, 50] {
            let found = logits(backend().with_hopper(), chunk_len);
            assert!(!adds_alike || found == portable, "chunks of {chunk_len}");
        }
    }
}

/// A device whose trials end by chance, as the shim takes no times; a GPU's own trials are as good.
fn drawing(device: Arc<dyn Device>, seed: u64) -> Arc<dyn Device> {
    if device.name() != HostDevice::NAME {
        return device;
    }
    // A linear congruential generator.
    let drawn = AtomicU64::new(seed);
    HostDevice::choosing(move |num_candidates| {
        let next = |x: u64| x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = drawn.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |x| Some(next(x))).unwrap();
        (x >> 33) as usize % num_candidates
    })
}

/// Whichever of them a trial finds the fastest.
#[test]
fn algorithms_of_products_change_no_bit() {
    let (raw, config) = wide_model(320, 320, false);
    let ids: Vec<u32> = (0..320).map(|i| i * 7 % 576).collect();
    for (seed, quantization) in [(0, None), (1, Some(Quantization::Fp8)), (2, Some(Quantization::Q4_0))] {
        let store = WeightStore::dummy(0, Dtype::BF16);
        let store = match quantization {
            Some(quantization) => store.quantized(quantization),
            None => store,
        };
        let logits = |backend: CudaBackend, sequences: &[&[u32]], chunk_len| {
            let mut runner = Runner::of_weights(&raw, config.clone(), &store, WeightDtype::Auto, backend);
            runner.logits(sequences, chunk_len)
        };
        // Of two, so many tokens in a step that weights are expanded without a trial.
        let (first, second) = (&ids[..300], &ids[20..]);
        let steps: [(&[&[u32]], usize); 4] =
            [(&[first, second], 300), (&[first], 150), (&[&ids[..50]], 25), (&[&ids[..9]], 1)];
        for device in devices().into_iter().map(|device| drawing(device, seed)) {
            let adds_alike = adds_alike(&device, ElemType::Bf16).unwrap();
            let backend = || {
                let backend = CudaBackend::new(device.clone(), ElemType::Bf16);
                if adds_alike { backend.with_hopper() } else { backend }
            };
            for (sequences, chunk_len) in steps {
                let expected = logits(backend(), sequences, chunk_len);
                let found = logits(backend().tuned(), sequences, chunk_len);
                assert!(found == expected, "{quantization:?}, {} tokens by {chunk_len}", sequences[0].len());
            }
        }
    }
}

/// With `fast` inputs of such weights are rounded too, where there are more than a few tokens.
#[test]
fn inputs_in_e4m3_stay_near() {
    let (raw, config) = wide_model(320, 320, false);
    let ids: Vec<u32> = (0..200).map(|i| i * 7 % 576).collect();
    let store = WeightStore::dummy(0, Dtype::BF16).quantized(Quantization::Fp8);
    for device in devices() {
        let logits = |precision, chunk_len| {
            let backend = CudaBackend::new(device.clone(), ElemType::Bf16).with_matmul_precision(precision);
            let mut runner = Runner::of_weights(&raw, config.clone(), &store, WeightDtype::Auto, backend);
            runner.logits(&[&ids], chunk_len).remove(0)
        };
        let exact = logits(MatmulPrecision::Exact, 200);
        for chunk_len in [200, 50] {
            let fast = logits(MatmulPrecision::Fast, chunk_len);
            let square = |x: f32| f64::from(x) * f64::from(x);
            let error: f64 = fast.iter().zip(&exact).map(|(fast, exact)| square(fast - exact)).sum();
            let share = (error / exact.iter().map(|&x| square(x)).sum::<f64>()).sqrt();
            assert!((1e-3..4e-2).contains(&share), "an error of {share} of the logits");
        }
    }
}

/// Decode attention does RoPE and the append too, whatever the model; prompts have a launch for them. On the host shim, which counts
/// launches.
#[test]
fn rope_within_attention_changes_no_bit() {
    for kv in [KvCacheDtype::Auto, KvCacheDtype::Int8] {
        check_all(&format!("cuda rope {kv:?}"), |fixture| {
            let (device, watch) = HostDevice::watched(false);
            let num_launches = |op: &str| -> usize {
                let all = watch.num_launches.lock().unwrap();
                all.iter().filter(|(name, _)| name.starts_with(op)).map(|(_, num)| num).sum()
            };
            let run = |backend: CudaBackend, chunk_len| {
                let mut runner = Runner::new(fixture, WeightDtype::Auto, backend).with_kv(kv);
                let ids = &fixture.prompts()[0].input_ids;
                let ids = &ids[..ids.len().min(12)];
                runner.logits(&[ids, &ids[..ids.len() / 2]], chunk_len)
            };
            let backend = || CudaBackend::new(Arc::clone(&device), ElemType::Bf16);
            if !Runner::new(fixture, WeightDtype::Auto, backend()).turns_whole_words() {
                return Err("words of what turns are no pairs of neighbours");
            }
            let found = run(backend(), 1);
            let counts = ["rope_append_kv", "attention_decode"].map(num_launches);
            assert!(counts[0] == 0 && counts[1] > 0, "{}: {counts:?}", fixture.name);
            assert!(found == run(backend().without_fused_rope(), 1), "{}", fixture.name);
            let counts = [counts[1], num_launches("rope_append_kv")];
            assert_eq!(counts[0], counts[1], "{}: as many layers and steps", fixture.name);
            assert!(found == run(backend(), 5), "{} in chunks", fixture.name);
            assert!(num_launches("rope_append_kv") > counts[1]);
            Ok("equal".into())
        });
    }
}

/// Behind a prompt of more than a split, beams read its keys together.
#[test]
fn a_common_prompt_changes_no_bit() {
    check_all("cuda common prompt", |fixture| {
        for device in devices() {
            let backend = CudaBackend::new(device, ElemType::Bf16).sharing_always();
            let mut runner = Runner::new(fixture, WeightDtype::Auto, backend);
            let prompt: Vec<u32> =
                fixture.prompts()[0].input_ids.iter().copied().cycle().take(34 * BLOCK_SIZE).collect();
            let sequences = [&prompt[..3], &prompt[3..6], &prompt[1..4]];
            runner.logits(&[&prompt], prompt.len());
            let found = runner.continued(34, &sequences, true);
            let num_graphs = runner.backend.num_graphs();
            assert!(found == runner.continued(34, &sequences, false), "{}", fixture.name);
            assert!(runner.backend.num_graphs() > num_graphs, "both were the same launches");
        }
        Ok("equal".into())
    });
}

#[test]
fn each_operation_is_the_cpus() {
    check_all("cuda checked", |fixture| {
        for device in devices() {
            let tested = CudaBackend::new(device, ElemType::Bf16);
            let backend = Checked::new(tested, CpuBackend::new(Some(1)), 2e-2);
            let mut runner = Runner::new(fixture, WeightDtype::Bf16, backend);
            let ids = &fixture.prompts()[0].input_ids;
            runner.logits(&[ids, &ids[..ids.len() / 2]], 5);
        }
        Ok("ok".into())
    });
}
