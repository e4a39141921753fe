//! The Jinja environment that chat templates are written for: transformers'.

use std::borrow::Cow;
use std::error::Error as _;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::{json, strftime};

const NAME: &str = "chat_template";
/// Instructions, and units of 64 bytes, that one rendering may take.
const FUEL: u64 = 10_000_000;
const MAX_RENDERED_BYTES: usize = 16 << 20;
const MAX_RECURSION: usize = 200;

/// An environment with `source` as its template.
pub(super) fn environment(source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_RECURSION);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.add_filter("tojson", json::tojson);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_template_owned(NAME, without_generation_blocks(source).into_owned())?;
    Ok(environment)
}

/// Renders the template. The error is the reason in words: the template's own where it refuses.
pub(super) fn render(
    environment: &Environment<'_>,
    variables: &serde_json::Map<String, serde_json::Value>,
) -> Result<String, String> {
    let template = environment.get_template(NAME).map_err(|e| e.to_string())?;
    let mut out = Bounded(Vec::new());
    let rendered = template.render_captured_to(Value::from(Serde(variables)), &mut out).map(drop);
    rendered.map_err(|e| reason(&e))?;
    String::from_utf8(out.0).map_err(|e| e.to_string())
}

fn reason(error: &Error) -> String {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(Refusal(words)) = cause.downcast_ref() {
            return words.clone();
        }
        source = cause.source();
    }
    match error.kind() {
        ErrorKind::OutOfFuel => "messages: the chat template takes too long over this conversation".into(),
        ErrorKind::WriteFailure => {
            format!("messages: the rendered conversation is over {MAX_RENDERED_BYTES} bytes long")
        }
        _ => format!("messages: the chat template cannot render this conversation: {error}"),
    }
}

/// What a template says when it refuses a conversation.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn raise_exception(words: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, words.clone()).with_source(Refusal(words)))
}

/// The date and time now, in UTC.
fn strftime_now(format: &str) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    strftime::strftime(format, now.as_secs()).map_err(|e| Error::new(ErrorKind::InvalidOperation, e))
}

/// Text up to [`MAX_RENDERED_BYTES`].
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_RENDERED_BYTES {
            return Err(io::Error::other("the rendered text is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `source` with `{% generation %}` blocks, by which transformers finds an assistant's tokens in training, as blocks
/// that do nothing. The tags' white-space control stays.
fn without_generation_blocks(source: &str) -> Cow<'_, str> {
    if !source.contains("endgeneration") {
        return Cow::Borrowed(source);
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let end = tag.find("%}").unwrap_or(tag.len());
        let (tag, after) = tag.split_at(end);
        match tag.trim_matches(|c: char| c.is_whitespace() || matches!(c, '-' | '+')) {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    Cow::Owned(out)
}
