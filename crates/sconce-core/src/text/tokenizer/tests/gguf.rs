//! Tests of tokenizers from GGUF metadata: a tokenizer.json turned into metadata gives the same ids.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use crate::text::Tokenizer;
use crate::text::testing::{legacy_mistral, shared_json, shared_tokenizer};
use crate::text::tokenizer::pre_tokenizers;
use crate::weights::{GgufMetadata, GgufValue};

const TEXTS: [&str; 12] = [
    "Hello world",
    "  two  leading spaces, and   more",
    "I'm sure it's 1234567 or 12.5% (they'll've)!",
    "naïve café — «日本語» 🙂👩‍👩‍👧 Привет",
    "fn main() {\n    println!(\"{}\", 1);\n\n\n\t\tx\r\n}",
    "x<|eot_id|>y <|end|>  z</s> w <s><unk> v",
    "<|endoftext|>",
    "a\u{a0}b\u{200b}c\u{0}d\u{7f}",
    "1 22 333 4444 ٣٤٥",
    " ",
    "\n",
    "",
];

/// The metadata that llama.cpp's converter would write for a tokenizer.json.
fn metadata(file: &Value, model: &str) -> HashMap<String, GgufValue> {
    let vocab = file["model"]["vocab"].as_object().unwrap();
    let added = file["added_tokens"].as_array().unwrap();
    let id_of = |token: &Value| token["id"].as_u64().unwrap() as usize;
    let size = vocab.values().map(|id| id.as_u64().unwrap() as usize).chain(added.iter().map(id_of)).max().unwrap() + 1;
    let mut tokens: Vec<String> = (0..size).map(|id| format!("[unused {id}]")).collect();
    let mut types = vec![5; size];
    for (token, id) in vocab {
        let id = id.as_u64().unwrap() as usize;
        tokens[id] = token.clone();
        types[id] = if token.len() == 6 && token.starts_with("<0x") { 6 } else { 1 };
    }
    for token in added {
        tokens[id_of(token)] = token["content"].as_str().unwrap().into();
        let control = token["special"] == true || token["content"] == "</s>";
        types[id_of(token)] = if control { 3 } else { 4 };
    }
    let merges: Vec<(String, String)> = file["model"]["merges"].as_array().unwrap().iter().map(pair).collect();
    let mut values = HashMap::new();
    if model == "llama" {
        let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
        let mut scores = vec![-1e9; size];
        for (rank, (left, right)) in merges.iter().enumerate().rev() {
            scores[ids[format!("{left}{right}").as_str()]] = -(rank as f32);
        }
        values.insert("tokenizer.ggml.scores".into(), GgufValue::Floats(scores));
        types[ids["<unk>"]] = 2;
    } else {
        let merges = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        values.insert("tokenizer.ggml.merges".into(), GgufValue::Strings(merges));
    }
    values.insert("tokenizer.ggml.model".into(), GgufValue::String(model.into()));
    values.insert("tokenizer.ggml.tokens".into(), GgufValue::Strings(tokens));
    values.insert("tokenizer.ggml.token_type".into(), GgufValue::Ints(types));
    values
}

/// Both ways to write a merge: a pair, or one string with a space.
fn pair(merge: &Value) -> (String, String) {
    let (left, right) = match merge {
        Value::String(merge) => merge.split_once(' ').unwrap(),
        merge => (merge[0].as_str().unwrap(), merge[1].as_str().unwrap()),
    };
    (left.into(), right.into())
}

fn from_gguf(values: HashMap<String, GgufValue>) -> crate::Result<Tokenizer> {
    let path = Path::new("model.gguf");
    Tokenizer::from_gguf(path, &GgufMetadata::new(path, values))
}

fn check_same(name: &str, expected: &Tokenizer, values: HashMap<String, GgufValue>) {
    let tokenizer = from_gguf(values).unwrap();
    for text in TEXTS {
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(ids, expected.encode(text, false).unwrap(), "{name}: {text:?}");
        assert_eq!(tokenizer.decode(&ids, false), expected.decode(&ids, false), "{name}: {text:?}");
        for id in ids {
            assert_eq!(tokenizer.token_bytes(id), expected.token_bytes(id), "{name}: {id}");
        }
    }
    assert_eq!(tokenizer.vocab_size(), expected.vocab_size(), "{name}");
}

