//! [`Progress`]: how loading and downloading tell the user how far they are.

/// Receives progress of long work. Implementations draw bars or write log lines; [`NoProgress`] is silent.
pub trait Progress: Send + Sync {
    /// A piece of work begins: what it is, and its size in bytes if that is known.
    fn start(&self, what: &str, total_bytes: Option<u64>);
    /// So many more bytes are done.
    fn advance(&self, bytes: u64);
    /// The piece of work is done.
    fn finish(&self);
    /// A line that the user should read.
    fn message(&self, line: &str);
}

/// Says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn start(&self, _what: &str, _total_bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn finish(&self) {}
    fn message(&self, _line: &str) {}
}
