//! A fixture as a GGUF: what llama.cpp's converter would make of its folder.

use std::collections::{BTreeMap, HashMap};
use std::f64::consts::TAU;
use std::path::Path;

use safetensors::{Dtype as StDtype, SafeTensors};
use sconce_core::backend::cpu::CpuBackend;
use sconce_core::config::{ModelConfig, RopeScaling, WeightDtype};
use sconce_core::models::{self, RawConfig};
use sconce_core::weights::gguf_writer::GgufWriter;
use sconce_core::weights::{Dtype, GgufFile, GgufValue, StoredForm, WeightStore, quant};
use serde_json::Value;

use crate::checkpoint::{Tensor, f32_bytes, logits, store_of, write_tensors_to};
use crate::compare::max_error;
use crate::fixture::Fixture;
use crate::mxfp4::{self, Numbers};
use crate::runner::Runner;

/// Keys of config.json and, after the architecture's name, those of a GGUF.
const KEYS: &[(&str, &str)] = &[
    ("num_hidden_layers", "block_count"),
    ("max_position_embeddings", "context_length"),
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("layer_norm_eps", "attention.layer_norm_epsilon"),
    ("sliding_window", "attention.sliding_window"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
    ("embedding_multiplier", "embedding_scale"),
    ("attention_multiplier", "attention.scale"),
    ("residual_multiplier", "residual_scale"),
    ("logits_scaling", "logit_scale"),
    ("logit_scale", "logit_scale"),
    ("rope_theta", "rope.freq_base"),
    ("original_max_position_embeddings", "rope.scaling.original_context_length"),
    ("vocab_size", "vocab_size"),
    ("num_experts", "expert_count"),
    ("num_local_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
];

/// Parts of tensors' names; first those of architectures whose names begin so.
const NAMES: &[(&str, &str, &str)] = &[
    ("gemma2", "post_attention_layernorm", "post_attention_norm"),
    ("gemma3", "post_attention_layernorm", "post_attention_norm"),
    ("gemma", "pre_feedforward_layernorm", "ffn_norm"),
    ("olmo2", "post_attention_layernorm", "post_attention_norm"),
    ("", "post_feedforward_layernorm", "post_ffw_norm"),
    ("glm4", "post_self_attn_layernorm", "post_attention_norm"),
    ("glm4", "post_mlp_layernorm", "post_ffw_norm"),
    ("gpt-oss", "post_attention_layernorm", "post_attention_norm"),
    ("", "post_attention_layernorm", "ffn_norm"),
    ("", "input_layernorm", "attn_norm"),
    ("", "self_attn.q_proj", "attn_q"),
    ("", "self_attn.k_proj", "attn_k"),
    ("", "self_attn.q_norm", "attn_q_norm"),
    ("", "self_attn.k_norm", "attn_k_norm"),
    ("", "self_attn.v_proj", "attn_v"),
    ("", "self_attn.qkv_proj", "attn_qkv"),
    ("", "self_attn.o_proj", "attn_output"),
    ("", "self_attn.dense", "attn_output"),
    ("", "mlp.gate_up_proj", "ffn_up"),
    ("", "mlp.experts.gate_proj", "ffn_gate_exps"),
    ("", "mlp.experts.up_proj", "ffn_up_exps"),
    ("", "mlp.experts.down_proj", "ffn_down_exps"),
    ("", "mlp.gate.", "ffn_gate_inp."),
    ("", "mlp.router", "ffn_gate_inp"),
    ("", "self_attn.sinks", "attn_sinks.weight"),
    ("", "mlp.gate_proj", "ffn_gate"),
    ("", "mlp.up_proj", "ffn_up"),
    ("", "mlp.down_proj", "ffn_down"),
    ("", "block_sparse_moe.gate", "ffn_gate_inp"),
    ("", "block_sparse_moe.experts.w1", "ffn_gate_exps"),
    ("", "block_sparse_moe.experts.w2", "ffn_down_exps"),
    ("", "block_sparse_moe.experts.w3", "ffn_up_exps"),
    ("", "mlp.fc1", "ffn_up"),
    ("", "mlp.fc2", "ffn_down"),
    ("", "model.layers.", "blk."),
    ("", "model.embed_tokens", "token_embd"),
    ("", "model.norm", "output_norm"),
    ("", "model.final_layernorm", "output_norm"),
    ("", "lm_head", "output"),
];

/// Writes `fixture` to `path`, or says why there is no GGUF that means the same. Matrices whose rows are whole blocks of
/// `dtype` have that type, and all else is in F32.
pub(crate) fn write(fixture: &Fixture, path: &Path, dtype: Dtype) -> Result<(), &'static str> {
    let config = json(&fixture.dir.join("config.json"));
    let arch = match config["architectures"][0].as_str().unwrap() {
        "MistralForCausalLM" | "MixtralForCausalLM" if config["sliding_window"].is_u64() => {
            return Err("a GGUF says nothing of a llama's sliding window");
        }
        "Gemma2ForCausalLM" | "Gemma3ForCausalLM" if config["query_pre_attn_scalar"] != 256 => {
            return Err("a GGUF says nothing of query_pre_attn_scalar");
        }
        "LlamaForCausalLM" | "MistralForCausalLM" | "MixtralForCausalLM" => "llama",
        "SmolLM3ForCausalLM" if config["no_rope_layers"] != serde_json::json!([1, 1, 1, 0, 1]) => {
            return Err("a GGUF says nothing of the layers that do not turn");
        }
        "SmolLM3ForCausalLM" => "smollm3",
        "GraniteForCausalLM" => "granite",
        "Olmo2ForCausalLM" | "Olmo3ForCausalLM" => "olmo2",
        "Glm4ForCausalLM" => "glm4",
        "CohereForCausalLM" => "command-r",
        "Cohere2ForCausalLM" => "cohere2",
        "GemmaForCausalLM" => "gemma",
        "Gemma2ForCausalLM" => "gemma2",
        "Gemma3ForCausalLM" => "gemma3",
        "Qwen2ForCausalLM" => "qwen2",
        "Qwen3ForCausalLM" => "qwen3",
        "Qwen3MoeForCausalLM" => "qwen3moe",
        "GptOssForCausalLM" => "gpt-oss",
        "Phi3ForCausalLM" => "phi3",
        "PhiForCausalLM" => "phi2",
        _ => return Err("no GGUF is known for the architecture"),
    };
    let mut writer = GgufWriter::new();
    write_config(&mut writer, arch, &config);
    write_tokenizer(&mut writer, arch, &fixture.dir);
    for file in std::fs::read_dir(&fixture.dir).unwrap().map(|entry| entry.unwrap().path()) {
        if file.extension().is_some_and(|extension| extension == "safetensors") {
            write_tensors(&mut writer, (arch, dtype), &config, numbers(&fixture.dir, &std::fs::read(&file).unwrap()));
        }
    }
    let mut write_factors = |name: &str, factors: Vec<f32>| {
        writer.tensor(name, Dtype::F32, &[factors.len()], bytemuck::cast_slice(&factors));
    };
    let scaling = &config["rope_scaling"];
    if scaling["rope_type"] == "llama3" {
        write_factors("rope_freqs.weight", rope_factors(&config));
    }
    for (key, name) in [("long_factor", "rope_factors_long.weight"), ("short_factor", "rope_factors_short.weight")] {
        if let Some(factors) = scaling[key].as_array() {
            write_factors(name, factors.iter().map(|factor| factor.as_f64().unwrap() as f32).collect());
        }
    }
    writer.write(path).unwrap();
    Ok(())
}

/// A llama with biases everywhere: its GGUF, whose metadata does not tell of them, gives the logits of its checkpoint.
pub(crate) fn check_biases(fixture: &Fixture) -> Result<String, &'static str> {
    let mut config = json(&fixture.dir.join("config.json"));
    let Ok(file) = std::fs::read(fixture.dir.join("model.safetensors")) else { return Err("it has several files") };
    if config["architectures"][0] != "LlamaForCausalLM" {
        return Err("it is no llama");
    }
    let mut tensors: Vec<Tensor> = Vec::new();
    for (name, tensor) in SafeTensors::deserialize(&file).unwrap().tensors() {
        if let Some(prefix) = name.strip_suffix("_proj.weight") {
            let bias: Vec<f32> = (0..tensor.shape()[0]).map(|i| (i * 7 % 13) as f32 / 13.0 - 0.5).collect();
            tensors.push((format!("{prefix}_proj.bias"), StDtype::F32, vec![bias.len()], f32_bytes(&bias)));
        }
        tensors.push((name, tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec()));
    }
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&fixture.dir).unwrap().map(Result::unwrap).filter(|e| e.path().is_file()) {
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    (config["attention_bias"], config["mlp_bias"]) = (true.into(), true.into());
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    write_tensors_to(dir.path(), &tensors);
    std::fs::create_dir(dir.path().join("golden")).unwrap();
    std::fs::copy(fixture.dir.join("golden/prompts.json"), dir.path().join("golden/prompts.json")).unwrap();
    let biased = fixture.with_model(dir.path().into());
    let expected = logits(&biased, &store_of(dir.path(), StoredForm::Plain), WeightDtype::F32);
    let (raw, config, store) = open(&biased, Dtype::F32)?;
    assert!(config.attention_bias && config.mlp_bias, "{}", fixture.name);
    let mut runner = Runner::of_weights(&raw, config, &store, WeightDtype::F32, CpuBackend::new(Some(2)));
    let ids = &fixture.prompts()[0].input_ids;
    let error = max_error(&runner.logits(&[ids], ids.len())[0], &expected);
    assert!(error <= 1e-4, "{}: logits are off by {error}", fixture.name);
    assert!(max_error(&expected, &fixture.logits(0)) > 1e-2, "{}: biases make no difference", fixture.name);
    Ok(format!("{error:.0e}"))
}

