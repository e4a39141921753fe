//! Configs of every architecture: both generations of keys, what absent and null mean, and errors that name the key.

mod families;

use std::path::Path;

use serde_json::{Value, json};

use super::{RawConfig, find};
use crate::backend::cpu::CpuBackend;
use crate::config::{Activation, ExpertsConfig, LongRope, ModelConfig, QkNorm, RopeConfig, RopeScaling, Yarn};
use crate::error::Result;
use crate::weights::gguf_writer::GgufWriter;
use crate::weights::{Dtype, GgufFile, GgufValue};

const EACH_HEAD: Option<QkNorm> = Some(QkNorm::EachHead);

/// A config of the architecture with the required keys, and `changes` over it; a change to "absent" removes the key.
fn parse(architecture: &str, changes: Value) -> Result<ModelConfig> {
    let mut config = json!({
        "architectures": [architecture],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 100,
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [7, 9]}"#).unwrap();
    let raw = RawConfig::from_dir(dir.path())?;
    (find::<CpuBackend>(&raw)?.parse_config)(&raw)
}

fn check_error(architecture: &str, changes: Value, words: &[&str]) {
    let error = parse(architecture, changes).unwrap_err().to_string();
    assert!(words.iter().all(|w| error.contains(w)) && error.contains("config.json"), "{error}");
}

#[test]
fn absent_keys_have_the_defaults_of_their_class() {
    let llama = parse("LlamaForCausalLM", json!({})).unwrap();
    assert_eq!((llama.head_dim, llama.num_key_value_heads, llama.tie_word_embeddings), (16, 4, false));
    assert_eq!((llama.hidden_act, llama.rope.rope_theta, llama.norm_eps), (Activation::Silu, 1e4, 1e-6));

    let mistral = parse("MistralForCausalLM", json!({})).unwrap();
    assert_eq!((mistral.num_key_value_heads, &mistral.sliding_window), (8, &vec![Some(4096); 4]));

    let mixtral = parse("MixtralForCausalLM", json!({})).unwrap();
    assert_eq!((mixtral.num_key_value_heads, mixtral.norm_eps, mixtral.rope.rope_theta), (8, 1e-5, 1e6));
    assert_eq!(mixtral.sliding_window, [None; 4]);
    let experts = ExpertsConfig { num_experts: 8, per_token: 2, intermediate_size: 96, normalizes: true };
    assert_eq!((mixtral.experts, mistral.experts), (Some(experts), None));

    let qwen = parse("Qwen3MoeForCausalLM", json!({})).unwrap();
    let experts = ExpertsConfig { num_experts: 128, per_token: 8, intermediate_size: 768, normalizes: false };
    assert_eq!(
        (qwen.experts, qwen.qk_norm, qwen.num_key_value_heads, qwen.head_dim),
        (Some(experts), EACH_HEAD, 4, 16)
    );
    let qwen = parse("Qwen3MoeForCausalLM", json!({"use_sliding_window": true, "num_local_experts": 9})).unwrap();
    assert_eq!((qwen.experts.unwrap().num_experts, &qwen.sliding_window), (9, &vec![Some(4096); 4]));

    let gemma = parse("Gemma2ForCausalLM", json!({})).unwrap();
    assert_eq!((gemma.head_dim, gemma.num_key_value_heads, gemma.tie_word_embeddings), (256, 4, true));
    assert_eq!((gemma.attn_logit_softcapping, gemma.final_logit_softcapping), (Some(50.0), Some(30.0)));
    assert_eq!((gemma.hidden_act, gemma.attention_scale), (Activation::GeluTanh, 1.0 / 16.0));
    assert_eq!(gemma.sliding_window, [Some(4096), None, Some(4096), None]);

    // What is published says next to nothing.
    let absent = json!({"num_attention_heads": null, "vocab_size": null, "num_hidden_layers": 7});
    let gemma3 = parse("Gemma3ForCausalLM", absent).unwrap();
    assert_eq!((gemma3.head_dim, gemma3.num_attention_heads, gemma3.num_key_value_heads), (256, 8, 4));
    assert_eq!((gemma3.vocab_size, gemma3.attention_scale, gemma3.qk_norm), (262_208, 1.0 / 16.0, EACH_HEAD));
    assert_eq!((gemma3.attn_logit_softcapping, gemma3.final_logit_softcapping), (None, None));
    let theta = |rope: &RopeConfig| (rope.rope_theta, rope.rotary_dim);
    assert_eq!((theta(&gemma3.rope), gemma3.local_rope.as_ref().map(theta)), ((1e6, 256), Some((1e4, 256))));
    let full: Vec<bool> = gemma3.sliding_window.iter().map(Option::is_none).collect();
    assert_eq!(full, [false, false, false, false, false, true, false]);

    let qwen2 = parse("Qwen2ForCausalLM", json!({"num_attention_heads": 32})).unwrap();
    assert_eq!((qwen2.head_dim, qwen2.num_key_value_heads, &qwen2.sliding_window), (2, 32, &vec![None; 4]));
    let qwen3 = parse("Qwen3ForCausalLM", json!({})).unwrap();
    assert_eq!((qwen3.head_dim, qwen3.rope.rotary_dim, qwen3.qk_norm), (128, 128, EACH_HEAD));
    assert_eq!((qwen3.attention_scale, qwen3.max_position_embeddings), (1.0 / 128f32.sqrt(), 32768));

    let oss = parse("GptOssForCausalLM", json!({})).unwrap();
    let experts = ExpertsConfig { num_experts: 128, per_token: 4, intermediate_size: 96, normalizes: true };
    assert_eq!((oss.experts, oss.head_dim, oss.num_key_value_heads, oss.norm_eps), (Some(experts), 64, 8, 1e-5));
    assert_eq!((oss.attention_bias, oss.mlp_bias, oss.hidden_act), (true, true, Activation::ClampedSwiglu));
    assert_eq!((oss.rope.rope_theta, oss.max_position_embeddings), (150_000.0, 131_072));
    let RopeScaling::Yarn(yarn) = &oss.rope.scaling else { panic!("{:?}", oss.rope.scaling) };
    let said = json!({"rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
                                       "truncate": false, "original_max_position_embeddings": 4096}});
    assert_eq!(parse("GptOssForCausalLM", said).unwrap().rope.scaling, RopeScaling::Yarn(yarn.clone()));
    assert_eq!(oss.sliding_window, [Some(128), None, Some(128), None]);
    let other = json!({"layer_types": ["full_attention", "full_attention", "full_attention", "sliding_attention"]});
    assert_eq!(parse("GptOssForCausalLM", other).unwrap().sliding_window, [None, None, None, Some(128)]);

    let phi3 = parse("Phi3ForCausalLM", json!({})).unwrap();
    assert_eq!((&phi3.sliding_window, phi3.rope.rotary_dim), (&vec![None; 4], 16));

    let phi = parse("PhiForCausalLM", json!({"partial_rotary_factor": 0.25})).unwrap();
    assert_eq!((phi.rope.rotary_dim, phi.hidden_act), (4, Activation::GeluTanh));
}

