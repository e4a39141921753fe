//! A tiny model with random weights and a byte tokenizer, written to a folder.

use std::path::Path;
use std::time::{Duration, Instant};

use safetensors::tensor::TensorView;
use sconce_core::config::{AdapterSource, EngineConfig, LoadFormat};
use sconce_core::engine::{self, EngineHandle, EngineStatus, NoProgress};
use serde_json::{Map, Value, json};

/// Tokens of the byte alphabet; `<s>` and `</s>` follow.
const NUM_BYTES: u32 = 256;

/// Writes config.json, tokenizer.json and tokenizer_config.json.
pub(crate) fn write_tiny_model(dir: &Path) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": NUM_BYTES + 2,
        "tie_word_embeddings": false,
        "eos_token_id": NUM_BYTES + 1,
        "hidden_act": "silu",
    });
    let vocab: Map<String, Value> = byte_alphabet().enumerate().map(|(id, c)| (c.to_string(), json!(id))).collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [special(NUM_BYTES, "<s>"), special(NUM_BYTES + 1, "</s>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";
    let tokenizer_config = json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": template});
    for (name, value) in
        [("config.json", config), ("tokenizer.json", tokenizer), ("tokenizer_config.json", tokenizer_config)]
    {
        std::fs::write(dir.join(name), value.to_string()).unwrap();
    }
}

/// Divisors of the six frequencies of the model that [`write_long_rope_model`] writes: of short sequences, and of long ones.
#[allow(dead_code)]
pub(crate) const ROPE_FACTORS: [[f32; 6]; 2] = [[1.0, 1.1, 1.25, 1.5, 1.75, 2.0], [1.5, 2.0, 3.0, 4.5, 6.0, 8.0]];

/// The tiny model as a Phi-3 whose sequences of more than `short_len` tokens turn by the second factors, the others by the first.
#[allow(dead_code)]
pub(crate) fn write_long_rope_model(dir: &Path, short_len: usize, [short_factor, long_factor]: [[f32; 6]; 2]) {
    write_tiny_model(dir);
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["architectures"] = json!(["Phi3ForCausalLM"]);
    config["partial_rotary_factor"] = json!(0.75);
    config["original_max_position_embeddings"] = json!(short_len);
    config["rope_scaling"] = json!({"type": "longrope", "short_factor": short_factor, "long_factor": long_factor});
    std::fs::write(&path, config.to_string()).unwrap();
}

/// The printable stand-ins of all bytes, as byte-level BPE spells them.
fn byte_alphabet() -> impl Iterator<Item = char> {
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut others = 256..;
    (0..NUM_BYTES).map(move |b| {
        let code = if printable(b) { b } else { others.next().unwrap() };
        char::from_u32(code).unwrap()
    })
}

/// The tiny model, running; `change` adjusts its settings.
#[allow(dead_code)] // Not every test program uses all of this module.
pub(crate) fn tiny_engine(change: impl Fn(&mut EngineConfig)) -> EngineHandle {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path());
    tiny_engine_of(dir.path(), change)
}

/// The same of a folder that [`write_tiny_model`] wrote.
#[allow(dead_code)]
pub(crate) fn tiny_engine_of(dir: &Path, change: impl Fn(&mut EngineConfig)) -> EngineHandle {
    engine::load("tiny", dir, &tiny_config(change), &NoProgress).unwrap()
}

/// Its settings, adjusted by `change`.
#[allow(dead_code)]
pub(crate) fn tiny_config(change: impl Fn(&mut EngineConfig)) -> EngineConfig {
    let mut config = EngineConfig {
        load_format: LoadFormat::Dummy,
        kv_cache_bytes: Some(4 << 20),
        num_threads: Some(2),
        ..Default::default()
    };
    change(&mut config);
    config
}

/// Bytes of one KV block of the tiny model: 16 tokens, 2 layers, 2 heads of 16, keys and values in f32.
#[allow(dead_code)]
pub(crate) const BLOCK_BYTES: usize = 16 * 2 * 2 * 16 * 2 * 4;

/// Tokens that differ from seed to seed.
#[allow(dead_code)]
pub(crate) fn prompt(len: usize, seed: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 31 + seed * 17) % 250) as u32).collect()
}

#[allow(dead_code)]
pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[allow(dead_code)]
pub(crate) fn used_blocks(engine: &EngineHandle) -> usize {
    EngineStatus::get(&engine.status().num_used_blocks)
}

/// Writes an adapter of the tiny model that changes some matrices of both layers.
#[allow(dead_code)]
pub(crate) fn write_adapter(dir: &Path, name: &str, seed: usize) -> AdapterSource {
    let path = dir.join(name);
    std::fs::create_dir(&path).unwrap();
    let config = json!({"peft_type": "LORA", "r": 3, "lora_alpha": 6, "bias": "none"});
    std::fs::write(path.join("adapter_config.json"), config.to_string()).unwrap();
    let mut tensors = Vec::new();
    let matrices = [
        ("self_attn.q_proj", 64, 64),
        ("self_attn.v_proj", 32, 64),
        ("mlp.up_proj", 96, 64),
        ("mlp.down_proj", 64, 96),
    ];
    for (layer, (part, rows, cols)) in (0..2).flat_map(|layer| matrices.map(|matrix| (layer, matrix))) {
        for (side, shape) in [("A", [3, cols]), ("B", [rows, 3])] {
            let name = format!("base_model.model.model.layers.{layer}.{part}.lora_{side}.weight");
            let number = |i: usize| ((i * 7919 + (seed + layer) * 104_729 + rows) % 2003) as f32 / 2003.0 - 0.5;
            let data: Vec<u8> = (0..shape[0] * shape[1]).flat_map(|i| number(i).to_le_bytes()).collect();
            tensors.push((name, shape.to_vec(), data));
        }
    }
    let view = |shape: &Vec<usize>, data| TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap();
    let views = tensors.iter().map(|(name, shape, data)| (name.as_str(), view(shape, data)));
    std::fs::write(path.join("adapter_model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    AdapterSource { name: name.into(), origin: name.into(), path }
}
