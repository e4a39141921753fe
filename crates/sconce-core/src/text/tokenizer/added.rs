//! [`AddedTokens`]: the tokens that are searched for in a text before the rest of it is split, and among them
//! [`ControlTokens`]: those that steer the model, which users' text must not become.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, Hasher};

use tokenizers::models::wordlevel::WordLevel;
use tokenizers::{AddedToken, AddedVocabulary, NormalizerWrapper};

/// The added tokens of a tokenizer, by id.
pub(super) struct AddedTokens {
    by_id: HashMap<u32, AddedToken>,
    vocabulary: AddedVocabulary,
    control: ControlTokens,
}

impl AddedTokens {
    /// `named`: tokens that have a role (`bos_token`, ...); they are control tokens even if they are not special.
    pub(super) fn new(
        tokens: Vec<(u32, AddedToken)>,
        named: &BTreeMap<String, String>,
        normalizer: Option<&NormalizerWrapper>,
    ) -> tokenizers::Result<Self> {
        let is_control = |token: &AddedToken| {
            token.special || named.values().any(|name| *name == token.content) || looks_like_control(&token.content)
        };
        let control = ControlTokens::new(&tokens, is_control, normalizer)?;
        let vocabulary = vocabulary(&tokens, normalizer)?;
        Ok(Self { by_id: tokens.into_iter().collect(), vocabulary, control })
    }

    pub(super) fn get(&self, id: u32) -> Option<&AddedToken> {
        self.by_id.get(&id)
    }

    /// All of them, for the tokenizers library.
    pub(super) fn vocabulary(&self) -> AddedVocabulary {
        self.vocabulary.clone()
    }

    pub(super) fn control(&self) -> &ControlTokens {
        &self.control
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &AddedToken> {
        self.by_id.values()
    }
}

/// Marks of a sentence or a turn that some files do not flag as special (Phi-3's `</s>`).
fn looks_like_control(content: &str) -> bool {
    matches!(content, "<s>" | "</s>") || (content.len() > 4 && content.starts_with("<|") && content.ends_with("|>"))
}

/// The library's table of `tokens`. It gives a new token the next free id; asked through a model that knows the ids,
/// it keeps those of the file.
fn vocabulary(
    tokens: &[(u32, AddedToken)],
    normalizer: Option<&NormalizerWrapper>,
) -> tokenizers::Result<AddedVocabulary> {
    let ids = tokens.iter().map(|(id, token)| (token.content.clone(), *id)).collect();
    let model = WordLevel::builder().vocab(ids).build()?;
    let mut vocabulary = AddedVocabulary::new();
    vocabulary.add_tokens(tokens.iter().map(|(_, token)| token.clone()), &model, normalizer)?;
    Ok(vocabulary)
}

/// The tokens that steer the model: special ones, those with a role, and those that look it. A word of a vocabulary
/// that merely is an added token (runs of spaces, `<table>`) is not among them.
///
/// Each has a second, *sealed* name that nobody outside can know. A text in which the control tokens that count are
/// written by their sealed names is tokenized with the table of sealed names, so every other occurrence of a control
/// token's spelling is plain text, and all of the text is still tokenized in one go, in its place.
pub(in crate::text) struct ControlTokens {
    /// Spellings in the order of their bytes, with their sealed names.
    spellings: Vec<(String, String)>,
    sealed: AddedVocabulary,
    any_normalized: bool,
}

impl ControlTokens {
    fn new(
        tokens: &[(u32, AddedToken)],
        is_control: impl Fn(&AddedToken) -> bool,
        normalizer: Option<&NormalizerWrapper>,
    ) -> tokenizers::Result<Self> {
        // Keyed with the system's randomness, so a user cannot write a sealed name.
        let secret = RandomState::new().build_hasher().finish();
        let mut spellings = Vec::new();
        let mut any_normalized = false;
        let mut sealed = Vec::with_capacity(tokens.len());
        for (id, token) in tokens {
            let mut token = token.clone();
            if is_control(&token) && !token.content.is_empty() {
                let name = format!("\u{fdd0}{secret:016x}.{id}\u{fdd1}");
                any_normalized |= token.normalized;
                // What may stand beside the token was settled when the template wrote it.
                token.single_word = false;
                let spelling = std::mem::replace(&mut token.content, name.clone());
                spellings.push((spelling, name));
            }
            sealed.push((*id, token));
        }
        spellings.sort();
        Ok(Self { spellings, sealed: vocabulary(&sealed, normalizer)?, any_normalized })
    }

    /// The longest control token that `text` begins with: its spelling and its sealed name.
    fn at_start(&self, text: &str) -> Option<(&str, &str)> {
        let mut text = text.as_bytes();
        loop {
            // What `text` begins with is not after it in order, and of such spellings the longest comes last.
            let num_before = self.spellings.partition_point(|(spelling, _)| spelling.as_bytes() <= text);
            let (spelling, name) = self.spellings[..num_before].last()?;
            if text.starts_with(spelling.as_bytes()) {
                return Some((spelling, name));
            }
            // A shorter one is a beginning of this one as well.
            let num_common = spelling.bytes().zip(text).take_while(|(a, b)| a == *b).count();
            text = &text[..num_common];
        }
    }

    /// The control tokens in `text` with their offsets: leftmost first, longest where several begin.
    pub(in crate::text) fn find<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
        self.find_sealed(text).map(|(at, spelling, _)| (at, spelling))
    }

    fn find_sealed<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (usize, &'a str, &'a str)> {
        let mut end = 0;
        text.char_indices().filter_map(move |(at, _)| {
            if at < end {
                return None;
            }
            let (spelling, name) = self.at_start(&text[at..])?;
            end = at + spelling.len();
            Some((at, spelling, name))
        })
    }

    /// Whether one of the tokens is, less what is neither letter nor digit at its ends, `word`: `<|end|>` of `end`.
    pub(in crate::text) fn any_named(&self, word: &str) -> bool {
        self.spellings.iter().any(|(s, _)| s.trim_matches(|c: char| !c.is_alphanumeric()) == word)
    }

    /// The characters that control tokens begin with.
    pub(in crate::text) fn first_chars(&self) -> BTreeSet<char> {
        self.spellings.iter().filter_map(|(spelling, _)| spelling.chars().next()).collect()
    }

    /// Whether a control token is searched for in normalized text, so that it can be spelled in ways unforeseen.
    pub(super) fn any_normalized(&self) -> bool {
        self.any_normalized
    }

    /// `masked` with control tokens by their sealed names; the characters of the rest pass through `unmask`.
    pub(super) fn seal(&self, masked: &str, unmask: impl Fn(char) -> char) -> String {
        let mut out = String::with_capacity(masked.len() + 256);
        let mut done = 0;
        for (at, spelling, name) in self.find_sealed(masked) {
            out.extend(masked[done..at].chars().map(&unmask));
            out.push_str(name);
            done = at + spelling.len();
        }
        out.extend(masked[done..].chars().map(unmask));
        out
    }

    /// The table of sealed names, and of the added tokens that are not control tokens by their own.
    pub(super) fn vocabulary(&self) -> &AddedVocabulary {
        &self.sealed
    }
}
