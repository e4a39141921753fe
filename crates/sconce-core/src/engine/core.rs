//! [`Engine`]: the loop that owns the model, the cache and the scheduler.

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, atomic::AtomicUsize};
use std::time::Duration;

use super::Inbox;
use super::running::{Limits, RunningRequest};
use super::status::EngineStatus;
use crate::backend::{Backend, Batch, Workspace};
use crate::error::{Error, Result};
use crate::kv::BlockPool;
use crate::models::{Model, Step};
use crate::sample::Sampler;
use crate::sched::{GroupId, ScheduledChunk, Scheduler, SchedulerConfig, SequenceGroup, StepPlan};
use crate::text::Tokenizer;

/// How long an idle engine sleeps between two signs of life.
const IDLE: Duration = Duration::from_millis(500);

/// Everything that a step works on. Owned by one thread.
pub(super) struct Engine<B: Backend> {
    pub(super) backend: B,
    pub(super) model: Box<dyn Model<B>>,
    pub(super) ws: Workspace<B>,
    pub(super) kv: B::KvCache,
    pub(super) device_batch: B::Batch,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) limits: Limits,
    pub(super) status: Arc<EngineStatus>,
    pub(super) inbox: Receiver<Inbox>,
    pub(super) state: State,
}

/// What a failed step may leave half changed, and a restart makes anew.
pub(super) struct State {
    scheduler_config: SchedulerConfig,
    num_blocks: usize,
    block_size: usize,
    scheduler: Scheduler,
    requests: BTreeMap<GroupId, RunningRequest>,
    next_id: GroupId,
    plan: StepPlan,
    batch: Batch,
    sampler: Sampler,
}

impl State {
    pub(super) fn new(config: SchedulerConfig, num_blocks: usize, block_size: usize, vocab_size: usize) -> Self {
        Self {
            scheduler_config: config,
            num_blocks,
            block_size,
            scheduler: Scheduler::new(config, BlockPool::new(num_blocks, block_size)),
            requests: BTreeMap::new(),
            next_id: 0,
            plan: StepPlan::default(),
            batch: Batch::default(),
            sampler: Sampler::new(vocab_size),
        }
    }

    fn reset(&mut self) {
        let pool = BlockPool::new(self.num_blocks, self.block_size);
        self.scheduler = Scheduler::new(self.scheduler_config, pool);
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
            self.publish();
        }
        self.state.requests.values().for_each(RunningRequest::abort);
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
        add_to(&self.status.num_preemptions, plan.num_preempted);
        fill_batch(batch, plan, scheduler);
        if plan.chunks.is_empty() {
            return Err(Error::internal("nothing could be scheduled though requests wait"));
        }
        self.backend.copy_blocks(&mut self.kv, &plan.copies)?;
        self.backend.upload(&mut self.device_batch, batch)?;
        let wants_logits = !batch.logit_rows.is_empty();
        let mut step = Step { backend: &self.backend, ws: &mut self.ws, kv: &mut self.kv, batch: &self.device_batch };
        self.model.embed(&mut step)?;
        for idx in 0..self.model.config().num_hidden_layers {
            self.model.layer(idx, &mut step)?;
        }
        if wants_logits {
            self.model.head(&mut step)?;
        }
        self.state.scheduler.commit(&self.state.plan);
        if wants_logits {
            self.sample()?;
        }
        add_to(&self.status.num_steps, 1);
        Ok(())
    }

    /// Reads the logits and takes every sequence one token further.
    fn sample(&mut self) -> Result<()> {
        let vocab_size = self.model.config().vocab_size;
        let logits = self.backend.read(&self.ws.logits)?;
        let mut rows = logits.chunks_exact(vocab_size);
        let mut num_finished = 0;
        for chunk in &self.state.plan.chunks {
            let scheduler = &mut self.state.scheduler;
            let request =
                self.state.requests.get_mut(&chunk.group).expect("invariant: a scheduled group has its request");
            for pos in chunk.logits_from..chunk.end() {
                let row = rows.next().expect("invariant: a row a wanted position");
                request.push_prompt_logits(&mut self.state.sampler, row, pos);
                if pos + 1 < scheduler.group(chunk.group).sequences[chunk.index].token_ids.len() {
                    continue;
                }
                for idx in begin_sampling(scheduler, request, chunk) {
                    let sampled = request.sample(&mut self.state.sampler, row, idx);
                    scheduler.push_token(chunk.group, idx, sampled.token_id);
                    add_to(&self.status.num_generated_tokens, 1);
                    if request.push_token(&self.tokenizer, idx, sampled) {
                        scheduler.finish(chunk.group, idx);
                    }
                }
            }
            if let Some(from) = &mut scheduler.group_mut(chunk.group).prompt_logits_from {
                *from = (*from).max(chunk.end());
            }
            if scheduler.group(chunk.group).is_finished() {
                request.send_done();
                scheduler.remove(chunk.group);
                self.state.requests.remove(&chunk.group);
                num_finished += 1;
            }
        }
        self.finish_requests(num_finished);
        Ok(())
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

/// The sequences that the chunk's last logits continue: its own, or all of the group when its prompt is done.
fn begin_sampling(
    scheduler: &mut Scheduler,
    request: &mut RunningRequest,
    chunk: &ScheduledChunk,
) -> std::ops::Range<usize> {
    if chunk.end() > scheduler.group(chunk.group).prompt_len {
        return chunk.index..chunk.index + 1;
    }
    request.send_prompt_logprobs();
    request.fork();
    scheduler.branch(chunk.group, &vec![0; request.num_computed()]);
    0..request.num_computed()
}

fn fill_batch(batch: &mut Batch, plan: &StepPlan, scheduler: &Scheduler) {
    batch.clear();
    for chunk in &plan.chunks {
        let seq = &scheduler.group(chunk.group).sequences[chunk.index];
        let tokens = &seq.token_ids[chunk.start..chunk.end()];
        let block_size = scheduler.pool().block_size();
        batch.push(tokens, seq.block_table.blocks(), chunk.start, chunk.logits_from, block_size);
    }
}

fn add_to(counter: &AtomicUsize, count: usize) {
    counter.fetch_add(count, Ordering::Relaxed);
}

fn panic_message(payload: &(dyn std::any::Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}
