//! The grammar of answers that are calls.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::xml::{Kinds, MAX_REFERENCES, resolved};
use super::{ARGS_MARK, CallCount, CallForm, END_TAG, ID_MARK, LIST_MARK, TAG};
use crate::config::Grammar;
use crate::error::{Error, Result};
use crate::text::Tokenizer;
use crate::text::grammar::JSON_SPACE;

impl CallForm {
    /// What answers match that call one of `tools` (in OpenAI's form) with arguments by its schema, and say nothing else. Error:
    /// `InvalidRequest` at `tools` for schemas that the form cannot be held to.
    pub fn grammar(self, tools: &[Value], count: CallCount, tokenizer: &Tokenizer) -> Result<Grammar> {
        let mark = |mark: &str| mark_of(mark, tokenizer);
        let further = |separator: &str| match count {
            CallCount::One => String::new(),
            CallCount::Many if separator.is_empty() => " call*".to_owned(),
            CallCount::Many => format!(" ({} call)*", quoted(separator)),
        };
        let names: Vec<String> = (0..tools.len()).map(|i| format!("call_{i}")).collect();
        let any = names.join(" | ");
        let mut lark = match self {
            Self::Tagged | Self::Xml => format!(
                "start: call{}\ncall: {} \"\\n\" any_call \"\\n\" {}\nany_call: {any}\n",
                further("\n"),
                mark(TAG),
                mark(END_TAG)
            ),
            Self::List => {
                format!("start: {} \" \"? \"[\" call{} \"]\"\ncall: {any}\n", mark(LIST_MARK), further(", "))
            }
            Self::Named => format!("start: call{}\ncall: {} any_call\nany_call: {any}\n", further(""), mark(LIST_MARK)),
            Self::Channels => {
                let [start, channel, message, end] = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>"].map(mark);
                format!(
                    "start: thought* ({any})\nthought: {channel} \"analysis\" {message} text? {end} {start} \"assistant\"\n\
                     text: /(.|\\n)+/\n"
                )
            }
            Self::Object => format!("start: {any}\n"),
        };
        for (tool, rule) in tools.iter().zip(&names) {
            lark += &self.rules(rule, &tool["function"], tokenizer)?;
        }
        Ok(Grammar::Lark(lark))
    }

    /// The rules of calls of one function.
    fn rules(self, rule: &str, function: &Value, tokenizer: &Tokenizer) -> Result<String> {
        let mark = |mark: &str| mark_of(mark, tokenizer);
        let name = function["name"].as_str().unwrap_or_default();
        let around = match self {
            Self::Xml => return xml_rules(rule, function),
            Self::Named => {
                let id = tokenizer.token_to_id(ID_MARK).map(|_| format!("({} /[a-zA-Z0-9]{{9}}/)? ", mark(ID_MARK)));
                (format!("{} {}{}", quoted(name), id.unwrap_or_default(), mark(ARGS_MARK)), "")
            }
            Self::Channels => {
                let to = quoted(&format!(" to=functions.{name}"));
                let [channel, constrain, message] = ["<|channel|>", "<|constrain|>", "<|message|>"].map(mark);
                let commentary = format!("{channel} \"commentary\"");
                let header = format!("({commentary} {to} | {to} {commentary})");
                (format!("{header} (\" \"? {constrain} \"json\" | \" json\")? {message}"), "")
            }
            Self::Tagged | Self::List | Self::Object => {
                let key = if self == Self::Object { "parameters" } else { "arguments" };
                (quoted(&format!("{{\"name\": {}, \"{key}\": ", function["name"])), " \"}\"")
            }
        };
        let schema = Value::Object(parameters(function));
        Ok(format!("{rule}: {} {rule}_json{}\n{rule}_json: %json {schema}\n", around.0, around.1))
    }
}

/// A mark as Lark writes it.
fn mark_of(mark: &str, tokenizer: &Tokenizer) -> String {
    match tokenizer.token_to_id(mark) {
        // A token of control is not spelled by its letters.
        Some(id) if tokenizer.is_special(id) => format!("<[{id}]>"),
        _ => quoted(mark),
    }
}

/// The schema of a function's arguments, which are an object; a function without one has none.
fn parameters(function: &Value) -> Map<String, Value> {
    let mut schema = match &function["parameters"] {
        Value::Object(schema) => schema.clone(),
        _ => Map::from_iter([("additionalProperties".to_owned(), json!(false))]),
    };
    schema.entry("type").or_insert_with(|| json!("object"));
    with_space(&mut schema);
    schema
}

/// Calls are JSON as all know it, whatever a schema says of how to write it.
fn with_space(schema: &mut Map<String, Value>) {
    schema.insert("x-guidance".to_owned(), json!({"whitespace_pattern": JSON_SPACE}));
}

/// What a schema of arguments may have where each is written by itself.
const OF_XML: [&str; 10] = [
    "type",
    "properties",
    "required",
    "additionalProperties",
    "$defs",
    "definitions",
    "title",
    "description",
    "$schema",
    "$id",
];

