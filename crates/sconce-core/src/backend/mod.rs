//! [`Backend`]: the coarse, fused operations that models are written in.
//!
//! Out-parameters come first; nothing allocates in a step; rows beyond a buffer's current ones are never touched.
//! Every operation has a plain reference in `ops/<op>.rs`, which says exactly what it computes.

mod batch;
mod checked;
pub mod cpu;
pub mod cuda;
mod kv;
mod peaks;
mod profiled;
mod workspace;

pub use batch::{Batch, BatchSequence, SharedPrefix, UnreadToken};
pub use checked::{Checked, Pair};
pub use kv::{KvCacheShape, KvDtype};
pub use peaks::Peaks;
pub use profiled::{OpProfile, OpTime, Profiled, StepShape};
pub use workspace::Workspace;

use crate::config::{Activation, ExpertsConfig, KvCacheDtype, ModelConfig, RopeConfig, WeightDtype};
use crate::error::Result;
use crate::kv::{BlockCopy, LayerPlace};
use crate::sample::{SampleResults, SampleRow};
use crate::weights::{Dtype, LoraUpdate, RandomWeights, TensorView};

/// How one layer attends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSpec {
    /// The layer whose keys and values are read.
    pub layer: usize,
    /// Query heads, a multiple of the key heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Multiplied to q.k.
    pub scale: f32,
    /// cap * tanh(score / cap), after the scale.
    pub softcap: Option<f32>,
    /// A query at position i sees keys i - window < j <= i.
    pub window: Option<usize>,
}

impl AttentionSpec {
    /// A layer of a model.
    pub fn of_layer(config: &ModelConfig, layer: usize) -> Self {
        Self {
            layer,
            num_heads: config.num_attention_heads,
            num_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            scale: config.attention_scale,
            softcap: config.attn_logit_softcapping,
            window: config.sliding_window[layer],
        }
    }

    /// Columns of the fused q, k, v rows: q of all heads, then k, then v.
    pub fn qkv_dim(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }
}

/// How one layer attends, and what it has of its own for that. `V`: a device's vector.
#[derive(Debug)]
pub struct LayerAttention<'a, V> {
    /// How.
    pub spec: &'a AttentionSpec,
    /// A logit a query head, which takes part in the sum that the head's weights are divided by, and in nothing else.
    pub sinks: Option<&'a V>,
}

impl<V> Clone for LayerAttention<'_, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V> Copy for LayerAttention<'_, V> {}

impl<'a, V> From<&'a AttentionSpec> for LayerAttention<'a, V> {
    /// Without sinks.
    fn from(spec: &'a AttentionSpec) -> Self {
        Self { spec, sinks: None }
    }
}

/// How a layer's tokens go through experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertsSpec {
    /// Experts of a token.
    pub per_token: usize,
    /// Whether the weights of a token's experts add up to 1.
    pub normalizes: bool,
    /// The gate's activation.
    pub act: Activation,
}

impl ExpertsSpec {
    /// Of a model's layers.
    pub fn new(config: &ExpertsConfig, act: Activation) -> Self {
        Self { per_token: config.per_token, normalizes: config.normalizes, act }
    }
}

/// What a buffer holds; a device chooses the type of its elements by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BufferRole {
    /// The residual stream, which every block adds to: f32.
    Residual,
    /// What goes into products and comes out of them.
    Activation,
    /// Logits: f32.
    Logits,
    /// What experts are chosen by: f32.
    RouterLogits,
}

/// What a step has at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// Tokens.
    pub max_tokens: usize,
    /// Sequences.
    pub max_seqs: usize,
    /// Rows of logits.
    pub max_logits: usize,
    /// Tokens of a sequence.
    pub max_model_len: usize,
    /// Tokens of a KV block.
    pub block_size: usize,
    /// Groups of layers, each with block tables of its own.
    pub num_groups: usize,
    /// The type of keys and values.
    pub kv_dtype: KvDtype,
}

