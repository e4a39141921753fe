//! What is particular to an architecture: as published configs say it, as a GGUF says it, and what is refused.

use serde_json::json;

use super::{check_error, gguf, parse};
use crate::config::{Activation, QkNorm, RopeScaling};
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

#[test]
fn olmo_normalises_what_its_parts_give() {
    // Of OLMo-2-0325-32B, and what a GGUF of it says.
    let published = json!({
        "hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 40,
        "num_key_value_heads": 8, "vocab_size": 100_352, "max_position_embeddings": 4096, "rope_theta": 5e5,
        "rope_scaling": null, "rms_norm_eps": 1e-6, "attention_bias": false, "hidden_act": "silu",
        "tie_word_embeddings": false,
    });
    let config = parse("Olmo2ForCausalLM", published).unwrap();
    assert_eq!((config.qk_norm, config.head_dim, config.norm_eps), (Some(QkNorm::AllHeads), 128, 1e-6));
    assert_eq!((config.sliding_window, config.local_rope), (vec![None; 64], None));
    let plain = parse("Olmo2ForCausalLM", json!({})).unwrap();
    assert_eq!((plain.norm_eps, plain.rope.rope_theta), (1e-5, 1e4));
}

#[test]
fn olmo3_stretches_layers_without_a_window() {
    // Of Olmo-3-7B-Instruct.
    let yarn = json!({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192,
                      "attention_factor": 1.2079, "beta_fast": 32.0, "beta_slow": 1.0});
    let old = json!({"num_hidden_layers": 5, "sliding_window": 4096, "rope_theta": 5e5, "rope_scaling": yarn,
                     "max_position_embeddings": 65536, "rms_norm_eps": 1e-6});
    let old = parse("Olmo3ForCausalLM", old).unwrap();
    assert_eq!((old.max_position_embeddings, old.qk_norm), (65536, Some(QkNorm::AllHeads)));
    let window = Some(4096);
    assert_eq!(old.sliding_window, [window, window, window, None, window]);
    let RopeScaling::Yarn(found) = &old.rope.scaling else { panic!("{:?}", old.rope.scaling) };
    assert_eq!((found.factor, found.original_max_position_embeddings, found.attention_factor), (8.0, 8192, 1.2079));
    let local = old.local_rope.as_ref().unwrap();
    assert_eq!((local.rope_theta, local.rotary_dim, &local.scaling), (5e5, 16, &RopeScaling::Default));

    let mut full = yarn.clone();
    full["rope_theta"] = json!(5e5);
    let new = json!({"num_hidden_layers": 5, "max_position_embeddings": 65536, "rms_norm_eps": 1e-6,
                     "rope_parameters": {"full_attention": full, "sliding_attention": {"rope_type": "default"}}});
    assert_eq!(parse("Olmo3ForCausalLM", new).unwrap(), old);
    let other = json!({"layer_types": ["full_attention", "full_attention", "full_attention", "sliding_attention"]});
    assert_eq!(parse("Olmo3ForCausalLM", other).unwrap().sliding_window, [None, None, None, window]);
    check_error("Olmo3ForCausalLM", json!({"layer_types": ["linear_attention"]}), &["layer_types", "linear_attention"]);

    let values = [
        ("attention.sliding_window", GgufValue::Int(64)),
        ("attention.sliding_window_pattern", GgufValue::Bools(vec![false, true])),
        ("rope.freq_base", GgufValue::Float(7e3)),
        ("rope.scaling.type", GgufValue::String("yarn".into())),
        ("rope.scaling.factor", GgufValue::Float(8.0)),
        ("rope.scaling.original_context_length", GgufValue::Int(32)),
    ];
    let config = gguf("olmo2", &values, &[]).unwrap();
    assert_eq!(config.sliding_window, [None, Some(64)]);
    assert!(matches!(config.rope.scaling, RopeScaling::Yarn(_)) && config.rope.rope_theta == 7e3);
    let local = config.local_rope.unwrap();
    assert_eq!((local.rope_theta, local.scaling), (7e3, RopeScaling::Default));
    assert_eq!(gguf("olmo2", &[], &[]).unwrap().local_rope, None);
}

