//! Text in, text out: tokenizer, incremental detokenizer, stop strings, chat templates.

mod chat_template;
mod detokenizer;
mod stop;
#[cfg(test)]
mod testing;
mod tokenizer;

pub use chat_template::{ChatInput, ChatTemplate, RenderedChat};
pub use detokenizer::Detokenizer;
pub use stop::StopMatcher;
pub use tokenizer::Tokenizer;
