//! The framing of OpenAI's streams: server-sent events.

use super::json::Json;
use super::pieces::Pieces;

/// What ends a stream.
pub const DONE: &[u8] = b"data: [DONE]\n\n";

/// Appends one event with a name to `out`.
pub fn named_event(name: &str, value: &Json, out: &mut Pieces) {
    out.push(b"event: ");
    out.push(name.as_bytes());
    out.push(b"\n");
    event(value, out);
}

/// Appends one event to `out`. JSON escapes line ends, so that an event is one line.
pub fn event(value: &Json, out: &mut Pieces) {
    out.push(b"data: ");
    value.write(out);
    out.push(b"\n\n");
}
