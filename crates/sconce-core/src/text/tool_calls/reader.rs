//! [`CallReader`]: an answer's text, as it comes, in parts that are text and parts that are calls.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use serde_json::value::RawValue;

use super::xml::{self, FUNCTION};
use super::{ARGS_MARK, END_TAG, ID_MARK, LIST_MARK, PYTHON_MARK, TAG, ToolCall, tool};
use crate::text::answer::spelled;

/// What a call may begin with, wherever it stands. Where they are tokens of control they are not in the text: a call
/// without one is found at the answer's beginning, and behind another call.
const MARKS: [&str; 4] = [TAG, LIST_MARK, PYTHON_MARK, FUNCTION];

/// A name, or what stands between a name and arguments, is not longer.
const MAX_HEADER_BYTES: usize = 128;

/// Nor is white space around calls and within them: what has more is text, so that it is not looked at again and again.
const MAX_BLANK_BYTES: usize = 1024;

/// So often what looks like a call and has no end is searched for calls.
const MAX_ENDLESS: usize = 16;

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
    /// In OpenAI's form.
    tools: Arc<[Value]>,
    /// What is not decided yet, behind what is.
    pending: String,
    num_taken: usize,
    place: Place,
    /// How often what looked like a call had no end.
    num_endless: usize,
    /// How far what comes next has been looked at.
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
    /// `tools`: those that can be called, in OpenAI's form.
    pub(super) fn new(tools: Arc<[Value]>) -> Self {
        Self { tools, pending: String::new(), num_taken: 0, place: Place::Start, num_endless: 0, scan: Scan::default() }
    }

    /// What is certain once `text` has followed.
    pub fn push(&mut self, text: &str) -> Vec<AnswerPart> {
        self.pending.push_str(&spelled(text));
        self.read(false)
    }

    /// What is left once nothing more follows.
    pub fn finish(&mut self) -> Vec<AnswerPart> {
        self.read(true)
    }

    fn read(&mut self, is_whole: bool) -> Vec<AnswerPart> {
        let mut parts = Vec::new();
        while !self.rest().is_empty() {
            let step = match self.place {
                Place::Text => self.read_text(is_whole, &mut parts),
                _ => self.read_call(is_whole, &mut parts),
            };
            if step == Step::Waits {
                break;
            }
        }
        self.pending.drain(..self.num_taken);
        self.num_taken = 0;
        parts
    }

    fn rest(&self) -> &str {
        &self.pending[self.num_taken..]
    }

    /// Takes text up to the next mark.
    fn read_text(&mut self, is_whole: bool, parts: &mut Vec<AnswerPart>) -> Step {
        let rest = self.rest();
        let is_mark = |at: &usize| MARKS.iter().any(|mark| rest[*at..].starts_with(mark));
        if let Some(at) = rest.match_indices(['<', '[']).map(|(at, _)| at).find(is_mark) {
            self.take_text(at, parts);
            self.place = Place::Mark;
            return Step::Taken;
        }
        let len = rest.len();
        let begins_mark = |at: &usize| MARKS.iter().any(|mark| mark.starts_with(&rest[*at..]));
        let first_possible = len.saturating_sub(MARKS.iter().map(|mark| mark.len() - 1).max().unwrap_or(0));
        let mut held = (first_possible..len).filter(|&at| rest.is_char_boundary(at));
        let certain = if is_whole { len } else { held.find(begins_mark).unwrap_or(len) };
        self.take_text(certain, parts);
        Step::Waits
    }

    /// Takes a call, or several in a list, or finds that there is none: then all that looked like one is text, so that nothing of it is
    /// looked at again.
    fn read_call(&mut self, is_whole: bool, parts: &mut Vec<AnswerPart>) -> Step {
        let rest = &self.pending[self.num_taken..];
        let begin = match self.place {
            Place::Behind => behind(rest),
            _ => trim_start(rest),
        };
        let mark = MARKS.iter().find(|mark| begin.starts_with(**mark)).copied().unwrap_or_default();
        // A function is named where its mark ends.
        let value = if mark.is_empty() || mark == FUNCTION { begin } else { trim_start(&begin[mark.len()..]) };
        let ends_of_calls = (self.place == Place::Behind).then_some(END_TAG);
        let mut marks = MARKS.iter().copied().chain(ends_of_calls);
        let is_half_mark = match mark {
            "" => marks.any(|mark| mark.starts_with(begin)),
            TAG => FUNCTION.starts_with(value),
            _ => false,
        };
        let end = if value.is_empty() || is_half_mark {
            End::Unknown
        } else if matches!(mark, TAG | FUNCTION) && value.starts_with(FUNCTION) {
            self.scan.end_of_function(value, &self.tools)
        } else if mark == LIST_MARK {
            self.scan.end_of_named(value, &self.tools)
        } else {
            self.scan.end(value)
        };
        let (num_before, num_in_value) = (rest.len() - begin.len(), rest.len() - value.len());
        let (calls, num_of_text) = match end {
            End::Unknown if !is_whole => return Step::Waits,
            // What never ends may hold a call all the same; but not all of it is looked at again and again.
            End::Unknown if self.num_endless < MAX_ENDLESS => (None, mark.len()),
            End::Unknown => (None, begin.len()),
            End::Nowhere => (None, mark.len()),
            End::At(end) => (calls(&value[..end], &self.tools), num_in_value - num_before + end),
        };
        self.num_endless += usize::from(end == End::Unknown);
        self.scan = Scan::default();
        if let Some(calls) = calls {
            self.num_taken += num_before + num_of_text;
            parts.extend(calls.into_iter().map(AnswerPart::Call));
            self.place = Place::Behind;
            return Step::Taken;
        }
        // What stands before text is text too, but behind a call.
        if self.place == Place::Behind {
            self.num_taken += num_before;
            self.take_text(num_of_text, parts);
        } else if num_of_text > 0 {
            self.take_text(num_before + num_of_text, parts);
        }
        self.place = Place::Text;
        Step::Taken
    }

    /// The next `len` bytes are text.
    fn take_text(&mut self, len: usize, parts: &mut Vec<AnswerPart>) {
        let text = &self.pending[self.num_taken..][..len];
        match parts.last_mut() {
            _ if len == 0 => {}
            Some(AnswerPart::Text(before)) => before.push_str(text),
            _ => parts.push(AnswerPart::Text(text.to_owned())),
        }
        self.num_taken += len;
    }
}

