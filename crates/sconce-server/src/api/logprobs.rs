//! Log-probabilities in the three forms that the endpoints answer with, each written once, when it comes.

use std::io::Write;
use std::sync::Arc;

use sconce::{Logprob, TokenEvent, TokenLogprobs};
use serde_json::{Map, Value, json};

use super::growing::Growing;
use crate::http::{Json, List, Pieces, separate, write_string};
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

/// A logprob as a number of JSON.
fn number(logprob: f32) -> Value {
    json!(logprob.max(IMPOSSIBLE))
}

/// Appends a position in `/generate`'s form: an object of the token, with its rank and the most probable ones beside it.
pub(super) fn push_generate(token_bytes: &TokenBytes, position: &TokenLogprobs, list: &mut List) {
    write_position(position, list.entry(), |l, out| {
        write!(out, "\"token_id\":{},\"token\":", l.token_id)?;
        write_string(&String::from_utf8_lossy(&token_bytes(l.token_id)), out);
        write!(out, ",\"logprob\":{},\"rank\":{}", number(l.logprob), l.rank)
    });
}

/// A prompt's positions in the same form; its first token has none.
pub(super) fn of_prompt(token_bytes: &TokenBytes, logprobs: &[Option<TokenLogprobs>]) -> List {
    let mut list = List::default();
    for position in logprobs {
        match position {
            Some(position) => push_generate(token_bytes, position, &mut list),
            None => list.entry().push(b"null"),
        }
    }
    list
}

/// Appends a position in the form that conversations have it in.
pub(super) fn push_chat(token_bytes: &TokenBytes, position: &TokenLogprobs, list: &mut List) {
    write_position(position, list.entry(), |l, out| {
        let bytes = token_bytes(l.token_id);
        out.push(b"\"token\":");
        write_string(&String::from_utf8_lossy(&bytes), out);
        write!(out, ",\"logprob\":{},\"bytes\":[", number(l.logprob))?;
        for (i, byte) in bytes.iter().enumerate() {
            separate(i, out);
            write!(out, "{byte}")?;
        }
        out.push(b"]");
        Ok(())
    });
}

/// Writes a position as an object: `members` of the token that stands there, and a list of objects of the most probable ones.
fn write_position(
    position: &TokenLogprobs,
    out: &mut Pieces,
    members: impl Fn(&Logprob, &mut Pieces) -> std::io::Result<()>,
) {
    let members = |l: &Logprob, out: &mut Pieces| members(l, out).expect("invariant: memory can be written to");
    out.push(b"{");
    members(&position.chosen, out);
    out.push(b",\"top_logprobs\":[");
    for (i, l) in position.top.iter().enumerate() {
        separate(i, out);
        out.push(b"{");
        members(l, out);
        out.push(b"}");
    }
    out.push(b"]}");
}

/// Whether a token is a special one.
pub(super) type IsSpecial = Arc<dyn Fn(u32) -> bool + Send + Sync>;

/// Those of a served model.
pub(super) fn is_special(served: &Served) -> IsSpecial {
    let engine = served.engine.clone();
    Arc::new(move |id| engine.handle().tokenizer().is_special(id))
}

/// `/v1/completions`' form: four lists of one entry a token.
#[derive(Clone)]
pub(super) struct CompletionLogprobs {
    token_bytes: TokenBytes,
    is_special: IsSpecial,
    /// Whether special tokens are no part of what is generated.
    skips_special: bool,
    /// Characters of the answer before the next token.
    offset: usize,
    /// How far the prompt's text has been looked through: so many characters, and their bytes.
    looked_at: (usize, usize),
    tokens: List,
    token_logprobs: List,
    top_logprobs: List,
    text_offset: List,
}

impl CompletionLogprobs {
    pub(super) fn new(token_bytes: TokenBytes, is_special: IsSpecial, skips_special: bool) -> Self {
        Self {
            token_bytes,
            is_special,
            skips_special,
            offset: 0,
            looked_at: (0, 0),
            tokens: List::default(),
            token_logprobs: List::default(),
            top_logprobs: List::default(),
            text_offset: List::default(),
        }
    }

