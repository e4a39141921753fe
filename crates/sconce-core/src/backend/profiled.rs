//! [`Profiled`]: runs each operation by itself, and takes down how long it took.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{
    AttentionSpec, Backend, Batch, BufferRole, ExpertsSpec, KvCacheShape, KvDtype, LayerAttention, StepLimits,
};
use crate::config::{Activation, KvCacheDtype, ModelConfig, RopeConfig, WeightDtype};
use crate::error::Result;
use crate::kv::{BlockCopy, LayerPlace};
use crate::sample::{SampleResults, SampleRow};
use crate::weights::{Dtype, LoraUpdate, RandomWeights, TensorView};

/// How much a step computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepShape {
    /// Sequences.
    pub num_seqs: usize,
    /// Tokens of all of them.
    pub num_tokens: usize,
}

/// What one operation took in steps of one shape, all its calls together.
#[derive(Debug, Clone, PartialEq)]
pub struct OpTime {
    /// Its name.
    pub op: &'static str,
    /// The steps that it was part of.
    pub step: StepShape,
    /// Of `linear` and `gated_linear`: outputs and inputs of the weights, [rows, cols]. Products of other shapes are other operations.
    pub weight: Option<[usize; 2]>,
    /// Calls.
    pub num_calls: usize,
    /// Time.
    pub time: Duration,
    /// Bytes of weights read, each call's counted once.
    pub weight_bytes: u64,
    /// Multiply-adds with weights.
    pub products: u64,
}

impl OpTime {
    /// Adds it to the same operation's among `times`.
    pub fn add_to(self, times: &mut Vec<Self>) {
        match times.iter_mut().find(|sum| (sum.op, sum.step, sum.weight) == (self.op, self.step, self.weight)) {
            Some(sum) => {
                sum.num_calls += self.num_calls;
                sum.time += self.time;
                sum.weight_bytes += self.weight_bytes;
                sum.products += self.products;
            }
            None => times.push(self),
        }
    }
}

/// What each operation has taken so far.
#[derive(Debug, Default)]
pub struct OpProfile {
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    times: Vec<OpTime>,
    /// When the last operation ended.
    ended: Option<Instant>,
    /// What is being computed.
    step: StepShape,
}

impl OpProfile {
    /// The name of the time from an operation's end to the next one's begin.
    pub const BETWEEN: &'static str = "between operations";

    /// What has been taken down since the last time, the longest first.
    pub fn take(&self) -> Vec<OpTime> {
        let mut taken = self.lock();
        taken.ended = None;
        let mut times = std::mem::take(&mut taken.times);
        times.sort_by_key(|of| std::cmp::Reverse(of.time));
        times
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What follows is part of such a step.
    fn begin_step(&self, step: StepShape) {
        self.lock().step = step;
    }

    /// Takes down a call that began then and ends now.
    fn add(&self, begun: Instant, mut call: OpTime) {
        let now = Instant::now();
        let mut taken = self.lock();
        (call.step, call.time) = (taken.step, now - begun);
        if let Some(ended) = taken.ended.replace(now) {
            let (time, weight) = (begun.saturating_duration_since(ended), None);
            let between = OpTime { op: Self::BETWEEN, time, weight, weight_bytes: 0, products: 0, ..call };
            between.add_to(&mut taken.times);
        }
        call.add_to(&mut taken.times);
    }
}

/// A matrix and its shape.
#[derive(Debug)]
pub struct Shaped<M> {
    matrix: M,
    shape: [usize; 2],
}

/// A backend whose operations are timed. Each is waited for, so that nothing overlaps.
#[derive(Debug)]
pub struct Profiled<B> {
    backend: B,
    profile: Arc<OpProfile>,
}

impl<B: Backend> Profiled<B> {
    /// Times go to `profile`.
    pub fn new(backend: B, profile: Arc<OpProfile>) -> Self {
        Self { backend, profile }
    }

    fn time<T>(&self, op: &'static str, run: impl FnOnce() -> Result<T>) -> Result<T> {
        self.time_products(op, None, 0, 0, run)
    }

