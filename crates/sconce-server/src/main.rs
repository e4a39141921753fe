//! The `sconce` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    sconce_server::cli::run()
}
