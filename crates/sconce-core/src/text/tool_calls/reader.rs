//! [`CallReader`]: an answer's text, as it comes, in parts that are text and parts that are calls.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use serde_json::value::RawValue;

use super::scan::{End, Header, Scan, header, separated, trim_start};
use super::written::{self, FUNCTION};
use super::{
    CALL, CALLS, END_CALL, END_CALLS, END_PYTHONIC, END_TAG, LIST_MARK, MAX_BLANK_BYTES, PYTHON_MARK, PYTHONIC, TAG,
    ToolCall, python,
};
use crate::text::answer::spelled;

/// What a call may begin with, wherever it stands. Where they are tokens of control they are not in the text: a call
/// without one is found at the answer's beginning, and behind another call.
const MARKS: [&str; 7] = [TAG, LIST_MARK, PYTHON_MARK, FUNCTION, CALLS, CALL, PYTHONIC];
/// Of these the mark is a part of the call.
const WITHIN: [&str; 3] = ["", FUNCTION, CALL];
/// What may stand behind a call.
const ENDS: [&str; 4] = [END_TAG, END_CALL, END_CALLS, END_PYTHONIC];

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
        let value = if WITHIN.contains(&mark) { begin } else { trim_start(&begin[mark.len()..]) };
        let ends: &[&str] = if self.place == Place::Behind { &ENDS } else { &[] };
        let is_half_mark = match mark {
            "" => MARKS.iter().chain(ends).any(|mark| mark.starts_with(begin)),
            TAG => FUNCTION.starts_with(value),
            CALLS => CALL.starts_with(value),
            _ => false,
        };
        let end =
            if value.is_empty() || is_half_mark { End::Unknown } else { self.scan.end_of(mark, value, &self.tools) };
        let (num_before, num_in_value) = (rest.len() - begin.len(), rest.len() - value.len());
        let (calls, num_of_text) = match end {
            End::Unknown if !is_whole => return Step::Waits,
            // What never ends may hold a call all the same; but not all of it is looked at again and again.
            End::Unknown if self.num_endless < MAX_ENDLESS => (None, mark.len()),
            End::Unknown => (None, begin.len()),
            End::Nowhere => (None, mark.len()),
            End::At(end) => (calls(mark, &value[..end], &self.tools), num_in_value - num_before + end),
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
        let end = ENDS.iter().find(|end| rest.starts_with(**end));
        let len = match end {
            Some(end) => end.len(),
            None if c.is_whitespace() || c == ';' => c.len_utf8(),
            None => break,
        };
        if text.len() - rest.len() + len > MAX_BLANK_BYTES {
            break;
        }
        rest = &rest[len..];
    }
    rest
}

/// The calls in what follows a mark: a function, a name with arguments, an object that is a call, or a list of such.
fn calls(mark: &str, value: &str, tools: &[Value]) -> Option<Vec<ToolCall>> {
    let one = |call: Option<ToolCall>| call.map(|call| vec![call]);
    match (mark, value.as_bytes().first()?) {
        _ if value.starts_with(FUNCTION) => one(written::call(value, &written::FUNCTIONS, tools)),
        (CALLS | CALL, _) => one(named(value, separated(value), tools)),
        (PYTHONIC, b'[') => python::calls(value, tools).or_else(|| listed(value, tools)),
        (_, b'[') => listed(value, tools),
        (_, b'{') => one(call(value, tools)),
        (TAG, _) => one(written::call(value, &written::KEYS, tools)),
        _ => one(named(value, header(value), tools)),
    }
}

/// The call of a name and of arguments that begin somewhere in `value`.
fn named(value: &str, (name, follows): (&str, Header), tools: &[Value]) -> Option<ToolCall> {
    let Header::Arguments(at) = follows else { return None };
    let end = Scan::default().end_of_json(&value[at..])?;
    let call = ToolCall { name: name.to_owned(), arguments: value[at..][..end].to_owned() };
    call.is_of(tools).then_some(call)
}

/// The calls in a JSON list.
fn listed(value: &str, tools: &[Value]) -> Option<Vec<ToolCall>> {
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
