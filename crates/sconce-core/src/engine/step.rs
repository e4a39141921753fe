//! A step of the engine: schedule, launch, read the answers, tell the callers.
//!
//! Where the backend can run ahead, the next step is launched before the answers of this one are read, so that the device
//! computes while the host reads, tells, and schedules. A token that was sampled and not read has its place in its sequence,
//! and the device takes it from where it was sampled. A sequence that turns out to have ended has been computed once too
//! often: that answer is passed over, and its blocks are free. Whoever gets them writes to them in a later step, and steps are
//! carried out in order.
//!
//! Where drafts are looked for, each step is read first: what may follow is looked up by the last token.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::compute::Compute;
use super::core::{Engine, State, add_to};
use super::embedder::Embedder;
use super::models::Models;
use super::running::{AfterStep, Growth, RunningRequest, Seen};
use super::status::EngineStatus;
use crate::backend::{Backend, Batch};
use crate::error::{Error, Result};
use crate::kv::{BlockCopy, MAX_GROUPS};
use crate::models::{Step, Wanted};
use crate::sample::{SampleResults, SampleRow};
use crate::sched::{GroupId, Scheduler, StepPlan};
use crate::text::Tokenizer;

/// The steps that are planned, launched and read, in turn; what is allocated once for all of them.
#[derive(Default)]
pub(super) struct Steps {
    slots: [LaunchedStep; NUM_SLOTS],
    /// The slot of the step that has been launched and is still to be read.
    under_way: Option<usize>,
    batch: Batch,
    /// Always empty; kept for its memory.
    rows: Vec<SampleRow<'static>>,
    /// Sequences that can go on before their token is read, and the row of the logits that it is sampled from.
    unread: Vec<(GroupId, usize, usize)>,
    growth: Growth,
    /// Copies of the cache's blocks, where the pool's are several of them; kept for its memory.
    copies: Vec<BlockCopy>,
    /// A sequence's blocks of the cache, likewise.
    tables: [Vec<u32>; MAX_GROUPS],
}

/// Two steps at most are launched and not read: for as long as the second is launched.
pub(super) const NUM_SLOTS: usize = 2;

/// A step from when it is planned until its answers are read.
#[derive(Default)]
struct LaunchedStep {
    plan: StepPlan,
    /// How many answers come of each row of its logits.
    num_answers: Vec<usize>,
    /// Of each row whether nothing may come of it.
    is_void: Vec<bool>,
}

impl Steps {
    /// Whether a step has been launched and not read.
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Forgets the step that is under way.
    pub(super) fn forget(&mut self) {
        self.under_way = None;
    }
}

impl<B: Backend> Engine<B> {
    /// Launches a step, and reads the one that is under way. The new one is left under way, if the backend can run ahead and
    /// no sequence in it has to be read first.
    pub(super) fn step(&mut self) -> Result<()> {
        let before = self.state.steps.under_way.take();
        let launched = self.launch(before);
        // Also where the launch has failed: who has an answer gets it.
        if let Some(slot) = before {
            self.read(slot)?;
        }
        match launched? {
            Some(slot) if self.models.target.backend.can_run_ahead() && self.state.go_on_unread(slot) => {
                self.state.steps.under_way = Some(slot);
                Ok(())
            }
            Some(slot) => self.read(slot),
            None => Ok(()),
        }
    }

