//! `cargo xtask check-kernels`: the tests that run kernels on the host shim, with its checker (`kernels/host/check.h`).

use std::path::Path;
use std::process::Command;

/// Runs the library's tests whose names contain one of `filters`, all without any; an error if the checker finds a fault.
pub(crate) fn run(root: &Path, filters: &[String]) -> Result<(), String> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["test", "--release", "--locked", "--package", "sconce-core", "--lib", "--"]).args(filters);
    let status = command.env("SCONCE_HOST_CHECK", "1").current_dir(root).status();
    match status.map_err(|e| format!("cargo test: {e}"))? {
        status if status.success() => Ok(()),
        _ => Err("the checker has found faults, or tests have failed".into()),
    }
}
