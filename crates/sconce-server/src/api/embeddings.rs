//! `POST /v1/embeddings`: a vector for each text, in OpenAI's form.

use std::sync::Arc;

use hyper::{Response, StatusCode};
use sconce::{EmbeddingOutput, Error};
use serde_json::json;

use super::events::blocking;
use crate::http::{self, ApiError, Body};
use crate::state::Served;
use crate::wire::WireRequest;

/// Answers one request. A client that leaves cancels it.
pub(super) async fn answer(served: &Arc<Served>, mut request: WireRequest) -> Result<Response<Body>, ApiError> {
    let (model, is_base64) = (request.model.take().unwrap_or_else(|| served.id().to_owned()), request.is_base64);
    let (request, served) = (request.take_embeddings(), served.clone());
    // Neither tokenizing nor writing many numbers may hold up other connections.
    let output = blocking(move || served.engine.handle().embed(request)).await?.collect().await?;
    let text = blocking(move || text(&output, &model, is_base64)).await?;
    Ok(http::json_text(StatusCode::OK, text))
}

/// The answer's JSON, written by hand: numbers have as few digits as tell them apart in 32 bits.
fn text(output: &EmbeddingOutput, model: &str, is_base64: bool) -> Result<String, Error> {
    let mut text = String::from(r#"{"object":"list","data":["#);
    for (index, vector) in output.embeddings.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(&format!(r#"{{"object":"embedding","index":{index},"embedding":"#));
        if is_base64 {
            let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            text.push('"');
            push_base64(&bytes, &mut text);
            text.push('"');
        } else {
            let numbers = serde_json::to_string(vector).map_err(|e| Error::internal(format!("a vector: {e}")))?;
            text.push_str(&numbers);
        }
        text.push('}');
    }
    let usage = json!({"prompt_tokens": output.prompt_tokens, "total_tokens": output.prompt_tokens});
    text.push_str(&format!(r#"],"model":{},"usage":{usage}}}"#, json!(model)));
    Ok(text)
}

/// Appends bytes in base64 (RFC 4648), padded.
fn push_base64(bytes: &[u8], out: &mut String) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place)) as usize % 64];
            out.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (bytes, expected) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")]
        {
            let mut text = String::new();
            push_base64(bytes.as_bytes(), &mut text);
            assert_eq!(text, expected);
        }
        let mut text = String::new();
        push_base64(&[0xff, 0xef, 0xbe], &mut text);
        assert_eq!(text, "/+++");
    }

    #[test]
    fn both_forms_have_the_same_numbers() {
        let embeddings = vec![vec![0.1, -0.0, 1.0 / 3.0], vec![1e-30, 1.0, f32::MIN_POSITIVE]];
        let output = EmbeddingOutput { embeddings, prompt_tokens: 7, cached_tokens: 3 };
        let written = |is_base64| serde_json::from_str::<Value>(&text(&output, "a \"b\"", is_base64).unwrap()).unwrap();
        let floats = written(false);
        for (i, expected) in output.embeddings.iter().enumerate() {
            let numbers = floats["data"][i]["embedding"].as_array().unwrap();
            let numbers: Vec<u32> = numbers.iter().map(|x| (x.as_f64().unwrap() as f32).to_bits()).collect();
            assert_eq!(numbers, expected.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
        }
        let base64 = written(true);
        assert_eq!(base64["data"][1]["index"], 1);
        // 0.1, -0.0 and a third.
        assert_eq!(base64["data"][0]["embedding"], "zczMPQAAAICrqqo+");
        assert_eq!((&base64["model"], &base64["object"]), (&json!("a \"b\""), &json!("list")));
        assert_eq!(base64["usage"], json!({"prompt_tokens": 7, "total_tokens": 7}));
    }
}