    /// Plans the next step and launches it, and returns its slot. `before`: the step under way, without whose answers there
    /// may be nothing to compute.
    fn launch(&mut self, before: Option<usize>) -> Result<Option<usize>> {
        let State { scheduler, requests, embedder, steps, drafting, .. } = &mut self.state;
        let Models { target, draft } = &mut self.models;
        draft.iter_mut().for_each(|draft| draft.settle(scheduler));
        let slot = before.map_or(0, |before| (before + 1) % NUM_SLOTS);
        let Steps { slots, batch, copies, tables, .. } = steps;
        let plan = &mut slots[slot].plan;
        match before {
            Some(_) => scheduler.schedule_ahead(plan),
            None => {
                scheduler.schedule(plan);
                drafting.draft(plan, scheduler, requests, draft.as_mut())?;
            }
        }
        self.status.peak_used_blocks.fetch_max(scheduler.pool().num_used(), Ordering::Relaxed);
        add_to(&self.status.num_preemptions, plan.num_preempted);
        add_to(&self.status.num_cached_prompt_tokens, plan.num_cached_tokens);
        if plan.chunks.is_empty() {
            let error = Error::internal("nothing could be scheduled though requests wait");
            return before.map_or(Err(error), |_| Ok(None));
        }
        fill_batch((batch, tables), plan, scheduler, target.first_long_row);
        let wanted = wanted(plan, embedder);
        let Compute { backend, model, ws, kv, batch: device_batch, .. } = target;
        backend.copy_blocks(kv, scheduler.pool().cache_copies(&plan.copies, copies))?;
        backend.upload(device_batch, batch)?;
        let mut step = Step { backend, ws, kv, batch: device_batch };
        let mut forward = || model.forward(&mut step, wanted);
        match wanted {
            // What may have been written down for such a shape is all of it.
            Wanted::Hidden => forward()?,
            Wanted::Nothing | Wanted::Logits => backend.run(device_batch, &mut forward)?,
        }
        scheduler.commit(plan);
        // Before the callers are told: who has an answer finds its steps counted.
        add_to(&self.status.num_steps, 1);
        add_to(&self.status.num_steps_ahead, usize::from(before.is_some()));
        self.sample(slot)?;
        Ok(Some(slot))
    }

    /// Asks for what the requests want of a step's logits.
    fn sample(&mut self, slot: usize) -> Result<()> {
        let State { scheduler, requests, steps, .. } = &mut self.state;
        let LaunchedStep { plan, num_answers, is_void } = &mut steps.slots[slot];
        let mut rows = emptied(std::mem::take(&mut steps.rows));
        // While the device computes.
        let seen = seen(plan, scheduler, requests);
        is_void.clear();
        is_void.extend(seen.iter().map(|seen| seen.is_void));
        num_answers.clear();
        for (row, ((chunk, pos), seen)) in plan.logit_positions().zip(&seen).enumerate() {
            let num_before = rows.len();
            // Otherwise it is the hidden state that is wanted.
            if let Some(request) = requests.get(&chunk.group) {
                request.ask(&mut rows, row, (pos, chunk.index), seen);
            }
            num_answers.push(rows.len() - num_before);
        }
        let Compute { backend, ws, answers, .. } = &mut self.models.target;
        let begun = backend.sample(&mut answers[slot], &ws.logits, &rows);
        steps.rows = emptied(rows);
        begun
    }

    /// Reads a step's answers, takes the sequences one token further, and tells the callers.
    fn read(&mut self, slot: usize) -> Result<()> {
        let target = &mut self.models.target;
        let results = target.backend.read_answers(&mut target.answers[slot])?;
        self.state.push_results(slot, results, &self.tokenizer, &self.status);
        self.read_hidden(slot)?;
        self.tell(slot);
        Ok(())
    }

    /// Reads the hidden states that are wanted of a step, and ends their sequences. No step has been launched since: it would have its
    /// own in their place.
    fn read_hidden(&mut self, slot: usize) -> Result<()> {
        let State { scheduler, embedder, steps, .. } = &mut self.state;
        let Compute { backend, model, ws, .. } = &self.models.target;
        let plan = &steps.slots[slot].plan;
        let rows = plan.logit_positions().enumerate().map(|(row, (chunk, _))| (row, chunk.group));
        let wanted: Vec<_> = rows.filter(|&(_, group)| embedder.has(group)).collect();
        let Some((last_row, _)) = wanted.last() else { return Ok(()) };
        let hidden = backend.read(&ws.last_normed, last_row + 1)?;
        let hidden_size = model.config().hidden_size;
        let mut num_finished = 0;
        for (row, id) in wanted {
            let num_cached = scheduler.group(id).num_cached_tokens.unwrap_or(0);
            scheduler.remove(id);
            let of_row = &hidden[row * hidden_size..][..hidden_size];
            num_finished += usize::from(embedder.push(id, of_row, num_cached));
        }
        self.status.finish_requests(num_finished);
        Ok(())
    }

