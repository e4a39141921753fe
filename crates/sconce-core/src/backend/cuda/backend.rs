//! [`CudaBackend`]: the operations, handed to their launches in `ops/`.

#[cfg(test)]
mod variants;

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use super::batch::DeviceBatch;
use super::device::{Device, ElemType};
use super::gpu::Gpu;
use super::graphs::{Graphs, StepShape, padded_rows};
use super::kv_cache::{self, KvCache};
use super::storage::{Buffer, ExpertMatrices, Matrix, Memory, RopeTable, Vector};
use super::weights;
use crate::backend::{
    AttentionSpec, Backend, Batch, BufferRole, ExpertsSpec, KvCacheShape, KvDtype, LayerAttention, StepLimits,
};
use crate::config::{Activation, KvCacheDtype, MatmulPrecision, ModelConfig, RopeConfig, WeightDtype};
use crate::error::{Error, Result};
use crate::kv::{BlockCopy, LayerPlace};
use crate::ops::{
    self,
    attention::decode::{AttentionSpace, DecodeShape},
    attention::hopper::EQUAL_DIMS,
    attention::rope::OwnKeys,
    attention::shared::{MIN_SAVED_BYTES, SharedSplits},
    copy_blocks::CopySpace,
    expand_kv::ExpandSpace,
    experts::cuda::ExpertsSpace,
    linear::cuda::Products,
    linear::space::{LinearSpace, Settings},
    lora::cuda::CudaLora,
    sample::cuda::{Answers, SampleSpace},
};
use crate::sample::{SampleResults, SampleRow};
use crate::weights::{Dtype, LoraUpdate, RandomWeights, TensorView};

/// One part in so many of the free memory stays free for what the driver takes later: graphs, and what others do.
const FREE_SHARE: usize = 20;
/// Enough tiles of a matrix product for all multiprocessors of a large device.
pub(crate) const STEP_TOKENS: usize = 2048;
/// Sequences that run at once, unless a setting says otherwise: so many rows of 16 bits are multiplied with weights in about the time in
/// which memory brings these (an H100 does some 260 FLOPs a byte, and a row takes one).
const NUM_SEQS: usize = 256;

/// A GPU.
pub struct CudaBackend {
    device: Arc<dyn Device>,
    index: usize,
    /// Of weights, activations, and of keys and values where they have 16 bits.
    elem: ElemType,
    /// Whether weights stay in their block formats, where there are kernels.
    keeps_blocks: bool,
    products: Products,
    /// Whether kernels for Hopper are used where the device has them.
    uses_hopper: bool,
    uses_graphs: bool,
    /// Bytes that a layer must save where sequences that begin alike are attended together.
    min_saved_bytes: usize,
    runs_ahead: bool,
    /// Whether decode attention turns its queries and keys where it can.
    fuses_rope: bool,
    /// Whether algorithms of products are tried before the first step.
    tunes: bool,
    scratch: RefCell<Scratch>,
}

/// What operations need beside their arguments.
struct Scratch {
    sample: Option<SampleSpace>,
    attention: Option<AttentionSpace>,
    copies: Option<CopySpace>,
    graphs: Graphs,
    max_seqs: usize,
    linear: LinearSpace,
    experts: Option<ExpertsSpace>,
    /// Room for what is between the two products of adapters, and elements of a row of it.
    lora: Option<Memory>,
    lora_len: usize,
}

impl CudaBackend {
    /// GPU `index`, for weights that are stored as `stored` and asked for as `asked`.
    ///
    /// Errors: no driver, no such GPU, or a type that GPUs have no kernels for.
    pub fn open(index: usize, asked: WeightDtype, stored: Dtype) -> Result<Self> {
        // What cannot be is refused before the driver is asked for anything.
        weights::elem_type(asked, stored)?;
        Self::open_on(Arc::new(Gpu::open(index)?), index, asked, stored)
    }