#[test]
fn byte_level_metadata_gives_the_same_ids() {
    for (name, pre) in [
        ("tokenizers/llama-3.1-8b-instruct", "llama-bpe"),
        ("tokenizers/phi-2", "phi-2"),
        ("fixtures/llama", "llama-bpe"),
        ("fixtures/phi", "gpt-2"),
    ] {
        let Some(file) = shared_json(&format!("{name}/tokenizer.json")) else { return };
        let mut values = metadata(&file, "gpt2");
        values.insert("tokenizer.ggml.pre".into(), GgufValue::String(pre.into()));
        values.insert("tokenizer.ggml.bos_token_id".into(), GgufValue::Int(0));
        check_same(name, &shared_tokenizer(name).unwrap(), values);
    }
}

#[test]
fn sentence_piece_metadata_gives_the_same_ids() {
    for (name, add_space_prefix) in [
        ("tokenizers/phi-3-mini-4k-instruct", true),
        ("tokenizers/gemma-2-9b-it", false),
        ("tokenizers/mistral-7b-instruct-v0.2", true),
    ] {
        let Some(file) = shared_json(&format!("{name}/tokenizer.json")) else { return };
        let mut values = metadata(&file, "llama");
        values.insert("tokenizer.ggml.add_space_prefix".into(), GgufValue::Bool(add_space_prefix));
        if name.contains("phi-3") {
            values.insert("general.architecture".into(), GgufValue::String("phi3".into()));
        }
        let expected = if name.contains("mistral") { legacy_mistral() } else { shared_tokenizer(name) };
        check_same(name, &expected.unwrap(), values);
    }
}

/// A byte-level vocabulary of every byte, `ab`, and two control tokens.
fn small(pre: &str) -> HashMap<String, GgufValue> {
    let byte = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        0..=b' ' => char::from_u32(0x100 + u32::from(byte)).unwrap(),
        0x7f..=0xa0 => char::from_u32(0x121 + u32::from(byte) - 0x7f).unwrap(),
        0xad => '\u{143}',
    };
    let mut tokens: Vec<String> = (0..=255).map(|b| byte(b).to_string()).collect();
    tokens.extend(["ab", "12", "<bos>", "<eos>"].map(String::from));
    let mut types = vec![1; 258];
    types.extend([3, 3]);
    let merges = ["a b", "1 2"].map(String::from).to_vec();
    HashMap::from([
        ("tokenizer.ggml.model".into(), GgufValue::String("gpt2".into())),
        ("tokenizer.ggml.pre".into(), GgufValue::String(pre.into())),
        ("tokenizer.ggml.tokens".into(), GgufValue::Strings(tokens)),
        ("tokenizer.ggml.token_type".into(), GgufValue::Ints(types)),
        ("tokenizer.ggml.merges".into(), GgufValue::Strings(merges)),
        ("tokenizer.ggml.bos_token_id".into(), GgufValue::Int(258)),
        ("tokenizer.ggml.eos_token_id".into(), GgufValue::Int(259)),
    ])
}

#[test]
fn every_byte_has_its_own_spelling() {
    let tokenizer = from_gguf(small("gpt-2")).unwrap();
    for byte in 0..=255 {
        assert_eq!(tokenizer.token_bytes(byte), [byte as u8]);
    }
}

#[test]
fn words_are_split_as_the_pre_tokenizer_says() {
    let ids = |pre: &str, text: &str| from_gguf(small(pre)).unwrap().encode(text, false).unwrap();
    let digits = ["1", "2"].map(|c| u32::from(c.as_bytes()[0]));
    let whole =
        ["gpt-2", "phi-2", "olmo", "llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe", "glm4", "chatglm-bpe"];
    for pre in whole.into_iter().chain(["gpt-4o", "default"]) {
        assert_eq!(ids(pre, "12"), [257], "{pre}");
    }
    for pre in ["smollm", "starcoder", "refact", "command-r", "qwen2", "deepseek-r1-qwen"] {
        assert_eq!(ids(pre, "12"), digits, "{pre}");
    }
    assert_eq!(ids("smollm", "ab<eos>"), [256, 259]);
}

