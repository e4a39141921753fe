//! [`CallReader`]: an answer's text, as it comes, in parts that are text and parts that are calls.

use std::sync::Arc;

use serde_json::Value;

use super::{END_TAG, LIST_MARK, PYTHON_MARK, TAG};

/// What a call may begin with, wherever it stands. Where they are tokens of control they are not in the text: a call
/// without one is found at the answer's beginning, and behind another call.
const MARKS: [&str; 3] = [TAG, LIST_MARK, PYTHON_MARK];

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// The tool.
    pub name: String,
    /// Its arguments: the text of a JSON object.
    pub arguments: String,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerPart {
    /// Text that is no call.
    Text(String),
    /// A call.
    Call(ToolCall),
}

/// Finds the calls in an answer, in whatever form, as its text comes. What could become a call is held back; what looks
/// like one and is none (no such tool, no valid JSON) is text. White space around calls belongs to them, where nothing
/// but white space stands before it.
#[derive(Debug, Clone)]
pub struct CallReader {
    tools: Arc<[String]>,
    /// What is not decided yet.
    pending: String,
    place: Place,
    /// How far the JSON in `pending` has been looked at.
    scan: Scan,
}

/// What `pending` begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The answer.
    Start,
    /// Text.
    Text,
    /// A mark.
    Mark,
    /// What follows a call.
    Behind,
}

/// Whether it can be told what `pending` begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Some of it was taken, or it was decided what it is not.
    Taken,
    /// That rests on what follows.
    Waits,
}

impl CallReader {
    /// `tools`: the names of those that can be called.
    pub fn new(tools: Arc<[String]>) -> Self {
        Self { tools, pending: String::new(), place: Place::Start, scan: Scan::default() }
    }

    /// What is certain once `text` has followed.
    pub fn push(&mut self, text: &str) -> Vec<AnswerPart> {
        self.pending.push_str(text);
        self.read(false)
    }

    /// What is left once nothing more follows.
    pub fn finish(&mut self) -> Vec<AnswerPart> {
        self.read(true)
    }

    fn read(&mut self, is_whole: bool) -> Vec<AnswerPart> {
        let mut parts = Vec::new();
        while !self.pending.is_empty() {
            let step = match self.place {
                Place::Text => self.read_text(is_whole, &mut parts),
                _ => self.read_call(is_whole, &mut parts),
            };
            if step == Step::Waits {
                break;
            }
        }
        parts
    }

    /// Takes text up to the next mark.
    fn read_text(&mut self, is_whole: bool, parts: &mut Vec<AnswerPart>) -> Step {
        if let Some(at) = MARKS.iter().filter_map(|mark| self.pending.find(mark)).min() {
            self.take_text(at, parts);
            self.place = Place::Mark;
            return Step::Taken;
        }
        let len = self.pending.len();
        let begins_mark = |at: &usize| MARKS.iter().any(|mark| mark.starts_with(&self.pending[*at..]));
        let first_possible = len.saturating_sub(MARKS.iter().map(|mark| mark.len() - 1).max().unwrap_or(0));
        let mut held = (first_possible..len).filter(|&at| self.pending.is_char_boundary(at));
        let certain = if is_whole { len } else { held.find(begins_mark).unwrap_or(len) };
        self.take_text(certain, parts);
        Step::Waits
    }

