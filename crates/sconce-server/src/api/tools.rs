//! [`Calls`]: which tools a chat's answers may call, and [`AnswerCalls`]: the calls of one answer as its text comes.

#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use sconce::{AnswerPart, CallCount, CallForm, CallReader, FinishReason, Marks, ToolCall};
use serde_json::{Value, json};

use crate::http::ApiError;
use crate::state::Served;
use crate::wire::{ToolChoice, WireRequest};

/// Which tools may be called, and how.
pub(super) struct Calls {
    /// In OpenAI's form.
    pub tools: Arc<[Value]>,
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
        let form = CallForm::of(template.source_with_tools());
        let count = if tools.is_parallel { CallCount::Many } else { CallCount::One };
        let all = tools.list.iter().cloned().collect();
        let callable: Vec<Value> = match &tools.choice {
            ToolChoice::None | ToolChoice::Auto => Vec::new(),
            ToolChoice::Required => tools.list.clone(),
            ToolChoice::Named(name) => {
                tools.list.iter().filter(|tool| tool["function"]["name"] == name.as_str()).cloned().collect()
            }
        };
        let is_named = matches!(tools.choice, ToolChoice::Named(_));
        if !callable.is_empty() {
            let grammar = form.grammar(&callable, count, handle.tokenizer())?;
            request.require_calls((grammar, form.binds_reasoning()));
        }
        Ok(Some(Self { tools: all, form, count, is_named }))
    }

    /// What has to be seen of an answer of theirs, beside what tells its parts.
    pub(super) fn marks(&self, served: &Served) -> Marks {
        self.form.marks(served.engine.handle().tokenizer())
    }

    /// An id for a call. Mistral's templates take 9 letters and digits and nothing else.
    fn new_id(&self) -> String {
        match self.form {
            CallForm::List | CallForm::Named => random_letters(9),
            _ => format!("call_{}", random_letters(24)),
        }
    }

    /// A call in OpenAI's form, with such `arguments`.
    fn call(&self, call: &ToolCall, arguments: &str) -> Value {
        let function = json!({"name": call.name, "arguments": arguments});
        json!({"id": self.new_id(), "type": "function", "function": function})
    }
}

/// Letters and digits that do not come twice: the standard library's hash keys are random.
pub(super) fn random_letters(num: usize) -> String {
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

/// The calls of one answer, in what it says. Without [`Calls`] all of that is text.
pub(super) struct AnswerCalls {
    calls: Option<Arc<Calls>>,
    /// Finds calls in text, where a model writes them there.
    reader: Option<CallReader>,
    num_calls: usize,
}

impl AnswerCalls {
    pub(super) fn new(calls: Option<&Arc<Calls>>) -> Self {
        let reader = |calls: &Arc<Calls>| calls.form.reader(calls.tools.clone());
        Self { calls: calls.cloned(), reader: calls.and_then(reader), num_calls: 0 }
    }

    /// How many there have been.
    pub(super) fn num_calls(&self) -> usize {
        self.num_calls
    }

    /// The parts that are certain once `text` has followed.
    pub(super) fn push(&mut self, text: &str) -> Vec<AnswerPart> {
        let parts = match &mut self.reader {
            Some(reader) => reader.push(text),
            None => vec![AnswerPart::Text(text.to_owned())],
        };
        self.taken(parts)
    }

    /// The same for a message to a tool. One that is no call is text.
    pub(super) fn push_call(&mut self, call: ToolCall) -> Vec<AnswerPart> {
        let is_call = self.calls.as_ref().is_some_and(|calls| call.is_of(&calls.tools));
        self.taken(vec![if is_call { AnswerPart::Call(call) } else { AnswerPart::Text(call.arguments) }])
    }

    /// The last parts.
    pub(super) fn finish(&mut self) -> Vec<AnswerPart> {
        let parts = self.reader.as_mut().map_or(Vec::new(), CallReader::finish);
        self.taken(parts)
    }

    /// Parts that count: behind the only call nothing does.
    fn taken(&mut self, mut parts: Vec<AnswerPart>) -> Vec<AnswerPart> {
        let count = self.calls.as_ref().map_or(CallCount::Many, |calls| calls.count);
        parts.retain(|part| {
            let is_taken = count == CallCount::Many || self.num_calls == 0;
            self.num_calls += usize::from(is_taken && matches!(part, AnswerPart::Call(_)));
            is_taken
        });
        parts
    }

    /// Why the answer ended, in OpenAI's words: what was asked for by name is no reason.
    pub(super) fn finish_reason(&self, reason: FinishReason) -> &'static str {
        let is_named = self.calls.as_ref().is_some_and(|calls| calls.is_named);
        if self.num_calls > 0 && !is_named && reason == FinishReason::Stop { "tool_calls" } else { reason.as_str() }
    }

    /// A call in OpenAI's form, with such `arguments`.
    pub(super) fn json(&self, call: &ToolCall, arguments: &str) -> Option<Value> {
        self.calls.as_ref().map(|calls| calls.call(call, arguments))
    }
}
