//! Rules for any text file.

use super::Finding;
use super::source::{Source, find_word};

const SOFT_LINES: usize = 500;
const HARD_LINES: usize = 800;
const MAP_LINES: usize = 250;

/// Files whose every byte is given from outside.
fn is_verbatim(path: &str) -> bool {
    path.starts_with("LICENSE") || path.ends_with(".lock") || path.starts_with("tests/golden/")
}

/// No tabs (but where a format wants them), no spaces at the end of a line, a newline at the end of the file.
pub(super) fn whitespace(source: &Source, findings: &mut Vec<Finding>) {
    if is_verbatim(&source.path) {
        return;
    }
    for (line, text) in (1..).zip(source.text.split('\n')) {
        if text.ends_with('\r') {
            findings.push(Finding::error(source, line, "the line ends with a carriage return"));
        } else if text.ends_with([' ', '\t']) {
            findings.push(Finding::error(source, line, "white space at the end of the line"));
        }
        if text.contains('\t') && !source.path.ends_with("Makefile") {
            findings.push(Finding::error(source, line, "a tab"));
        }
    }
    if !source.text.is_empty() && !source.text.ends_with('\n') {
        findings.push(Finding::error(source, source.text.lines().count(), "no newline at the end of the file"));
    }
}

/// No path of the machine that somebody worked on. (The words are put together here, so that this file passes.)
pub(super) fn outside_names(source: &Source, findings: &mut Vec<Finding>) {
    const NAMES: &[&str] = &[
        concat!("/wo", "rk/"),
        concat!("/tm", "p/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("/Us", "ers/"),
        concat!("C:", "\\Users"),
    ];
    if is_verbatim(&source.path) {
        return;
    }
    for (line, text) in (1..).zip(source.text.lines()) {
        for name in NAMES {
            // Only where a path begins: a folder of that name inside a project is nobody's machine.
            let is_path_start = |at: usize| !text[..at].ends_with(|c: char| c.is_alphanumeric() || "._-~}".contains(c));
            if text.match_indices(name).any(|(at, _)| is_path_start(at)) {
                findings.push(Finding::error(source, line, format!("{name} is a path of one machine")));
            }
        }
    }
}

/// No note of work that is to be done: it is done, or it is an issue.
pub(super) fn unfinished(source: &Source, findings: &mut Vec<Finding>) {
    const MARKS: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("// ST", "UB")];
    if is_verbatim(&source.path) {
        return;
    }
    for (line, text) in (1..).zip(source.text.lines()) {
        for mark in MARKS {
            if find_word(text, mark).next().is_some() {
                findings.push(Finding::error(source, line, format!("{mark}: finish it, or make it an issue")));
            }
        }
    }
}

/// Code comes in files of one noun; the map of the code stays a map.
pub(super) fn length(source: &Source, findings: &mut Vec<Finding>) {
    let num_lines = source.text.lines().count();
    if source.path == "ARCHITECTURE.md" && num_lines > MAP_LINES {
        findings.push(Finding::error(source, num_lines, format!("{num_lines} lines; at most {MAP_LINES}")));
    }
    if !source.is_rust() && !source.is_kernel() {
        return;
    }
    if num_lines > HARD_LINES {
        findings.push(Finding::error(source, num_lines, format!("{num_lines} lines; at most {HARD_LINES}")));
    } else if num_lines > SOFT_LINES {
        findings.push(Finding::warning(source, num_lines, format!("{num_lines} lines; better {SOFT_LINES}")));
    }
}
