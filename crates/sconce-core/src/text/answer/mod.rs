//! [`AnswerForm`]: how a model sets its reasoning apart from what it answers, and [`AnswerReader`], which tells the two apart as text
//! or tokens come.

mod channels;
mod marks;
#[cfg(test)]
mod tests;
mod thinking;

use std::sync::Arc;

use crate::text::{ChatInput, Tokenizer, ToolCall};

use channels::ChannelReader;
pub use marks::Marks;
pub(super) use marks::{special, spelled, unmarked};
use thinking::{TAGS, Tags, ThinkingReader};

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Section {
    /// What the model thinks before it answers.
    Reasoning(String),
    /// What it answers.
    Content(String),
    /// A message to a tool, whole: its name, and what is said, which need not be what the tool takes.
    Call(ToolCall),
}

/// What the next token is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Reasoning, if it opens one; else the answer.
    Undecided,
    /// What comes before the answer.
    Before,
    /// The answer.
    Answer,
}

/// How a model sets its reasoning apart from what it answers. Its chat template, which reads or writes such answers, says so.
#[derive(Debug, Clone)]
pub struct AnswerForm {
    kind: Kind,
    marks: Marks,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Thinking(&'static Tags),
    Channels,
}

impl AnswerForm {
    /// The form of a model with a chat template of this source.
    pub fn of(template: &str, tokenizer: &Tokenizer) -> Self {
        // A template that takes answers apart names the mark that ends reasoning.
        let tags = || TAGS.iter().find(|tags| template.contains(tags.close));
        let (kind, marks) = if template.contains("<|channel|>") && tokenizer.token_to_id("<|channel|>").is_some() {
            (Kind::Channels, marks::found(&marks::OF_CHANNELS, tokenizer).collect())
        } else if let Some(tags) = tags() {
            (Kind::Thinking(tags), special(&[tags.open, tags.close], tokenizer))
        } else {
            (Kind::Plain, Vec::new())
        };
        Self { kind, marks: marks.into() }
    }

    /// The form of a model whose answers are taken as they are.
    pub fn plain() -> Self {
        Self { kind: Kind::Plain, marks: Marks::default() }
    }

    /// Whether answers may have reasoning.
    pub fn reasons(&self) -> bool {
        self.kind != Kind::Plain
    }