/// The rules of calls whose arguments are written one by one.
fn xml_rules(rule: &str, function: &Value) -> Result<String> {
    let schema = parameters(function);
    let refuse = |what: &str| {
        let name = function["name"].as_str().unwrap_or_default();
        Err(Error::invalid("tools", format!("tools: {name}: {what} cannot be kept to in this model's form of calls")))
    };
    let is_known = |key: &&String| OF_XML.contains(&key.as_str()) || *key == "x-guidance";
    if let Some(other) = schema.keys().find(|key| !is_known(key)) {
        return refuse(&format!("{other:?} of its parameters"));
    }
    let empty = Map::new();
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    let required: HashSet<&str> =
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    if let Some(unknown) = required.iter().find(|name| !properties.contains_key(**name)) {
        return refuse(&format!("the parameter {unknown:?}, which has no schema and"));
    }
    let mut lark =
        format!("{rule}: {}", quoted(&format!("<function={}>\n", function["name"].as_str().unwrap_or_default())));
    let mut values = String::new();
    for (i, (name, own)) in properties.iter().enumerate() {
        let value = match xml_value(&format!("{rule}_{i}"), own, &schema, MAX_REFERENCES) {
            Some(value) => value,
            None => return refuse(&format!("the schema of {name:?}")),
        };
        if name.contains(['>', '\n']) {
            return refuse(&format!("the name {name:?}"));
        }
        let is_required = required.contains(name.as_str());
        let parameter = format!("{} {rule}_{i}", quoted(&format!("<parameter={name}>\n")));
        lark += &if is_required { format!(" {parameter}") } else { format!(" ({parameter})?") };
        values += &value;
    }
    Ok(format!("{lark} \"</function>\"\n{values}"))
}

/// What ends a value, and the rest of that line.
const XML_END: &str = "\"\\n</parameter>\\n\"";
/// What a schema of text may say of it.
const OF_TEXT: [&str; 7] = ["type", "title", "description", "default", "examples", "minLength", "maxLength"];

/// The rules of a value, up to the end of its line behind `</parameter>`. `None` for what could be read as something else than what
/// it is, for texts with more to them than a length, and for more than `num_left` alternatives within alternatives.
fn xml_value(rule: &str, own: &Value, root: &Map<String, Value>, num_left: usize) -> Option<String> {
    let num_left = num_left.checked_sub(1)?;
    let schema = resolved(own, root);
    let kinds = Kinds::of(schema, root);
    let is_of_text = |key: &String| OF_TEXT.contains(&key.as_str());
    let alternatives = schema["anyOf"].as_array().or(schema["oneOf"].as_array());
    if !kinds.has_text() {
        let mut schema = schema.as_object()?.clone();
        for key in ["$defs", "definitions"] {
            schema.extend(root.get(key).map(|value| (key.to_owned(), value.clone())));
        }
        with_space(&mut schema);
        Some(format!("{rule}: {rule}_json {XML_END}\n{rule}_json: %json {}\n", Value::Object(schema)))
    } else if let Some(values) = schema["enum"].as_array() {
        let texts: Option<Vec<String>> = values.iter().map(xml_choice).collect();
        Some(format!("{rule}: ({}) {XML_END}\n", texts?.join(" | ")))
    } else if let Some(text) = schema.get("const") {
        Some(format!("{rule}: {} {XML_END}\n", xml_choice(text)?))
    } else if !kinds.is_text_or_null() {
        None
    } else if let Some(alternatives) = alternatives {
        let mut texts = alternatives.iter().filter(|schema| Kinds::of(resolved(schema, root), root).has_text());
        let (Some(text), None) = (texts.next(), texts.next()) else { return None };
        let is_known = |key: &String| is_of_text(key) || key == "anyOf" || key == "oneOf";
        if !keys(schema).all(is_known) {
            return None;
        }
        let text = xml_value(&format!("{rule}_text"), text, root, num_left)?;
        Some(format!("{rule}: {rule}_text | \"null\" {XML_END}\n{text}"))
    } else {
        let length = |key: &str| schema[key].as_u64().map(|n| n.to_string());
        let (least, most) = (length("minLength").unwrap_or("0".into()), length("maxLength").unwrap_or_default());
        // It ends with the first tag that ends it.
        let text = format!("{rule}_text[suffix=\"</parameter>\"]: /(.|\\n){{{least},{most}}}\\n/\n");
        keys(schema).all(is_of_text).then(|| format!("{rule}: {rule}_text \"\\n\"\n{text}"))
    }
}

fn keys(schema: &Value) -> impl Iterator<Item = &String> {
    schema.as_object().into_iter().flat_map(Map::keys)
}

/// One value of several, if it does not end what it stands in.
fn xml_choice(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => (!text.contains("</parameter>")).then(|| quoted(text)),
        Value::Null => Some(quoted("null")),
        _ => None,
    }
}

/// A text as Lark writes it.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
