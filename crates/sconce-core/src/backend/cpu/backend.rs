//! [`CpuBackend`]: the operations, handed to their kernels in `ops/`.

use std::cell::RefCell;

use super::arena::Arena;
use super::kv_cache::KvCache;
use super::memory;
use super::pool::ThreadPool;
use super::storage::{Buffer, Matrix, MatrixPart, RopeTable};
use super::{Isa, topology};
use crate::backend::{
    AttentionSpec, Backend, Batch, BufferRole, ExpertsSpec, KvCacheShape, KvDtype, LayerAttention, StepLimits,
};
use crate::config::{Activation, KvCacheDtype, MatmulPrecision, ModelConfig, RopeConfig, WeightDtype};
use crate::error::{Error, Result};
use crate::kv::{BlockCopy, LayerPlace};
use crate::ops;
use crate::sample::{SampleResults, SampleRow};
use crate::weights::{Dtype, LoraUpdate, TensorView, with_one_order};

/// The share of the free memory that the KV pool takes by default: the other half stays for the rest of the machine.
const KV_MEMORY_SHARE: usize = 2;
/// Enough that a prompt's products are bounded by FLOPs, and few enough that others' decodes beside it do not wait long.
const STEP_TOKENS: usize = 512;
/// Sequences that run at once, unless a setting says otherwise.
const NUM_SEQS: usize = 128;

/// Threads, their SIMD, and scratch memory of the kernels.
pub(crate) struct Cpu {
    pub(crate) pool: ThreadPool,
    pub(crate) weights: Arena,
    pub(crate) isa: Isa,
    pub(crate) precision: MatmulPrecision,
    /// Inputs of weights whose columns are not in order.
    pub(crate) ordered: Buffer,
    pub(crate) quantized: ops::linear::QuantizedRows,
    pub(crate) planes: ops::linear::Planes,
    #[cfg(target_arch = "x86_64")]
    pub(crate) bf16: ops::linear::Bf16Rows,
    pub(crate) experts: ops::experts::Scratch,
    pub(crate) lora: ops::lora::Scratch,
    pub(crate) attention: ops::attention::Plan,
    pub(crate) sample_shares: Vec<ops::sample::Share>,
}

impl Cpu {
    pub(crate) fn new(num_threads: usize, isa: Isa) -> Self {
        Self {
            pool: ThreadPool::new(num_threads),
            weights: Arena::default(),
            isa,
            precision: MatmulPrecision::default(),
            ordered: Buffer::default(),
            quantized: Default::default(),
            planes: Default::default(),
            #[cfg(target_arch = "x86_64")]
            bf16: Default::default(),
            experts: Default::default(),
            lora: Default::default(),
            attention: Default::default(),
            sample_shares: Vec::new(),
        }
    }
}

/// The CPU.
pub struct CpuBackend {
    cpu: RefCell<Cpu>,
}

impl CpuBackend {
    /// The CPU with so many threads; `None`: one a physical core.
    pub fn new(num_threads: Option<usize>) -> Self {
        let num_threads = num_threads.unwrap_or_else(topology::default_num_threads);
        Self { cpu: RefCell::new(Cpu::new(num_threads, Isa::detect())) }
    }

    /// The same with another precision of products with weights.
    pub fn with_matmul_precision(self, precision: MatmulPrecision) -> Self {
        self.cpu.borrow_mut().precision = precision;
        self
    }
}

impl Backend for CpuBackend {
    type Buffer = Buffer;
    type Matrix = Matrix;
    type ExpertMatrices = Vec<Matrix>;
    type Lora = ops::lora::Lora;
    type Vector = Vec<f32>;
    type KvCache = KvCache;
    type Rope = RopeTable;
    type Batch = Batch;
    type Answers = SampleResults;

    fn description(&self) -> String {
        let cpu = self.cpu.borrow();
        let threads = cpu.pool.num_threads();
        format!("cpu ({threads} thread{}, {})", if threads == 1 { "" } else { "s" }, cpu.isa.name())
    }

    fn kv_pool_memory(&self) -> Result<usize> {
        let unknown = || Error::config("kv-cache-bytes", "must be set: this system does not tell its free memory");
        Ok(memory::unpromised_memory().ok_or_else(unknown)? / KV_MEMORY_SHARE)
    }

    fn default_step_tokens(&self) -> usize {
        STEP_TOKENS
    }

    fn default_num_seqs(&self) -> usize {
        NUM_SEQS
    }

    fn buffer(&self, max_rows: usize, cols: usize, _: BufferRole) -> Result<Buffer> {
        Ok(Buffer::new(max_rows, cols))
    }

    fn vector(&self, data: &[f32]) -> Result<Vec<f32>> {
        Ok(data.to_vec())
    }