    fn time_products<T>(
        &self,
        op: &'static str,
        weight: Option<[usize; 2]>,
        weight_bytes: usize,
        num_rows: usize,
        run: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let begun = Instant::now();
        let result = run()?;
        self.backend.synchronize()?;
        let products = weight.map_or(0, |[rows, cols]| (num_rows * rows * cols) as u64);
        let (time, weight_bytes, step) = (Duration::ZERO, weight_bytes as u64, StepShape::default());
        self.profile.add(begun, OpTime { op, step, weight, num_calls: 1, time, weight_bytes, products });
        Ok(result)
    }
}

impl<B: Backend> Backend for Profiled<B> {
    type Buffer = B::Buffer;
    type Matrix = Shaped<B::Matrix>;
    type ExpertMatrices = B::ExpertMatrices;
    type Lora = B::Lora;
    type Vector = B::Vector;
    type KvCache = B::KvCache;
    type Rope = B::Rope;
    type Batch = B::Batch;
    type Answers = B::Answers;

    fn description(&self) -> String {
        format!("{}, operations timed one by one", self.backend.description())
    }

    fn kv_pool_memory(&self) -> Result<usize> {
        self.backend.kv_pool_memory()
    }

    fn default_step_tokens(&self) -> usize {
        self.backend.default_step_tokens()
    }

    fn default_num_seqs(&self) -> usize {
        self.backend.default_num_seqs()
    }

    fn is_lost(&self) -> bool {
        self.backend.is_lost()
    }

    fn synchronize(&self) -> Result<()> {
        self.backend.synchronize()
    }

    fn buffer(&self, max_rows: usize, cols: usize, role: BufferRole) -> Result<B::Buffer> {
        self.backend.buffer(max_rows, cols, role)
    }

    fn vector(&self, data: &[f32]) -> Result<B::Vector> {
        self.backend.vector(data)
    }

    fn matrix(&self, parts: Vec<TensorView<'_>>, bias: Option<&[f32]>, dtype: WeightDtype) -> Result<Self::Matrix> {
        let shape = [parts.iter().map(|part| part.shape[0]).sum(), parts[0].shape[1]];
        Ok(Shaped { matrix: self.backend.matrix(parts, bias, dtype)?, shape })
    }

    fn random_matrix(
        &self,
        shape: [usize; 2],
        bias: Option<&[f32]>,
        random: RandomWeights,
    ) -> Result<Option<Self::Matrix>> {
        let matrix = self.backend.random_matrix(shape, bias, random)?;
        Ok(matrix.map(|matrix| Shaped { matrix, shape }))
    }

    fn expert_matrices(
        &self,
        parts: Vec<TensorView<'_>>,
        num_experts: usize,
        bias: Option<&[f32]>,
        dtype: WeightDtype,
    ) -> Result<B::ExpertMatrices> {
        self.backend.expert_matrices(parts, num_experts, bias, dtype)
    }

    fn random_expert_matrices(
        &self,
        num_experts: usize,
        shape: [usize; 2],
        bias: Option<&[f32]>,
        random: RandomWeights,
    ) -> Result<Option<B::ExpertMatrices>> {
        self.backend.random_expert_matrices(num_experts, shape, bias, random)
    }

