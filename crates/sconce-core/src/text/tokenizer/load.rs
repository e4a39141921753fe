//! A [`Tokenizer`] from a folder: tokenizer.json, tokenizer_config.json, special_tokens_map.json.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Model};

use super::{Parts, Tokenizer};
use crate::error::{Error, Result};

/// Classes of transformers whose switches in tokenizer_config.json say what is put before and after a text, whatever the post-processor
/// of tokenizer.json does.
const SWITCHED_CLASSES: [&str; 6] = [
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "CodeLlamaTokenizer",
    "CodeLlamaTokenizerFast",
    "GemmaTokenizer",
    "GemmaTokenizerFast",
];

pub(super) fn from_dir(dir: &Path) -> Result<Tokenizer> {
    let path = dir.join("tokenizer.json");
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    let inner = parse(&path, &text)?;
    let config_path = dir.join("tokenizer_config.json");
    let config = read_object(&config_path)?.unwrap_or_default();
    let mut named = named_tokens(&config_path, &config)?;
    let map_path = dir.join("special_tokens_map.json");
    if let Some(map) = read_object(&map_path)? {
        for (name, token) in named_tokens(&map_path, &map)? {
            // tokenizer_config.json has the last word, also where it says null.
            if !config.contains_key(&name) {
                named.insert(name, token);
            }
        }
    }
    let added = added_tokens(&inner, &text, &config_path, &config)?;
    let (mut prefix, mut suffix) = surroundings(&path, &inner)?;
    if config.get("tokenizer_class").and_then(Value::as_str).is_some_and(|class| SWITCHED_CLASSES.contains(&class)) {
        let id_of = |content: &str| {
            let of_added = added.iter().find(|(_, token)| token.content == content).map(|(id, _)| *id);
            of_added.or_else(|| inner.get_model().token_to_id(content))
        };
        for (switch, role, ids) in
            [("add_bos_token", "bos_token", &mut prefix), ("add_eos_token", "eos_token", &mut suffix)]
        {
            match (config.get(switch).and_then(Value::as_bool), named.get(role).and_then(|content| id_of(content))) {
                (Some(false), _) => ids.clear(),
                (Some(true), Some(id)) => *ids = vec![id],
                _ => {}
            }
        }
    }
    Tokenizer::from_parts(Parts { inner, added, named, prefix, suffix, end_ids: Vec::new() }, &path)
}

fn parse(path: &Path, text: &str) -> Result<tokenizers::Tokenizer> {
    // The library indexes past a buffer on some inconsistent merges.
    let parsed = catch_unwind(AssertUnwindSafe(|| tokenizers::Tokenizer::from_bytes(text)));
    let mut inner = match parsed {
        Ok(parsed) => parsed.map_err(|e| Error::file(path, format!("not a tokenizer: {e}")))?,
        Err(_) => return Err(Error::file(path, "not a tokenizer: its merges and its vocabulary do not fit together")),
    };
    // Both would change what a request says.
    inner.with_truncation(None).map_err(|e| Error::file(path, e.to_string()))?;
    inner.with_padding(None);
    Ok(inner)
}

/// A JSON object from a file; None if there is no such file.
pub(in crate::text) fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, e)),
    };
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(Error::file(path, "expected a JSON object")),
        Err(e) => Err(Error::file(path, format!("not JSON: {e}"))),
    }
}

/// `bos_token`, `eos_token` and every other `*_token`: a string, or an object with `content`.
fn named_tokens(path: &Path, config: &Map<String, Value>) -> Result<BTreeMap<String, String>> {
    let mut named = BTreeMap::new();
    for (name, value) in config.iter().filter(|(name, _)| name.ends_with("_token")) {
        let content = value.get("content").unwrap_or(value);
        match content {
            Value::String(content) => drop(named.insert(name.clone(), content.clone())),
            // `add_bos_token` and the like are switches; null says that there is no such token.
            Value::Bool(_) | Value::Null => {}
            other => return Err(Error::file(path, format!("{name}: expected a token, found {other}"))),
        }
    }
    Ok(named)
}

