//! [`FieldValue`]: one JSON value with the name under which the sender knows it, read into a Rust type.

use std::fmt::{self, Display};
use std::rc::Rc;

use sconce::LogprobsMode;
use serde_json::Value;

use crate::http::ApiError;

/// A JSON value and its name.
#[derive(Debug)]
pub struct FieldValue {
    name: Name,
    /// The value; null where a list or an object holds one.
    pub value: Value,
}

/// A name such as `top_p` or `messages[0].role`. It is only spelled out for an error: a list can be long.
#[derive(Debug, Clone)]
enum Name {
    Field(String),
    Element(Rc<Name>, usize),
    Member(Rc<Name>, String),
}

impl Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => f.write_str(name),
            Self::Element(list, index) => write!(f, "{list}[{index}]"),
            Self::Member(object, key) => write!(f, "{object}.{key}"),
        }
    }
}

/// A type that a request field can be read into.
pub trait FromField: Sized {
    /// Reads the field. The error names it and says what was expected and what was found.
    fn from_field(field: FieldValue) -> Result<Self, ApiError>;
}

impl FieldValue {
    /// The value `value` under the name `name`.
    pub fn new(name: impl Into<String>, value: Value) -> Self {
        Self { name: Name::Field(name.into()), value }
    }

    /// Reads the field into `slot`.
    pub fn store<T: FromField>(self, slot: &mut T) -> Result<(), ApiError> {
        *slot = T::from_field(self)?;
        Ok(())
    }

    /// Reads the field.
    pub fn read<T: FromField>(self) -> Result<T, ApiError> {
        T::from_field(self)
    }

    /// The error for a value of the wrong kind.
    pub fn expected(&self, what: &str) -> ApiError {
        self.refuse(format_args!("expected {what}, found {}", describe(&self.value)))
    }

    /// An error that names the field.
    pub fn refuse(&self, message: impl Display) -> ApiError {
        ApiError::invalid(self.name.to_string(), format!("{}: {message}", self.name))
    }

    /// The elements of a list, each under its own name.
    pub fn list(self, what: &str) -> Result<impl Iterator<Item = FieldValue>, ApiError> {
        match self.value {
            Value::Array(values) => {
                let name = Rc::new(self.name);
                let element = move |(i, value)| Self { name: Name::Element(name.clone(), i), value };
                Ok(values.into_iter().enumerate().map(element))
            }
            _ => Err(self.expected(what)),
        }
    }

    /// The members of an object, each under its own name, and its key.
    pub fn members(self, what: &str) -> Result<impl Iterator<Item = (String, FieldValue)>, ApiError> {
        match self.value {
            Value::Object(map) => {
                let name = Rc::new(self.name);
                let member = move |(key, value): (String, Value)| {
                    (key.clone(), Self { name: Name::Member(name.clone(), key), value })
                };
                Ok(map.into_iter().map(member))
            }
            _ => Err(self.expected(what)),
        }
    }

    /// An integer, which may be written as `3.0`.
    fn integer(&self, what: &str) -> Result<i128, ApiError> {
        /// Above it, not every integer has a double.
        const MAX_EXACT: f64 = 9_007_199_254_740_992.0;
        let Value::Number(number) = &self.value else { return Err(self.expected(what)) };
        if let Some(x) = number.as_i64() {
            return Ok(x.into());
        }
        if let Some(x) = number.as_u64() {
            return Ok(x.into());
        }
        match number.as_f64() {
            Some(x) if x.fract() == 0.0 && x.abs() <= MAX_EXACT => Ok(x as i128),
            _ => Err(self.expected(what)),
        }
    }

    fn integer_as<T: TryFrom<i128>>(&self, what: &str) -> Result<T, ApiError> {
        T::try_from(self.integer(what)?).map_err(|_| self.expected(what))
    }
}

impl FromField for bool {
    fn from_field(field: FieldValue) -> Result<Self, ApiError> {
        field.value.as_bool().ok_or_else(|| field.expected("true or false"))
    }
}

impl FromField for f32 {
    fn from_field(field: FieldValue) -> Result<Self, ApiError> {
        field.value.as_f64().map(|x| x as f32).ok_or_else(|| field.expected("a number"))
    }
}

impl FromField for usize {
    fn from_field(field: FieldValue) -> Result<Self, ApiError> {
        field.integer_as("an integer, at least 0")
    }
}

impl FromField for u32 {
    fn from_field(field: FieldValue) -> Result<Self, ApiError> {
        field.integer_as("a token id")
    }
}

/// A seed: 64 bits, whether the sender writes them signed or not.
impl FromField for u64 {
    fn from_field(field: FieldValue) -> Result<Self, ApiError> {
        let what = "an integer of 64 bits";
        match field.integer(what)? {
            x @ 0.. => u64::try_from(x).map_err(|_| field.expected(what)),
            x => i64::try_from(x).map(|x| x as u64).map_err(|_| field.expected(what)),
        }
    }
}

impl FromField for i64 {
    fn from_field(field: FieldValue) -> Result<Self, ApiError> {
        field.integer_as("an integer")
    }
}

impl FromField for String {
    fn from_field(field: FieldValue) -> Result<Self, ApiError> {
        match field.value {
            Value::String(s) => Ok(s),
            _ => Err(field.expected("a string")),
        }
    }
}

impl<T: FromField> FromField for Option<T> {
    fn from_field(field: FieldValue) -> Result<Self, ApiError> {
        if field.value.is_null() { Ok(None) } else { T::from_field(field).map(Some) }
    }
}

impl<T: FromField> FromField for Vec<T> {
    fn from_field(field: FieldValue) -> Result<Self, ApiError> {
        field.list("a list")?.map(T::from_field).collect()
    }
}

impl FromField for LogprobsMode {
    fn from_field(field: FieldValue) -> Result<Self, ApiError> {
        match field.value.as_str() {
            Some("raw") => Ok(Self::Raw),
            Some("processed") => Ok(Self::Processed),
            _ => Err(field.expected("\"raw\" or \"processed\"")),
        }
    }
}

/// A value in words, short enough for an error message.
pub(super) fn describe(value: &Value) -> String {
    const MAX_CHARS: usize = 40;
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(s) if s.chars().count() <= MAX_CHARS => format!("{s:?}"),
        Value::String(s) => format!("a string that begins {:?}", s.chars().take(MAX_CHARS).collect::<String>()),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}
