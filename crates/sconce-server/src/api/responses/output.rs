//! [`Output`]: the items of a response as the answer grows, and what a stream tells of it.

use sconce::{FinishReason, TokenEvent, ToolCall};
use serde_json::{Value, json};

use crate::api::answer::{AnswerParts, Part};
use crate::api::logprobs::{self, TokenBytes};
use crate::api::tools::random_letters;
use crate::http::{Json, List};

/// What a stream tells.
pub(super) struct Told {
    /// Its type.
    pub kind: String,
    /// An object with its type, which lacks its number.
    pub event: Json,
}

impl Told {
    /// An event whose member `name` may hold what has been written already.
    fn new(event: Value, name: &str, value: impl Into<Json>) -> Self {
        let kind = event["type"].as_str().unwrap_or_default().to_owned();
        Self { kind, event: Json::from(event).with(name, value) }
    }
}

/// The items of one response: those that are whole, and the one that grows.
pub(super) struct Output {
    parts: AnswerParts,
    token_bytes: TokenBytes,
    items: Vec<Json>,
    open: Option<Open>,
    /// Log-probabilities of tokens whose text is yet to come.
    logprobs: List,
    finish: Option<FinishReason>,
}

/// An item that grows.
struct Open {
    kind: Kind,
    id: String,
    text: String,
    logprobs: List,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Message,
}

impl Output {
    /// Of an answer that `parts` reads.
    pub(super) fn new(parts: AnswerParts, token_bytes: TokenBytes) -> Self {
        Self { parts, token_bytes, items: Vec::new(), open: None, logprobs: List::default(), finish: None }
    }

    /// Takes what the answer has grown by.
    pub(super) fn push(&mut self, event: &TokenEvent) -> Vec<Told> {
        let mut told = Vec::new();
        let parts = self.parts.push(&event.text, &event.token_ids, event.finish.is_some());
        for (_, position) in event.logprobs.iter().enumerate().filter(|(i, _)| self.parts.is_answered(*i)) {
            logprobs::push_chat(&self.token_bytes, position, &mut self.logprobs);
        }
        for part in parts {
            match part {
                Part::Reasoning(text) => self.add(Kind::Reasoning, &text, &mut told),
                Part::Content(text) => self.add(Kind::Message, &text, &mut told),
                Part::Call(call) => self.call(&call, &mut told),
            }
        }
        if let Some(finish) = &event.finish {
            self.finish = Some(finish.reason);
            self.end(&mut told);
        }
        told
    }

    /// Adds to the text of the item of this kind that grows, or begins one.
    fn add(&mut self, kind: Kind, text: &str, told: &mut Vec<Told>) {
        if self.open.as_ref().is_some_and(|open| open.kind != kind) {
            self.close("completed", told);
        }
        let index = self.items.len();
        let open = self.open.get_or_insert_with(|| {
            let open = Open::new(kind);
            let added = json!({"type": "response.output_item.added", "output_index": index});
            told.push(Told::new(added, "item", open.item("in_progress")));
            told.push(open.tell("response.content_part.added", index, "part", open.part()));
            open
        });
        open.text += text;
        let mut delta = open.tell(kind.delta(), index, "delta", Value::from(text));
        if kind == Kind::Message {
            let logprobs = std::mem::take(&mut self.logprobs);
            open.logprobs.append(&logprobs);
            delta.event.set("logprobs", &logprobs);
        }
        told.push(delta);
    }

    /// Ends the item that grows.
    fn close(&mut self, status: &str, told: &mut Vec<Told>) {
        let Some(mut open) = self.open.take() else { return };
        let index = self.items.len();
        let mut done = open.tell(open.kind.done(), index, "text", Value::from(open.text.as_str()));
        if open.kind == Kind::Message {
            open.logprobs.append(&std::mem::take(&mut self.logprobs));
            done.event.set("logprobs", &open.logprobs);
        }
        told.push(done);
        told.push(open.tell("response.content_part.done", index, "part", open.part()));
        self.done(open.item(status), told);
    }

