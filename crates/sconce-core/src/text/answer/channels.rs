//! [`ChannelReader`]: answers of several messages, each with a header that names its channel and who it is for.

use super::marks::{CALL, CHANNEL, CONSTRAIN, END, MESSAGE, OF_CHANNELS, RETURN, START, is_sign, signed};
use super::{Place, Section};
use crate::text::ToolCall;

/// What comes before the name of a function that a message is for.
const FUNCTIONS: &str = "functions.";
/// Text that begins an answer without a channel is no header if it is longer.
const MAX_START_BYTES: usize = 1024;

/// Reads messages. What an answer's first header can have begun with, and has not, is an answer without one.
#[derive(Debug, Clone)]
pub(super) struct ChannelReader {
    part: Part,
    /// Whether there has been reasoning, and content: messages are put on lines of their own.
    has_reasoning: bool,
    has_content: bool,
    /// Whether the message at hand has begun.
    has_begun: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// The answer's first header, so far.
    Start(String),
    /// A header, so far.
    Header(String),
    /// A message.
    Message(Message),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Message {
    Reasoning,
    /// What is said before a call.
    Preamble,
    Answer,
    /// To a function; what it has been told so far.
    Call(ToolCall),
}

impl ChannelReader {
    fn new(part: Part) -> Self {
        Self { part, has_reasoning: false, has_content: false, has_begun: false }
    }

    /// For an answer to a prompt, which ends with the begin of a message or within one.
    pub(super) fn behind(prompt: &str) -> Self {
        let at = prompt.rfind("<|start|>").unwrap_or(prompt.len());
        let mut reader = Self::new(Part::Header(String::new()));
        reader.push(&signed(&prompt[at..], &OF_CHANNELS));
        Self::new(match reader.part {
            Part::Header(header) if matches!(header.trim(), "" | "assistant") => Part::Start(String::new()),
            part => part,
        })
    }

    pub(super) fn push(&mut self, text: &str) -> Vec<Section> {
        let (mut sections, mut rest) = (Vec::new(), text);
        while let Some(c) = rest.chars().next() {
            if is_sign(c) {
                self.push_mark(c, &mut sections);
                rest = &rest[c.len_utf8()..];
            } else {
                let at = rest.find(is_sign).unwrap_or(rest.len());
                self.push_text(&rest[..at], &mut sections);
                rest = &rest[at..];
            }
        }
        sections
    }

    pub(super) fn finish(&mut self) -> Vec<Section> {
        let mut sections = Vec::new();
        if let Part::Start(text) = &mut self.part {
            sections.extend((!text.is_empty()).then(|| Section::Content(std::mem::take(text))));
        }
        self.end(&mut sections);
        sections
    }

    pub(super) fn place(&self) -> Place {
        match &self.part {
            Part::Start(_) => Place::Undecided,
            Part::Message(Message::Answer) => Place::Answer,
            Part::Header(_) | Part::Message(_) => Place::Before,
        }
    }

    pub(super) fn is_in_reasoning(&self) -> bool {
        self.part == Part::Message(Message::Reasoning)
    }

    pub(super) fn is_in_header(&self) -> bool {
        matches!(self.part, Part::Header(_))
    }

    fn push_text(&mut self, text: &str, sections: &mut Vec<Section>) {
        let message = match &mut self.part {
            Part::Header(header) => return header.push_str(text),
            Part::Start(header) => {
                header.push_str(text);
                let begin = header.trim_start();
                let may_name = begin.starts_with("to=") || "to=".starts_with(begin);
                if may_name && header.len() <= MAX_START_BYTES {
                    return;
                }
                let text = std::mem::take(header);
                self.part = Part::Message(Message::Answer);
                self.has_begun = false;
                return self.push_text(&text, sections);
            }
            Part::Message(message) => message,
        };
        let (has_said, section): (_, fn(String) -> Section) = match message {
            Message::Reasoning => (&mut self.has_reasoning, Section::Reasoning),
            Message::Preamble | Message::Answer => (&mut self.has_content, Section::Content),
            Message::Call(call) => return call.arguments.push_str(text),
        };
        let is_apart = std::mem::replace(has_said, true) && !std::mem::replace(&mut self.has_begun, true);
        self.has_begun = true;
        sections.push(section(if is_apart { format!("\n{text}") } else { text.to_owned() }));
    }

    fn push_mark(&mut self, mark: char, sections: &mut Vec<Section>) {
        match (mark, &mut self.part) {
            (START | END | CALL | RETURN, _) => {
                self.end(sections);
                self.part = Part::Header(String::new());
            }
            (MESSAGE, Part::Start(header) | Part::Header(header)) => {
                self.part = Part::Message(message(header));
                self.has_begun = false;
            }
            (CHANNEL | CONSTRAIN, Part::Header(header)) => header.push(mark),
            (CHANNEL, Part::Start(header)) => {
                header.push(mark);
                self.part = Part::Header(std::mem::take(header));
            }
            // A message that was not ended.
            (CHANNEL, Part::Message(_)) => {
                self.end(sections);
                self.part = Part::Header(mark.into());
            }
            _ => {}
        }
    }

    /// A message ends.
    fn end(&mut self, sections: &mut Vec<Section>) {
        if let Part::Message(Message::Call(_)) = &self.part
            && let Part::Message(Message::Call(call)) = std::mem::replace(&mut self.part, Part::Header(String::new()))
        {
            sections.push(Section::Call(call));
        }
    }
}

/// What a message with this header is.
fn message(header: &str) -> Message {
    let word_behind = |mark: &str| {
        let (_, rest) = header.split_once(mark)?;
        rest.trim_start().split(|c: char| c.is_whitespace() || is_sign(c)).next()
    };
    let channel = word_behind(CHANNEL.encode_utf8(&mut [0; 4])).unwrap_or_default();
    let function = word_behind("to=").and_then(|recipient| recipient.strip_prefix(FUNCTIONS));
    match (function, channel) {
        (Some(name), _) => Message::Call(ToolCall { name: name.to_owned(), arguments: String::new() }),
        (None, "analysis") => Message::Reasoning,
        (None, "commentary") => Message::Preamble,
        (None, _) => Message::Answer,
    }
}
