//! [`Sampler`]: one row of logits in, one token out.

use std::collections::VecDeque;

use super::select::{Candidate, Selector};
use super::softmax::{RowDraw, Softmax};
use super::{
    LogitsProcessor, SampleInput, SampleKind, SampleResults, Sampled, TokenLogprobs, filters, logprobs, uniform,
};
use crate::config::{LogprobsMode, SamplingParams};

/// Samples rows of logits. It keeps nothing from one row to the next but memory to work in: once warm, a step
/// allocates nothing beside the reports that are asked for.
#[derive(Debug, Clone)]
pub struct Sampler {
    /// The edited copy of a row, where a request edits it, `[vocab_size]`.
    edited: Vec<f32>,
    selector: Selector,
    row_draw: RowDraw,
}

/// A chosen token, and the distributions that choosing it happened to compute.
struct Choice {
    token_id: u32,
    /// Of the whole row, at the request's temperature.
    whole: Option<Softmax>,
    /// Where filters were at work: the token among the selector's candidates, and their softmax.
    filtered: Option<(Candidate, Softmax)>,
}

impl Sampler {
    /// A sampler that has room for rows of `vocab_size`.
    pub fn new(vocab_size: usize) -> Self {
        Self {
            edited: Vec::with_capacity(vocab_size),
            selector: Selector::new(vocab_size),
            row_draw: RowDraw::new(vocab_size),
        }
    }

    /// Answers what is wanted of one row.
    pub fn answer(&mut self, logits: &[f32], kind: &SampleKind<'_>, out: &mut SampleResults) {
        out.push(|out| match *kind {
            SampleKind::Token(ref input) => out.push_back(self.sample(logits, input)),
            SampleKind::BeamCandidates { ref input, k } => self.beam_candidates(logits, input, k, out),
            SampleKind::PromptLogprobs { chosen, num_top } => {
                out.push_back(self.prompt_logprobs(logits, chosen, num_top).into());
            }
        });
    }

    /// Chooses the next token. `logits` stay as they are, so that several sequences can sample the same row; they are
    /// copied only where the request edits them.
    ///
    /// Greedy takes the greatest logit, the lowest id among equals. Otherwise one random number inverts the cumulative
    /// distribution of what the filters leave.
    ///
    /// Logits of NaN count as -inf, and +inf as the greatest finite number. Where the request's edits leave no token
    /// above -inf they are dropped, and so is the randomness: the greatest of the row's own logits is taken, id 0 if
    /// it has none, and the model's own logprobs are reported. So is a grammar's mask: its matcher does not take the
    /// token then, and the request fails.
    ///
    /// Under [`LogprobsMode::Processed`] tokens that filters removed are not reported, and a greedy request reports
    /// the distribution of the edited row at temperature 1.
    pub fn sample(&mut self, logits: &[f32], input: &SampleInput<'_>) -> Sampled {
        let Self { edited, selector, row_draw } = self;
        let params = input.params;
        let processor = LogitsProcessor::new(input);
        let mut row = logits;
        if !processor.is_neutral() {
            edited.clear();
            edited.extend_from_slice(logits);
            processor.apply(edited);
            row = edited;
        }
        let max = selector.scan(row);
        if max == f32::NEG_INFINITY {
            let max = selector.scan(logits);
            let token_id = selector.argmax(logits, max);
            return report(selector, logits, Softmax::of_row(logits, max, 1.0), token_id, params.logprobs);
        }
        let choice = if params.is_greedy() {
            Choice { token_id: selector.argmax(row, max), whole: None, filtered: None }
        } else {
            let number = uniform(input.seed, input.sequence_index, input.position, 0);
            choose(selector, row_draw, Row { logits: row, max }, params, number)
        };

        let token_id = choice.token_id;
        match (params.logprobs_mode, choice.filtered) {
            (LogprobsMode::Processed, Some((chosen, softmax))) => {
                let logprob = softmax.logprob(chosen.logit());
                let report = |num_top| logprobs::of_candidates(&mut selector.candidates, softmax, chosen, num_top);
                Sampled { token_id, logprob, logprobs: params.logprobs.map(report) }
            }
            (LogprobsMode::Processed, None) => {
                let temperature = if params.is_greedy() { 1.0 } else { params.temperature };
                let softmax = choice.whole.unwrap_or_else(|| Softmax::of_row(row, max, temperature));
                report(selector, row, softmax, token_id, params.logprobs)
            }
            (LogprobsMode::Raw, _) => {
                let is_raw = |softmax: &Softmax| processor.is_neutral() && softmax.is_untempered();
                let softmax = choice.whole.filter(is_raw).unwrap_or_else(|| {
                    let max = if processor.is_neutral() { max } else { selector.scan(logits) };
                    Softmax::of_row(logits, max, 1.0)
                });
                report(selector, logits, softmax, token_id, params.logprobs)
            }
        }
    }