    /// Tells the callers how far their requests are, and forgets those that have ended.
    fn tell(&mut self, slot: usize) {
        let State { scheduler, requests, steps, .. } = &mut self.state;
        let mut num_finished = 0;
        for chunk in &steps.slots[slot].plan.chunks {
            // A group has several chunks; after its end, and after its caller has gone, it has no request.
            let Some(request) = requests.get_mut(&chunk.group) else { continue };
            let group = scheduler.group(chunk.group);
            if let Some(error) = request.take_failure() {
                request.fail(error);
                scheduler.remove(chunk.group);
                requests.remove(&chunk.group);
                num_finished += 1;
            } else if group.is_finished() {
                request.send_done(group.num_cached_tokens.unwrap_or(0));
                scheduler.remove(chunk.group);
                requests.remove(&chunk.group);
                num_finished += 1;
            } else {
                request.send_snapshot();
            }
        }
        self.status.finish_requests(num_finished);
    }
}

impl State {
    /// Hands each request its results, in the order in which they were asked for.
    fn push_results(&mut self, slot: usize, results: &mut SampleResults, tokenizer: &Tokenizer, status: &EngineStatus) {
        let Self { scheduler, requests, steps: Steps { slots, growth, .. }, drafting, .. } = self;
        let LaunchedStep { plan, num_answers, is_void } = &slots[slot];
        for (((chunk, pos), &num_answers), &is_void) in plan.logit_positions().zip(num_answers).zip(is_void) {
            // Otherwise it has ended, or its caller has gone, since the step was launched.
            let is_live = scheduler.live_sequence(chunk.group, chunk.index).is_some();
            let is_draft = pos >= chunk.end_of_own();
            if !is_live || is_draft && (is_void || !scheduler.accept_draft(chunk, pos)) {
                (0..num_answers).for_each(|_| drop(results.take_next()));
                continue;
            }
            // Otherwise nothing was asked of its logits.
            let Some(request) = requests.get_mut(&chunk.group) else { continue };
            add_to(&status.num_accepted_tokens, usize::from(is_draft));
            if is_draft && drafting.is_predicted(chunk) {
                request.accept_predicted();
            }
            request.push_results(tokenizer, results, pos, chunk.index, growth);
            add_to(&status.num_generated_tokens, growth.tokens.len());
            grow(scheduler, chunk.group, growth);
        }
        for chunk in plan.chunks.iter().filter(|chunk| chunk.num_drafts > 0) {
            add_to(&status.num_draft_tokens, chunk.num_drafts);
            if let Some(request) = requests.get_mut(&chunk.group).filter(|_| drafting.is_predicted(chunk)) {
                request.count_predicted(chunk.num_drafts);
            }
            if scheduler.live_sequence(chunk.group, chunk.index).is_some() {
                scheduler.clear_drafts(chunk.group, chunk.index);
            }
        }
    }

    /// Lets the sequences of a step that has been launched go on with tokens that are not read. False if one cannot: then the
    /// step is to be read before the next is planned, for all.
    fn go_on_unread(&mut self, slot: usize) -> bool {
        let Self { scheduler, requests, embedder, steps: Steps { slots, unread, .. }, drafting, .. } = self;
        let plan = &slots[slot].plan;
        // The next step's hidden states would be in the place of this one's.
        if plan.logit_positions().any(|(chunk, _)| embedder.has(chunk.group)) {
            return false;
        }
        // Whether a plan may have drafts was decided by as many running sequences, or more.
        if drafting.is_wanted(scheduler) {
            return false;
        }
        assert!(plan.chunks.iter().all(|chunk| chunk.num_drafts == 0), "invariant: drafts are read first");
        unread.clear();
        for (row, (chunk, pos)) in plan.logit_positions().enumerate() {
            if scheduler.live_sequence(chunk.group, chunk.index).is_none() {
                continue;
            }
            match requests[&chunk.group].after_step(pos) {
                // It loses its blocks by that token.
                AfterStep::GoesOn if scheduler.becomes_long(&scheduler.group(chunk.group).sequences[chunk.index]) => {
                    return false;
                }
                AfterStep::GoesOn => unread.push((chunk.group, chunk.index, row)),
                AfterStep::Nothing => {}
                AfterStep::Waits => return false,
            }
        }
        unread.iter().for_each(|&(id, idx, row)| scheduler.push_unread(id, idx, row));
        true
    }
}

