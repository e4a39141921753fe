//! [`EngineConfig`]: how a model is loaded and how much memory and how many threads it may use.

use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Where the model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceKind {
    /// The fastest device that answers.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of that number, as `sconce devices` counts them.
    Cuda(usize),
}

impl FromStr for DeviceKind {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        let unknown = || Error::config("device", format!("expected auto, cpu, cuda or cuda:N, found {s:?}"));
        match s {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => s.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Self::Cuda).ok_or_else(unknown),
        }
    }
}

/// The type that weights have in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightDtype {
    /// As the file stores them, quantized or not. On a GPU floats are f16 where the file has f16 and nothing in blocks, and bf16 elsewhere,
    /// and so are Q2_K and Q3_K.
    #[default]
    Auto,
    /// Converted to f32 at load. For the CPU alone.
    F32,
    /// Converted to bf16 at load.
    Bf16,
    /// Converted to f16 at load.
    F16,
}

impl FromStr for WeightDtype {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "auto" => Ok(Self::Auto),
            "f32" | "float32" => Ok(Self::F32),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            "f16" | "float16" => Ok(Self::F16),
            _ => Err(Error::config("dtype", format!("expected auto, f32, bf16 or f16, found {s:?}"))),
        }
    }
}

/// The type that keys and values have in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvCacheDtype {
    /// The exact one on the CPU: f32. On a GPU that of the weights.
    #[default]
    Auto,
    /// As they are computed.
    F32,
    /// 8 bits of precision, with the range of f32.
    Bf16,
    /// 11 bits of precision. Numbers beyond 65504 are kept as 65504.
    F16,
    /// Integers of 8 bits, in half the memory of 16: each token's key or value of a head has a scale of its own, with which its greatest
    /// number is 127. Beside activations in f16 numbers beyond 8124 are kept as 8124. On a GPU alone.
    Int8,
}

/// Tokens of the smallest block of [`KvCacheDtype::Int8`], whose scales are copied together.
const LEAST_INT8_BLOCK: usize = 8;

impl FromStr for KvCacheDtype {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "auto" => Ok(Self::Auto),
            "f32" | "float32" => Ok(Self::F32),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            "f16" | "float16" => Ok(Self::F16),
            "int8" => Ok(Self::Int8),
            "fp8" | "fp8_e4m3" | "fp8_e5m2" => Err(Error::config(
                "kv-cache-dtype",
                format!("{s} is not offered: int8, on a GPU, takes as much memory and is some three times as exact"),
            )),
            _ => Err(Error::config("kv-cache-dtype", format!("expected auto, f32, bf16, f16 or int8, found {s:?}"))),
        }
    }
}

/// How exactly inputs are multiplied with weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MatmulPrecision {
    /// Between the others: inputs of quantized weights have 16 bits in groups of 32 with outliers and 8 in the others, and
    /// are rounded to bf16 for bf16 weights, where the machine has instructions for them.
    Mixed,
    /// As exactly as products of f32: inputs have 16 bits for quantized weights, and stay in f32 for others.
    #[default]
    Exact,
    /// Faster still in prompts and large batches: inputs have 8 bits for quantized weights, and are rounded to bf16 for
    /// bf16 weights, where the machine has instructions for them. On a GPU NVIDIA's library multiplies where there are many
    /// rows, and for weights in e4m3 on Hopper inputs of many rows are rounded to e4m3 too, with a scale a row: results then depend on
    /// how many rows there are, and may differ from one run to the next.
    Fast,
}

impl FromStr for MatmulPrecision {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "mixed" => Ok(Self::Mixed),
            "exact" => Ok(Self::Exact),
            "fast" => Ok(Self::Fast),
            _ => Err(Error::config("matmul-precision", format!("expected exact, mixed or fast, found {s:?}"))),
        }
    }
}

/// Where weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LoadFormat {
    /// The files that are there: a GGUF, or safetensors.
    #[default]
    Auto,
    /// Random weights in the shapes that config.json asks for.
    Dummy,
}

impl FromStr for LoadFormat {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "auto" => Ok(Self::Auto),
            "dummy" => Ok(Self::Dummy),
            _ => Err(Error::config("load-format", format!("expected auto or dummy, found {s:?}"))),
        }
    }
}

