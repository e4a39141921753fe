//! [`Tokenizer`]: text to token ids and back, from a tokenizer.json or from a GGUF's metadata.

use std::path::Path;

use crate::error::Result;
use crate::text::RenderedChat;
use crate::weights::GgufMetadata;

/// Text to token ids and back. Shared between threads; nothing in it changes after load.
pub struct Tokenizer {}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where there is one, `tokenizer_config.json` beside it.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        todo!()
    }
    /// Builds the tokenizer that a GGUF's metadata describes. `path` is for error messages.
    pub fn from_gguf(path: &Path, metadata: &GgufMetadata) -> Result<Self> {
        todo!()
    }
    /// Ids of `text`; special tokens in it are recognised. BOS and the like are added if `add_special_tokens` and the
    /// tokenizer adds them; a BOS that the text already begins with is not doubled.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        todo!()
    }
    /// Ids of a rendered conversation: special tokens are recognised in the template's own text alone, not in what
    /// users sent. Nothing is added.
    pub fn encode_chat(&self, chat: &RenderedChat) -> Result<Vec<u32>> {
        todo!()
    }
    /// Text of `ids`. Ids beyond the vocabulary have no text. Invalid UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        todo!()
    }
    /// The token's own spelling in the vocabulary (`Ġthe`, `▁the`), if it has one.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        todo!()
    }
    /// Id of a token by its spelling in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        todo!()
    }
    /// The bytes that the token stands for, for logprobs: of `Ġthe`, `b" the"`.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        todo!()
    }
    /// Whether the token is a special one (BOS, EOS, turn marks).
    pub fn is_special(&self, id: u32) -> bool {
        todo!()
    }
    /// Number of ids, added tokens among them.
    pub fn vocab_size(&self) -> usize {
        todo!()
    }
    /// Beginning-of-sequence token.
    pub fn bos_token(&self) -> Option<&str> {
        todo!()
    }
    /// End-of-sequence token.
    pub fn eos_token(&self) -> Option<&str> {
        todo!()
    }
    /// The end ids that the tokenizer itself knows: its eos_token, and turn-end tokens of known templates
    /// (`<|eot_id|>`, `<|im_end|>`, `<|end|>`, `<end_of_turn>`, `<|eom_id|>`, ...) that are special tokens of its vocabulary.
    pub fn end_token_ids(&self) -> Vec<u32> {
        todo!()
    }
}
