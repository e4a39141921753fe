//! [`inspect`]: what a model is, what it needs, and whether it can run, before anything is loaded.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::compute::{step_tokens, wanted_model_len};
use super::files::ModelFiles;
use super::footprint::Footprint;
use super::load::is_for_gpu;
use crate::backend::cpu::{CpuBackend, memory_dtype};
use crate::backend::cuda;
use crate::backend::{Backend, KvDtype};
use crate::config::{EngineConfig, ModelConfig, WeightDtype};
use crate::error::{Error, Result};
use crate::kv::LayerGroups;
use crate::text::{ChatInput, ChatTemplate, Tokenizer};
use crate::weights::{Adapters, Dtype, WeightStore};

/// Characters of a chat template's first line that are shown.
const FIRST_LINE_LEN: usize = 100;

/// What a model is, what it needs, and whether it can run.
#[derive(Debug)]
pub struct ModelReport {
    /// The file that describes it: config.json or a GGUF.
    pub path: PathBuf,
    /// Its normalised config.
    pub config: ModelConfig,
    /// Its weights. Where the files have not got them, those that the config asks for, in bf16.
    pub footprint: Footprint,
    /// The longest sequence in tokens: as asked for, or the model's own limit.
    pub max_model_len: usize,
    /// The type that keys and values have in the cache.
    pub kv_dtype: KvDtype,
    /// Bytes of keys and values of one token, over all layers.
    pub kv_bytes_per_token: u64,
    /// How layers share the blocks of keys and values.
    pub layers: LayerGroups,
    /// Most tokens of a step.
    pub step_tokens: usize,
    /// Bytes of the KV pool, where they are asked for.
    pub kv_cache_bytes: Option<usize>,
    /// `None`: there is no tokenizer, without which the model is not served.
    pub tokenizer: Option<TokenizerReport>,
    /// `None`: prompts have to be formatted by those who send them.
    pub chat_template: Option<ChatTemplateReport>,
    /// Tokens that end a sequence, with their spelling where there is a tokenizer.
    pub end_tokens: Vec<(u32, Option<String>)>,
    /// Why it cannot run; empty if it can.
    pub problems: Vec<Error>,
}

/// What is known of a tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizerReport {
    /// How text becomes tokens, in words.
    pub kind: &'static str,
    /// Its ids, added tokens among them.
    pub vocab_size: usize,
    /// Tokens with a role (`bos_token`): the role, the token, its id.
    pub special_tokens: Vec<(String, String, Option<u32>)>,
}

/// What is known of a chat template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatTemplateReport {
    /// How it begins.
    pub first_line: String,
    /// Whether a system message reaches the prompt.
    pub takes_system_role: bool,
}

impl ModelReport {
    /// Bytes of keys and values of one sequence of `max_model_len` tokens, at most.
    pub fn kv_bytes_per_sequence(&self) -> u64 {
        if self.layers.groups().iter().all(|group| group.window.is_none()) {
            return self.kv_bytes_per_token.saturating_mul(self.max_model_len as u64);
        }
        let num_blocks = self.layers.most_blocks(self.max_model_len, self.step_tokens);
        self.kv_block_bytes().saturating_mul(num_blocks as u64)
    }

    /// Tokens of one sequence that have room in a KV pool of so many bytes.
    pub fn kv_tokens(&self, bytes: usize) -> usize {
        let num_blocks = bytes as u64 / self.kv_block_bytes().max(1);
        self.layers.most_tokens(num_blocks as usize, self.step_tokens)
    }

    /// Bytes of one of the pool's blocks.
    fn kv_block_bytes(&self) -> u64 {
        let layer_bytes = self.kv_bytes_per_token / self.config.num_hidden_layers.max(1) as u64;
        // Of the parts of a block a layer has all in which it has the most tokens.
        layer_bytes * (self.layers.prefix_unit() * self.layers.num_arrays()) as u64
    }
}

