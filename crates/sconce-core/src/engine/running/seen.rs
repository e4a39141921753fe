//! [`Seen`]: what a sequence's next token is chosen by, beside what its request knows; and [`Ahead`]: the same behind drafts.

use crate::sample::{TokenCounts, TokenMask};
use crate::text::GrammarMatcher;

/// What a sequence's next token is chosen by, beside what its request knows.
#[derive(Debug, Default)]
pub(in crate::engine) struct Seen {
    /// What has been seen, where that is not what the request has: where drafts are behind, and penalties make it matter.
    pub(super) counts: Option<TokenCounts>,
    /// The tokens that its grammar allows.
    pub(super) allowed: Option<TokenMask>,
    /// Whether nothing may come of it: its grammar forbids a draft that is behind, or cannot say what follows.
    pub(in crate::engine) is_void: bool,
}

/// What a sequence would be with some drafts behind. It shares nothing with it: what goes wrong behind a draft, which may itself be
/// wrong, harms nobody.
#[derive(Debug, Default)]
pub(in crate::engine) struct Ahead {
    /// Where there are penalties.
    pub(super) counts: Option<TokenCounts>,
    /// Where there is one, for as long as it goes on.
    pub(super) grammar: Option<GrammarMatcher>,
    pub(super) is_void: bool,
}

impl Ahead {
    /// Takes one more draft, and says what the token behind it is chosen by.
    pub(in crate::engine) fn push(&mut self, draft: u32) -> Seen {
        if let Some(counts) = &mut self.counts {
            counts.push(draft);
        }
        let mut allowed = None;
        if let Some(grammar) = &mut self.grammar {
            let is_taken = grammar.push_allowed(&[draft]) == 1;
            allowed = is_taken.then(|| grammar.allowed().ok()).flatten();
            if allowed.is_none() {
                (self.grammar, self.is_void) = (None, true);
            }
        }
        Seen { counts: self.counts.clone(), allowed, is_void: self.is_void }
    }
}
