//! Text in, text out: tokenizer, incremental detokenizer, stop strings, grammars, chat templates, reasoning, calls of tools.

mod answer;
mod chat_template;
mod detokenizer;
mod grammar;
mod stop;
#[cfg(test)]
mod testing;
mod tokenizer;
mod tool_calls;

pub use answer::{AnswerForm, AnswerReader, Marks, Place, ReasoningCount, Section};
pub use chat_template::{ChatInput, ChatTemplate, RenderedChat};
pub use detokenizer::Detokenizer;
pub use grammar::{GrammarCompiler, GrammarMatcher};
pub use stop::StopMatcher;
pub use tokenizer::Tokenizer;
pub use tool_calls::{AnswerPart, CallCount, CallForm, CallReader, ToolCall};
