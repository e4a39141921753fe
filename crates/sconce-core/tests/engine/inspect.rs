//! What is said of a model before it is loaded.

use std::path::{Path, PathBuf};

use crate::common::write_tiny_model;
use sconce_core::Error;
use sconce_core::backend::KvDtype;
use sconce_core::config::{DeviceKind, EngineConfig, KvCacheDtype, LoadFormat, Quantization, WeightDtype};
use sconce_core::engine::{ModelReport, TokenCost, inspect};
use sconce_core::weights::Dtype;
use serde_json::{Value, json};

fn dummy() -> EngineConfig {
    EngineConfig { device: DeviceKind::Cpu, load_format: LoadFormat::Dummy, ..Default::default() }
}

fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path);
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

/// The report of the tiny model with `changes` to its config.json.
fn tiny(changes: Value, config: &EngineConfig) -> Result<ModelReport, Error> {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path());
    let path = dir.path().join("config.json");
    let mut values: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        values[key] = value.clone();
    }
    std::fs::write(&path, values.to_string()).unwrap();
    inspect(dir.path(), config)
}

#[test]
fn a_tiny_model_is_counted() {
    let report = tiny(json!({}), &dummy()).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    let layer = 64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 96;
    let (matrices, norms) = (2 * layer + 2 * 258 * 64, 5 * 64);
    assert_eq!(report.footprint.num_parameters(), matrices + norms);
    let groups: Vec<_> = report.footprint.groups.iter().map(|g| (g.dtype, g.num_parameters, g.bytes)).collect();
    assert_eq!(groups, [(Dtype::BF16, matrices, 2 * matrices), (Dtype::F32, norms, 4 * norms)]);
    assert_eq!(report.footprint.stored_bytes, 2 * (matrices + norms));
    // The embedding only gives rows.
    let (layers, head) = (2 * layer, 258 * 64);
    let cost = TokenCost { layer_weights: layers, head_weights: head, bytes_read: 2 * (layers + head) + 4 * norms };
    assert_eq!(report.footprint.token_cost, cost);
    assert_eq!((report.max_model_len, report.kv_bytes_per_token), (256, 2 * 2 * 2 * 16 * 4));
    assert_eq!(report.kv_bytes_per_sequence(), 256 * report.kv_bytes_per_token);
    let tokenizer = report.tokenizer.unwrap();
    assert_eq!((tokenizer.kind, tokenizer.vocab_size), ("byte-level BPE", 258));
    assert!(tokenizer.special_tokens.contains(&("bos_token".into(), "<s>".into(), Some(256))));
    assert_eq!(report.end_tokens, [(257, Some("</s>".into()))]);
    let template = report.chat_template.unwrap();
    assert!(template.takes_system_role && template.first_line.starts_with("{% for m in messages %}"), "{template:?}");
    let report = tiny(json!({}), &EngineConfig { dtype: WeightDtype::F32, ..dummy() }).unwrap();
    assert_eq!(report.footprint.memory_bytes(), 4 * (matrices + norms));
}

/// As large as Gemma 3 4B: 29 of 34 layers keep a window alone.
#[test]
fn layers_with_a_window_keep_less() {
    let gemma = json!({
        "architectures": ["Gemma3ForCausalLM"], "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256,
        "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 1024, "sliding_window_pattern": 6,
        "max_position_embeddings": 131072, "rope_local_base_freq": 10000.0,
    });
    let token_bytes = |report: &ModelReport| (report.kv_bytes_per_token, report.layers.num_parts());
    // In f32 on the CPU, where a step has 512 tokens.
    let report = tiny(gemma.clone(), &dummy()).unwrap();
    assert_eq!(token_bytes(&report), (34 * 2 * 4 * 256 * 4, 6));
    assert_eq!(report.kv_bytes_per_sequence(), 5_752_750_080);
    // In place of 7,696 and 30,832.
    assert_eq!([2, 8].map(|gib| report.kv_tokens(gib << 30)), [43_104, 200_352]);
    let on_gpu = EngineConfig { device: DeviceKind::Cuda(0), max_model_len: Some(1 << 15), ..dummy() };
    let report = tiny(gemma.clone(), &on_gpu).unwrap();
    assert_eq!(token_bytes(&report), (34 * 2 * 4 * 256 * 2, 6));
    assert_eq!(report.kv_bytes_per_sequence(), 1_051_852_800);
    // No longer than the window and a step: there is nothing to save.
    let short = EngineConfig { max_model_len: Some(1200), ..dummy() };
    let report = tiny(gemma, &short).unwrap();
    assert_eq!(token_bytes(&report), (34 * 2 * 4 * 256 * 4, 1));
    assert_eq!(report.kv_bytes_per_sequence(), 1200 * report.kv_bytes_per_token);
}

