//! The framing of OpenAI's streams: server-sent events.

use serde_json::Value;

/// What ends a stream.
pub const DONE: &[u8] = b"data: [DONE]\n\n";

/// Appends one event with a name to `out`.
pub fn named_event(name: &str, value: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.push(b'\n');
    event(value, out);
}

/// Appends one event to `out`. JSON escapes line ends, so that an event is one line.
pub fn event(value: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: ");
    serde_json::to_writer(&mut *out, value).expect("invariant: a JSON value can be written to memory");
    out.extend_from_slice(b"\n\n");
}
