//! Flags that say how a model is loaded.

use std::path::PathBuf;
use std::sync::Arc;

use sconce::{
    DeviceKind, Engine, EngineConfig, Error, KvCacheDtype, LoadFormat, MatmulPrecision, Progress, Quantization, Result,
    WeightDtype,
};

use super::size::parse_bytes;

/// How a model is loaded.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Engine")]
pub(super) struct EngineArgs {
    /// Where the model runs: auto (a GPU where there is one), cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: DeviceKind,
    /// The type of weights in memory: auto (as stored; on a GPU bf16 or f16 where that is not GGUF's), f32, bf16 or f16.
    #[arg(long, default_value = "auto")]
    dtype: WeightDtype,
    /// What matrices are quantized to at load: none, fp8 (the layers', 8 bits with a scale a row; on the CPU they take the
    /// memory of bf16), q8_0 (all, 8 bits with a scale for every 32), or q4_0 (the layers', 4 bits; the embedding and the head q8_0).
    #[arg(long, default_value = "none")]
    quantization: Quantization,
    /// The type of keys and values in the cache: auto (f32; bf16 with `fast` where the machine has products of it; on a GPU as weights),
    /// f32, bf16, f16, or int8 (on a GPU; 8 bits with a scale for each token and head, half the memory of 16 bits).
    #[arg(long, default_value = "auto")]
    kv_cache_dtype: KvCacheDtype,
    /// How exactly inputs are multiplied with weights: exact (16 bits, f32), mixed (8 bits, 16 for outliers; bf16 for
    /// bf16 weights), or fast (8 bits, bf16; on a GPU the library's products, and e4m3 for weights in e4m3 on Hopper).
    #[arg(long, default_value = "exact")]
    matmul_precision: MatmulPrecision,
    /// Where weights come from: auto (files) or dummy (random, for measuring).
    #[arg(long, default_value = "auto")]
    load_format: LoadFormat,
    /// The longest sequence, prompt and output together, in tokens [default: the model's own limit].
    #[arg(long, value_name = "TOKENS")]
    max_model_len: Option<usize>,
    /// Size of the KV pool: 512MiB, 2GiB, or a number of bytes [default: a share of the free memory].
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    kv_cache_bytes: Option<usize>,
    /// Tokens in one KV block.
    #[arg(long, value_name = "TOKENS", default_value_t = EngineConfig::default().block_size)]
    block_size: usize,
    /// Most tokens computed in one step [default: 512 on the CPU, 2048 on a GPU, and at least --max-num-seqs].
    #[arg(long, value_name = "TOKENS")]
    max_num_batched_tokens: Option<usize>,
    /// Most sequences that run at once [default: 128 on the CPU, 256 on a GPU, and at most --max-num-batched-tokens].
    #[arg(long, value_name = "N")]
    max_num_seqs: Option<usize>,
    /// Tokens that may follow and are computed along with a sequence's last, looked up in the request's prediction, or where the sequence
    /// said the same before, or drafted by --draft-model: up to 15, while few sequences run. Answers are the same; texts that repeat
    /// their prompt come faster [default: 0, or 8 with --draft-model].
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    num_speculative_tokens: usize,
    /// A smaller model of the same vocabulary that drafts for the model: a GGUF file, a folder, or an id of the Hugging Face hub.
    #[arg(long, value_name = "PATH|ID")]
    draft_model: Option<String>,
    /// What the matrices of --draft-model are quantized to at load [default: as --quantization].
    #[arg(long)]
    draft_quantization: Option<Quantization>,
    /// A LoRA adapter in PEFT's form, a folder or an id of the Hugging Face hub, under a name of its own; can be given several times. On a
    /// server requests choose one by that name in place of the model's, and those that `bench` makes go through all in turn; `generate` and
    /// `chat` use the one that is given.
    #[arg(long, value_name = "NAME=PATH|ID", value_parser = parse_lora)]
    lora: Vec<(String, String)>,
    /// Most requests that wait before new ones are refused.
    #[arg(long, value_name = "N", default_value_t = EngineConfig::default().max_waiting)]
    max_waiting: usize,
    /// Compute every prompt anew, also where an earlier one began alike.
    #[arg(long)]
    no_prefix_cache: bool,
    /// Threads that compute [default: one a physical core].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Compute each of a GPU's operations on the CPU too, and fail requests at the first that differs.
    #[arg(long)]
    check_ops: bool,
    /// Where downloaded models are kept [default: the user's cache]. A GPU's compiled kernels are kept where SCONCE_CACHE
    /// says, whatever this is.
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    #[arg(skip)]
    profile_ops: bool,
}

impl EngineArgs {
    /// The engine's settings.
    pub(super) fn config(&self) -> EngineConfig {
        EngineConfig {
            device: self.device,
            dtype: self.dtype,
            quantization: self.quantization,
            kv_cache_dtype: self.kv_cache_dtype,
            matmul_precision: self.matmul_precision,
            load_format: self.load_format,
            max_model_len: self.max_model_len,
            kv_cache_bytes: self.kv_cache_bytes,
            block_size: self.block_size,
            max_num_batched_tokens: self.max_num_batched_tokens,
            max_num_seqs: self.max_num_seqs,
            num_speculative_tokens: self.num_speculative_tokens,
            draft_quantization: self.draft_quantization,
            adapters: Vec::new(),
            max_waiting: self.max_waiting,
            prefix_cache: !self.no_prefix_cache,
            num_threads: self.threads,
            check_ops: self.check_ops,
            profile_ops: self.profile_ops,
        }
    }

    /// The same for measuring so many requests at once: all are taken, and each computes every token unless it may find those that
    /// were computed before.
    pub(super) fn measured(self, num_requests: usize, finds_prompts: bool) -> Self {
        Self { no_prefix_cache: !finds_prompts, max_waiting: self.max_waiting.max(num_requests), ..self }
    }

    /// Whether a second model drafts.
    pub(super) fn has_draft_model(&self) -> bool {
        self.draft_model.is_some()
    }

    /// Whether there are adapters.
    pub(super) fn has_adapters(&self) -> bool {
        !self.lora.is_empty()
    }

    /// The one adapter, where requests have no other way to choose. Errors: there are several.
    pub(super) fn only_adapter(&self) -> Result<Option<String>> {
        match self.lora.as_slice() {
            [] => Ok(None),
            [(name, _)] => Ok(Some(name.clone())),
            _ => Err(Error::config("lora", "here all goes through the adapter that is given: give one")),
        }
    }

    /// The same with each operation timed.
    pub(super) fn profiled(self) -> Self {
        Self { profile_ops: true, ..self }
    }

    /// Loads `model`, a path or an id; without one, the starter model.
    pub(super) fn load(&self, model: Option<&str>, progress: Arc<dyn Progress>) -> Result<Engine> {
        let config = self.config();
        config.validate()?;
        let mut builder = model.map_or_else(Engine::starter, Engine::builder).config(config).progress(progress);
        if let Some(draft) = &self.draft_model {
            builder = builder.draft_model(draft);
        }
        for (name, adapter) in &self.lora {
            builder = builder.lora(name, adapter);
        }
        if let Some(dir) = &self.cache_dir {
            builder = builder.cache_dir(dir);
        }
        builder.build()
    }
}

/// `name=path` in its parts.
fn parse_lora(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, adapter)) if !name.is_empty() && !adapter.is_empty() => Ok((name.into(), adapter.into())),
        _ => Err(format!("expected NAME=PATH|ID, found {text:?}")),
    }
}
