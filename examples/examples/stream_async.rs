//! Streams an answer until a time limit, then drops the stream: that cancels the request.
//!
//! `cargo run --release --package sconce-examples --example stream_async [MODEL]`

use std::time::Duration;

use sconce::{GenerationRequest, SamplingParams, StreamEvent};

#[tokio::main]
async fn main() -> sconce::Result<()> {
    // Loading takes a while and blocks: it has its own thread.
    let build = tokio::task::spawn_blocking(|| sconce_examples::engine_from_args().build());
    let engine = build.await.map_err(|e| sconce::Error::internal(e.to_string()))??;
    let params = SamplingParams { max_tokens: Some(1000), ignore_eos: true, ..Default::default() };
    let mut stream = engine.stream(GenerationRequest::text("My favourite numbers are").with_params(params))?;
    let mut text = String::new();
    let reading = async {
        while let Some(event) = stream.next().await {
            if let StreamEvent::Token(event) = event? {
                text.push_str(&event.text);
            }
        }
        Ok::<(), sconce::Error>(())
    };
    match tokio::time::timeout(Duration::from_secs(2), reading).await {
        Ok(result) => result?,
        Err(_) => println!("[two seconds are over]"),
    }
    drop(stream);
    println!("{text}");
    Ok(())
}