/// What weights are quantized to when they are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Quantization {
    /// Nothing: they stay as they are stored.
    #[default]
    None,
    /// The layers' matrices to 8 bits (e4m3) with a scale a row; embeddings, the head and norms stay as they are. A GPU keeps
    /// them so; the CPU keeps their numbers in bf16. Inputs of products are not quantized.
    Fp8,
    /// All matrices to GGUF's Q8_0: 8 bits and a scale for every 32 columns. They go with [`WeightDtype::Auto`] alone.
    Q8_0,
    /// The layers' matrices to GGUF's Q4_0: 4 bits and a scale for every 32 columns; the embedding and the head to Q8_0.
    Q4_0,
}

impl Quantization {
    /// Whether matrices become blocks.
    pub(crate) fn makes_blocks(self) -> bool {
        matches!(self, Self::Q8_0 | Self::Q4_0)
    }

    /// As it is set.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Fp8 => "fp8",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }
}

impl FromStr for Quantization {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "none" => Ok(Self::None),
            "fp8" => Ok(Self::Fp8),
            "q8_0" => Ok(Self::Q8_0),
            "q4_0" => Ok(Self::Q4_0),
            _ => Err(Error::config("quantization", format!("expected none, fp8, q8_0 or q4_0, found {s:?}"))),
        }
    }
}

/// An adapter (LoRA) that a model is served with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterSource {
    /// The name that requests choose it by.
    pub name: String,
    /// Where it is from, as users are told: an id, or the name of a folder.
    pub origin: String,
    /// The folder with adapter_config.json and adapter_model.safetensors.
    pub path: PathBuf,
}

/// How an engine is built. `EngineConfig::default()` serves well; every field can be set.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Where the model runs.
    pub device: DeviceKind,
    /// The type that weights have in memory.
    pub dtype: WeightDtype,
    /// What weights are quantized to when they are loaded.
    pub quantization: Quantization,
    /// The type that keys and values have in the cache.
    pub kv_cache_dtype: KvCacheDtype,
    /// How exactly inputs are multiplied with weights.
    pub matmul_precision: MatmulPrecision,
    /// Where weights come from.
    pub load_format: LoadFormat,
    /// The longest sequence, prompt and output together, in tokens. `None`: the model's own limit,
    /// or as much of it as the KV pool holds.
    pub max_model_len: Option<usize>,
    /// Size of the KV pool in bytes. `None`: a share of the free memory, and no more than
    /// `max_num_seqs` sequences of `max_model_len` can use.
    pub kv_cache_bytes: Option<usize>,
    /// Tokens in one KV block.
    pub block_size: usize,
    /// Most tokens computed in one step, prompts and decodes together. `None`: what keeps the device busy, 512 on the CPU
    /// and 2048 on a GPU, and at least `max_num_seqs`.
    pub max_num_batched_tokens: Option<usize>,
    /// Most sequences that run at once. `None`: 128 on the CPU, and 256 on a GPU, where reading the weights takes as long as multiplying
    /// so many rows with them; and at most `max_num_batched_tokens`.
    pub max_num_seqs: Option<usize>,
    /// Tokens that may follow a sequence and are computed along with its last, at most (speculative decoding): what its request
    /// predicts ([`GenerationRequest::prediction`](crate::engine::GenerationRequest::prediction)), or what followed where it said the same
    /// before. Tokens, and what is told of them, are the same as without, but for [`MatmulPrecision::Fast`] on a GPU; 0: none.
    /// While at most 8 sequences run, or 32 on a GPU where a second model drafts; for that 0 stands for
    /// [`EngineConfig::DRAFT_MODEL_TOKENS`].
    pub num_speculative_tokens: usize,
    /// What the weights of the model that drafts are quantized to when they are loaded. `None`: as [`EngineConfig::quantization`] says.
    pub draft_quantization: Option<Quantization>,
    /// Adapters that requests may choose ([`GenerationRequest::adapter`](crate::engine::GenerationRequest::adapter)), each with a name of
    /// its own.
    pub adapters: Vec<AdapterSource>,
    /// Most requests that wait in the inbox before submit answers `Overloaded`.
    pub max_waiting: usize,
    /// Whether the KV blocks of earlier prompts and answers are used again by requests that begin with the same tokens.
    pub prefix_cache: bool,
    /// Threads that compute. `None`: one a physical core that this process may use.
    pub num_threads: Option<usize>,
    /// Whether each of a GPU's operations is computed on the CPU too and compared. Requests fail at the first that differs,
    /// with its name. Slow: for finding out what is wrong.
    pub check_ops: bool,
    /// Whether each operation is waited for and timed, those of a model that drafts too. Steps take longer than they do otherwise: for
    /// finding out where time goes.
    pub profile_ops: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            device: DeviceKind::Auto,
            dtype: WeightDtype::Auto,
            quantization: Quantization::default(),
            kv_cache_dtype: KvCacheDtype::Auto,
            matmul_precision: MatmulPrecision::default(),
            load_format: LoadFormat::Auto,
            max_model_len: None,
            kv_cache_bytes: None,
            block_size: 16,
            max_num_batched_tokens: None,
            max_num_seqs: None,
            num_speculative_tokens: 0,
            draft_quantization: None,
            adapters: Vec::new(),
            max_waiting: 1024,
            prefix_cache: true,
            num_threads: None,
            check_ops: false,
            profile_ops: false,
        }
    }
}

