//! Log-probabilities in the three forms that the endpoints answer with.

use std::sync::Arc;

use sconce::{Logprob, TokenLogprobs};
use serde_json::{Map, Value, json};

use crate::state::Served;

/// What stands for minus infinity, which JSON cannot say. OpenAI's own.
const IMPOSSIBLE: f32 = -9999.0;

/// The bytes that a token stands for.
pub(super) type TokenBytes = Arc<dyn Fn(u32) -> Vec<u8> + Send + Sync>;

/// The bytes of the tokens of a served model.
pub(super) fn token_bytes(served: &Served) -> TokenBytes {
    let engine = served.engine.clone();
    Arc::new(move |id| engine.handle().tokenizer().token_bytes(id))
}

fn finite(logprob: f32) -> f32 {
    logprob.max(IMPOSSIBLE)
}

/// `/generate`'s form: one object a token, with its rank and the most probable ones beside it.
pub(super) fn of_output(token_bytes: &TokenBytes, logprobs: &[TokenLogprobs]) -> Value {
    logprobs.iter().map(|position| of_position(token_bytes, position)).collect()
}

/// The same for a prompt, whose first token has none.
pub(super) fn of_prompt(token_bytes: &TokenBytes, logprobs: &[Option<TokenLogprobs>]) -> Value {
    let position = |p: &Option<TokenLogprobs>| p.as_ref().map_or(Value::Null, |p| of_position(token_bytes, p));
    logprobs.iter().map(position).collect()
}

fn of_position(token_bytes: &TokenBytes, position: &TokenLogprobs) -> Value {
    let one = |l: &Logprob| {
        let bytes = token_bytes(l.token_id);
        let token = String::from_utf8_lossy(&bytes);
        json!({"token_id": l.token_id, "token": token, "logprob": finite(l.logprob), "rank": l.rank})
    };
    let mut object = one(&position.chosen);
    object["top_logprobs"] = position.top.iter().map(one).collect();
    object
}

/// `/v1/chat/completions`' form.
pub(super) fn of_chat(token_bytes: &TokenBytes, logprobs: &[TokenLogprobs]) -> Value {
    let one = |l: &Logprob| {
        let bytes = token_bytes(l.token_id);
        json!({"token": String::from_utf8_lossy(&bytes), "logprob": finite(l.logprob), "bytes": bytes})
    };
    let content = logprobs.iter().map(|position| {
        let mut object = one(&position.chosen);
        object["top_logprobs"] = position.top.iter().map(one).collect();
        object
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}

/// Whether a token is a special one.
pub(super) type IsSpecial = Arc<dyn Fn(u32) -> bool + Send + Sync>;

/// Those of a served model.
pub(super) fn is_special(served: &Served) -> IsSpecial {
    let engine = served.engine.clone();
    Arc::new(move |id| engine.handle().tokenizer().is_special(id))
}

/// `/v1/completions`' form: four lists of one entry a token.
pub(super) struct CompletionLogprobs {
    token_bytes: TokenBytes,
    is_special: IsSpecial,
    /// Whether special tokens are no part of what is generated.
    skips_special: bool,
    /// Characters of the answer before the next token.
    offset: usize,
    tokens: Vec<Value>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<Value>,
}

impl CompletionLogprobs {
    pub(super) fn new(token_bytes: TokenBytes, is_special: IsSpecial, skips_special: bool) -> Self {
        let empty = Vec::new;
        Self {
            token_bytes,
            is_special,
            skips_special,
            offset: 0,
            tokens: empty(),
            token_logprobs: empty(),
            top_logprobs: empty(),
            text_offset: empty(),
        }
    }

    /// Adds a token of the prompt, whose text is `text`; the first one follows on nothing.
    pub(super) fn push_prompt(&mut self, text: &str, token_id: u32, position: Option<&TokenLogprobs>) {
        // Some that stand at its beginning were added to it, and of ids it shows no special ones.
        let is_shown = !(self.is_special)(token_id) || {
            let bytes = (self.token_bytes)(token_id);
            let spelling = String::from_utf8_lossy(&bytes);
            let mut rest = text.chars().skip(self.offset);
            spelling.chars().all(|c| rest.next() == Some(c))
        };
        self.push_token(token_id, is_shown);
        match position {
            Some(position) => self.push_logprobs(position),
            None => {
                self.token_logprobs.push(Value::Null);
                self.top_logprobs.push(Value::Null);
            }
        }
    }

    /// Adds a token that was generated.
    pub(super) fn push(&mut self, position: &TokenLogprobs) {
        let token_id = position.chosen.token_id;
        self.push_token(token_id, !(self.skips_special && (self.is_special)(token_id)));
        self.push_logprobs(position);
    }

    fn push_logprobs(&mut self, position: &TokenLogprobs) {
        self.token_logprobs.push(json!(finite(position.chosen.logprob)));
        let mut top = Map::new();
        // The chosen token is always among them, so that there can be one more than was asked for.
        for l in position.top.iter().chain([&position.chosen]) {
            top.insert(spelling(&(self.token_bytes)(l.token_id)), json!(finite(l.logprob)));
        }
        self.top_logprobs.push(Value::Object(top));
    }

    /// `is_shown`: it is part of the text.
    fn push_token(&mut self, token_id: u32, is_shown: bool) {
        let bytes = (self.token_bytes)(token_id);
        self.tokens.push(json!(spelling(&bytes)));
        self.text_offset.push(json!(self.offset));
        if is_shown {
            // Every character has one byte that does not continue another.
            self.offset += bytes.iter().filter(|&b| b & 0xC0 != 0x80).count();
        }
    }

    /// What was added since it was last taken.
    pub(super) fn take(&mut self) -> Value {
        use std::mem::take;
        json!({
            "text_offset": take(&mut self.text_offset),
            "token_logprobs": take(&mut self.token_logprobs),
            "tokens": take(&mut self.tokens),
            "top_logprobs": take(&mut self.top_logprobs),
        })
    }
}

/// A token's text; where it is no whole text, its bytes as OpenAI spells them.
fn spelling(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |s, b| s + &format!("\\x{b:02x}")),
    }
}
