//! `cargo xtask golden`: the golden tests of sconce-core as one table, a row a fixture.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

/// Columns by the names that the tests print, and their headings. A check that printed nothing of a fixture is "-".
const COLUMNS: &[(&str, &str)] = &[
    ("logits", "max logit error"),
    ("layers", "layers"),
    ("greedy", "greedy"),
    ("chunked", "chunked"),
    ("batched", "batched"),
    ("beams", "beams"),
    ("bf16", "bf16: top-1, mean KL"),
    ("gguf", "GGUF greedy"),
    ("template", "template"),
    ("tokenizer", "tokenizer"),
];

/// What each check found of each fixture.
type Outcomes = BTreeMap<String, BTreeMap<String, String>>;

/// Runs the tests and prints the table; an error if anything is off, or if there was nothing to check.
pub(crate) fn run(root: &Path) -> Result<(), String> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let args = ["test", "--quiet", "--locked", "--package", "sconce-core", "--test", "golden", "--", "--nocapture"];
    let mut command = Command::new(program);
    command.args(args).current_dir(root).stderr(Stdio::inherit());
    let output = command.output().map_err(|e| format!("cargo test: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // The test runner may have begun the line.
    text.lines().filter_map(|line| line.find("skipped: ").map(|at| &line[at..])).for_each(|line| println!("{line}"));
    let outcomes = collect(&text);
    print!("\n{}", table(&outcomes));
    if !output.status.success() {
        return Err("golden tests failed".into());
    }
    if outcomes.is_empty() {
        return Err("no golden fixture was found".into());
    }
    Ok(())
}

/// The lines `golden|fixture|column|outcome` of the tests' output, whatever stands before them.
fn collect(text: &str) -> Outcomes {
    let mut outcomes = Outcomes::new();
    for line in text.lines() {
        let Some((_, line)) = line.split_once("golden|") else { continue };
        if let [fixture, column, outcome] = line.split('|').collect::<Vec<_>>()[..] {
            outcomes.entry(fixture.into()).or_default().insert(column.into(), outcome.into());
        }
    }
    outcomes
}

fn table(outcomes: &Outcomes) -> String {
    let cell = |row: &BTreeMap<String, String>, key: &str| row.get(key).map_or("-", String::as_str).to_owned();
    let headings = std::iter::once("model").chain(COLUMNS.iter().map(|(_, heading)| *heading));
    let mut rows = vec![headings.map(str::to_owned).collect::<Vec<_>>()];
    for (fixture, row) in outcomes {
        let cells = COLUMNS.iter().map(|(key, _)| cell(row, key));
        rows.push(std::iter::once(fixture.clone()).chain(cells).collect());
    }
    let widths: Vec<usize> =
        (0..=COLUMNS.len()).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests;