/// The added tokens with their ids: those of tokenizer.json, and what `added_tokens_decoder` has beyond them.
fn added_tokens(
    inner: &tokenizers::Tokenizer,
    text: &str,
    config_path: &Path,
    config: &Map<String, Value>,
) -> Result<Vec<(u32, AddedToken)>> {
    // The library numbers added tokens from the end of the vocabulary on, whatever the file says.
    let declared = declared_ids(text);
    let mut by_content = HashMap::new();
    for (assigned, token) in inner.get_added_tokens_decoder() {
        let in_model = inner.get_model().token_to_id(&token.content);
        let id = in_model.or_else(|| declared.get(&token.content).copied()).unwrap_or(assigned);
        by_content.insert(token.content.clone(), (id, token));
    }
    let decoder = config.get("added_tokens_decoder").and_then(Value::as_object);
    for (key, value) in decoder.into_iter().flatten() {
        let bad = |what: &str| Error::file(config_path, format!("added_tokens_decoder, entry {key:?}: {what}"));
        let id: u32 = key.parse().map_err(|_| bad("the key is not a token id"))?;
        let content = value.get("content").and_then(Value::as_str).ok_or_else(|| bad("content is missing"))?;
        let flag = |name: &str| value.get(name).and_then(Value::as_bool).unwrap_or(false);
        match by_content.get(content) {
            Some((known, _)) if *known != id => {
                return Err(bad(&format!("{content:?} has the id {known} in tokenizer.json")));
            }
            Some(_) => {}
            None => {
                let token = AddedToken::from(content, flag("special"))
                    .lstrip(flag("lstrip"))
                    .rstrip(flag("rstrip"))
                    .single_word(flag("single_word"))
                    .normalized(flag("normalized"));
                by_content.insert(content.to_owned(), (id, token));
            }
        }
    }
    let mut added: Vec<_> = by_content.into_values().filter(|(_, token)| !token.content.is_empty()).collect();
    added.sort_by_key(|(id, _)| *id);
    match added.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some([a, b]) => {
            let message = format!("added tokens {:?} and {:?} share the id {}", a.1.content, b.1.content, a.0);
            Err(Error::file(config_path.with_file_name("tokenizer.json"), message))
        }
        _ => Ok(added),
    }
}

/// Ids in the `added_tokens` list of a tokenizer.json. Only that list is parsed: the file can be tens of megabytes,
/// and has been parsed already.
fn declared_ids(text: &str) -> HashMap<String, u32> {
    for (at, key) in text.match_indices("\"added_tokens\"") {
        let Some(rest) = text[at + key.len()..].trim_start().strip_prefix(':') else { continue };
        let list = serde_json::Deserializer::from_str(rest).into_iter::<Value>().next();
        let Some(Ok(Value::Array(list))) = list else { continue };
        let entry =
            |token: &Value| Some((token["content"].as_str()?.to_owned(), token["id"].as_u64()?.try_into().ok()?));
        return list.iter().filter_map(entry).collect();
    }
    HashMap::new()
}

/// The ids that the post-processor puts before and after a text.
fn surroundings(path: &Path, inner: &tokenizers::Tokenizer) -> Result<(Vec<u32>, Vec<u32>)> {
    let ids = |special| match inner.encode_fast("a", special) {
        Ok(encoding) => Ok(encoding.get_ids().to_vec()),
        Err(e) => Err(Error::file(path, format!("the tokenizer cannot encode \"a\": {e}"))),
    };
    let (bare, whole) = (ids(false)?, ids(true)?);
    let at = (0..=whole.len().saturating_sub(bare.len())).find(|&at| whole[at..].starts_with(&bare));
    match at {
        Some(at) => Ok((whole[..at].to_vec(), whole[at + bare.len()..].to_vec())),
        None => Err(Error::file(path, "post_processor: it changes the text's own tokens")),
    }
}
