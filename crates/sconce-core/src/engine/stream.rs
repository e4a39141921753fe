//! [`TokenStream`]: how the engine answers one request.

use std::future::poll_fn;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};

use tokio::sync::mpsc::UnboundedReceiver;

use super::Inbox;
use super::output::{GenerationOutput, StreamEvent};
use super::running::SnapshotGate;
use crate::error::{Error, Result};
use crate::text::{AnswerReader, Marks};

/// What is known of a request's text before it runs.
#[derive(Debug, Default)]
pub(super) struct PromptInfo {
    /// The prompt's tokens.
    pub(super) token_ids: Vec<u32>,
    /// The prompt, where it was given as text.
    pub(super) text: Option<String>,
    /// The tokens that are expected to follow, where the caller has said so.
    pub(super) prediction: Option<Vec<u32>>,
    /// Reads an answer from its beginning.
    pub(super) answer: AnswerReader,
    /// Tokens that come in the text as a character of their own.
    pub(super) marks: Marks,
}

/// Answers to one request. Dropping it cancels the request: its KV blocks are free on the next step.
#[derive(Debug)]
pub struct TokenStream {
    events: UnboundedReceiver<Result<StreamEvent>>,
    prompt: Arc<PromptInfo>,
    gate: Arc<SnapshotGate>,
    num_sequences: usize,
    is_done: bool,
    /// The engine runs for as long as it has one.
    inbox: Option<mpsc::Sender<Inbox>>,
}

impl TokenStream {
    pub(super) fn new(
        events: UnboundedReceiver<Result<StreamEvent>>,
        prompt: PromptInfo,
        num_sequences: usize,
    ) -> Self {
        Self { events, prompt: Arc::new(prompt), gate: Arc::default(), num_sequences, is_done: false, inbox: None }
    }

    /// Keeps the engine running until the answer is there.
    pub(super) fn keeping(self, inbox: mpsc::Sender<Inbox>) -> Self {
        Self { inbox: Some(inbox), ..self }
    }

    pub(super) fn prompt(&self) -> Arc<PromptInfo> {
        Arc::clone(&self.prompt)
    }

    pub(super) fn gate(&self) -> Arc<SnapshotGate> {
        Arc::clone(&self.gate)
    }

    /// Asks for no [`Best`](StreamEvent::Best) but the last one, the answer.
    pub fn skip_snapshots(&self) {
        self.gate.close();
    }

    /// The prompt's token ids, after truncation.
    pub fn prompt_token_ids(&self) -> &[u32] {
        &self.prompt.token_ids
    }

    /// The prompt as text, when it was given as text or rendered from a conversation.
    pub fn prompt_text(&self) -> Option<&str> {
        self.prompt.text.as_deref()
    }

    /// What tells reasoning and answer apart in each sequence, from its beginning. Of answers to prompts that are no conversation
    /// everything is answer.
    pub fn answer_reader(&self) -> &AnswerReader {
        &self.prompt.answer
    }

    /// Number of sequences.
    pub fn num_sequences(&self) -> usize {
        self.num_sequences
    }

    /// The next event; `None` after `Done` or an error.
    pub async fn next(&mut self) -> Option<Result<StreamEvent>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The same for hand-written futures and bodies.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<StreamEvent>>> {
        if self.is_done {
            return Poll::Ready(None);
        }
        self.events.poll_recv(cx).map(|event| self.deliver(event))
    }

    /// The same, waiting on this thread. Panics inside an async runtime.
    pub fn blocking_next(&mut self) -> Option<Result<StreamEvent>> {
        if self.is_done {
            return None;
        }
        let event = self.events.blocking_recv();
        self.deliver(event)
    }

    /// Everything, at the end.
    pub async fn collect(mut self) -> Result<GenerationOutput> {
        self.skip_snapshots();
        let mut output = GenerationOutput::new(self.num_sequences);
        while let Some(event) = self.next().await {
            output.apply(event?);
        }
        Ok(output)
    }

    /// The same, waiting on this thread. Panics inside an async runtime.
    pub fn blocking_collect(mut self) -> Result<GenerationOutput> {
        self.skip_snapshots();
        let mut output = GenerationOutput::new(self.num_sequences);
        while let Some(event) = self.blocking_next() {
            output.apply(event?);
        }
        Ok(output)
    }

    /// The engine always ends with `Done` or an error: a channel that closes without is an engine that has ended.
    fn deliver(&mut self, event: Option<Result<StreamEvent>>) -> Option<Result<StreamEvent>> {
        let ended = || Err(Error::Unavailable { message: "the engine has stopped".into() });
        let event = event.unwrap_or_else(ended);
        self.is_done = matches!(event, Ok(StreamEvent::Done(_)) | Err(_));
        if self.is_done {
            self.inbox = None;
        }
        if matches!(event, Ok(StreamEvent::Best(_))) {
            self.gate.arrived();
        }
        Some(event)
    }
}
