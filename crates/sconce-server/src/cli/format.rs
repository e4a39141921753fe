//! Flags that say what an answer has to match.

use std::fs;

use sconce::Grammar;

use super::Failure;

/// What an answer has to match: one of these at most.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Form of the answer")]
#[group(multiple = false)]
pub(super) struct FormatArgs {
    /// The answer is JSON by this schema: a JSON object, or a file that holds one.
    #[arg(long, value_name = "JSON|FILE")]
    json_schema: Option<String>,
    /// The answer is a text that this regular expression matches as a whole.
    #[arg(long, value_name = "REGEX")]
    regex: Option<String>,
    /// The answer is this text, or another for which the flag is given.
    #[arg(long, value_name = "TEXT")]
    choice: Vec<String>,
    /// The answer is a text of the context-free grammar in this file, in Lark's notation.
    #[arg(long, value_name = "FILE")]
    grammar: Option<String>,
}

impl FormatArgs {
    /// What the answer has to match, if anything.
    pub(super) fn grammar(self) -> Result<Option<Grammar>, Failure> {
        let read = |path: String| fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"));
        Ok(if let Some(schema) = self.json_schema {
            let is_json = schema.trim_start().starts_with('{');
            Some(Grammar::JsonSchema(if is_json { schema } else { read(schema)? }))
        } else if let Some(path) = self.grammar {
            Some(Grammar::Lark(read(path)?))
        } else if !self.choice.is_empty() {
            Some(Grammar::Choice(self.choice))
        } else {
            self.regex.map(Grammar::Regex)
        })
    }
}
