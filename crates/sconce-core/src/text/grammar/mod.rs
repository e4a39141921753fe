//! [`GrammarCompiler`] and [`GrammarMatcher`]: which tokens an answer can go on with, if it is to match a [`Grammar`].
//!
//! llguidance compiles grammars and keeps track of them. The tokens' bytes make a trie, which it walks beside its parser; a
//! token of control has no bytes that a grammar could ask for.

mod before;
mod source;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Matcher, ParserFactory};

use crate::config::Grammar;
use crate::error::{Error, Result};
use crate::sample::TokenMask;
use crate::text::{AnswerReader, Place, Tokenizer};

use before::{Before, Endings};
pub(super) use source::JSON_SPACE;

/// Grammars that are kept compiled: those that were asked for last, and are not large.
const NUM_KEPT: usize = 32;
const MAX_KEPT_BYTES: usize = 16 << 10;
/// Stack of the thread that compiles: chains of rules, terminals or definitions take some 7 KB a level, and fit by the thousands into
/// [`Grammar::MAX_BYTES`]. It is touched only as far as it is used.
const STACK_BYTES: usize = 256 << 20;
/// What a step may take for a sequence's mask: some milliseconds.
const STEP_FUEL: u64 = 100_000;
/// States that a sequence's lexer may have, at one or two KB each.
const MAX_LEXER_STATES: usize = 50_000;

/// Compiles grammars for one vocabulary. Shared between threads.
pub struct GrammarCompiler {
    tokenizer: Arc<Tokenizer>,
    end_token_ids: Vec<u32>,
    /// Made for the first grammar: it takes a walk through the whole vocabulary.
    factory: OnceLock<std::result::Result<ParserFactory, String>>,
    compiling: Mutex<()>,
    endings: Arc<Endings>,
    /// Matchers that have seen nothing; the last one was asked for last.
    kept: Mutex<Vec<(Grammar, Matcher)>>,
}

impl GrammarCompiler {
    /// `end_token_ids`: tokens that end an answer, which come where the grammar is at an end.
    pub fn new(tokenizer: Arc<Tokenizer>, end_token_ids: Vec<u32>) -> Self {
        Self {
            tokenizer,
            end_token_ids,
            factory: OnceLock::new(),
            compiling: Mutex::default(),
            endings: Arc::default(),
            kept: Mutex::default(),
        }
    }

    /// A matcher for the beginning of an answer. Errors: `InvalidRequest` at `grammar` says what is wrong with it.
    pub fn compile(&self, grammar: &Grammar) -> Result<GrammarMatcher> {
        if let Some(kept) = self.find(grammar) {
            return Ok(GrammarMatcher { inner: kept, before: None });
        }
        let source = source::of(grammar)?;
        // One at a time: what compiling takes is not multiplied by who asks for it.
        let compiling = self.compiling.lock().unwrap_or_else(PoisonError::into_inner);
        let compiled = on_large_stack(|| Ok(Matcher::new(self.factory()?.create_parser(source))))?;
        drop(compiling);
        if let Some(error) = compiled.get_error() {
            return Err(invalid(&error));
        }
        if grammar.num_bytes() <= MAX_KEPT_BYTES {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == NUM_KEPT {
                kept.remove(0);
            }
            // What a matcher learns by being used is not shared: nothing of one request harms another.
            kept.push((grammar.clone(), compiled.deep_clone()));
        }
        Ok(GrammarMatcher { inner: compiled, before: None })
    }

    /// The same matcher of what comes behind an answer's reasoning, of which there need not be any. `reader` reads the answer from its
    /// beginning.
    pub fn behind_reasoning(&self, matcher: GrammarMatcher, reader: &AnswerReader) -> GrammarMatcher {
        if reader.place() == Place::Answer {
            return matcher;
        }
        let before = Before::new(&self.tokenizer, &self.end_token_ids, &self.endings, reader.clone(), &matcher.inner);
        GrammarMatcher { before: Some(Box::new(before)), ..matcher }
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
            let limits = factory.limits_mut();
            limits.verbose_errors = false;
            (limits.step_lexer_fuel, limits.max_lexer_states) = (STEP_FUEL, MAX_LEXER_STATES);
            Ok(factory)
        });
        factory.as_ref().map_err(|error| Error::internal(format!("the vocabulary cannot be had for grammars: {error}")))
    }
}

