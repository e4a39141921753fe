//! A conversation that remembers what was said. An empty line ends it.
//!
//! `cargo run --release --package sconce-examples --example chat [MODEL]`

use std::io::{BufRead, Write};

use sconce::{ChatInput, GenerationRequest, StreamEvent};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let engine = sconce_examples::engine_from_args().build()?;
    let mut chat = ChatInput::default();
    print!("> ");
    std::io::stdout().flush()?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if line.trim().is_empty() {
            break;
        }
        chat.messages.push(message("user", &line));
        let mut answer = String::new();
        let mut stream = engine.stream(GenerationRequest::chat(chat.clone()))?;
        while let Some(event) = stream.blocking_next() {
            if let StreamEvent::Token(event) = event? {
                print!("{}", event.text);
                std::io::stdout().flush()?;
                answer.push_str(&event.text);
            }
        }
        chat.messages.push(message("assistant", &answer));
        print!("\n> ");
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// `{"role": role, "content": content}`.
fn message(role: &str, content: &str) -> serde_json::Value {
    serde_json::json!({"role": role, "content": content})
}