/// `text` from where the next call can begin, or other text.
fn behind(text: &str) -> &str {
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let len = match c {
            _ if c.is_whitespace() || c == ';' => c.len_utf8(),
            _ if rest.starts_with(END_TAG) => END_TAG.len(),
            _ => break,
        };
        if text.len() - rest.len() + len > MAX_BLANK_BYTES {
            break;
        }
        rest = &rest[len..];
    }
    rest
}

/// `text` without the white space that it begins with, but for what is too much of it.
fn trim_start(text: &str) -> &str {
    let is_blank = |&(at, c): &(usize, char)| c.is_whitespace() && at + c.len_utf8() <= MAX_BLANK_BYTES;
    let num_blank = text.char_indices().take_while(is_blank).last().map_or(0, |(at, c)| at + c.len_utf8());
    &text[num_blank..]
}

/// The calls in what follows a mark: a function, a name with arguments, an object that is a call, or a list of such objects.
fn calls(value: &str, tools: &[Value]) -> Option<Vec<ToolCall>> {
    if value.starts_with(FUNCTION) {
        return Some(vec![xml::call(value, tools)?]);
    }
    if !value.starts_with(['[', '{']) {
        let (name, Header::Arguments(at)) = header(value) else { return None };
        let call = ToolCall { name: name.to_owned(), arguments: value[at..].to_owned() };
        return call.is_of(tools).then(|| vec![call]);
    }
    if !value.starts_with('[') {
        return Some(vec![call(value, tools)?]);
    }
    let items: Vec<&RawValue> = serde_json::from_str(value).ok()?;
    if items.is_empty() { None } else { items.iter().map(|item| call(item.get(), tools)).collect() }
}

