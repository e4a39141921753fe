//! What is read of an adapter, and what is refused with which words.

use ::safetensors::tensor::{Dtype as StDtype, TensorView as StView};
use serde_json::{Value, json};

use super::*;

const MODULE: &str = "base_model.model.model.layers.0.self_attn.q_proj";

/// A tensor's name and shape.
type Named<'a> = (&'a str, [usize; 2]);

/// Writes an adapter with these tensors of ones, and this config over a plain one.
fn write(dir: &Path, config: Value, tensors: &[Named<'_>]) {
    let mut settings = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none", "use_dora": false,
        "modules_to_save": null, "loftq_config": {}, "eva_config": {"rho": 2.0}, "init_lora_weights": true,
        "target_modules": ["q_proj"], "rank_pattern": {}, "unknown": "passed over"});
    settings.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    std::fs::write(dir.join("adapter_config.json"), settings.to_string()).unwrap();
    let data: Vec<Vec<u8>> = tensors.iter().map(|(_, [a, b])| 1.0f32.to_le_bytes().repeat(a * b)).collect();
    let views = tensors.iter().zip(&data).map(|((name, shape), data)| {
        let name = name.replacen("*", MODULE, 1);
        (name, StView::new(StDtype::F32, shape.to_vec(), data).unwrap())
    });
    std::fs::write(dir.join(FILE), ::safetensors::serialize(views, None).unwrap()).unwrap();
}

fn open(dir: &Path) -> Result<Adapters> {
    let source = AdapterSource { name: "one".into(), origin: "here".into(), path: dir.into() };
    Adapters::open(&[source])
}