#[test]
fn null_is_not_absent() {
    let mistral = parse("MistralForCausalLM", json!({"sliding_window": null, "num_key_value_heads": null})).unwrap();
    assert_eq!((mistral.num_key_value_heads, &mistral.sliding_window), (4, &vec![None; 4]));
    let gemma = parse("Gemma2ForCausalLM", json!({"attn_logit_softcapping": null, "sliding_window": 8})).unwrap();
    assert_eq!((gemma.attn_logit_softcapping, gemma.sliding_window[0]), (None, Some(8)));
}

#[test]
fn both_generations_of_keys_are_read() {
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192});
    let old = json!({"rope_theta": 5e5, "rope_scaling": scaling});
    let mut parameters = scaling.clone();
    parameters["rope_theta"] = json!(5e5);
    let new = json!({"rope_parameters": parameters, "dtype": "bfloat16"});
    let (old, new) = (parse("LlamaForCausalLM", old).unwrap(), parse("LlamaForCausalLM", new).unwrap());
    assert_eq!(old, new);
    assert!(matches!(new.rope.scaling, RopeScaling::Llama3 { original_max_position_embeddings: 8192, .. }));
    let linear = json!({"rope_scaling": {"type": "linear", "factor": 2.0}});
    assert_eq!(parse("LlamaForCausalLM", linear).unwrap().rope.scaling, RopeScaling::Linear { factor: 2.0 });
    let types = json!({"layer_types": ["full_attention", "full_attention", "sliding_attention", "full_attention"]});
    assert_eq!(parse("Gemma2ForCausalLM", types).unwrap().sliding_window, [None, None, Some(4096), None]);
}