#[test]
fn glm_turns_neighbours_of_half_of_a_head() {
    // Of GLM-4-9B-0414.
    let published = json!({
        "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40, "num_attention_heads": 32,
        "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 151_552, "max_position_embeddings": 32768,
        "rope_theta": 1e4, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-5, "attention_bias": true,
        "hidden_act": "silu", "tie_word_embeddings": false,
    });
    for architecture in ["Glm4ForCausalLM", "GlmForCausalLM"] {
        let config = parse(architecture, published.clone()).unwrap();
        assert_eq!((config.rope.rotary_dim, config.interleaved_rope, config.attention_bias), (64, true, true));
        let absent = parse(architecture, json!({})).unwrap();
        assert_eq!((absent.head_dim, absent.rope.rotary_dim, absent.num_key_value_heads), (128, 64, 2));
        assert_eq!((absent.norm_eps, absent.attention_bias), (1.5625e-7, true));
    }
    let sections = [("rope.dimension_sections", GgufValue::Ints(vec![8, 12, 12, 0]))];
    let refused = gguf("glm4", &sections, &[]).unwrap_err().to_string();
    assert!(refused.contains("rope.dimension_sections"), "{refused}");
    check_error("Glm4MoeForCausalLM", json!({}), &["Glm4MoeForCausalLM", "not supported"]);
}

#[test]
fn layers_of_cohere2_turn_where_they_slide() {
    // Of c4ai-command-r7b-12-2024.
    let published = json!({
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 256_000, "max_position_embeddings": 132_096,
        "rope_theta": 5e4, "rope_scaling": null, "layer_norm_eps": 1e-5, "attention_bias": false, "hidden_act": "silu",
        "logit_scale": 0.25, "sliding_window": 4096, "sliding_window_pattern": 4, "rotary_pct": 1.0,
        "use_qk_norm": false,
    });
    let config = parse("Cohere2ForCausalLM", published).unwrap();
    let full: Vec<usize> = (0..32).filter(|&layer| config.sliding_window[layer].is_none()).collect();
    assert_eq!(full, [3, 7, 11, 15, 19, 23, 27, 31]);
    assert!(config.rope_layers.iter().zip(&config.sliding_window).all(|(turns, window)| *turns == window.is_some()));
    assert_eq!((config.logit_scale, config.tie_word_embeddings, config.interleaved_rope), (0.25, true, true));
    let absent = parse("Cohere2ForCausalLM", json!({})).unwrap();
    assert_eq!((absent.logit_scale, absent.norm_eps, absent.rope.rope_theta), (0.0625, 1e-5, 1e4));
    assert_eq!(parse("Cohere2ForCausalLM", json!({"sliding_window": null})).unwrap().rope_layers, [false; 4]);

    let first = parse("CohereForCausalLM", json!({"layer_norm_eps": 0.25})).unwrap();
    assert_eq!((first.norm_eps, first.rope.rope_theta, first.rope_layers), (0.25, 5e5, vec![true; 4]));
    for architecture in ["CohereForCausalLM", "Cohere2ForCausalLM"] {
        check_error(architecture, json!({"use_qk_norm": true}), &["use_qk_norm", "not supported"]);
    }
    let values = [
        ("logit_scale", GgufValue::Float(0.5)),
        ("attention.sliding_window", GgufValue::Int(64)),
        ("attention.layer_norm_epsilon", GgufValue::Float(0.125)),
        ("attention.sliding_window_pattern", GgufValue::Int(2)),
    ];
    let config = gguf("cohere2", &values, &[]).unwrap();
    assert_eq!((config.logit_scale, config.norm_eps, config.sliding_window), (0.5, 0.125, vec![Some(64), None]));
}

#[test]
fn the_first_gemma_says_gelu_and_means_its_approximation() {
    // Of gemma-2b.
    let published = json!({
        "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18, "num_attention_heads": 8,
        "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 256_000, "max_position_embeddings": 8192,
        "rope_theta": 1e4, "rms_norm_eps": 1e-6, "hidden_act": "gelu",
    });
    let config = parse("GemmaForCausalLM", published).unwrap();
    assert_eq!((config.hidden_act, config.norm_offset, config.tie_word_embeddings), (Activation::GeluTanh, 1.0, true));
    assert_eq!((config.embedding_scale, config.attention_scale), (2048f32.sqrt(), 1.0 / 16.0));
    check_error("GemmaForCausalLM", json!({"hidden_act": "relu"}), &["hidden_act", "relu"]);
    let both_ways = json!({"use_bidirectional_attention": true});
    check_error("GemmaForCausalLM", both_ways, &["use_bidirectional_attention"]);
}
