//! Golden data for tests: `shared/` beside the repository, which not every checkout has.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::config::Grammar;
use crate::sample::uniform;
use crate::text::{GrammarCompiler, Tokenizer};

/// The five real tokenizers, then the six fixtures: folders with a tokenizer.json, under `shared/`.
pub(super) const TOKENIZERS: [&str; 11] = [
    "tokenizers/gemma-2-9b-it",
    "tokenizers/llama-3.1-8b-instruct",
    "tokenizers/mistral-7b-instruct-v0.2",
    "tokenizers/phi-2",
    "tokenizers/phi-3-mini-4k-instruct",
    "fixtures/gemma2",
    "fixtures/llama",
    "fixtures/mistral",
    "fixtures/mistral-swa",
    "fixtures/phi",
    "fixtures/phi3",
];

/// `name` under `shared/`; None, and a line that says so, if it is not there.
pub(super) fn shared(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared")).join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: there is no {}", path.display());
    None
}

/// A JSON file under `shared/`.
pub(super) fn shared_json(name: &str) -> Option<Value> {
    let path = shared(name)?;
    let text = std::fs::read_to_string(&path).unwrap();
    Some(serde_json::from_str(&text).unwrap())
}

/// The tokenizer in a folder under `shared/`.
pub(super) fn shared_tokenizer(name: &str) -> Option<Tokenizer> {
    Some(Tokenizer::from_dir(&shared(name)?).unwrap())
}

/// A list of ids in golden data.
pub(super) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Mistral's tokenizer as it was before its space prefix became one at the beginning only.
pub(super) fn legacy_mistral() -> Option<Tokenizer> {
    let from = shared("tokenizers/mistral-7b-instruct-v0.2")?;
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("tokenizer.legacy-prepend.json"), dir.path().join("tokenizer.json")).unwrap();
    std::fs::copy(from.join("tokenizer_config.json"), dir.path().join("tokenizer_config.json")).unwrap();
    Some(Tokenizer::from_dir(dir.path()).unwrap())
}

/// A vocabulary of single bytes, of some words, and of two tokens that steer.
pub(super) fn small_tokenizer() -> Tokenizer {
    small_tokenizer_with(&[])
}

/// The same with `further` tokens that steer.
pub(super) fn small_tokenizer_with(further: &[&str]) -> Tokenizer {
    small_tokenizer_of(&[], further)
}

/// The same with further words, as the vocabulary spells them, too.
pub(super) fn small_tokenizer_of(further_words: &[&str], further: &[&str]) -> Tokenizer {
    let words = ["{\"", "\":", "name", "true", "false", " the", "12", "<s>", "</s>"];
    let words = words.iter().chain(further).chain(further_words).map(|word| (*word).to_owned());
    let bytes = ('!'..='~').chain(['Ġ', 'Ċ', 'Ã', '¶']).map(String::from);
    let vocab: serde_json::Map<_, _> = bytes.chain(words).enumerate().map(|(id, word)| (word, id.into())).collect();
    let special = |content: &str| {
        json!({"id": vocab[content], "content": content, "special": true, "single_word": false,
               "lstrip": false, "rstrip": false, "normalized": false})
    };
    let added: Vec<Value> = ["<s>", "</s>"].iter().chain(further).map(|content| special(content)).collect();
    let file = json!({
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    Tokenizer::from_dir(dir.path()).unwrap()
}

/// A vocabulary and its grammars.
pub(super) struct Subject {
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) end_id: u32,
    pub(super) compiler: GrammarCompiler,
}

impl Subject {
    pub(super) fn new(tokenizer: Tokenizer, end_id: u32) -> Self {
        let tokenizer = Arc::new(tokenizer);
        let compiler = GrammarCompiler::new(Arc::clone(&tokenizer), vec![end_id]);
        Self { tokenizer, end_id, compiler }
    }

    pub(super) fn small() -> Self {
        Self::small_with(&[])
    }

    /// The small vocabulary with `further` tokens that steer.
    pub(super) fn small_with(further: &[&str]) -> Self {
        Self::of(small_tokenizer_with(further))
    }

    /// A small vocabulary.
    pub(super) fn of(tokenizer: Tokenizer) -> Self {
        let end_id = tokenizer.token_to_id("</s>").unwrap();
        Self::new(tokenizer, end_id)
    }

    /// An answer, drawn token by token of what is allowed, the same probability each.
    pub(super) fn draw(&self, grammar: &Grammar, seed: u64) -> String {
        self.tokenizer.decode(&self.draw_ids(grammar, seed), false)
    }

    /// Its tokens, without the last.
    pub(super) fn draw_ids(&self, grammar: &Grammar, seed: u64) -> Vec<u32> {
        let mut matcher = self.compiler.compile(grammar).unwrap();
        let mut ids = Vec::new();
        for position in 0..2000 {
            let allowed = matcher.allowed().unwrap();
            let num_forced = matcher.forced().len();
            let all: Vec<u32> = allowed.ids().collect();
            assert!(!all.is_empty() && (num_forced == 0 || all.len() == 1), "{grammar:?}: {num_forced} of {all:?}");
            let id = all[(uniform(seed, 0, position, 0) * all.len() as f64) as usize];
            matcher.push(id).unwrap();
            if id == self.end_id {
                assert_eq!(matcher.allowed().unwrap().ids().collect::<Vec<_>>(), [id]);
                matcher.push(id).unwrap();
                return ids;
            }
            ids.push(id);
        }
        panic!("{grammar:?}, seed {seed}: no end after {:?}", self.tokenizer.decode(&ids, false));
    }
}
