//! [`Grown`]: an answer of which all that can be long is written as it comes.

use std::mem::take;

use sconce::{CompletionOutput, GenerationOutput, StreamEvent, TokenEvent};

/// What is written of a sequence as it grows. Copies share what has been written.
pub(super) trait Growing: Clone {
    /// Adds what an event tells of the sequence.
    fn push(&mut self, token: &TokenEvent);
}

/// An answer of which all that can be long is written as it comes.
pub(super) struct Grown<S> {
    /// The answer, without log-probabilities.
    pub output: GenerationOutput,
    /// What is written of each sequence, by its index.
    sequences: Vec<S>,
    /// What is written of one that has not begun.
    begun: S,
}

impl<S: Growing> Grown<S> {
    /// An answer of `n` sequences, of each of which `begun` is written.
    pub(super) fn new(n: usize, begun: S) -> Self {
        Self { output: GenerationOutput::new(n), sequences: vec![begun.clone(); n], begun }
    }

    /// How many sequences there are.
    pub(super) fn num_sequences(&self) -> usize {
        self.sequences.len()
    }

    /// Adds one event. What is written of prompts' log-probabilities is the caller's to say.
    pub(super) fn apply(&mut self, mut event: StreamEvent) {
        match &mut event {
            StreamEvent::Token(token) => {
                self.sequences[token.index].push(token);
                take(&mut token.logprobs);
            }
            StreamEvent::Best(outputs) => self.replace(outputs),
            StreamEvent::PromptLogprobs(_) => return,
            StreamEvent::Done(_) => {}
        }
        self.output.apply(event);
    }

    /// Writes the best so far. Most continue one of the best before, and tokens that begin alike have the same log-probabilities, to
    /// the bit: what is written of those stays.
    fn replace(&mut self, outputs: &mut [CompletionOutput]) {
        let before = take(&mut self.sequences);
        for output in outputs {
            let continued = |(old, written)| {
                let rest = rest_of(output, old)?;
                Some((old.token_ids.len(), rest, written))
            };
            let olds = self.output.outputs.iter().zip(&before).filter_map(continued);
            let (mut sequence, rest) = match olds.max_by_key(|(num_tokens, ..)| *num_tokens) {
                Some((_, rest, written)) => (written.clone(), rest),
                None => (self.begun.clone(), output.clone().into()),
            };
            sequence.push(&rest);
            output.logprobs = Vec::new();
            self.sequences.push(sequence);
        }
    }

    /// The sequences, and what is written of each.
    pub(super) fn sequences(&self) -> impl Iterator<Item = (&CompletionOutput, &S)> {
        self.output.outputs.iter().map(|output| (output, &self.sequences[output.index]))
    }
}

/// What `output` has beyond `old`, if it continues that.
fn rest_of(output: &CompletionOutput, old: &CompletionOutput) -> Option<TokenEvent> {
    let num_tokens = old.token_ids.len();
    let token_ids = output.token_ids.strip_prefix(old.token_ids.as_slice())?.to_vec();
    let text = output.text.strip_prefix(old.text.as_str())?.to_owned();
    let logprobs = output.logprobs.get(num_tokens..).unwrap_or_default().to_vec();
    Some(TokenEvent { index: output.index, token_ids, text, logprobs, finish: output.finish.clone() })
}
