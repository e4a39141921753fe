//! [`Shown`]: an answer as it is printed while it comes, what is thought apart from what is said.

use std::io::{self, IsTerminal, Write};

use sconce::{AnswerReader, Section};

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Prints an answer. A terminal shows reasoning dimmed; where output goes elsewhere, reasoning goes to stderr, so that it is the answer
/// alone.
pub(super) struct Shown {
    reader: AnswerReader,
    is_terminal: bool,
    is_thinking: bool,
    /// What has been said.
    content: String,
}

impl Shown {
    /// An answer that `reader` reads from its beginning, on stdout.
    pub(super) fn new(reader: AnswerReader) -> Self {
        Self::to(reader, io::stdout().is_terminal())
    }

    fn to(reader: AnswerReader, is_terminal: bool) -> Self {
        Self { reader, is_terminal, is_thinking: false, content: String::new() }
    }

    /// Prints what has become certain with `text`, or all of what is left where it is the last.
    pub(super) fn push(&mut self, text: &str, is_last: bool, out: &mut impl Write) -> io::Result<()> {
        let mut sections = self.reader.push(text);
        if is_last {
            sections.extend(self.reader.finish());
        }
        for section in sections {
            match section {
                Section::Reasoning(text) => self.think(&text, out)?,
                Section::Content(text) => self.say(&text, out)?,
                Section::Call(call) => self.say(&call.arguments, out)?,
            }
        }
        if is_last {
            self.end_thought("", out)?;
        }
        out.flush()
    }

    /// What has been said.
    pub(super) fn into_content(self) -> String {
        self.content
    }

    fn think(&mut self, text: &str, out: &mut impl Write) -> io::Result<()> {
        if !self.is_terminal {
            // Nobody need listen there.
            let _ = io::stderr().write_all(text.as_bytes());
        } else if std::mem::replace(&mut self.is_thinking, true) {
            out.write_all(text.as_bytes())?;
        } else {
            write!(out, "{DIM}{text}")?;
        }
        Ok(())
    }

    fn say(&mut self, text: &str, out: &mut impl Write) -> io::Result<()> {
        self.end_thought("\n\n", out)?;
        self.content.push_str(text);
        out.write_all(text.as_bytes())
    }

    fn end_thought(&mut self, space: &str, out: &mut impl Write) -> io::Result<()> {
        if std::mem::take(&mut self.is_thinking) { write!(out, "{PLAIN}{space}") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use sconce::{AnswerForm, ChatInput, Engine};

    use super::*;

    #[test]
    fn reasoning_is_dimmed_in_a_terminal_and_is_not_output_elsewhere() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/llama");
        let engine = Engine::builder(golden)
            .device(sconce::DeviceKind::Cpu)
            .num_threads(1)
            .kv_cache_bytes(1 << 20)
            .build()
            .unwrap();
        let form = AnswerForm::of("</think>", engine.handle().tokenizer());
        let reader = form.reader(&ChatInput::default(), "<think>\n");
        let print = |reader: &AnswerReader, is_terminal, pieces: &[&str]| {
            let (mut shown, mut out) = (Shown::to(reader.clone(), is_terminal), Vec::new());
            pieces.iter().for_each(|piece| shown.push(piece, false, &mut out).unwrap());
            shown.push("", true, &mut out).unwrap();
            (String::from_utf8(out).unwrap(), shown.into_content())
        };
        let pieces = ["a", "b</th", "ink>\n\nc", "d"];
        assert_eq!(print(&reader, true, &pieces), (format!("{DIM}ab{PLAIN}\n\ncd"), "cd".to_owned()));
        assert_eq!(print(&reader, false, &pieces), ("cd".to_owned(), "cd".to_owned()));
        // What is stopped while it thinks leaves no terminal dimmed.
        assert_eq!(print(&reader, true, &["a"]), (format!("{DIM}a{PLAIN}"), String::new()));
        assert_eq!(print(&AnswerReader::default(), true, &pieces).1, pieces.concat());
    }
}
