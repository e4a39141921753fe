//! [`Detokenizer`]: tokens to text, one at a time, never half a character.

use crate::text::Tokenizer;

/// Tokens to text, one at a time.
pub struct Detokenizer {}

impl Detokenizer {
    /// `prompt_ids`: tokens that stand before the first one pushed (their last few give it its context).
    pub fn new(prompt_ids: &[u32], skip_special_tokens: bool, spaces_between_special_tokens: bool) -> Self {
        todo!()
    }
    /// Adds one token and returns the text that became certain: whole characters only, never taken back.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        todo!()
    }
    /// Text still held back, at the end of a sequence.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> String {
        todo!()
    }
}
