//! The results of `kernels/sample.cu`, a row's `struct Head` and its lists, as [`Sampled`] tokens.
//!
//! Logarithms are taken here, of the exact sums that the kernels give: logprobs are the CPU's, bit for bit.

use std::collections::VecDeque;

use super::encode::{HEAD_LEN, Lists, reports_unedited};
use crate::config::LogprobsMode;
use crate::sample::{LogitsProcessor, Logprob, SampleKind, Sampled, Softmax, TokenLogprobs};

/// How a row's results are to be read: what has to be known of a [`SampleKind`] when the request may be gone.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reading {
    /// A token, with a report or without.
    Token {
        has_report: bool,
        /// Of the view that is reported on.
        temperature: f32,
    },
    /// The report on a token of the prompt.
    Prompt { chosen: u32 },
    /// What can follow a beam.
    Beam(BeamReading),
}

/// The same of beams.
#[derive(Debug, Clone, Copy)]
pub(super) struct BeamReading {
    k: usize,
    lists: Lists,
    /// Tokens of each candidate's report, if there is one.
    num_top: Option<usize>,
    /// Whether candidates come from the logits as they were.
    is_neutral: bool,
    /// Whether they do not, and reports are of the logits as they were.
    reports_unedited: bool,
}

impl Reading {
    pub(super) fn of(kind: &SampleKind<'_>) -> Self {
        match *kind {
            SampleKind::Token(input) => {
                let params = input.params;
                let is_raw = params.logprobs_mode == LogprobsMode::Raw || params.is_greedy();
                let temperature = if is_raw { 1.0 } else { params.temperature };
                Self::Token { has_report: params.logprobs.is_some(), temperature }
            }
            SampleKind::PromptLogprobs { chosen, .. } => Self::Prompt { chosen },
            SampleKind::BeamCandidates { input, k } => Self::Beam(BeamReading {
                k,
                lists: Lists::of(kind),
                num_top: input.params.logprobs,
                is_neutral: LogitsProcessor::new(&input).is_neutral(),
                reports_unedited: reports_unedited(&input),
            }),
        }
    }
}

/// The kernels' `struct Head`.
struct Head {
    token_id: u32,
    logit: f32,
    rank: usize,
    num_listed: usize,
    num_raw_listed: usize,
    is_unedited: bool,
    max: f32,
    mass: u64,
    raw_max: f32,
    raw_mass: u64,
}

impl Head {
    fn new(words: &[u32]) -> Self {
        let mass = |at: usize| u64::from(words[at]) | u64::from(words[at + 1]) << 32;
        Self {
            token_id: words[0],
            logit: f32::from_bits(words[1]),
            rank: words[2] as usize,
            num_listed: words[3] as usize,
            num_raw_listed: words[4] as usize,
            is_unedited: words[5] != 0,
            max: f32::from_bits(words[6]),
            mass: mass(7),
            raw_max: f32::from_bits(words[9]),
            raw_mass: mass(10),
        }
    }
}

/// Adds to `out` what the results `words` of a row say.
pub(super) fn decode(out: &mut VecDeque<Sampled>, reading: &Reading, words: &[u32]) {
    let head = Head::new(words);
    let listed = pairs(&words[HEAD_LEN..], head.num_listed);
    match *reading {
        Reading::Token { has_report, temperature } => {
            let temperature = if head.is_unedited { 1.0 } else { temperature };
            let softmax = Softmax::of_mass(head.max, temperature, head.mass);
            if has_report {
                out.push_back(report(&head, listed, softmax).into());
            } else {
                let logprob = softmax.logprob(head.logit);
                out.push_back(Sampled { token_id: head.token_id, logprob, logprobs: None });
            }
        }
        Reading::Prompt { chosen } => {
            // An id that lies outside the row comes back shortened.
            let head = Head { token_id: chosen, ..head };
            out.push_back(report(&head, listed, Softmax::of_mass(head.max, 1.0, head.mass)).into());
        }
        Reading::Beam(beam) => {
            let raw_start = HEAD_LEN + 2 * beam.lists.num_listed;
            let raw_listed = pairs(&words[raw_start..], head.num_raw_listed);
            let reports = pairs(&words[raw_start + 2 * beam.lists.num_raw_listed..], beam.lists.num_reports);
            candidates(out, beam, &head, [listed, raw_listed, reports]);
        }
    }
}

/// The first `num` pairs of (token id, logit).
fn pairs(words: &[u32], num: usize) -> &[[u32; 2]] {
    &words.as_chunks::<2>().0[..num]
}

fn report(head: &Head, listed: &[[u32; 2]], softmax: Softmax) -> TokenLogprobs {
    let chosen = Logprob { token_id: head.token_id, logprob: softmax.logprob(head.logit), rank: head.rank };
    TokenLogprobs { chosen, top: logprobs(listed, softmax) }
}

fn logprobs(listed: &[[u32; 2]], softmax: Softmax) -> Vec<Logprob> {
    listed.iter().enumerate().map(|(idx, &pair)| logprob(pair, idx + 1, softmax)).collect()
}

fn logprob([token_id, logit]: [u32; 2], rank: usize, softmax: Softmax) -> Logprob {
    Logprob { token_id, logprob: softmax.logprob(f32::from_bits(logit)), rank }
}

/// Candidates from `listed`; `raw_listed` are the best of the logits as they were, `reports` what those say of each
/// candidate: (logit, rank).
fn candidates(
    out: &mut VecDeque<Sampled>,
    beam: BeamReading,
    head: &Head,
    [listed, raw_listed, reports]: [&[[u32; 2]]; 3],
) {
    let raw = Softmax::of_mass(head.raw_max, 1.0, head.raw_mass);
    let softmax = if beam.is_neutral { raw } else { Softmax::IDENTITY };
    let (top, top_softmax) = if beam.reports_unedited { (raw_listed, raw) } else { (listed, softmax) };
    for (idx, &pair) in listed.iter().take(beam.k).enumerate() {
        let candidate = logprob(pair, idx + 1, softmax);
        let (token_id, logprob_of_beam) = (candidate.token_id, candidate.logprob);
        let logprobs = beam.num_top.map(|num_top| {
            let chosen = match reports.get(idx) {
                Some(&[logit, rank]) => logprob([token_id, logit], rank as usize, raw),
                None => candidate,
            };
            TokenLogprobs { chosen, top: logprobs(&top[..num_top.min(top.len())], top_softmax) }
        });
        out.push_back(Sampled { token_id, logprob: logprob_of_beam, logprobs });
    }
}
