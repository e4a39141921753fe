//! What CI runs, step by step. The first step that fails ends it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::{check, kernels, tidy};

/// Everything.
pub(crate) fn run(root: &Path) -> Result<(), String> {
    let begun = Instant::now();
    cargo(root, &["fmt", "--all", "--check"])?;
    cargo(root, &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings", "-D", "missing-docs"])?;
    step("cargo xtask tidy", || tidy::run(root))?;
    step("cargo xtask kernels, the quick part", || kernels::run(root, kernels::Devices::Oldest))?;
    cargo(root, &["test", "--workspace", "--locked"])?;
    step("cargo xtask check-kernels, the quick part", || check::run(root, check::QUICK))?;
    // The binary that the tests have built: its kernels are optimised as a release's are, which takes minutes more to build.
    run_python_tests(root, "debug", &[])?;
    println!("\nci: all passed in {} s", begun.elapsed().as_secs());
    Ok(())
}

/// The Python clients' tests against a release build.
pub(crate) fn python_tests(root: &Path, args: &[String]) -> Result<(), String> {
    cargo(root, &["build", "--release", "--locked", "--package", "sconce-server"])?;
    run_python_tests(root, "release", args)
}

/// The Python clients' tests against the binary in `target/PROFILE`.
fn run_python_tests(root: &Path, profile: &str, args: &[String]) -> Result<(), String> {
    let binary = root.join("target").join(profile).join(format!("sconce{}", std::env::consts::EXE_SUFFIX));
    let python = python_environment(root)?;
    let mut command = Command::new(python);
    command.args(["-m", "pytest", "-p", "no:cacheprovider", "tests/python"]).args(args).current_dir(root);
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("SCONCE_BIN", binary);
    execute("pytest tests/python", &mut command)
}

/// The interpreter of an environment in `target/` that has what the tests' requirements.txt pins. It is made anew only
/// when the pins have changed.
fn python_environment(root: &Path) -> Result<PathBuf, String> {
    let dir = root.join("target/python-tests");
    let bin = if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" };
    let (python, stamp) = (dir.join(bin), dir.join("requirements.txt"));
    let pins = root.join("tests/python/requirements.txt");
    let read = |path: &Path| std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()));
    let wanted = read(&pins)?;
    if read(&stamp).is_ok_and(|found| found == wanted) && python.exists() {
        return Ok(python);
    }
    let system = if cfg!(windows) { "python" } else { "python3" };
    execute("python environment", Command::new(system).args(["-m", "venv", "--clear"]).arg(&dir))?;
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
    execute("python packages", Command::new(&python).args(install).arg(&pins))?;
    std::fs::write(&stamp, wanted).map_err(|e| format!("{}: {e}", stamp.display()))?;
    Ok(python)
}

fn cargo(root: &Path, args: &[&str]) -> Result<(), String> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    execute(&format!("cargo {}", args.join(" ")), Command::new(program).args(args).current_dir(root))
}

fn execute(name: &str, command: &mut Command) -> Result<(), String> {
    step(name, || match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{name}: {status}")),
        Err(e) => Err(format!("{name}: {e}")),
    })
}

fn step(name: &str, work: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    println!("\n==> {name}");
    let begun = Instant::now();
    work()?;
    println!("<== {name}: {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}
