//! Tests of the store, over every kind of file.

use std::path::PathBuf;

use super::super::gguf::names::{Names, Stored};
use super::*;
use crate::config::{Activation, RopeConfig, RopeScaling};
use crate::weights::gguf_writer::GgufWriter;
use crate::weights::{GgufValue, PackedLayout, Packing};

/// Heads and head_dim are all that a store reads of a config.
fn config(num_attention_heads: usize, num_key_value_heads: usize, head_dim: usize) -> ModelConfig {
    ModelConfig {
        architecture: String::new(),
        hidden_size: 0,
        intermediate_size: 0,
        experts: None,
        num_hidden_layers: 0,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        vocab_size: 0,
        max_position_embeddings: 0,
        norm_eps: 0.0,
        rope: RopeConfig { rope_theta: 0.0, rotary_dim: 0, scaling: RopeScaling::Default },
        local_rope: None,
        rope_layers: Vec::new(),
        interleaved_rope: false,
        qk_norm: None,
        norm_offset: 0.0,
        embedding_scale: 1.0,
        tie_word_embeddings: false,
        attention_bias: false,
        mlp_bias: false,
        hidden_act: Activation::Silu,
        attention_scale: 0.0,
        attn_logit_softcapping: None,
        logit_scale: 1.0,
        final_logit_softcapping: None,
        sliding_window: Vec::new(),
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    }
}

fn writer(architecture: &str) -> GgufWriter {
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", &GgufValue::String(architecture.into()));
    writer
}

fn open(writer: &GgufWriter, config: &ModelConfig) -> Result<WeightStore> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    writer.write(&path).unwrap();
    // The mapping outlives the file's name.
    WeightStore::open_gguf(GgufFile::open(&path)?, config)
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn counting(len: usize) -> Vec<f32> {
    (0..len).map(|i| i as f32).collect()
}

/// Rows as the conversion of Llama reorders them: [heads, 2, half, bytes] to [heads, half, 2, bytes].
fn interleaved(rows: &[u8], num_heads: usize, num_rows: usize) -> Vec<u8> {
    let row_bytes = rows.len() / num_rows;
    let half = num_rows / num_heads / 2;
    let mut out = Vec::new();
    for h in 0..num_heads {
        for i in 0..half {
            for j in 0..2 {
                let row = (h * 2 + j) * half + i;
                out.extend_from_slice(&rows[row * row_bytes..(row + 1) * row_bytes]);
            }
        }
    }
    out
}

#[track_caller]
fn check_message(error: Error, parts: &[&str]) {
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "no {part:?} in {message:?}");
    }
}

#[test]
fn experts_are_parts_of_one_tensor_or_tensors_of_their_own() {
    let name = |expert: usize, part: &str| format!("model.layers.0.block_sparse_moe.experts.{expert}.{part}.weight");
    let (data, mut file) = (f32_bytes(&counting(3 * 2 * 32)), writer("llama"));
    let blocks = quant::random_blocks(Dtype::Q4_0, 3 * 2, 1);
    file.tensor("blk.0.ffn_gate_exps.weight", Dtype::F32, &[3, 2, 32], &data);
    file.tensor("blk.0.ffn_up_exps.weight", Dtype::Q4_0, &[3, 2, 32], &blocks);
    file.tensor("blk.0.ffn_down.1.weight", Dtype::F32, &[2, 32], &data[..256]);
    let store = open(&file, &config(1, 1, 8)).unwrap();
    for expert in 0..3 {
        let found = store.get(&name(expert, "w1"), &[2, 32]).unwrap();
        assert_eq!(&*found.data, &data[expert * 256..(expert + 1) * 256]);
        let found = store.get(&name(expert, "w3"), &[2, 32]).unwrap();
        assert_eq!((found.dtype, &*found.data), (Dtype::Q4_0, &blocks[expert * 36..(expert + 1) * 36]));
        assert_eq!(store.describe(&name(expert, "w3"), &[2, 32]).unwrap().shape, [2, 32]);
    }
    assert_eq!(&*store.get(&name(1, "w2"), &[2, 32]).unwrap().data, &data[..256]);
    check_message(
        store.get(&name(0, "w2"), &[2, 32]).unwrap_err(),
        &["ffn_down_exps.weight and blk.0.ffn_down.0.weight"],
    );
    for error in [store.get(&name(3, "w1"), &[2, 32]).err(), store.describe(&name(3, "w1"), &[2, 32]).err()] {
        check_message(error.unwrap(), &["blk.0.ffn_gate_exps.weight", "3 to 4", "found 3"]);
    }
    check_message(store.get(&name(0, "w1"), &[2, 16]).unwrap_err(), &["expected the shape [2, 16], found [2, 32]"]);
}

