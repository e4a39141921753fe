//! One check over all fixtures: every one is looked at, whatever came of those before it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::fixture::{self, Fixture};

/// Runs `check` on every fixture, as [`check_some`] does.
#[allow(dead_code, reason = "tests on the host shim take some")]
pub(crate) fn check_all(column: &str, check: impl Fn(&Fixture) -> Result<String, &'static str>) {
    check_some(fixture::supported(), column, check);
}

/// Runs `check` on each of `fixtures` and fails if any of them panicked. `check` returns what it found, or why it has
/// nothing to compare.
///
/// Each outcome is one line, `golden|fixture|column|outcome`, of which `cargo xtask golden` makes its table.
pub(crate) fn check_some(
    fixtures: Vec<Fixture>,
    column: &str,
    check: impl Fn(&Fixture) -> Result<String, &'static str>,
) {
    if fixtures.is_empty() {
        println!("skipped: no fixtures found");
    }
    let mut failed = Vec::new();
    for fixture in &fixtures {
        let outcome = match catch_unwind(AssertUnwindSafe(|| check(fixture))) {
            Ok(Ok(found)) => found,
            Ok(Err(reason)) => {
                println!("skipped: {} {column}: {reason}", fixture.name);
                "-".into()
            }
            Err(_) => {
                failed.push(fixture.name.as_str());
                "FAILED".into()
            }
        };
        println!("golden|{}|{column}|{outcome}", fixture.name);
    }
    assert!(failed.is_empty(), "{column}: {}", failed.join(", "));
}
