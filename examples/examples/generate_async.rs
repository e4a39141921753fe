//! Answers several questions at once: requests that run together share each step of the model.
//!
//! `cargo run --release --package sconce-examples --example generate_async [MODEL]`

use sconce::{ChatInput, GenerationRequest, SamplingParams};

#[tokio::main]
async fn main() -> sconce::Result<()> {
    // Loading takes a while and blocks: it has its own thread.
    let build = tokio::task::spawn_blocking(|| sconce_examples::engine_from_args().build());
    let engine = build.await.map_err(|e| sconce::Error::internal(e.to_string()))??;
    let questions = ["Why is the sky blue?", "Why is grass green?", "Why is the sea salty?"];
    let tasks = questions.map(|question| {
        let engine = engine.clone();
        let message = serde_json::json!({"role": "user", "content": question});
        let chat = ChatInput { messages: vec![message], ..Default::default() };
        let params = SamplingParams { max_tokens: Some(64), temperature: 0.0, ..Default::default() };
        tokio::spawn(async move { engine.generate_async(GenerationRequest::chat(chat).with_params(params)).await })
    });
    for (question, task) in questions.iter().zip(tasks) {
        let answer = task.await.map_err(|e| sconce::Error::internal(e.to_string()))??;
        println!("{question}\n{}\n", answer.outputs[0].text.trim());
    }
    Ok(())
}
