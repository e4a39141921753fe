//! [`Tokenizer`]: text to token ids and back, from a tokenizer.json or from a GGUF's metadata.

mod added;
mod gguf;
mod load;
mod pre_tokenizers;
mod spelling;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokenizers::{AddedToken, Decoder, Model, ModelWrapper, OffsetType, PreTokenizer};

use crate::error::{Error, Result};
use crate::text::RenderedChat;
use crate::weights::GgufMetadata;

use added::AddedTokens;
pub(in crate::text) use added::ControlTokens;
pub(in crate::text) use load::read_object;
use spelling::Spelling;

/// Turn-end tokens of known chat templates: where one is a special token of the vocabulary, it ends a sequence.
const TURN_ENDS: [&str; 11] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end_of_turn|>",
    "<|eot|>",
    "<|call|>",
    "<|return|>",
];
/// Texts of more bytes are encoded one at a time: each byte takes hundreds of bytes of memory until its text is done.
const LONG_TEXT_BYTES: usize = 256 << 10;
/// Where a vocabulary has the first, the second ends a message, of which a turn has several.
const CHANNEL_AND_MESSAGE_END: (&str, &str) = ("<|channel|>", "<|end|>");

/// Text to token ids and back. Shared between threads; nothing in it changes after load.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Added and special tokens, and which of them steer the model.
    added: AddedTokens,
    /// How the vocabulary spells bytes.
    spelling: Spelling,
    /// Ids that are put before a text (BOS), and after it.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    /// `bos_token`, `eos_token` and the other tokens that have a role, by the role's name.
    named: BTreeMap<String, String>,
    end_ids: Vec<u32>,
    vocab_size: usize,
    /// Bytes of the longest token.
    longest_token: usize,
    long_texts: Mutex<()>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where there is one, `tokenizer_config.json` beside it.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        load::from_dir(dir)
    }

    /// Builds the tokenizer that a GGUF's metadata describes. `path` is for error messages.
    pub fn from_gguf(path: &Path, metadata: &GgufMetadata) -> Result<Self> {
        gguf::from_gguf(path, metadata)
    }

    /// Ids of `text`; special tokens in it are recognised. BOS and the like are added if `add_special_tokens` and the
    /// tokenizer adds them; a BOS that the text already begins with is not doubled.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let _turn = self.turn(text);
        let encoding = self.inner.encode_fast(text, false).map_err(failed)?;
        let ids = encoding.get_ids();
        if !add_special_tokens {
            return Ok(ids.to_vec());
        }
        let prefix = if ids.starts_with(&self.prefix) { &[][..] } else { &self.prefix };
        Ok([prefix, ids, &self.suffix].concat())
    }

    /// Ids of a rendered conversation: special tokens are recognised in the template's own text alone, not in what
    /// users sent. Nothing is added.
    pub fn encode_chat(&self, chat: &RenderedChat) -> Result<Vec<u32>> {
        let control = self.added.control();
        match chat.masked() {
            // No user wrote what could be taken for a control token, so the whole text can be searched for them.
            None if !control.any_normalized() => self.encode(chat.text(), false),
            None => self.encode_sealed(&control.seal(chat.text(), |c| c)),
            Some((masked, unmask)) => self.encode_sealed(&control.seal(masked, unmask)),
        }
    }

    /// Ids of a text in which control tokens go by their sealed names; their own spellings are plain text there.
    fn encode_sealed(&self, sealed: &str) -> Result<Vec<u32>> {
        let _turn = self.turn(sealed);
        let vocabulary = self.added.control().vocabulary();
        let mut pieces = vocabulary.extract_and_normalize(self.inner.get_normalizer(), sealed);
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces).map_err(failed)?;
        }
        let model = self.inner.get_model();
        pieces.tokenize(|piece| model.tokenize(piece.get())).map_err(failed)?;
        let encoding = pieces.into_encoding(None, 0, OffsetType::None).map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Waits until no other long text is encoded, if this one is long.
    fn turn(&self, text: &str) -> Option<MutexGuard<'_, ()>> {
        let is_long = text.len() > LONG_TEXT_BYTES;
        is_long.then(|| self.long_texts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tokens that a text of so many bytes has at least, told without a look at it. Normalizers may leave a fourth of the bytes.
    pub(crate) fn least_tokens(&self, num_bytes: usize) -> usize {
        num_bytes / (4 * self.longest_token.max(1))
    }

    /// Text of `ids`. Ids beyond the vocabulary have no text. Invalid UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        let kept = ids.iter().filter(|&&id| !(skip_special_tokens && self.is_special(id)));
        let tokens: Vec<String> = kept.filter_map(|&id| self.inner.id_to_token(id)).collect();
        match self.inner.get_decoder() {
            // None of the library's decoders fails.
            Some(decoder) => decoder.decode(tokens).unwrap_or_default(),
            None => tokens.join(" "),
        }
    }

    /// The token's own spelling in the vocabulary (`Ġthe`, `▁the`), if it has one.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        match self.added.get(id) {
            Some(token) => Some(token.content.clone()),
            None => self.inner.get_model().id_to_token(id),
        }
    }

    /// Id of a token by its spelling in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The bytes that the token stands for, for logprobs: of `Ġthe`, `b" the"`.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        match self.added.get(id) {
            Some(token) => token.content.clone().into_bytes(),
            None => self.inner.get_model().id_to_token(id).map_or(Vec::new(), |token| self.spelling.bytes(&token)),
        }
    }

    /// Whether the token is a special one (BOS, EOS, turn marks).
    pub fn is_special(&self, id: u32) -> bool {
        self.added.get(id).is_some_and(|token| token.special)
    }

    /// Whether the token is one that the tokenizer looks for in text before it splits the rest into words.
    pub(in crate::text) fn is_added(&self, id: u32) -> bool {
        self.added.get(id).is_some()
    }

    /// Whether the token has a text of its own, be it only a byte.
    pub(in crate::text) fn has_text(&self, id: u32) -> bool {
        self.inner.id_to_token(id).is_some_and(|token| !token.is_empty())
    }

    /// Number of ids, added tokens among them.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The first id that stands for one token here and for another in `other`. Where only one of them has a token there is no matter.
    pub fn first_difference(&self, other: &Self) -> Option<u32> {
        let differs =
            |id: &u32| matches!((self.id_to_token(*id), other.id_to_token(*id)), (Some(a), Some(b)) if a != b);
        (0..self.vocab_size.min(other.vocab_size) as u32).find(differs)
    }

    /// Beginning-of-sequence token.
    pub fn bos_token(&self) -> Option<&str> {
        self.named.get("bos_token").map(String::as_str)
    }

    /// End-of-sequence token.
    pub fn eos_token(&self) -> Option<&str> {
        self.named.get("eos_token").map(String::as_str)
    }

    /// The end ids that the tokenizer itself knows: its eos_token, and turn-end tokens of known templates
    /// (`<|eot_id|>`, `<|im_end|>`, `<|end|>`, `<end_of_turn>`, `<|eom_id|>`, ...) that are special tokens of its vocabulary.
    pub fn end_token_ids(&self) -> Vec<u32> {
        self.end_ids.clone()
    }

    /// How text becomes tokens, in words: `byte-level BPE`.
    pub fn kind(&self) -> &'static str {
        match (self.inner.get_model(), self.spelling) {
            (ModelWrapper::BPE(_), Spelling::ByteLevel) => "byte-level BPE",
            (ModelWrapper::BPE(_), Spelling::SentencePiece) => "SentencePiece BPE",
            (ModelWrapper::BPE(_), Spelling::Plain) => "BPE",
            (ModelWrapper::Unigram(_), _) => "Unigram",
            (ModelWrapper::WordPiece(_), _) => "WordPiece",
            (ModelWrapper::WordLevel(_), _) => "word level",
        }
    }

    /// `bos_token`, `eos_token` and the like, as templates know them: the role and the token.
    pub fn named_tokens(&self) -> impl Iterator<Item = (&str, &str)> {
        self.named.iter().map(|(name, token)| (name.as_str(), token.as_str()))
    }

    /// The tokens that steer the model.
    pub(in crate::text) fn control_tokens(&self) -> &ControlTokens {
        self.added.control()
    }
}

