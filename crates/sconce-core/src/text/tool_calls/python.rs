//! Calls as Python writes them: `[f(text="a", list=[1, None]), g()]`. Arguments go by their names, and words of JSON's are taken too.

use serde_json::Value;
use serde_json::value::RawValue;

use super::ToolCall;
use super::scan::is_of_name;

/// Values within values are no deeper.
const MAX_DEPTH: usize = 64;

/// The calls that such a list holds, if all are calls of `tools`.
pub(super) fn calls(text: &str, tools: &[Value]) -> Option<Vec<ToolCall>> {
    let mut reader = Reader { rest: text };
    reader.take("[")?;
    let mut calls = Vec::new();
    loop {
        let name = reader.name()?.to_owned();
        reader.take("(")?;
        let call = ToolCall { name, arguments: reader.arguments()? };
        if !call.is_of(tools) {
            return None;
        }
        calls.push(call);
        if !reader.goes_on("]")? {
            break;
        }
    }
    reader.rest.trim().is_empty().then_some(calls)
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    /// Takes a word or a sign, if that is what comes next.
    fn take(&mut self, sign: &str) -> Option<()> {
        self.rest = self.rest.trim_start().strip_prefix(sign)?;
        Some(())
    }

    /// Takes what separates or what ends: whether there is more.
    fn goes_on(&mut self, end: &str) -> Option<bool> {
        if self.take(",").is_some() {
            // One more comma may stand before the end.
            return Some(self.take(end).is_none());
        }
        self.take(end).map(|()| false)
    }

    fn name(&mut self) -> Option<&'a str> {
        let text = self.rest.trim_start();
        let len = text.find(|c| !is_of_name(c)).unwrap_or(text.len());
        let (name, rest) = text.split_at(len);
        self.rest = rest;
        (len > 0).then_some(name)
    }

    /// The arguments of a call, behind its bracket, as a JSON object.
    fn arguments(&mut self) -> Option<String> {
        let mut out = String::from("{");
        if self.take(")").is_some() {
            return Some("{}".into());
        }
        loop {
            let name = self.name()?;
            self.take("=")?;
            out += &format!("{}: ", Value::from(name));
            self.value(&mut out, MAX_DEPTH)?;
            if !self.goes_on(")")? {
                break;
            }
            out += ", ";
        }
        Some(out + "}")
    }

    /// Writes a value as JSON.
    fn value(&mut self, out: &mut String, num_left: usize) -> Option<()> {
        let num_left = num_left.checked_sub(1)?;
        match self.rest.trim_start().chars().next()? {
            '[' => self.list(out, num_left),
            '{' => self.object(out, num_left),
            '"' | '\'' => {
                *out += &Value::from(self.string()?).to_string();
                Some(())
            }
            _ => self.word(out),
        }
    }

    fn list(&mut self, out: &mut String, num_left: usize) -> Option<()> {
        self.take("[")?;
        out.push('[');
        if self.take("]").is_none() {
            loop {
                self.value(out, num_left)?;
                if !self.goes_on("]")? {
                    break;
                }
                out.push_str(", ");
            }
        }
        out.push(']');
        Some(())
    }

    fn object(&mut self, out: &mut String, num_left: usize) -> Option<()> {
        self.take("{")?;
        out.push('{');
        if self.take("}").is_none() {
            loop {
                *out += &Value::from(self.string()?).to_string();
                self.take(":")?;
                out.push_str(": ");
                self.value(out, num_left)?;
                if !self.goes_on("}")? {
                    break;
                }
                out.push_str(", ");
            }
        }
        out.push('}');
        Some(())
    }

    /// A number, or one of the words.
    fn word(&mut self, out: &mut String) -> Option<()> {
        let text = self.rest.trim_start();
        let is_of_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        let len = text.find(|c| !is_of_word(c)).unwrap_or(text.len());
        let (word, rest) = text.split_at(len);
        self.rest = rest;
        let json = match word {
            "True" => "true",
            "False" => "false",
            "None" => "null",
            other => other,
        };
        *out += serde_json::from_str::<&RawValue>(json).ok()?.get();
        Some(())
    }

    /// A text in quotes of either kind.
    fn string(&mut self) -> Option<String> {
        let text = self.rest.trim_start();
        let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let mut chars = text[1..].chars();
        let mut out = String::new();
        loop {
            match chars.next()? {
                c if c == quote => break,
                '\\' => out.push(escaped(&mut chars)?),
                c => out.push(c),
            }
        }
        self.rest = chars.as_str();
        Some(out)
    }
}

/// The character that an escape stands for, in Python or JSON.
fn escaped(chars: &mut std::str::Chars<'_>) -> Option<char> {
    let code = |chars: &mut std::str::Chars<'_>, len: usize| {
        let digits = chars.as_str().get(..len).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *chars = chars.as_str()[len..].chars();
        u32::from_str_radix(digits, 16).ok()
    };
    Some(match chars.next()? {
        c @ ('\\' | '\'' | '"' | '/') => c,
        'n' => '\n',
        't' => '\t',
        'r' => '\r',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'x' => char::from_u32(code(chars, 2)?)?,
        'U' => char::from_u32(code(chars, 8)?)?,
        'u' => match code(chars, 4)? {
            // The first half of a character, as JSON has it.
            first @ 0xd800..=0xdbff => {
                *chars = chars.as_str().strip_prefix("\\u")?.chars();
                let second = code(chars, 4).filter(|second| (0xdc00..=0xdfff).contains(second))?;
                char::from_u32(0x10000 + ((first - 0xd800) << 10 | (second - 0xdc00)))?
            }
            code => char::from_u32(code)?,
        },
        _ => return None,
    })
}
