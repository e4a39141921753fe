//! What a model's files say of embeddings, and what comes of it.

use serde_json::json;

use super::*;
use crate::config::EngineConfig;
use crate::weights::GgufValue;

const TRANSFORMER: &str = "sentence_transformers.models.Transformer";
const POOLING: &str = "sentence_transformers.models.Pooling";
const NORMALIZE: &str = "sentence_transformers.models.Normalize";

/// The pooling of a model whose config has `entries` too, and beside which these files are; or why it is refused.
fn pooling(entries: Value, files: &[(&str, Value)]) -> Result<Pooling, String> {
    let dir = tempfile::tempdir().unwrap();
    let mut config = json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8, "max_position_embeddings": 8});
    config.as_object_mut().unwrap().extend(entries.as_object().unwrap().clone());
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content.to_string()).unwrap();
    }
    Pooling::of(&ModelFiles::open(dir.path(), &EngineConfig::default()).unwrap()).map_err(|e| e.to_string())
}

fn modules(kinds: &[&str]) -> Value {
    let path = |i| if i == 0 { String::new() } else { format!("{i}_X") };
    kinds.iter().enumerate().map(|(i, kind)| json!({"idx": i, "name": "0", "path": path(i), "type": kind})).collect()
}

fn check_refused(entries: Value, files: &[(&str, Value)], words: &[&str]) {
    let error = pooling(entries, files).expect_err("it was accepted");
    words.iter().for_each(|word| assert!(error.contains(word), "no {word:?} in {error:?}"));
}

#[test]
fn vectors_are_normalised_unless_the_modules_do_without() {
    let last = json!({"pooling_mode_lasttoken": true, "pooling_mode_mean_tokens": false, "include_prompt": true});
    let (plain, raw) = (Pooling::PLAIN, Pooling { normalizes: false, ..Pooling::PLAIN });
    assert_eq!(pooling(json!({}), &[]), Ok(plain.clone()));
    assert_eq!(pooling(json!({}), &[("1_Pooling/config.json", last.clone())]), Ok(plain.clone()));
    let all = modules(&[TRANSFORMER, POOLING, NORMALIZE]);
    let files =
        |modules: &Value, pooling: &Value| [("modules.json", modules.clone()), ("1_X/config.json", pooling.clone())];
    assert_eq!(pooling(json!({}), &files(&all, &last)), Ok(plain.clone()));
    // As newer versions write them.
    for pooling_mode in [json!("lasttoken"), json!(["lasttoken"])] {
        assert_eq!(pooling(json!({}), &files(&all, &json!({"pooling_mode": pooling_mode}))), Ok(plain.clone()));
    }
    assert_eq!(pooling(json!({}), &files(&modules(&[TRANSFORMER, POOLING]), &last)), Ok(raw));
}

#[test]
fn what_is_not_the_last_token_is_refused() {
    for (flags, word) in [
        (json!({"pooling_mode_mean_tokens": true}), "mean"),
        (json!({"pooling_mode_cls_token": true}), "cls"),
        (json!({"pooling_mode_lasttoken": true, "pooling_mode_max_tokens": true}), "max"),
        (json!({"pooling_mode": "mean"}), "mean"),
        (json!({"pooling_mode_lasttoken": false}), "none"),
        (json!([]), "expected an object"),
    ] {
        check_refused(json!({}), &[("1_Pooling/config.json", flags)], &["1_Pooling", word]);
    }
    let dense = modules(&[TRANSFORMER, POOLING, "sentence_transformers.models.Dense"]);
    let last = json!({"pooling_mode_lasttoken": true});
    check_refused(json!({}), &[("modules.json", dense), ("1_X/config.json", last)], &["modules.json", "Dense"]);
    for (list, word) in [
        (modules(&[TRANSFORMER]), "no module of type Pooling"),
        (modules(&[TRANSFORMER, POOLING]), "1_X"),
        (json!({}), "a list"),
        (json!([1, null]), "null"),
        (json!([{"type": POOLING, "path": "../1_X"}]), "../1_X"),
        (json!([{"type": POOLING, "path": "/etc"}]), "/etc"),
    ] {
        check_refused(json!({}), &[("modules.json", list)], &[word]);
    }
    check_refused(json!({"is_causal": false}), &[], &["config.json", "is_causal"]);
    check_refused(json!({"use_bidirectional_attention": true}), &[], &["use_bidirectional_attention"]);
}

#[test]
fn a_gguf_says_it_by_number() {
    let check = |pooling_type: Option<i64>| {
        let value = pooling_type.map(|number| ("qwen3.pooling_type".to_owned(), GgufValue::Int(number)));
        let metadata = GgufMetadata::new(Path::new("m.gguf"), value.into_iter().collect());
        check_gguf("qwen3", &metadata).map_err(|e| e.to_string())
    };
    assert!([None, Some(0), Some(3)].into_iter().all(|number| check(number) == Ok(())));
    for number in [1, 2, 4, -1] {
        let error = check(Some(number)).unwrap_err();
        assert!(error.contains("m.gguf") && error.contains("qwen3.pooling_type"), "{error}");
    }
}

#[test]
fn vectors_are_cut_where_the_config_says_so() {
    let check = |entries: Value, possible: &[usize], refused: &[usize]| {
        let pooling = pooling(entries.clone(), &[]).unwrap();
        assert_eq!(pooling.len(8, None).unwrap(), 8);
        possible.iter().for_each(|&len| assert_eq!(pooling.len(8, Some(len)).unwrap(), len, "{entries}"));
        for &len in refused {
            let error = pooling.len(8, Some(len)).unwrap_err();
            assert_eq!(error.param(), Some("dimensions"), "{entries}, {len}");
            assert!(error.to_string().starts_with("dimensions: "), "{error}");
        }
    };
    check(json!({}), &[8], &[0, 1, 7, 9]);
    check(json!({"is_matryoshka": false}), &[8], &[7]);
    check(json!({"is_matryoshka": true}), &[1, 7, 8], &[0, 9]);
    check(json!({"is_matryoshka": true, "matryoshka_dimensions": [2, 4, 16, 0]}), &[2, 4, 8], &[0, 3, 16]);
    check(json!({"matryoshka_dimensions": [4]}), &[4, 8], &[2]);
    check_refused(json!({"matryoshka_dimensions": [4.5]}), &[], &["matryoshka_dimensions"]);
    check_refused(json!({"matryoshka_dimensions": 4}), &[], &["matryoshka_dimensions"]);
}

#[test]
fn a_vector_is_what_is_kept_divided_by_its_norm() {
    let (plain, raw) = (Pooling::PLAIN, Pooling { normalizes: false, ..Pooling::PLAIN });
    assert_eq!(plain.vector(&[3.0, -4.0, 12.0], 2), Some(vec![0.6, -0.8]));
    assert_eq!(raw.vector(&[3.0, -4.0, 12.0], 2), Some(vec![3.0, -4.0]));
    assert_eq!(plain.vector(&[0.0, -0.0], 2), Some(vec![0.0, -0.0]));
    // Squares that no f32 holds.
    assert_eq!(plain.vector(&[3e38, 0.0], 2), Some(vec![1.0, 0.0]));
    assert_eq!((plain.vector(&[1.0, f32::NAN], 2), raw.vector(&[f32::INFINITY], 1)), (None, None));
}
