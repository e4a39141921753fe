//! [`BeamSearch`]: which beams go on, which end, and when the search is over.
//!
//! A state machine without logits and without text: [`BeamCandidate`]s go in, a [`BeamStep`] comes out. The caller owns
//! what belongs to a beam (blocks, text, penalty counts) and moves it as the step says. The rules are those of
//! transformers' beam search. A step takes the best candidates of all beams by cumulative logprob,
//! [`BeamSearch::num_candidates`] of them. One that ends may finish only if it ranks among the first `width`; the best
//! `width` that do not end are the next beams. The best `width` finished ones are kept, by score: cumulative logprob /
//! length^length_penalty.
//!
//! Equals are ordered: of candidates the lowest (beam, token) is first, of hypotheses the one that finished first.

mod finished;
mod step;
mod token_tree;

use std::cmp::Ordering;

pub use step::{BeamCandidate, BeamHypothesis, BeamLimits, BeamSource, BeamStep, FinishKind, FinishedBeam, NextBeam};

use crate::config::{BeamLength, BeamParams, EarlyStopping};
use finished::{Finished, FinishedHypothesis};
use token_tree::{NodeId, TokenTree};

/// A beam search of one prompt.
#[derive(Debug, Clone)]
pub struct BeamSearch {
    params: BeamParams,
    limits: BeamLimits,
    /// Tokens that every running beam has generated.
    num_generated: usize,
    tokens: TokenTree,
    /// Best first; empty once the search is done.
    running: Vec<Beam>,
    finished: Finished,
    /// The candidates of a step, best first; kept to be allocated once.
    ranked: Vec<Ranked>,
    step: BeamStep,
}

/// A running beam.
#[derive(Debug, Clone, Copy)]
struct Beam {
    last: NodeId,
    cumulative_logprob: f64,
}

/// A candidate with the cumulative logprob that it would have.
#[derive(Debug, Clone, Copy)]
struct Ranked {
    parent: usize,
    token_id: u32,
    cumulative_logprob: f64,
}

impl Ranked {
    /// Best first, equals by (beam, token).
    fn order(&self, other: &Self) -> Ordering {
        let by_logprob = other.cumulative_logprob.total_cmp(&self.cumulative_logprob);
        by_logprob.then((self.parent, self.token_id).cmp(&(other.parent, other.token_id)))
    }
}

impl BeamSearch {
    /// A search that has one beam, the prompt. A width of 0 counts as 1.
    pub fn new(params: BeamParams, limits: BeamLimits) -> Self {
        let params = BeamParams { width: params.width.max(1), ..params };
        Self {
            params,
            limits,
            num_generated: 0,
            tokens: TokenTree::default(),
            running: vec![Beam { last: TokenTree::ROOT, cumulative_logprob: 0.0 }],
            finished: Finished::new(params.width),
            ranked: Vec::new(),
            step: BeamStep::default(),
        }
    }

    /// Candidates that a step looks at. As many of each beam's best tokens, or all where the vocabulary is smaller, are
    /// sure to hold them.
    ///
    /// However many of the best tokens are end tokens, this leaves `width` that are not. Stop texts have no such bound,
    /// so that they may leave fewer beams.
    pub fn num_candidates(&self) -> usize {
        self.params.width * (1 + self.limits.num_end_token_ids).max(2)
    }

    /// Beams that go on, 0 once the search is done.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Tokens that every running beam has generated.
    pub fn num_generated(&self) -> usize {
        self.num_generated
    }

    /// Whether the search is over: nothing runs any more.
    pub fn is_done(&self) -> bool {
        self.running.is_empty()
    }

    /// Takes every beam one token further.
    ///
    /// `candidates` are the best tokens of each running beam, in any order. Those whose logprob is NaN or infinite are
    /// never chosen; a beam whose candidates are all so is dropped, and if none at all is left, the beams end as they
    /// are. `ends` says whether a beam ends with a token; it is asked best first, and only about candidates whose
    /// answer matters. The last token that [`BeamLimits::max_tokens`] allows ends a beam whatever `ends` says.
    ///
    /// # Panics
    ///
    /// If a candidate's parent is not a running beam.
    pub fn step(
        &mut self,
        candidates: &[BeamCandidate],
        mut ends: impl FnMut(usize, u32) -> Option<FinishKind>,
    ) -> &BeamStep {
        self.step.clear();
        self.rank(candidates);
        let parents = std::mem::take(&mut self.running);
        if self.ranked.is_empty() {
            parents.iter().enumerate().for_each(|(parent, &beam)| self.finish(parent, None, beam, FinishKind::Length));
            self.step.is_done = true;
            return &self.step;
        }
        self.num_generated += 1;
        let is_last = self.num_generated >= self.limits.max_tokens;
        let width = self.params.width;
        for rank in 0..self.ranked.len() {
            let may_finish = rank < width;
            if !may_finish && (is_last || self.running.len() == width) {
                break;
            }
            let Ranked { parent, token_id, cumulative_logprob } = self.ranked[rank];
            let kind = ends(parent, token_id).or(is_last.then_some(FinishKind::Length));
            if kind.is_some() && !may_finish {
                continue;
            }
            let last = self.tokens.push(parents[parent].last, token_id);
            let beam = Beam { last, cumulative_logprob };
            if let Some(kind) = kind {
                self.finish(parent, Some(token_id), beam, kind);
            } else {
                self.running.push(beam);
                self.step.beams.push(NextBeam { parent, token_id });
            }
        }
        if self.is_decided() {
            self.running.clear();
            self.step.beams.clear();
        }
        self.step.is_done = self.running.is_empty();
        &self.step
    }