    fn matrix(&self, parts: Vec<TensorView<'_>>, bias: Option<&[f32]>, dtype: WeightDtype) -> Result<Matrix> {
        let cols = parts[0].shape[1];
        let (parts, column_order) = with_one_order(parts);
        let Cpu { pool, weights, isa, .. } = &mut *self.cpu.borrow_mut();
        let load = |part| ops::linear::load_part((&mut *pool, &mut *weights), *isa, part, dtype);
        let parts = parts.into_iter().map(load).collect::<Result<_>>()?;
        Ok(Matrix { parts, cols, bias: bias.map(Into::into), column_order: column_order.map(Into::into) })
    }

    fn expert_matrices(
        &self,
        parts: Vec<TensorView<'_>>,
        num_experts: usize,
        bias: Option<&[f32]>,
        dtype: WeightDtype,
    ) -> Result<Vec<Matrix>> {
        let (num_parts, mut parts) = (parts.len() / num_experts, parts.into_iter());
        let bias_of =
            |expert: usize| bias.map(|all| &all[all.len() / num_experts * expert..][..all.len() / num_experts]);
        let load = |expert| self.matrix(parts.by_ref().take(num_parts).collect(), bias_of(expert), dtype);
        (0..num_experts).map(load).collect()
    }

    fn lora(
        &self,
        shape: (&[usize], usize),
        num_adapters: usize,
        updates: &[LoraUpdate<'_>],
    ) -> Result<ops::lora::Lora> {
        Ok(ops::lora::Lora::new(shape, num_adapters, updates))
    }

    fn memory_dtype(&self, stored: Dtype, asked: WeightDtype) -> Dtype {
        memory_dtype(stored, asked)
    }

    fn matrix_bytes(&self, matrix: &Matrix) -> usize {
        let scale_bytes = |part: &MatrixPart| part.row_scales.as_ref().map_or(0, |scales| 4 * scales.len());
        matrix.parts.iter().map(|part| part.rows * part.dtype.row_bytes(matrix.cols) + scale_bytes(part)).sum()
    }

    fn kv_dtype(&self, asked: KvCacheDtype) -> Result<KvDtype> {
        let cpu = self.cpu.borrow();
        Ok(match asked {
            // What attention in bf16 would round at each step: the bits are the same, in half the memory.
            KvCacheDtype::Auto if ops::attention::is_in_bf16(&cpu) => KvDtype::Bf16,
            KvCacheDtype::Auto | KvCacheDtype::F32 => KvDtype::F32,
            KvCacheDtype::F16 => KvDtype::F16,
            KvCacheDtype::Bf16 => KvDtype::Bf16,
            KvCacheDtype::Int8 => {
                return Err(Error::config(
                    "kv-cache-dtype",
                    "int8 is for a GPU; on the CPU use auto, f32, bf16 or f16",
                ));
            }
        })
    }

    fn kv_cache(&self, shape: KvCacheShape, places: &[LayerPlace]) -> Result<KvCache> {
        let cache = KvCache::new(shape)?.with_places(places);
        if memory::unpromised_memory() == Some(0) {
            tracing::warn!(
                "with this KV pool more memory is promised than is free: the system may end the program when it is used"
            );
        }
        Ok(cache)
    }

    fn rope(&self, config: &RopeConfig, max_len: usize) -> Result<RopeTable> {
        Ok(ops::rope_append_kv::table(config, max_len))
    }

    fn batch(&self, _: &ModelConfig, _: &StepLimits) -> Result<Batch> {
        Ok(Batch::default())
    }

    fn answers(&self) -> Result<SampleResults> {
        Ok(SampleResults::default())
    }

    fn upload(&self, dst: &mut Batch, batch: &Batch) -> Result<()> {
        dst.clone_from(batch);
        Ok(())
    }

    fn run(&self, _: &Batch, forward: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        forward()
    }

    fn num_rows(&self, x: &Buffer) -> usize {
        x.rows()
    }

    fn read(&self, x: &Buffer, num_rows: usize) -> Result<Vec<f32>> {
        Ok(x.data()[..num_rows * x.cols()].to_vec())
    }

    fn write(&self, x: &mut Buffer, data: &[f32]) -> Result<()> {
        x.set_rows(data.len() / x.cols().max(1));
        x.data_mut().copy_from_slice(data);
        Ok(())
    }

    fn copy_blocks(&self, kv: &mut KvCache, copies: &[BlockCopy]) -> Result<()> {
        ops::copy_blocks::reference(kv, copies);
        Ok(())
    }

    fn embed(&self, out: &mut Buffer, table: &Matrix, batch: &Batch, scale: f32) -> Result<()> {
        ops::embed::reference(out, table, &batch.token_ids, scale);
        Ok(())
    }

    fn rms_norm(&self, out: &mut Buffer, x: &Buffer, weight: &Vec<f32>, eps: f32) -> Result<()> {
        ops::rms_norm::cpu(&mut self.cpu.borrow_mut(), out, x, weight, eps);
        Ok(())
    }

    fn add_rms_norm(
        &self,
        out: &mut Buffer,
        residual: &mut Buffer,
        delta: &Buffer,
        weight: &Vec<f32>,
        eps: f32,
    ) -> Result<()> {
        ops::rms_norm::add_cpu(&mut self.cpu.borrow_mut(), out, residual, delta, weight, eps);
        Ok(())
    }

    fn layer_norm(&self, out: &mut Buffer, x: &Buffer, weight: &Vec<f32>, bias: &Vec<f32>, eps: f32) -> Result<()> {
        ops::layer_norm::cpu(&mut self.cpu.borrow_mut(), out, x, weight, bias, eps);
        Ok(())
    }

    fn linear(&self, out: &mut Buffer, x: &Buffer, weight: &Matrix) -> Result<()> {
        ops::linear::cpu(&mut self.cpu.borrow_mut(), out, x, weight);
        Ok(())
    }

    fn has_adapters(&self, batch: &Batch) -> bool {
        batch.has_adapters()
    }

    fn add_lora(&self, out: &mut Buffer, x: &Buffer, lora: &ops::lora::Lora, batch: &Batch) -> Result<()> {
        ops::lora::cpu(&mut self.cpu.borrow_mut(), out, x, lora, &batch.adapters);
        Ok(())
    }

    fn head_norm(
        &self,
        qkv: &mut Buffer,
        (q, k): (&Vec<f32>, &Vec<f32>),
        spec: &AttentionSpec,
        eps: f32,
    ) -> Result<()> {
        ops::head_norm::cpu(&mut self.cpu.borrow_mut(), qkv, (q, k), spec, eps);
        Ok(())
    }

    fn rope_append_kv(
        &self,
        qkv: &mut Buffer,
        kv: &mut KvCache,
        rope: &RopeTable,
        batch: &Batch,
        spec: &AttentionSpec,
    ) -> Result<()> {
        ops::rope_append_kv::cpu(&mut self.cpu.borrow_mut(), qkv, kv, rope, batch, spec);
        Ok(())
    }

    fn attention(
        &self,
        out: &mut Buffer,
        qkv: &Buffer,
        kv: &KvCache,
        batch: &Batch,
        layer: LayerAttention<'_, Vec<f32>>,
    ) -> Result<()> {
        ops::attention::cpu(&mut self.cpu.borrow_mut(), out, qkv, kv, batch, layer);
        Ok(())
    }

    fn gate_act_mul(&self, out: &mut Buffer, gate_up: &Buffer, act: Activation) -> Result<()> {
        ops::gate_act_mul::cpu(&mut self.cpu.borrow_mut(), out, gate_up, act);
        Ok(())
    }

    fn gated_linear(
        &self,
        out: &mut Buffer,
        gate_up: &mut Buffer,
        x: &Buffer,
        weight: &Matrix,
        act: Activation,
    ) -> Result<()> {
        ops::gated_linear::cpu(&mut self.cpu.borrow_mut(), out, gate_up, x, weight, act);
        Ok(())
    }

    fn experts(
        &self,
        out: &mut Buffer,
        x: &Buffer,
        logits: &Buffer,
        [gate_up, down]: [&Vec<Matrix>; 2],
        spec: &ExpertsSpec,
    ) -> Result<()> {
        ops::experts::cpu(&mut self.cpu.borrow_mut(), out, x, logits, [gate_up, down], spec);
        Ok(())
    }

    fn activate(&self, x: &mut Buffer, act: Activation) -> Result<()> {
        ops::activate::cpu(&mut self.cpu.borrow_mut(), x, act);
        Ok(())
    }

    fn softcap(&self, x: &mut Buffer, cap: f32) -> Result<()> {
        ops::softcap::cpu(&mut self.cpu.borrow_mut(), x, cap);
        Ok(())
    }

    fn add(&self, out: &mut Buffer, x: &Buffer) -> Result<()> {
        ops::add::cpu(&mut self.cpu.borrow_mut(), out, x);
        Ok(())
    }

    fn gather_rows(&self, out: &mut Buffer, x: &Buffer, batch: &Batch) -> Result<()> {
        ops::gather_rows::reference(out, x, &batch.logit_rows);
        Ok(())
    }

    fn sample(&self, out: &mut SampleResults, logits: &Buffer, rows: &[SampleRow<'_>]) -> Result<()> {
        ops::sample::cpu(&mut self.cpu.borrow_mut(), out, logits, rows);
        Ok(())
    }

    fn read_answers<'a>(&self, answers: &'a mut SampleResults) -> Result<&'a mut SampleResults> {
        Ok(answers)
    }
}

/// The type that a weight has in memory: quantized ones stay as they are unless another is asked for, and e4m3 becomes bf16,
/// which has all of its numbers.
pub(crate) fn memory_dtype(stored: Dtype, asked: WeightDtype) -> Dtype {
    match asked {
        WeightDtype::Auto if stored == Dtype::F8E4M3 => Dtype::BF16,
        WeightDtype::Auto => stored,
        WeightDtype::F32 => Dtype::F32,
        WeightDtype::Bf16 => Dtype::BF16,
        WeightDtype::F16 => Dtype::F16,
    }
}
