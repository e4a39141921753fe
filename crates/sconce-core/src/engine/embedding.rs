//! [`EmbeddingRequest`]: texts whose vectors are wanted; [`PendingEmbeddings`]: how the engine answers it.

use std::sync::mpsc;

use tokio::sync::oneshot;

use super::embedder::QueuedEmbeddings;
use super::handle::EngineHandle;
use super::request::Prompt;
use super::{Inbox, Pooling};
use crate::error::{Error, Result};

/// Texts whose vectors are wanted. What the text of a query begins with, such as an instruction, is the caller's to add.
#[derive(Debug, Clone)]
pub struct EmbeddingRequest {
    /// The texts, one at least.
    pub inputs: Vec<Prompt>,
    /// The adapter that they go through, by name ([`EngineConfig::adapters`](crate::config::EngineConfig::adapters)); `None`: the model as
    /// it is.
    pub adapter: Option<String>,
    /// Keep only so many first numbers of each vector, normalised anew, where the model's config says that it is trained for it
    /// (`is_matryoshka`, `matryoshka_dimensions`).
    pub dimensions: Option<usize>,
    /// Keep only so many last tokens of each text.
    pub truncate_prompt_tokens: Option<usize>,
    /// Whether special tokens such as BOS and EOS are added to texts, where the tokenizer adds them.
    pub add_special_tokens: bool,
}

impl EmbeddingRequest {
    /// A request for the vectors of `inputs`.
    pub fn new(inputs: Vec<Prompt>) -> Self {
        Self { inputs, adapter: None, dimensions: None, truncate_prompt_tokens: None, add_special_tokens: true }
    }

    /// The same of texts.
    pub fn texts<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Self {
        Self::new(texts.into_iter().map(|text| Prompt::Text(text.into())).collect())
    }

    /// The same request through an adapter.
    pub fn with_adapter(mut self, name: impl Into<String>) -> Self {
        self.adapter = Some(name.into());
        self
    }

    /// The same request for vectors of so many numbers.
    pub fn with_dimensions(mut self, dimensions: usize) -> Self {
        self.dimensions = Some(dimensions);
        self
    }
}

/// The answer to an [`EmbeddingRequest`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EmbeddingOutput {
    /// A vector for each input: the hidden state of its last token behind the final norm, divided by its Euclidean norm unless the
    /// model's files say otherwise. On a GPU the state's numbers have 16 bits.
    pub embeddings: Vec<Vec<f32>>,
    /// Tokens of all inputs.
    pub prompt_tokens: usize,
    /// Of these, tokens that were found in the prefix cache.
    pub cached_tokens: usize,
}

/// An answer that is being computed. Dropping it cancels the request: its KV blocks are free on the next step.
#[derive(Debug)]
pub struct PendingEmbeddings {
    reply: oneshot::Receiver<Result<EmbeddingOutput>>,
    /// The engine runs for as long as it has one.
    _inbox: mpsc::Sender<Inbox>,
}

impl PendingEmbeddings {
    /// The vectors, when all are there.
    pub async fn collect(self) -> Result<EmbeddingOutput> {
        self.reply.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// The same, waiting on this thread. Panics inside an async runtime.
    pub fn blocking_collect(self) -> Result<EmbeddingOutput> {
        self.reply.blocking_recv().unwrap_or_else(|_| Err(stopped()))
    }
}

/// The engine always replies: where nothing comes it has ended.
fn stopped() -> Error {
    Error::Unavailable { message: "the engine has stopped".into() }
}

impl EngineHandle {
    /// Tokenizes, validates and queues the inputs of a request for their vectors. Does not wait. Errors: `InvalidRequest` names the
    /// field: `input`, or `input[i]` where there are several; or `model`, whose vectors would be made in a way that is not supported.
    /// `Overloaded` when too many requests wait; `Unavailable` when the engine has stopped.
    pub fn embed(&self, request: EmbeddingRequest) -> Result<PendingEmbeddings> {
        let adapter = self.adapter_number(request.adapter.as_deref())?;
        let pooling = self.pooling()?;
        let len = pooling.len(self.info().config.hidden_size, request.dimensions)?;
        if request.inputs.is_empty() {
            return Err(Error::invalid("input", "input: must not be empty"));
        }
        let is_one = request.inputs.len() == 1;
        let (truncated_len, adds_special) = (request.truncate_prompt_tokens, request.add_special_tokens);
        let tokens = |(i, input)| {
            let of_input = |error| renamed(error, if is_one { "input".into() } else { format!("input[{i}]") });
            self.input_tokens(input, adds_special, truncated_len).map_err(of_input)
        };
        let inputs = request.inputs.into_iter().enumerate().map(tokens).collect::<Result<_>>()?;
        let (reply, receiver) = oneshot::channel();
        let queued = QueuedEmbeddings { inputs, adapter, pooling: pooling.clone(), len, reply };
        let inbox = self.send(Inbox::Embeddings(Box::new(queued)))?;
        Ok(PendingEmbeddings { reply: receiver, _inbox: inbox })
    }

    /// The tokens of an input, of which the whole context can be.
    fn input_tokens(&self, input: Prompt, adds_special: bool, truncated_len: Option<usize>) -> Result<Vec<u32>> {
        let token_ids = self.prompt_info(input, adds_special, truncated_len)?.token_ids;
        self.check_tokens("prompt", &token_ids)?;
        let (len, most) = (token_ids.len(), self.info().max_model_len);
        if len > most {
            let message = format!(
                "prompt: has {len} tokens, more than the context of {most}; shorten it, or set truncate_prompt_tokens"
            );
            return Err(Error::invalid("prompt", message));
        }
        Ok(token_ids)
    }

    /// How vectors are made. Errors: they cannot be made as the model's files say.
    fn pooling(&self) -> Result<&Pooling> {
        let refused = |reason: &String| {
            let message = format!("model: {} has embeddings that are not supported: {reason}", self.info().id);
            Error::invalid("model", message)
        };
        self.inner.pooling.as_ref().map_err(refused)
    }
}

/// The error about a prompt as one about the input that it is.
fn renamed(error: Error, name: String) -> Error {
    match error {
        Error::InvalidRequest { param, message } if param == "prompt" || param == "messages" => {
            let rest = message.strip_prefix(&*param).map_or_else(|| format!(": {message}"), str::to_owned);
            Error::invalid(name.clone(), name + &rest)
        }
        other => other,
    }
}
