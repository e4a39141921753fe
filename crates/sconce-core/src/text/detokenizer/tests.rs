//! Tests of [`Detokenizer`].

use serde_json::Value;

use super::Detokenizer;
use crate::text::Tokenizer;
use crate::text::test_data::{TOKENIZERS, ids, shared_json, shared_tokenizer};

/// What each push gives, and what is left at the end.
fn stream(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32], skip: bool) -> (Vec<String>, String) {
    let mut detokenizer = Detokenizer::new(prompt, skip, true);
    let chunks = ids.iter().map(|&id| detokenizer.push(tokenizer, id)).collect();
    (chunks, detokenizer.finish(tokenizer))
}

fn check_golden(tokenizer: &Tokenizer, ids: &[u32], golden: &Value) {
    let (chunks, rest) = stream(tokenizer, &[], ids, true);
    let expected: Vec<&str> = golden["chunks"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
    assert_eq!(chunks, expected, "{ids:?}");
    assert_eq!(rest, golden["flush"].as_str().unwrap(), "{ids:?}");
}

#[test]
fn fixtures_stream_as_golden() {
    for name in TOKENIZERS.iter().filter(|name| name.starts_with("fixtures/")) {
        let Some(tokenizer) = shared_tokenizer(name) else { return };
        let golden = shared_json(&format!("{name}/golden/tokenizer.json")).unwrap();
        for case in golden.as_array().unwrap().iter().filter(|case| !case["stream_skip_special"].is_null()) {
            println!("{name}");
            check_golden(&tokenizer, &ids(&case["ids"]), &case["stream_skip_special"]);
        }
    }
}

#[test]
fn real_tokenizers_stream_as_golden() {
    let Some(golden) = shared_json("tokenizers/detok_goldens.json") else { return };
    for name in TOKENIZERS.iter().filter(|name| name.starts_with("tokenizers/")) {
        let tokenizer = shared_tokenizer(name).unwrap();
        let model = name.strip_prefix("tokenizers/").unwrap();
        for case in golden[format!("{model}/tokenizer.json")].as_array().unwrap() {
            println!("{name}");
            check_golden(&tokenizer, &ids(&case["ids"]), &case["stream"]);
        }
    }
}
