//! [`Schema`]: what values a field takes, and [`Object`]: what members an object has, as far as a JSON Schema can say it.

use serde_json::{Map, Value, json};

/// What values a field takes.
#[derive(Debug, Clone, Copy)]
pub enum Schema {
    /// True or false.
    Bool,
    /// A string.
    Text,
    /// A string that is not empty.
    SomeText,
    /// The name of a function.
    Name,
    /// An integer from the first to the second; the ends of `i64` are no bounds.
    Int(i64, i64),
    /// A finite number from the first to the second; infinity is no bound.
    Number(f64, f64),
    /// A number above 0, at most this.
    Positive(f64),
    /// One of these strings.
    OneOf(&'static [&'static str]),
    /// This value, written as JSON, and no other.
    Only(&'static str),
    /// A list of such elements: at least so many, and at most so many.
    List(&'static Schema, usize, usize),
    /// An object with token ids for names and such values.
    OfTokens(&'static Schema),
    /// An object with any names and such values.
    Map(&'static Schema),
    /// An object with whatever members.
    Any,
    /// Any of these.
    AnyOf(&'static [Schema]),
    /// All of these at once.
    AllOf(&'static [Schema]),
    /// Null, or this.
    OrNull(&'static Schema),
    /// The [`Object`] of that name.
    Ref(&'static str),
}

impl Schema {
    /// The JSON Schema.
    pub fn to_json(self) -> Value {
        match self {
            Self::Bool => json!({"type": "boolean"}),
            Self::Text => json!({"type": "string"}),
            Self::SomeText => json!({"type": "string", "minLength": 1}),
            Self::Name => json!({"type": "string", "pattern": "^[a-zA-Z0-9_.-]{1,64}$"}),
            Self::Int(min, max) => {
                let mut json = json!({"type": "integer"});
                put(&mut json, "minimum", (min != i64::MIN).then_some(min));
                put(&mut json, "maximum", (max != i64::MAX).then_some(max));
                json
            }
            Self::Number(min, max) => {
                let mut json = json!({"type": "number"});
                put(&mut json, "minimum", min.is_finite().then_some(min));
                put(&mut json, "maximum", max.is_finite().then_some(max));
                json
            }
            Self::Positive(max) => json!({"type": "number", "exclusiveMinimum": 0, "maximum": max}),
            Self::OneOf(names) => json!({"type": "string", "enum": names}),
            Self::Only(value) => json!({"const": parse(value)}),
            Self::List(element, min, max) => {
                let mut json = json!({"type": "array", "items": element.to_json()});
                put(&mut json, "minItems", (min > 0).then_some(min));
                put(&mut json, "maxItems", (max < usize::MAX).then_some(max));
                json
            }
            Self::OfTokens(value) => {
                let names = json!({"pattern": "^[0-9]+$"});
                json!({"type": "object", "propertyNames": names, "additionalProperties": value.to_json()})
            }
            Self::Map(value) => json!({"type": "object", "additionalProperties": value.to_json()}),
            Self::Any => json!({"type": "object"}),
            Self::AnyOf(schemas) => json!({"anyOf": each(schemas)}),
            Self::AllOf(schemas) => json!({"allOf": each(schemas)}),
            Self::OrNull(schema) => or_null(schema.to_json()),
            Self::Ref(name) => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }
}

/// An object of requests or answers, under a name to which [`Schema::Ref`] refers.
pub struct Object {
    /// Its name.
    pub name: &'static str,
    /// What it is, in a sentence.
    pub doc: &'static str,
    /// Its members.
    pub members: &'static [Member],
    /// What else may be in it.
    pub rest: Rest,
}

/// A member of an [`Object`].
pub struct Member {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub schema: Schema,
    /// Whether it is always there.
    pub is_required: bool,
}

/// What an [`Object`] may hold beside its members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Nothing: anything else is refused.
    Refused,
    /// Null and empty lists, which say nothing, under any name.
    Nothing,
    /// What later versions add: an answer's reader passes over it.
    Unsaid,
}

/// A member that is always there.
pub const fn must(name: &'static str, schema: Schema) -> Member {
    Member { name, schema, is_required: true }
}

/// A member that can be left out.
pub const fn may(name: &'static str, schema: Schema) -> Member {
    Member { name, schema, is_required: false }
}

impl Object {
    /// The JSON Schema.
    pub fn to_json(&self) -> Value {
        let properties = self.members.iter().map(|m| (m.name.to_owned(), m.schema.to_json())).collect();
        let required = self.members.iter().filter(|m| m.is_required).map(|m| m.name).collect();
        let mut json = object(properties, required);
        json["description"] = self.doc.into();
        match self.rest {
            Rest::Refused => json["additionalProperties"] = false.into(),
            Rest::Nothing => json["additionalProperties"] = or_null(json!({"type": "array", "maxItems": 0})),
            Rest::Unsaid => {}
        }
        json
    }
}

/// The JSON Schema of an object.
pub(super) fn object(properties: Map<String, Value>, required: Vec<&str>) -> Value {
    let mut json = json!({"type": "object", "properties": properties});
    put(&mut json, "required", (!required.is_empty()).then_some(required));
    json
}

/// `schema`, or null.
pub(super) fn or_null(mut schema: Value) -> Value {
    let nothing = json!({"type": "null"});
    if let Some(Value::Array(schemas)) = schema.get_mut("anyOf") {
        schemas.push(nothing);
        return schema;
    }
    match schema.get("type").cloned() {
        Some(kind) if schema.get("enum").is_none() => {
            schema["type"] = json!([kind, "null"]);
            schema
        }
        _ => json!({"anyOf": [schema, nothing]}),
    }
}

/// A value that a table holds as JSON.
pub(super) fn parse(value: &str) -> Value {
    serde_json::from_str(value).expect("invariant: tables hold valid JSON")
}

fn each(schemas: &[Schema]) -> Vec<Value> {
    schemas.iter().map(|schema| schema.to_json()).collect()
}

fn put(json: &mut Value, name: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        json[name] = value.into();
    }
}
