//! [`Engine`]: the loop that owns the model, the cache and the scheduler.

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, atomic::AtomicUsize};
use std::time::Duration;

use super::Inbox;
use super::compute::Compute;
use super::running::{Growth, Limits, RunningRequest};
use super::status::EngineStatus;
use crate::backend::{Backend, Batch};
use crate::error::{Error, Result};
use crate::kv::BlockPool;
use crate::models::Step;
use crate::sample::SampleResults;
use crate::sched::{GroupId, Scheduler, SchedulerConfig, SequenceGroup, StepPlan};
use crate::text::Tokenizer;

/// How long an idle engine sleeps between two signs of life.
const IDLE: Duration = Duration::from_millis(500);

/// Everything that a step works on. Owned by one thread.
pub(super) struct Engine<B: Backend> {
    pub(super) compute: Compute<B>,
    /// Makes `compute` anew, when its device has been lost.
    pub(super) reload: Box<dyn Fn() -> Result<Compute<B>> + Send>,
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
    scheduler: Scheduler,
    requests: BTreeMap<GroupId, RunningRequest>,
    next_id: GroupId,
    plan: StepPlan,
    batch: Batch,
    results: SampleResults,
    growth: Growth,
}

/// The KV cache as the scheduler sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct CacheConfig {
    pub(super) num_blocks: usize,
    pub(super) block_size: usize,
    pub(super) has_prefix_cache: bool,
}

impl CacheConfig {
    fn pool(self) -> BlockPool {
        let pool = BlockPool::new(self.num_blocks, self.block_size);
        if self.has_prefix_cache { pool.with_prefix_cache() } else { pool }
    }
}

impl State {
    pub(super) fn new(config: SchedulerConfig, cache_config: CacheConfig) -> Self {
        Self {
            scheduler_config: config,
            cache_config,
            scheduler: Scheduler::new(config, cache_config.pool()),
            requests: BTreeMap::new(),
            next_id: 0,
            plan: StepPlan::default(),
            batch: Batch::default(),
            results: SampleResults::default(),
            growth: Growth::default(),
        }
    }

    fn reset(&mut self) {
        self.scheduler = Scheduler::new(self.scheduler_config, self.cache_config.pool());
        self.requests.clear();
    }
}

impl<B: Backend> Engine<B> {
    /// Runs until the handles are gone or one says stop.
    pub(super) fn run(mut self) {
        while self.take_requests() {
            self.drop_cancelled();
            if self.state.scheduler.is_empty() {
                self.publish();
                continue;
            }
            let step = panic::catch_unwind(AssertUnwindSafe(|| self.step()));
            match step {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.restart(&error.to_string()),
                Err(payload) => self.restart(panic_message(&*payload)),
            }
            if self.compute.backend.is_lost() {
                tracing::warn!("the device is lost; the model is loaded again");
                // First what is left of the old one: its memory is needed.
                drop(self.compute);
                self.compute = match (self.reload)() {
                    Ok(compute) => compute,
                    Err(error) => {
                        tracing::error!("the engine has ended: {error}");
                        self.status.is_alive.store(false, Ordering::Relaxed);
                        return;
                    }
                };
            }
            self.publish();
        }
        self.state.requests.values_mut().for_each(RunningRequest::abort);
        self.finish_requests(self.state.requests.len());
        self.state.reset();
        self.publish();
        self.status.is_alive.store(false, Ordering::Relaxed);
    }

