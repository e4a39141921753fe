//! Tests of [`Detokenizer`].

#![allow(clippy::unwrap_used)]

use serde_json::Value;

use super::Detokenizer;
use crate::text::Tokenizer;
use crate::text::testing::{TOKENIZERS, ids, legacy_mistral, shared_json, shared_tokenizer};

/// What each push gives, and what is left at the end.
fn stream(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32], skip: bool) -> (Vec<String>, String) {
    let mut detokenizer = Detokenizer::new(prompt, skip, true);
    let chunks = ids.iter().map(|&id| detokenizer.push(tokenizer, id)).collect();
    (chunks, detokenizer.finish(tokenizer))
}

fn check_golden(name: &str, tokenizer: &Tokenizer, ids: &[u32], golden: &Value) {
    let (chunks, rest) = stream(tokenizer, &[], ids, true);
    let expected: Vec<&str> = golden["chunks"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
    assert_eq!(chunks, expected, "{name}: {ids:?}");
    assert_eq!(rest, golden["flush"].as_str().unwrap(), "{name}: {ids:?}");
}

#[test]
fn fixtures_stream_as_golden() {
    for name in TOKENIZERS.iter().filter(|name| name.starts_with("fixtures/")) {
        let Some(tokenizer) = shared_tokenizer(name) else { return };
        let golden = shared_json(&format!("{name}/golden/tokenizer.json")).unwrap();
        for case in golden.as_array().unwrap().iter().filter(|case| !case["stream_skip_special"].is_null()) {
            check_golden(name, &tokenizer, &ids(&case["ids"]), &case["stream_skip_special"]);
        }
    }
}

#[test]
fn real_tokenizers_stream_as_golden() {
    let Some(golden) = shared_json("tokenizers/detok_goldens.json") else { return };
    for (name, cases) in golden.as_object().unwrap() {
        let tokenizer = match name.strip_suffix("/tokenizer.json") {
            Some(model) => shared_tokenizer(&format!("tokenizers/{model}")).unwrap(),
            None => legacy_mistral().unwrap(),
        };
        for case in cases.as_array().unwrap() {
            check_golden(name, &tokenizer, &ids(&case["ids"]), &case["stream"]);
        }
    }
}

/// Numbers that look random, the same every time.
fn numbers(mut state: u64) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Some(state >> 33)
    })
}

#[test]
fn random_tokens_stream_to_what_they_decode_to() {
    for name in TOKENIZERS {
        let Some(tokenizer) = shared_tokenizer(name) else { return };
        let byte_level = ["llama", "phi-2", "fixtures/phi"].iter().any(|n| name.contains(n) && !name.contains("phi3"));
        for seed in 0..200 {
            let size = tokenizer.vocab_size() as u64 + 3;
            let ids: Vec<u32> = numbers(seed).map(|n| (n % size) as u32).take(60).collect();
            for skip in [false, true] {
                let (chunks, rest) = stream(&tokenizer, &[], &ids, skip);
                let whole = tokenizer.decode(&ids, skip);
                // SentencePiece's decoder reads a whole run of bytes anew if one of them is wrong.
                if byte_level || !whole.contains('\u{fffd}') {
                    assert_eq!(chunks.concat() + &rest, whole, "{name}, seed {seed}");
                }
                let (prompt, tail) = ids.split_at(20);
                let (chunks, rest) = stream(&tokenizer, prompt, tail, skip);
                let head = tokenizer.decode(prompt, skip);
                if !whole.contains('\u{fffd}') {
                    assert_eq!(head + &chunks.concat() + &rest, whole, "{name}, seed {seed}, after a prompt");
                }
            }
        }
    }
}

/// A window that began within a character would spoil those after it.
#[test]
fn characters_of_bytes_go_on_after_a_prompt_of_them() {
    for name in TOKENIZERS {
        let Some(tokenizer) = shared_tokenizer(name) else { return };
        for text in ["so funny 😂😂😂 haha", "🦖🦖🦖🦖!", "x ๛๛๛๛๛๛ y"] {
            let ids = tokenizer.encode(text, false).unwrap();
            if tokenizer.decode(&ids, true) != text {
                continue; // a vocabulary without bytes
            }
            for at in 0..ids.len() {
                let (prompt, tail) = ids.split_at(at);
                let head = tokenizer.decode(prompt, true);
                if head.contains('\u{fffd}') {
                    continue;
                }
                let (chunks, rest) = stream(&tokenizer, prompt, tail, true);
                assert_eq!(head + &chunks.concat() + &rest, text, "{name}, {at} tokens of {ids:?}");
            }
        }
    }
}

#[test]
fn invalid_bytes_are_not_held_for_ever() {
    for name in ["tokenizers/llama-3.1-8b-instruct", "tokenizers/mistral-7b-instruct-v0.2"] {
        let Some(tokenizer) = shared_tokenizer(name) else { return };
        let byte = |byte: u8| {
            let id = (0..1000).find(|&id| tokenizer.token_bytes(id) == [byte] && !tokenizer.is_special(id));
            id.unwrap_or_else(|| panic!("{name}: {byte}"))
        };
        // A byte that is none of a character, and one that begins a character each time.
        for invalid in [0x80, 0xf0] {
            let mut detokenizer = Detokenizer::new(&[], true, true);
            let mut shown = 0;
            for pushed in 1..200 {
                shown += detokenizer.push(&tokenizer, byte(invalid)).chars().count();
                assert!(shown + super::MAX_HELD_TOKENS >= pushed, "{name}");
                assert!(detokenizer.window.len() <= 2 * super::MAX_HELD_TOKENS, "{name}");
            }
            // Characters after them are whole, once a letter has parted the runs of bytes.
            let letter = |letter| tokenizer.token_to_id(letter).unwrap();
            let mut ids = vec![letter("x")];
            ids.extend("🙂".bytes().map(byte));
            ids.push(letter("y"));
            let mut text: String = ids.into_iter().map(|id| detokenizer.push(&tokenizer, id)).collect();
            text += &detokenizer.finish(&tokenizer);
            assert!(text.ends_with("x🙂y"), "{name}: {text:?}");
        }
    }
}

#[test]
fn many_tokens_without_text_cost_nothing() {
    let Some(tokenizer) = shared_tokenizer("fixtures/mistral") else { return };
    let mut detokenizer = Detokenizer::new(&[], true, true);
    for id in (0..1000).map(|i| if i % 2 == 0 { 2 } else { 1 << 20 }) {
        assert_eq!(detokenizer.push(&tokenizer, id), "");
        assert!(detokenizer.window.is_empty());
    }
}

#[test]
fn without_spaces_each_stretch_is_decoded_for_itself() {
    let Some(tokenizer) = shared_tokenizer("tokenizers/mistral-7b-instruct-v0.2") else { return };
    // <s> ▁Hello ▁world </s> ▁Hello
    let ids = [1, 22557, 1526, 2, 22557];
    let text = |skip, spaces| {
        let mut detokenizer = Detokenizer::new(&[], skip, spaces);
        let pushed: String = ids.iter().map(|&id| detokenizer.push(&tokenizer, id)).collect();
        pushed + &detokenizer.finish(&tokenizer)
    };
    assert_eq!(text(false, true), tokenizer.decode(&ids, false));
    assert_eq!(text(false, true), "<s> Hello world</s> Hello");
    assert_eq!(text(false, false), "<s>Hello world</s>Hello");
    assert_eq!(text(true, true), text(true, false));
}
