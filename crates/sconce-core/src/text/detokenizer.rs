//! [`Detokenizer`]: tokens to text, one at a time, never half a character.

#[cfg(test)]
mod tests;

use crate::text::answer::unmarked;
use crate::text::{Marks, Tokenizer};

/// So many tokens of a prompt give the first token its context.
const CONTEXT_TOKENS: usize = 5;
/// So many tokens are held back at most while their text ends in U+FFFD. A character takes at most four bytes, so
/// at most four tokens; the rest is there so that a run of invalid bytes is shown in one go.
const MAX_HELD_TOKENS: usize = 16;

/// Tokens to text, one at a time.
///
/// A token's text depends on what stands before it (a leading space is dropped at the beginning only, a character
/// can take several tokens), so a small window of tokens is decoded with and without the new ones, and the
/// difference is what they add. The work a token is constant.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    /// Tokens whose text is out (the context), then tokens whose text is held back.
    window: Vec<u32>,
    /// How many tokens of `window` are context.
    num_context: usize,
    /// Whether the window is the end of a longer prompt, as it was cut off.
    is_cut: bool,
    skip_special_tokens: bool,
    spaces_between_special_tokens: bool,
    marks: Marks,
}

impl Detokenizer {
    /// `prompt_ids`: tokens that stand before the first one pushed (their last few give it its context).
    ///
    /// `spaces_between_special_tokens` matters where special tokens are shown. True is the ordinary decoding. False
    /// decodes each stretch between added tokens for itself and puts nothing between them, so that the space which
    /// some vocabularies write before a stretch's first word is dropped: `<s>Hello`, not `<s> Hello`.
    pub fn new(prompt_ids: &[u32], skip_special_tokens: bool, spaces_between_special_tokens: bool) -> Self {
        let window = prompt_ids[prompt_ids.len().saturating_sub(CONTEXT_TOKENS)..].to_vec();
        let (num_context, is_cut) = (window.len(), window.len() < prompt_ids.len());
        let marks = Marks::default();
        Self { window, num_context, is_cut, skip_special_tokens, spaces_between_special_tokens, marks }
    }

    /// The same, with tokens that come as a character of their own, whether special tokens are skipped or not.
    pub fn with_marks(self, marks: Marks) -> Self {
        Self { marks, ..self }
    }

    /// Adds one token and returns the text that became certain: whole characters only, never taken back.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        if std::mem::take(&mut self.is_cut) {
            self.begin_at_a_character(tokenizer);
        }
        if let Some(&(_, sign)) = self.marks.iter().find(|(mark, _)| *mark == id) {
            return self.push_apart(tokenizer, sign.encode_utf8(&mut [0; 4]));
        }
        if self.skip_special_tokens && tokenizer.is_special(id) || !tokenizer.has_text(id) {
            return String::new();
        }
        if !self.skip_special_tokens && !self.spaces_between_special_tokens && tokenizer.is_added(id) {
            return self.push_apart(tokenizer, &tokenizer.decode(&[id], false));
        }
        self.window.push(id);
        let text = self.added_text(tokenizer, self.window.len());
        let num_held = self.window.len() - self.num_context;
        if text.ends_with('\u{fffd}') {
            if num_held < MAX_HELD_TOKENS {
                return String::new();
            }
            return self.release_invalid(tokenizer);
        }
        if text.is_empty() && num_held < MAX_HELD_TOKENS {
            return text;
        }
        self.release(self.window.len());
        text
    }

    /// Adds a text that changes nothing of what stands around it.
    fn push_apart(&mut self, tokenizer: &Tokenizer, own: &str) -> String {
        let text = self.finish(tokenizer) + own;
        self.window.clear();
        self.num_context = 0;
        text
    }

    /// Text still held back, at the end of a sequence.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> String {
        let text = self.added_text(tokenizer, self.window.len());
        self.release(self.window.len());
        text
    }

    /// Drops the bytes with which a character ends that the window does not have: half a character would spoil all of
    /// the run of bytes that it stands in.
    fn begin_at_a_character(&mut self, tokenizer: &Tokenizer) {
        let ends_a_character = |&&id: &&u32| matches!(tokenizer.token_bytes(id)[..], [0x80..=0xbf]);
        let num_cut = self.window.iter().take_while(ends_a_character).count();
        self.window.drain(..num_cut);
        self.num_context -= num_cut;
    }

    /// What the held tokens before `end` add to the text of the context.
    fn added_text(&self, tokenizer: &Tokenizer, end: usize) -> String {
        if end == self.num_context {
            return String::new();
        }
        let context = tokenizer.decode(&self.window[..self.num_context], self.skip_special_tokens);
        let mut text = tokenizer.decode(&self.window[..end], self.skip_special_tokens);
        let added = match text.strip_prefix(context.as_str()) {
            Some(added) => text.split_off(text.len() - added.len()),
            // An invalid byte changed how the bytes of the context read, which are out already.
            None => tokenizer.decode(&self.window[self.num_context..end], self.skip_special_tokens),
        };
        if self.marks.is_empty() { added } else { unmarked(added) }
    }

    /// The tokens before `end` are out: they are the new context.
    fn release(&mut self, end: usize) {
        if end > self.num_context {
            self.window.drain(..self.num_context);
            self.num_context = end - self.num_context;
        }
    }

    /// Gives out a run of invalid bytes, but for tokens at its end that may yet become a character.
    fn release_invalid(&mut self, tokenizer: &Tokenizer) -> String {
        let mut bytes = Vec::new();
        let mut starts = Vec::new();
        for &id in &self.window[self.num_context..] {
            starts.push(bytes.len());
            bytes.extend(tokenizer.token_bytes(id));
        }
        let certain = bytes.len() - incomplete_len(&bytes);
        // The token in which the incomplete character begins is held, unless it is the first.
        let num_out = starts.iter().rposition(|&start| start <= certain).unwrap_or(0);
        let num_out = if certain == bytes.len() || num_out == 0 { starts.len() } else { num_out };
        let end = self.num_context + num_out;
        let text = self.added_text(tokenizer, end);
        self.release(end);
        text
    }
}

/// How many bytes at the end of `bytes` are the beginning of a character that is not complete.
fn incomplete_len(bytes: &[u8]) -> usize {
    let last = &bytes[bytes.len().saturating_sub(3)..];
    let begins = |from: &usize| {
        std::str::from_utf8(&last[*from..]).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
    };
    (0..last.len()).find(begins).map_or(0, |from| last.len() - from)
}
