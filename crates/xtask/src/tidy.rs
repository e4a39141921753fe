//! `cargo xtask tidy`: the rules that no compiler checks. CONTRIBUTING.md lists them.

mod layers;
mod rust;
mod source;
mod text;

use std::fmt;
use std::path::Path;
use std::process::Command;

use source::Source;

/// What a rule has to say about a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    path: String,
    line: usize,
    message: String,
    is_error: bool,
}

impl Finding {
    fn error(source: &Source, line: usize, message: impl Into<String>) -> Self {
        Self { path: source.path.clone(), line, message: message.into(), is_error: true }
    }

    fn warning(source: &Source, line: usize, message: impl Into<String>) -> Self {
        Self { is_error: false, ..Self::error(source, line, message) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = if self.is_error { "error" } else { "warning" };
        write!(f, "{}:{}: {level}: {}", self.path, self.line, self.message)
    }
}

/// A rule that looks at one file.
type Rule = fn(&Source, &mut Vec<Finding>);

const RULES: &[Rule] = &[
    text::whitespace,
    text::outside_names,
    text::unfinished,
    text::length,
    rust::module_docs,
    rust::banned_macros,
    rust::unwraps,
    rust::unsafe_places,
    rust::safety_comments,
    layers::forbidden_words,
    layers::core_dependencies,
    layers::kernels_have_bounds,
];

/// Checks every file of the repository; warnings are printed, errors fail.
pub(crate) fn run(root: &Path) -> Result<(), String> {
    let sources = read_sources(root)?;
    let findings = check(&sources);
    for finding in &findings {
        println!("{finding}");
    }
    let num_errors = findings.iter().filter(|finding| finding.is_error).count();
    let num_warnings = findings.len() - num_errors;
    println!("tidy: {} files, {num_errors} errors, {num_warnings} warnings", sources.len());
    if num_errors > 0 { Err(format!("tidy found {num_errors} errors")) } else { Ok(()) }
}

fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources {
        RULES.iter().for_each(|rule| rule(source, &mut findings));
    }
    layers::kernels_have_ops(sources, &mut findings);
    findings.sort_by(|a, b| (&a.path, a.line).cmp(&(&b.path, b.line)));
    findings
}

/// The text files that git tracks, and those that it would.
fn read_sources(root: &Path) -> Result<Vec<Source>, String> {
    let listing = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .map_err(|e| format!("git ls-files: {e}"))?;
    if !listing.status.success() {
        return Err(format!("git ls-files: {}", String::from_utf8_lossy(&listing.stderr).trim()));
    }
    let mut sources = Vec::new();
    for path in String::from_utf8_lossy(&listing.stdout).split('\0').filter(|path| !path.is_empty()) {
        // A file that was deleted and not yet committed is listed still; one that is not text has no lines to check.
        if let Ok(text) = std::fs::read_to_string(root.join(path)) {
            sources.push(Source::new(path, text));
        }
    }
    Ok(sources)
}

#[cfg(test)]
mod tests;