/// What a GGUF of `fixture` holds, as loading finds it.
pub(crate) fn open(fixture: &Fixture, dtype: Dtype) -> Result<(RawConfig, ModelConfig, WeightStore), &'static str> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    write(fixture, &path, dtype)?;
    let file = GgufFile::open(&path).unwrap();
    let raw = RawConfig::from_gguf(&file).unwrap();
    let mut config = (models::find::<CpuBackend>(&raw).unwrap().parse_config)(&raw).unwrap();
    let store = WeightStore::open_gguf(file, &config).unwrap();
    if store.contains("rope_freqs.weight") {
        let factors = store.get("rope_freqs.weight", &[config.rope.rotary_dim / 2]).unwrap();
        config.rope.scaling = RopeScaling::Factors(factors.to_f32());
    }
    Ok((raw, config, store))
}

fn write_config(writer: &mut GgufWriter, arch: &str, config: &Value) {
    writer.set("general.architecture", &GgufValue::String(arch.into()));
    for (key, gguf_key) in KEYS {
        let value = match &config[key] {
            Value::Number(n) if n.is_u64() => GgufValue::Int(n.as_i64().unwrap()),
            Value::Number(n) => GgufValue::Float(n.as_f64().unwrap()),
            _ => continue,
        };
        writer.set(&format!("{arch}.{gguf_key}"), &value);
    }
    if let Some(types) = config["layer_types"].as_array().filter(|_| arch == "olmo2") {
        let slides = types.iter().map(|kind| kind == "sliding_attention").collect();
        writer.set(&format!("{arch}.attention.sliding_window_pattern"), &GgufValue::Bools(slides));
    }
    let scaling = &config["rope_scaling"];
    if let Some(kind @ ("linear" | "yarn")) = scaling["rope_type"].as_str() {
        let factor = scaling["factor"].as_f64().unwrap();
        writer.set(&format!("{arch}.rope.scaling.type"), &GgufValue::String(kind.into()));
        writer.set(&format!("{arch}.rope.scaling.factor"), &GgufValue::Float(factor));
    }
    if let Some(len) = scaling["original_max_position_embeddings"].as_i64().filter(|_| scaling["rope_type"] == "yarn") {
        writer.set(&format!("{arch}.rope.scaling.original_context_length"), &GgufValue::Int(len));
    }
    for key in ["beta_fast", "beta_slow"] {
        if let Some(beta) = scaling[key].as_f64() {
            writer.set(&format!("{arch}.rope.scaling.yarn_{key}"), &GgufValue::Float(beta));
        }
    }
    if let Some(factor) = config["partial_rotary_factor"].as_f64() {
        let rotary_dim = (head_dim(config) as f64 * factor) as i64;
        writer.set(&format!("{arch}.rope.dimension_count"), &GgufValue::Int(rotary_dim));
    }
    if scaling["type"] == "longrope" {
        let [max_len, original] =
            ["max_position_embeddings", "original_max_position_embeddings"].map(|key| config[key].as_f64().unwrap());
        let factor = (1.0 + (max_len / original).ln() / original.ln()).sqrt();
        writer.set(&format!("{arch}.rope.scaling.attn_factor"), &GgufValue::Float(factor));
    }
}

