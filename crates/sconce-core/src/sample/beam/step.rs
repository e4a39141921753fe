//! What goes into and comes out of a [`BeamSearch`](super::BeamSearch).

/// What is known before the search begins.
#[derive(Debug, Clone, Copy)]
pub struct BeamLimits {
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// Most tokens that a beam may generate, at least 1.
    pub max_tokens: usize,
    /// Different tokens that end a beam: the model's end tokens, unless they are ignored, and stop ids.
    pub num_end_token_ids: usize,
}

/// One token that may follow a beam.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BeamCandidate {
    /// The running beam.
    pub parent: usize,
    /// The token.
    pub token_id: u32,
    /// Of this token alone.
    pub logprob: f32,
}

/// How a hypothesis ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishKind {
    /// On an end token of the model.
    EndToken,
    /// On a stop id or a stop text of the request.
    Stop,
    /// On the last token that there was room for.
    Length,
}

/// What one step did. The beams that it speaks of as parents are those that ran before it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BeamStep {
    /// The beams that run now, best first. A parent that is named m times is forked m - 1 times; one that is not named
    /// is dropped.
    pub beams: Vec<NextBeam>,
    /// The hypotheses that finished and were good enough to be kept, in the order in which they are to be stored.
    pub finished: Vec<FinishedBeam>,
    /// Whether the search is over. Then `beams` is empty.
    pub is_done: bool,
}

impl BeamStep {
    pub(super) fn clear(&mut self) {
        self.beams.clear();
        self.finished.clear();
        self.is_done = false;
    }
}

/// A beam that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextBeam {
    /// The beam that it continues.
    pub parent: usize,
    /// The token that it adds.
    pub token_id: u32,
}

/// A hypothesis that has finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FinishedBeam {
    /// The beam that it continues.
    pub parent: usize,
    /// The token that it adds. `None`: none could follow, the beam ended as it was.
    pub token_id: Option<u32>,
    /// How it ended.
    pub kind: FinishKind,
    /// Which of `width` places it takes; what was there before, also in this step, is no longer among the best.
    pub slot: usize,
}

/// Where a hypothesis stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BeamSource {
    /// Among the running beams, at this index.
    Running(usize),
    /// Among the finished, in this slot.
    Finished(usize),
}

/// One of the best hypotheses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BeamHypothesis {
    /// Where it stands.
    pub source: BeamSource,
    /// Cumulative logprob / length^length_penalty.
    pub score: f64,
    /// Sum of its tokens' logprobs.
    pub cumulative_logprob: f64,
    /// How it ended; `None` while it runs.
    pub finish: Option<FinishKind>,
}
