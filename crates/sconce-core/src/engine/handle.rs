//! [`EngineHandle`]: how callers reach the engine's thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::unbounded_channel;

use super::Inbox;
use super::pooling::Pooling;
use super::request::{GenerationRequest, Prompt};
use super::running::{Caller, QueuedRequest};
use super::status::{EngineStatus, ModelInfo};
use super::stream::{PromptInfo, TokenStream};
use crate::backend::OpProfile;
use crate::config::{Grammar, SamplingParams};
use crate::error::{Error, Result};
use crate::text::{AnswerForm, ChatTemplate, GrammarCompiler, GrammarMatcher, Tokenizer};

/// The caller's side of a running engine. Cheap to clone; the engine stops when the last one is gone, and the
/// last stream that is not at its end.
#[derive(Clone)]
pub struct EngineHandle {
    pub(super) inner: Arc<HandleInner>,
}

/// What the handles of one engine share.
pub(super) struct HandleInner {
    pub(super) inbox: mpsc::Sender<Inbox>,
    pub(super) info: ModelInfo,
    pub(super) status: Arc<EngineStatus>,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) chat_template: Option<ChatTemplate>,
    pub(super) answer_form: AnswerForm,
    pub(super) grammars: GrammarCompiler,
    /// How vectors are made, or why there are none.
    pub(super) pooling: Result<Pooling, String>,
    /// Most requests that run or wait.
    pub(super) max_requests: usize,
    /// Whether a sequence may have drafts.
    pub(super) makes_drafts: bool,
    pub(super) is_closed: AtomicBool,
    pub(super) thread: Mutex<Option<JoinHandle<()>>>,
    pub(super) profile: Option<Arc<OpProfile>>,
}

