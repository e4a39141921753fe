//! Tests of [`ChatTemplate`] and of what users' text becomes.

use std::path::Path;

use serde_json::{Value, json};

use super::{ChatInput, ChatTemplate};
use crate::text::Tokenizer;
use crate::text::test_data::{TOKENIZERS, ids, shared, shared_json, shared_tokenizer};

fn input(messages: &Value) -> ChatInput {
    ChatInput { messages: messages.as_array().unwrap().clone(), ..ChatInput::default() }
}

fn check_golden(name: &str, template: &ChatTemplate, tokenizer: &Tokenizer, case: &Value) {
    let mut input = input(&case["messages"]);
    input.template_kwargs.insert("add_generation_prompt".into(), case["add_generation_prompt"].clone());
    match template.render(&input, tokenizer) {
        Ok(chat) => {
            assert_eq!(Some(chat.text()), case["text"].as_str(), "{name}");
            assert_eq!(tokenizer.encode_chat(&chat).unwrap(), ids(&case["ids"]), "{name}");
        }
        Err(error) => {
            let words = case["error"].as_str().unwrap_or_else(|| panic!("{name}: {error}"));
            let words = words.strip_prefix("TemplateError: ").unwrap_or(words);
            assert!(error.to_string().contains(words), "{name}: {error}");
            assert_eq!(error.param(), Some("messages"), "{name}");
        }
    }
}

#[test]
fn fixtures_render_as_golden() {
    for name in TOKENIZERS.iter().filter(|name| name.starts_with("fixtures/")) {
        let Some(dir) = shared(name) else { return };
        let tokenizer = Tokenizer::from_dir(&dir).unwrap();
        let template = ChatTemplate::from_dir(&dir, &tokenizer).unwrap();
        if *name == "fixtures/phi" {
            assert!(template.is_none(), "phi has no template");
            continue;
        }
        let golden = shared_json(&format!("{name}/golden/chat.json")).unwrap();
        for case in golden.as_array().unwrap() {
            check_golden(name, template.as_ref().unwrap(), &tokenizer, case);
        }
    }
}

#[test]
fn real_templates_render_as_golden() {
    let Some(golden) = shared_json("tokenizers/chat_template_goldens.json") else { return };
    let mut num_cases = 0;
    for (name, cases) in golden.as_object().unwrap() {
        let path = shared("tokenizers").unwrap().join(name);
        let tokenizer = Tokenizer::from_dir(path.parent().unwrap()).unwrap();
        let source = std::fs::read_to_string(&path).unwrap();
        let template = ChatTemplate::compile(&path, source, &tokenizer).unwrap();
        for (case, golden) in cases.as_object().unwrap() {
            check_golden(&format!("{name}, {case}"), &template, &tokenizer, golden);
            num_cases += 1;
        }
    }
    assert_eq!(num_cases, 54);
}