/// Shape and numbers of each expert's matrix.
type Stack = BTreeMap<usize, (Vec<usize>, Vec<f32>)>;

/// What the tensors of `file`, which is of `dir`, hold, each expert's by itself.
fn numbers(dir: &Path, file: &[u8]) -> Vec<Numbers> {
    let store = store_of(dir, StoredForm::Plain);
    let mut found = Vec::new();
    for (name, tensor) in SafeTensors::deserialize(file).unwrap().tensors() {
        if let Some(of_experts) = mxfp4::of_experts(&store, &name, tensor.shape()) {
            found.extend(of_experts);
            continue;
        }
        let dtype = match tensor.dtype() {
            safetensors::Dtype::F32 => Dtype::F32,
            safetensors::Dtype::F16 => Dtype::F16,
            safetensors::Dtype::BF16 => Dtype::BF16,
            other => panic!("{name}: {other:?}"),
        };
        let mut data = vec![0.0; tensor.shape().iter().product()];
        quant::dequantize(dtype, tensor.data(), &mut data);
        found.push((name, tensor.shape().to_vec(), data));
    }
    found
}

fn write_tensors(writer: &mut GgufWriter, (arch, wanted): (&str, Dtype), config: &Value, tensors: Vec<Numbers>) {
    // By name without a number, of each expert.
    let mut stacks: BTreeMap<String, Stack> = BTreeMap::new();
    for (name, shape, mut data) in tensors {
        if matches!(arch, "llama" | "smollm3" | "granite")
            && ["q_proj", "k_proj"].iter().any(|part| name.contains(part))
        {
            // A bias is a column.
            data = interleave(&data, head_dim(config), shape.get(1).copied().unwrap_or(1));
        }
        if arch.starts_with("gemma") && name.contains("norm") {
            data.iter_mut().for_each(|x| *x += 1.0);
        }
        if let Some((prefix, (number, part))) =
            name.split_once(".experts.").and_then(|(prefix, rest)| Some((prefix, rest.split_once('.')?)))
        {
            let stack = stacks.entry(format!("{prefix}.experts.{part}")).or_default();
            stack.insert(number.parse().unwrap(), (shape, data));
            continue;
        }
        write_tensor(writer, (arch, wanted), &name, &shape, &data);
    }
    for (name, stack) in stacks {
        assert!(stack.keys().copied().eq(0..stack.len()), "{name}: experts are not 0, 1, 2, ...");
        let shape = [&[stack.len()], &stack[&0].0[..]].concat();
        let data = stack.into_values().flat_map(|(_, data)| data).collect::<Vec<_>>();
        write_tensor(writer, (arch, wanted), &name, &shape, &data);
    }
}

