//! The grammar of answers that are calls.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::written::{FUNCTIONS, KEYS, Kinds, MAX_REFERENCES, Tags, resolved};
use super::{
    ARGS_MARK, CALL, CALLS, CallCount, CallForm, END_CALL, END_CALLS, END_FENCE, END_PYTHONIC, END_TAG, FENCE, ID_MARK,
    LIST_MARK, PYTHONIC, SEPARATOR, TAG,
};
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
            Self::Keys => {
                format!("start: call{}\ncall: {} ({any}) {}\n", further("\n"), mark(TAG), mark(END_TAG))
            }
            Self::Separated | Self::Fenced => {
                let [calls, end_calls, call, end_call, separator] =
                    [CALLS, END_CALLS, CALL, END_CALL, SEPARATOR].map(mark);
                let (word, further) = match self {
                    Self::Fenced => (format!("\"function\" {separator}"), further("\n")),
                    _ => (String::new(), further("")),
                };
                format!("start: {calls} call{further} {end_calls}\ncall: {call} {word} ({any}) {end_call}\n")
            }
            Self::Pythonic => {
                let [begin, end] = [PYTHONIC, END_PYTHONIC].map(mark);
                format!("start: {begin} \"[\" call{} \"]\" {end}\ncall: {any}\n", further(", "))
            }
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
            Self::Xml => return written_rules(rule, function, &FUNCTIONS),
            Self::Keys => return written_rules(rule, function, &KEYS),
            Self::Pythonic => return python_rules(rule, function),
            Self::Separated => (format!("{} {}", quoted(name), mark(SEPARATOR)), String::new()),
            Self::Fenced => (quoted(&format!("{name}\n{FENCE}\n")), format!(" {}", quoted(&format!("\n{END_FENCE}")))),
            Self::Named => {
                let id = tokenizer.token_to_id(ID_MARK).map(|_| format!("({} /[a-zA-Z0-9]{{9}}/)? ", mark(ID_MARK)));
                (format!("{} {}{}", quoted(name), id.unwrap_or_default(), mark(ARGS_MARK)), String::new())
            }
            Self::Channels => {
                let to = quoted(&format!(" to=functions.{name}"));
                let [channel, constrain, message] = ["<|channel|>", "<|constrain|>", "<|message|>"].map(mark);
                let commentary = format!("{channel} \"commentary\"");
                let header = format!("({commentary} {to} | {to} {commentary})");
                (format!("{header} (\" \"? {constrain} \"json\" | \" json\")? {message}"), String::new())
            }
            Self::Tagged | Self::List | Self::Object => {
                let key = if self == Self::Object { "parameters" } else { "arguments" };
                (quoted(&format!("{{\"name\": {}, \"{key}\": ", function["name"])), " \"}\"".to_owned())
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
const OF_EACH: [&str; 11] = [
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
    "x-guidance",
];

fn refused(function: &Value, what: &str) -> Error {
    let name = function["name"].as_str().unwrap_or_default();
    Error::invalid("tools", format!("tools: {name}: {what} cannot be kept to in this model's form of calls"))
}

/// Of the arguments of a call where each is written by itself: its name, its schema, whether it has to be there.
fn each_argument<'a>(function: &Value, schema: &'a Map<String, Value>) -> Result<Vec<(&'a str, &'a Value, bool)>> {
    if let Some(other) = schema.keys().find(|key| !OF_EACH.contains(&key.as_str())) {
        return Err(refused(function, &format!("{other:?} of its parameters")));
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    let required: HashSet<&str> =
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let is_known = |name: &str| properties.is_some_and(|properties| properties.contains_key(name));
    if let Some(unknown) = required.iter().find(|name| !is_known(name)) {
        return Err(refused(function, &format!("the parameter {unknown:?}, which has no schema and")));
    }
    let argument = |(name, own): (&'a String, &'a Value)| (name.as_str(), own, required.contains(name.as_str()));
    Ok(properties.into_iter().flatten().map(argument).collect())
}

/// The rules of calls whose arguments stand between tags.
fn written_rules(rule: &str, function: &Value, tags: &Tags) -> Result<String> {
    let schema = parameters(function);
    let name = function["name"].as_str().unwrap_or_default();
    let mut lark = format!("{rule}: {}", quoted(&format!("{}{name}{}\n", tags.name[0], tags.name[1])));
    let mut values = String::new();
    for (i, (name, own, is_required)) in each_argument(function, &schema)?.into_iter().enumerate() {
        let Some(value) = written_value(&format!("{rule}_{i}"), own, (&schema, MAX_REFERENCES), tags) else {
            return Err(refused(function, &format!("the schema of {name:?}")));
        };
        if name.contains(['>', '\n']) {
            return Err(refused(function, &format!("the name {name:?}")));
        }
        let [[before, behind], [begin, _]] = [tags.key, tags.value];
        // A value stands on lines of its own, or does so behind its name.
        let parameter = format!("{} {rule}_{i}", quoted(&format!("{before}{name}{behind}\n{begin}")));
        lark += &if is_required { format!(" {parameter}") } else { format!(" ({parameter})?") };
        values += &value;
    }
    // What ends all calls is not said twice.
    let end = if tags.end == END_TAG { String::new() } else { format!(" {}", quoted(tags.end)) };
    Ok(format!("{lark}{end}\n{values}"))
}

/// What a schema of text may say of it.
const OF_TEXT: [&str; 7] = ["type", "title", "description", "default", "examples", "minLength", "maxLength"];

/// The rules of a value, up to the end of its line behind the tag. `None` for what could be read as something else than what it is, and
/// for texts with more to them than a length, and more than `num_left` alternatives within alternatives.
fn written_value(
    rule: &str,
    own: &Value,
    (root, num_left): (&Map<String, Value>, usize),
    tags: &Tags,
) -> Option<String> {
    let num_left = num_left.checked_sub(1)?;
    let schema = resolved(own, root);
    let kinds = Kinds::of(schema, root);
    let is_of_text = |key: &String| OF_TEXT.contains(&key.as_str());
    let alternatives = schema["anyOf"].as_array().or(schema["oneOf"].as_array());
    let (line, tag) = (tags.line, tags.value[1]);
    let end = quoted(&format!("{line}{tag}\n"));
    if !kinds.has_text() {
        Some(format!("{rule}: {rule}_json {end}\n{rule}_json: %json {}\n", json_value(schema, root)?))
    } else if let Some(values) = schema["enum"].as_array() {
        let texts: Option<Vec<String>> = values.iter().map(|value| written_choice(value, tags)).collect();
        Some(format!("{rule}: ({}) {end}\n", texts?.join(" | ")))
    } else if let Some(text) = schema.get("const") {
        Some(format!("{rule}: {} {end}\n", written_choice(text, tags)?))
    } else if !kinds.is_text_or_null() {
        None
    } else if let Some(alternatives) = alternatives {
        let mut texts = alternatives.iter().filter(|schema| Kinds::of(resolved(schema, root), root).has_text());
        let (Some(text), None) = (texts.next(), texts.next()) else { return None };
        let is_known = |key: &String| is_of_text(key) || key == "anyOf" || key == "oneOf";
        if !keys(schema).all(is_known) {
            return None;
        }
        let text = written_value(&format!("{rule}_text"), text, (root, num_left), tags)?;
        Some(format!("{rule}: {rule}_text | \"null\" {end}\n{text}"))
    } else {
        let length = |key: &str| schema[key].as_u64().map(|n| n.to_string());
        let (least, most) = (length("minLength").unwrap_or("0".into()), length("maxLength").unwrap_or_default());
        // It ends with the first tag that ends it.
        let line = line.escape_default();
        let text = format!("{rule}_text[suffix={}]: /(.|\\n){{{least},{most}}}{line}/\n", quoted(tag));
        keys(schema).all(is_of_text).then(|| format!("{rule}: {rule}_text \"\\n\"\n{text}"))
    }
}

/// A schema by itself, with what it may refer to.
fn json_value(schema: &Value, root: &Map<String, Value>) -> Option<Value> {
    let mut schema = schema.as_object()?.clone();
    for key in ["$defs", "definitions"] {
        schema.extend(root.get(key).map(|value| (key.to_owned(), value.clone())));
    }
    with_space(&mut schema);
    Some(Value::Object(schema))
}

/// The rules of calls as Python writes them. Values are JSON, which is read there too.
fn python_rules(rule: &str, function: &Value) -> Result<String> {
    let schema = parameters(function);
    let arguments = each_argument(function, &schema)?;
    let name = function["name"].as_str().unwrap_or_default();
    let mut lark = format!("{rule}: {} {rule}_0_first \")\"\n", quoted(&format!("{name}(")));
    for (i, (name, own, is_required)) in arguments.iter().enumerate() {
        if !super::scan::is_argument(name) {
            return Err(refused(function, &format!("the name {name:?}")));
        }
        let Some(value) = json_value(resolved(own, &schema), &schema) else {
            return Err(refused(function, &format!("the schema of {name:?}")));
        };
        let (next, may_be_missing) = (i + 1, if *is_required { "" } else { "?" });
        let skipped = if *is_required { String::new() } else { format!(" | {rule}_{next}_first") };
        lark += &format!(
            "{rule}_{i}: {} {rule}_{i}_json\n{rule}_{i}_json: %json {value}\n\
             {rule}_{i}_first: {rule}_{i} {rule}_{next}_more{skipped}\n\
             {rule}_{i}_more: (\", \" {rule}_{i}){may_be_missing} {rule}_{next}_more\n",
            quoted(&format!("{name}="))
        );
    }
    let end = arguments.len();
    Ok(format!("{lark}{rule}_{end}_first: \"\"\n{rule}_{end}_more: \"\"\n"))
}

fn keys(schema: &Value) -> impl Iterator<Item = &String> {
    schema.as_object().into_iter().flat_map(Map::keys)
}

/// One value of several, if it does not end what it stands in.
fn written_choice(value: &Value, tags: &Tags) -> Option<String> {
    match value {
        Value::String(text) => (!text.contains(tags.value[1])).then(|| quoted(text)),
        Value::Null => Some(quoted("null")),
        _ => None,
    }
}

/// A text as Lark writes it.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
