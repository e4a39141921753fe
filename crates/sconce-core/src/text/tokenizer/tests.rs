//! Tests of [`Tokenizer`].

use serde_json::Value;

use crate::text::test_data::{TOKENIZERS, ids, shared_json, shared_tokenizer};

#[test]
fn fixtures_encode_and_decode_as_golden() {
    for name in TOKENIZERS.iter().filter(|name| name.starts_with("fixtures/")) {
        let Some(tokenizer) = shared_tokenizer(name) else { return };
        let golden = shared_json(&format!("{name}/golden/tokenizer.json")).unwrap();
        for case in golden.as_array().unwrap() {
            if let Some(text) = case["text"].as_str() {
                assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&case["ids"]), "{name}: {text:?}");
                let with_special = ids(&case["ids_with_special"]);
                assert_eq!(tokenizer.encode(text, true).unwrap(), with_special, "{name}: {text:?}");
            }
            let ids = ids(&case["ids"]);
            for (key, skip) in [("decoded", false), ("decoded_skip_special", true)] {
                if let Some(text) = case[key].as_str() {
                    assert_eq!(tokenizer.decode(&ids, skip), text, "{name}: {ids:?}");
                }
            }
        }
    }
}

#[test]
fn real_tokenizers_encode_and_decode_as_golden() {
    let Some(golden) = shared_json("tokenizers/detok_goldens.json") else { return };
    for name in TOKENIZERS.iter().filter(|name| name.starts_with("tokenizers/")) {
        let tokenizer = shared_tokenizer(name).unwrap();
        let model = name.strip_prefix("tokenizers/").unwrap();
        for case in golden[format!("{model}/tokenizer.json")].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let plain = ids(&case["ids"]);
            assert_eq!(tokenizer.encode(text, false).unwrap(), plain, "{name}: {text:?}");
            let whole = [ids(&case["added_by_special"]), plain.clone()].concat();
            assert_eq!(tokenizer.encode(text, true).unwrap(), whole, "{name}: {text:?}");
            assert_eq!(
                tokenizer.decode(&plain, true),
                case["decoded_skip_special"].as_str().unwrap(),
                "{name}: {text:?}"
            );
        }
    }
}

#[test]
fn greedy_texts_decode_as_golden() {
    for name in TOKENIZERS.iter().filter(|name| name.starts_with("fixtures/")) {
        let Some(tokenizer) = shared_tokenizer(name) else { return };
        let golden = shared_json(&format!("{name}/golden/greedy.json")).unwrap();
        for case in golden.as_array().unwrap() {
            let ids = ids(&case["output_ids"]);
            for (key, skip) in [("text_with_special", false), ("text_skip_special", true)] {
                if let Value::String(text) = &case[key] {
                    assert_eq!(tokenizer.decode(&ids, skip), *text, "{name}: {ids:?}");
                }
            }
        }
    }
}
