//! The framing of a streamed `/generate`: JSON records, each followed by one NUL byte.

use serde_json::Value;

/// Appends one record to `out`. JSON escapes control characters, so that the NUL can only be the end.
pub fn record(value: &Value, out: &mut Vec<u8>) {
    serde_json::to_writer(&mut *out, value).expect("invariant: a JSON value can be written to memory");
    out.push(0);
}