#[test]
fn layers_with_and_without_a_window_have_ropes_of_their_own() {
    let linear = json!({"rope_type": "linear", "factor": 8.0});
    let old = json!({"rope_theta": 5e5, "rope_local_base_freq": 7e3, "rope_scaling": linear});
    let full = json!({"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5});
    let local = json!({"rope_type": "default", "rope_theta": 7e3});
    let new = json!({"rope_parameters": {"full_attention": full, "sliding_attention": local}});
    let (old, new) = (parse("Gemma3ForCausalLM", old).unwrap(), parse("Gemma3ForCausalLM", new).unwrap());
    assert_eq!(old, new);
    assert_eq!((new.rope.rope_theta, &new.rope.scaling), (5e5, &RopeScaling::Linear { factor: 8.0 }));
    let local = new.local_rope.unwrap();
    assert_eq!((local.rope_theta, local.scaling), (7e3, RopeScaling::Default));
}

#[test]
fn qwens_upper_layers_slide_where_the_config_says_so() {
    let window = |changes| parse("Qwen2ForCausalLM", changes).unwrap().sliding_window;
    assert_eq!(window(json!({"sliding_window": 8, "max_window_layers": 3})), [None; 4]);
    let used = json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 3});
    assert_eq!(window(used), [None, None, None, Some(8)]);
    assert_eq!(window(json!({"use_sliding_window": true, "max_window_layers": 0})), [Some(4096); 4]);
    assert_eq!(window(json!({"use_sliding_window": true})), [None; 4], "28 layers are full where nothing is said");
}

#[test]
fn a_model_that_sees_images_is_described_by_its_text_part() {
    let of_text =
        json!({"model_type": "gemma3_text", "architectures": ["Other"], "hidden_size": 32, "sliding_window": 9});
    let gemma3 = parse("Gemma3ForConditionalGeneration", json!({"text_config": of_text, "vision_config": {}})).unwrap();
    assert_eq!((gemma3.hidden_size, gemma3.sliding_window[0]), (32, Some(9)));
    assert_eq!(gemma3.architecture, "Gemma3ForConditionalGeneration");
    let part = |kind: &str| json!({"text_config": {"model_type": kind, "rope_theta": 1e9, "sliding_window": null}});
    let mistral = parse("Mistral3ForConditionalGeneration", part("mistral")).unwrap();
    assert_eq!((mistral.rope.rope_theta, mistral.sliding_window), (1e9, vec![None; 4]));
    check_error("Mistral3ForConditionalGeneration", part("ministral3"), &["model_type", "ministral3"]);
}

#[test]
fn end_ids_are_the_union_of_both_files() {
    let config = parse("LlamaForCausalLM", json!({"eos_token_id": 2, "bos_token_id": 1})).unwrap();
    assert_eq!((config.bos_token_id, config.eos_token_ids), (Some(1), vec![2, 7, 9]));
}

