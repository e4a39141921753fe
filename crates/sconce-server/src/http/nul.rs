//! The framing of a streamed `/generate`: JSON records, each followed by one NUL byte.

use super::json::Json;
use super::pieces::Pieces;

/// Appends one record to `out`. JSON escapes control characters, so that the NUL can only be the end.
pub fn record(value: &Json, out: &mut Pieces) {
    value.write(out);
    out.push(&[0]);
}