    /// Empties the inbox; waits for a request if there is nothing to do. False: the engine is to stop.
    fn take_requests(&mut self) -> bool {
        loop {
            let message = if self.state.scheduler.is_empty() {
                match self.inbox.recv_timeout(IDLE) {
                    Err(RecvTimeoutError::Timeout) => return true,
                    message => message.map_err(|_| TryRecvError::Disconnected),
                }
            } else {
                self.inbox.try_recv()
            };
            match message {
                Ok(Inbox::Request(request)) => self.add(RunningRequest::new(*request, &self.limits)),
                Ok(Inbox::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    fn add(&mut self, request: RunningRequest) {
        let id = self.state.next_id;
        self.state.next_id += 1;
        let mut group = SequenceGroup::new(request.prompt_ids().to_vec());
        group.prompt_logits_from = request.wants_prompt_logprobs().then_some(0);
        add_to(&self.status.num_prompt_tokens, group.prompt_len);
        self.state.scheduler.add(id, group);
        self.state.requests.insert(id, request);
    }

    fn drop_cancelled(&mut self) {
        let cancelled = |(&id, r): (&GroupId, &RunningRequest)| r.is_cancelled().then_some(id);
        let ids: Vec<GroupId> = self.state.requests.iter().filter_map(cancelled).collect();
        for &id in &ids {
            self.state.scheduler.remove(id);
            self.state.requests.remove(&id);
        }
        add_to(&self.status.num_cancelled_requests, ids.len());
        self.finish_requests(ids.len());
    }

    /// One step: schedule, run, sample, tell.
    fn step(&mut self) -> Result<()> {
        let State { scheduler, plan, batch, .. } = &mut self.state;
        scheduler.schedule(plan);
        self.status.peak_used_blocks.fetch_max(scheduler.pool().num_used(), Ordering::Relaxed);
        add_to(&self.status.num_preemptions, plan.num_preempted);
        add_to(&self.status.num_cached_prompt_tokens, plan.num_cached_tokens);
        fill_batch(batch, plan, scheduler);
        if plan.chunks.is_empty() {
            return Err(Error::internal("nothing could be scheduled though requests wait"));
        }
        let wants_logits = !batch.logit_rows.is_empty();
        let Compute { backend, model, ws, kv, batch: device_batch } = &mut self.compute;
        backend.copy_blocks(kv, &plan.copies)?;
        backend.upload(device_batch, batch)?;
        let mut step = Step { backend, ws, kv, batch: device_batch };
        backend.run(device_batch, &mut || model.forward(&mut step, wants_logits))?;
        self.state.scheduler.commit(&self.state.plan);
        // Before the callers are told: who has an answer finds its steps counted.
        add_to(&self.status.num_steps, 1);
        if wants_logits {
            self.sample()?;
        }
        Ok(())
    }

    /// Samples from the logits, takes the sequences one token further, and tells the callers.
    fn sample(&mut self) -> Result<()> {
        let State { requests, plan, batch, results, .. } = &mut self.state;
        let mut rows = Vec::with_capacity(batch.logit_rows.len());
        for (row, (chunk, pos)) in plan.logit_positions().enumerate() {
            requests[&chunk.group].ask(&mut rows, row, pos, chunk.index);
        }
        self.compute.backend.sample(results, &self.compute.ws.logits, &rows)?;
        self.push_results();
        self.tell();
        Ok(())
    }

    /// Hands each request its results, in the order in which they were asked for.
    fn push_results(&mut self) {
        let State { scheduler, requests, plan, results, growth, .. } = &mut self.state;
        for (chunk, pos) in plan.logit_positions() {
            let request = requests.get_mut(&chunk.group).expect("invariant: a scheduled group has its request");
            request.push_results(&self.tokenizer, results, pos, chunk.index, growth);
            add_to(&self.status.num_generated_tokens, growth.tokens.len());
            grow(scheduler, chunk.group, growth);
            if let Some(from) = &mut scheduler.group_mut(chunk.group).prompt_logits_from {
                *from = (*from).max(pos + 1);
            }
        }
    }

    /// Tells the callers how far their requests are, and forgets those that have ended.
    fn tell(&mut self) {
        let State { scheduler, requests, plan, .. } = &mut self.state;
        let mut num_finished = 0;
        for chunk in &plan.chunks {
            // A group has several chunks; after its end it has no request.
            let Some(request) = requests.get_mut(&chunk.group) else { continue };
            let group = scheduler.group(chunk.group);
            if group.is_finished() {
                request.send_done(group.num_cached_tokens.unwrap_or(0));
                scheduler.remove(chunk.group);
                requests.remove(&chunk.group);
                num_finished += 1;
            } else {
                request.send_snapshot();
            }
        }
        self.finish_requests(num_finished);
    }

    /// Fails what was running, and goes on with a clean state.
    fn restart(&mut self, message: &str) {
        tracing::error!("a step failed, {} requests with it: {message}", self.state.requests.len());
        for request in self.state.requests.values() {
            request.fail(Error::Device { message: message.into() });
        }
        self.finish_requests(self.state.requests.len());
        self.state.reset();
    }

    fn finish_requests(&self, count: usize) {
        add_to(&self.status.num_finished_requests, count);
        self.status.num_unfinished_requests.fetch_sub(count, Ordering::SeqCst);
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

/// Makes the scheduler's group what the request's has become.
fn grow(scheduler: &mut Scheduler, id: GroupId, growth: &Growth) {
    if let Some(parents) = &growth.parents {
        scheduler.branch(id, parents);
    }
    for token in &growth.tokens {
        scheduler.push_token(id, token.index, token.token_id);
        if token.is_last {
            scheduler.finish(id, token.index);
        }
    }
}

fn fill_batch(batch: &mut Batch, plan: &StepPlan, scheduler: &Scheduler) {
    batch.clear();
    for chunk in &plan.chunks {
        let seq = &scheduler.group(chunk.group).sequences[chunk.index];
        let tokens = &seq.token_ids[chunk.start..chunk.end()];
        let block_size = scheduler.pool().block_size();
        batch.push(tokens, seq.block_table.blocks(), chunk.start, chunk.logits_from, block_size);
    }
    batch.find_shared_prefixes();
}

fn add_to(counter: &AtomicUsize, count: usize) {
    counter.fetch_add(count, Ordering::Relaxed);
}

fn panic_message(payload: &(dyn std::any::Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}