    /// The tokens that tell the parts of an answer, which have to be in the text that is read
    /// ([`GenerationRequest::marks`](crate::engine::GenerationRequest::marks)).
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// A reader for answers to a conversation, which has been rendered to `prompt`: that can end within a part of the answer.
    pub fn reader(&self, chat: &ChatInput, prompt: &str) -> AnswerReader {
        let inner = match self.kind {
            Kind::Plain => Inner::Plain,
            Kind::Thinking(tags) if chat.continue_final_message => {
                let content = chat.messages.last().map_or(String::new(), |message| text_of(&message["content"]));
                Inner::Thinking(ThinkingReader::behind_text(tags, &content))
            }
            Kind::Thinking(tags) => Inner::Thinking(ThinkingReader::behind_prompt(tags, prompt)),
            Kind::Channels => Inner::Channels(ChannelReader::behind(prompt)),
        };
        AnswerReader { inner, marks: self.marks.clone() }
    }
}

/// All of a message's text.
fn text_of(content: &serde_json::Value) -> String {
    match content.as_array() {
        Some(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        None => content.as_str().unwrap_or_default().to_owned(),
    }
}

/// Tells the parts of an answer apart as its text comes. White space around reasoning belongs to neither part.
#[derive(Debug, Clone)]
pub struct AnswerReader {
    inner: Inner,
    marks: Marks,
}

#[derive(Debug, Clone)]
enum Inner {
    Plain,
    Thinking(ThinkingReader),
    Channels(ChannelReader),
}

impl Default for AnswerReader {
    /// A reader for answers without reasoning.
    fn default() -> Self {
        Self { inner: Inner::Plain, marks: Marks::default() }
    }
}

impl AnswerReader {
    /// Whether there may be reasoning.
    pub fn reasons(&self) -> bool {
        !matches!(self.inner, Inner::Plain)
    }

    /// What is certain once `text` has followed, in which marks come as their characters.
    pub fn push(&mut self, text: &str) -> Vec<Section> {
        match &mut self.inner {
            Inner::Plain if text.is_empty() => Vec::new(),
            Inner::Plain => vec![Section::Content(text.to_owned())],
            Inner::Thinking(reader) => reader.push(text),
            Inner::Channels(reader) => reader.push(text),
        }
    }

    /// What is left once nothing more follows.
    pub fn finish(&mut self) -> Vec<Section> {
        match &mut self.inner {
            Inner::Plain => Vec::new(),
            Inner::Thinking(reader) => reader.finish(),
            Inner::Channels(reader) => reader.finish(),
        }
    }

    /// The same for one token. A reader takes texts or tokens, not both: half a character makes no text of its own.
    pub(in crate::text) fn push_token(&mut self, tokenizer: &Tokenizer, token_id: u32) -> Vec<Section> {
        match self.marks.iter().find(|(id, _)| *id == token_id) {
            Some(&(_, sign)) => self.push(sign.encode_utf8(&mut [0; 4])),
            None if tokenizer.is_special(token_id) => Vec::new(),
            None => self.push(&unmarked(String::from_utf8_lossy(&tokenizer.token_bytes(token_id)).into_owned())),
        }
    }

    /// What the next token is part of.
    pub fn place(&self) -> Place {
        match &self.inner {
            Inner::Plain => Place::Answer,
            Inner::Thinking(reader) => reader.place(),
            Inner::Channels(reader) => reader.place(),
        }
    }

    /// Whether what comes next is reasoning.
    pub fn is_in_reasoning(&self) -> bool {
        match &self.inner {
            Inner::Plain => false,
            Inner::Thinking(reader) => reader.place() == Place::Before,
            Inner::Channels(reader) => reader.is_in_reasoning(),
        }
    }

    /// Whether what comes next is part of what stands around reasoning and answers.
    fn is_in_header(&self) -> bool {
        matches!(&self.inner, Inner::Channels(reader) if reader.is_in_header())
    }

    /// Where that is undecided: the tokens with which it could become, or remain to be seen whether it is, reasoning.
    pub(in crate::text) fn opening_ids(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        match &self.inner {
            Inner::Plain => Vec::new(),
            Inner::Thinking(reader) => {
                let rest = reader.rest_of_open();
                // Marks are ASCII: every byte is a character, spelled as itself.
                (1..=rest.len()).filter_map(|len| tokenizer.token_to_id(&rest[..len])).collect()
            }
            Inner::Channels(_) => tokenizer.token_to_id("<|channel|>").into_iter().collect(),
        }
    }

    /// What would end the reasoning if it came next, where a part of the mark that ends it has come.
    pub(in crate::text) fn rest_of_close(&self) -> Option<&'static str> {
        match &self.inner {
            Inner::Thinking(reader) => reader.rest_of_close(),
            Inner::Plain | Inner::Channels(_) => None,
        }
    }
}

/// Counts the tokens of an answer's reasoning, among them the mark that ends it.
#[derive(Debug, Clone)]
pub struct ReasoningCount {
    reader: AnswerReader,
    tokenizer: Arc<Tokenizer>,
    num_tokens: usize,
}

impl ReasoningCount {
    /// Of an answer that is read by such a reader, which has read nothing.
    pub fn new(reader: AnswerReader, tokenizer: Arc<Tokenizer>) -> Self {
        Self { reader, tokenizer, num_tokens: 0 }
    }

    /// Takes the next tokens. Returns of each whether it is part of what is answered: neither of reasoning nor of what stands around it.
    pub fn push(&mut self, token_ids: &[u32]) -> Vec<bool> {
        let is_answered = |&id: &u32| {
            let was = (self.reader.is_in_reasoning(), self.reader.is_in_header());
            self.reader.push_token(&self.tokenizer, id);
            let is_reasoning = was.0 || self.reader.is_in_reasoning();
            self.num_tokens += usize::from(is_reasoning);
            !is_reasoning && !was.1 && !self.reader.is_in_header()
        };
        token_ids.iter().map(is_answered).collect()
    }

    /// How many there have been.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }
}