/// What a loader has found out about a tokenizer.
struct Parts {
    inner: tokenizers::Tokenizer,
    /// All added tokens with their ids.
    added: Vec<(u32, AddedToken)>,
    /// `bos_token` and the like.
    named: BTreeMap<String, String>,
    /// Ids put before and after a text.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    /// End ids beside `eos_token` and [`TURN_ENDS`].
    end_ids: Vec<u32>,
}

impl Tokenizer {
    fn from_parts(mut parts: Parts, path: &Path) -> Result<Self> {
        let added = AddedTokens::new(parts.added, &parts.named, parts.inner.get_normalizer())
            .map_err(|e| Error::file(path, format!("added tokens: {e}")))?;
        parts.inner.with_added_vocabulary(added.vocabulary());
        let spelling = parts.inner.get_decoder().map_or(Spelling::Plain, Spelling::of);
        let vocab = parts.inner.get_vocab(true);
        let vocab_size = vocab.values().max().map_or(0, |&id| id as usize + 1);
        let longest_token = vocab.keys().max_by_key(|token| token.len()).map_or(1, |token| spelling.bytes(token).len());
        let mut tokenizer = Self {
            inner: parts.inner,
            added,
            spelling,
            prefix: parts.prefix,
            suffix: parts.suffix,
            named: parts.named,
            end_ids: Vec::new(),
            vocab_size,
            longest_token,
            long_texts: Mutex::new(()),
        };
        let (channel, message_end) = CHANNEL_AND_MESSAGE_END;
        let has_channels = tokenizer.token_to_id(channel).is_some();
        let ends_turn = |token: &&&str| !(has_channels && **token == message_end);
        let turn_ends = TURN_ENDS.iter().filter(ends_turn).filter_map(|token| tokenizer.token_to_id(token));
        let eos = tokenizer.eos_token().and_then(|token| tokenizer.token_to_id(token));
        let mut end_ids: Vec<u32> = eos.into_iter().chain(parts.end_ids).collect();
        end_ids.extend(turn_ends.filter(|&id| tokenizer.is_special(id)));
        let mut seen = std::collections::HashSet::new();
        end_ids.retain(|&id| seen.insert(id));
        tokenizer.end_ids = end_ids;
        Ok(tokenizer)
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size)
            .field("named", &self.named)
            .finish_non_exhaustive()
    }
}

/// A failure inside the tokenizers library while it ran (not while it read a file).
fn failed(error: tokenizers::Error) -> Error {
    Error::internal(format!("tokenizer: {error}"))
}