/// Types are those of the device that is asked for, be it here or not.
#[test]
fn a_gpu_has_types_of_its_own() {
    let gpu = |dtype, kv_cache_dtype| EngineConfig { device: DeviceKind::Cuda(3), dtype, kv_cache_dtype, ..dummy() };
    for (dtype, kv_cache_dtype, in_memory, kv_dtype) in [
        (WeightDtype::Auto, KvCacheDtype::Auto, Dtype::BF16, KvDtype::Bf16),
        (WeightDtype::Bf16, KvCacheDtype::Bf16, Dtype::BF16, KvDtype::Bf16),
        (WeightDtype::F16, KvCacheDtype::Auto, Dtype::F16, KvDtype::F16),
        (WeightDtype::Auto, KvCacheDtype::Int8, Dtype::BF16, KvDtype::Int8),
    ] {
        let report = tiny(json!({}), &gpu(dtype, kv_cache_dtype)).unwrap();
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        assert_eq!((report.footprint.groups[0].dtype, report.kv_dtype), (in_memory, kv_dtype));
        let head_bytes = if kv_dtype == KvDtype::Int8 { 16 + 2 } else { 16 * 2 };
        assert_eq!(report.kv_bytes_per_token, 2 * 2 * 2 * head_bytes);
    }
    for (dtype, kv_cache_dtype, words) in [
        (WeightDtype::F32, KvCacheDtype::Auto, "dtype: f32 is for the CPU"),
        (WeightDtype::Auto, KvCacheDtype::F32, "kv-cache-dtype: on a GPU keys and values have the weights' type, bf16"),
        (WeightDtype::F16, KvCacheDtype::Bf16, "kv-cache-dtype: on a GPU keys and values have the weights' type, f16"),
    ] {
        let report = tiny(json!({}), &gpu(dtype, kv_cache_dtype)).unwrap();
        assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
        assert!(report.problems[0].to_string().contains(words), "{}", report.problems[0]);
    }
    let report = tiny(json!({}), &EngineConfig { kv_cache_dtype: KvCacheDtype::Int8, ..dummy() }).unwrap();
    assert!(report.problems[0].to_string().contains("kv-cache-dtype: int8 is for a GPU"), "{:?}", report.problems);
}

#[test]
fn fp8_weights_are_counted_as_the_device_has_them() {
    let fp8 = |device| EngineConfig { device, quantization: Quantization::Fp8, ..dummy() };
    let layers = 2 * (64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 96);
    let scales = 4 * 2 * (64 * 2 + 2 * 32 + 2 * 96 + 64);
    for (device, dtype, bytes) in
        [(DeviceKind::Cuda(0), Dtype::F8E4M3, layers + scales), (DeviceKind::Cpu, Dtype::BF16, 2 * layers + scales)]
    {
        let report = tiny(json!({}), &fp8(device)).unwrap();
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        let (others, norms) = (2 * 2 * 258 * 64, 4 * 5 * 64);
        assert_eq!(report.footprint.memory_bytes(), bytes + others + norms);
        assert!(report.footprint.groups.iter().any(|group| group.dtype == dtype));
    }
    // As a checkpoint would have them.
    let gptq = json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": false});
    let report = tiny(json!({"quantization_config": gptq}), &dummy()).unwrap();
    let groups: Vec<_> = report.footprint.groups.iter().map(|group| (group.dtype, group.bytes)).collect();
    assert!(groups.contains(&(Dtype::Int4G32, layers / 32 * 20)), "{groups:?}");
    let error = tiny(json!({"quantization_config": {"quant_method": "hqq"}}), &dummy()).unwrap_err().to_string();
    assert!(error.contains("quantization_config.quant_method") && error.contains("hqq"), "{error}");
}

#[test]
fn tied_embeddings_are_counted_once() {
    let count = |changes| tiny(changes, &dummy()).unwrap().footprint.num_parameters();
    assert_eq!(count(json!({})) - count(json!({"tie_word_embeddings": true})), 258 * 64);
    let cost = |changes| tiny(changes, &dummy()).unwrap().footprint.token_cost;
    assert_eq!(cost(json!({})), cost(json!({"tie_word_embeddings": true})));
    assert_eq!(count(json!({"attention_bias": true})) - count(json!({})), 2 * (64 + 32 + 32 + 64));
}

/// A token reads its own experts alone.
#[test]
fn experts_are_counted_whole_and_for_a_token() {
    let changes = json!({"architectures": ["MixtralForCausalLM"], "num_local_experts": 6, "num_experts_per_tok": 2});
    let report = tiny(changes, &dummy()).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    let (attention, router, expert) = (64 * 64 * 2 + 2 * 64 * 32, 6 * 64, 3 * 64 * 96);
    let (embeddings, norms) = (2 * 258 * 64, 5 * 64);
    assert_eq!(report.footprint.num_parameters(), 2 * (attention + router + 6 * expert) + embeddings + norms);
    let layers = 2 * (attention + router + 2 * expert);
    let bytes_read = 2 * (layers + 258 * 64) + 4 * norms;
    assert_eq!(report.footprint.token_cost, TokenCost { layer_weights: layers, head_weights: 258 * 64, bytes_read });
}

