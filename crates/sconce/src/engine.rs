//! [`Engine`]: a loaded model; [`EngineBuilder`]: how to get one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sconce_core::config::{
    AdapterSource, DeviceKind, EngineConfig, KvCacheDtype, LoadFormat, Quantization, WeightDtype,
};
use sconce_core::engine::{
    EmbeddingOutput, EmbeddingRequest, EngineHandle, GenerationOutput, GenerationRequest, NoProgress, Progress,
    TokenStream,
};
use sconce_core::{Error, Result};

use crate::hub;

/// A loaded model, ready for requests. Cheap to clone; the engine stops when the last clone and handle is gone, and the
/// last stream that is not at its end.
#[derive(Clone)]
pub struct Engine {
    handle: EngineHandle,
}

impl Engine {
    /// An engine for a path (a GGUF file, or a folder with config.json, tokenizer.json and safetensors) or a Hugging
    /// Face id (`org/repo`, or `org/repo:file.gguf`).
    pub fn builder(model: impl Into<String>) -> EngineBuilder {
        EngineBuilder::new(Source::Named(model.into()))
    }

    /// An engine for the starter model, SmolLM2-135M-Instruct.
    pub fn starter() -> EngineBuilder {
        EngineBuilder::new(Source::Starter)
    }

    /// The answer to one request, waiting on this thread.
    ///
    /// # Panics
    ///
    /// Inside an async runtime, whose thread it would block: use [`Engine::generate_async`] there.
    pub fn generate(&self, request: GenerationRequest) -> Result<GenerationOutput> {
        self.handle.submit(request)?.blocking_collect()
    }

    /// The answer to one request. Dropping the future cancels the request.
    pub async fn generate_async(&self, request: GenerationRequest) -> Result<GenerationOutput> {
        self.handle.submit(request)?.collect().await
    }

    /// The answer to one request, token by token. Dropping the stream cancels the request.
    pub fn stream(&self, request: GenerationRequest) -> Result<TokenStream> {
        self.handle.submit(request)
    }

    /// The vectors of texts, waiting on this thread.
    ///
    /// # Panics
    ///
    /// Inside an async runtime, whose thread it would block: use [`Engine::embed_async`] there.
    pub fn embed(&self, request: EmbeddingRequest) -> Result<EmbeddingOutput> {
        self.handle.embed(request)?.blocking_collect()
    }

    /// The vectors of texts. Dropping the future cancels the request.
    pub async fn embed_async(&self, request: EmbeddingRequest) -> Result<EmbeddingOutput> {
        self.handle.embed(request)?.collect().await
    }

    /// The engine's handle: model, tokenizer, counters, shutdown.
    pub fn handle(&self) -> &EngineHandle {
        &self.handle
    }
}

/// Which model an engine is built for.
enum Source {
    Starter,
    Named(String),
}

/// Settings of an [`Engine`] that is to be built.
pub struct EngineBuilder {
    source: Source,
    draft_model: Option<String>,
    /// Names and sources.
    adapters: Vec<(String, String)>,
    config: EngineConfig,
    served_name: Option<String>,
    cache_dir: Option<PathBuf>,
    progress: Arc<dyn Progress>,
}

impl EngineBuilder {
    fn new(source: Source) -> Self {
        Self {
            source,
            draft_model: None,
            adapters: Vec::new(),
            config: EngineConfig::default(),
            served_name: None,
            cache_dir: None,
            progress: Arc::new(NoProgress),
        }
    }

    /// All settings at once, those set before included.
    pub fn config(mut self, config: EngineConfig) -> Self {
        self.config = config;
        self
    }

    /// Where the model runs; by default the fastest device that answers.
    pub fn device(mut self, device: DeviceKind) -> Self {
        self.config.device = device;
        self
    }

    /// The type that weights have in memory; by default the one they are stored in.
    pub fn dtype(mut self, dtype: WeightDtype) -> Self {
        self.config.dtype = dtype;
        self
    }

    /// What weights are quantized to when they are loaded; by default nothing.
    pub fn quantization(mut self, quantization: Quantization) -> Self {
        self.config.quantization = quantization;
        self
    }

    /// A smaller model of the same vocabulary, a path or an id, that drafts for the model (speculative decoding). Answers are the
    /// model's own, and come sooner where the smaller one often says the same.
    pub fn draft_model(mut self, model: impl Into<String>) -> Self {
        self.draft_model = Some(model.into());
        self
    }

