//! [`ModelFiles`]: what a model's files say, before its weights are read.

use std::path::{Path, PathBuf};

use crate::backend::cpu::CpuBackend;
use crate::config::{EngineConfig, LoadFormat, ModelConfig, RopeScaling};
use crate::error::{Error, Result};
use crate::models::{self, RawConfig};
use crate::text::{ChatTemplate, Tokenizer};
use crate::weights::{Adapters, Dtype, GgufFile, WeightStore};

/// Every model has one, under Hugging Face's name whatever the file.
const EMBEDDING: &str = "model.embed_tokens.weight";

/// What a model's files say, before its weights are read.
pub(super) struct ModelFiles {
    /// The GGUF, or the folder.
    pub(super) path: PathBuf,
    pub(super) raw: RawConfig,
    pub(super) config: ModelConfig,
    /// The weights, or why there are none.
    pub(super) store: Result<WeightStore>,
    pub(super) adapters: Adapters,
}

impl ModelFiles {
    /// Opens a GGUF, or a folder with config.json or with one GGUF. Errors: what keeps the model from being described.
    /// Of `config` it is told where weights come from, what they become, and which adapters there are.
    pub(super) fn open(path: &Path, config: &EngineConfig) -> Result<Self> {
        let files = Self::open_model(path, config)?;
        Ok(Self { adapters: Adapters::open(&config.adapters)?, ..files })
    }

    fn open_model(path: &Path, config: &EngineConfig) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if metadata.is_dir() && path.join("config.json").exists() {
            return Self::open_dir(path, config);
        }
        if config.load_format == LoadFormat::Dummy {
            let message = format!("dummy weights need a folder with config.json, which {} is not", path.display());
            return Err(Error::config("load-format", message));
        }
        let files = if metadata.is_dir() { Self::open_gguf(&only_gguf(path)?) } else { Self::open_gguf(path) }?;
        Ok(Self { store: files.store.map(|store| store.quantized(config.quantization)), ..files })
    }

    /// The type that most weights are stored in: a block format where there is one, else the embedding's.
    pub(super) fn stored_dtype(&self) -> Result<Dtype> {
        let Ok(store) = &self.store else { return Ok(Dtype::BF16) };
        let shape = [self.config.vocab_size, self.config.hidden_size];
        let embedding = store.describe(EMBEDDING, &shape)?.dtype;
        Ok(if embedding.is_quantized() { embedding } else { store.block_format().unwrap_or(embedding) })
    }

    fn open_dir(dir: &Path, engine: &EngineConfig) -> Result<Self> {
        let raw = RawConfig::from_dir(dir)?;
        let config = parse_config(&raw)?;
        let store = match engine.load_format {
            LoadFormat::Auto => WeightStore::open_safetensors(dir, raw.stored_form()?),
            LoadFormat::Dummy => Ok(WeightStore::dummy_of(0, Dtype::BF16, raw.stored_form()?)),
        };
        let store = store.map(|store| store.quantized(engine.quantization));
        Ok(Self { path: dir.into(), raw, config, store, adapters: Adapters::default() })
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let raw = RawConfig::from_gguf(&file)?;
        let mut config = parse_config(&raw)?;
        let store = WeightStore::open_gguf(file, &config)?;
        if store.contains("rope_freqs.weight") {
            let tensor = store.get("rope_freqs.weight", &[config.rope.rotary_dim / 2])?;
            config.rope.scaling = RopeScaling::Factors(tensor.to_f32());
        }
        Ok(Self { path: path.into(), raw, config, store: Ok(store), adapters: Adapters::default() })
    }

    /// The tokenizer, and the chat template if there is one.
    pub(super) fn text(&self) -> Result<(Tokenizer, Option<ChatTemplate>)> {
        if let Ok(store) = &self.store
            && let Some(metadata) = store.gguf_metadata()
        {
            let tokenizer = Tokenizer::from_gguf(&self.path, metadata)?;
            let template = ChatTemplate::from_gguf(&self.path, metadata, &tokenizer)?;
            return Ok((tokenizer, template));
        }
        if !self.has_tokenizer() {
            let message = "tokenizer.json is not there; the engine needs it, also for prompts of token ids";
            return Err(Error::file(&self.path, message));
        }
        let tokenizer = Tokenizer::from_dir(&self.path)?;
        let template = ChatTemplate::from_dir(&self.path, &tokenizer)?;
        Ok((tokenizer, template))
    }

    /// Whether there is a file that should hold a tokenizer.
    pub(super) fn has_tokenizer(&self) -> bool {
        self.path.is_file() || self.path.join("tokenizer.json").exists()
    }
}

/// The config of a supported model, checked.
fn parse_config(raw: &RawConfig) -> Result<ModelConfig> {
    raw.stored_form()?;
    // Which backend is asked makes no difference: all have the same architectures.
    let mut config = (models::find::<CpuBackend>(raw)?.parse_config)(raw)?;
    // So that none is looked for. Nobody asks it for logits.
    config.tie_word_embeddings |= models::is_headless(raw)?;
    config.validate(raw.path())?;
    Ok(config)
}

/// The one GGUF of a folder without config.json.
fn only_gguf(dir: &Path) -> Result<PathBuf> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))?;
    let mut found: Vec<_> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "gguf")).collect();
    found.sort();
    match found.as_slice() {
        [path] => Ok(path.clone()),
        [] => Err(Error::file(dir, "holds neither config.json nor a GGUF file")),
        many => {
            let names: Vec<_> = many.iter().filter_map(|p| p.file_name()).map(|n| n.to_string_lossy()).collect();
            Err(Error::file(dir, format!("holds several GGUF files; name one of: {}", names.join(", "))))
        }
    }
}
