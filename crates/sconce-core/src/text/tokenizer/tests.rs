//! Tests of [`Tokenizer`](super::Tokenizer).

#![allow(clippy::unwrap_used)]

mod gguf;

use std::path::Path;

use serde_json::{Value, json};

use super::Tokenizer;
use crate::text::testing::{TOKENIZERS, ids, legacy_mistral, shared_json, shared_tokenizer, small_tokenizer_with};

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
    for (name, cases) in golden.as_object().unwrap() {
        let tokenizer = match name.strip_suffix("/tokenizer.json") {
            Some(model) => shared_tokenizer(&format!("tokenizers/{model}")).unwrap(),
            None => legacy_mistral().unwrap(),
        };
        for case in cases.as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let plain = ids(&case["ids"]);
            assert_eq!(tokenizer.encode(text, false).unwrap(), plain, "{name}: {text:?}");
            assert_eq!(
                tokenizer.decode(&plain, true),
                case["decoded_skip_special"].as_str().unwrap(),
                "{name}: {text:?}"
            );
            // The golden data has what is added as a difference of sets, so nothing where the text has a BOS.
            if tokenizer.bos_token().is_none_or(|bos| !text.contains(bos)) {
                let whole = [ids(&case["added_by_special"]), plain].concat();
                assert_eq!(tokenizer.encode(text, true).unwrap(), whole, "{name}: {text:?}");
            }
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

#[test]
fn a_bos_is_not_doubled() {
    let Some(tokenizer) = shared_tokenizer("fixtures/llama") else { return };
    let bare = tokenizer.encode("Hello", false).unwrap();
    let whole = tokenizer.encode("Hello", true).unwrap();
    assert_eq!(whole, [&[494][..], &bare].concat());
    assert_eq!(tokenizer.encode("<|begin_of_text|>Hello", true).unwrap(), whole);
    assert_eq!(tokenizer.encode("<|begin_of_text|>Hello", false).unwrap(), whole);
    assert_eq!(tokenizer.encode("", true).unwrap(), [494]);
}

#[test]
fn tokens_are_known_by_name_id_and_bytes() {
    let Some(tokenizer) = shared_tokenizer("tokenizers/llama-3.1-8b-instruct") else { return };
    assert_eq!(tokenizer.vocab_size(), 128_256);
    assert_eq!(tokenizer.token_to_id("<|eot_id|>"), Some(128_009));
    assert_eq!(tokenizer.id_to_token(128_009).as_deref(), Some("<|eot_id|>"));
    assert_eq!(tokenizer.token_bytes(128_009), b"<|eot_id|>");
    assert!(tokenizer.is_special(128_009) && !tokenizer.is_special(279) && !tokenizer.is_special(1 << 30));
    assert_eq!(tokenizer.id_to_token(279).as_deref(), Some("Ġthe"));
    assert_eq!(tokenizer.token_bytes(279), b" the");
    assert_eq!(tokenizer.id_to_token(1 << 30), None);
    assert_eq!(tokenizer.decode(&[279, 1 << 30, 279], false), " the the");
    assert_eq!((tokenizer.bos_token(), tokenizer.eos_token()), (Some("<|begin_of_text|>"), Some("<|eot_id|>")));
    let mut end_ids = tokenizer.end_token_ids();
    end_ids.sort_unstable();
    assert_eq!(end_ids, [128_001, 128_008, 128_009]);
}

#[test]
fn the_bytes_of_tokens_make_up_the_text() {
    let text = "naïve 🙂 日本 \t\n\u{ad}\u{0} \u{7f}\u{a0}x";
    for name in TOKENIZERS {
        let Some(tokenizer) = shared_tokenizer(name) else { return };
        let ids = tokenizer.encode(text, false).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).collect();
        let spelled = String::from_utf8(bytes).unwrap();
        assert_eq!(spelled.strip_prefix(' ').unwrap_or(&spelled), text, "{name}");
    }
}

#[test]
fn sealed_names_are_the_tokens_they_name() {
    // With every control token sealed, a text has the ids that it has without, whatever stands beside them.
    let golden = ["Hello", "  a\n", " ", "", "\n\nx  y"];
    for name in TOKENIZERS {
        let Some(tokenizer) = shared_tokenizer(name) else { return };
        for token in tokenizer.added.iter() {
            for (before, after) in golden.iter().flat_map(|a| golden.iter().map(move |b| (a, b))) {
                let text = format!("{before}{0}{after}{0}{0} {before}", token.content);
                let sealed = tokenizer.added.control().seal(&text, |c| c);
                assert_eq!(
                    tokenizer.encode_sealed(&sealed).unwrap(),
                    tokenizer.encode(&text, false).unwrap(),
                    "{name}: {text:?}"
                );
            }
        }
    }
}

