//! [`Calls`]: which tools a chat's answers may call, and [`AnswerCalls`]: the calls of one answer as its text comes.

#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use sconce::{AnswerPart, CallCount, CallForm, CallReader, FinishReason, ToolCall};
use serde_json::{Value, json};

use crate::http::ApiError;
use crate::state::Served;
use crate::wire::{ToolChoice, WireRequest};

/// Which tools may be called, and how.
pub(super) struct Calls {
    pub names: Arc<[String]>,
    pub form: CallForm,
    pub count: CallCount,
    /// Whether the request itself says which tool is called.
    pub is_named: bool,
}

impl Calls {
    /// Those of `request`, if it has tools. Where a call has to come the answer is made to match one.
    pub(super) fn new(served: &Served, request: &mut WireRequest) -> Result<Option<Self>, ApiError> {
        let handle = served.engine.handle();
        let tools = &request.tools;
        // Without a template the engine refuses the messages.
        let Some(template) = handle.chat_template().filter(|_| tools.is_any()) else { return Ok(None) };
        let form = CallForm::of(template.source_with_tools())?;
        let count = if tools.is_parallel { CallCount::Many } else { CallCount::One };
        let names = tools.names().map(str::to_owned).collect();
        let callable: Vec<Value> = match &tools.choice {
            ToolChoice::None | ToolChoice::Auto => Vec::new(),
            ToolChoice::Required => tools.list.clone(),
            ToolChoice::Named(name) => {
                tools.list.iter().filter(|tool| tool["function"]["name"] == name.as_str()).cloned().collect()
            }
        };
        let is_named = matches!(tools.choice, ToolChoice::Named(_));
        if !callable.is_empty() {
            request.require_calls(form.grammar(&callable, count, handle.tokenizer()));
        }
        Ok(Some(Self { names, form, count, is_named }))
    }

    /// An id for a call. Mistral's templates take 9 letters and digits and nothing else.
    fn new_id(&self) -> String {
        match self.form {
            CallForm::List => random_letters(9),
            CallForm::Tagged | CallForm::Object => format!("call_{}", random_letters(24)),
        }
    }

    /// A call in OpenAI's form, with such `arguments`.
    fn call(&self, call: &ToolCall, arguments: &str) -> Value {
        let function = json!({"name": call.name, "arguments": arguments});
        json!({"id": self.new_id(), "type": "function", "function": function})
    }
}

/// Letters and digits that do not come twice: the standard library's hash keys are random.
fn random_letters(num: usize) -> String {
    const LETTERS: &[u8; 62] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    const NUM_AT_ONCE: usize = 8;
    let some = |_| {
        let mut bits = RandomState::new().hash_one(Instant::now());
        std::array::from_fn::<char, NUM_AT_ONCE, _>(|_| {
            let letter = LETTERS[(bits % 62) as usize];
            bits /= 62;
            letter.into()
        })
    };
    (0..num.div_ceil(NUM_AT_ONCE)).flat_map(some).take(num).collect()
}

/// The calls of one answer. Without [`Calls`] all of it is text.
pub(super) struct AnswerCalls {
    calls: Option<(Arc<Calls>, CallReader)>,
    num_calls: usize,
}

impl AnswerCalls {
    pub(super) fn new(calls: Option<&Arc<Calls>>) -> Self {
        let reader = |calls: &Arc<Calls>| (calls.clone(), CallReader::new(calls.names.clone()));
        Self { calls: calls.map(reader), num_calls: 0 }
    }

    /// The parts that are certain once `text` has followed, or the last ones. Behind the only call nothing counts.
    fn push(&mut self, text: &str, is_last: bool) -> Vec<AnswerPart> {
        let Some((calls, reader)) = &mut self.calls else {
            return if text.is_empty() { Vec::new() } else { vec![AnswerPart::Text(text.to_owned())] };
        };
        let mut parts = reader.push(text);
        if is_last {
            parts.extend(reader.finish());
        }
        let (count, num_calls) = (calls.count, &mut self.num_calls);
        parts.retain(|part| {
            let is_taken = count == CallCount::Many || *num_calls == 0;
            *num_calls += usize::from(is_taken && matches!(part, AnswerPart::Call(_)));
            is_taken
        });
        parts
    }

    /// Why the answer ended, in OpenAI's words: what was asked for by name is no reason.
    pub(super) fn finish_reason(&self, reason: FinishReason) -> &'static str {
        let is_named = self.calls.as_ref().is_some_and(|(calls, _)| calls.is_named);
        if self.num_calls > 0 && !is_named && reason == FinishReason::Stop { "tool_calls" } else { reason.as_str() }
    }

    /// The message of an answer with this text.
    pub(super) fn message(&mut self, text: &str) -> Value {
        let (mut content, mut calls) = (String::new(), Vec::new());
        for part in self.push(text, true) {
            match (part, &self.calls) {
                (AnswerPart::Text(text), _) => content += &text,
                (AnswerPart::Call(call), Some((of, _))) => calls.push(of.call(&call, &call.arguments)),
                (AnswerPart::Call(_), None) => {}
            }
        }
        let has_content = !content.is_empty() || calls.is_empty();
        let mut message = json!({"role": "assistant", "content": has_content.then_some(content), "refusal": null});
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        message
    }

    /// What a stream says once `text` has followed: text, and of each call first which it is, then its arguments.
    pub(super) fn deltas(&mut self, text: &str, is_last: bool) -> Vec<Value> {
        let mut index = self.num_calls;
        let mut deltas = Vec::new();
        for part in self.push(text, is_last) {
            match (part, &self.calls) {
                (AnswerPart::Text(text), _) => deltas.push(json!({"content": text})),
                (AnswerPart::Call(call), Some((calls, _))) => {
                    let mut begun = calls.call(&call, "");
                    begun["index"] = index.into();
                    let rest = json!({"index": index, "function": {"arguments": call.arguments}});
                    deltas.extend([begun, rest].map(|call| json!({"tool_calls": [call]})));
                    index += 1;
                }
                (AnswerPart::Call(_), None) => {}
            }
        }
        deltas
    }
}
