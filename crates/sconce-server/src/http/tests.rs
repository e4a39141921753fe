//! Framing, and the statuses of errors.

use sconce::Error;
use serde_json::json;

use super::{ApiError, Json, List, Pieces, Text, event, record};

#[test]
fn records_end_with_one_nul() {
    let mut out = Pieces::default();
    record(&json!({"text": ["a\0b\n"]}).into(), &mut out);
    record(&json!({}).into(), &mut out);
    assert_eq!(out.into_frames().concat(), b"{\"text\":[\"a\\u0000b\\n\"]}\0{}\0");
}

#[test]
fn events_are_one_line() {
    let mut out = Pieces::default();
    event(&json!({"text": "a\n\nb\r"}).into(), &mut out);
    assert_eq!(out.into_frames().concat(), b"data: {\"text\":\"a\\n\\nb\\r\"}\n\n");
}

#[test]
fn pieces_are_bytes_in_order_and_copies_share_them() {
    let bytes: Vec<u8> = (0..100_000).map(|i| (i % 251) as u8).collect();
    let mut pieces = Pieces::default();
    let mut rest = bytes.as_slice();
    for len in [0, 1, 5, 20_000, 16_000, 384, 16_384, 40_000].into_iter().cycle() {
        let (now, later) = rest.split_at(len.min(rest.len()));
        pieces.push(now);
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    assert_eq!(pieces.num_bytes(), bytes.len());
    let mut longer = Pieces::default();
    longer.push(b"<");
    longer.append(&pieces);
    longer.push(b">");
    let (frames, longer) = (pieces.into_frames(), longer.into_frames());
    assert_eq!(frames.concat(), bytes);
    assert_eq!(longer.concat(), [b"<", bytes.as_slice(), b">"].concat());
    assert!(frames.iter().chain(&longer).all(|frame| !frame.is_empty() && frame.len() <= 16 << 10));
    let num_whole = bytes.len() / (16 << 10);
    assert!((0..num_whole).all(|i| frames[i].as_ptr() == longer[i + 1].as_ptr()));
    assert!(Pieces::default().into_frames().is_empty());
}

#[test]
fn what_grows_is_written_as_what_is_whole() {
    let (mut list, mut none, mut text) = (List::default(), List::default(), Text::from("\"a"));
    list.append(&none);
    for number in ["1", "22"] {
        list.entry().push(number.as_bytes());
        none.append(&List::default());
    }
    list.append(&list.clone());
    text.push("é\n\u{0}");
    text.push("");
    let json = Json::from(json!({"z": 1, "list": null, "a": [true]}))
        .with("list", &list)
        .with("none", &none)
        .with("text", &text)
        .with("both", vec![json!({}).into(), Json::from(json!({"b": 2})).with("c", json!("\\"))]);
    let mut out = Pieces::default();
    json.write(&mut out);
    let expected = json!({"z": 1, "list": [1, 22, 1, 22], "a": [true], "none": [], "text": "\"aé\n\u{0}",
        "both": [{}, {"b": 2, "c": "\\"}]});
    assert_eq!(String::from_utf8(out.into_frames().concat()).unwrap(), expected.to_string());
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
