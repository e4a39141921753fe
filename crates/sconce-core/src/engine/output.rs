//! What the engine sends back: [`TokenEvent`]s while it runs, a [`GenerationOutput`] at the end.

use crate::sample::TokenLogprobs;

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token, a stop id or a stop text.
    Stop,
    /// max_tokens, or the end of the context.
    Length,
    /// Cancelled.
    Abort,
}

impl FinishReason {
    /// The word that the request API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
        }
    }
}

/// What a sequence stopped on, where the request named it. An end token of the model is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// One of `stop`.
    Text(String),
    /// One of `stop_token_ids`.
    Token(u32),
}

/// What one step added to one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenEvent {
    /// Which of the n sequences, from 0.
    pub index: usize,
    /// Tokens that were added.
    pub token_ids: Vec<u32>,
    /// Text that became certain: whole characters, and no possible beginning of a stop text.
    pub text: String,
    /// One entry an added token, if logprobs were asked for; else empty.
    pub logprobs: Vec<TokenLogprobs>,
    /// Present on the sequence's last event.
    pub finish: Option<Finish>,
}

/// How a sequence ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// On what, where the request named it.
    pub stop_reason: Option<StopReason>,
    /// Sum of the chosen tokens' logprobs; in a beam search, of those that it adds up: after penalties and bias.
    pub cumulative_logprob: f64,
    /// What a beam search ranks by: cumulative logprob / length^length_penalty. `None` without one.
    pub beam_score: Option<f64>,
}

/// Token counts of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of all sequences that are returned.
    pub completion_tokens: usize,
    /// Tokens of the prompt that were found in the prefix cache.
    pub cached_tokens: usize,
    /// What has become of the request's prediction, if it has one.
    pub prediction: Option<PredictionUsage>,
}

/// Tokens of a prediction that were computed as drafts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PredictionUsage {
    /// Those that became part of the answer.
    pub accepted_tokens: usize,
    /// Those that did not, and were computed in vain.
    pub rejected_tokens: usize,
}

/// What a [`TokenStream`](super::TokenStream) yields. The last one is `Done`.
#[derive(Debug, Clone, PartialEq)]
pub enum StreamEvent {
    /// Log-probabilities of the prompt; `None` for its first token. Sent once, before any token, if asked for.
    PromptLogprobs(Vec<Option<TokenLogprobs>>),
    /// A sequence grew or ended.
    Token(TokenEvent),
    /// In place of `Token` where more is generated than returned, with best_of above n and in a beam search: the best n
    /// as they stand, best first, in place of all that were sent before. The last one before `Done` is the answer.
    Best(Vec<CompletionOutput>),
    /// Every sequence has ended.
    Done(Usage),
}

/// One finished (or growing) sequence.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CompletionOutput {
    /// Which of the n sequences, from 0.
    pub index: usize,
    /// The text, without the prompt.
    pub text: String,
    /// The tokens, the one that ended it among them.
    pub token_ids: Vec<u32>,
    /// One entry a token, if asked for; else empty.
    pub logprobs: Vec<TokenLogprobs>,
    /// How it ended; `None` while it grows.
    pub finish: Option<Finish>,
}

impl CompletionOutput {
    /// Adds what an event tells of this sequence.
    pub fn push(&mut self, event: TokenEvent) {
        self.text.push_str(&event.text);
        self.token_ids.extend(event.token_ids);
        self.logprobs.extend(event.logprobs);
        self.finish = event.finish.or(self.finish.take());
    }

    /// What it was ranked by.
    fn score(&self) -> f64 {
        self.finish.as_ref().map_or(f64::NEG_INFINITY, |f| f.beam_score.unwrap_or(f.cumulative_logprob))
    }
}

impl From<CompletionOutput> for TokenEvent {
    /// The event that adds all of a sequence.
    fn from(output: CompletionOutput) -> Self {
        let CompletionOutput { index, text, token_ids, logprobs, finish } = output;
        Self { index, token_ids, text, logprobs, finish }
    }
}

/// The answer to one request.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GenerationOutput {
    /// Log-probabilities of the prompt, if asked for.
    pub prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
    /// The sequences; in order of their index while they grow, best first (by beam score or cumulative logprob) once all
    /// have ended. A beam search of few possible continuations can find fewer than n.
    pub outputs: Vec<CompletionOutput>,
    /// Token counts; zero until the end.
    pub usage: Usage,
}

impl GenerationOutput {
    /// An answer of `n` empty sequences, to be grown by [`GenerationOutput::apply`].
    pub fn new(n: usize) -> Self {
        let outputs = (0..n).map(|index| CompletionOutput { index, ..Default::default() }).collect();
        Self { prompt_logprobs: None, outputs, usage: Usage::default() }
    }

    /// Adds one event. `Done` sorts the sequences best first; equals keep the order of their index.
    pub fn apply(&mut self, event: StreamEvent) {
        match event {
            StreamEvent::PromptLogprobs(logprobs) => self.prompt_logprobs = Some(logprobs),
            StreamEvent::Token(event) => self.outputs[event.index].push(event),
            StreamEvent::Best(outputs) => self.outputs = outputs,
            StreamEvent::Done(usage) => {
                self.usage = usage;
                self.outputs.sort_by(|a, b| b.score().total_cmp(&a.score()));
            }
        }
    }
}
