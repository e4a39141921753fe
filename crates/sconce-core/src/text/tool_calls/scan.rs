//! [`Scan`]: where what may be a call ends, in text that comes piece by piece.

use serde_json::Value;

use super::written::{self, FUNCTION, Tags};
use super::{
    ARGS_MARK, CALL, CALLS, END_CALL, END_FENCE, FENCE, ID_MARK, LIST_MARK, MAX_BLANK_BYTES, PYTHONIC, SEPARATOR, TAG,
    tool,
};

/// A name, or what stands between a name and arguments, is not longer.
pub(super) const MAX_HEADER_BYTES: usize = 128;

/// `text` without the white space that it begins with, but for what is too much of it.
pub(super) fn trim_start(text: &str) -> &str {
    let is_blank = |&(at, c): &(usize, char)| c.is_whitespace() && at + c.len_utf8() <= MAX_BLANK_BYTES;
    let num_blank = text.char_indices().take_while(is_blank).last().map_or(0, |(at, c)| at + c.len_utf8());
    &text[num_blank..]
}

/// Whether a character can be part of a function's name.
pub(super) fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')
}

/// Whether Python takes this for the name of an argument.
pub(super) fn is_argument(name: &str) -> bool {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(is_of_name)
}

/// What follows a name.
pub(super) enum Header {
    /// Arguments, which begin here.
    Arguments(usize),
    /// Something else.
    Other,
    /// That rests on what follows.
    Unknown,
}

impl Header {
    /// Of the end of `text`, where arguments follow.
    fn of_rest(rest: &str, text: &str) -> Self {
        let json = trim_start(rest);
        if json.is_empty() { Self::Unknown } else { Self::Arguments(text.len() - json.len()) }
    }

    /// Where something is missing in `text`.
    pub(super) fn of_part(text: &str) -> Self {
        if text.len() <= MAX_HEADER_BYTES { Self::Unknown } else { Self::Other }
    }
}

/// The name that a text begins with, and what follows.
pub(super) fn header(text: &str) -> (&str, Header) {
    let len = text.find(|c| !is_of_name(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(len);
    let is_begin = |mark: &str| mark.starts_with(rest);
    let follows = match rest.strip_prefix(ARGS_MARK) {
        _ if len == 0 || len > MAX_HEADER_BYTES => Header::Other,
        Some(json) => Header::of_rest(json, text),
        None if rest.starts_with('{') => Header::Arguments(len),
        None if is_begin(ARGS_MARK) || is_begin(ID_MARK) => Header::Unknown,
        None if rest.starts_with(ID_MARK) => match rest.split_once(ARGS_MARK) {
            Some((id, json)) if id.len() <= MAX_HEADER_BYTES => Header::of_rest(json, text),
            None => Header::of_part(rest),
            _ => Header::Other,
        },
        None => Header::Other,
    };
    (name, follows)
}

/// The same of a call of DeepSeek's, which begins with its mark. Arguments in a block of code have the name behind the mark before it.
pub(super) fn separated(text: &str) -> (&str, Header) {
    let inner = &text[CALL.len()..];
    let Some((name, rest)) = inner.split_once(SEPARATOR) else { return ("", Header::of_part(inner)) };
    if name.trim() != "function" || trim_start(rest).starts_with('{') {
        return (name.trim(), Header::of_rest(rest, text));
    }
    match rest.split_once(FENCE) {
        Some((name, json)) if name.len() <= MAX_HEADER_BYTES => (name.trim(), Header::of_rest(json, text)),
        Some(_) => ("", Header::Other),
        None => ("", Header::of_part(rest)),
    }
}

/// Where what may be a call ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Before this byte.
    At(usize),
    /// It is none.
    Nowhere,
    /// Further on.
    Unknown,
}

/// Looks for the end of what may be a call, each byte once however its text comes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Scan {
    num_seen: usize,
    depth: usize,
    /// The quote that the string at hand ends with.
    quote: Option<u8>,
    is_escaped: bool,
    /// Where the brackets' end is, once it has been found.
    end: Option<usize>,
}

