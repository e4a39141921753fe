//! Embeddings: the last token's hidden state, as transformers has it, divided by its norm; of checkpoints without a head too.

use std::collections::HashMap;
use std::path::Path;

use safetensors::SafeTensors;
use sconce_core::engine::{EmbeddingRequest, EngineHandle, GenerationRequest, Prompt};
use serde_json::Value;

use crate::compare::max_error;
use crate::engine::load;
use crate::fixture::Fixture;

/// What the f32 kernels may differ from transformers' in a vector of length 1.
const TOLERANCE: f32 = 1e-4;

fn embed(engine: &EngineHandle, inputs: Vec<Prompt>) -> Vec<Vec<f32>> {
    engine.embed(EmbeddingRequest::new(inputs)).unwrap().blocking_collect().unwrap().embeddings
}

/// Of prompt 0, whose states are golden, beside the others.
fn check_vector(fixture: &Fixture, engine: &EngineHandle) -> f32 {
    let prompts = fixture.prompts();
    let found = embed(engine, prompts.iter().map(|prompt| Prompt::Tokens(prompt.input_ids.clone())).collect());
    let states = fixture.hidden(engine.info().config.num_hidden_layers);
    let last = &states[states.len() - engine.info().config.hidden_size..];
    let norm = last.iter().map(|x| x * x).sum::<f32>().sqrt();
    let expected: Vec<f32> = last.iter().map(|x| x / norm).collect();
    let error = max_error(&found[0], &expected);
    assert!(error <= TOLERANCE, "{}: off by {error}", fixture.name);
    error
}

pub(crate) fn check(fixture: &Fixture) -> Result<String, &'static str> {
    let engine = load(fixture, &fixture.dir);
    let error = check_vector(fixture, &engine);
    // Text has the special tokens that its tokenizer adds.
    let text = "The boat sails";
    let token_ids = engine.tokenizer().encode(text, true).unwrap();
    let found = embed(&engine, vec![Prompt::Text(text.into()), Prompt::Tokens(token_ids)]);
    assert!(found[0] == found[1], "{}: a text is not its tokens", fixture.name);
    Ok(format!("{error:.1e}"))
}

/// The fixture saved as an embedder is: under its base class, with names that do not begin with `model.`, and without a head.
pub(crate) fn check_headless(fixture: &Fixture) -> Result<String, &'static str> {
    let weights = std::fs::read(fixture.dir.join("model.safetensors")).map_err(|_| "its weights are several files")?;
    if fixture.is_quantized() {
        return Err("what is quantized is named in its config");
    }
    let dir = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(fixture.dir.join("config.json")).unwrap();
    if config.contains("PhiForCausalLM") {
        return Err("a Phi is not loaded without its head");
    }
    write_headless(fixture, &weights, dir.path());
    let engine = load(fixture, dir.path());
    let error = check_vector(fixture, &engine);
    let refused = engine.submit(GenerationRequest::tokens([1])).unwrap_err();
    assert_eq!(refused.param(), Some("model"), "{}: {refused}", fixture.name);
    assert!(refused.to_string().contains("no head"), "{refused}");
    Ok(format!("{error:.1e}"))
}

fn write_headless(fixture: &Fixture, weights: &[u8], dir: &Path) {
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture.dir.join(name), dir.join(name)).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&std::fs::read(fixture.dir.join("config.json")).unwrap()).unwrap();
    let class = config["architectures"][0].as_str().unwrap();
    config["architectures"][0] = format!("{}Model", class.strip_suffix("ForCausalLM").unwrap()).into();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let tensors = SafeTensors::deserialize(weights).unwrap();
    let bare: HashMap<_, _> = tensors
        .tensors()
        .into_iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("model.")?.to_owned(), tensor)))
        .collect();
    assert!(bare.len() + 2 >= tensors.len(), "{}: there is more than a head beside the model", fixture.name);
    std::fs::write(dir.join("model.safetensors"), safetensors::serialize(bare, None).unwrap()).unwrap();
}
