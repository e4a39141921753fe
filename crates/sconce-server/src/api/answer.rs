//! [`AnswerParts`]: one answer of a chat as its tokens come: what is thought, what is said, and which tools are called.

#[cfg(test)]
pub(super) mod tests;

use std::sync::Arc;

use sconce::{
    AnswerPart, AnswerReader, CompletionOutput, FinishReason, Marks, ReasoningCount, Section, TokenEvent, ToolCall,
};
use serde_json::{Value, json};

use super::events::{Submitted, submit};
use super::tools::{AnswerCalls, Calls};
use crate::http::{ApiError, Exchange};
use crate::state::Served;
use crate::wire::WireRequest;

/// How the answers to a request are read.
pub(super) struct Reading {
    /// Reads an answer from its beginning.
    reader: AnswerReader,
    /// Counts the tokens of an answer's reasoning, where there can be any.
    count: Option<ReasoningCount>,
    calls: Option<Arc<Calls>>,
    shows_reasoning: bool,
}

/// Hands a conversation to the engine, and says how its answers are read.
pub(super) async fn ask(
    exchange: &Arc<Exchange>,
    served: &Arc<Served>,
    request: &mut WireRequest,
) -> Result<(Submitted, Reading), ApiError> {
    let calls = Calls::new(served, request)?.map(Arc::new);
    let marks = marks(served, calls.as_deref());
    let to_engine = request.take_request()?.with_marks(marks);
    let submitted = submit(exchange, served, to_engine, request.grammar_field()).await?;
    let reading = Reading::new(served, request, submitted.answer_reader.clone(), calls);
    Ok((submitted, reading))
}

/// The tokens that have to be seen to tell an answer's parts and its calls.
fn marks(served: &Served, calls: Option<&Calls>) -> Marks {
    let own = served.engine.handle().answer_form().marks();
    let of_calls = calls.map_or_else(Marks::default, |calls| calls.marks(served));
    own.iter().chain(of_calls.iter()).copied().collect()
}

impl Reading {
    /// Of a request whose answers are read by `reader` from their beginning, and may have `calls`.
    fn new(served: &Served, request: &WireRequest, reader: AnswerReader, calls: Option<Arc<Calls>>) -> Self {
        let tokenizer = served.engine.handle().tokenizer();
        let count = reader.reasons().then(|| ReasoningCount::new(reader.clone(), tokenizer.clone()));
        Self { reader, count, calls, shows_reasoning: request.include_reasoning }
    }

    /// Of answers without reasoning, whose tokens nobody counts.
    #[cfg(test)]
    pub(super) fn of_calls(calls: Option<&Arc<Calls>>) -> Self {
        Self::of(AnswerReader::default(), calls)
    }

    /// Of answers whose tokens nobody counts.
    #[cfg(test)]
    pub(super) fn of(reader: AnswerReader, calls: Option<&Arc<Calls>>) -> Self {
        Self { reader, count: None, calls: calls.cloned(), shows_reasoning: true }
    }
}

/// A part of an answer, in OpenAI's terms.
pub(super) enum Part {
    Reasoning(String),
    Content(String),
    Call(ToolCall),
}

/// One answer as its tokens come.
pub(super) struct AnswerParts {
    reader: AnswerReader,
    count: Option<ReasoningCount>,
    calls: AnswerCalls,
    shows_reasoning: bool,
    /// Of each of the last tokens whether it is part of what is answered, where they are counted.
    are_answered: Vec<bool>,
    /// Whether there has been reasoning, and anything else.
    has_thought: bool,
    has_said: bool,
}

impl AnswerParts {
    pub(super) fn new(reading: &Reading) -> Self {
        Self {
            reader: reading.reader.clone(),
            count: reading.count.clone(),
            calls: AnswerCalls::new(reading.calls.as_ref()),
            shows_reasoning: reading.shows_reasoning,
            are_answered: Vec::new(),
            has_thought: false,
            has_said: false,
        }
    }