impl Scan {
    /// Of `value`, which stands behind `mark`, or begins with it.
    pub(super) fn end_of(&mut self, mark: &str, value: &str, tools: &[Value]) -> End {
        match mark {
            TAG | FUNCTION if value.starts_with(FUNCTION) => self.end_of_written(value, &written::FUNCTIONS, tools),
            TAG if !value.starts_with(['{', '[']) => self.end_of_written(value, &written::KEYS, tools),
            CALLS | CALL if value.starts_with(CALL) => self.end_of_separated(value, tools),
            CALLS => End::Nowhere,
            LIST_MARK if !value.starts_with(['[', '{']) => self.end_of_named(value, header(value), tools),
            PYTHONIC if value.starts_with('[') => self.end_of_python(value).map_or(End::Unknown, End::At),
            _ => self.end_of_value(value),
        }
    }

    /// Of a function whose arguments stand between tags.
    fn end_of_written(&mut self, text: &str, tags: &Tags, tools: &[Value]) -> End {
        match tags.header(text) {
            (_, Header::Unknown) => End::Unknown,
            (name, Header::Arguments(_)) if tool(tools, name).is_some() => {
                written::end(text, tags, &mut self.num_seen).map_or(End::Unknown, End::At)
            }
            _ => End::Nowhere,
        }
    }

    /// Of a name and arguments.
    fn end_of_named(&mut self, text: &str, (name, follows): (&str, Header), tools: &[Value]) -> End {
        match follows {
            Header::Unknown => End::Unknown,
            Header::Arguments(at) if tool(tools, name).is_some() && text[at..].starts_with('{') => {
                self.end_of_json(&text[at..]).map_or(End::Unknown, |end| End::At(at + end))
            }
            _ => End::Nowhere,
        }
    }

    /// The same where a mark ends the call, behind the end of a block of code if there is one.
    fn end_of_separated(&mut self, text: &str, tools: &[Value]) -> End {
        let end = match self.end_of_named(text, separated(text), tools) {
            End::At(end) => end,
            other => return other,
        };
        let rest = trim_start(&text[end..]);
        let behind = rest.strip_prefix(END_FENCE).map_or(rest, trim_start);
        if behind.starts_with(END_CALL) {
            End::At(text.len() - behind.len() + END_CALL.len())
        } else if END_CALL.starts_with(behind) || END_FENCE.starts_with(rest) {
            End::Unknown
        } else {
            End::Nowhere
        }
    }

    /// Of a JSON object with members, or a list of objects.
    fn end_of_value(&mut self, value: &str) -> End {
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

    /// Of JSON that begins with a bracket.
    pub(super) fn end_of_json(&mut self, value: &str) -> Option<usize> {
        self.end_of_brackets(value, b"\"", [b"{[", b"}]"])
    }

    /// The same of Python, which has more quotes and brackets.
    fn end_of_python(&mut self, value: &str) -> Option<usize> {
        self.end_of_brackets(value, b"\"'", [b"{[(", b"}])"])
    }

    fn end_of_brackets(&mut self, value: &str, quotes: &[u8], [open, close]: [&[u8]; 2]) -> Option<usize> {
        for (at, byte) in value.bytes().enumerate().skip(self.num_seen) {
            if self.end.is_some() {
                break;
            }
            self.num_seen = at + 1;
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.quote.is_some() => self.is_escaped = true,
                _ if self.quote.is_some() => self.quote = self.quote.filter(|&quote| quote != byte),
                _ if quotes.contains(&byte) => self.quote = Some(byte),
                _ if open.contains(&byte) => self.depth += 1,
                _ if close.contains(&byte) && self.depth == 1 => self.end = Some(at + 1),
                _ if close.contains(&byte) => self.depth -= 1,
                _ => {}
            }
        }
        self.end
    }
}
