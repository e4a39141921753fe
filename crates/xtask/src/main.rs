//! The project's own tasks: everything CI does is one `cargo xtask ...`.

// This program talks to whoever runs it.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod accesses;
mod check;
mod ci;
mod golden;
mod kernels;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "xtask", about = "The project's own tasks")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check the rules that no compiler checks
    Tidy,
    /// Run everything that CI runs: format, clippy, tidy, kernels, tests, a part of check-kernels, the Python clients' tests
    Ci,
    /// Compare the golden fixtures with what transformers computed, as one table
    Golden,
    /// Look for races and other faults of CUDA kernels without a GPU, in the tests that run them
    CheckKernels {
        /// Tests, by parts of their names; without any all, in some nine minutes of two cores
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        filters: Vec<String>,
    },
    /// Count, without a GPU, the wavefronts of shared memory and the sectors of device memory that CUDA kernels take, in the tests that run them
    CountAccesses {
        /// Tests, by parts of their names
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        filters: Vec<String>,
    },
    /// Compile every CUDA kernel for every device that matters (brings nvcc if need be); fail on unexplained spills
    Kernels,
    /// Bring nvcc to target/ unless there is one, and print its path: NVCC=$(cargo xtask nvcc) cargo build --release
    Nvcc,
    /// Build the release binary and run the Python clients' tests against it
    PythonTests {
        /// Arguments for pytest
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    let root = repository_root();
    let result = match Cli::parse().task {
        Task::Tidy => tidy::run(&root),
        Task::Ci => ci::run(&root),
        Task::Golden => golden::run(&root),
        Task::CheckKernels { filters } => check::run(&root, &filters),
        Task::CountAccesses { filters } => accesses::run(&root, &filters),
        Task::Kernels => kernels::run(&root, kernels::Devices::All),
        Task::Nvcc => kernels::nvcc_path(&root).map(|path| println!("{}", path.display())),
        Task::PythonTests { args } => ci::python_tests(&root, &args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The folder that holds `crates/`.
fn repository_root() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.ancestors().nth(2).unwrap_or(crate_dir).to_owned()
}