/// The call that a JSON object says: `name`, and its arguments under one of two names, as the model has written them. Some models write
/// them as a string.
fn call(object: &str, tools: &[Value]) -> Option<ToolCall> {
    let members: BTreeMap<String, &RawValue> = serde_json::from_str(object).ok()?;
    let name: String = serde_json::from_str(members.get("name")?.get()).ok()?;
    let arguments = members.get("arguments").or_else(|| members.get("parameters"))?.get();
    let arguments = match serde_json::from_str::<String>(arguments) {
        Ok(text) => serde_json::from_str::<&RawValue>(&text).ok()?.get().to_owned(),
        Err(_) => arguments.to_owned(),
    };
    let call = ToolCall { name, arguments };
    call.is_of(tools).then_some(call)
}

/// What follows a name.
enum Header {
    /// Arguments, which begin here.
    Arguments(usize),
    /// Something else.
    Other,
    /// That rests on what follows.
    Unknown,
}

/// The name that a text begins with, and what follows.
fn header(text: &str) -> (&str, Header) {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let len = text.find(|c| !is_of_name(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(len);
    let arguments = |rest: &str| {
        let json = trim_start(rest);
        if json.is_empty() { Header::Unknown } else { Header::Arguments(text.len() - json.len()) }
    };
    let is_begin = |mark: &str| mark.starts_with(rest);
    let follows = match rest.strip_prefix(ARGS_MARK) {
        _ if len == 0 || len > MAX_HEADER_BYTES => Header::Other,
        Some(json) => arguments(json),
        None if rest.starts_with('{') => Header::Arguments(len),
        None if is_begin(ARGS_MARK) || is_begin(ID_MARK) => Header::Unknown,
        None if rest.starts_with(ID_MARK) => match rest.split_once(ARGS_MARK) {
            Some((id, json)) if id.len() <= MAX_HEADER_BYTES => arguments(json),
            None if rest.len() <= MAX_HEADER_BYTES => Header::Unknown,
            _ => Header::Other,
        },
        None => Header::Other,
    };
    (name, follows)
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

/// Looks for the end of a JSON value, or of a function, each byte once however its text comes.
#[derive(Debug, Clone, Copy, Default)]
struct Scan {
    num_seen: usize,
    depth: usize,
    is_in_string: bool,
    is_escaped: bool,
}

impl Scan {
    /// Of a function: its arguments' text, which stands between tags.
    fn end_of_function(&mut self, text: &str, tools: &[Value]) -> End {
        let inner = &text[FUNCTION.len()..];
        match inner.split_once('>') {
            None if inner.len() <= MAX_HEADER_BYTES => End::Unknown,
            Some((name, _)) if tool(tools, name).is_some() => {
                xml::end(text, &mut self.num_seen).map_or(End::Unknown, End::At)
            }
            _ => End::Nowhere,
        }
    }

    /// Of a name with arguments, or of a list.
    fn end_of_named(&mut self, text: &str, tools: &[Value]) -> End {
        if text.starts_with(['[', '{']) {
            return self.end(text);
        }
        match header(text) {
            (_, Header::Unknown) => End::Unknown,
            (name, Header::Arguments(at)) if tool(tools, name).is_some() && text[at..].starts_with('{') => {
                self.end_of_json(&text[at..]).map_or(End::Unknown, |end| End::At(at + end))
            }
            _ => End::Nowhere,
        }
    }

    fn end(&mut self, value: &str) -> End {
        let (inside, expected) = match (value.strip_prefix('{'), value.strip_prefix('[')) {
            (Some(inside), _) => (trim_start(inside), '"'),
            (_, Some(inside)) => (trim_start(inside), '{'),
            _ => return End::Nowhere,
        };
        if !inside.is_empty() && !inside.starts_with(expected) {
            return End::Nowhere;
        }
        self.end_of_json(value).map_or(End::Unknown, End::At)
    }

    fn end_of_json(&mut self, value: &str) -> Option<usize> {
        for (at, byte) in value.bytes().enumerate().skip(self.num_seen) {
            self.num_seen = at + 1;
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.is_in_string => self.is_escaped = true,
                b'"' => self.is_in_string = !self.is_in_string,
                _ if self.is_in_string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth == 1 => return Some(at + 1),
                b'}' | b']' => self.depth -= 1,
                _ => {}
            }
        }
        None
    }
}
