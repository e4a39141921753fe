//! [`Engine`]: the loop that owns the model, the cache and the scheduler.

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, atomic::AtomicUsize};
use std::time::Duration;

use super::Inbox;
use super::draft_model::DraftModel;
use super::drafts::Drafting;
use super::embedder::Embedder;
use super::models::Models;
use super::running::{Limits, RunningRequest};
use super::status::EngineStatus;
use super::step::Steps;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::kv::{BlockPool, LayerGroup};
use crate::sched::{GroupId, Scheduler, SchedulerConfig, SequenceGroup};
use crate::text::Tokenizer;

/// How long an idle engine sleeps between two signs of life.
const IDLE: Duration = Duration::from_millis(500);

/// Everything that a step works on. Owned by one thread.
pub(super) struct Engine<B: Backend> {
    pub(super) models: Models<B>,
    /// Makes `models` anew, when their device has been lost.
    pub(super) reload: Box<dyn Fn() -> Result<Models<B>> + Send>,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) limits: Limits,
    pub(super) status: Arc<EngineStatus>,
    pub(super) inbox: Receiver<Inbox>,
    pub(super) state: State,
}

/// What a failed step may leave half changed, and a restart makes anew.
pub(super) struct State {
    scheduler_config: SchedulerConfig,
    cache_config: CacheConfig,
    pub(super) scheduler: Scheduler,
    pub(super) requests: BTreeMap<GroupId, RunningRequest>,
    pub(super) embedder: Embedder,
    next_id: GroupId,
    pub(super) steps: Steps,
    pub(super) drafting: Drafting,
}

/// The KV cache as the scheduler sees it.
#[derive(Debug, Clone)]
pub(super) struct CacheConfig {
    pub(super) num_blocks: usize,
    pub(super) groups: Vec<LayerGroup>,
    pub(super) has_prefix_cache: bool,
}

impl CacheConfig {
    fn pool(&self) -> BlockPool {
        let pool = BlockPool::new(self.num_blocks, &self.groups);
        if self.has_prefix_cache { pool.with_prefix_cache() } else { pool }
    }
}

impl State {
    pub(super) fn new(config: SchedulerConfig, cache_config: CacheConfig) -> Self {
        Self {
            scheduler_config: config,
            scheduler: Scheduler::new(config, cache_config.pool()),
            cache_config,
            requests: BTreeMap::new(),
            embedder: Embedder::default(),
            next_id: 0,
            steps: Steps::default(),
            drafting: Drafting::default(),
        }
    }

    /// The same, where so many tokens of a sequence are drafted in a step, at most, and a step with drafts has so many rows.
    pub(super) fn with_drafts(self, num_speculative_tokens: usize, max_rows: usize) -> Self {
        Self { drafting: Drafting::new(num_speculative_tokens, max_rows), ..self }
    }

    fn reset(&mut self) {
        self.scheduler = Scheduler::new(self.scheduler_config, self.cache_config.pool());
        self.requests.clear();
        self.steps.forget();
    }

    /// Whether there is nothing to compute and nothing to read.
    fn is_idle(&self) -> bool {
        self.scheduler.is_empty() && self.embedder.is_empty() && !self.steps.is_under_way()
    }

    fn next_id(&mut self) -> GroupId {
        self.next_id += 1;
        self.next_id - 1
    }
}

impl<B: Backend> Engine<B> {
    /// Runs until the handles are gone or one says stop.
    pub(super) fn run(mut self) {
        while self.take_requests() {
            self.drop_cancelled();
            if self.state.is_idle() {
                self.publish();
                continue;
            }
            self.start_embedding();
            let step = panic::catch_unwind(AssertUnwindSafe(|| self.step()));
            match step {
                Ok(Ok(())) if !self.models.is_lost() => {}
                // Whoever has noticed it: what was computed is gone.
                Ok(Ok(())) => self.restart("the device is lost"),
                Ok(Err(error)) => self.restart(&error.to_string()),
                Err(payload) => self.restart(panic_message(&*payload)),
            }
            if self.models.is_lost() {
                tracing::warn!("the device is lost; the model is loaded again");
                // First what is left of the old one: its memory is needed.
                drop(self.models);
                self.models = match (self.reload)() {
                    Ok(models) => models,
                    Err(error) => {
                        tracing::error!("the engine has ended: {error}");
                        self.status.is_alive.store(false, Ordering::Relaxed);
                        let num_queued =
                            self.inbox.try_iter().filter(|message| !matches!(message, Inbox::Stop)).count();
                        self.status.finish_requests(num_queued);
                        return;
                    }
                };
            }
            self.publish();
        }
        let State { requests, scheduler, .. } = &mut self.state;
        for (id, request) in requests.iter_mut() {
            request.abort(&self.tokenizer, scheduler.group(*id).num_cached_tokens.unwrap_or(0));
        }
        let stopped = || Error::Unavailable { message: "the engine has stopped".into() };
        self.status.finish_requests(self.state.requests.len() + self.state.embedder.fail(stopped));
        self.state.reset();
        self.publish();
        self.status.is_alive.store(false, Ordering::Relaxed);
    }