impl EngineConfig {
    /// The greatest [`EngineConfig::num_speculative_tokens`].
    pub const MAX_SPECULATIVE_TOKENS: usize = 15;
    /// What [`EngineConfig::num_speculative_tokens`] is where a second model drafts and nothing else is asked for.
    pub const DRAFT_MODEL_TOKENS: usize = 8;

    /// Checks each field by itself. What depends on the model is checked when it is loaded.
    pub fn validate(&self) -> Result<()> {
        let at_least_one = |field: &'static str, value: usize| {
            if value == 0 { Err(Error::config(field, "must be at least 1, found 0")) } else { Ok(()) }
        };
        let mut names: Vec<&str> = self.adapters.iter().map(|adapter| adapter.name.as_str()).collect();
        names.sort_unstable();
        if names.first().is_some_and(|first| first.is_empty()) {
            return Err(Error::config("lora", "the name of an adapter must not be empty"));
        }
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::config("lora", format!("two adapters have the name {:?}", twice[0])));
        }
        at_least_one("max-waiting", self.max_waiting)?;
        if let Some(n) = self.max_num_seqs {
            at_least_one("max-num-seqs", n)?;
        }
        if let Some(n) = self.max_num_batched_tokens {
            at_least_one("max-num-batched-tokens", n)?;
        }
        if let Some(n) = self.max_model_len {
            at_least_one("max-model-len", n)?;
        }
        if let Some(n) = self.num_threads {
            at_least_one("threads", n)?;
        }
        if self.num_speculative_tokens > Self::MAX_SPECULATIVE_TOKENS {
            let (most, found) = (Self::MAX_SPECULATIVE_TOKENS, self.num_speculative_tokens);
            return Err(Error::config("num-speculative-tokens", format!("must be at most {most}, found {found}")));
        }
        if !self.block_size.is_power_of_two() || self.block_size > 256 {
            return Err(Error::config(
                "block-size",
                format!("must be a power of two up to 256, found {}", self.block_size),
            ));
        }
        if self.kv_cache_dtype == KvCacheDtype::Int8 && self.block_size < LEAST_INT8_BLOCK {
            let message =
                format!("must be at least {LEAST_INT8_BLOCK} with keys and values of int8, found {}", self.block_size);
            return Err(Error::config("block-size", message));
        }
        let asked = [Some(self.quantization), self.draft_quantization];
        if let Some(quantization) = asked.into_iter().flatten().find(|asked| asked.makes_blocks())
            && self.dtype != WeightDtype::Auto
        {
            let quantization = quantization.name();
            let message =
                format!("weights that become {quantization} stay in it with auto alone: leave one of both out");
            return Err(Error::config("dtype", message));
        }
        if self.check_ops && self.kv_cache_dtype == KvCacheDtype::Int8 {
            return Err(Error::config("check-ops", "compares with the CPU, which has no keys and values of int8"));
        }
        if self.check_ops && self.profile_ops {
            return Err(Error::config("profile-ops", "operations that are checked cannot be timed: use one of both"));
        }
        if let (Some(tokens), Some(seqs)) = (self.max_num_batched_tokens, self.max_num_seqs)
            && tokens < seqs
        {
            return Err(Error::config(
                "max-num-batched-tokens",
                format!(
                    "must be at least max-num-seqs ({seqs}), so that every running sequence can decode in one step; found {tokens}"
                ),
            ));
        }
        Ok(())
    }
}