/// Both tensors of q_proj, [8, 4].
const PAIR: [Named<'_>; 2] = [("*.lora_A.weight", [2, 4]), ("*.lora_B.weight", [8, 2])];

/// The scale of q_proj and its rank, or the error.
fn read(config: Value, tensors: &[Named<'_>]) -> Result<(f32, usize), String> {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), config, tensors);
    let read = || {
        let adapters = open(dir.path())?;
        let parts = ["q_proj", "k_proj"].map(|part| (format!("model.layers.0.self_attn.{part}"), 8));
        let updates = adapters.updates(&parts, 4)?;
        adapters.check_all_are_asked_for()?;
        assert_eq!((updates.len(), updates[0].adapter, updates[0].part), (1, 0, 0));
        Ok((updates[0].scale, updates[0].rank()))
    };
    read().map_err(|error: Error| error.to_string())
}

#[test]
fn scales_and_ranks_are_the_configs() {
    let of_rank = |rank| [("*.lora_A.weight", [rank, 4]), ("*.lora_B.weight", [8, rank])];
    for (config, rank, scale) in [
        (json!({}), 2, 3.0),
        (json!({"lora_alpha": 1.5}), 2, 0.75),
        (json!({"use_rslora": true, "r": 4}), 4, 3.0),
        (json!({"rank_pattern": {"k_proj": 7, "q_proj": 3, "layers.0.self_attn.q_proj": 5}}), 3, 2.0),
        (json!({"rank_pattern": {"^q_proj": 3, "proj": 3}}), 2, 3.0),
        (json!({"alpha_pattern": {r"model\.layers\.[0-3]\..*": 1, "q_proj": 9}}), 2, 0.5),
    ] {
        assert_eq!(read(config.clone(), &of_rank(rank)), Ok((scale, rank)), "{config}");
    }
}

#[test]
fn other_names_of_a_text_model_are_its_own() {
    for prefix in ["model.language_model.", "language_model.model."] {
        let dir = tempfile::tempdir().unwrap();
        let name = |side: &str| format!("base_model.model.{prefix}layers.3.mlp.up_proj.lora_{side}.weight");
        write(dir.path(), json!({}), &[(&name("A"), [2, 4]), (&name("B"), [8, 2])]);
        let updates = open(dir.path()).unwrap();
        assert_eq!(updates.updates(&[("model.layers.3.mlp.up_proj".into(), 8)], 4).unwrap().len(), 1);
    }
}

#[test]
fn what_is_not_supported_is_named() {
    for (config, expected) in [
        (json!({"peft_type": "IA3"}), "peft_type: expected \"LORA\", found \"IA3\""),
        (json!({"use_dora": true}), "use_dora: magnitudes"),
        (json!({"use_rslora": "true"}), "use_rslora: expected true or false"),
        (json!({"fan_in_fan_out": true}), "fan_in_fan_out: weights that are stored columns first are not supported"),
        (json!({"bias": "lora_only"}), "bias: biases are not supported"),
        (json!({"lora_bias": true}), "lora_bias: biases"),
        (json!({"modules_to_save": ["lm_head"]}), "modules_to_save: whole modules"),
        (json!({"trainable_token_indices": [3]}), "trainable_token_indices: rows of the embedding"),
        (json!({"init_lora_weights": "pissa"}), "init_lora_weights: \"pissa\" changes the model's own weights"),
        (json!({"use_something_new": true}), "use_something_new: is not supported, found true"),
        (json!({"arrow_config": {"top_k": 1}}), "arrow_config: is not supported"),
        (json!({"r": 0}), "r: expected a rank from 1 to 512, found 0"),
        (json!({"r": 600}), "r: expected a rank from 1 to 512, found 600"),
        (json!({"lora_alpha": "much"}), "lora_alpha: expected a number, found \"much\""),
        (json!({"rank_pattern": {"q_proj": -1}}), "rank_pattern.q_proj: expected a rank"),
        (json!({"alpha_pattern": {"(": 1}}), "alpha_pattern: \"(\" is no regular expression"),
        (json!({"alpha_pattern": [1]}), "alpha_pattern: expected an object, found [1]"),
    ] {
        let error = read(config, &PAIR).unwrap_err();
        assert!(error.contains("adapter_config.json: ") && error.contains(expected), "{error}");
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let wrong: [(&[Named<'_>], &str); 8] = [
        (&[], "holds no tensors"),
        (
            &PAIR[..1],
            "lora_A.weight: base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight, which belongs to it",
        ),
        (&[PAIR[0], ("*.lora_B.weight", [7, 2])], "lora_B.weight: expected the shape [8, 2]"),
        (&[("*.lora_A.weight", [3, 4]), PAIR[1]], "lora_A.weight: expected the shape [2, 4]"),
        (&[PAIR[0], PAIR[1], ("*.lora_B.bias", [1, 8])], "lora_B.bias: biases are not supported"),
        (&[PAIR[0], PAIR[1], ("*.lora_magnitude_vector", [1, 8])], "magnitudes (DoRA) are not supported"),
        (&[("base_model.model.model.embed_tokens.lora_embedding_A", [2, 4])], "embeddings are not supported"),
        (&[("base_model.model.lm_head.weight", [2, 4])], "lm_head.weight: other tensors are not supported"),
    ];
    for (tensors, expected) in wrong {
        let error = read(json!({}), tensors).unwrap_err();
        assert!(error.contains("adapter_model.safetensors: ") && error.contains(expected), "{error}");
    }
    let head = ["A", "B"].map(|side| format!("base_model.model.lm_head.lora_{side}.weight"));
    let error = read(json!({}), &[PAIR[0], PAIR[1], (&head[0], [2, 4]), (&head[1], [8, 2])]).unwrap_err();
    assert!(error.contains("tensor base_model.model.lm_head.lora_A.weight: the model has no such layer"), "{error}");
    assert!(error.ends_with("those of each of its blocks are self_attn.k_proj, self_attn.q_proj"), "{error}");
}

#[test]
fn what_is_no_adapter_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = dir.path().join("adapter.gguf");
    std::fs::write(&gguf, b"GGUF").unwrap();
    let error = |path: &Path| open(path).map(|_| ()).unwrap_err().to_string();
    assert!(error(&gguf).contains("a folder with adapter_model.safetensors; a GGUF is not supported"));
    assert!(error(dir.path()).contains("holds no adapter_config.json: expected an adapter in PEFT's form"));
    write(dir.path(), json!({}), &PAIR);
    std::fs::remove_file(dir.path().join(FILE)).unwrap();
    assert!(error(dir.path()).contains("holds no adapter_model.safetensors; adapters in other files are not read"));
    std::fs::write(dir.path().join("adapter_config.json"), "[]").unwrap();
    assert!(error(dir.path()).contains("adapter_config.json: expected a JSON object"));
}
