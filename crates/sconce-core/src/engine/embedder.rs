//! [`Embedder`]: the inputs whose vectors are wanted, from the inbox to the callers.
//!
//! Each input is a sequence of its own that ends with its prompt: it shares steps with others and with what is generated. The scheduler
//! knows of some at a time, and gets more in turn from all requests: a request of thousands holds up neither a short one nor
//! what is generated, and the scheduler's lists stay short.

use std::collections::{BTreeMap, VecDeque};

use tokio::sync::oneshot;

use super::embedding::EmbeddingOutput;
use super::pooling::Pooling;
use crate::error::{Error, Result};
use crate::sched::{GroupId, SequenceGroup};

/// A request on its way through the inbox.
pub(crate) struct QueuedEmbeddings {
    /// The tokens of each input.
    pub(super) inputs: Vec<Vec<u32>>,
    /// The number of the adapter that they go through, from 1 on; 0: none.
    pub(super) adapter: u32,
    pub(super) pooling: Pooling,
    /// Numbers of a vector.
    pub(super) len: usize,
    pub(super) reply: oneshot::Sender<Result<EmbeddingOutput>>,
}

/// The number of a request, in order of arrival.
type RequestId = u64;

/// The inputs whose vectors are wanted.
#[derive(Default)]
pub(super) struct Embedder {
    requests: BTreeMap<RequestId, Request>,
    /// Those with inputs that the scheduler does not know of, whose turn it is first.
    turns: VecDeque<RequestId>,
    next_id: RequestId,
    /// The inputs that the scheduler knows of: whose they are, and which of these.
    running: BTreeMap<GroupId, (RequestId, usize)>,
}

/// A request that is not answered.
struct Request {
    adapter: u32,
    pooling: Pooling,
    len: usize,
    reply: oneshot::Sender<Result<EmbeddingOutput>>,
    /// The inputs that the scheduler does not know of.
    inputs: std::iter::Enumerate<std::vec::IntoIter<Vec<u32>>>,
    num_left: usize,
    output: EmbeddingOutput,
    /// An input whose vector is none.
    bad_input: Option<usize>,
}

impl Embedder {
    /// Whether nothing is to be done.
    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Inputs that the scheduler knows of.
    pub(super) fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Whether the scheduler's group is an input.
    pub(super) fn has(&self, group: GroupId) -> bool {
        self.running.contains_key(&group)
    }

    pub(super) fn add(&mut self, queued: QueuedEmbeddings) {
        let QueuedEmbeddings { inputs, adapter, pooling, len, reply } = queued;
        let num_left = inputs.len();
        let output = EmbeddingOutput {
            embeddings: vec![Vec::new(); num_left],
            prompt_tokens: inputs.iter().map(Vec::len).sum(),
            cached_tokens: 0,
        };
        let inputs = inputs.into_iter().enumerate();
        let request = Request { adapter, pooling, len, reply, inputs, num_left, output, bad_input: None };
        self.requests.insert(self.next_id, request);
        self.turns.push_back(self.next_id);
        self.next_id += 1;
    }

    /// The next input, of the request whose turn it is, for the scheduler to know under `id`.
    pub(super) fn start_next(&mut self, id: GroupId) -> Option<SequenceGroup> {
        loop {
            let turn = self.turns.pop_front()?;
            // One that has been cancelled, or that the scheduler knows all of, has no turn any more.
            let Some(request) = self.requests.get_mut(&turn) else { continue };
            let Some((index, token_ids)) = request.inputs.next() else { continue };
            self.turns.push_back(turn);
            self.running.insert(id, (turn, index));
            return Some(SequenceGroup { adapter: request.adapter, ..SequenceGroup::new(token_ids) });
        }
    }

    /// Takes the hidden state of an input's last token, of which `num_cached` tokens were in the prefix cache. Returns whether the request
    /// is answered now.
    pub(super) fn push(&mut self, group: GroupId, hidden: &[f32], num_cached: usize) -> bool {
        let (id, index) = self.running.remove(&group).expect("invariant: the scheduler's group is an input");
        let request = self.requests.get_mut(&id).expect("invariant: its inputs are forgotten with a request");
        match request.pooling.vector(hidden, request.len) {
            Some(vector) => request.output.embeddings[index] = vector,
            None => request.bad_input = Some(index),
        }
        request.output.cached_tokens += num_cached;
        request.num_left -= 1;
        if request.num_left > 0 {
            return false;
        }
        let Request { reply, output, bad_input, .. } = self.requests.remove(&id).expect("invariant: found above");
        let no_number = |index| super::no_number(&format!("in the vector of input {index}"));
        // A caller that has gone is counted as answered.
        let _ = reply.send(bad_input.map_or(Ok(output), |index| Err(no_number(index))));
        true
    }

    /// Forgets the requests whose callers have gone. Returns how many, and the groups of theirs that the scheduler knows.
    pub(super) fn drop_cancelled(&mut self) -> (usize, Vec<GroupId>) {
        let num_before = self.requests.len();
        self.requests.retain(|_, request| !request.reply.is_closed());
        let num_dropped = num_before - self.requests.len();
        if num_dropped == 0 {
            return (0, Vec::new());
        }
        let is_orphan =
            |(&group, (id, _)): (&GroupId, &(RequestId, usize))| (!self.requests.contains_key(id)).then_some(group);
        let groups: Vec<GroupId> = self.running.iter().filter_map(is_orphan).collect();
        self.running.retain(|_, (id, _)| self.requests.contains_key(id));
        (num_dropped, groups)
    }

    /// Ends all requests with an error. Returns how many there were.
    pub(super) fn fail(&mut self, error: impl Fn() -> Error) -> usize {
        let all = std::mem::take(self);
        let num_failed = all.requests.len();
        for request in all.requests.into_values() {
            // Who has gone needs no error.
            let _ = request.reply.send(Err(error()));
        }
        num_failed
    }
}
