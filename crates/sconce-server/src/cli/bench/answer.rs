//! [`Answer`]: one streamed completion, with the times at which it came.

use std::time::Instant;

use bytes::Bytes;
use serde_json::Value;

use super::client::{Client, error_message};

/// One streamed completion.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    /// From sending, a new connection included, to the first token, in seconds.
    pub(super) first_s: f64,
    /// From one chunk of text to the next.
    pub(super) gaps_s: Vec<f64>,
    /// From sending to the end of the stream.
    pub(super) whole_s: f64,
    /// As the server counts.
    pub(super) prompt_tokens: u64,
    /// As the server counts.
    pub(super) output_tokens: u64,
    /// Of the prompt's, those that the server has not computed, where it tells.
    pub(super) cached_tokens: u64,
}

/// The times and the counts of an answer that is coming.
#[derive(Debug, Default)]
struct Arrivals {
    first: Option<Instant>,
    last: Option<Instant>,
    gaps_s: Vec<f64>,
    usage: Option<Value>,
}

impl Answer {
    /// Sends `body` and reads the answer. Errors: whatever keeps it from being a whole one.
    pub(super) async fn fetch(client: &Client, body: Bytes) -> Result<Self, String> {
        let start = Instant::now();
        let mut events = client.post("/v1/completions", body).await?;
        let mut arrivals = Arrivals::default();
        loop {
            let data = events.next().await?.ok_or("the stream ended before its [DONE]")?;
            if data == "[DONE]" {
                break;
            }
            arrivals.chunk(&data, Instant::now())?;
        }
        arrivals.end(start, Instant::now())
    }

    /// From the first token to the end, shared among the other tokens: no chunks are counted, some of which hold
    /// several tokens. `None`: there are no others.
    pub(super) fn per_token_s(&self) -> Option<f64> {
        let num_others = self.output_tokens.checked_sub(1).filter(|&n| n > 0)?;
        Some((self.whole_s - self.first_s) / num_others as f64)
    }
}

impl Arrivals {
    fn chunk(&mut self, data: &str, now: Instant) -> Result<(), String> {
        let chunk: Value = serde_json::from_str(data).map_err(|e| format!("an event is not JSON: {e} in {data}"))?;
        if let Some(message) = error_message(&chunk) {
            return Err(message);
        }
        if chunk["usage"].is_object() {
            self.usage = Some(chunk["usage"].clone());
        }
        let Some(choice) = chunk["choices"].get(0) else { return Ok(()) };
        self.first.get_or_insert(now);
        // A last chunk that says no more than why the answer ends is no token.
        let is_token = choice["finish_reason"].is_null() || choice["text"].as_str().is_some_and(|t| !t.is_empty());
        if is_token && let Some(last) = self.last.replace(now) {
            self.gaps_s.push((now - last).as_secs_f64());
        }
        Ok(())
    }

    fn end(self, start: Instant, now: Instant) -> Result<Answer, String> {
        let count = |key: &str| self.usage.as_ref().and_then(|usage| usage[key].as_u64());
        let no_usage = "the server counts no tokens: its streams need `usage`, for stream_options.include_usage";
        let (Some(prompt_tokens), Some(output_tokens)) = (count("prompt_tokens"), count("completion_tokens")) else {
            return Err(no_usage.into());
        };
        let details = self.usage.as_ref().map(|usage| &usage["prompt_tokens_details"]["cached_tokens"]);
        Ok(Answer {
            first_s: (self.first.ok_or("the stream holds no token")? - start).as_secs_f64(),
            gaps_s: self.gaps_s,
            whole_s: (now - start).as_secs_f64(),
            prompt_tokens,
            output_tokens,
            cached_tokens: details.and_then(Value::as_u64).unwrap_or(0),
        })
    }
}
