//! An answer that is JSON by a schema, whatever the model would say: each token is chosen among those with which it can still be.
//!
//! `cargo run --release --package sconce-examples --example json [MODEL]`

use sconce::{ChatInput, GenerationRequest, Grammar, SamplingParams};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let engine = sconce_examples::engine_from_args().build()?;
    let schema = json!({
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 40},
            "country": {"type": "string", "maxLength": 40},
            "climate": {"enum": ["hot", "mild", "cold"]},
        },
        "required": ["city", "country", "climate"],
        "additionalProperties": false,
    });
    let messages = vec![json!({"role": "user", "content": "Name a city that is worth a journey."})];
    let params = SamplingParams { n: 3, max_tokens: Some(200), ..SamplingParams::default() };
    let request = GenerationRequest::chat(ChatInput { messages, ..ChatInput::default() })
        .with_params(params)
        .with_grammar(Grammar::JsonSchema(schema.to_string()));
    for output in engine.generate(request)?.outputs {
        let city: Value = serde_json::from_str(&output.text)?;
        println!("{}, {}: {}", city["city"], city["country"], city["climate"]);
    }
    Ok(())
}