/// A folder with a small byte-level tokenizer, changed by `edit`, and `config` as its tokenizer_config.json.
fn small(edit: impl Fn(&mut Value), config: Option<&str>) -> tempfile::TempDir {
    let mut file = json!({
        "version": "1.0",
        "added_tokens": [{"id": 7, "content": "<eos>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
    });
    edit(&mut file);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    if let Some(config) = config {
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    }
    dir
}

fn check_error(dir: &Path, expected: &[&str]) {
    let error = Tokenizer::from_dir(dir).unwrap_err().to_string();
    for words in expected {
        assert!(error.contains(words), "{words:?} is not in {error:?}");
    }
}

#[test]
fn ids_of_added_tokens_are_those_of_the_files() {
    let config = r#"{"eos_token": {"content": "<eos>"}, "bos_token": null, "add_bos_token": false,
        "added_tokens_decoder": {"9": {"content": "<x>", "special": true}}}"#;
    let tokenizer = Tokenizer::from_dir(small(|_| (), Some(config)).path()).unwrap();
    assert_eq!(tokenizer.encode("ab<eos><x>b", true).unwrap(), [2, 7, 9, 1]);
    assert_eq!(tokenizer.decode(&[2, 7, 9, 1], false), "ab<eos><x>b");
    assert_eq!(tokenizer.decode(&[2, 7, 9, 1], true), "abb");
    assert_eq!((tokenizer.bos_token(), tokenizer.eos_token()), (None, Some("<eos>")));
    assert_eq!((tokenizer.end_token_ids(), tokenizer.vocab_size()), (vec![7], 10));
}

/// Whose classes go by them.
#[test]
fn switches_say_what_is_put_around_a_text() {
    let ids = |class: &str, switches: &str, post_processor: Value| {
        let config = format!(
            r#"{{"tokenizer_class": "{class}", "bos_token": "<bos>", "eos_token": "<eos>" {switches},
                "added_tokens_decoder": {{"9": {{"content": "<bos>", "special": true}}}}}}"#
        );
        let edit = |file: &mut Value| file["post_processor"] = post_processor.clone();
        Tokenizer::from_dir(small(edit, Some(&config)).path()).unwrap().encode("ab", true).unwrap()
    };
    let none = || json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let ends = || {
        json!({"type": "TemplateProcessing", "pair": [],
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<eos>", "type_id": 0}}],
            "special_tokens": {"<eos>": {"id": "<eos>", "ids": [7], "tokens": ["<eos>"]}}})
    };
    for (switches, of_none, of_ends) in [
        ("", vec![2], vec![2, 7]),
        (r#", "add_bos_token": true"#, vec![9, 2], vec![9, 2, 7]),
        (r#", "add_bos_token": true, "add_eos_token": false"#, vec![9, 2], vec![9, 2]),
        (r#", "add_bos_token": false, "add_eos_token": true"#, vec![2, 7], vec![2, 7]),
    ] {
        for class in ["LlamaTokenizerFast", "GemmaTokenizer"] {
            assert_eq!(ids(class, switches, none()), of_none, "{class} {switches}");
            assert_eq!(ids(class, switches, ends()), of_ends, "{class} {switches}");
        }
        // Others take what tokenizer.json has.
        assert_eq!(ids("PreTrainedTokenizerFast", switches, none()), [2], "{switches}");
        assert_eq!(ids("PreTrainedTokenizerFast", switches, ends()), [2, 7], "{switches}");
    }
}

#[test]
fn truncation_and_padding_of_the_file_do_not_count() {
    let edit = |file: &mut Value| {
        file["truncation"] = json!({"max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"});
        file["padding"] = json!({"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "a"});
    };
    let tokenizer = Tokenizer::from_dir(small(edit, None).path()).unwrap();
    assert_eq!(tokenizer.encode("abba", true).unwrap(), [2, 1, 0]);
}

#[test]
fn errors_name_the_file() {
    check_error(tempfile::tempdir().unwrap().path(), &["tokenizer.json"]);
    check_error(small(|file| *file = json!({}), None).path(), &["tokenizer.json", "not a tokenizer"]);
    check_error(small(|file| file["model"]["merges"] = json!([["a", "z"]]), None).path(), &["tokenizer.json", "z"]);
    check_error(
        small(|file| file["model"]["merges"] = json!([["ab", "ab"]]), None).path(),
        &["tokenizer.json", "merges"],
    );
    check_error(small(|_| (), Some("[]")).path(), &["tokenizer_config.json", "object"]);
    check_error(small(|_| (), Some(r#"{"eos_token": 3}"#)).path(), &["tokenizer_config.json", "eos_token"]);
    let other_id = r#"{"added_tokens_decoder": {"8": {"content": "<eos>"}}}"#;
    check_error(small(|_| (), Some(other_id)).path(), &["tokenizer_config.json", "\"8\"", "<eos>", "7"]);
    let same_id = r#"{"added_tokens_decoder": {"7": {"content": "<x>"}}}"#;
    check_error(small(|_| (), Some(same_id)).path(), &["tokenizer.json", "<x>", "<eos>", "7"]);
}

/// The end of a message is that of a turn, but where turns have several messages.
#[test]
fn turns_with_channels_go_on_behind_a_message() {
    let ends = |further: &[&str]| {
        let tokenizer = small_tokenizer_with(further);
        let ids = tokenizer.end_token_ids();
        ids.iter().map(|&id| tokenizer.id_to_token(id).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(ends(&["<|end|>", "<|message|>"]), ["<|end|>"]);
    assert_eq!(ends(&["<|end|>", "<|channel|>", "<|return|>", "<|call|>"]), ["<|call|>", "<|return|>"]);
}
