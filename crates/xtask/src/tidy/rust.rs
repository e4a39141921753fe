//! Rules for Rust code, wherever it is.

use super::Finding;
use super::source::{Source, find_word, line_at};

const CORE: &str = "crates/sconce-core/src";
/// How many lines above `unsafe` its comment may begin: a statement may be spread over some lines.
const SAFETY_REACH: usize = 8;

/// Every module opens with `//!`.
pub(super) fn module_docs(source: &Source, findings: &mut Vec<Finding>) {
    let is_preamble = |line: &&str| line.trim().is_empty() || line.starts_with("#![");
    let first = source.text.lines().find(|line| !is_preamble(line));
    if source.is_rust() && !first.is_some_and(|line| line.starts_with("//!")) {
        findings.push(Finding::error(source, 1, "a module opens with //!, saying what it is"));
    }
}

/// No stub, no test that is not run, no debug print.
pub(super) fn banned_macros(source: &Source, findings: &mut Vec<Finding>) {
    for word in ["todo!", "unimplemented!", "dbg!", "#[ignore"] {
        for at in find_word(&source.code, word) {
            findings.push(Finding::error(source, line_at(&source.code, at), format!("{word} is not for this project")));
        }
    }
}

/// Outside tests a failure is handled, or it is an invariant that is stated.
pub(super) fn unwraps(source: &Source, findings: &mut Vec<Finding>) {
    let code = &source.product_code;
    for (at, _) in code.match_indices(".unwrap()") {
        findings.push(Finding::error(source, line_at(code, at), ".unwrap() outside tests: handle it"));
    }
    for (at, call) in code.match_indices(".expect(") {
        // Parsers have methods of that name, which take no text.
        let argument = source.text[at + call.len()..].trim_start();
        if argument.starts_with('"') && !argument.starts_with("\"invariant: ") {
            let message = "expect(\"invariant: ...\") states the invariant that makes it impossible";
            findings.push(Finding::error(source, line_at(code, at), message));
        }
    }
}

/// `unsafe` is for compute kernels and for mapping files into memory.
pub(super) fn unsafe_places(source: &Source, findings: &mut Vec<Finding>) {
    if ["backend", "ops"].iter().any(|folder| source.is_in(&format!("{CORE}/{folder}"))) {
        return;
    }
    let may_map = source.is_in(&format!("{CORE}/weights"));
    for at in find_word(&source.code, "unsafe") {
        let statement = source.code[at..].split(';').next().unwrap_or_default();
        if !(may_map && ["Mmap", "advise_range"].iter().any(|word| statement.contains(word))) {
            let message = "unsafe belongs in backend/ and ops/, and for memory maps in weights/";
            findings.push(Finding::error(source, line_at(&source.code, at), message));
        }
    }
}

/// Every unsafe block and impl says why it is sound.
pub(super) fn safety_comments(source: &Source, findings: &mut Vec<Finding>) {
    let lines: Vec<&str> = source.text.lines().collect();
    for at in find_word(&source.code, "unsafe") {
        let after = source.code[at + "unsafe".len()..].trim_start();
        if !after.starts_with('{') && !after.starts_with("impl") {
            continue;
        }
        let line = line_at(&source.code, at);
        let reach = &lines[line.saturating_sub(SAFETY_REACH + 1)..line];
        if !reach.iter().any(|line| line.contains("SAFETY:")) {
            findings.push(Finding::error(source, line, "unsafe without a // SAFETY: comment above it"));
        }
    }
}