    /// The same on a device that is open.
    pub(super) fn open_on(device: Arc<dyn Device>, index: usize, asked: WeightDtype, stored: Dtype) -> Result<Self> {
        let elem = weights::elem_type(asked, stored)?;
        let (keeps_blocks, tunes) = (super::keeps_blocks(asked), is_wanted("SCONCE_CUDA_AUTOTUNE"));
        let mut backend = Self { index, keeps_blocks, tunes, ..Self::new(device, elem) };
        if backend.uses_hopper {
            let adds_alike = ops::linear::hopper::adds_alike(&backend.device, elem).map_err(|error| Error::Device {
                message: format!("trying kernels for Hopper: {error}; SCONCE_CUDA_HOPPER=0 does without them"),
            })?;
            if adds_alike {
                tracing::debug!("products of warpgroups add as others do: kernels for Hopper are used");
                backend.products = Products::Hopper;
            }
        }
        Ok(backend)
    }

    pub(crate) fn new(device: Arc<dyn Device>, elem: ElemType) -> Self {
        let scratch = Scratch {
            sample: None,
            attention: None,
            copies: None,
            graphs: Graphs::default(),
            max_seqs: 0,
            linear: LinearSpace::new(&device),
            experts: None,
            lora: None,
            lora_len: 0,
        };
        Self {
            device,
            index: 0,
            elem,
            keeps_blocks: true,
            products: Products::Portable,
            uses_hopper: is_wanted("SCONCE_CUDA_HOPPER"),
            uses_graphs: is_wanted("SCONCE_CUDA_GRAPHS"),
            runs_ahead: is_wanted("SCONCE_CUDA_RUN_AHEAD"),
            min_saved_bytes: MIN_SAVED_BYTES,
            fuses_rope: is_wanted("SCONCE_CUDA_FUSE_ROPE"),
            tunes: false,
            scratch: RefCell::new(scratch),
        }
    }

    /// The same with another precision of products: `fast` leaves those of many rows to cuBLASLt, and attention of prompts with
    /// wide heads on Hopper to a kernel of its own; their sums may depend on how many rows there are.
    pub fn with_matmul_precision(mut self, precision: MatmulPrecision) -> Self {
        if precision == MatmulPrecision::Fast {
            self.products = Products::Library;
        }
        self
    }

    /// What it runs on, for as long as it does.
    pub(super) fn device(&self) -> Weak<dyn Device> {
        Arc::downgrade(&self.device)
    }

    /// Its number among the GPUs that the driver shows.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The type of weights in memory.
    pub fn weight_dtype(&self) -> WeightDtype {
        weights::weight_dtype(self.elem)
    }
}

impl Backend for CudaBackend {
    type Buffer = Buffer;
    type Matrix = Matrix;
    type ExpertMatrices = ExpertMatrices;
    type Lora = CudaLora;
    type Vector = Vector;
    type KvCache = KvCache;
    type Rope = RopeTable;
    type Batch = DeviceBatch;
    type Answers = Answers;

    fn description(&self) -> String {
        self.device.name()
    }

    fn kv_pool_memory(&self) -> Result<usize> {
        let free = self.device.free_memory()?;
        Ok(free - free / FREE_SHARE)
    }

    fn default_step_tokens(&self) -> usize {
        STEP_TOKENS
    }

    fn default_num_seqs(&self) -> usize {
        NUM_SEQS
    }

    fn is_lost(&self) -> bool {
        self.device.is_lost()
    }

    fn synchronize(&self) -> Result<()> {
        self.device.synchronize()
    }

    fn can_run_ahead(&self) -> bool {
        self.runs_ahead
    }

    fn buffer(&self, max_rows: usize, cols: usize, role: BufferRole) -> Result<Buffer> {
        if role == BufferRole::Logits {
            self.scratch.borrow_mut().sample = Some(SampleSpace::new(&self.device, max_rows, cols)?);
        }
        let elem = if role == BufferRole::Activation { self.elem } else { ElemType::F32 };
        Buffer::new(&self.device, max_rows, cols, elem)
    }

    fn vector(&self, data: &[f32]) -> Result<Vector> {
        weights::vector(&self.device, data)
    }

    fn matrix(&self, parts: Vec<TensorView<'_>>, bias: Option<&[f32]>, _: WeightDtype) -> Result<Matrix> {
        let matrix = weights::load(&self.device, parts, bias, self.elem, self.keeps_blocks)?;
        self.scratch.borrow_mut().linear.add(&matrix);
        Ok(matrix)
    }

