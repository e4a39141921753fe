//! What is particular to an architecture: as published configs say it, as a GGUF says it, and what is refused.

use serde_json::json;

use super::{check_error, gguf, parse};
use crate::weights::GgufValue;

#[test]
fn every_fourth_layer_of_smollm3_does_not_turn() {
    // Of the published model.
    let list: Vec<u32> = (1..=36).map(|layer| u32::from(layer % 4 != 0)).collect();
    let published = json!({
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 4, "vocab_size": 128_256, "max_position_embeddings": 65536, "rope_theta": 5e6,
        "rope_scaling": null, "no_rope_layers": list, "no_rope_layer_interval": 4, "use_sliding_window": false,
        "sliding_window": null, "layer_types": vec!["full_attention"; 36], "attention_bias": false, "mlp_bias": false,
    });
    let config = parse("SmolLM3ForCausalLM", published).unwrap();
    let still: Vec<usize> = (0..36).filter(|&layer| !config.rope_layers[layer]).collect();
    assert_eq!(still, [3, 7, 11, 15, 19, 23, 27, 31, 35]);
    assert_eq!((config.head_dim, config.tie_word_embeddings, config.rope.rope_theta), (128, true, 5e6));
    assert_eq!(config.sliding_window, [None; 36]);

    let absent = parse("SmolLM3ForCausalLM", json!({})).unwrap();
    assert_eq!((absent.rope_layers, absent.num_key_value_heads), (vec![true, true, true, false], 4));
    assert_eq!((absent.rope.rope_theta, absent.max_position_embeddings), (2e6, 32768));
    let layers = |changes| parse("SmolLM3ForCausalLM", changes).unwrap().rope_layers;
    assert_eq!(layers(json!({"no_rope_layer_interval": 2})), [true, false, true, false]);
    assert_eq!(layers(json!({"no_rope_layers": [0, 1, 1, 0, 0, 1]})), [false, true, true, false]);
    let sliding = json!({"use_sliding_window": true, "sliding_window": 8});
    assert_eq!(parse("SmolLM3ForCausalLM", sliding).unwrap().sliding_window, [None, None, None, Some(8)]);
    assert_eq!(gguf("smollm3", &[], &[]).unwrap().rope_layers, [true; 2]);

    for list in [json!([1, 1, 1]), json!([1, 1, 2, 1]), json!([1, 1, true, 1]), json!("all")] {
        check_error("SmolLM3ForCausalLM", json!({"no_rope_layers": list}), &["no_rope_layers", "each of 4 layers"]);
    }
}

#[test]
fn granite_multiplies() {
    // Of granite-3.3-2b-instruct.
    let published = json!({
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 40, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 49159, "max_position_embeddings": 131_072, "rope_theta": 1e7,
        "rope_scaling": null, "rms_norm_eps": 1e-5, "attention_bias": false, "mlp_bias": false, "hidden_act": "silu",
        "tie_word_embeddings": true, "embedding_multiplier": 12.0, "attention_multiplier": 0.015625,
        "residual_multiplier": 0.22, "logits_scaling": 8.0,
    });
    let config = parse("GraniteForCausalLM", published).unwrap();
    assert_eq!((config.attention_scale, config.logit_scale), (0.015625, 0.125));
    assert_eq!((config.embedding_scale, config.norm_eps), (12.0 / 0.22, 1e-5 / (0.22 * 0.22)));
    let plain = parse("GraniteForCausalLM", json!({})).unwrap();
    assert_eq!((plain.attention_scale, plain.logit_scale, plain.embedding_scale), (1.0, 1.0, 1.0));

    let float = |key, value| (key, GgufValue::Float(value));
    let all = [
        float("attention.scale", 0.25),
        float("embedding_scale", 3.0),
        float("residual_scale", 0.5),
        float("logit_scale", 4.0),
        float("attention.layer_norm_rms_epsilon", 0.5),
        ("rope.scaling.finetuned", GgufValue::Bool(true)),
    ];
    let config = gguf("granite", &all, &[]).unwrap();
    assert_eq!((config.attention_scale, config.embedding_scale), (0.25, 6.0));
    assert_eq!((config.logit_scale, config.norm_eps), (0.25, 2.0));
    assert_eq!(gguf("granite", &[], &[]).unwrap().attention_scale, 0.25, "of heads of 16");
    let still = gguf("granite", &[("rope.scaling.finetuned", GgufValue::Bool(false))], &[]).unwrap_err().to_string();
    assert!(still.contains("rope.scaling.finetuned"), "{still}");

    for key in ["embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"] {
        check_error("GraniteForCausalLM", json!({key: 0.0}), &[key, "positive", "found 0"]);
    }
    check_error("GraniteMoeForCausalLM", json!({}), &["GraniteMoeForCausalLM", "not supported"]);
}
