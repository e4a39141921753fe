//! Progress of downloads, of loading and of measuring: bars in a terminal, lines elsewhere.

use std::io::IsTerminal;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Instant;

use indicatif::{BinaryBytes, MultiProgress, ProgressBar, ProgressStyle};
use sconce::Progress;

/// The bars on stderr, which log lines must not tear.
pub(super) fn bars() -> &'static MultiProgress {
    static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);
    &BARS
}

/// What suits stderr: bars in a terminal, lines elsewhere.
pub(super) fn progress() -> Arc<dyn Progress> {
    if std::io::stderr().is_terminal() { Arc::new(Bars::default()) } else { Arc::new(Lines::default()) }
}

/// Counts things that are done: a bar in a terminal until it is dropped, a line elsewhere.
pub(super) struct Counter {
    bar: ProgressBar,
}

/// A counter of `total` things.
pub(super) fn counter(what: &str, total: usize) -> Counter {
    if !std::io::stderr().is_terminal() {
        eprintln!("{what}: {total} to do");
        return Counter { bar: ProgressBar::hidden() };
    }
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} {elapsed}");
    let style = style.expect("invariant: the template is well formed");
    let bar = bars().add(ProgressBar::new(total as u64).with_style(style).with_message(what.to_owned()));
    bar.tick();
    Counter { bar }
}

impl Counter {
    /// One more is done.
    pub(super) fn advance(&self) {
        self.bar.inc(1);
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        bars().remove(&self.bar);
    }
}

/// One bar at a time.
#[derive(Default)]
struct Bars {
    bar: Mutex<Option<ProgressBar>>,
}

impl Progress for Bars {
    fn start(&self, what: &str, total_bytes: Option<u64>) {
        let (bar, template) = match total_bytes {
            Some(total) => (
                ProgressBar::new(total),
                "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} left",
            ),
            None => (ProgressBar::new_spinner(), "{msg} {spinner} {binary_bytes} {elapsed}"),
        };
        let style = ProgressStyle::with_template(template).expect("invariant: the template is well formed");
        let bar = bars().add(bar.with_style(style).with_message(what.to_owned()));
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        *self.bar.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar);
    }

    fn advance(&self, bytes: u64) {
        if let Some(bar) = &*self.bar.lock().unwrap_or_else(PoisonError::into_inner) {
            bar.inc(bytes);
        }
    }

    fn finish(&self) {
        if let Some(bar) = self.bar.lock().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
            bars().remove(&bar);
        }
    }

    fn message(&self, line: &str) {
        bars().suspend(|| eprintln!("{line}"));
    }
}

/// A line when a piece of work begins, and one when it ends.
#[derive(Default)]
struct Lines {
    work: Mutex<Option<Work>>,
}

struct Work {
    what: String,
    num_bytes: u64,
    start: Instant,
}

impl Progress for Lines {
    fn start(&self, what: &str, total_bytes: Option<u64>) {
        match total_bytes {
            Some(total) => eprintln!("{what}: {} to do", BinaryBytes(total)),
            None => eprintln!("{what}"),
        }
        let work = Work { what: what.to_owned(), num_bytes: 0, start: Instant::now() };
        *self.work.lock().unwrap_or_else(PoisonError::into_inner) = Some(work);
    }

    fn advance(&self, bytes: u64) {
        if let Some(work) = &mut *self.work.lock().unwrap_or_else(PoisonError::into_inner) {
            work.num_bytes += bytes;
        }
    }

    fn finish(&self) {
        if let Some(work) = self.work.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let seconds = work.start.elapsed().as_secs_f64();
            eprintln!("{}: {} in {seconds:.1} s", work.what, BinaryBytes(work.num_bytes));
        }
    }

    fn message(&self, line: &str) {
        eprintln!("{line}");
    }
}