/// What is wanted of a step's rows.
fn wanted(plan: &StepPlan, embedder: &Embedder) -> Wanted {
    let mut rows = plan.logit_positions().map(|(chunk, _)| embedder.has(chunk.group));
    match rows.next() {
        None => Wanted::Nothing,
        Some(true) if rows.all(|is_hidden| is_hidden) => Wanted::Hidden,
        Some(_) => Wanted::Logits,
    }
}

/// What the tokens after all positions whose logits are wanted are chosen by.
fn seen(plan: &StepPlan, scheduler: &Scheduler, requests: &mut BTreeMap<GroupId, RunningRequest>) -> Vec<Seen> {
    let mut seen = Vec::new();
    for chunk in &plan.chunks {
        let Some(request) = requests.get_mut(&chunk.group) else {
            // Of a hidden state nothing is chosen.
            seen.extend((0..chunk.num_logits()).map(|_| Seen::default()));
            continue;
        };
        seen.extend((chunk.logits_from..chunk.end_of_own()).map(|pos| request.seen((pos, chunk.index))));
        if chunk.num_drafts > 0 {
            let drafts = &scheduler.group(chunk.group).sequences[chunk.index].drafts[..chunk.num_drafts];
            let mut ahead = request.ahead(chunk.index);
            seen.extend(drafts.iter().map(|&draft| ahead.push(draft)));
        }
    }
    seen
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

fn fill_batch(
    (batch, tables): (&mut Batch, &mut [Vec<u32>; MAX_GROUPS]),
    plan: &StepPlan,
    scheduler: &Scheduler,
    first_long_row: usize,
) {
    batch.clear();
    let pool = scheduler.pool();
    for chunk in &plan.chunks {
        let group = scheduler.group(chunk.group);
        let seq = &group.sequences[chunk.index];
        let tokens = &seq.token_ids[chunk.start..chunk.end_of_own()];
        let (block_size, first_token) = (pool.cache_block_len(), batch.num_tokens());
        let of_groups = seq.blocks.tables(pool);
        let mut blocks = [&[][..]; MAX_GROUPS];
        for ((blocks, table), room) in blocks.iter_mut().zip(of_groups).zip(tables.iter_mut()) {
            *blocks = pool.cache_blocks(table, room);
        }
        let blocks = &blocks[..of_groups.len()];
        batch.push_grouped(tokens, blocks, chunk.start, chunk.logits_from, block_size);
        // Each a sequence of its own, with the same blocks: so they are attended as decodes are.
        for (pos, &draft) in (chunk.end_of_own()..).zip(&seq.drafts[..chunk.num_drafts]) {
            batch.push_grouped(&[draft], blocks, pos, pos, block_size);
        }
        batch.set_adapter(first_token, group.adapter);
        if scheduler.is_long(seq) {
            batch.shift_rope_rows(first_token, first_long_row);
        }
        if let Some(row) = seq.unread_row {
            batch.set_last_unread(row);
        }
    }
    batch.find_shared_prefixes();
}

/// The list's memory, for rows that live shorter or longer: a collection in place.
fn emptied<'a>(mut rows: Vec<SampleRow<'_>>) -> Vec<SampleRow<'a>> {
    rows.clear();
    rows.into_iter().map(|_| unreachable!("the list is empty")).collect()
}