    /// The best `n` hypotheses, best first: while the search runs, running beams, scored at their present length, among
    /// finished ones. There may be fewer.
    pub fn best(&self, n: usize) -> Vec<BeamHypothesis> {
        let finished = self.finished.iter().map(|h| BeamHypothesis {
            source: BeamSource::Finished(h.slot),
            score: h.score,
            cumulative_logprob: h.cumulative_logprob,
            finish: Some(h.kind),
        });
        let running = self.running.iter().enumerate().map(|(idx, beam)| BeamHypothesis {
            source: BeamSource::Running(idx),
            score: self.score(beam.cumulative_logprob, self.scored_len(self.num_generated)),
            cumulative_logprob: beam.cumulative_logprob,
            finish: None,
        });
        let mut best: Vec<_> = finished.chain(running).collect();
        best.sort_by(|a, b| b.score.total_cmp(&a.score));
        best.truncate(n);
        best
    }

    /// The tokens that a beam or a hypothesis has generated; none if there is no such.
    pub fn token_ids(&self, source: BeamSource) -> Vec<u32> {
        let last = match source {
            BeamSource::Running(idx) => self.running.get(idx).map(|beam| beam.last),
            BeamSource::Finished(slot) => self.finished.iter().find(|h| h.slot == slot).map(|h| h.last),
        };
        last.map_or(Vec::new(), |last| self.tokens.path(last))
    }

    /// Fills `ranked`.
    fn rank(&mut self, candidates: &[BeamCandidate]) {
        let num_candidates = self.num_candidates();
        let running = &self.running;
        let possible = candidates.iter().filter(|candidate| candidate.logprob.is_finite());
        self.ranked.clear();
        self.ranked.extend(possible.map(|&BeamCandidate { parent, token_id, logprob }| {
            let cumulative_logprob = running[parent].cumulative_logprob + f64::from(logprob);
            Ranked { parent, token_id, cumulative_logprob }
        }));
        if num_candidates < self.ranked.len() {
            self.ranked.select_nth_unstable_by(num_candidates, Ranked::order);
            self.ranked.truncate(num_candidates);
        }
        self.ranked.sort_unstable_by(Ranked::order);
    }

    /// Offers a beam that ended to the finished hypotheses.
    fn finish(&mut self, parent: usize, token_id: Option<u32>, beam: Beam, kind: FinishKind) {
        let mut len = self.scored_len(self.num_generated);
        if kind == FinishKind::EndToken && self.params.length == BeamLength::PromptAndGenerated {
            len = len.saturating_sub(1);
        }
        let Beam { last, cumulative_logprob } = beam;
        let score = self.score(cumulative_logprob, len);
        let hypothesis = FinishedHypothesis { slot: 0, score, cumulative_logprob, last, kind };
        if let Some(slot) = self.finished.offer(hypothesis) {
            self.step.finished.push(FinishedBeam { parent, token_id, kind, slot });
        }
    }

    /// Whether the search is over though beams could go on.
    fn is_decided(&self) -> bool {
        let (Some(worst), Some(best)) = (self.finished.worst_if_full(), self.running.first()) else { return false };
        let best_len = match self.params.early_stopping {
            EarlyStopping::True => return true,
            EarlyStopping::Never if self.params.length_penalty > 0.0 => self.limits.max_tokens,
            EarlyStopping::Never | EarlyStopping::False => self.num_generated,
        };
        self.score(best.cumulative_logprob, self.scored_len(best_len)) <= worst.score
    }

    /// The length that counts of a beam with so many generated tokens and no end token.
    fn scored_len(&self, num_generated: usize) -> usize {
        match self.params.length {
            BeamLength::Generated => num_generated,
            BeamLength::PromptAndGenerated => self.limits.prompt_len.saturating_add(num_generated),
        }
    }

    /// Always finite, also where the power is not.
    fn score(&self, cumulative_logprob: f64, len: usize) -> f64 {
        if cumulative_logprob == 0.0 {
            return 0.0;
        }
        let divisor = (len.max(1) as f64).powf(f64::from(self.params.length_penalty));
        (cumulative_logprob / divisor).clamp(f64::MIN, f64::MAX)
    }
}

#[cfg(test)]
mod tests;
