//! [`CallForm`]: how a model writes calls of tools, and [`CallReader`], which finds them in its answer.

mod reader;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value, json};

use crate::config::Grammar;
use crate::error::{Error, Result};
use crate::text::Tokenizer;
use crate::text::grammar::JSON_SPACE;

pub use reader::{AnswerPart, CallReader, ToolCall};

/// What calls begin with in some forms, and what they end with in one.
const TAG: &str = "<tool_call>";
const END_TAG: &str = "</tool_call>";
const LIST_MARK: &str = "[TOOL_CALLS]";
const PYTHON_MARK: &str = "<|python_tag|>";

/// The form in which a model writes calls. Its chat template shows it the calls of earlier turns, and so says which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallForm {
    /// `<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>`, one after another: Hermes, Qwen.
    Tagged,
    /// `[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]`: Mistral.
    List,
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

impl CallForm {
    /// The form of the model whose chat template for tools has this source. Error: `InvalidRequest` at `tools` for forms that
    /// [`CallReader`] does not read.
    pub fn of(template: &str) -> Result<Self> {
        // Newer templates of Mistral's, and of models that write XML or words of their own.
        for mark in ["[ARGS]", "<function=", "<arg_key>", "tool\u{2581}call", "<|tool_call_start|>"] {
            if template.contains(mark) {
                let message =
                    format!("tools: calls in the form of this model's chat template ({mark}) are not supported");
                return Err(Error::invalid("tools", message));
            }
        }
        Ok(if template.contains(TAG) {
            Self::Tagged
        } else if template.contains(LIST_MARK) {
            Self::List
        } else {
            Self::Object
        })
    }

    /// What answers match that call one of `tools` (in OpenAI's form) with arguments by its schema, and say nothing else.
    pub fn grammar(self, tools: &[Value], count: CallCount, tokenizer: &Tokenizer) -> Grammar {
        let mark = |mark: &str| match tokenizer.token_to_id(mark) {
            // A token of control is not spelled by its letters.
            Some(id) if tokenizer.is_special(id) => format!("<[{id}]>"),
            _ => quoted(mark),
        };
        let further = |separator: &str| match count {
            CallCount::One => String::new(),
            CallCount::Many => format!(" ({} call)*", quoted(separator)),
        };
        let names: Vec<String> = (0..tools.len()).map(|i| format!("call_{i}")).collect();
        let any = names.join(" | ");
        let mut lark = match self {
            Self::Tagged => format!(
                "start: call{}\ncall: {} \"\\n\" any_call \"\\n\" {}\nany_call: {any}\n",
                further("\n"),
                mark(TAG),
                mark(END_TAG)
            ),
            Self::List => {
                format!("start: {} \" \"? \"[\" call{} \"]\"\ncall: {any}\n", mark(LIST_MARK), further(", "))
            }
            Self::Object => format!("start: {any}\n"),
        };
        let key = if self == Self::Object { "parameters" } else { "arguments" };
        for (tool, rule) in tools.iter().zip(&names) {
            let function = &tool["function"];
            let begin = format!("{{\"name\": {}, \"{key}\": ", function["name"]);
            let schema = Value::Object(parameters(function));
            lark += &format!("{rule}: {} {rule}_json \"}}\"\n{rule}_json: %json {schema}\n", quoted(&begin));
        }
        Grammar::Lark(lark)
    }
}

/// The schema of a function's arguments, which are an object; a function without one has none.
fn parameters(function: &Value) -> Map<String, Value> {
    let mut schema = match &function["parameters"] {
        Value::Object(schema) => schema.clone(),
        _ => Map::from_iter([("additionalProperties".to_owned(), json!(false))]),
    };
    schema.entry("type").or_insert_with(|| json!("object"));
    // Calls are JSON as all know it, whatever a schema says of how to write it.
    schema.insert("x-guidance".to_owned(), json!({"whitespace_pattern": JSON_SPACE}));
    schema
}

/// A text as Lark writes it.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
