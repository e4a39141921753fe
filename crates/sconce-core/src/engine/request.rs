//! [`GenerationRequest`]: what a caller asks of the engine.

use crate::config::{Grammar, SamplingParams};
use crate::text::{ChatInput, Marks};

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
    /// The adapter that it goes through, by name ([`EngineConfig::adapters`](crate::config::EngineConfig::adapters)); `None`: the model as
    /// it is.
    pub adapter: Option<String>,
    /// Keep only so many last tokens of the prompt.
    pub truncate_prompt_tokens: Option<usize>,
    /// Whether special tokens such as BOS are added to a text prompt, where the tokenizer adds them.
    pub add_special_tokens: bool,
    /// What the answer will be for the most part, such as a file in which little is to be changed: drafts are taken from it
    /// ([`EngineConfig::num_speculative_tokens`](crate::config::EngineConfig::num_speculative_tokens)). It changes no answer.
    pub prediction: Option<String>,
    /// What the answer has to match: each of its sequences, up to the token that ends it, if it is not cut off before. Where a
    /// conversation is answered with reasoning, that is free, and what follows has to match.
    pub grammar: Option<Grammar>,
    /// Whether the grammar is of the reasoning too, with all marks.
    pub binds_reasoning: bool,
    /// Tokens that come in the answer's text as a character of their own, whether special tokens are skipped or not: those that tell its
    /// parts ([`AnswerForm::marks`](crate::text::AnswerForm::marks), [`CallForm::marks`](crate::text::CallForm::marks)).
    pub marks: Marks,
}

impl GenerationRequest {
    /// A request with default parameters.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            params: SamplingParams::default(),
            adapter: None,
            truncate_prompt_tokens: None,
            add_special_tokens: true,
            prediction: None,
            grammar: None,
            binds_reasoning: false,
            marks: Marks::default(),
        }
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

    /// The same request through an adapter.
    pub fn with_adapter(mut self, name: impl Into<String>) -> Self {
        self.adapter = Some(name.into());
        self
    }

    /// The same request with what its answer will be for the most part.
    pub fn with_prediction(mut self, prediction: impl Into<String>) -> Self {
        self.prediction = Some(prediction.into());
        self
    }

    /// The same request with tokens that come in the text as a character of their own.
    pub fn with_marks(mut self, marks: Marks) -> Self {
        self.marks = marks;
        self
    }

    /// The same request with what its answer has to match.
    pub fn with_grammar(mut self, grammar: Grammar) -> Self {
        self.grammar = Some(grammar);
        self
    }
}