    /// Empties the inbox; waits for a request if there is nothing to do. False: the engine is to stop.
    fn take_requests(&mut self) -> bool {
        loop {
            let message = if self.state.is_idle() {
                match self.inbox.recv_timeout(IDLE) {
                    Err(RecvTimeoutError::Timeout) => return true,
                    message => message.map_err(|_| TryRecvError::Disconnected),
                }
            } else {
                self.inbox.try_recv()
            };
            match message {
                Ok(Inbox::Request(request)) => {
                    let adapter = request.adapter;
                    self.add(RunningRequest::new(*request, &self.limits), adapter);
                }
                Ok(Inbox::Embeddings(request)) => self.state.embedder.add(*request),
                Ok(Inbox::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    fn add(&mut self, request: RunningRequest, adapter: u32) {
        let id = self.state.next_id();
        let mut group = SequenceGroup { adapter, ..SequenceGroup::new(request.prompt_ids().to_vec()) };
        group.prompt_logits_from = request.wants_prompt_logprobs().then_some(0);
        add_to(&self.status.num_prompt_tokens, group.prompt_len);
        self.state.scheduler.add(id, group);
        self.state.requests.insert(id, request);
    }

    /// Has the scheduler know of as many inputs whose vectors are wanted as can run at once.
    fn start_embedding(&mut self) {
        while self.state.embedder.num_running() < self.state.scheduler_config.max_num_seqs {
            let id = self.state.next_id();
            let Some(group) = self.state.embedder.start_next(id) else { return };
            add_to(&self.status.num_prompt_tokens, group.prompt_len);
            self.state.scheduler.add(id, group);
        }
    }

    fn drop_cancelled(&mut self) {
        let cancelled = |(&id, r): (&GroupId, &RunningRequest)| r.is_cancelled().then_some(id);
        let ids: Vec<GroupId> = self.state.requests.iter().filter_map(cancelled).collect();
        for &id in &ids {
            self.state.scheduler.remove(id);
            self.state.requests.remove(&id);
        }
        let (num_embeddings, groups) = self.state.embedder.drop_cancelled();
        groups.into_iter().for_each(|id| self.state.scheduler.remove(id));
        let num_cancelled = ids.len() + num_embeddings;
        add_to(&self.status.num_cancelled_requests, num_cancelled);
        self.status.finish_requests(num_cancelled);
    }

    /// Fails what was running, and goes on with a clean state.
    fn restart(&mut self, message: &str) {
        let failed = || Error::Device { message: message.into() };
        self.state.requests.values().for_each(|request| request.fail(failed()));
        let num_failed = self.state.requests.len() + self.state.embedder.fail(failed);
        tracing::error!("a step failed, {num_failed} requests with it: {message}");
        self.status.finish_requests(num_failed);
        self.state.reset();
        self.models.draft.iter_mut().for_each(DraftModel::forget);
    }

    /// Brings the counters up to date.
    fn publish(&self) {
        let (status, scheduler) = (&self.status, &self.state.scheduler);
        status.num_running.store(scheduler.num_running(), Ordering::Relaxed);
        status.num_waiting.store(scheduler.num_waiting(), Ordering::Relaxed);
        status.num_used_blocks.store(scheduler.pool().num_used(), Ordering::Relaxed);
        status.num_total_blocks.store(scheduler.pool().num_total(), Ordering::Relaxed);
        status.progressed();
    }
}

/// Counts.
pub(super) fn add_to(counter: &AtomicUsize, count: usize) {
    counter.fetch_add(count, Ordering::Relaxed);
}

fn panic_message(payload: &(dyn std::any::Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}
