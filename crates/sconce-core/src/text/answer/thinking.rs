//! [`ThinkingReader`]: answers that may begin with reasoning between two tags.

use super::marks::{is_sign, sign, without};
use super::{Place, Section};

/// What reasoning stands between. Each is a token, or text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tags {
    pub(super) open: &'static str,
    pub(super) close: &'static str,
}

/// The tags that are known.
pub(super) static TAGS: [Tags; 2] =
    [Tags { open: "<think>", close: "</think>" }, Tags { open: "[THINK]", close: "[/THINK]" }];

/// Reads an answer that may begin with reasoning. A second opening tag is text.
#[derive(Debug, Clone)]
pub(super) struct ThinkingReader {
    tags: &'static Tags,
    part: Part,
    /// What is not decided yet.
    pending: String,
    /// So many bytes at its beginning are white space, which is not looked at again.
    num_blank: usize,
}

/// What `pending` begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The answer: reasoning, if it begins with the tag.
    Start,
    /// White space at the beginning of reasoning.
    Opened,
    /// Reasoning.
    Reasoning,
    /// White space behind it.
    Closed,
    /// What is answered.
    Content,
}

/// Where a mark stands, and where it ends.
type Span = (usize, usize);

impl ThinkingReader {
    fn new(tags: &'static Tags, part: Part) -> Self {
        Self { tags, part, pending: String::new(), num_blank: 0 }
    }

    /// For an answer to a prompt, with which a template can have opened the reasoning, or closed it too.
    pub(super) fn behind_prompt(tags: &'static Tags, prompt: &str) -> Self {
        let prompt = prompt.trim_end();
        let part = if prompt.ends_with(tags.open) {
            Part::Opened
        } else if prompt.ends_with(tags.close) {
            Part::Closed
        } else {
            Part::Start
        };
        Self::new(tags, part)
    }

    /// For what follows on the beginning of an answer.
    pub(super) fn behind_text(tags: &'static Tags, text: &str) -> Self {
        let is_open = text.rfind(tags.open) > text.rfind(tags.close);
        Self::new(tags, if is_open { Part::Reasoning } else { Part::Content })
    }

    pub(super) fn push(&mut self, text: &str) -> Vec<Section> {
        self.pending.push_str(text);
        self.read(false)
    }

    pub(super) fn finish(&mut self) -> Vec<Section> {
        self.read(true)
    }

    pub(super) fn place(&self) -> Place {
        match self.part {
            Part::Start => Place::Undecided,
            Part::Opened | Part::Reasoning => Place::Before,
            Part::Closed | Part::Content => Place::Answer,
        }
    }

    /// What is missing of the opening tag.
    pub(super) fn rest_of_open(&self) -> &'static str {
        &self.tags.open[self.pending.len() - self.num_blank..]
    }

    /// What is missing of the closing tag, if a part of it has come.
    pub(super) fn rest_of_close(&self) -> Option<&'static str> {
        let num_come = num_begun(&self.pending, self.tags.close);
        (num_come > 0).then(|| &self.tags.close[num_come..])
    }

    fn read(&mut self, is_whole: bool) -> Vec<Section> {
        let mut sections = Vec::new();
        if self.part == Part::Start {
            let begin = self.pending[self.num_blank..].trim_start();
            let num_blank = self.pending.len() - begin.len();
            if let Some((0, end)) = find(begin, self.tags.open) {
                self.take(num_blank + end);
                self.part = Part::Opened;
            } else if is_whole || !self.tags.open.starts_with(begin) {
                self.part = Part::Content;
            } else {
                self.num_blank = num_blank;
            }
        }
        if matches!(self.part, Part::Opened | Part::Reasoning) {
            self.read_reasoning(is_whole, &mut sections);
        }
        if self.part == Part::Closed {
            self.trim_start();
            if !self.pending.is_empty() {
                self.part = Part::Content;
            }
        }
        if self.part == Part::Content {
            let own = [self.tags.open, self.tags.close].map(sign);
            let text: String = self.pending.drain(..).filter(|&c| !own.contains(&Some(c))).collect();
            sections.extend((!text.is_empty()).then_some(Section::Content(text)));
        }
        sections
    }

    /// Takes reasoning, but for white space at its end and for what may become the closing tag.
    fn read_reasoning(&mut self, is_whole: bool, sections: &mut Vec<Section>) {
        if self.part == Part::Opened {
            self.trim_start();
        }
        let pending = &self.pending[self.num_blank..];
        let (at, rest) = match find(pending, self.tags.close) {
            Some((at, end)) => (at, Some(self.num_blank + end)),
            None if is_whole => (pending.len(), None),
            None => (pending.len() - num_begun(pending, self.tags.close), None),
        };
        let (end, num_said) = (self.num_blank + at, pending[..at].trim_end().len());
        let len = if num_said > 0 { self.num_blank + num_said } else { 0 };
        let text = without(&self.pending[..len]);
        if !text.is_empty() {
            sections.push(Section::Reasoning(text));
            self.part = Part::Reasoning;
        }
        self.take(rest.unwrap_or(if is_whole { end } else { len }));
        if rest.is_some() {
            self.part = Part::Closed;
        } else if !is_whole {
            self.num_blank = end - len;
        }
    }

    fn trim_start(&mut self) {
        self.take(self.pending.len() - self.pending.trim_start().len());
    }

    /// The next `len` bytes are decided.
    fn take(&mut self, len: usize) {
        self.pending.drain(..len);
        self.num_blank = 0;
    }
}

/// The first place where a tag stands, as text or as a mark.
fn find(text: &str, tag: &str) -> Option<Span> {
    let spelled = text.find(tag).map(|at| (at, at + tag.len()));
    let marked = text.char_indices().find(|&(_, c)| is_sign(c) && sign(tag) == Some(c));
    let marked = marked.map(|(at, c)| (at, at + c.len_utf8()));
    [spelled, marked].into_iter().flatten().min()
}

/// So many bytes at the end of `text` are the beginning of `tag`.
fn num_begun(text: &str, tag: &str) -> usize {
    (1..tag.len()).rev().find(|&len| text.ends_with(&tag[..len])).unwrap_or(0)
}
