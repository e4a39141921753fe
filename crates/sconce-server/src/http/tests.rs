//! Framing, and the statuses of errors.

use sconce::Error;
use serde_json::json;

use super::{ApiError, event, record};

#[test]
fn records_end_with_one_nul() {
    let mut out = Vec::new();
    record(&json!({"text": ["a\0b\n"]}), &mut out);
    record(&json!({}), &mut out);
    assert_eq!(out, b"{\"text\":[\"a\\u0000b\\n\"]}\0{}\0");
}

#[test]
fn events_are_one_line() {
    let mut out = Vec::new();
    event(&json!({"text": "a\n\nb\r"}), &mut out);
    assert_eq!(out, b"data: {\"text\":\"a\\n\\nb\\r\"}\n\n");
}

#[test]
fn engine_errors_have_their_statuses() {
    let check = |error: Error, status: u16, param: Option<&str>, retry_after: Option<&str>| {
        let text = error.to_string();
        let error = ApiError::from(error);
        let json = error.to_json();
        assert_eq!(json["error"]["param"].as_str(), param, "{text}");
        // What went wrong inside is not the client's to read.
        assert_eq!(json["error"]["message"] == text.as_str(), status != 500, "{text}");
        let response = error.into_response();
        assert_eq!(response.status().as_u16(), status, "{text}");
        assert_eq!(response.headers().get("retry-after").map(|v| v.to_str().unwrap()), retry_after, "{text}");
    };
    check(Error::invalid("top_p", "top_p: must be at most 1"), 400, Some("top_p"), None);
    check(Error::Overloaded { message: "full".into() }, 429, None, Some("1"));
    check(Error::Unavailable { message: "stopped".into() }, 503, None, Some("5"));
    check(Error::Device { message: "gone".into() }, 500, None, None);
    check(Error::internal("a bug"), 500, None, None);
}
