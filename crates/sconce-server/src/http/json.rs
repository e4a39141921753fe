//! [`Json`]: a JSON value of which parts have been written already; [`List`] and [`Text`]: an array and a string that grow.

use std::mem::take;

use serde_json::Value;

use super::pieces::Pieces;

/// A JSON value of which parts have been written already. They are shared, however often the value is copied and written.
#[derive(Debug, Clone)]
pub enum Json {
    /// As it is.
    Value(Value),
    /// Written.
    Written(Pieces),
    /// An array.
    Array(Vec<Json>),
    /// An object's members, in order.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Gives the member `name` of an object another value: at its place, or at the end where there is none.
    pub fn set(&mut self, name: &str, value: impl Into<Self>) {
        if let Self::Value(Value::Object(members)) = self {
            *self = Self::Object(take(members).into_iter().map(|(name, value)| (name, value.into())).collect());
        }
        let Self::Object(members) = self else { unreachable!("invariant: members are set of objects alone") };
        match members.iter_mut().find(|(member, _)| member == name) {
            Some((_, old)) => *old = value.into(),
            None => members.push((name.to_owned(), value.into())),
        }
    }

    /// The object whose member `name` has another value.
    pub fn with(mut self, name: &str, value: impl Into<Self>) -> Self {
        self.set(name, value);
        self
    }

    /// Appends its text to `out`.
    pub fn write(&self, out: &mut Pieces) {
        match self {
            Self::Value(value) => {
                serde_json::to_writer(out, value).expect("invariant: a JSON value can be written to memory");
            }
            Self::Written(written) => out.append(written),
            Self::Array(values) => {
                out.push(b"[");
                for (i, value) in values.iter().enumerate() {
                    separate(i, out);
                    value.write(out);
                }
                out.push(b"]");
            }
            Self::Object(members) => {
                out.push(b"{");
                for (i, (name, value)) in members.iter().enumerate() {
                    separate(i, out);
                    write_string(name, out);
                    out.push(b":");
                    value.write(out);
                }
                out.push(b"}");
            }
        }
    }
}

/// What comes before the `i`-th of several.
pub fn separate(i: usize, out: &mut Pieces) {
    if i > 0 {
        out.push(b",");
    }
}

/// Appends a string to `out`.
pub fn write_string(text: &str, out: &mut Pieces) {
    serde_json::to_writer(out, text).expect("invariant: a JSON value can be written to memory");
}

impl From<Value> for Json {
    fn from(value: Value) -> Self {
        Self::Value(value)
    }
}

impl From<Vec<Self>> for Json {
    fn from(values: Vec<Self>) -> Self {
        Self::Array(values)
    }
}

impl From<&List> for Json {
    /// The array as it stands.
    fn from(list: &List) -> Self {
        enclosed(b"[", &list.entries, b"]")
    }
}

impl From<&Text> for Json {
    /// The string as it stands.
    fn from(text: &Text) -> Self {
        enclosed(b"\"", &text.escaped, b"\"")
    }
}

fn enclosed(begin: &[u8], written: &Pieces, end: &[u8]) -> Json {
    let mut whole = Pieces::default();
    whole.push(begin);
    whole.append(written);
    whole.push(end);
    Json::Written(whole)
}

/// An array that grows, each of whose entries is written once.
#[derive(Debug, Clone, Default)]
pub struct List {
    entries: Pieces,
}

impl List {
    /// Where the next entry is to be written.
    pub fn entry(&mut self) -> &mut Pieces {
        if !self.entries.is_empty() {
            self.entries.push(b",");
        }
        &mut self.entries
    }

    /// Appends another's entries.
    pub fn append(&mut self, other: &Self) {
        if !other.is_empty() {
            self.entry().append(&other.entries);
        }
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// A string that grows, each of whose characters is written once.
#[derive(Debug, Clone, Default)]
pub struct Text {
    escaped: Pieces,
}

impl Text {
    /// Appends `text`.
    pub fn push(&mut self, text: &str) {
        let quoted = Value::from(text).to_string();
        self.escaped.push(&quoted.as_bytes()[1..quoted.len() - 1]);
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        let mut new = Self::default();
        new.push(text);
        new
    }
}
