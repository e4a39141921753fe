//! Tokenizers and chat templates of the fixtures.

use sconce_core::text::{ChatInput, ChatTemplate, Detokenizer, Tokenizer};
use serde_json::Value;

use crate::fixture::numbers;
use crate::report::check_all;

/// The text of `ids` as it is streamed: what each adds, then the rest.
fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let mut detokenizer = Detokenizer::new(&[], true, true);
    let mut chunks: Vec<_> = ids.iter().map(|&id| detokenizer.push(tokenizer, id)).collect();
    chunks.push(detokenizer.finish(tokenizer));
    chunks
}

#[test]
fn tokenizers_equal_the_golden_ones() {
    check_all("tokenizer", |fixture| {
        let tokenizer = Tokenizer::from_dir(&fixture.dir).unwrap();
        let cases = fixture.json("tokenizer.json");
        let cases = cases.as_array().unwrap();
        for case in cases {
            let ids = numbers(&case["ids"]);
            if let Some(text) = case["text"].as_str() {
                assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{text:?}");
                assert_eq!(tokenizer.encode(text, true).unwrap(), numbers(&case["ids_with_special"]), "{text:?}");
            }
            for (key, skip) in [("decoded", false), ("decoded_skip_special", true)] {
                if let Some(text) = case[key].as_str() {
                    assert_eq!(tokenizer.decode(&ids, skip), text, "{ids:?}");
                }
            }
            if let Some(chunks) = case["stream_skip_special"]["chunks"].as_array() {
                let expected = chunks.iter().chain([&case["stream_skip_special"]["flush"]]);
                let expected: Vec<_> = expected.map(|c| c.as_str().unwrap()).collect();
                assert_eq!(stream(&tokenizer, &ids), expected, "{ids:?}");
            }
        }
        Ok(format!("{n}/{n}", n = cases.len()))
    });
}

#[test]
fn chat_templates_equal_the_golden_ones() {
    check_all("template", |fixture| {
        let tokenizer = Tokenizer::from_dir(&fixture.dir).unwrap();
        let Some(template) = ChatTemplate::from_dir(&fixture.dir, &tokenizer).unwrap() else {
            assert!(!fixture.dir.join("golden/chat.json").exists());
            return Err("the model has no chat template");
        };
        let cases = fixture.json("chat.json");
        let cases = cases.as_array().unwrap();
        cases.iter().for_each(|case| check_chat(&template, &tokenizer, case));
        Ok(format!("{n}/{n}", n = cases.len()))
    });
}

fn check_chat(template: &ChatTemplate, tokenizer: &Tokenizer, case: &Value) {
    let mut input = ChatInput { messages: case["messages"].as_array().unwrap().clone(), ..ChatInput::default() };
    input.template_kwargs.insert("add_generation_prompt".into(), case["add_generation_prompt"].clone());
    match template.render(&input, tokenizer) {
        Ok(chat) => {
            assert_eq!(Some(chat.text()), case["text"].as_str(), "{case}");
            assert_eq!(tokenizer.encode_chat(&chat).unwrap(), numbers(&case["ids"]), "{case}");
        }
        Err(error) => {
            let words = case["error"].as_str().unwrap_or_else(|| panic!("{error}: {case}"));
            assert!(error.to_string().contains(words.trim_start_matches("TemplateError: ")), "{error}: {case}");
        }
    }
}