    /// Adds a token of the prompt, whose text is `text`; the first one follows on nothing.
    pub(super) fn push_prompt(&mut self, text: &str, token_id: u32, position: Option<&TokenLogprobs>) {
        // Some that stand at its beginning were added to it, and of ids it shows no special ones.
        let is_shown = !(self.is_special)(token_id) || {
            let spelling = (self.token_bytes)(token_id);
            self.rest_of(text).as_bytes().starts_with(String::from_utf8_lossy(&spelling).as_bytes())
        };
        self.push_token(token_id, is_shown);
        match position {
            Some(position) => self.push_logprobs(position),
            None => {
                self.token_logprobs.entry().push(b"null");
                self.top_logprobs.entry().push(b"null");
            }
        }
    }

    /// What follows on `offset` characters of the prompt's text, which is looked through once for all of its tokens.
    fn rest_of<'a>(&mut self, text: &'a str) -> &'a str {
        let (num_chars, num_bytes) = self.looked_at;
        let mut rest = text[num_bytes..].chars();
        rest.by_ref().take(self.offset - num_chars).for_each(drop);
        self.looked_at = (self.offset, text.len() - rest.as_str().len());
        rest.as_str()
    }

    /// Adds a token that was generated.
    pub(super) fn push(&mut self, position: &TokenLogprobs) {
        let token_id = position.chosen.token_id;
        self.push_token(token_id, !(self.skips_special && (self.is_special)(token_id)));
        self.push_logprobs(position);
    }

    fn push_logprobs(&mut self, position: &TokenLogprobs) {
        Json::Value(number(position.chosen.logprob)).write(self.token_logprobs.entry());
        let mut top = Map::new();
        // The chosen token is always among them, so that there can be one more than was asked for.
        for l in position.top.iter().chain([&position.chosen]) {
            top.insert(spelling(&(self.token_bytes)(l.token_id)), number(l.logprob));
        }
        Json::Value(Value::Object(top)).write(self.top_logprobs.entry());
    }

    /// `is_shown`: it is part of the text.
    fn push_token(&mut self, token_id: u32, is_shown: bool) {
        let bytes = (self.token_bytes)(token_id);
        write_string(&spelling(&bytes), self.tokens.entry());
        Json::Value(self.offset.into()).write(self.text_offset.entry());
        if is_shown {
            // Every character has one byte that does not continue another.
            self.offset += bytes.iter().filter(|&b| b & 0xC0 != 0x80).count();
        }
    }

    /// All of it.
    pub(super) fn json(&self) -> Json {
        let members = [
            ("text_offset", &self.text_offset),
            ("token_logprobs", &self.token_logprobs),
            ("tokens", &self.tokens),
            ("top_logprobs", &self.top_logprobs),
        ];
        Json::Object(members.map(|(name, list)| (name.to_owned(), list.into())).into())
    }

    /// What was added since it was last taken.
    pub(super) fn take(&mut self) -> Json {
        let json = self.json();
        for list in [&mut self.text_offset, &mut self.token_logprobs, &mut self.tokens, &mut self.top_logprobs] {
            *list = List::default();
        }
        json
    }
}

impl Growing for CompletionLogprobs {
    fn push(&mut self, token: &TokenEvent) {
        token.logprobs.iter().for_each(|position| self.push(position));
    }
}

/// `/v1/chat/completions`' form.
#[derive(Clone)]
pub(super) struct ChatLogprobs {
    token_bytes: TokenBytes,
    content: List,
}

impl ChatLogprobs {
    pub(super) fn new(token_bytes: TokenBytes) -> Self {
        Self { token_bytes, content: List::default() }
    }

    pub(super) fn json(&self) -> Json {
        Json::from(json!({"content": null, "refusal": null})).with("content", &self.content)
    }
}

impl Growing for ChatLogprobs {
    fn push(&mut self, token: &TokenEvent) {
        token.logprobs.iter().for_each(|position| push_chat(&self.token_bytes, position, &mut self.content));
    }
}

/// A token's text; where it is no whole text, its bytes as OpenAI spells them.
fn spelling(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |s, b| s + &format!("\\x{b:02x}")),
    }
}