#[test]
fn errors_name_the_key() {
    check_error("GPT2LMHeadModel", json!({}), &["GPT2LMHeadModel", "LlamaForCausalLM"]);
    check_error("LlamaForCausalLM", json!({"hidden_size": null}), &["hidden_size", "missing"]);
    check_error("LlamaForCausalLM", json!({"num_attention_heads": 0}), &["num_attention_heads", "found 0"]);
    check_error("LlamaForCausalLM", json!({"vocab_size": "many"}), &["vocab_size", "many"]);
    check_error("LlamaForCausalLM", json!({"rope_theta": -1.0}), &["rope_theta"]);
    check_error("LlamaForCausalLM", json!({"hidden_act": "relu"}), &["hidden_act", "relu"]);
    check_error("GptOssForCausalLM", json!({"swiglu_limit": 6.5}), &["swiglu_limit", "only 7", "6.5"]);
    check_error("GptOssForCausalLM", json!({"swiglu_alpha": 1.0}), &["swiglu_alpha", "only 1.702"]);
    check_error("GptOssForCausalLM", json!({"num_local_experts": 3}), &["num_experts_per_tok", "at most 3, found 4"]);
    check_error("LlamaForCausalLM", json!({"eos_token_id": [-1]}), &["eos_token_id"]);
    let narrow = parse("LlamaForCausalLM", json!({"hidden_size": 2})).unwrap();
    assert!(narrow.validate("config.json".as_ref()).unwrap_err().to_string().contains("head_dim"));
    check_error("PhiForCausalLM", json!({"qk_layernorm": true}), &["qk_layernorm"]);
    check_error("MixtralForCausalLM", json!({"num_local_experts": 513}), &["num_local_experts", "at most 512", "513"]);
    check_error("MixtralForCausalLM", json!({"num_experts_per_tok": 9}), &["num_experts_per_tok", "at most 8", "9"]);
    check_error("MixtralForCausalLM", json!({"num_experts_per_tok": 0}), &["num_experts_per_tok", "found 0"]);
    check_error("Qwen3MoeForCausalLM", json!({"mlp_only_layers": [0, 3]}), &["mlp_only_layers", "[0,3]"]);
    check_error("Qwen3MoeForCausalLM", json!({"decoder_sparse_step": 2}), &["decoder_sparse_step", "found 2"]);
    check_error("Qwen3MoeForCausalLM", json!({"num_experts": 4}), &["num_experts_per_tok", "at most 4", "8"]);
    check_error("PhiForCausalLM", json!({"partial_rotary_factor": 1.5}), &["partial_rotary_factor"]);
    check_error("Gemma2ForCausalLM", json!({"layer_types": ["full_attention"]}), &["layer_types"]);
}

