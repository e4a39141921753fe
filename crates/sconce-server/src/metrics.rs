//! [`Metrics`]: counters of requests, and their text in Prometheus' form.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the times to the first token, in seconds.
const FIRST_TOKEN_BOUNDS: &[f64] = &[0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];
/// Upper bounds of the times between tokens, in seconds.
const INTER_TOKEN_BOUNDS: &[f64] = &[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0];
/// Upper bounds of the times of whole requests, in seconds.
const REQUEST_BOUNDS: &[f64] = &[0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

/// Counters of requests, since the server's start.
#[derive(Debug)]
pub struct Metrics {
    /// From the request's arrival to its first token.
    pub first_token: Histogram,
    /// From one token of a sequence to the next.
    pub inter_token: Histogram,
    requests: Histogram,
    ended: Mutex<BTreeMap<(&'static str, u16), u64>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            first_token: Histogram::new(FIRST_TOKEN_BOUNDS),
            inter_token: Histogram::new(INTER_TOKEN_BOUNDS),
            requests: Histogram::new(REQUEST_BOUNDS),
            ended: Mutex::default(),
        }
    }
}

impl Metrics {
    /// Counts a request that has been answered in full, or whose client has left.
    pub fn request_ended(&self, route: &'static str, status: u16, elapsed: Duration) {
        self.requests.observe(elapsed);
        // A counter is whole whatever happened to the thread that held the lock.
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner).entry((route, status)).or_default() += 1;
    }

    /// Appends all counters to `text`.
    pub fn write(&self, text: &mut Text) {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone();
        text.family("sconce_requests_total", "counter", "Requests ended, by path and HTTP status.");
        for ((route, status), count) in ended {
            text.sample(&format!("path=\"{route}\",status=\"{status}\""), count as f64);
        }
        text.family("sconce_request_seconds", "histogram", "Time from a request's arrival to its answer's last byte.");
        self.requests.write(text);
        text.family(
            "sconce_time_to_first_token_seconds",
            "histogram",
            "Time from a request's arrival to its first token.",
        );
        self.first_token.write(text);
        text.family("sconce_inter_token_seconds", "histogram", "Time from one token of a sequence to the next.");
        self.inter_token.write(text);
    }
}

/// A histogram of times.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One a bound, and one above all.
    counts: Vec<AtomicU64>,
    sum_us: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum_us: AtomicU64::new(0) }
    }

    /// Counts one time.
    pub fn observe(&self, time: Duration) {
        let bucket = self.bounds.partition_point(|&bound| bound < time.as_secs_f64());
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    fn write(&self, text: &mut Text) {
        let name = text.name;
        let mut total = 0;
        for (i, count) in self.counts.iter().enumerate() {
            total += count.load(Ordering::Relaxed);
            let bound = self.bounds.get(i).map_or("+Inf".into(), f64::to_string);
            text.line(&format!("{name}_bucket{{le=\"{bound}\"}}"), total as f64);
        }
        text.line(&format!("{name}_sum"), self.sum_us.load(Ordering::Relaxed) as f64 / 1e6);
        text.line(&format!("{name}_count"), total as f64);
    }
}

/// Text in Prometheus' form, in the making.
#[derive(Debug, Default)]
pub struct Text {
    text: String,
    name: &'static str,
}

impl Text {
    /// Begins the family `name`.
    pub fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        self.text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    /// Adds a sample of the family that was begun last.
    pub fn sample(&mut self, labels: &str, value: f64) {
        let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        self.line(&format!("{}{braces}", self.name), value);
    }

    fn line(&mut self, series: &str, value: f64) {
        writeln!(self.text, "{series} {value}").expect("invariant: writing to a String does not fail");
    }

    /// The whole text.
    pub fn into_string(self) -> String {
        self.text
    }
}

/// `value` as it stands between the quotes of a label.
pub fn escape_label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
