//! [`Mask`]: stand-ins for characters of users' text, so that it is told apart from the template's own.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::text::tokenizer::ControlTokens;

/// Stand-ins for the characters that control tokens begin with. They are noncharacters that occur neither in what
/// users sent nor in the template, so a template carries them along as it does any letter.
#[derive(Debug, Clone)]
pub(super) struct Mask {
    /// Characters and their stand-ins.
    stand_ins: Vec<(char, char)>,
    end_mark: char,
    any_first_char: bool,
}

impl Mask {
    /// A mask for `user` (`messages`, `tools`, `template_kwargs`) and a template's `source`.
    pub(super) fn new(user: &Value, source: &str, control: &ControlTokens) -> Result<Self> {
        let firsts = control.first_chars();
        let mut taken: BTreeSet<char> = source.chars().filter(|&c| is_noncharacter(c)).collect();
        let mut any_first_char = false;
        each_string(user, &mut |text| {
            taken.extend(text.chars().filter(|&c| is_noncharacter(c)));
            any_first_char |= text.chars().any(|c| maskable(c) && firsts.contains(&c));
        });
        let mut free = noncharacters().filter(|c| !taken.contains(c));
        let mut next = || {
            free.next().ok_or_else(|| Error::invalid("messages", "messages: too many different Unicode noncharacters"))
        };
        let end_mark = next()?;
        let stand_ins = firsts.iter().map(|&first| Ok((first, next()?))).collect::<Result<_>>()?;
        Ok(Self { stand_ins, end_mark, any_first_char })
    }

    /// A character that occurs nowhere and stands for nothing.
    pub(super) fn end_mark(&self) -> char {
        self.end_mark
    }

    /// Whether users' text has a character that a control token begins with.
    pub(super) fn any_first_char(&self) -> bool {
        self.any_first_char
    }

    /// `user` with the first character of each control token behind a stand-in. Templates that look for other marks
    /// (`</think>`) in a message find them.
    pub(super) fn hide_tokens(&self, user: &Value, control: &ControlTokens) -> Value {
        map_strings(user, &|text| {
            let mut out = String::with_capacity(text.len());
            let mut done = 0;
            for (at, _) in control.find(text) {
                out.push_str(&text[done..at]);
                let first = text[at..].chars().next().expect("invariant: a control token is not empty");
                out.push(self.stand_in(first));
                done = at + first.len_utf8();
            }
            out.push_str(&text[done..]);
            out
        })
    }

    /// `user` with every character that a control token can begin with behind a stand-in.
    pub(super) fn hide_first_chars(&self, user: &Value) -> Value {
        map_strings(user, &|text| text.chars().map(|c| if maskable(c) { self.stand_in(c) } else { c }).collect())
    }

    fn stand_in(&self, c: char) -> char {
        self.stand_ins.iter().find(|(first, _)| *first == c).map_or(c, |(_, stand_in)| *stand_in)
    }

    /// What `c` stands for: itself, unless it is a stand-in.
    pub(super) fn original(&self, c: char) -> char {
        if !is_noncharacter(c) {
            return c;
        }
        self.stand_ins.iter().find(|(_, stand_in)| *stand_in == c).map_or(c, |(first, _)| *first)
    }

    /// `text` without stand-ins.
    pub(super) fn unmask(&self, text: &str) -> String {
        text.chars().map(|c| self.original(c)).collect()
    }
}

/// Letters and digits are not hidden one by one: templates compare whole words.
fn maskable(c: char) -> bool {
    !c.is_alphanumeric()
}

fn noncharacters() -> impl Iterator<Item = char> {
    let ends_of_planes = (0..=0x10).flat_map(|plane| [plane << 16 | 0xfffe, plane << 16 | 0xffff]);
    (0xfdd0..=0xfdef).chain(ends_of_planes).filter_map(char::from_u32)
}

fn is_noncharacter(c: char) -> bool {
    matches!(c, '\u{fdd0}'..='\u{fdef}') || c as u32 & 0xfffe == 0xfffe
}

/// Calls `f` with every string in `value`, keys of objects among them.
fn each_string(value: &Value, f: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => f(text),
        Value::Array(items) => items.iter().for_each(|item| each_string(item, f)),
        Value::Object(entries) => entries.iter().for_each(|(key, value)| {
            f(key);
            each_string(value, f);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// `value` with every string in it, keys of objects among them, through `f`.
fn map_strings(value: &Value, f: &impl Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(f(text)),
        Value::Array(items) => items.iter().map(|item| map_strings(item, f)).collect(),
        Value::Object(entries) => {
            Value::Object(entries.iter().map(|(key, value)| (f(key), map_strings(value, f))).collect::<Map<_, _>>())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}