    /// Adds to `out` the `k` best tokens to follow a beam, best first. There may be fewer.
    ///
    /// Their [`Sampled::logprob`] is what a beam search adds up: the model's own, edited as the request asks (in the
    /// order of transformers' beam search: what the edits leave is not normalized again). Temperature and filters have
    /// no part in it. Under [`LogprobsMode::Processed`] it is also what is reported.
    pub fn beam_candidates(&mut self, logits: &[f32], input: &SampleInput<'_>, k: usize, out: &mut VecDeque<Sampled>) {
        let Self { edited, selector, .. } = self;
        let raw = Softmax::of_row(logits, selector.scan(logits), 1.0);
        let processor = LogitsProcessor::new(input);
        // Logprobs have the order of logits: unless they are edited, only those of the best are computed.
        let (row, softmax) = if processor.is_neutral() {
            (logits, raw)
        } else {
            edited.clear();
            edited.extend(logits.iter().map(|&logit| raw.logprob(logit)));
            processor.apply(edited);
            (edited.as_slice(), Softmax::IDENTITY)
        };
        let begin = out.len();
        out.extend(selector.top(row, k).iter().map(|candidate| Sampled {
            token_id: candidate.token_id(),
            logprob: softmax.logprob(candidate.logit()),
            logprobs: None,
        }));
        if let Some(num_top) = input.params.logprobs {
            let is_raw = input.params.logprobs_mode == LogprobsMode::Raw;
            let is_own_order = !is_raw || processor.is_neutral();
            let (row, softmax) = if is_raw { (logits, raw) } else { (row, softmax) };
            let top = logprobs::top_of_row(selector, row, softmax, num_top);
            for (idx, sampled) in out.range_mut(begin..).enumerate() {
                let rank = is_own_order.then_some(idx + 1);
                let report = logprobs::of_token(row, softmax, sampled.token_id, rank, top.clone());
                sampled.logprobs = Some(report);
            }
        }
    }

    /// The report on a token of the prompt: `logits` are those of the position before it. It is always of the model's
    /// own distribution. A token outside the row has the logprob -inf.
    pub fn prompt_logprobs(&mut self, logits: &[f32], chosen: u32, num_top: usize) -> TokenLogprobs {
        let max = self.selector.scan(logits);
        logprobs::of_row(&mut self.selector, logits, Softmax::of_row(logits, max, 1.0), chosen, num_top)
    }
}

/// What is said of a token of a whole row.
fn report(
    selector: &mut Selector,
    row: &[f32],
    softmax: Softmax,
    token_id: u32,
    num_logprobs: Option<usize>,
) -> Sampled {
    match num_logprobs {
        Some(num_top) => {
            let logprobs = logprobs::of_row(selector, row, softmax, token_id, num_top);
            logprobs.into()
        }
        None => {
            let logit = row.get(token_id as usize).copied().unwrap_or(f32::NEG_INFINITY);
            Sampled { token_id, logprob: softmax.logprob(logit), logprobs: None }
        }
    }
}

/// A row to choose from and its greatest logit, which is finite.
#[derive(Clone, Copy)]
struct Row<'a> {
    logits: &'a [f32],
    max: f32,
}

/// Draws the token at `number`, in [0, 1), of what temperature, top-k, top-p and min-p leave of a row.
///
/// Temperature leaves the order of logits as it is, so that top-k goes first, on the few candidates that a selection
/// finds. Without top-k, a floor below which no token can pass the other filters takes its place.
fn choose(
    selector: &mut Selector,
    row_draw: &mut RowDraw,
    row: Row<'_>,
    params: &SamplingParams,
    number: f64,
) -> Choice {
    let Row { logits, max } = row;
    let SamplingParams { temperature, top_p, min_p, .. } = *params;
    let top_k = params.top_k.filter(|k| (1..logits.len()).contains(k));
    let mut whole = None;
    let total = if let Some(k) = top_k {
        selector.gather_at_least(logits, k);
        filters::keep_top_k(&mut selector.candidates, k);
        filters::weigh(&mut selector.candidates, max, temperature);
        filters::mass(&selector.candidates)
    } else {
        let total = row_draw.weigh(logits, max, temperature);
        whole = Some(Softmax::new(max, temperature, total));
        if top_p >= 1.0 && min_p <= 0.0 {
            let token_id = row_draw.draw(logits, max, temperature, number);
            let token_id = token_id.unwrap_or_else(|| selector.argmax(logits, max));
            return Choice { token_id, whole, filtered: None };
        }
        selector.gather(logits, filters::logit_floor(params, logits.len(), max, total));
        filters::weigh(&mut selector.candidates, max, temperature);
        total
    };
    let candidates = &mut selector.candidates;
    filters::keep_top_p(candidates, top_p, total);
    filters::keep_min_p(candidates, min_p);
    let total = filters::mass(candidates);
    let chosen = filters::draw(candidates, number, total);
    let softmax = Softmax::new(max, temperature, total);
    Choice { token_id: chosen.token_id(), whole, filtered: Some((chosen, softmax)) }
}
