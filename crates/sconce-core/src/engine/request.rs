//! [`GenerationRequest`]: what a caller asks of the engine.

use crate::config::SamplingParams;
use crate::text::ChatInput;

/// What is to be continued.
#[derive(Debug, Clone)]
pub enum Prompt {
    /// Text, tokenized as it stands; special tokens in it are recognised.
    Text(String),
    /// Token ids, used as they are.
    Tokens(Vec<u32>),
    /// A conversation, rendered by the model's chat template.
    Chat(ChatInput),
}

/// One request: a prompt and how to continue it.
#[derive(Debug, Clone)]
pub struct GenerationRequest {
    /// What is to be continued.
    pub prompt: Prompt,
    /// How it is to be continued.
    pub params: SamplingParams,
    /// Keep only so many last tokens of the prompt.
    pub truncate_prompt_tokens: Option<usize>,
    /// Whether special tokens such as BOS are added to a text prompt, where the tokenizer adds them.
    pub add_special_tokens: bool,
}

impl GenerationRequest {
    /// A request with default parameters.
    pub fn new(prompt: Prompt) -> Self {
        Self { prompt, params: SamplingParams::default(), truncate_prompt_tokens: None, add_special_tokens: true }
    }

    /// A request to continue `text`.
    pub fn text(text: impl Into<String>) -> Self {
        Self::new(Prompt::Text(text.into()))
    }

    /// A request to continue `token_ids`.
    pub fn tokens(token_ids: impl Into<Vec<u32>>) -> Self {
        Self::new(Prompt::Tokens(token_ids.into()))
    }

    /// A request to answer a conversation.
    pub fn chat(chat: ChatInput) -> Self {
        Self::new(Prompt::Chat(chat))
    }

    /// The same request with other parameters.
    pub fn with_params(mut self, params: SamplingParams) -> Self {
        self.params = params;
        self
    }
}
