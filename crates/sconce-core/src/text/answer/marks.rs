//! [`MARKS`]: tokens that say what the parts of an answer are, each with the character as which it comes in the text.
//!
//! Special tokens are no part of an answer's text, and text that merely spells one is not one. So a token that has to be seen comes as a
//! character of its own: a noncharacter, which no text has.

use std::borrow::Cow;
use std::sync::Arc;

use crate::text::Tokenizer;

pub(super) const CHANNEL: char = '\u{fdd0}';
pub(super) const MESSAGE: char = '\u{fdd1}';
pub(super) const START: char = '\u{fdd2}';
pub(super) const END: char = '\u{fdd3}';
pub(super) const CALL: char = '\u{fdd4}';
pub(super) const RETURN: char = '\u{fdd5}';
pub(super) const CONSTRAIN: char = '\u{fdd6}';

/// Every mark.
const MARKS: [(&str, char); 23] = [
    ("<|channel|>", CHANNEL),
    ("<|message|>", MESSAGE),
    ("<|start|>", START),
    ("<|end|>", END),
    ("<|call|>", CALL),
    ("<|return|>", RETURN),
    ("<|constrain|>", CONSTRAIN),
    ("<think>", '\u{fdd7}'),
    ("</think>", '\u{fdd8}'),
    ("[THINK]", '\u{fdd9}'),
    ("[/THINK]", '\u{fdda}'),
    ("[TOOL_CALLS]", '\u{fddb}'),
    ("[ARGS]", '\u{fddc}'),
    ("[CALL_ID]", '\u{fddd}'),
    ("<｜tool▁calls▁begin｜>", '\u{fdde}'),
    ("<｜tool▁calls▁end｜>", '\u{fddf}'),
    ("<｜tool▁call▁begin｜>", '\u{fde0}'),
    ("<｜tool▁call▁end｜>", '\u{fde1}'),
    ("<｜tool▁sep｜>", '\u{fde2}'),
    ("<|tool_call_start|>", '\u{fde3}'),
    ("<|tool_call_end|>", '\u{fde4}'),
    ("<tool_call>", '\u{fde5}'),
    ("</tool_call>", '\u{fde6}'),
];

/// The marks of the channels, which are tokens of every vocabulary that has channels.
pub(super) const OF_CHANNELS: [&str; 7] =
    ["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|call|>", "<|return|>", "<|constrain|>"];

/// Tokens, and the characters as which they come in a text.
pub type Marks = Arc<[(u32, char)]>;

/// The character of a mark.
pub(super) fn sign(mark: &str) -> Option<char> {
    MARKS.iter().find(|(spelling, _)| *spelling == mark).map(|&(_, sign)| sign)
}

/// Whether a character stands for a mark.
pub(super) fn is_sign(c: char) -> bool {
    MARKS.iter().any(|&(_, sign)| sign == c)
}

/// Those of `spellings` that are tokens, special ones, of a vocabulary.
pub(in crate::text) fn special(spellings: &[&str], tokenizer: &Tokenizer) -> Vec<(u32, char)> {
    found(spellings, tokenizer).filter(|&(id, _)| tokenizer.is_special(id)).collect()
}

/// Those of `spellings` that are tokens of a vocabulary.
pub(super) fn found(spellings: &[&str], tokenizer: &Tokenizer) -> impl Iterator<Item = (u32, char)> {
    spellings.iter().filter_map(|mark| Some((tokenizer.token_to_id(mark)?, sign(mark)?)))
}

/// The text with marks as they are spelled.
pub(in crate::text) fn spelled(text: &str) -> Cow<'_, str> {
    if !text.contains(is_sign) {
        return text.into();
    }
    MARKS.iter().fold(text.to_owned(), |text, &(mark, sign)| text.replace(sign, mark)).into()
}

/// The text with marks that are spelled in it as what they stand for.
pub(super) fn signed(text: &str, spellings: &[&str]) -> String {
    spellings.iter().fold(text.to_owned(), |text, mark| match sign(mark) {
        Some(sign) => text.replace(mark, sign.encode_utf8(&mut [0; 4])),
        None => text,
    })
}

/// What tokens that are no marks say, which no mark can be taken from: U+FFFD stands for a character that is a mark's.
pub(in crate::text) fn unmarked(text: String) -> String {
    if text.contains(is_sign) { text.replace(is_sign, "\u{fffd}") } else { text }
}

/// The text without marks.
pub(super) fn without(text: &str) -> String {
    text.chars().filter(|&c| !is_sign(c)).collect()
}