/// `name`: Hugging Face's.
fn write_tensor(writer: &mut GgufWriter, (arch, wanted): (&str, Dtype), name: &str, shape: &[usize], data: &[f32]) {
    let rename = |name: String, (of, from, to): &(&str, &str, &str)| {
        if arch.starts_with(of) { name.replace(from, to) } else { name }
    };
    let name = NAMES.iter().fold(name.to_owned(), rename);
    let is_in_blocks = |row_len: &usize| row_len.is_multiple_of(wanted.block_len());
    // MXFP4 is for experts.
    let is_plain = name.contains("ffn_gate_inp") || name.ends_with(".bias");
    let is_plain = is_plain || wanted == Dtype::Mxfp4 && !name.contains("_exps");
    if shape.len() > 1 && !is_plain && shape.last().is_some_and(is_in_blocks) {
        writer.tensor(&name, wanted, shape, &quant::encode(wanted, data).unwrap());
    } else {
        writer.tensor(&name, Dtype::F32, shape, bytemuck::cast_slice(data));
    }
}

/// Rows of each head in the order of a RoPE that turns neighbours: the first of either half, the second of either half.
fn interleave(data: &[f32], head_dim: usize, cols: usize) -> Vec<f32> {
    let rows = |head: &[f32]| {
        let row = |i: usize| head[i * cols..][..cols].to_vec();
        (0..head_dim / 2).flat_map(|i| [row(i), row(head_dim / 2 + i)]).flatten().collect::<Vec<_>>()
    };
    data.chunks_exact(head_dim * cols).flat_map(rows).collect()
}

