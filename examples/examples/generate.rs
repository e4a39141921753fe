//! Continues a text several ways and says how sure the model was.
//!
//! `cargo run --release --package sconce-examples --example generate [MODEL]`

use sconce::{GenerationRequest, SamplingParams};

fn main() -> sconce::Result<()> {
    let engine = sconce_examples::engine_from_args().build()?;
    let params = SamplingParams { n: 3, max_tokens: Some(24), temperature: 0.8, seed: Some(7), ..Default::default() };
    let answer = engine.generate(GenerationRequest::text("The best thing about the sea is").with_params(params))?;
    for output in &answer.outputs {
        let logprob = output.finish.as_ref().map_or(0.0, |finish| finish.cumulative_logprob);
        println!("{logprob:8.2}  {}", output.text.trim());
    }
    println!("{} tokens in, {} tokens out", answer.usage.prompt_tokens, answer.usage.completion_tokens);
    Ok(())
}
