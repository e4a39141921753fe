//! `cargo xtask golden`: the golden tests of sconce-core as one table, a row a fixture; and the CUDA kernels against their
//! references, on the host shim or with `REQUIRE_CUDA=1` on a GPU, a row an operation and tolerance.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

/// Columns by the names that the tests print, and their headings. A check that printed nothing of a fixture is "-".
const COLUMNS: &[(&str, &str)] = &[
    ("logits", "max logit error"),
    ("layers", "layers"),
    ("greedy", "greedy"),
    ("batched", "chunks, batches"),
    ("batched quantized", "quantized"),
    ("beams", "beams"),
    ("lora", "through adapters"),
    ("lora greedy", "greedy, beams"),
    ("bf16", "bf16: top-1, mean KL"),
    ("mixed bf16", "mixed, bf16"),
    ("mixed Q8_0", "mixed, Q8_0"),
    ("cuda bf16", "CUDA bf16: top-1, mean KL"),
    ("cuda f16", "CUDA f16"),
    ("cuda bits", "chunks, batches, graphs"),
    ("cuda checked", "each op"),
    ("gguf", "GGUF greedy"),
    ("template", "template"),
    ("tokenizer", "tokenizer"),
];

/// What each check found of each fixture.
type Outcomes = BTreeMap<String, BTreeMap<String, String>>;

/// Runs the tests and prints the tables; an error if anything is off, or if there was nothing to check.
pub(crate) fn run(root: &Path) -> Result<(), String> {
    let (mut text, mut is_good) = (String::new(), true);
    let kernels = ["--lib", "--", "device", "cuda_tests", "cuda::tests", "--nocapture", "--test-threads=1"];
    for args in [&["--test", "golden", "--", "--nocapture"][..], &kernels] {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(["test", "--quiet", "--locked", "--package", "sconce-core"]).args(args);
        let output = command.current_dir(root).stderr(Stdio::inherit()).output();
        let output = output.map_err(|e| format!("cargo test: {e}"))?;
        is_good &= output.status.success();
        text += &String::from_utf8_lossy(&output.stdout);
    }
    // The test runner may have begun the line.
    text.lines().filter_map(|line| line.find("skipped: ").map(|at| &line[at..])).for_each(|line| println!("{line}"));
    let outcomes = collect(&text);
    print!("\n{}\n{}", table(&outcomes), kernel_table(&text));
    if !is_good {
        return Err("golden tests failed".into());
    }
    if outcomes.is_empty() {
        return Err("no golden fixture was found".into());
    }
    Ok(())
}

/// The last of each operation's and tolerance's lines `kernel|op|tolerance|cases|worst error`: they count up.
fn kernel_table(text: &str) -> String {
    let mut last = BTreeMap::new();
    for line in text.lines() {
        let Some((_, line)) = line.split_once("kernel|") else { continue };
        if let [op, tolerance, cases, worst] = line.split('|').collect::<Vec<_>>()[..] {
            last.insert((op, tolerance), [op, cases, worst, tolerance].map(str::to_owned).to_vec());
        }
    }
    let headings = ["kernel", "cases", "worst error", "allowed"].map(str::to_owned).to_vec();
    in_columns(&std::iter::once(headings).chain(last.into_values()).collect::<Vec<_>>())
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
    in_columns(&rows)
}

fn in_columns(rows: &[Vec<String>]) -> String {
    let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests;