/// Runs what may recurse deeply. A panic in it is an error.
fn on_large_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let failed = |what: &str| Error::internal(format!("a grammar could not be compiled: {what}"));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("sconce-grammar".into()).stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, work).map_err(|error| failed(&error.to_string()))?;
        thread.join().unwrap_or_else(|_| Err(failed("a panic")))
    })
}

/// Where an answer is in its grammar. A clone goes on by itself, but that both learn of their grammar's lexer together.
#[derive(Clone)]
pub struct GrammarMatcher {
    inner: Matcher,
    /// What comes before the answer, until that begins.
    before: Option<Box<Before>>,
}

impl GrammarMatcher {
    /// A copy that shares nothing.
    pub fn apart(&self) -> Self {
        Self { inner: self.inner.deep_clone(), before: self.before.clone() }
    }

    /// The tokens that may come next: only tokens that end the answer where it is complete and nothing else can follow.
    pub fn allowed(&mut self) -> Result<TokenMask> {
        match &self.before {
            Some(before) => before.allowed(&mut self.inner),
            None => allowed(&mut self.inner),
        }
    }

    /// Takes the next token. An error where the grammar does not allow it; nothing more can be asked then.
    pub fn push(&mut self, token_id: u32) -> Result<()> {
        let Some(before) = &mut self.before else { return push(&mut self.inner, token_id) };
        if before.push(&mut self.inner, token_id)? == Place::Answer {
            self.before = None;
        }
        Ok(())
    }

    /// Why nothing more can be asked, if that is so.
    pub fn error(&self) -> Option<Error> {
        self.inner.get_error().map(|message| invalid(&message))
    }

    /// Takes tokens for as long as they are allowed, and returns how many those are.
    pub fn push_allowed(&mut self, token_ids: &[u32]) -> usize {
        if self.before.is_none() {
            return self.inner.try_consume_tokens(token_ids).unwrap_or(0);
        }
        let mut is_taken = |&&id: &&u32| self.allowed().is_ok_and(|mask| mask.allows(id)) && self.push(id).is_ok();
        token_ids.iter().take_while(|id| is_taken(id)).count()
    }

    /// Tokens that have to come next, as far as they can be told.
    pub fn forced(&mut self) -> Vec<u32> {
        if self.before.is_some() || self.inner.is_stopped() { Vec::new() } else { self.inner.compute_ff_tokens() }
    }
}

impl std::fmt::Debug for GrammarMatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarMatcher").field("state", &self.inner.stop_reason()).finish_non_exhaustive()
    }
}

fn allowed(matcher: &mut Matcher) -> Result<TokenMask> {
    let mask = matcher.compute_mask_or_eos().map_err(|error| invalid(&error.to_string()))?;
    Ok(TokenMask::from_words(mask.as_slice().to_vec()))
}

fn push(matcher: &mut Matcher, token_id: u32) -> Result<()> {
    if matcher.is_stopped() && !matcher.is_error() {
        // After the end there are only more ends.
        return Ok(());
    }
    matcher.consume_token(token_id).map_err(|error| invalid(&error.to_string()))
}

fn invalid(message: &str) -> Error {
    Error::invalid("grammar", format!("grammar: {}", shortened(message)))
}

/// llguidance's words, which may hold all of the grammar, without what is in the middle of long ones. Of a panic of its own they are not
/// for who sent the grammar.
fn shortened(message: &str) -> String {
    const MOST: usize = 200;
    let message = message.trim_end_matches("<non-verbose/>").trim();
    if message.contains("panic: ") {
        tracing::warn!("a grammar failed: {message}");
        return "is too large, or asks for what is not supported".into();
    }
    if message.contains("NoExtensionBias") {
        return "never ends: it refers to itself, and to nothing else".into();
    }
    let chars: Vec<char> = message.chars().collect();
    if chars.len() <= 2 * MOST {
        return message.to_owned();
    }
    let (begin, end) = (&chars[..MOST], &chars[chars.len() - MOST..]);
    format!("{} ... {}", String::from_iter(begin), String::from_iter(end))
}