/// What llama3 scaling divides each frequency by.
fn rope_factors(config: &Value) -> Vec<f32> {
    let scaling = |key: &str| config["rope_scaling"][key].as_f64().unwrap();
    let (factor, low, high) = (scaling("factor"), scaling("low_freq_factor"), scaling("high_freq_factor"));
    let original_len = scaling("original_max_position_embeddings");
    let (theta, dim) = (config["rope_theta"].as_f64().unwrap(), head_dim(config));
    let of_pair = |i: usize| {
        let wavelength = TAU * theta.powf(2.0 * i as f64 / dim as f64);
        let smooth = ((original_len / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    };
    (0..dim / 2).map(of_pair).collect()
}

fn head_dim(config: &Value) -> usize {
    let length = |key: &str| config[key].as_u64().map(|len| len as usize);
    length("head_dim").unwrap_or_else(|| length("hidden_size").unwrap() / length("num_attention_heads").unwrap())
}

fn write_tokenizer(writer: &mut GgufWriter, arch: &str, dir: &Path) {
    let (file, config) = (json(&dir.join("tokenizer.json")), json(&dir.join("tokenizer_config.json")));
    let is_sentence_piece = file["model"]["byte_fallback"] == true;
    let mut tokens: Vec<(u64, &str, i64)> = Vec::new();
    for (token, id) in file["model"]["vocab"].as_object().unwrap() {
        let is_byte = is_sentence_piece && token.len() == 6 && token.starts_with("<0x");
        tokens.push((id.as_u64().unwrap(), token, if is_byte { 6 } else { 1 }));
    }
    let added = file["added_tokens"].as_array().unwrap();
    tokens.retain(|(id, ..)| added.iter().all(|token| token["id"] != *id));
    for token in added {
        let content = token["content"].as_str().unwrap();
        let is_control = token["special"] == true || content == "</s>";
        let kind = if is_sentence_piece && content == "<unk>" { 2 } else { 4 - i64::from(is_control) };
        tokens.push((token["id"].as_u64().unwrap(), content, kind));
    }
    tokens.sort_unstable();
    assert!((0..).zip(&tokens).all(|(i, (id, ..))| i == *id), "{}: ids are not 0, 1, 2, ...", dir.display());
    let ids: HashMap<&str, u64> = tokens.iter().map(|(id, token, _)| (*token, *id)).collect();

    let mut set = |key: &str, value: GgufValue| {
        writer.set(&format!("tokenizer.ggml.{key}"), &value);
    };
    let merges = file["model"]["merges"].as_array().unwrap();
    let merges: Vec<[&str; 2]> = merges.iter().map(|m| [0, 1].map(|i| m[i].as_str().unwrap())).collect();
    if is_sentence_piece {
        // A merge that comes first has the greater score; single letters come last.
        let mut scores = vec![-1e9; tokens.len()];
        for (rank, pair) in merges.iter().enumerate().rev() {
            scores[ids[pair.concat().as_str()] as usize] = -(rank as f32);
        }
        set("scores", GgufValue::Floats(scores));
        set("add_space_prefix", GgufValue::Bool(!arch.starts_with("gemma")));
    } else {
        set("merges", GgufValue::Strings(merges.iter().map(|pair| pair.join(" ")).collect()));
        let pre = match arch {
            "llama" | "smollm3" => "llama-bpe",
            "gpt-oss" => "gpt-4o",
            "qwen2" | "qwen3" | "qwen3moe" | "granite" | "olmo2" | "glm4" | "command-r" | "cohere2" => "qwen2",
            _ => "phi-2",
        };
        set("pre", GgufValue::String(pre.into()));
    }
    set("model", GgufValue::String(if is_sentence_piece { "llama" } else { "gpt2" }.into()));
    set("tokens", GgufValue::Strings(tokens.iter().map(|(_, token, _)| (*token).to_owned()).collect()));
    set("token_type", GgufValue::Ints(tokens.iter().map(|(.., kind)| *kind).collect()));
    for (key, role) in [("bos_token_id", "bos_token"), ("eos_token_id", "eos_token")] {
        set(key, GgufValue::Int(ids[config[role].as_str().unwrap()] as i64));
    }
    // What the file adds to a text shows in its post-processor.
    let adds_bos = file["post_processor"].to_string().contains("SpecialToken");
    set("add_bos_token", GgufValue::Bool(adds_bos));
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}