/// A Phi-3 with heads of 16 dimensions, of which 12 turn, and `changes` to its `rope_scaling`; a change to null is as if it were absent.
fn long_phi3(changes: Value, beside: Value) -> Value {
    let mut scaling =
        json!({"type": "longrope", "short_factor": [1, 1.5, 2, 2.5, 3, 3.5], "long_factor": [1, 2, 4, 8, 16, 32]});
    for (key, value) in changes.as_object().unwrap() {
        scaling[key] = value.clone();
    }
    let mut config = json!({"partial_rotary_factor": 0.75, "max_position_embeddings": 1024,
                            "original_max_position_embeddings": 64, "rope_scaling": scaling});
    for (key, value) in beside.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

#[test]
fn longrope_is_read_where_either_generation_has_it() {
    let long = |changes, beside| match parse("Phi3ForCausalLM", long_phi3(changes, beside)).unwrap().rope.scaling {
        RopeScaling::Long(long) => long,
        other => panic!("{other:?}"),
    };
    let expected = LongRope {
        short_factors: vec![1.0, 1.5, 2.0, 2.5, 3.0, 3.5],
        long_factors: vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0],
        original_max_position_embeddings: 64,
        // sqrt(1 + ln(1024 / 64) / ln(64)).
        attention_factor: (1.0_f64 + 4.0 / 6.0).sqrt() as f32,
    };
    assert_eq!(long(json!({}), json!({})), expected);
    assert_eq!(long(json!({"type": null, "rope_type": "su"}), json!({})), expected);
    let inside = json!({"original_max_position_embeddings": 64});
    assert_eq!(long(inside.clone(), json!({"original_max_position_embeddings": null})), expected);
    // What stands beside goes first, as transformers has it.
    assert_eq!(long(json!({"original_max_position_embeddings": 32}), json!({})), expected);
    let mut parameters = long_phi3(inside, json!({}))["rope_scaling"].clone();
    (parameters["rope_theta"], parameters["partial_rotary_factor"]) = (json!(1e4), json!(0.75));
    let new = json!({"rope_parameters": parameters, "rope_scaling": null, "partial_rotary_factor": null});
    assert_eq!(long(json!({}), new), expected);

    let factor = |changes, beside| long(changes, beside).attention_factor;
    assert_eq!(factor(json!({"factor": 8}), json!({})), 1.5_f32.sqrt());
    assert_eq!(factor(json!({"attention_factor": 1.25, "factor": 8}), json!({})), 1.25);
    assert_eq!(factor(json!({}), json!({"max_position_embeddings": 64})), 1.0);
    let plain = json!({"rope_scaling": null, "original_max_position_embeddings": 64});
    assert_eq!(parse("Phi3ForCausalLM", plain).unwrap().rope.scaling, RopeScaling::Default);
}

#[test]
fn yarn_makes_room_for_a_longer_context() {
    let parse = |scaling: Value, beside: Value| {
        let mut config = json!({"max_position_embeddings": 64, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}});
        for (place, changes) in [("/rope_scaling", &scaling), ("", &beside)] {
            for (key, value) in changes.as_object().unwrap() {
                config.pointer_mut(place).unwrap()[key] = value.clone();
            }
        }
        parse("Qwen2ForCausalLM", config).map(|config| (config.rope.scaling, config.max_position_embeddings))
    };
    let yarn = Yarn {
        factor: 4.0,
        original_max_position_embeddings: 64,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
        attention_factor: (0.1 * 4f64.ln() + 1.0) as f32,
    };
    assert_eq!(parse(json!({}), json!({})).unwrap(), (RopeScaling::Yarn(yarn.clone()), 256));
    let original = parse(json!({"original_max_position_embeddings": 32}), json!({})).unwrap();
    assert_eq!(original, (RopeScaling::Yarn(Yarn { original_max_position_embeddings: 32, ..yarn.clone() }), 128));
    let given = json!({"attention_factor": 1.5, "beta_fast": 8, "beta_slow": 2, "truncate": false});
    let expected = Yarn { attention_factor: 1.5, beta_fast: 8.0, beta_slow: 2.0, truncate: false, ..yarn.clone() };
    assert_eq!(parse(given, json!({})).unwrap(), (RopeScaling::Yarn(expected), 256));
    let alike = parse(json!({"mscale": 0.7, "mscale_all_dim": 0.7}), json!({})).unwrap().0;
    assert_eq!(alike, RopeScaling::Yarn(Yarn { attention_factor: 1.0, ..yarn.clone() }));
    let by_lengths = json!({"factor": null, "original_max_position_embeddings": 16});
    assert_eq!(
        parse(by_lengths, json!({})).unwrap(),
        (RopeScaling::Yarn(Yarn { original_max_position_embeddings: 16, ..yarn }), 64)
    );
    let error = |scaling, beside| parse(scaling, beside).unwrap_err().to_string();
    let negative = error(json!({"factor": -4}), json!({}));
    assert!(negative.contains("rope_scaling: factor") && negative.contains("-4"), "{negative}");
    assert!(error(json!({"factor": null}), json!({})).contains("rope_scaling: factor: is missing"));
    let no_length = error(json!({}), json!({"max_position_embeddings": null}));
    assert!(no_length.contains("original_max_position_embeddings"), "{no_length}");
}