#[test]
fn what_chooses_experts_is_not_quantized() {
    for quantization in [Quantization::Fp8, Quantization::Q4_0, Quantization::Q8_0] {
        let store = WeightStore::dummy(0, Dtype::BF16).quantized(quantization);
        for name in ["mlp.gate", "mlp.router", "block_sparse_moe.gate"] {
            let name = &format!("model.layers.0.{name}.weight");
            assert_eq!(store.get(name, &[4, 32]).unwrap().dtype, Dtype::BF16);
            assert_eq!(store.describe(name, &[4, 32]).unwrap().dtype, Dtype::BF16);
        }
        let expert = "model.layers.0.block_sparse_moe.experts.0.w1.weight";
        assert_ne!(store.get(expert, &[4, 32]).unwrap().dtype, Dtype::BF16);
    }
}

#[test]
fn names_of_each_architecture() {
    let cases = [
        ("llama", "model.embed_tokens.weight", "token_embd.weight"),
        ("llama", "model.layers.12.self_attn.q_proj.weight", "blk.12.attn_q.weight"),
        ("llama", "model.layers.0.self_attn.k_proj.bias", "blk.0.attn_k.bias"),
        ("llama", "model.layers.0.self_attn.o_proj.weight", "blk.0.attn_output.weight"),
        ("llama", "model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight"),
        ("llama", "model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
        ("llama", "model.layers.0.mlp.gate_proj.weight", "blk.0.ffn_gate.weight"),
        ("llama", "model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
        ("llama", "model.norm.weight", "output_norm.weight"),
        ("llama", "lm_head.weight", "output.weight"),
        ("llama", "rope_freqs.weight", "rope_freqs.weight"),
        ("llama", "model.layers.1.block_sparse_moe.gate.weight", "blk.1.ffn_gate_inp.weight"),
        (
            "llama",
            "model.layers.1.block_sparse_moe.experts.12.w3.weight",
            "blk.1.ffn_up_exps.weight blk.1.ffn_up.12.weight",
        ),
        (
            "llama",
            "model.layers.1.block_sparse_moe.experts.x.w3.weight",
            "model.layers.1.block_sparse_moe.experts.x.w3.weight",
        ),
        ("gemma2", "model.layers.3.post_attention_layernorm.weight", "blk.3.post_attention_norm.weight"),
        ("gemma2", "model.layers.3.pre_feedforward_layernorm.weight", "blk.3.ffn_norm.weight"),
        ("gemma2", "model.layers.3.post_feedforward_layernorm.weight", "blk.3.post_ffw_norm.weight"),
        ("phi3", "model.layers.0.self_attn.qkv_proj.weight", "blk.0.attn_qkv.weight"),
        ("phi3", "model.layers.0.mlp.gate_up_proj.weight", "blk.0.ffn_up.weight"),
        ("phi2", "model.layers.0.self_attn.q_proj.bias", "blk.0.attn_q.bias blk.0.attn_qkv.bias"),
        ("phi2", "model.layers.0.self_attn.dense.bias", "blk.0.attn_output.bias"),
        ("gpt-oss", "model.layers.2.self_attn.sinks", "blk.2.attn_sinks.weight"),
        ("gpt-oss", "model.layers.2.mlp.experts.7.up_proj.bias", "blk.2.ffn_up_exps.bias"),
        ("phi2", "model.layers.0.mlp.fc1.weight", "blk.0.ffn_up.weight"),
        ("phi2", "model.final_layernorm.bias", "output_norm.bias"),
        ("phi2", "lm_head.bias", "output.bias"),
        // Not of the architecture: they stand for themselves.
        ("llama", "model.layers.0.mlp.fc1.weight", "model.layers.0.mlp.fc1.weight"),
        ("llama", "model.layers.0", "model.layers.0"),
        ("llama", "", ""),
    ];
    for (architecture, name, expected) in cases {
        let places = Names::of(architecture).unwrap().places(name);
        let found: Vec<_> = places.iter().map(|place| place.name.as_str()).collect();
        assert_eq!(found.join(" "), expected, "{architecture}: {name}");
    }
}

#[test]
fn rows_of_llama_are_put_back() {
    let (q_heads, k_heads, head_dim, cols) = (4, 2, 6, 32);
    let mut writer = writer("llama");
    let mut add = |name: &str, num_heads: usize, dtype: Dtype| {
        let values: Vec<f32> = counting(num_heads * head_dim * cols).iter().map(|v| v / 100.0).collect();
        let data = quant::encode(dtype, &values).unwrap();
        let (rows, shape) = (num_heads * head_dim, [num_heads * head_dim, cols]);
        writer.tensor(&format!("{name}.weight"), dtype, &shape, &interleaved(&data, num_heads, rows));
        let bias = f32_bytes(&counting(rows));
        writer.tensor(&format!("{name}.bias"), Dtype::F32, &[rows], &interleaved(&bias, num_heads, rows));
        data
    };
    let q = add("blk.0.attn_q", q_heads, Dtype::Q8_0);
    let k = add("blk.0.attn_k", k_heads, Dtype::BF16);
    let v = add("blk.0.attn_v", k_heads, Dtype::Q4_1);
    let store = open(&writer, &config(q_heads, k_heads, head_dim)).unwrap();
    let get = |name: &str, shape: &[usize]| store.get(&format!("model.layers.0.self_attn.{name}"), shape).unwrap();
    assert_eq!(*get("q_proj.weight", &[24, 32]).data, q);
    assert_eq!(*get("k_proj.weight", &[12, 32]).data, k);
    assert_eq!(get("q_proj.bias", &[24]).to_f32(), counting(24));
    assert_eq!(get("k_proj.bias", &[12]).to_f32(), counting(12));
    // v is never reordered by a conversion.
    assert_eq!(*get("v_proj.weight", &[12, 32]).data, interleaved(&v, k_heads, 12));
}

#[test]
fn heads_that_do_not_divide_the_rows_are_refused() {
    let mut writer = writer("llama");
    writer.tensor("blk.0.attn_q.weight", Dtype::F32, &[6, 1], &[0; 24]);
    for (heads, accepted) in [(0, false), (1, true), (2, false), (3, true), (4, false), (usize::MAX, false)] {
        let store = open(&writer, &config(heads, 1, 2)).unwrap();
        match store.get("model.layers.0.self_attn.q_proj.weight", &[6, 1]) {
            Ok(_) => assert!(accepted, "{heads} heads"),
            Err(error) => {
                assert!(!accepted, "{heads} heads");
                check_message(error, &["tensor blk.0.attn_q.weight", "6 rows", "heads"]);
            }
        }
    }
}

#[test]
fn norms_of_gemma2_lose_the_one_that_was_added() {
    let mut writer = writer("gemma2");
    writer.tensor("blk.0.post_ffw_norm.weight", Dtype::F32, &[3], &f32_bytes(&[1.5, 0.75, 1.0]));
    writer.tensor("output_norm.weight", Dtype::BF16, &[1], &[0x00, 0x40]);
    let store = open(&writer, &config(1, 1, 2)).unwrap();
    let norm = store.get("model.layers.0.post_feedforward_layernorm.weight", &[3]).unwrap();
    assert_eq!((norm.dtype, norm.to_f32()), (Dtype::F32, vec![0.5, -0.25, 0.0]));
    assert_eq!(store.get("model.norm.weight", &[1]).unwrap().to_f32(), [1.0]);
}

#[test]
fn fused_projections_of_phi2_are_taken_apart() {
    let mut writer = writer("phi2");
    let (rows, cols) = (12, 32);
    let data = quant::encode(Dtype::Q4_0, &counting(rows * cols)).unwrap();
    writer.tensor("blk.0.attn_qkv.weight", Dtype::Q4_0, &[rows, cols], &data);
    writer.tensor("blk.0.attn_qkv.bias", Dtype::F32, &[rows], &f32_bytes(&counting(rows)));
    writer.tensor("blk.1.attn_q.bias", Dtype::F32, &[4], &f32_bytes(&counting(4)));
    let store = open(&writer, &config(2, 2, 2)).unwrap();
    for (i, name) in ["q", "k", "v"].into_iter().enumerate() {
        let get = |kind: &str, shape: &[usize]| {
            store.get(&format!("model.layers.0.self_attn.{name}_proj.{kind}"), shape).unwrap()
        };
        assert_eq!(*get("weight", &[4, cols]).data, data[i * 4 * 18..(i + 1) * 4 * 18], "{name}");
        assert_eq!(get("bias", &[4]).to_f32(), counting(12)[4 * i..4 * (i + 1)], "{name}");
    }
    assert_eq!(store.get("model.layers.1.self_attn.q_proj.bias", &[4]).unwrap().to_f32(), counting(4));
    let too_many = open(&writer, &config(4, 4, 2)).unwrap();
    let error = too_many.get("model.layers.0.self_attn.k_proj.bias", &[8]).unwrap_err();
    check_message(error, &["tensor blk.0.attn_qkv.bias", "rows 8 to 16", "12 rows"]);
}

#[test]
fn an_error_says_what_was_looked_for() {
    let mut writer = writer("llama");
    writer.tensor("token_embd.weight", Dtype::F32, &[2, 3], &[0; 24]);
    writer.tensor("blk.0.attn_q.weights", Dtype::F32, &[1], &[0; 4]);
    writer.tensor("rope_freqs.weight", Dtype::F32, &[1], &f32_bytes(&[8.0]));
    let store = open(&writer, &config(1, 1, 2)).unwrap();
    let error = store.get("model.layers.0.self_attn.q_proj.weight", &[1]).unwrap_err();
    check_message(error, &["model.gguf", "tensor model.layers.0.self_attn.q_proj.weight", "for blk.0.attn_q.weight)"]);
    let error = store.get("model.layers.0.self_attn.q_proj.weight", &[1]).unwrap_err();
    check_message(error, &["nearest name is blk.0.attn_q.weights"]);
    let error = store.get("xyz", &[1]).unwrap_err().to_string();
    assert!(error.ends_with("tensor xyz: there is no such tensor"), "{error}");
    let error = store.get("model.embed_tokens.weight", &[3, 2]).unwrap_err();
    check_message(error, &["tensor model.embed_tokens.weight", "expected the shape [3, 2], found [2, 3]"]);
    assert_eq!(store.get("rope_freqs.weight", &[1]).unwrap().to_f32(), [8.0]);
    assert!(store.contains("model.embed_tokens.weight") && !store.contains("lm_head.weight"));
    assert_eq!(store.names(), ["blk.0.attn_q.weights", "rope_freqs.weight", "token_embd.weight"]);
    assert_eq!(store.total_bytes(), 32);
}

#[test]
fn an_architecture_without_names_is_refused() {
    let error = open(&writer("mamba"), &config(1, 1, 1)).unwrap_err();
    check_message(
        error,
        &[
            "general.architecture",
            "llama, smollm3, granite, olmo2, glm4, command-r, cohere2, gemma, gemma2, gemma3, qwen2, qwen3, qwen3moe, gpt-oss, phi3, phi2",
            "\"mamba\"",
        ],
    );
    check_message(open(&GgufWriter::new(), &config(1, 1, 1)).unwrap_err(), &["general.architecture is missing"]);
}

#[test]
fn a_file_says_whether_it_has_blocks() {
    let mut writer = writer("llama");
    writer.tensor("token_embd.weight", Dtype::F16, &[2, 32], &[0; 128]);
    assert_eq!(open(&writer, &config(1, 1, 1)).unwrap().block_format(), None);
    writer.tensor("blk.0.ffn_down.weight", Dtype::Q4_0, &[2, 32], &[0; 36]);
    assert_eq!(open(&writer, &config(1, 1, 1)).unwrap().block_format(), Some(Dtype::Q4_0));
    assert_eq!(WeightStore::dummy(1, Dtype::BF16).block_format(), None);
}

#[test]
fn dummy_weights_have_no_names() {
    let store = WeightStore::dummy(1, Dtype::BF16);
    assert_eq!(store.get("lm_head.weight", &[2, 3]).unwrap().shape, [2, 3]);
    assert!(!store.contains("lm_head.weight") && store.names().is_empty());
    assert_eq!(store.total_bytes(), 0);
}

/// A model directory of the shared test data; `None`, said aloud, where that is absent.
fn fixture(name: &str) -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures").join(name);
    if dir.exists() {
        return Some(dir);
    }
    println!("skipped: {} is not there", dir.display());
    None
}

#[test]
fn a_model_is_the_same_from_safetensors_and_from_gguf() {
    let models = [
        ("llama", "llama", config(4, 2, 16)),
        ("mistral", "llama", config(4, 2, 16)),
        ("mistral-swa", "llama", config(8, 2, 8)),
        ("gemma2", "gemma2", config(4, 2, 24)),
        ("phi3", "phi3", config(4, 4, 16)),
        ("phi", "phi2", config(4, 4, 20)),
    ];
    for (model, architecture, config) in models {
        let Some(dir) = fixture(model) else { continue };
        let original = WeightStore::open_safetensors(&dir, StoredForm::Plain).unwrap();
        let names: Vec<String> = original.names().into_iter().map(str::to_owned).collect();
        assert!(names.len() > 15, "{model}");
        let shape = |name: &str| match &original.source {
            Source::Safetensors(files) => files.tensor(name).unwrap().unwrap().shape,
            _ => unreachable!("it was opened as safetensors"),
        };
        let mut writer = writer(architecture);
        for name in &names {
            let tensor = original.get(name, &shape(name)).unwrap();
            let place = Names::of(architecture).unwrap().places(name).swap_remove(0);
            assert_ne!(place.name, *name, "{model}: not in the table");
            let (rows, dtype) = (tensor.shape[0], tensor.dtype);
            match place.stored {
                Stored::InterleavedQ => {
                    let data = interleaved(&tensor.data, config.num_attention_heads, rows);
                    writer.tensor(&place.name, dtype, &tensor.shape, &data);
                }
                Stored::InterleavedK => {
                    let data = interleaved(&tensor.data, config.num_key_value_heads, rows);
                    writer.tensor(&place.name, dtype, &tensor.shape, &data);
                }
                Stored::PlusOne => {
                    let plus_one: Vec<f32> = tensor.to_f32().iter().map(|v| v + 1.0).collect();
                    writer.tensor(&place.name, Dtype::F32, &tensor.shape, &f32_bytes(&plus_one));
                }
                _ => {
                    writer.tensor(&place.name, dtype, &tensor.shape, &tensor.data);
                }
            }
        }
        let converted = open(&writer, &config).unwrap();
        for name in &names {
            let expected = original.get(name, &shape(name)).unwrap().to_f32();
            let found = converted.get(name, &shape(name)).unwrap().to_f32();
            // Adding one rounds the last bits of a norm away.
            let close = expected.iter().zip(&found).all(|(a, b)| (a - b).abs() <= f32::EPSILON * (1.0 + a.abs()));
            assert!(close, "{model}: {name}");
        }
    }
}

#[test]
fn dummy_weights_have_the_form_of_a_checkpoint() {
    let (q, shape) = ("model.layers.0.self_attn.q_proj.weight", [5, 128]);
    let plain = WeightStore::dummy(3, Dtype::BF16).get(q, &shape).unwrap().to_f32();
    let packed = |bits, group_size, is_symmetric| {
        StoredForm::Packed(Packing { layout: PackedLayout::Awq, bits, group_size, is_symmetric })
    };
    for (form, dtype, tolerance) in [
        (StoredForm::Fp8, Dtype::F8E4M3, 0.003),
        (packed(4, Some(128), false), Dtype::Int4G128, 0.006),
        (packed(4, Some(32), false), Dtype::Int4G32, 0.006),
        (packed(4, Some(64), true), Dtype::Q4_0, 0.006),
        (packed(8, None, true), Dtype::Q8_0, 0.0004),
    ] {
        let store = WeightStore::dummy_of(3, Dtype::BF16, form);
        let (found, described) = (store.get(q, &shape).unwrap(), store.describe(q, &shape).unwrap());
        assert_eq!((found.dtype, described.dtype), (dtype, dtype));
        let error = found.to_f32().iter().zip(&plain).fold(0.0f32, |max, (f, p)| max.max((f - p).abs()));
        assert!(error > 0.0 && error <= tolerance, "{dtype}: {error}");
        assert_eq!(store.random(q).map(|random| random.dtype), (form == StoredForm::Fp8).then_some(dtype));
        for name in [EMBEDDING, "model.layers.0.norm.weight"] {
            assert_eq!(store.describe(name, &shape[1..]).unwrap().dtype, Dtype::BF16, "{name}");
        }
        assert_eq!(store.random("lm_head.weight").map(|random| random.dtype), Some(Dtype::BF16));
    }
    let store = WeightStore::dummy_of(3, Dtype::BF16, packed(4, Some(96), false));
    let message = store.describe(q, &shape).unwrap_err().to_string();
    assert!(message.contains(q) && message.contains("groups of 96"), "{message}");
    // Not made in another form in passing: asking for it is refused.
    let store = WeightStore::dummy_of(3, Dtype::BF16, packed(4, Some(128), false)).quantized(Quantization::Fp8);
    assert!(store.random(q).is_none() && store.get(q, &shape).unwrap_err().to_string().contains("INT4_G128"));
}

#[test]
fn layers_are_quantized_where_that_is_asked_for() {
    let store = WeightStore::dummy(3, Dtype::BF16).quantized(Quantization::Fp8);
    let plain = WeightStore::dummy(3, Dtype::BF16);
    let (q, shape) = ("model.layers.0.self_attn.q_proj.weight", [5, 32]);
    let found = store.get(q, &shape).unwrap();
    assert_eq!((found.dtype, found.data.len(), found.row_scales.as_ref().unwrap().len()), (Dtype::F8E4M3, 160, 5));
    for (found, expected) in found.to_f32().iter().zip(plain.get(q, &shape).unwrap().to_f32()) {
        assert!((found - expected).abs() <= expected.abs() / 16.0 + 1e-6, "{found} for {expected}");
    }
    let random = store.random(q).unwrap();
    assert_eq!((random.dtype, random.seed), (Dtype::F8E4M3, plain.random(q).unwrap().seed));
    assert_eq!(store.describe(q, &shape).unwrap(), TensorInfo { dtype: Dtype::F8E4M3, shape: shape.to_vec() });
    for (name, shape) in
        [(EMBEDDING, &[5, 32][..]), ("lm_head.weight", &[5, 32]), ("model.layers.0.norm.weight", &[32])]
    {
        assert_eq!(store.get(name, shape).unwrap().dtype, Dtype::BF16, "{name}");
        assert_eq!(store.describe(name, shape).unwrap().dtype, Dtype::BF16, "{name}");
    }
    let blocks = WeightStore::dummy(3, Dtype::Q8_0).quantized(Quantization::Fp8);
    let message = blocks.get(q, &shape).unwrap_err().to_string();
    assert!(message.contains("quantization") && message.contains(q) && message.contains("Q8_0"), "{message}");
    assert_eq!(blocks.describe(q, &shape).unwrap_err().to_string(), message);
}

#[test]
fn all_matrices_are_quantized_to_blocks_where_that_is_asked_for() {
    let plain = WeightStore::dummy(3, Dtype::BF16);
    let (q, head, norm) = ("model.layers.0.self_attn.q_proj.weight", "lm_head.weight", "model.norm.weight");
    for (quantization, of_layers) in [(Quantization::Q8_0, Dtype::Q8_0), (Quantization::Q4_0, Dtype::Q4_0)] {
        let store = WeightStore::dummy(3, Dtype::BF16).quantized(quantization);
        // More rows than one thread takes.
        for (name, dtype, shape) in
            [(q, of_layers, [200, 64]), (head, Dtype::Q8_0, [3, 32]), (EMBEDDING, Dtype::Q8_0, [3, 32])]
        {
            let found = store.get(name, &shape).unwrap();
            assert_eq!(store.describe(name, &shape).unwrap(), TensorInfo { dtype, shape: shape.to_vec() });
            let expected = quant::encode(dtype, &plain.get(name, &shape).unwrap().to_f32()).unwrap();
            assert!(found.dtype == dtype && *found.data == expected, "{name}");
        }
        assert!(store.get(norm, &[32]).unwrap().dtype == Dtype::BF16 && store.random(q).is_none());
        let message = store.get(q, &[4, 40]).unwrap_err().to_string();
        assert!(message.contains("quantization") && message.contains(q) && message.contains("40"), "{message}");
    }
    let store = WeightStore::dummy(3, Dtype::Q4_1).quantized(Quantization::Q8_0);
    let message = store.get(q, &[5, 32]).unwrap_err().to_string();
    assert!(message.contains("q8_0") && message.contains(q) && message.contains("Q4_1"), "{message}");
    // e4m3 and its scales are numbers like others; what has none is refused.
    let matrix = |data: Vec<u8>| {
        let view = TensorView::new(Dtype::F8E4M3, vec![2, 32], data);
        TensorView { row_scales: Some(vec![1.0, 3.0]), ..view }
    };
    let found = quant::quantize(&matrix(vec![0x38; 64]), Dtype::Q8_0).unwrap().to_f32();
    assert!(found[..32].iter().all(|x| (x - 1.0).abs() < 1e-3) && found[32..].iter().all(|x| (x - 3.0).abs() < 3e-3));
    assert!(quant::quantize(&matrix([vec![0x38; 63], vec![0x7f]].concat()), Dtype::Q8_0).is_none());
}

#[test]
fn an_fp8_checkpoint_is_read() {
    use ::safetensors::tensor::{Dtype as StDtype, TensorView as StView};
    type Case<'a> = (&'a str, StDtype, &'a [usize], &'a [u8]);
    let open = |tensors: &[Case<'_>]| {
        let dir = tempfile::tempdir().unwrap();
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, data)| (*name, StView::new(*dtype, shape.to_vec(), data).unwrap()));
        std::fs::write(dir.path().join("model.safetensors"), ::safetensors::serialize(views, None).unwrap()).unwrap();
        WeightStore::open_safetensors(dir.path(), StoredForm::Plain).unwrap()
    };
    let scales = f32_bytes(&[2.0, 0.5]);
    let codes: &'static [u8] = &[0x38, 0x40, 0xb8, 0x01];
    let fp8 = |name: &'static str, data: &'static [u8]| -> Case<'static> { (name, StDtype::F8_E4M3, &[2, 2], data) };
    let store = open(&[
        fp8("rows", codes),
        ("rows_scale", StDtype::F32, &[2, 1], &scales),
        fp8("whole", codes),
        ("whole_scale_inv", StDtype::BF16, &[], &[0x80, 0x40]),
    ]);
    let found = |name: &str| store.get(name, &[2, 2]).unwrap();
    assert_eq!(found("rows").row_scales, Some(vec![2.0, 0.5]));
    assert_eq!(found("rows").to_f32(), [2.0, 4.0, -0.5, 0.5 / 512.0]);
    assert_eq!(found("whole").to_f32(), [4.0, 8.0, -4.0, 4.0 / 512.0]);
    // It stays as it is where e4m3 is asked for.
    let again = open(&[fp8("m.layers.0.w", codes), ("m.layers.0.w_scale", StDtype::F32, &[2], &scales)]);
    assert_eq!(*again.quantized(Quantization::Fp8).get("m.layers.0.w", &[2, 2]).unwrap().data, *codes);

    let refused = |tensors: &[Case<'_>], name: &str, words: &[&str]| {
        let message = open(tensors).get(name, &[2, 2]).unwrap_err().to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    };
    let one = f32_bytes(&[1.0]);
    refused(&[fp8("w", codes)], "w", &["model.safetensors", "w_scale", "w_scale_inv"]);
    refused(&[fp8("w", codes), ("w_scale", StDtype::F32, &[1, 2], &scales)], "w", &["w_scale", "[1, 2]"]);
    refused(&[fp8("w", codes), ("w_scale", StDtype::I32, &[1], &one)], "w", &["w_scale"]);
    refused(&[fp8("w", codes), ("w_scale", StDtype::F32, &[1], &f32_bytes(&[f32::NAN]))], "w", &["finite"]);
    refused(&[fp8("w", &[0, 0x7f, 0, 0]), ("w_scale", StDtype::F32, &[1], &one)], "w", &["NaN"]);
    let embedding = [fp8(EMBEDDING, codes), ("model.embed_tokens.weight_scale", StDtype::F32, &[1], &one)];
    refused(&embedding, EMBEDDING, &["embeddings of F8_E4M3"]);
}
