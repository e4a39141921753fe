//! [`Grammar`]: what an answer has to match.

/// What an answer has to match, whole: each token is chosen among those with which it still can.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Grammar {
    /// A JSON object, whatever is in it.
    JsonObject,
    /// JSON that is valid by a JSON Schema, itself the text of a JSON object. Properties come in the schema's order.
    JsonSchema(String),
    /// A text that a regular expression matches as a whole, in the syntax of Rust's `regex`, without look-around.
    Regex(String),
    /// One of some texts.
    Choice(Vec<String>),
    /// A text of a context-free grammar in Lark's notation, as llguidance reads it, without `&` and `~` of terminals; `start` is the rule
    /// of the whole.
    Lark(String),
}

impl Grammar {
    /// Longest source of a grammar, in bytes: what refers to itself from level to level takes kilobytes of stack a level to compile.
    pub const MAX_BYTES: usize = 128 << 10;

    /// Bytes of its source.
    pub fn num_bytes(&self) -> usize {
        match self {
            Self::JsonObject => 0,
            Self::JsonSchema(source) | Self::Regex(source) | Self::Lark(source) => source.len(),
            Self::Choice(texts) => texts.iter().map(String::len).sum(),
        }
    }
}