    fn random_matrix(&self, shape: [usize; 2], bias: Option<&[f32]>, random: RandomWeights) -> Result<Option<Matrix>> {
        let matrix = weights::random(&self.device, shape, bias, self.elem, random)?;
        self.scratch.borrow_mut().linear.add(&matrix);
        Ok(Some(matrix))
    }

    fn expert_matrices(
        &self,
        parts: Vec<TensorView<'_>>,
        num_experts: usize,
        bias: Option<&[f32]>,
        _: WeightDtype,
    ) -> Result<ExpertMatrices> {
        weights::load_experts(&self.device, parts, num_experts, bias, self.elem, self.keeps_blocks)
    }

    fn random_expert_matrices(
        &self,
        num_experts: usize,
        [rows, cols]: [usize; 2],
        bias: Option<&[f32]>,
        random: RandomWeights,
    ) -> Result<Option<ExpertMatrices>> {
        let all = weights::random(&self.device, [num_experts * rows, cols], bias, self.elem, random)?;
        Ok(Some(ExpertMatrices { all, num_experts }))
    }

    fn lora(&self, shape: (&[usize], usize), num_adapters: usize, updates: &[LoraUpdate<'_>]) -> Result<CudaLora> {
        let lora = ops::lora::Lora::new(shape, num_adapters, updates);
        let lora = CudaLora::new(&self.device, &lora, self.elem)?;
        let len = &mut self.scratch.borrow_mut().lora_len;
        *len = lora.hidden_len().max(*len);
        Ok(lora)
    }

    fn memory_dtype(&self, stored: Dtype, _: WeightDtype) -> Dtype {
        super::memory_dtype(stored, self.keeps_blocks, self.weight_dtype())
    }

    fn matrix_bytes(&self, matrix: &Matrix) -> usize {
        matrix.memory.bytes() + matrix.row_scales().map_or(0, |scales| scales.memory.bytes())
    }

    fn kv_dtype(&self, asked: KvCacheDtype) -> Result<KvDtype> {
        kv_cache::dtype(self.elem, asked)
    }

    fn kv_cache_bytes(&self, shape: &KvCacheShape) -> usize {
        kv_cache::num_bytes(shape)
    }

    fn kv_cache(&self, shape: KvCacheShape, places: &[LayerPlace]) -> Result<KvCache> {
        KvCache::new(&self.device, self.elem, shape)?.with_places(&self.device, places)
    }

    fn rope(&self, config: &RopeConfig, max_len: usize) -> Result<RopeTable> {
        ops::rope_append_kv::cuda::table(&self.device, &ops::rope_append_kv::table(config, max_len))
    }

    fn batch(&self, config: &ModelConfig, limits: &StepLimits) -> Result<DeviceBatch> {
        let spec = AttentionSpec::of_layer(config, 0);
        ops::attention::cuda::check(&spec)?;
        let mut scratch = self.scratch.borrow_mut();
        let mut space = AttentionSpace::new(&self.device, limits.max_seqs, &spec, limits.max_model_len)?;
        if limits.kv_dtype == KvDtype::Int8 {
            space = space.with_expanded(ExpandSpace::new(&self.device, self.elem, &spec, limits)?);
        }
        scratch.attention = Some(space.with_hopper(match self.products {
            Products::Hopper => EQUAL_DIMS,
            Products::Library if self.uses_hopper => usize::MAX,
            Products::Portable | Products::Library => 0,
        }));
        scratch.copies = Some(CopySpace::new(&self.device)?);
        scratch.max_seqs = limits.max_seqs;
        let settings = Settings { products: self.products, takes_codes: self.uses_hopper, tunes: self.tunes };
        scratch.linear.prepare(settings, config.vocab_size, limits)?;
        let experts =
            |experts| ExpertsSpace::new(&self.device, self.elem, config.hidden_size, experts, limits.max_tokens);
        scratch.experts = config.experts.as_ref().map(experts).transpose()?;
        scratch.lora = Some(Memory::new(&self.device, 4 * limits.max_tokens * scratch.lora_len)?);
        let blocks = limits.max_model_len.div_ceil(limits.block_size);
        let max_words = DeviceBatch::max_words(limits, blocks);
        let shared = SharedSplits::new(&spec, limits.kv_dtype, limits.block_size, self.device.num_sms());
        let max_words = max_words + shared.max_words(limits.max_seqs);
        let shared = shared.with_min_saved_bytes(self.min_saved_bytes);
        let batch = DeviceBatch::new(&self.device, max_words)?.with_shared_splits(shared);
        Ok(if self.fuses_rope { batch.with_own_keys(OwnKeys::new(limits.block_size)) } else { batch })
    }

    fn answers(&self) -> Result<Answers> {
        Answers::new(&self.device)
    }

    fn upload(&self, dst: &mut DeviceBatch, batch: &Batch) -> Result<()> {
        let is_decode = batch.sequences.iter().all(|seq| seq.query_len == 1)
            && batch.logit_rows.len() == batch.sequences.len()
            && batch.sequences.len() <= self.scratch.borrow().max_seqs;
        let num_rows =
            (self.uses_graphs && is_decode).then(|| padded_rows(batch.sequences.len(), self.scratch.borrow().max_seqs));
        dst.upload(batch, num_rows)
    }

    fn run(&self, batch: &DeviceBatch, forward: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        if !batch.is_padded() {
            return forward();
        }
        let (has_adapters, attention) = (self.has_adapters(batch), DecodeShape::of(batch));
        let shape = StepShape { num_rows: batch.num_tokens(), has_adapters, attention };
        // Out of the cell while `forward` runs: operations look for their scratch memory in it.
        let mut graphs = std::mem::take(&mut self.scratch.borrow_mut().graphs);
        // SAFETY: launches depend on the numbers in the shape alone; a backend has one model, one workspace and one cache for
        // as long as it lives.
        let done = unsafe { graphs.run(&*self.device, shape, forward) };
        self.scratch.borrow_mut().graphs = graphs;
        done
    }

    fn num_rows(&self, x: &Buffer) -> usize {
        x.rows()
    }

    fn read(&self, x: &Buffer, num_rows: usize) -> Result<Vec<f32>> {
        x.first_rows_to_f32(num_rows)
    }

    fn write(&self, x: &mut Buffer, data: &[f32]) -> Result<()> {
        x.write_f32(data)
    }

    fn copy_blocks(&self, kv: &mut KvCache, copies: &[BlockCopy]) -> Result<()> {
        let scratch = self.scratch.borrow();
        let space = scratch.copies.as_ref().expect(PREPARED);
        ops::copy_blocks::cuda(&*self.device, space, kv, copies)
    }

    fn embed(&self, out: &mut Buffer, table: &Matrix, batch: &DeviceBatch, scale: f32) -> Result<()> {
        let scratch = self.scratch.borrow();
        let sampled = scratch.sample.as_ref().expect(PREPARED).sampled();
        ops::embed::cuda(&*self.device, out, table, batch, sampled, scale)
    }

    fn rms_norm(&self, out: &mut Buffer, x: &Buffer, weight: &Vector, eps: f32) -> Result<()> {
        ops::rms_norm::cuda(&*self.device, out, x, weight, eps)
    }

    fn add_rms_norm(
        &self,
        out: &mut Buffer,
        residual: &mut Buffer,
        delta: &Buffer,
        weight: &Vector,
        eps: f32,
    ) -> Result<()> {
        ops::rms_norm::cuda_add(&*self.device, out, residual, delta, weight, eps)
    }

    fn layer_norm(&self, out: &mut Buffer, x: &Buffer, weight: &Vector, bias: &Vector, eps: f32) -> Result<()> {
        ops::layer_norm::cuda(&*self.device, out, x, weight, bias, eps)
    }

    fn linear(&self, out: &mut Buffer, x: &Buffer, weight: &Matrix) -> Result<()> {
        self.scratch.borrow_mut().linear.linear(out, x, weight)
    }

    fn has_adapters(&self, batch: &DeviceBatch) -> bool {
        batch.max_adapter() > 0
    }

    fn add_lora(&self, out: &mut Buffer, x: &Buffer, lora: &CudaLora, batch: &DeviceBatch) -> Result<()> {
        let scratch = self.scratch.borrow();
        ops::lora::cuda::cuda(&*self.device, out, x, lora, scratch.lora.as_ref().expect(PREPARED), batch)
    }

    fn head_norm(&self, qkv: &mut Buffer, weights: (&Vector, &Vector), spec: &AttentionSpec, eps: f32) -> Result<()> {
        ops::head_norm::cuda(&*self.device, qkv, weights, spec, eps)
    }

    fn rope_append_kv(
        &self,
        qkv: &mut Buffer,
        kv: &mut KvCache,
        rope: &RopeTable,
        batch: &DeviceBatch,
        spec: &AttentionSpec,
    ) -> Result<()> {
        ops::rope_append_kv::cuda::cuda(&*self.device, qkv, kv, rope, batch, spec)
    }

    fn attention(
        &self,
        out: &mut Buffer,
        qkv: &Buffer,
        kv: &KvCache,
        batch: &DeviceBatch,
        layer: LayerAttention<'_, Vector>,
    ) -> Result<()> {
        let scratch = self.scratch.borrow();
        ops::attention::cuda::cuda(scratch.attention.as_ref().expect(PREPARED), out, qkv, kv, batch, layer)
    }

    fn rope_attention(
        &self,
        (out, qkv): (&mut Buffer, &mut Buffer),
        kv: &mut KvCache,
        rope: &RopeTable,
        batch: &DeviceBatch,
        layer: LayerAttention<'_, Vector>,
    ) -> Result<()> {
        let scratch = self.scratch.borrow();
        let space = scratch.attention.as_ref().expect(PREPARED);
        ops::attention::rope::cuda(space, (out, qkv), kv, rope, batch, layer)
    }

    fn fuses_rope(&self, kv: &KvCache, rope: &RopeTable, batch: &DeviceBatch, spec: &AttentionSpec) -> bool {
        ops::attention::rope::is_one_launch(kv, rope, batch, spec)
    }

    fn gate_act_mul(&self, out: &mut Buffer, gate_up: &Buffer, act: Activation) -> Result<()> {
        ops::gate_act_mul::cuda(&*self.device, out, gate_up, act)
    }

    fn gated_linear(
        &self,
        out: &mut Buffer,
        gate_up: &mut Buffer,
        x: &Buffer,
        weight: &Matrix,
        act: Activation,
    ) -> Result<()> {
        let space = &mut self.scratch.borrow_mut().linear;
        space.gated_linear(out, gate_up, x, weight, act)
    }

    fn experts(
        &self,
        out: &mut Buffer,
        x: &Buffer,
        logits: &Buffer,
        gate_up_down: [&ExpertMatrices; 2],
        spec: &ExpertsSpec,
    ) -> Result<()> {
        let mut scratch = self.scratch.borrow_mut();
        let space = scratch.experts.as_mut().expect(PREPARED);
        space.experts(out, x, logits, gate_up_down, spec)
    }

    fn activate(&self, x: &mut Buffer, act: Activation) -> Result<()> {
        ops::activate::cuda(&*self.device, x, act)
    }

    fn softcap(&self, x: &mut Buffer, cap: f32) -> Result<()> {
        ops::softcap::cuda(&*self.device, x, cap)
    }

    fn add(&self, out: &mut Buffer, x: &Buffer) -> Result<()> {
        ops::add::cuda(&*self.device, out, x)
    }

    fn gather_rows(&self, out: &mut Buffer, x: &Buffer, batch: &DeviceBatch) -> Result<()> {
        ops::gather_rows::cuda(&*self.device, out, x, batch)
    }

    fn sample(&self, out: &mut Answers, logits: &Buffer, rows: &[SampleRow<'_>]) -> Result<()> {
        let mut scratch = self.scratch.borrow_mut();
        ops::sample::cuda::cuda(scratch.sample.as_mut().expect(PREPARED), out, logits, rows)
    }

    fn read_answers<'a>(&self, answers: &'a mut Answers) -> Result<&'a mut SampleResults> {
        answers.read()
    }
}

/// Whether nobody has set the variable to 0.
fn is_wanted(name: &str) -> bool {
    std::env::var_os(name).is_none_or(|value| value != "0")
}

/// Why scratch memory is there in a step.
const PREPARED: &str = "invariant: buffers and batches are made before the first step";