    /// Takes a call, or several in a list, or finds that there is none.
    fn read_call(&mut self, is_whole: bool, parts: &mut Vec<AnswerPart>) -> Step {
        let rest = match self.place {
            Place::Behind => behind(&self.pending),
            _ => self.pending.trim_start(),
        };
        let mark = MARKS.iter().find(|mark| rest.starts_with(**mark)).map_or(0, |mark| mark.len());
        let value = rest[mark..].trim_start();
        let ends_of_calls = (self.place == Place::Behind).then_some(END_TAG);
        let is_half_mark = mark == 0 && MARKS.iter().copied().chain(ends_of_calls).any(|mark| mark.starts_with(rest));
        let end = if value.is_empty() || is_half_mark { End::Unknown } else { self.scan.end(value) };
        let calls = match end {
            End::Unknown if !is_whole => return Step::Waits,
            End::At(end) => calls(&value[..end], &self.tools).map(|calls| (calls, value.len() - end)),
            _ => None,
        };
        let (num_before, num_in_mark) = (self.pending.len() - rest.len(), mark);
        self.scan = Scan::default();
        if let Some((calls, num_behind)) = calls {
            self.pending.drain(..self.pending.len() - num_behind);
            parts.extend(calls.into_iter().map(AnswerPart::Call));
            self.place = Place::Behind;
            return Step::Taken;
        }
        // A mark without a call is text; behind a call, what stands before it is not.
        if self.place == Place::Behind {
            self.pending.drain(..num_before);
            self.take_text(num_in_mark, parts);
        } else if num_in_mark > 0 {
            self.take_text(num_before + num_in_mark, parts);
        }
        self.place = Place::Text;
        Step::Taken
    }

    /// The next `len` bytes are text.
    fn take_text(&mut self, len: usize, parts: &mut Vec<AnswerPart>) {
        let text = self.pending.drain(..len);
        match parts.last_mut() {
            _ if len == 0 => {}
            Some(AnswerPart::Text(before)) => before.extend(text),
            _ => parts.push(AnswerPart::Text(text.collect())),
        }
    }
}

/// `text` from where the next call can begin, or other text.
fn behind(text: &str) -> &str {
    let mut text = text;
    loop {
        let rest = text.trim_start_matches(|c: char| c.is_whitespace() || c == ';');
        let rest = rest.strip_prefix(END_TAG).unwrap_or(rest);
        if rest.len() == text.len() {
            return rest;
        }
        text = rest;
    }
}

/// The calls in a JSON value: an object that is one, or a list of such objects.
fn calls(value: &str, tools: &[String]) -> Option<Vec<ToolCall>> {
    match serde_json::from_str(value).ok()? {
        Value::Array(items) if !items.is_empty() => items.iter().map(|item| call(item, tools)).collect(),
        object => Some(vec![call(&object, tools)?]),
    }
}

/// The call that a JSON object says: `name`, and its arguments under one of two names, some models write as text.
fn call(object: &Value, tools: &[String]) -> Option<ToolCall> {
    let name = object.get("name")?.as_str().filter(|name| tools.iter().any(|tool| tool == name))?;
    let arguments = match object.get("arguments").or_else(|| object.get("parameters"))? {
        Value::String(text) => serde_json::from_str(text).ok()?,
        arguments => arguments.clone(),
    };
    arguments.is_object().then(|| ToolCall { name: name.to_owned(), arguments: arguments.to_string() })
}

/// Where a JSON value ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Before this byte.
    At(usize),
    /// It is not an object with members, nor a list of objects.
    Nowhere,
    /// Further on.
    Unknown,
}

/// Looks for the end of a JSON value, each byte once however its text comes.
#[derive(Debug, Clone, Copy, Default)]
struct Scan {
    num_seen: usize,
    depth: usize,
    is_in_string: bool,
    is_escaped: bool,
}

impl Scan {
    fn end(&mut self, value: &str) -> End {
        let (inside, expected) = match (value.strip_prefix('{'), value.strip_prefix('[')) {
            (Some(inside), _) => (inside.trim_start(), '"'),
            (_, Some(inside)) => (inside.trim_start(), '{'),
            _ => return End::Nowhere,
        };
        if !inside.is_empty() && !inside.starts_with(expected) {
            return End::Nowhere;
        }
        for (at, byte) in value.bytes().enumerate().skip(self.num_seen) {
            self.num_seen = at + 1;
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.is_in_string => self.is_escaped = true,
                b'"' => self.is_in_string = !self.is_in_string,
                _ if self.is_in_string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth == 1 => return End::At(at + 1),
                b'}' | b']' => self.depth -= 1,
                _ => {}
            }
        }
        End::Unknown
    }
}