/// As published: experts in MXFP4 come to 4.25 bits a weight.
#[test]
fn gpt_oss_is_counted() {
    for (num_layers, num_experts, num_parameters) in [(24u64, 32u64, 20_914_757_184), (36, 128, 116_829_156_672)] {
        let changes = json!({
            "architectures": ["GptOssForCausalLM"], "hidden_size": 2880, "intermediate_size": 2880, "head_dim": 64,
            "num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": num_layers,
            "num_local_experts": num_experts, "num_experts_per_tok": 4, "vocab_size": 201_088, "layer_types": null,
            "max_position_embeddings": 131_072, "rope_scaling": {"rope_type": "yarn", "factor": 32.0,
            "truncate": false, "original_max_position_embeddings": 4096}, "tie_word_embeddings": false,
            "quantization_config": {"quant_method": "mxfp4"}
        });
        let report = tiny(changes, &dummy()).unwrap();
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        assert_eq!((report.footprint.num_parameters(), report.max_model_len), (num_parameters, 131_072));
        let experts = num_layers * num_experts * 3 * 2880 * 2880;
        let groups: Vec<_> = report.footprint.groups.iter().map(|g| (g.dtype, g.num_parameters, g.bytes)).collect();
        assert!(groups.contains(&(Dtype::Mxfp4, experts, experts / 32 * 17)), "{groups:?}");
    }
}

#[test]
fn what_cannot_run_is_said() {
    let refused = |changes: Value, words: &str| {
        let error = tiny(changes, &dummy()).unwrap_err().to_string();
        assert!(error.contains("config.json") && error.contains(words), "{error}");
    };
    refused(json!({"architectures": ["FlyForCausalLM"]}), "FlyForCausalLM is not supported; supported: Llama");
    refused(json!({"rope_scaling": {"rope_type": "dynamic"}}), "rope_scaling: rope_type \"dynamic\" is not supported");
    refused(json!({"hidden_size": null}), "hidden_size: is missing");
    refused(json!({"num_attention_heads": 3, "head_dim": 16}), "num_attention_heads");

    let problem = |config: EngineConfig, words: &str| {
        let report = tiny(json!({}), &config).unwrap();
        assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
        assert!(report.problems[0].to_string().contains(words), "{}", report.problems[0]);
        assert!(report.footprint.num_parameters() > 0);
    };
    problem(EngineConfig::default(), "neither model.safetensors nor model.safetensors.index.json is there");
    problem(EngineConfig { max_model_len: Some(257), ..dummy() }, "max-model-len: 257 is beyond");
}

#[test]
fn a_file_that_is_no_model_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let error = inspect(dir.path(), &EngineConfig::default()).unwrap_err();
    assert!(error.to_string().contains("neither config.json nor a GGUF"), "{error}");
    let error = inspect(dir.path(), &dummy()).unwrap_err();
    assert!(error.to_string().contains("load-format: dummy weights need a folder with config.json"), "{error}");
}

#[test]
fn public_models_have_the_right_number_of_parameters() {
    let Some(configs) = shared("configs") else { return };
    for (name, num_parameters) in [
        ("gemma-2-9b-it", 9_241_705_984),
        ("mistral-7b-instruct-v0.2", 7_241_732_096),
        ("phi-3-mini-4k-instruct", 3_821_079_552),
        ("llama-3.1-8b-instruct", 8_030_261_248),
        ("phi-2", 2_779_683_840),
    ] {
        let report = inspect(&configs.join(name), &dummy()).unwrap();
        assert_eq!(report.footprint.num_parameters(), num_parameters, "{name}");
        assert!(report.problems.is_empty() && report.tokenizer.is_none(), "{name}: {:?}", report.problems);
        assert!(!report.end_tokens.is_empty(), "{name}");
    }
}

#[test]
fn files_are_described_as_they_are() {
    for name in ["gemma2", "mistral", "mistral-swa", "phi3", "llama", "phi"] {
        let Some(dir) = shared(&format!("fixtures/{name}")) else { return };
        let report = inspect(&dir, &EngineConfig::default()).unwrap();
        assert!(report.problems.is_empty(), "{name}: {:?}", report.problems);
        let as_dummy = inspect(&dir, &dummy()).unwrap();
        assert_eq!(report.footprint.num_parameters(), as_dummy.footprint.num_parameters(), "{name}");
        assert_eq!(report.chat_template.is_some(), name != "phi", "{name}");
        if let Some(template) = report.chat_template {
            // Gemma 2's refuses a system role; Mistral's puts it into the first user message.
            assert_eq!(template.takes_system_role, name != "gemma2", "{name}");
        }
    }
}