    /// The parts that are certain once `text`, of some tokens, has followed, or the last ones.
    pub(super) fn push(&mut self, text: &str, token_ids: &[u32], is_last: bool) -> Vec<Part> {
        if let Some(count) = &mut self.count {
            self.are_answered = count.push(token_ids);
        }
        let mut sections = self.reader.push(text);
        self.has_thought |= self.reader.is_in_reasoning();
        if is_last {
            sections.extend(self.reader.finish());
        }
        let mut parts = Vec::new();
        let mut said = Vec::new();
        for section in sections {
            match section {
                Section::Reasoning(text) => {
                    self.has_thought = true;
                    parts.extend(self.shows_reasoning.then_some(Part::Reasoning(text)));
                }
                Section::Content(text) => said.extend(self.calls.push(&text)),
                Section::Call(call) => said.extend(self.calls.push_call(call)),
            }
            parts.extend(said.drain(..).map(Part::from));
        }
        if is_last {
            parts.extend(self.calls.finish().into_iter().map(Part::from));
        }
        self.has_said |= parts.iter().any(|part| !matches!(part, Part::Reasoning(_)));
        parts
    }

    /// How many tokens of reasoning there have been, where there can be any.
    pub(super) fn num_reasoning_tokens(&self) -> Option<usize> {
        self.count.as_ref().map(ReasoningCount::num_tokens)
    }

    /// Whether the `i`-th of the last tokens is part of what is answered.
    pub(super) fn is_answered(&self, i: usize) -> bool {
        self.are_answered.get(i).copied().unwrap_or(true)
    }

    /// Why the answer ended, in OpenAI's words.
    pub(super) fn finish_reason(&self, reason: FinishReason) -> &'static str {
        self.calls.finish_reason(reason)
    }

    /// A new id for a call.
    pub(super) fn call_id(&self, call: &ToolCall) -> Value {
        self.calls.json(call, "").map_or(Value::Null, |mut call| call["id"].take())
    }

    /// The message of a whole answer.
    pub(super) fn message(&mut self, output: &CompletionOutput) -> Value {
        let (mut reasoning, mut content, mut calls) = (String::new(), String::new(), Vec::new());
        for part in self.push(&output.text, &output.token_ids, true) {
            match part {
                Part::Reasoning(text) => reasoning += &text,
                Part::Content(text) => content += &text,
                Part::Call(call) => calls.extend(self.calls.json(&call, &call.arguments)),
            }
        }
        let has_content = !content.is_empty() || calls.is_empty() && !self.has_thought;
        let mut message = json!({"role": "assistant", "content": has_content.then_some(content), "refusal": null});
        if !reasoning.is_empty() {
            name_reasoning(&mut message, &reasoning);
        }
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        message
    }

    /// What a stream says of an event: reasoning, text, and of each call first which it is, then its arguments.
    pub(super) fn deltas(&mut self, event: &TokenEvent) -> Vec<Value> {
        let mut index = self.calls.num_calls();
        let mut deltas = Vec::new();
        for part in self.push(&event.text, &event.token_ids, event.finish.is_some()) {
            match part {
                Part::Reasoning(text) => deltas.push(reasoning_delta(&text)),
                Part::Content(text) => deltas.push(json!({"content": text})),
                Part::Call(call) => {
                    if let Some(mut begun) = self.calls.json(&call, "") {
                        begun["index"] = index.into();
                        let rest = json!({"index": index, "function": {"arguments": call.arguments}});
                        deltas.extend([begun, rest].map(|call| json!({"tool_calls": [call]})));
                        index += 1;
                    }
                }
            }
        }
        deltas
    }

    /// A delta of what is under way that adds nothing. What ends reasoning is of that.
    pub(super) fn empty_delta(&self) -> Value {
        let is_reasoning = self.shows_reasoning && self.has_thought && !self.has_said;
        if is_reasoning { reasoning_delta("") } else { json!({"content": ""}) }
    }
}

impl From<AnswerPart> for Part {
    fn from(said: AnswerPart) -> Self {
        match said {
            AnswerPart::Text(text) => Self::Content(text),
            AnswerPart::Call(call) => Self::Call(call),
        }
    }
}

fn reasoning_delta(text: &str) -> Value {
    let mut delta = json!({});
    name_reasoning(&mut delta, text);
    delta
}

/// Reasoning goes by two names: clients read the one or the other.
fn name_reasoning(message: &mut Value, text: &str) {
    for name in ["reasoning_content", "reasoning"] {
        message[name] = text.into();
    }
}
