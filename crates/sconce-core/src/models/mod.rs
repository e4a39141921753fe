//! The architectures. Each is one file and one line of [`architectures`].
//!
//! A model is written in the operations of [`Backend`]; it names no backend and sees no KV block.

mod cohere;
mod cohere2;
mod experts;
mod gemma;
mod gemma2;
mod gemma3;
mod glm;
mod glm4;
mod gpt_oss;
mod granite;
mod linear;
mod llama;
mod loader;
mod mistral;
mod mixtral;
mod norm;
mod olmo2;
mod olmo3;
mod phi;
mod phi3;
mod quantization;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod raw_config;
mod ropes;
mod smollm3;
#[cfg(test)]
mod tests;

pub use linear::{Linear, Output};
pub use loader::{Bias, Loader};
pub use raw_config::RawConfig;

use crate::backend::{Backend, Workspace};
use crate::config::ModelConfig;
use crate::error::{Error, Result};

/// What one step of a model works on.
pub struct Step<'a, B: Backend> {
    /// The device.
    pub backend: &'a B,
    /// Activations.
    pub ws: &'a mut Workspace<B>,
    /// Keys and values.
    pub kv: &'a mut B::KvCache,
    /// The step's inputs.
    pub batch: &'a B::Batch,
}

/// What is wanted of a step's rows, those whose logits its batch names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing: there are none.
    Nothing,
    /// Their normalised hidden states, in `ws.last_normed`.
    Hidden,
    /// Their logits, in `ws.logits`, and their hidden states.
    Logits,
}

/// A loaded model.
pub trait Model<B: Backend>: Send {
    /// Its normalised config.
    fn config(&self) -> &ModelConfig;
    /// Embeds the batch's tokens into `ws.residual`.
    fn embed(&self, step: &mut Step<'_, B>) -> Result<()>;
    /// Runs one block. The hidden state after it is `ws.residual + ws.delta`, of a Granite divided by its residual multiplier.
    fn layer(&self, idx: usize, step: &mut Step<'_, B>) -> Result<()>;
    /// Normalises the hidden states of the wanted rows into `ws.last_normed`.
    fn final_norm(&self, step: &mut Step<'_, B>) -> Result<()>;
    /// Computes their logits, of these, into `ws.logits`.
    fn head(&self, step: &mut Step<'_, B>) -> Result<()>;

    /// All of it, as far as it is wanted.
    fn forward(&self, step: &mut Step<'_, B>, wanted: Wanted) -> Result<()> {
        self.embed(step)?;
        (0..self.config().num_hidden_layers).try_for_each(|idx| self.layer(idx, step))?;
        if wanted == Wanted::Nothing {
            return Ok(());
        }
        self.final_norm(step)?;
        if wanted == Wanted::Logits { self.head(step) } else { Ok(()) }
    }
}

/// How an architecture is described and loaded.
pub trait Architecture<B: Backend> {
    /// What is loaded: several architectures can be the same model with other configs or other stored weights.
    type Model: Model<B> + 'static;
    /// The class name in config.json's `architectures`.
    const NAME: &'static str;
    /// The class of models that see images too, and whose text part this is.
    const WITH_IMAGES: Option<&'static str> = None;
    /// `general.architecture` in a GGUF, where llama.cpp has it.
    const GGUF_NAME: Option<&'static str>;
    /// Normalises config.json (a GGUF's metadata comes under the same keys).
    fn parse_config(raw: &RawConfig) -> Result<ModelConfig>;
    /// Loads the weights.
    fn load(loader: &Loader<'_, B>) -> Result<Self::Model>;
}

/// Loads the weights of an architecture.
pub type Load<B> = fn(&Loader<'_, B>) -> Result<Box<dyn Model<B>>>;

/// One line of the registry.
pub struct Entry<B: Backend> {
    /// See [`Architecture::NAME`].
    pub name: &'static str,
    /// See [`Architecture::WITH_IMAGES`].
    pub with_images: Option<&'static str>,
    /// See [`Architecture::GGUF_NAME`].
    pub gguf_name: Option<&'static str>,
    /// See [`Architecture::parse_config`].
    pub parse_config: fn(&RawConfig) -> Result<ModelConfig>,
    /// See [`Architecture::load`].
    pub load: Load<B>,
}

/// The registry.
pub fn architectures<B: Backend>() -> Vec<Entry<B>> {
    vec![
        entry::<B, llama::Llama<B>>(),
        entry::<B, mistral::Mistral>(),
        entry::<B, mixtral::Mixtral>(),
        entry::<B, smollm3::SmolLm3>(),
        entry::<B, granite::Granite>(),
        entry::<B, olmo2::Olmo2>(),
        entry::<B, olmo3::Olmo3>(),
        entry::<B, glm::Glm>(),
        entry::<B, glm4::Glm4>(),
        entry::<B, gemma::Gemma>(),
        entry::<B, gemma2::Gemma2>(),
        entry::<B, gemma3::Gemma3>(),
        entry::<B, qwen2::Qwen2>(),
        entry::<B, qwen3::Qwen3>(),
        entry::<B, qwen3_moe::Qwen3Moe>(),
        entry::<B, gpt_oss::GptOss>(),
        entry::<B, phi3::Phi3>(),
        entry::<B, phi::Phi<B>>(),
        entry::<B, cohere::Cohere>(),
        entry::<B, cohere2::Cohere2>(),
    ]
}

fn entry<B: Backend, A: Architecture<B>>() -> Entry<B> {
    Entry {
        name: A::NAME,
        with_images: A::WITH_IMAGES,
        gguf_name: A::GGUF_NAME,
        parse_config: A::parse_config,
        load: |loader| Ok(Box::new(A::load(loader)?)),
    }
}

/// The registry's line for a config, whether the checkpoint has a head or not. The error lists what there is.
pub fn find<B: Backend>(raw: &RawConfig) -> Result<Entry<B>> {
    let asked = raw.architecture()?;
    let with_head = class_with_head(asked);
    let known: Vec<_> = architectures::<B>().iter().flat_map(|e| [Some(e.name), e.with_images]).flatten().collect();
    let unknown = || {
        let message = format!("architecture {asked} is not supported; supported: {}", known.join(", "));
        Error::file(raw.path(), message)
    };
    let names = |e: &Entry<B>| [Some(e.name), e.with_images, e.gguf_name];
    let is_asked = |e: &Entry<B>| names(e).contains(&Some(asked)) || with_head.as_deref() == Some(e.name);
    architectures().into_iter().find(is_asked).ok_or_else(unknown)
}

/// Whether a checkpoint is of a model without its head, as embedders are saved: `Qwen3Model` of `Qwen3ForCausalLM`.
pub fn is_headless(raw: &RawConfig) -> Result<bool> {
    Ok(class_with_head(raw.architecture()?).is_some())
}

/// The class that has a head beside all that such a class has.
fn class_with_head(headless: &str) -> Option<String> {
    headless.strip_suffix("Model").map(|stem| format!("{stem}ForCausalLM"))
}