#[test]
fn what_a_config_cannot_mean_is_named() {
    for other in [json!(8), json!("yarn"), json!([])] {
        let words = &["rope_scaling: expected an object", &format!("found {other}")];
        check_error("LlamaForCausalLM", json!({"rope_scaling": other}), words);
        check_error("GptOssForCausalLM", json!({"rope_parameters": other}), &["rope_parameters: expected an object"]);
    }
    for (changes, words) in [
        (json!({"rms_norm_eps": -0.5}), ["epsilon", "found -0.5"]),
        (json!({"eos_token_id": 1u32 << 31}), ["eos_token_id", "2147483648"]),
        (json!({"bos_token_id": 1u32 << 31}), ["bos_token_id", "2147483648"]),
    ] {
        let config = parse("LlamaForCausalLM", changes).unwrap();
        let error = config.validate(Path::new("config.json")).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}

#[test]
fn errors_of_longrope_name_the_key() {
    let check = |changes, beside, words: &[&str]| check_error("Phi3ForCausalLM", long_phi3(changes, beside), words);
    let factors = "rope_scaling: short_factor: expected a list of 6 positive numbers";
    check(json!({"short_factor": [1, 1, 1, 1, 1]}), json!({}), &[factors, "found 5 in a list of 5"]);
    check(json!({"short_factor": [1, 1, 1, 1, 1, 0]}), json!({}), &[factors, "found 5 in a list of 6"]);
    check(json!({"short_factor": [1, 1, 1, 1, 1, 1, "1"]}), json!({}), &[factors, "found 6 in a list of 7"]);
    check(json!({"short_factor": null}), json!({}), &[factors, "found none"]);
    check(json!({"long_factor": 1}), json!({}), &["rope_scaling: long_factor", "found none"]);
    check(json!({}), json!({"partial_rotary_factor": 1.0}), &["short_factor", "list of 8", "found 6"]);
    check(json!({"attention_factor": -1}), json!({}), &["rope_scaling: attention_factor", "found -1"]);
    check(json!({"factor": "8"}), json!({}), &["rope_scaling: factor", "found \"8\""]);
    let original = "original_max_position_embeddings";
    check(json!({}), json!({"original_max_position_embeddings": null}), &[original, "missing"]);
    check(json!({}), json!({"original_max_position_embeddings": 0}), &[original, "found 0"]);
    check(json!({}), json!({"original_max_position_embeddings": 1}), &[original, "at least 2"]);
    check(json!({original: -1}), json!({original: null}), &[original, "found -1"]);
    // Other models' sequences would not be computed anew by transformers.
    check_error("LlamaForCausalLM", long_phi3(json!({}), json!({})), &["rope_scaling", "longrope", "not supported"]);
}

#[test]
fn a_gguf_has_the_factors_of_longrope_as_tensors() {
    let (long, short) = ("rope_factors_long.weight", "rope_factors_short.weight");
    let values = [
        ("context_length", GgufValue::Int(1024)),
        ("rope.dimension_count", GgufValue::Int(12)),
        ("rope.scaling.original_context_length", GgufValue::Int(64)),
        ("rope.scaling.attn_factor", GgufValue::Float(1.25)),
    ];
    let six = [1.0, 1.5, 2.0, 2.5, 3.0, 3.5];
    let scaling = |values: &[_], tensors: &[_]| gguf("phi3", values, tensors).map(|config| config.rope.scaling);
    let RopeScaling::Long(found) = scaling(&values, &[(short, &six), (long, &[2.0; 6])]).unwrap() else {
        panic!("the factors were not read");
    };
    assert_eq!((found.original_max_position_embeddings, found.attention_factor), (64, 1.25));
    assert_eq!((found.short_factors, found.long_factors), (six.to_vec(), vec![2.0; 6]));
    assert_eq!(scaling(&values, &[]).unwrap(), RopeScaling::Default);
    let without_factor = scaling(&values[..3], &[(short, &six), (long, &six)]).unwrap();
    assert!(matches!(without_factor, RopeScaling::Long(long) if (long.attention_factor - 1.29099).abs() < 1e-5));

    let error = |values: &[_], tensors: &[_]| scaling(values, tensors).unwrap_err().to_string();
    assert!(error(&values, &[(long, &six)]).contains("short_factor"));
    assert!(error(&values, &[(short, &six), (long, &[1.0; 5])]).contains("long_factor"));
    assert!(error(&values, &[(short, &six), (long, &[f32::NAN; 6])]).contains("long_factor"));
    assert!(error(&values[..2], &[(short, &six), (long, &six)]).contains("original_max_position_embeddings"));
    let many = error(&values, &[(short, &six), (long, &[1.0; 5000])]);
    assert!(many.contains("rope_factors_long.weight") && many.contains("5000"), "{many}");
    let llama = gguf("llama", &values, &[(short, &six), (long, &six)]).unwrap_err().to_string();
    assert!(llama.contains("longrope"), "{llama}");
}

/// What a GGUF's metadata says, with tensors of these names and elements beside it.
fn gguf(architecture: &str, values: &[(&str, GgufValue)], tensors: &[(&str, &[f32])]) -> Result<ModelConfig> {
    let int = |key: &str, value| (key.to_owned(), GgufValue::Int(value));
    let required = [("block_count", 2), ("embedding_length", 64), ("feed_forward_length", 96), ("vocab_size", 100)];
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", &GgufValue::String(architecture.into()));
    let given = values.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
    let required = required.into_iter().chain([("attention.head_count", 4)]).map(|(key, value)| int(key, value));
    for (key, value) in required.chain(given) {
        writer.set(&format!("{architecture}.{key}"), &value);
    }
    for &(name, elements) in tensors {
        writer.tensor(name, Dtype::F32, &[elements.len()], bytemuck::cast_slice(elements));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    writer.write(&path).unwrap();
    let raw = RawConfig::from_gguf(&GgufFile::open(&path).unwrap())?;
    (find::<CpuBackend>(&raw)?.parse_config)(&raw)
}

#[test]
fn a_gguf_tells_by_its_tensors_what_its_metadata_does_not() {
    let plain = gguf("llama", &[], &[("output.weight", &[0.0])]).unwrap();
    assert!(!plain.tie_word_embeddings && !plain.attention_bias && !plain.mlp_bias);
    let biased = gguf("llama", &[], &[("blk.0.attn_k.bias", &[0.0]), ("blk.0.ffn_down.bias", &[0.0])]).unwrap();
    assert!(biased.tie_word_embeddings && biased.attention_bias && biased.mlp_bias);
}

#[test]
fn a_gguf_scales_rope_by_either_key() {
    let scaling = |values: &[(&str, GgufValue)]| gguf("llama", values, &[]).map(|config| config.rope.scaling);
    let (kind, factor, old) = ("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear");
    let (float, text) = (GgufValue::Float, |text: &str| GgufValue::String(text.into()));
    for values in [
        &[(kind, text("linear")), (factor, float(8.0))][..],
        &[(factor, float(8.0))],
        &[(old, float(8.0))],
        &[(factor, float(8.0)), (old, float(2.0))],
    ] {
        assert_eq!(scaling(values).unwrap(), RopeScaling::Linear { factor: 8.0 }, "{values:?}");
    }
    for values in [&[][..], &[(factor, float(0.0))], &[(kind, text("none")), (factor, float(8.0))]] {
        assert_eq!(scaling(values).unwrap(), RopeScaling::Default, "{values:?}");
    }
    let refused = scaling(&[(kind, text("dynamic")), (factor, float(8.0))]).unwrap_err().to_string();
    assert!(refused.contains("rope_type \"dynamic\""), "{refused}");
    let original = ("rope.scaling.original_context_length", GgufValue::Int(64));
    let values = [(kind, text("yarn")), (factor, float(4.0)), original, ("rope.scaling.attn_factor", float(2.0))];
    let RopeScaling::Yarn(yarn) = scaling(&values).unwrap() else { panic!("yarn is read as something else") };
    let attention_factor = 2.0 * (0.1 * 4f32.ln() + 1.0);
    assert_eq!((yarn.factor, yarn.original_max_position_embeddings), (4.0, 64));
    assert!((yarn.attention_factor - attention_factor).abs() < 1e-6, "{yarn:?}");
}

#[test]
fn a_llama_in_a_gguf_may_have_experts() {
    let int = |key, value| (key, GgufValue::Int(value));
    let experts = |values: &[(&str, GgufValue)]| gguf("llama", values, &[]).unwrap().experts;
    let expected = ExpertsConfig { num_experts: 6, per_token: 3, intermediate_size: 96, normalizes: true };
    assert_eq!(experts(&[int("expert_count", 6), int("expert_used_count", 3)]), Some(expected));
    assert_eq!((experts(&[]), experts(&[int("expert_count", 0)])), (None, None));
    let sizes = [int("expert_count", 6), int("expert_used_count", 3), int("expert_feed_forward_length", 40)];
    let qwen = gguf("qwen3moe", &sizes, &[]).unwrap();
    assert_eq!(qwen.experts, Some(ExpertsConfig { intermediate_size: 40, ..expected }));
}

#[test]
fn a_gguf_of_gpt_oss_does_not_say_how_its_ramp_ends() {
    let text = |text: &str| GgufValue::String(text.into());
    let values = [
        ("rope.scaling.type", text("yarn")),
        ("rope.scaling.factor", GgufValue::Float(32.0)),
        ("rope.scaling.original_context_length", GgufValue::Int(4096)),
        ("attention.sliding_window", GgufValue::Int(128)),
        ("expert_count", GgufValue::Int(32)),
        ("expert_used_count", GgufValue::Int(4)),
        ("expert_feed_forward_length", GgufValue::Int(48)),
    ];
    let config = gguf("gpt-oss", &values, &[("blk.0.attn_q.bias", &[0.0])]).unwrap();
    assert!(matches!(&config.rope.scaling, RopeScaling::Yarn(Yarn { truncate: false, .. })), "{:?}", config.rope);
    assert_eq!((config.sliding_window, config.attention_bias), (vec![Some(128), None], true));
    let experts = ExpertsConfig { num_experts: 32, per_token: 4, intermediate_size: 48, normalizes: true };
    assert_eq!(config.experts, Some(experts));
    let other = gguf("qwen2", &values[..4], &[]).unwrap();
    assert!(matches!(&other.rope.scaling, RopeScaling::Yarn(Yarn { truncate: true, .. })), "{:?}", other.rope);
}

#[test]
fn a_window_of_0_in_a_gguf_is_none() {
    let window = |len| gguf("phi3", &[("attention.sliding_window", GgufValue::Int(len))], &[]).unwrap().sliding_window;
    assert_eq!((window(0), window(32)), (vec![None; 2], vec![Some(32); 2]));
}

#[test]
fn more_layers_than_any_model_has_are_refused() {
    for architecture in super::architectures::<CpuBackend>().iter().map(|entry| entry.name) {
        let layers = json!({"num_hidden_layers": 2_147_483_647});
        check_error(architecture, layers, &["num_hidden_layers", "at most 4096", "2147483647"]);
    }
}
