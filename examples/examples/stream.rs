//! Prints a story as it is written, and stops it at its second paragraph.
//!
//! `cargo run --release --package sconce-examples --example stream [MODEL]`

use std::io::Write;

use sconce::{GenerationRequest, SamplingParams, StreamEvent};

fn main() -> sconce::Result<()> {
    let engine = sconce_examples::engine_from_args().build()?;
    let params =
        SamplingParams { max_tokens: Some(200), temperature: 0.7, stop: vec!["\n\n".to_owned()], ..Default::default() };
    let prompt = "Once upon a time, in a lighthouse at the end of the world,";
    let mut stream = engine.stream(GenerationRequest::text(prompt).with_params(params))?;
    print!("{prompt}");
    while let Some(event) = stream.blocking_next() {
        match event? {
            StreamEvent::Token(event) => {
                print!("{}", event.text);
                if let Some(finish) = event.finish {
                    println!("\n[{}]", finish.reason.as_str());
                }
            }
            StreamEvent::Done(usage) => println!("[{} tokens]", usage.completion_tokens),
            // Neither is asked for.
            StreamEvent::PromptLogprobs(_) | StreamEvent::Best(_) => {}
        }
        // Standard output waits for a line to end: a story should not. A closed pipe ends the program at the next print.
        let _ = std::io::stdout().flush();
    }
    Ok(())
}
