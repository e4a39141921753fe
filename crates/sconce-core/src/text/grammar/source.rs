//! [`of`]: a grammar as llguidance takes it.

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::{Value, json};

use super::invalid;
use crate::config::Grammar;
use crate::error::Result;

/// White space between JSON's tokens: enough to indent by, and not so much that a model could go on with it for ever.
pub(in crate::text) const JSON_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,64}";

/// Rules and terminals of a grammar in Lark's notation, at most: what is wrong with the last of a chain is said of all of it, each time with a
/// look at the whole source.
const MAX_RULES: usize = 600;

/// The same grammar in llguidance's terms. An error where it is none, or may not be asked for.
pub(super) fn of(grammar: &Grammar) -> Result<TopLevelGrammar> {
    let most = Grammar::MAX_BYTES;
    if grammar.num_bytes() > most {
        return Err(invalid(&format!("has {} bytes, more than {most}", grammar.num_bytes())));
    }
    Ok(match grammar {
        Grammar::JsonObject => json_schema(json!({"type": "object"})),
        Grammar::JsonSchema(schema) => match serde_json::from_str(schema) {
            Ok(schema @ Value::Object(_)) => json_schema(schema),
            Ok(_) => return Err(invalid("a JSON Schema must be an object")),
            Err(error) => return Err(invalid(&format!("the JSON Schema is not JSON: {error}"))),
        },
        Grammar::Regex(regex) => TopLevelGrammar::from_regex(regex),
        Grammar::Lark(source) if source.trim().is_empty() => return Err(invalid("must not be empty")),
        Grammar::Lark(source) => {
            check_lark(source)?;
            TopLevelGrammar::from_lark(source.clone())
        }
        Grammar::Choice(texts) if texts.is_empty() || texts.iter().any(String::is_empty) => {
            return Err(invalid("needs at least one text, and none of them empty"));
        }
        // As one terminal: a rule's alternatives are followed one by one.
        Grammar::Choice(texts) => {
            let quoted: Vec<String> = texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
            TopLevelGrammar::from_lark(format!("start: TEXT\nTEXT: {}", quoted.join(" | ")))
        }
    })
}

fn json_schema(mut schema: Value) -> TopLevelGrammar {
    if let Value::Object(members) = &mut schema {
        members.entry("x-guidance").or_insert_with(|| json!({"whitespace_pattern": JSON_SPACE}));
    }
    TopLevelGrammar::from_grammar(GrammarWithLexer::from_json_schema(schema))
}

/// Refuses what would take time or memory without end to compile, intersections and complements of terminals and very many rules, and
/// what would have no effect, a temperature.
fn check_lark(source: &str) -> Result<()> {
    let code = without_literals(source);
    let begins_rule = |line: &&str| line.starts_with(|c: char| c.is_ascii_alphabetic() || "_!?".contains(c));
    let num_rules = code.lines().filter(begins_rule).count();
    if num_rules > MAX_RULES {
        return Err(invalid(&format!("has {num_rules} rules, more than {MAX_RULES}")));
    }
    if let Some(found) = code.chars().find(|c| ['&', '~'].contains(c)) {
        return Err(invalid(&format!("{found} is not supported")));
    }
    let sets_temperature = code.split("temperature").skip(1).any(|rest| rest.trim_start().starts_with('='));
    if sets_temperature {
        return Err(invalid("temperature= is not supported: the request has its own"));
    }
    Ok(())
}

/// The source without comments, and without what is in strings, regular expressions and names of special tokens. A literal that
/// does not end is left as it is: it is none for llguidance either.
fn without_literals(source: &str) -> String {
    let (mut code, mut rest) = (String::new(), source);
    while let Some(c) = rest.chars().next() {
        let len = match c {
            '#' => line_len(rest),
            '/' if rest.starts_with("//") => line_len(rest),
            '"' | '/' => quoted_len(rest).unwrap_or(0),
            '<' => rest
                .find('>')
                .filter(|&end| !rest[1..end].contains(|c: char| c == '<' || c.is_whitespace()))
                .map_or(0, |end| end + 1),
            _ => 0,
        };
        if len == 0 {
            code.push(c);
        }
        rest = &rest[len.max(c.len_utf8())..];
    }
    code
}

/// Bytes up to the end of the line.
fn line_len(text: &str) -> usize {
    text.find('\n').unwrap_or(text.len())
}

/// Bytes of a literal that ends with the character with which it begins.
fn quoted_len(text: &str) -> Option<usize> {
    let quote = text.as_bytes()[0];
    let mut is_escaped = false;
    let end = text.bytes().skip(1).position(|byte| {
        let is_end = byte == quote && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        is_end
    });
    end.map(|at| at + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_passed_over() {
        for (source, code) in [
            ("start: A // & B\nA: /a&b/i", "start: A \nA: i"),
            (r#"start: "a\"&b" /c\/~d\\/ "e"i"#, "start:   i"),
            ("A: /a/ & ~/b/ # ~ \" /", "A:  & ~ "),
            ("start: <a\"> & <b\"> <c & d>", "start:  &  <c & d>"),
            ("start: \"never ends & ~", "start: \"never ends & ~"),
            ("%json {\"a\": \"é&\"}", "%json {: }"),
        ] {
            assert_eq!(without_literals(source), code, "{source}");
        }
    }
}
