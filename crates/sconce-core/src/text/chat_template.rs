//! [`ChatTemplate`]: a conversation to a prompt, by the model's own Jinja template.

use std::path::Path;

use crate::error::Result;
use crate::text::Tokenizer;
use crate::weights::GgufMetadata;

/// A conversation and what its template may ask for.
#[derive(Debug, Clone, Default)]
pub struct ChatInput {
    /// A list of `{"role", "content", ...}` objects, as OpenAI's clients send them. `content` is a string, null, or a
    /// list of `{"type": "text", "text"}` parts.
    pub messages: Vec<serde_json::Value>,
    /// Tools that the template may present to the model.
    pub tools: Option<Vec<serde_json::Value>>,
    /// More variables for the template.
    pub template_kwargs: serde_json::Map<String, serde_json::Value>,
    /// Whether the last message is an assistant's to be continued rather than answered.
    pub continue_final_message: bool,
}

/// A rendered conversation, which remembers what users wrote.
#[derive(Debug, Clone)]
pub struct RenderedChat {}

impl RenderedChat {
    /// The prompt as text.
    pub fn text(&self) -> &str {
        todo!()
    }
}

/// A compiled chat template.
pub struct ChatTemplate {}

impl ChatTemplate {
    /// From chat_template.jinja or tokenizer_config.json in `dir`. None if there is none.
    pub fn from_dir(dir: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        todo!()
    }
    /// From a GGUF's `tokenizer.chat_template`. None if there is none. `path` is for error messages.
    pub fn from_gguf(path: &Path, metadata: &GgufMetadata, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        todo!()
    }
    /// The prompt. Errors: `InvalidRequest` at `messages`, with the template's own words where it refuses.
    pub fn render(&self, input: &ChatInput, tokenizer: &Tokenizer) -> Result<RenderedChat> {
        todo!()
    }
    /// The template's source.
    pub fn source(&self) -> &str {
        todo!()
    }
}