    /// An item is whole.
    fn done(&mut self, item: Json, told: &mut Vec<Told>) {
        let done = json!({"type": "response.output_item.done", "output_index": self.items.len()});
        told.push(Told::new(done, "item", item.clone()));
        self.items.push(item);
    }

    /// A call, which comes whole.
    fn call(&mut self, call: &ToolCall, told: &mut Vec<Told>) {
        // What of its tokens has log-probabilities is no text.
        self.logprobs = List::default();
        self.close("completed", told);
        let (id, call_id) = (new_id("fc"), self.parts.call_id(call));
        let item = |status: &str, arguments: &str| {
            json!({"id": id, "type": "function_call", "status": status, "call_id": call_id, "name": call.name,
                "arguments": arguments})
        };
        let index = self.items.len();
        let added = json!({"type": "response.output_item.added", "output_index": index});
        told.push(Told::new(added, "item", item("in_progress", "")));
        for (kind, name) in [("delta", "delta"), ("done", "arguments")] {
            let kind = format!("response.function_call_arguments.{kind}");
            let event = json!({"type": kind, "item_id": id, "output_index": index});
            told.push(Told::new(event, name, Value::from(call.arguments.as_str())));
        }
        self.done(item("completed", &call.arguments).into(), told);
    }

    /// Ends the output. There is a message where there is nothing else.
    fn end(&mut self, told: &mut Vec<Told>) {
        if self.items.is_empty() && self.open.is_none() {
            self.add(Kind::Message, "", told);
        }
        let is_whole = self.finish == Some(FinishReason::Stop);
        self.close(if is_whole { "completed" } else { "incomplete" }, told);
    }

    /// Why the answer ended, once it has.
    pub(super) fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    /// How many tokens of reasoning there have been.
    pub(super) fn num_reasoning_tokens(&self) -> usize {
        self.parts.num_reasoning_tokens().unwrap_or(0)
    }

    /// The items. One that has not ended is incomplete.
    pub(super) fn into_items(mut self) -> Vec<Json> {
        self.close("incomplete", &mut Vec::new());
        self.items
    }
}

impl Open {
    fn new(kind: Kind) -> Self {
        let prefix = if kind == Kind::Reasoning { "rs" } else { "msg" };
        Self { kind, id: new_id(prefix), text: String::new(), logprobs: List::default() }
    }

    /// Its one part.
    fn part(&self) -> Json {
        match self.kind {
            Kind::Reasoning => json!({"type": "reasoning_text", "text": self.text}).into(),
            Kind::Message => Json::from(json!({"type": "output_text", "text": self.text, "annotations": []}))
                .with("logprobs", &self.logprobs),
        }
    }

    fn item(&self, status: &str) -> Json {
        let parts = if status == "in_progress" { Vec::new() } else { vec![self.part()] };
        let item = match self.kind {
            Kind::Reasoning => json!({"id": self.id, "type": "reasoning", "status": status, "summary": []}),
            Kind::Message => json!({"id": self.id, "type": "message", "status": status, "role": "assistant"}),
        };
        Json::from(item).with("content", parts)
    }

    /// What is told of its part.
    fn tell(&self, kind: &str, output_index: usize, name: &str, value: impl Into<Json>) -> Told {
        let event = json!({"type": kind, "item_id": self.id, "output_index": output_index, "content_index": 0});
        Told::new(event, name, value)
    }
}

impl Kind {
    const fn delta(self) -> &'static str {
        match self {
            Self::Reasoning => "response.reasoning_text.delta",
            Self::Message => "response.output_text.delta",
        }
    }

    const fn done(self) -> &'static str {
        match self {
            Self::Reasoning => "response.reasoning_text.done",
            Self::Message => "response.output_text.done",
        }
    }
}

fn new_id(prefix: &str) -> String {
    format!("{prefix}_{}", random_letters(24))
}
