//! [`environment`]: a tokenizer as llguidance sees it.

use std::sync::Arc;

use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::text::Tokenizer;

/// Bytes of a text that become tokens, which are some hundred.
const MAX_BYTES: usize = 1024;
/// Tokens at the end of a text that is cut that might be others.
const NUM_UNCERTAIN: usize = 4;

struct Vocabulary {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
}

/// The tokens' bytes, and how text becomes tokens.
pub(super) fn environment(tokenizer: &Arc<Tokenizer>, end_token_ids: &[u32]) -> TokEnv {
    let num_ids = end_token_ids.iter().map(|&id| id as usize + 1).fold(tokenizer.vocab_size(), usize::max);
    let words: Vec<Vec<u8>> = (0..num_ids as u32).map(|id| word(tokenizer, id, end_token_ids.contains(&id))).collect();
    let info = TokRxInfo::new(num_ids as u32, end_token_ids[0]);
    let trie = TokTrie::from(&info, &words).with_eos_tokens(end_token_ids);
    Arc::new(Vocabulary { tokenizer: Arc::clone(tokenizer), trie })
}

/// A token's bytes; of one that steers the model a name that no text has.
fn word(tokenizer: &Tokenizer, id: u32, is_end: bool) -> Vec<u8> {
    const MARK: u8 = TokTrie::SPECIAL_TOKEN_MARKER;
    let bytes = tokenizer.token_bytes(id);
    match bytes.first() {
        // The byte of the mark is in no text either.
        None | Some(&MARK) => Vec::new(),
        Some(_) if is_end || tokenizer.is_special(id) => [&[MARK], bytes.as_slice()].concat(),
        Some(_) => bytes,
    }
}

impl Vocabulary {
    /// The tokenizer's own tokens for a text, if they have just its bytes.
    fn encode(&self, text: &str) -> Option<Vec<TokenId>> {
        let ids = self.tokenizer.encode(text, false).ok()?;
        if self.trie.decode_raw(&ids) == text.as_bytes() {
            return Some(ids);
        }
        // A vocabulary that writes a space before a text: here it stands before a line's end, and both are taken off.
        let ids = self.tokenizer.encode(&format!("\n{text}"), false).ok()?;
        let num_before = (1..=ids.len()).find(|&num| self.trie.decode_raw(&ids[..num]).ends_with(b"\n"))?;
        let own = &ids[num_before..];
        (self.trie.decode_raw(own) == text.as_bytes()).then(|| own.to_vec())
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// Of a long text the tokens that it begins with: it is asked for what has to come, at every token of it, and only the first few
    /// of its tokens are looked at.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let (begin, is_cut) = match bytes.get(..MAX_BYTES) {
            Some(begin) => (begin, true),
            None => (bytes, false),
        };
        let begin = if is_cut { whole_characters(begin) } else { begin };
        let encoded = std::str::from_utf8(begin).ok().and_then(|text| self.encode(text));
        let mut ids = encoded.unwrap_or_else(|| self.trie.greedy_tokenize(begin));
        // Greedily what no token has is passed over: that is where the text ends.
        while !begin.starts_with(&self.trie.decode_raw(&ids)) {
            ids.pop();
        }
        if is_cut {
            // The last ones might be others if the text went on.
            ids.truncate(ids.len().saturating_sub(NUM_UNCERTAIN));
        }
        ids
    }
}

/// The bytes without a character at the end that is not complete.
fn whole_characters(bytes: &[u8]) -> &[u8] {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => &bytes[..error.valid_up_to()],
        _ => bytes,
    }
}