#[test]
fn words_of_gpt_4o_begin_with_capitals() {
    let mut text = PreTokenizedString::from("HelloWorld I'LL 12345 a/\nB");
    let rules = pre_tokenizers::rules("gpt-4o").unwrap().unwrap();
    rules.pre_tokenizer.pre_tokenize(&mut text).unwrap();
    let words = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
    let words: Vec<&str> = words.iter().map(|(word, ..)| *word).collect();
    assert_eq!(words, ["Hello", "World", "ĠI'LL", "Ġ", "123", "45", "Ġa", "/Ċ", "B"]);
}

#[test]
fn bos_and_eos_are_added_as_the_file_says() {
    let with = |key: &str| {
        let mut values = small("gpt-2");
        values.insert(key.into(), GgufValue::Bool(true));
        from_gguf(values).unwrap().encode("ab", true).unwrap()
    };
    assert_eq!(from_gguf(small("gpt-2")).unwrap().encode("ab", true).unwrap(), [256]);
    assert_eq!(from_gguf(small("dbrx")).unwrap().encode("ab", true).unwrap(), [256]);
    assert_eq!(from_gguf(small("llama-bpe")).unwrap().encode("ab", true).unwrap(), [258, 256]);
    assert_eq!(with("tokenizer.ggml.add_bos_token"), [258, 256]);
    assert_eq!(with("tokenizer.ggml.add_eos_token"), [256, 259]);
    let mut values = small("gpt-2");
    values.insert("tokenizer.ggml.eot_token_id".into(), GgufValue::Int(3));
    let tokenizer = from_gguf(values).unwrap();
    assert_eq!((tokenizer.bos_token(), tokenizer.eos_token()), (Some("<bos>"), Some("<eos>")));
    assert_eq!(tokenizer.end_token_ids(), [259, 3]);
}

#[test]
fn errors_name_the_key() {
    let strings = |list: &[&str]| Some(GgufValue::Strings(list.iter().map(|s| (*s).to_owned()).collect()));
    let string = |text: &str| Some(GgufValue::String(text.into()));
    let mut cases = vec![
        ("tokenizer.ggml.model", None, "missing"),
        ("tokenizer.ggml.model", string("rwkv"), "rwkv"),
        ("tokenizer.ggml.model", string("llama"), "tokenizer.ggml.scores"),
        ("tokenizer.ggml.pre", string("chameleon"), "chameleon"),
        ("tokenizer.ggml.tokens", None, "missing"),
        ("tokenizer.ggml.tokens", strings(&[]), "0 tokens"),
        ("tokenizer.ggml.tokens", strings(&["a", "a"]), "both token 0 and token 1"),
        ("tokenizer.ggml.token_type", Some(GgufValue::Ints(vec![1; 3])), "3 entries"),
        ("tokenizer.ggml.token_type", Some(GgufValue::Ints(vec![9; 260])), "unknown type 9"),
        ("tokenizer.ggml.merges", None, "missing"),
        ("tokenizer.ggml.merges", strings(&["ab"]), "entry 0"),
        ("tokenizer.ggml.merges", strings(&["a b", "ab ab"]), "entry 1"),
        ("tokenizer.ggml.bos_token_id", Some(GgufValue::Int(260)), "token 260"),
        ("tokenizer.ggml.eos_token_id", Some(GgufValue::Int(-1)), "-1"),
    ];
    for (key, value, words) in cases.drain(..) {
        let mut values = small("gpt-2");
        values.remove(key);
        values.extend(value.map(|value| (key.to_owned(), value)));
        let error = from_gguf(values).unwrap_err().to_string();
        assert!(error.starts_with("model.gguf: ") && error.contains(words), "{key}: {error}");
        assert!(error.contains(key) || error.contains("tokenizer.ggml.scores"), "{key}: {error}");
    }
}