impl EngineHandle {
    pub(super) fn new(inner: HandleInner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// Renders, tokenizes, validates and queues a request. Does not wait. Errors: `InvalidRequest` names the field;
    /// `Overloaded` when too many requests wait; `Unavailable` when the engine has stopped.
    pub fn submit(&self, request: GenerationRequest) -> Result<TokenStream> {
        let inner = &*self.inner;
        self.check_head()?;
        let adapter = self.adapter_number(request.adapter.as_deref())?;
        let params = request.params;
        params.validate(inner.info.config.vocab_size)?;
        let param = if matches!(request.prompt, Prompt::Chat(_)) { "messages" } else { "prompt" };
        let mut prompt =
            self.prompt_info(request.prompt, request.add_special_tokens, request.truncate_prompt_tokens)?;
        self.check_prompt(param, &prompt.token_ids)?;
        self.check_min_tokens(&params, prompt.token_ids.len())?;
        prompt.prediction = request.prediction.map(|text| self.predicted_tokens(&text, &params)).transpose()?;
        prompt.marks = request.marks;
        let mut grammar = request.grammar.map(|grammar| self.compile(&grammar, &params)).transpose()?;
        if !request.binds_reasoning {
            grammar = grammar.map(|grammar| inner.grammars.behind_reasoning(grammar, &prompt.answer));
        }
        self.enqueue(prompt, params, adapter, grammar)
    }

    /// That there is a head, without which nothing can be generated.
    fn check_head(&self) -> Result<()> {
        let info = &self.inner.info;
        if info.has_head {
            return Ok(());
        }
        let message = format!(
            "model: {} has no head, as an embedder is saved ({}): it makes embeddings, and no text",
            info.id, info.config.architecture
        );
        Err(Error::invalid("model", message))
    }

    /// The number of an adapter, from 1 on; 0: none is named.
    pub(super) fn adapter_number(&self, name: Option<&str>) -> Result<u32> {
        let Some(name) = name else { return Ok(0) };
        let names: Vec<_> = self.inner.info.adapters.iter().map(|adapter| adapter.name.as_str()).collect();
        let unknown = || {
            let known = if names.is_empty() { "none".into() } else { names.join(", ") };
            Error::invalid("adapter", format!("adapter: there is no {name:?}; there are: {known}"))
        };
        names.iter().position(|other| *other == name).map(|at| at as u32 + 1).ok_or_else(unknown)
    }

    /// A request's grammar, ready for the first token.
    fn compile(&self, grammar: &Grammar, params: &SamplingParams) -> Result<GrammarMatcher> {
        if params.ignore_eos {
            let message = "ignore_eos: cannot be true beside a grammar, whose end is told by an end token";
            return Err(Error::invalid("ignore_eos", message));
        }
        self.inner.grammars.compile(grammar)
    }

    /// A prompt's tokens, of which the last `truncated_len` are kept where that is said.
    pub(super) fn prompt_info(
        &self,
        prompt: Prompt,
        add_special_tokens: bool,
        truncated_len: Option<usize>,
    ) -> Result<PromptInfo> {
        let mut prompt = self.tokenize(prompt, add_special_tokens, truncated_len.is_some())?;
        if let Some(len) = truncated_len {
            if len == 0 {
                return Err(Error::invalid("truncate_prompt_tokens", "truncate_prompt_tokens: must be at least 1"));
            }
            let num_dropped = prompt.token_ids.len().saturating_sub(len);
            if num_dropped > 0 {
                prompt.token_ids.drain(..num_dropped);
                // What is left is told from the tokens.
                prompt.text = None;
            }
        }
        Ok(prompt)
    }

    /// `is_cut`: only the end of a long one counts.
    fn tokenize(&self, prompt: Prompt, add_special_tokens: bool, is_cut: bool) -> Result<PromptInfo> {
        let tokenizer = &self.inner.tokenizer;
        let check_len = |param, text: &str| if is_cut { Ok(()) } else { self.check_text(param, text) };
        match prompt {
            Prompt::Tokens(token_ids) => Ok(PromptInfo { token_ids, ..PromptInfo::default() }),
            Prompt::Text(text) if text.is_empty() => Err(Error::invalid("prompt", "prompt: must not be empty")),
            Prompt::Text(text) => {
                check_len("prompt", &text)?;
                let token_ids = tokenizer.encode(&text, add_special_tokens)?;
                Ok(PromptInfo { token_ids, text: Some(text), ..PromptInfo::default() })
            }
            Prompt::Chat(chat) => {
                let no_template = || {
                    let id = &self.inner.info.id;
                    let message = format!("messages: model {id} has no chat template; send a formatted `prompt`");
                    Error::invalid("messages", message)
                };
                let rendered = self.chat_template().ok_or_else(no_template)?.render(&chat, tokenizer)?;
                check_len("messages", rendered.text())?;
                let token_ids = tokenizer.encode_chat(&rendered)?;
                let answer = self.answer_form().reader(&chat, rendered.text());
                Ok(PromptInfo { token_ids, text: Some(rendered.text().into()), answer, ..PromptInfo::default() })
            }
        }
    }

    /// Refuses at once what is far too long: tokens would take far more memory than the text until they are counted.
    fn check_text(&self, param: &'static str, text: &str) -> Result<()> {
        let most = self.inner.info.max_model_len;
        if self.inner.tokenizer.least_tokens(text.len()) <= most {
            return Ok(());
        }
        let message =
            format!("{param}: {} bytes of text are far more than the context of {most} tokens holds", text.len());
        Err(Error::invalid(param, message))
    }

    /// That there are tokens, and that the model knows them.
    pub(super) fn check_tokens(&self, param: &'static str, token_ids: &[u32]) -> Result<()> {
        if token_ids.is_empty() {
            return Err(Error::invalid(param, format!("{param}: must not be empty")));
        }
        let vocab_size = self.inner.info.config.vocab_size;
        token_ids.iter().try_for_each(|&id| crate::config::check_token_id(param, id, vocab_size))
    }

    fn check_prompt(&self, param: &'static str, token_ids: &[u32]) -> Result<()> {
        let info = &self.inner.info;
        self.check_tokens(param, token_ids)?;
        if token_ids.len() >= info.max_model_len {
            let (len, max) = (token_ids.len(), info.max_model_len);
            let message = format!(
                "{param}: {len} tokens leave no room for an answer in the context of {max} tokens; \
                 shorten it, or set truncate_prompt_tokens"
            );
            return Err(Error::invalid(param, message));
        }
        Ok(())
    }

    fn check_min_tokens(&self, params: &SamplingParams, prompt_len: usize) -> Result<()> {
        let room = self.inner.info.max_model_len - prompt_len;
        if params.min_tokens <= room {
            return Ok(());
        }
        let message = format!(
            "min_tokens: {} tokens do not fit: the prompt leaves {room} of the context of {} tokens",
            params.min_tokens, self.inner.info.max_model_len
        );
        Err(Error::invalid("min_tokens", message))
    }

    /// The tokens of a prediction, where drafts can be taken from it.
    fn predicted_tokens(&self, text: &str, params: &SamplingParams) -> Result<Vec<u32>> {
        let refuse = |what: &str| Err(Error::invalid("prediction", format!("prediction: {what}")));
        if !self.inner.makes_drafts {
            return refuse(
                "needs an engine that makes drafts (--num-speculative-tokens, --draft-model), which this one does not",
            );
        }
        if params.beam.is_some() {
            return refuse("cannot stand beside a beam search, which makes no drafts");
        }
        self.check_text("prediction", text)?;
        let (token_ids, most) = (self.inner.tokenizer.encode(text, false)?, self.inner.info.max_model_len);
        if token_ids.len() > most {
            return refuse(&format!("has {} tokens, more than the context of {most}", token_ids.len()));
        }
        Ok(token_ids)
    }

    fn enqueue(
        &self,
        prompt: PromptInfo,
        params: SamplingParams,
        adapter: u32,
        grammar: Option<GrammarMatcher>,
    ) -> Result<TokenStream> {
        let (events, receiver) = unbounded_channel();
        let stream = TokenStream::new(receiver, prompt, params.n);
        let caller = Caller { events, gate: stream.gate() };
        let request = QueuedRequest { prompt: stream.prompt(), params, adapter, grammar, caller };
        Ok(stream.keeping(self.send(Inbox::Request(Box::new(request)))?))
    }

    /// Sends a request to the engine, unless there are too many. Returns what keeps the engine running.
    pub(super) fn send(&self, request: Inbox) -> Result<mpsc::Sender<Inbox>> {
        let inner = &*self.inner;
        let stopped = || Error::Unavailable { message: format!("model {} is shutting down", inner.info.id) };
        if inner.is_closed.load(Ordering::SeqCst) {
            return Err(stopped());
        }
        let unfinished = inner.status.num_unfinished_requests.fetch_add(1, Ordering::SeqCst);
        if unfinished >= inner.max_requests {
            inner.status.num_unfinished_requests.fetch_sub(1, Ordering::SeqCst);
            let message =
                format!("{unfinished} requests are running or waiting, the most that are taken; try again later");
            return Err(Error::Overloaded { message });
        }
        if inner.inbox.send(request).is_err() {
            inner.status.num_unfinished_requests.fetch_sub(1, Ordering::SeqCst);
            return Err(stopped());
        }
        Ok(inner.inbox.clone())
    }

    /// The most requests that run or wait at once.
    pub fn max_requests(&self) -> usize {
        self.inner.max_requests
    }

    /// The loaded model.
    pub fn info(&self) -> &ModelInfo {
        &self.inner.info
    }

    /// Counters, kept up to date once a step.
    pub fn status(&self) -> &EngineStatus {
        &self.inner.status
    }

    /// What operations took, if [`EngineConfig::profile_ops`](crate::config::EngineConfig::profile_ops) asks for it.
    pub fn op_profile(&self) -> Option<&OpProfile> {
        self.inner.profile.as_deref()
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.inner.tokenizer
    }

    /// The model's chat template, if it has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.inner.chat_template.as_ref()
    }

    /// How the model sets its reasoning apart, as its chat template says.
    pub fn answer_form(&self) -> &AnswerForm {
        &self.inner.answer_form
    }

    /// Whether the engine runs and has made progress within `limit`.
    pub fn is_healthy(&self, limit: Duration) -> bool {
        self.inner.status.is_healthy(limit)
    }

    /// Takes no more requests; returns once running ones have ended or `limit` has passed, then aborts the rest.
    pub fn shutdown(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        self.inner.is_closed.store(true, Ordering::SeqCst);
        while self.inner.status.num_unfinished_requests.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        // An engine that has ended already does not hear it.
        let _ = self.inner.inbox.send(Inbox::Stop);
        let thread = self.inner.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!(model = self.inner.info.id, "the engine's thread panicked");
        }
    }
}
