//! Log lines: to stderr, above any progress bar.

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;

use super::progress;

/// Starts logging. `RUST_LOG` overrides `level`.
pub(super) fn init(level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let is_terminal = io::IsTerminal::is_terminal(&io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(is_terminal)
        .with_writer(|| Stderr)
        .init();
}

/// Stderr, from which the bars are taken away while a line is written.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        progress::bars().suspend(|| io::stderr().write(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