    /// An adapter (LoRA, in PEFT's form) that requests may choose by `name` ([`GenerationRequest::adapter`]): a folder with
    /// adapter_config.json and adapter_model.safetensors, or a Hugging Face id. There may be several.
    pub fn lora(mut self, name: impl Into<String>, adapter: impl Into<String>) -> Self {
        self.adapters.push((name.into(), adapter.into()));
        self
    }

    /// Tokens that are drafted in a step, at most ([`EngineConfig::num_speculative_tokens`]); by default none, or
    /// [`EngineConfig::DRAFT_MODEL_TOKENS`] with a [draft model](EngineBuilder::draft_model).
    pub fn num_speculative_tokens(mut self, tokens: usize) -> Self {
        self.config.num_speculative_tokens = tokens;
        self
    }

    /// The type that keys and values have in the cache; by default what the device does best.
    pub fn kv_cache_dtype(mut self, dtype: KvCacheDtype) -> Self {
        self.config.kv_cache_dtype = dtype;
        self
    }

    /// Where weights come from; by default the model's files.
    pub fn load_format(mut self, load_format: LoadFormat) -> Self {
        self.config.load_format = load_format;
        self
    }

    /// The longest sequence, prompt and output together, in tokens; by default as long as model and memory allow.
    pub fn max_model_len(mut self, tokens: usize) -> Self {
        self.config.max_model_len = Some(tokens);
        self
    }

    /// Size of the KV pool in bytes; by default a share of the free memory.
    pub fn kv_cache_bytes(mut self, bytes: usize) -> Self {
        self.config.kv_cache_bytes = Some(bytes);
        self
    }

    /// Threads that compute; by default one a physical core that this process may use.
    pub fn num_threads(mut self, threads: usize) -> Self {
        self.config.num_threads = Some(threads);
        self
    }

    /// The name under which the model is served; by default the id, or the file's or folder's name.
    pub fn served_name(mut self, name: impl Into<String>) -> Self {
        self.served_name = Some(name.into());
        self
    }

    /// Where downloaded models are kept; by default as [`hub`] describes. Kernels compiled for a GPU are kept where
    /// `SCONCE_CACHE` says, whatever this is.
    pub fn cache_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(dir.into());
        self
    }

    /// Who is told of downloads and loading; by default nobody.
    pub fn progress(mut self, progress: Arc<dyn Progress>) -> Self {
        self.progress = progress;
        self
    }

    /// Brings the model's files if they are not there, loads them, and starts the engine.
    ///
    /// Errors: `Config` names the setting that is wrong, or says why the model could not be brought; `ModelFile` names
    /// the file, and the tensor, that could not be loaded.
    pub fn build(mut self) -> Result<Engine> {
        self.config.validate()?;
        let (cache_dir, progress) = (self.cache_dir.as_deref(), &*self.progress);
        // First, as it is the smaller one: what is wrong is said soon.
        let draft = self
            .draft_model
            .map(|model| Ok((named("draft-model", hub::resolve(&model, cache_dir, progress))?, default_name(&model))));
        let draft = draft.transpose()?;
        for (name, adapter) in self.adapters {
            let path = named("lora", hub::resolve_adapter(&adapter, cache_dir, progress))?;
            self.config.adapters.push(AdapterSource { name, origin: default_name(&adapter), path });
        }
        let (path, own_name) = match &self.source {
            Source::Starter => (hub::starter(cache_dir, progress)?, hub::STARTER_NAME.to_owned()),
            Source::Named(model) => (hub::resolve(model, cache_dir, progress)?, default_name(model)),
        };
        let name = self.served_name.unwrap_or(own_name);
        if name.is_empty() {
            return Err(Error::config("served-name", "must not be empty"));
        }
        let draft = draft.as_ref().map(|(path, name)| (name.as_str(), path.as_path()));
        let handle = sconce_core::engine::load_with_draft((&name, &path), draft, &self.config, progress)?;
        Ok(Engine { handle })
    }
}

/// The same path, or an error that names the setting it is for.
fn named(setting: &'static str, path: Result<PathBuf>) -> Result<PathBuf> {
    path.map_err(|error| match error {
        Error::Config { field, message } if field == "model" => Error::config(setting, message),
        other => other,
    })
}

/// A hub id as it stands; of a path the last part, without `.gguf`.
fn default_name(model: &str) -> String {
    let path = Path::new(model);
    if !path.exists() {
        return model.to_owned();
    }
    // `.` and `..` have no name of their own: the folder they lead to has.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = path.file_name().map_or_else(|| model.to_owned(), |name| name.to_string_lossy().into_owned());
    name.strip_suffix(".gguf").unwrap_or(&name).to_owned()
}

#[cfg(test)]
mod tests;