/// Describes the model at `path`, a GGUF file or a folder, as `load` would load it with `config`. Reads no weights.
///
/// Errors: what keeps the model from being described at all: no config, an architecture or a config that is not
/// supported. Whatever else keeps it from running is among [`ModelReport::problems`].
pub fn inspect(path: &Path, config: &EngineConfig) -> Result<ModelReport> {
    let files = ModelFiles::open(path, config)?;
    let mut problems = Vec::new();
    let text = if files.has_tokenizer() { files.text().map_err(|e| problems.push(e)).ok() } else { None };
    let (dtype, kv_dtype) = dtypes(&files, config).unwrap_or_else(|error| {
        problems.push(error);
        (config.dtype, KvDtype::F32)
    });
    let ModelFiles { raw, config: model, store, adapters, .. } = files;
    let in_memory = |stored| {
        if is_for_gpu(config) {
            cuda::memory_dtype(stored, cuda::keeps_blocks(config.dtype), dtype)
        } else {
            memory_dtype(stored, dtype)
        }
    };
    let of_files = store.and_then(|store| Footprint::new(&raw, &model, (&store, &adapters), &in_memory));
    let footprint = match of_files {
        Ok(footprint) => footprint,
        Err(error) => {
            problems.push(error);
            let store = WeightStore::dummy(0, Dtype::BF16);
            Footprint::new(&raw, &model, (&store, &Adapters::default()), &in_memory)?
        }
    };
    let max_model_len = wanted_model_len(&model, config).unwrap_or_else(|error| {
        problems.push(error);
        model.max_position_embeddings
    });
    let tokenizer = text.as_ref().map(|(tokenizer, _)| tokenizer);
    let template = text.as_ref().and_then(|(tokenizer, template)| Some((template.as_ref()?, tokenizer)));
    let step_tokens = if is_for_gpu(config) {
        config.max_num_batched_tokens.unwrap_or(cuda::STEP_TOKENS)
    } else {
        step_tokens(&CpuBackend::new(Some(1)), config)
    };
    let layers = LayerGroups::choose(&model.sliding_window, config.block_size, max_model_len, step_tokens);
    let kv_bytes_per_token = model.kv_bytes_per_token(kv_dtype.head_bytes(model.head_dim)) as u64;
    Ok(ModelReport {
        path: raw.path().into(),
        footprint,
        max_model_len,
        kv_dtype,
        kv_bytes_per_token,
        layers,
        step_tokens,
        kv_cache_bytes: config.kv_cache_bytes,
        tokenizer: tokenizer.map(TokenizerReport::new),
        chat_template: template.map(|(template, tokenizer)| ChatTemplateReport::new(template, tokenizer)),
        end_tokens: end_tokens(&model, tokenizer),
        config: model,
        problems,
    })
}

/// The types that weights, and keys and values, have on the device that the model would be loaded onto.
fn dtypes(files: &ModelFiles, config: &EngineConfig) -> Result<(WeightDtype, KvDtype)> {
    if is_for_gpu(config) {
        // An embedding that cannot be read is found with the other weights.
        let stored = files.stored_dtype().unwrap_or(Dtype::BF16);
        return cuda::dtypes(config.dtype, config.kv_cache_dtype, stored);
    }
    let cpu = CpuBackend::new(Some(1)).with_matmul_precision(config.matmul_precision);
    Ok((config.dtype, cpu.kv_dtype(config.kv_cache_dtype)?))
}

/// The ids that end a sequence: those of the config and those of the tokenizer, each once.
pub(super) fn end_token_ids(config: &ModelConfig, tokenizer: Option<&Tokenizer>) -> Vec<u32> {
    let mut ids = config.eos_token_ids.clone();
    ids.extend(tokenizer.into_iter().flat_map(Tokenizer::end_token_ids));
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn end_tokens(config: &ModelConfig, tokenizer: Option<&Tokenizer>) -> Vec<(u32, Option<String>)> {
    let spelled = |id| (id, tokenizer.and_then(|tokenizer| tokenizer.id_to_token(id)));
    end_token_ids(config, tokenizer).into_iter().map(spelled).collect()
}

impl TokenizerReport {
    fn new(tokenizer: &Tokenizer) -> Self {
        let described = |(role, token): (&str, &str)| (role.into(), token.into(), tokenizer.token_to_id(token));
        Self {
            kind: tokenizer.kind(),
            vocab_size: tokenizer.vocab_size(),
            special_tokens: tokenizer.named_tokens().map(described).collect(),
        }
    }
}

impl ChatTemplateReport {
    fn new(template: &ChatTemplate, tokenizer: &Tokenizer) -> Self {
        let line = template.source().lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let mut first_line: String = line.chars().take(FIRST_LINE_LEN).collect();
        if first_line.len() < line.len() {
            first_line.push('…');
        }
        // Templates refuse a system message, or leave it out, or write it.
        let probe = "the words of a system message";
        let messages = vec![json!({"role": "system", "content": probe}), json!({"role": "user", "content": "a"})];
        let rendered = template.render(&ChatInput { messages, ..ChatInput::default() }, tokenizer);
        Self { first_line, takes_system_role: rendered.is_ok_and(|chat| chat.text().contains(probe)) }
    }
}