    fn lora(&self, shape: (&[usize], usize), num_adapters: usize, updates: &[LoraUpdate<'_>]) -> Result<B::Lora> {
        self.backend.lora(shape, num_adapters, updates)
    }

    fn memory_dtype(&self, stored: Dtype, asked: WeightDtype) -> Dtype {
        self.backend.memory_dtype(stored, asked)
    }

    fn matrix_bytes(&self, matrix: &Self::Matrix) -> usize {
        self.backend.matrix_bytes(&matrix.matrix)
    }

    fn kv_dtype(&self, asked: KvCacheDtype) -> Result<KvDtype> {
        self.backend.kv_dtype(asked)
    }

    fn kv_cache_bytes(&self, shape: &KvCacheShape) -> usize {
        self.backend.kv_cache_bytes(shape)
    }

    fn kv_cache(&self, shape: KvCacheShape, places: &[LayerPlace]) -> Result<B::KvCache> {
        self.backend.kv_cache(shape, places)
    }

    fn rope(&self, config: &RopeConfig, max_len: usize) -> Result<B::Rope> {
        self.backend.rope(config, max_len)
    }

    fn batch(&self, config: &ModelConfig, limits: &StepLimits) -> Result<B::Batch> {
        self.backend.batch(config, limits)
    }

    fn upload(&self, dst: &mut B::Batch, batch: &Batch) -> Result<()> {
        self.profile.begin_step(StepShape { num_seqs: batch.sequences.len(), num_tokens: batch.num_tokens() });
        self.time("upload", || self.backend.upload(dst, batch))
    }

    /// Every operation is made anew, or there would be nothing to time.
    fn run(&self, _: &B::Batch, forward: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        forward()
    }

    fn num_rows(&self, x: &B::Buffer) -> usize {
        self.backend.num_rows(x)
    }

    fn read(&self, x: &B::Buffer, num_rows: usize) -> Result<Vec<f32>> {
        self.backend.read(x, num_rows)
    }

    fn write(&self, x: &mut B::Buffer, data: &[f32]) -> Result<()> {
        self.backend.write(x, data)
    }

    fn copy_blocks(&self, kv: &mut B::KvCache, copies: &[BlockCopy]) -> Result<()> {
        self.time("copy_blocks", || self.backend.copy_blocks(kv, copies))
    }

    fn embed(&self, out: &mut B::Buffer, table: &Self::Matrix, batch: &B::Batch, scale: f32) -> Result<()> {
        self.time("embed", || self.backend.embed(out, &table.matrix, batch, scale))
    }

    fn rms_norm(&self, out: &mut B::Buffer, x: &B::Buffer, weight: &B::Vector, eps: f32) -> Result<()> {
        self.time("rms_norm", || self.backend.rms_norm(out, x, weight, eps))
    }

    fn add_rms_norm(
        &self,
        out: &mut B::Buffer,
        residual: &mut B::Buffer,
        delta: &B::Buffer,
        weight: &B::Vector,
        eps: f32,
    ) -> Result<()> {
        self.time("add_rms_norm", || self.backend.add_rms_norm(out, residual, delta, weight, eps))
    }

    fn layer_norm(
        &self,
        out: &mut B::Buffer,
        x: &B::Buffer,
        weight: &B::Vector,
        bias: &B::Vector,
        eps: f32,
    ) -> Result<()> {
        self.time("layer_norm", || self.backend.layer_norm(out, x, weight, bias, eps))
    }

    fn linear(&self, out: &mut B::Buffer, x: &B::Buffer, weight: &Self::Matrix) -> Result<()> {
        let (bytes, num_rows) = (self.matrix_bytes(weight), self.backend.num_rows(x));
        self.time_products("linear", Some(weight.shape), bytes, num_rows, || {
            self.backend.linear(out, x, &weight.matrix)
        })
    }

    fn has_adapters(&self, batch: &B::Batch) -> bool {
        self.backend.has_adapters(batch)
    }

    fn add_lora(&self, out: &mut B::Buffer, x: &B::Buffer, lora: &B::Lora, batch: &B::Batch) -> Result<()> {
        self.time("lora", || self.backend.add_lora(out, x, lora, batch))
    }

    fn head_norm(
        &self,
        qkv: &mut B::Buffer,
        weights: (&B::Vector, &B::Vector),
        spec: &AttentionSpec,
        eps: f32,
    ) -> Result<()> {
        self.time("head_norm", || self.backend.head_norm(qkv, weights, spec, eps))
    }

    fn rope_append_kv(
        &self,
        qkv: &mut B::Buffer,
        kv: &mut B::KvCache,
        rope: &B::Rope,
        batch: &B::Batch,
        spec: &AttentionSpec,
    ) -> Result<()> {
        self.time("rope_append_kv", || self.backend.rope_append_kv(qkv, kv, rope, batch, spec))
    }

    fn attention(
        &self,
        out: &mut B::Buffer,
        qkv: &B::Buffer,
        kv: &B::KvCache,
        batch: &B::Batch,
        layer: LayerAttention<'_, B::Vector>,
    ) -> Result<()> {
        self.time("attention", || self.backend.attention(out, qkv, kv, batch, layer))
    }

    fn rope_attention(
        &self,
        (out, qkv): (&mut B::Buffer, &mut B::Buffer),
        kv: &mut B::KvCache,
        rope: &B::Rope,
        batch: &B::Batch,
        layer: LayerAttention<'_, B::Vector>,
    ) -> Result<()> {
        if !self.fuses_rope(kv, rope, batch, layer.spec) {
            self.rope_append_kv(qkv, kv, rope, batch, layer.spec)?;
            return self.attention(out, qkv, kv, batch, layer);
        }
        self.time("rope_attention", || self.backend.rope_attention((out, qkv), kv, rope, batch, layer))
    }

    fn fuses_rope(&self, kv: &B::KvCache, rope: &B::Rope, batch: &B::Batch, spec: &AttentionSpec) -> bool {
        self.backend.fuses_rope(kv, rope, batch, spec)
    }

    fn gate_act_mul(&self, out: &mut B::Buffer, gate_up: &B::Buffer, act: Activation) -> Result<()> {
        self.time("gate_act_mul", || self.backend.gate_act_mul(out, gate_up, act))
    }

    fn gated_linear(
        &self,
        out: &mut B::Buffer,
        gate_up: &mut B::Buffer,
        x: &B::Buffer,
        weight: &Self::Matrix,
        act: Activation,
    ) -> Result<()> {
        let (bytes, num_rows) = (self.matrix_bytes(weight), self.backend.num_rows(x));
        self.time_products("gated_linear", Some(weight.shape), bytes, num_rows, || {
            self.backend.gated_linear(out, gate_up, x, &weight.matrix, act)
        })
    }

    /// Which weights are read depends on the tokens: neither bytes nor products are counted.
    fn experts(
        &self,
        out: &mut B::Buffer,
        x: &B::Buffer,
        logits: &B::Buffer,
        weights: [&B::ExpertMatrices; 2],
        spec: &ExpertsSpec,
    ) -> Result<()> {
        self.time("experts", || self.backend.experts(out, x, logits, weights, spec))
    }

    fn activate(&self, x: &mut B::Buffer, act: Activation) -> Result<()> {
        self.time("activate", || self.backend.activate(x, act))
    }

    fn softcap(&self, x: &mut B::Buffer, cap: f32) -> Result<()> {
        self.time("softcap", || self.backend.softcap(x, cap))
    }

    fn add(&self, out: &mut B::Buffer, x: &B::Buffer) -> Result<()> {
        self.time("add", || self.backend.add(out, x))
    }

    fn gather_rows(&self, out: &mut B::Buffer, x: &B::Buffer, batch: &B::Batch) -> Result<()> {
        self.time("gather_rows", || self.backend.gather_rows(out, x, batch))
    }

    fn answers(&self) -> Result<B::Answers> {
        self.backend.answers()
    }

    fn sample(&self, out: &mut B::Answers, logits: &B::Buffer, rows: &[SampleRow<'_>]) -> Result<()> {
        self.time("sample", || self.backend.sample(out, logits, rows))
    }

    fn read_answers<'a>(&self, answers: &'a mut B::Answers) -> Result<&'a mut SampleResults> {
        self.backend.read_answers(answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::CpuBackend;
    use crate::ops::testing::random;

    #[test]
    fn products_are_counted_by_shape_and_results_are_the_backends() {
        let profile = Arc::new(OpProfile::default());
        let (plain, profiled) =
            (CpuBackend::new(Some(1)), Profiled::new(CpuBackend::new(Some(1)), Arc::clone(&profile)));
        let data = random(6 * 8, 1);
        let view = |rows: usize| TensorView::new(Dtype::F32, vec![rows, 8], bytemuck::cast_slice(&data[..rows * 8]));
        let [mut x, mut out, mut small, mut expected] =
            [8, 6, 2, 6].map(|cols| plain.buffer(3, cols, BufferRole::Activation).unwrap());
        plain.write(&mut x, &random(24, 2)).unwrap();
        let weight = profiled.matrix(vec![view(4), view(2)], None, WeightDtype::Auto).unwrap();
        let other = profiled.matrix(vec![view(2)], None, WeightDtype::Auto).unwrap();
        profiled.linear(&mut out, &x, &weight).unwrap();
        profiled.linear(&mut out, &x, &weight).unwrap();
        profiled.linear(&mut small, &x, &other).unwrap();
        profiled.activate(&mut small, Activation::Silu).unwrap();
        let weight = plain.matrix(vec![view(4), view(2)], None, WeightDtype::Auto).unwrap();
        plain.linear(&mut expected, &x, &weight).unwrap();
        assert_eq!(out.data(), expected.data());

        let mut times = profile.take();
        times.sort_by_key(|of| (of.op, of.weight));
        let found: Vec<_> =
            times.iter().map(|of| (of.op, of.weight, of.num_calls, of.weight_bytes, of.products)).collect();
        let expected = [
            ("activate", None, 1, 0, 0),
            (OpProfile::BETWEEN, None, 3, 0, 0),
            ("linear", Some([2, 8]), 1, 2 * 8 * 4, 3 * 2 * 8),
            ("linear", Some([6, 8]), 2, 2 * 6 * 8 * 4, 2 * 3 * 6 * 8),
        ];
        assert_eq!(found, expected);
        assert!(times.iter().all(|of| of.time > Duration::ZERO));
        assert!(profile.take().is_empty());
    }
}
