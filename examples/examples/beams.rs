//! Beam search: the best four continuations with their scores, and how they came about.
//!
//! `cargo run --release --package sconce-examples --example beams [MODEL]`

use sconce::{BeamParams, GenerationRequest, SamplingParams, StreamEvent};

fn main() -> sconce::Result<()> {
    let engine = sconce_examples::engine_from_args().build()?;
    let params =
        SamplingParams { n: 4, beam: Some(BeamParams::new(4)), max_tokens: Some(24), ..SamplingParams::default() };
    let mut stream = engine.stream(GenerationRequest::text("The sea is").with_params(params))?;
    let mut answer = Vec::new();
    while let Some(event) = stream.blocking_next() {
        // Each shows the best so far; the last one is the answer.
        if let StreamEvent::Best(outputs) = event? {
            println!("{:?}", outputs[0].text);
            answer = outputs;
        }
    }
    for output in answer {
        let score = output.finish.and_then(|finish| finish.beam_score).unwrap_or(f64::NAN);
        println!("{score:8.4}  {:?}", output.text);
    }
    Ok(())
}
