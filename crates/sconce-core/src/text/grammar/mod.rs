//! [`GrammarCompiler`] and [`GrammarMatcher`]: which tokens an answer can go on with, if it is to match a [`Grammar`].
//!
//! llguidance compiles grammars and keeps track of them. The tokens' bytes make a trie, which it walks beside its parser; a
//! token of control has no bytes that a grammar could ask for.

#[cfg(test)]
mod tests;
mod vocabulary;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::config::Grammar;
use crate::error::{Error, Result};
use crate::sample::TokenMask;
use crate::text::Tokenizer;

/// Grammars that are kept compiled: those that were asked for last.
const NUM_KEPT: usize = 32;
/// White space between JSON's tokens: enough to indent by, and not so much that a model could go on with it for ever.
const JSON_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,64}";

/// Compiles grammars for one vocabulary. Shared between threads.
pub struct GrammarCompiler {
    tokenizer: Arc<Tokenizer>,
    end_token_ids: Vec<u32>,
    /// Made for the first grammar: it takes a walk through the whole vocabulary.
    factory: OnceLock<std::result::Result<ParserFactory, String>>,
    /// Matchers that have seen nothing; the last one was asked for last.
    kept: Mutex<Vec<(Grammar, Matcher)>>,
}

impl GrammarCompiler {
    /// `end_token_ids`: tokens that end an answer, which come where the grammar is at an end.
    pub fn new(tokenizer: Arc<Tokenizer>, end_token_ids: Vec<u32>) -> Self {
        Self { tokenizer, end_token_ids, factory: OnceLock::new(), kept: Mutex::default() }
    }

    /// A matcher for the beginning of an answer. Errors: `InvalidRequest` at `grammar` says what is wrong with it.
    pub fn compile(&self, grammar: &Grammar) -> Result<GrammarMatcher> {
        if let Some(kept) = self.find(grammar) {
            return Ok(GrammarMatcher { inner: kept });
        }
        let compiled = Matcher::new(self.factory()?.create_parser(source(grammar)?));
        if let Some(error) = compiled.get_error() {
            return Err(invalid(&error));
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == NUM_KEPT {
            kept.remove(0);
        }
        // What a matcher learns by being used is not shared: nothing of one request harms another.
        kept.push((grammar.clone(), compiled.deep_clone()));
        Ok(GrammarMatcher { inner: compiled })
    }

    fn find(&self, grammar: &Grammar) -> Option<Matcher> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(known, _)| known == grammar)?;
        kept[at..].rotate_left(1);
        kept.last().map(|(_, matcher)| matcher.deep_clone())
    }

    fn factory(&self) -> Result<&ParserFactory> {
        if self.end_token_ids.is_empty() {
            return Err(invalid("needs a model with an end token, which this one does not have"));
        }
        let factory = self.factory.get_or_init(|| {
            let environment = vocabulary::environment(&self.tokenizer, &self.end_token_ids);
            let slices = SlicedBiasComputer::general_slices();
            let made = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices);
            let mut factory = made.map_err(|error| error.to_string())?;
            factory.quiet();
            factory.limits_mut().verbose_errors = false;
            Ok(factory)
        });
        factory.as_ref().map_err(|error| Error::internal(format!("the vocabulary cannot be had for grammars: {error}")))
    }
}

/// Where an answer is in its grammar. A clone goes on by itself.
#[derive(Clone)]
pub struct GrammarMatcher {
    inner: Matcher,
}

impl GrammarMatcher {
    /// The tokens that may come next: only tokens that end the answer where it is complete and nothing else can follow.
    pub fn allowed(&mut self) -> Result<TokenMask> {
        let mask = self.inner.compute_mask_or_eos().map_err(|error| invalid(&error.to_string()))?;
        Ok(TokenMask::from_words(mask.as_slice().to_vec()))
    }

    /// Takes the next token. An error where the grammar does not allow it; nothing more can be asked then.
    pub fn push(&mut self, token_id: u32) -> Result<()> {
        if self.inner.is_stopped() && !self.inner.is_error() {
            // After the end there are only more ends.
            return Ok(());
        }
        self.inner.consume_token(token_id).map_err(|error| invalid(&error.to_string()))
    }

    /// Takes tokens for as long as they are allowed, and returns how many those are.
    pub fn push_allowed(&mut self, token_ids: &[u32]) -> usize {
        self.inner.try_consume_tokens(token_ids).unwrap_or(0)
    }

    /// Tokens that have to come next, as far as they can be told.
    pub fn forced(&mut self) -> Vec<u32> {
        if self.inner.is_stopped() { Vec::new() } else { self.inner.compute_ff_tokens() }
    }
}

impl std::fmt::Debug for GrammarMatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarMatcher").field("state", &self.inner.stop_reason()).finish_non_exhaustive()
    }
}

/// A grammar as llguidance takes it.
fn source(grammar: &Grammar) -> Result<TopLevelGrammar> {
    let most = Grammar::MAX_BYTES;
    if grammar.num_bytes() > most {
        return Err(invalid(&format!("has {} bytes, more than {most}", grammar.num_bytes())));
    }
    Ok(match grammar {
        Grammar::JsonObject => json_schema(json!({"type": "object"})),
        Grammar::JsonSchema(schema) => match serde_json::from_str(schema) {
            Ok(schema @ Value::Object(_)) => json_schema(schema),
            Ok(_) => return Err(invalid("a JSON Schema must be an object")),
            Err(error) => return Err(invalid(&format!("the JSON Schema is not JSON: {error}"))),
        },
        Grammar::Regex(regex) => TopLevelGrammar::from_regex(regex),
        Grammar::Lark(source) if source.trim().is_empty() => return Err(invalid("must not be empty")),
        Grammar::Lark(source) => TopLevelGrammar::from_lark(source.clone()),
        Grammar::Choice(texts) if texts.is_empty() || texts.iter().any(String::is_empty) => {
            return Err(invalid("needs at least one text, and none of them empty"));
        }
        Grammar::Choice(texts) => {
            let quoted: Vec<String> = texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
            TopLevelGrammar::from_lark(format!("start: {}", quoted.join(" | ")))
        }
    })
}

fn json_schema(mut schema: Value) -> TopLevelGrammar {
    if let Value::Object(members) = &mut schema {
        members.entry("x-guidance").or_insert_with(|| json!({"whitespace_pattern": JSON_SPACE}));
    }
    TopLevelGrammar::from_grammar(GrammarWithLexer::from_json_schema(schema))
}

fn invalid(message: &str) -> Error {
    Error::invalid("grammar", format!("grammar: {}", shortened(message)))
}

/// llguidance's words, which may hold all of the grammar, without what is in the middle of long ones.
fn shortened(message: &str) -> String {
    const MOST: usize = 200;
    let message = message.trim_end_matches("<non-verbose/>").trim();
    let chars: Vec<char> = message.chars().collect();
    if chars.len() <= 2 * MOST {
        return message.to_owned();
    }
    let (begin, end) = (&chars[..MOST], &chars[chars.len() - MOST..]);
    format!("{} ... {}", String::from_iter(begin), String::from_iter(end))
}
