//! [`CallForm`]: how a model writes calls of tools, and [`CallReader`], which finds them in its answer.

mod grammar;
mod python;
mod reader;
mod scan;
#[cfg(test)]
mod tests;
mod written;

use std::sync::Arc;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::text::Tokenizer;
use crate::text::answer::{Marks, special};

pub use reader::{AnswerPart, CallReader};

/// What calls begin with in some forms, and what they end with in one.
const TAG: &str = "<tool_call>";
const END_TAG: &str = "</tool_call>";
const LIST_MARK: &str = "[TOOL_CALLS]";
const PYTHON_MARK: &str = "<|python_tag|>";
/// What stands between a name and its arguments, and what may stand before that.
const ARGS_MARK: &str = "[ARGS]";
const ID_MARK: &str = "[CALL_ID]";
/// DeepSeek's: around all calls, around each, and behind a name, or the word before it.
const CALLS: &str = "<｜tool▁calls▁begin｜>";
const END_CALLS: &str = "<｜tool▁calls▁end｜>";
const CALL: &str = "<｜tool▁call▁begin｜>";
const END_CALL: &str = "<｜tool▁call▁end｜>";
const SEPARATOR: &str = "<｜tool▁sep｜>";
/// What arguments begin and end with in some of them.
const FENCE: &str = "```json";
const END_FENCE: &str = "```";
/// LFM2's, around a list of calls.
const PYTHONIC: &str = "<|tool_call_start|>";
const END_PYTHONIC: &str = "<|tool_call_end|>";

/// White space around calls and within them is not longer: what has more is text, so that it is not looked at again and again.
const MAX_BLANK_BYTES: usize = 1024;

/// The form in which a model writes calls. Its chat template shows it the calls of earlier turns, and so says which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallForm {
    /// `<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>`, one after another: Hermes, Qwen.
    Tagged,
    /// `<tool_call>\n<function=NAME>\n<parameter=KEY>\nVALUE\n</parameter>\n</function>\n</tool_call>`: Qwen's models that code.
    Xml,
    /// `<tool_call>NAME\n<arg_key>KEY</arg_key>\n<arg_value>VALUE</arg_value>\n</tool_call>`: GLM.
    Keys,
    /// `[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]`: Mistral.
    List,
    /// `[TOOL_CALLS]NAME[ARGS]{...}`, one after another: newer models of Mistral's.
    Named,
    /// `<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{...}<｜tool▁call▁end｜>`, one after another between marks of their own: DeepSeek from V3.1 on.
    Separated,
    /// The same of `function<｜tool▁sep｜>NAME` and the arguments as a block of code: DeepSeek-V3 and R1.
    Fenced,
    /// `<|tool_call_start|>[NAME(KEY=VALUE, ...), ...]<|tool_call_end|>`, values as Python or JSON has them: LFM2.
    Pythonic,
    /// A message to `functions.NAME`, one an answer: where answers have channels.
    Channels,
    /// `{"name": ..., "parameters": {...}}` and nothing else, one call an answer: Llama 3, and whatever names no other form.
    Object,
}

/// How many calls an answer may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallCount {
    /// One.
    One,
    /// Any number from one on, where the form has more than one.
    Many,
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// The tool.
    pub name: String,
    /// Its arguments: the text of a JSON object.
    pub arguments: String,
}

impl ToolCall {
    /// Whether it calls one of `tools` (in OpenAI's form) with arguments that are an object.
    pub fn is_of(&self, tools: &[Value]) -> bool {
        let is_object = self.arguments.trim_start().starts_with('{');
        tool(tools, &self.name).is_some() && is_object && serde_json::from_str::<&RawValue>(&self.arguments).is_ok()
    }
}

/// The function of this name.
fn tool<'a>(tools: &'a [Value], name: &str) -> Option<&'a Value> {
    tools.iter().map(|tool| &tool["function"]).find(|function| function["name"] == name)
}

impl CallForm {
    /// The form of the model whose chat template for tools has this source.
    pub fn of(template: &str) -> Self {
        let has_fence = template.contains(FENCE);
        let forms = [
            ("<|channel|>", Self::Channels),
            ("<function=", Self::Xml),
            ("<arg_key>", Self::Keys),
            (SEPARATOR, if has_fence { Self::Fenced } else { Self::Separated }),
            (PYTHONIC, Self::Pythonic),
            // One that shows its tools so and calls as they were answered.
            ("<|tool_list_start|>", Self::Pythonic),
            (TAG, Self::Tagged),
            (ARGS_MARK, Self::Named),
            (LIST_MARK, Self::List),
        ];
        let form = forms.iter().find(|(mark, _)| template.contains(mark));
        form.map_or(Self::Object, |&(_, form)| form)
    }

    /// Finds calls of `tools` (in OpenAI's form) in what a model answers; `None` where they are not part of that.
    pub fn reader(self, tools: Arc<[Value]>) -> Option<CallReader> {
        (self != Self::Channels).then(|| CallReader::new(tools))
    }

    /// Special tokens without which calls could not be found, as
    /// [`GenerationRequest::marks`](crate::engine::GenerationRequest::marks) takes them.
    pub fn marks(self, tokenizer: &Tokenizer) -> Marks {
        let marks: &[&str] = match self {
            // A name alone is no call.
            Self::Keys => &[TAG, END_TAG],
            Self::Named => &[LIST_MARK, ID_MARK, ARGS_MARK],
            Self::Separated | Self::Fenced => &[CALLS, END_CALLS, CALL, END_CALL, SEPARATOR],
            Self::Pythonic => &[PYTHONIC, END_PYTHONIC],
            _ => &[],
        };
        special(marks, tokenizer).into()
    }

    /// Whether its grammar is of an answer's reasoning too.
    pub fn binds_reasoning(self) -> bool {
        self == Self::Channels
    }
}
