//! How alike texts are: the cosines of the angles between their vectors, which are the dot products of vectors of length 1.
//!
//! `cargo run --release --package sconce-examples --example embed [MODEL]`

use sconce::EmbeddingRequest;

const TEXTS: [&str; 3] = ["The cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose again."];

fn main() -> sconce::Result<()> {
    let engine = sconce_examples::engine_from_args().build()?;
    let output = engine.embed(EmbeddingRequest::texts(TEXTS))?;
    let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    for (text, vector) in TEXTS.iter().zip(&output.embeddings) {
        let cosines: Vec<String> =
            output.embeddings.iter().map(|other| format!("{:.3}", cosine(vector, other))).collect();
        println!("{}  {text}", cosines.join("  "));
    }
    Ok(())
}