/// A device that computes. Models are generic in it; buffers are [rows, cols] activations.
pub trait Backend: Send + Sized + 'static {
    /// Activations, [rows, cols], of which the first `rows` are in use.
    type Buffer: Send;
    /// A weight matrix (or several over each other), as [`Backend::linear`] wants it.
    type Matrix: Send;
    /// A matrix for each expert of a layer, as [`Backend::experts`] wants them.
    type ExpertMatrices: Send;
    /// What adapters add to the products of a matrix, as [`Backend::add_lora`] wants it.
    type Lora: Send;
    /// A weight vector.
    type Vector: Send;
    /// Keys and values of all layers.
    type KvCache: Send;
    /// Cosines and sines of all positions, a row each.
    type Rope: Send;
    /// A step's [`Batch`], where the device reads it.
    type Batch: Send;
    /// A step's answers, until they are read.
    type Answers: Send;

    /// In words, for users: `cpu (2 threads, avx512)`.
    fn description(&self) -> String;
    /// Bytes that keys and values may take of what is free now, unless a setting says otherwise.
    fn kv_pool_memory(&self) -> Result<usize>;
    /// Most tokens of a step, unless a setting says otherwise: as many as keep the device busy.
    fn default_step_tokens(&self) -> usize;
    /// Most sequences that run at once, unless a setting says otherwise.
    fn default_num_seqs(&self) -> usize;

    /// Whether the device does not come back from an error, so that all that is on it has to be made anew.
    fn is_lost(&self) -> bool {
        false
    }

    /// Returns once all that was asked for is done. For measuring: a step waits where it reads its answers.
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    /// Whether a step can be launched before the one before it has been read: its [`Batch`] may have tokens that are not
    /// known yet.
    fn can_run_ahead(&self) -> bool {
        false
    }

    // At load.

    /// A buffer of at most `max_rows` rows.
    fn buffer(&self, max_rows: usize, cols: usize, role: BufferRole) -> Result<Self::Buffer>;
    /// A vector.
    fn vector(&self, data: &[f32]) -> Result<Self::Vector>;
    /// Matrices of the same number of columns over each other, [sum of rows, cols], with an optional bias as long as
    /// all rows. Parts that own their data are not copied where the backend can keep them as they are.
    fn matrix(&self, parts: Vec<TensorView<'_>>, bias: Option<&[f32]>, dtype: WeightDtype) -> Result<Self::Matrix>;
    /// A matrix of random weights, made on the device; `None`: [`Backend::matrix`] is to be given some.
    fn random_matrix(
        &self,
        _shape: [usize; 2],
        _bias: Option<&[f32]>,
        _random: RandomWeights,
    ) -> Result<Option<Self::Matrix>> {
        Ok(None)
    }
    /// Matrices of `num_experts` experts, of equally many of `parts` over each other each, the first expert's first; all parts have the same
    /// number of columns. `bias`: as long as all rows.
    fn expert_matrices(
        &self,
        parts: Vec<TensorView<'_>>,
        num_experts: usize,
        bias: Option<&[f32]>,
        dtype: WeightDtype,
    ) -> Result<Self::ExpertMatrices>;
    /// The same of random weights, made on the device, each of `shape`; `None`: [`Backend::expert_matrices`] is to be given some.
    fn random_expert_matrices(
        &self,
        _num_experts: usize,
        _shape: [usize; 2],
        _bias: Option<&[f32]>,
        _random: RandomWeights,
    ) -> Result<Option<Self::ExpertMatrices>> {
        Ok(None)
    }
    /// What `num_adapters` adapters add to the products of a matrix. `shape`: rows of each of its parts, and columns.
    fn lora(&self, shape: (&[usize], usize), num_adapters: usize, updates: &[LoraUpdate<'_>]) -> Result<Self::Lora>;
    /// The type in memory of weights that are stored as `stored`, where `asked` is the setting.
    fn memory_dtype(&self, stored: Dtype, asked: WeightDtype) -> Dtype;
    /// Bytes of a matrix's weights in memory.
    fn matrix_bytes(&self, matrix: &Self::Matrix) -> usize;
    /// The type of keys and values that a setting stands for here. Errors: one that the device has no kernels for.
    fn kv_dtype(&self, asked: KvCacheDtype) -> Result<KvDtype>;
    /// Bytes that a cache of this shape takes.
    fn kv_cache_bytes(&self, shape: &KvCacheShape) -> usize {
        shape.num_bytes()
    }
    /// An empty cache. `places`: of each layer.
    fn kv_cache(&self, shape: KvCacheShape, places: &[LayerPlace]) -> Result<Self::KvCache>;
    /// Cosines and sines of positions `0..max_len`. Where short sequences turn by other angles than long ones, there are first as many
    /// rows as a short one has tokens ([`RopeConfig::short_len`]), then those of long ones.
    fn rope(&self, config: &RopeConfig, max_len: usize) -> Result<Self::Rope>;
    /// Room for a step's batch.
    fn batch(&self, config: &ModelConfig, limits: &StepLimits) -> Result<Self::Batch>;
    /// Room for a step's answers.
    fn answers(&self) -> Result<Self::Answers>;

    // In a step.

    /// Brings the step's inputs to the device.
    fn upload(&self, dst: &mut Self::Batch, batch: &Batch) -> Result<()>;
    /// Carries out `forward`, the operations of one pass over `batch`. Where the device has written down those of a batch
    /// of the same shape, it may repeat them without calling `forward`.
    fn run(&self, batch: &Self::Batch, forward: &mut dyn FnMut() -> Result<()>) -> Result<()>;
    /// The rows that the last operation called on `x` has left in use.
    fn num_rows(&self, x: &Self::Buffer) -> usize;
    /// The first rows, [num_rows, cols] in f32, once everything before is done. For hidden states that are asked for, and for checks.
    fn read(&self, x: &Self::Buffer, num_rows: usize) -> Result<Vec<f32>>;
    /// Sets the rows in use and their contents, [rows, cols]. For checks.
    fn write(&self, x: &mut Self::Buffer, data: &[f32]) -> Result<()>;
    /// Copies KV blocks in all arrays, in order.
    fn copy_blocks(&self, kv: &mut Self::KvCache, copies: &[BlockCopy]) -> Result<()>;
    /// out[t] = table[token_ids[t]] * scale. [num_tokens, hidden].
    fn embed(&self, out: &mut Self::Buffer, table: &Self::Matrix, batch: &Self::Batch, scale: f32) -> Result<()>;
    /// out = x / rms(x) * weight.
    fn rms_norm(&self, out: &mut Self::Buffer, x: &Self::Buffer, weight: &Self::Vector, eps: f32) -> Result<()>;
    /// residual += delta; out = residual / rms(residual) * weight.
    fn add_rms_norm(
        &self,
        out: &mut Self::Buffer,
        residual: &mut Self::Buffer,
        delta: &Self::Buffer,
        weight: &Self::Vector,
        eps: f32,
    ) -> Result<()>;
    /// out = (x - mean) / sqrt(variance + eps) * weight + bias.
    fn layer_norm(
        &self,
        out: &mut Self::Buffer,
        x: &Self::Buffer,
        weight: &Self::Vector,
        bias: &Self::Vector,
        eps: f32,
    ) -> Result<()>;
    /// out = x . weight^T + bias.
    fn linear(&self, out: &mut Self::Buffer, x: &Self::Buffer, weight: &Self::Matrix) -> Result<()>;
    /// Whether a token of the step goes through an adapter.
    fn has_adapters(&self, batch: &Self::Batch) -> bool;
    /// out += scale * B . (A . x), by each token's adapter, where it has one that adds to these products.
    fn add_lora(&self, out: &mut Self::Buffer, x: &Self::Buffer, lora: &Self::Lora, batch: &Self::Batch) -> Result<()>;
    /// Heads of q and k in `qkv` become x / rms(x) * weight, each by itself, or all as one, where there is a weight for each element of all.
    fn head_norm(
        &self,
        qkv: &mut Self::Buffer,
        weights: (&Self::Vector, &Self::Vector),
        spec: &AttentionSpec,
        eps: f32,
    ) -> Result<()>;
    /// Turns q and k in `qkv` by their rows of `rope`, and writes k and v to the cache.
    fn rope_append_kv(
        &self,
        qkv: &mut Self::Buffer,
        kv: &mut Self::KvCache,
        rope: &Self::Rope,
        batch: &Self::Batch,
        spec: &AttentionSpec,
    ) -> Result<()>;
    /// Each query over its sequence's cached keys and values. [num_tokens, num_heads * head_dim].
    fn attention(
        &self,
        out: &mut Self::Buffer,
        qkv: &Self::Buffer,
        kv: &Self::KvCache,
        batch: &Self::Batch,
        layer: LayerAttention<'_, Self::Vector>,
    ) -> Result<()>;
    /// Both, one after the other. What `qkv` holds then is nobody's.
    fn rope_attention(
        &self,
        (out, qkv): (&mut Self::Buffer, &mut Self::Buffer),
        kv: &mut Self::KvCache,
        rope: &Self::Rope,
        batch: &Self::Batch,
        layer: LayerAttention<'_, Self::Vector>,
    ) -> Result<()> {
        self.rope_append_kv(qkv, kv, rope, batch, layer.spec)?;
        self.attention(out, qkv, kv, batch, layer)
    }
    /// Whether [`Backend::rope_attention`] is one operation, rather than those two.
    fn fuses_rope(&self, _: &Self::KvCache, _: &Self::Rope, _: &Self::Batch, _: &AttentionSpec) -> bool {
        false
    }
    /// out = act(gate) * up, as [`Activation`] has it; `gate_up` rows hold gate, then up.
    fn gate_act_mul(&self, out: &mut Self::Buffer, gate_up: &Self::Buffer, act: Activation) -> Result<()>;
    /// out = act(gate) * up; rows of x . weight^T + bias hold gate, then up. `gate_up`: room for them, whose contents are nobody's
    /// then.
    fn gated_linear(
        &self,
        out: &mut Self::Buffer,
        gate_up: &mut Self::Buffer,
        x: &Self::Buffer,
        weight: &Self::Matrix,
        act: Activation,
    ) -> Result<()> {
        self.linear(gate_up, x, weight)?;
        self.gate_act_mul(out, gate_up, act)
    }
    /// out = sum over each token's experts of weight * down(act(gate) * up), biases included, where rows of an expert's first matrix
    /// are gate's, then up's.
    /// Which experts, and their weights, is by `logits`, [num_tokens, num_experts] in f32.
    fn experts(
        &self,
        out: &mut Self::Buffer,
        x: &Self::Buffer,
        logits: &Self::Buffer,
        gate_up_down: [&Self::ExpertMatrices; 2],
        spec: &ExpertsSpec,
    ) -> Result<()>;
    /// x = act(x).
    fn activate(&self, x: &mut Self::Buffer, act: Activation) -> Result<()>;
    /// x = cap * tanh(x / cap).
    fn softcap(&self, x: &mut Self::Buffer, cap: f32) -> Result<()>;
    /// out += x.
    fn add(&self, out: &mut Self::Buffer, x: &Self::Buffer) -> Result<()>;
    /// out[i] = x[logit_rows[i]].
    fn gather_rows(&self, out: &mut Self::Buffer, x: &Self::Buffer, batch: &Self::Batch) -> Result<()>;
    /// Begins to answer `rows`, which are rows of `logits`, [num_logits, vocab_size], in place of what `out` was about.
    /// Logits stay where they are: nothing else of them is seen.
    fn sample(&self, out: &mut Self::Answers, logits: &Self::Buffer, rows: &[SampleRow<'_>]) -> Result<()>;
    /// The answers, as soon as they are there. What was launched after they were begun is not waited for.
    fn read_answers<'a>(&self, answers: &'a mut Self::Answers) -> Result<&'a mut SampleResults>;
}
