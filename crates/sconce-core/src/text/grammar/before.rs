//! [`Before`]: what comes before an answer that has to match a grammar: its reasoning, which is free.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::Matcher;

use super::{allowed, push};
use crate::error::Result;
use crate::sample::TokenMask;
use crate::text::{AnswerReader, Place, Section, Tokenizer};

/// Of each text with which a mark ends the tokens that begin with it and go on with more than white space. They are looked for once: it
/// takes a walk through the whole vocabulary.
#[derive(Default)]
pub(super) struct Endings {
    found: Mutex<HashMap<&'static str, Arc<[u32]>>>,
}

impl Endings {
    fn beyond(&self, rest: &'static str, tokenizer: &Tokenizer) -> Arc<[u32]> {
        let goes_on = |id: &u32| {
            let bytes = tokenizer.token_bytes(*id);
            bytes.strip_prefix(rest.as_bytes()).is_some_and(|behind| !behind.trim_ascii().is_empty())
        };
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let ids = || (0..tokenizer.vocab_size() as u32).filter(goes_on).collect();
        Arc::clone(found.entry(rest).or_insert_with(ids))
    }
}

/// What comes before an answer, until it begins.
#[derive(Clone)]
pub(super) struct Before {
    tokenizer: Arc<Tokenizer>,
    end_token_ids: Arc<[u32]>,
    endings: Arc<Endings>,
    reader: AnswerReader,
    /// The grammar's matcher as it was. The one in use follows along for as long as it is not known whether there is reasoning.
    fresh: Matcher,
    /// Whether that has taken everything so far.
    takes_all: bool,
}

impl Before {
    pub(super) fn new(
        tokenizer: &Arc<Tokenizer>,
        end_token_ids: &[u32],
        endings: &Arc<Endings>,
        reader: AnswerReader,
        matcher: &Matcher,
    ) -> Self {
        Self {
            tokenizer: Arc::clone(tokenizer),
            end_token_ids: end_token_ids.into(),
            endings: Arc::clone(endings),
            reader,
            fresh: matcher.deep_clone(),
            takes_all: true,
        }
    }

    /// The tokens that may come next. Reasoning is not the end, and what ends it does not begin the answer: that would have to match
    /// before it is looked at.
    pub(super) fn allowed(&self, matcher: &mut Matcher) -> Result<TokenMask> {
        let tokenizer = &self.tokenizer;
        if self.reader.place() == Place::Undecided {
            let opening = TokenMask::from_ids(self.reader.opening_ids(tokenizer));
            return Ok(if self.takes_all { allowed(matcher)?.or(&opening) } else { opening });
        }
        let num_tokens = tokenizer.vocab_size();
        let ends = self.end_token_ids.iter().copied();
        let Some(rest) = self.reader.rest_of_close() else { return Ok(TokenMask::all_but(num_tokens, ends)) };
        let beyond = self.endings.beyond(rest, tokenizer);
        Ok(TokenMask::all_but(num_tokens, ends.chain(beyond.iter().copied())))
    }

    /// Takes the next token, and says what follows.
    pub(super) fn push(&mut self, matcher: &mut Matcher, token_id: u32) -> Result<Place> {
        let was = self.reader.place();
        let sections = self.reader.push_token(&self.tokenizer, token_id);
        let is = self.reader.place();
        match (was, is) {
            (Place::Undecided, Place::Undecided) => {
                self.takes_all = self.takes_all && matcher.try_consume_tokens(&[token_id]).is_ok_and(|num| num == 1);
            }
            (Place::Undecided, Place::Answer) => push(matcher, token_id)?,
            (Place::Undecided, Place::Before) => *matcher = self.fresh.deep_clone(),
            (_, Place::Answer) => {
                // What is not whitespace comes where the model has no number for anything that is allowed.
                let text: String = sections.iter().filter_map(content).collect();
                for id in self.tokenizer.encode(text.trim_start(), false)? {
                    push(matcher, id)?;
                }
            }
            _ => {}
        }
        Ok(is)
    }
}

fn content(section: &Section) -> Option<&str> {
    match section {
        Section::Content(text) => Some(text),
        Section::Reasoning(_) | Section::Call(_) => None,
    }
}
