//! [`Checked`]: runs each operation on two backends, and stops at the first whose results differ.
//!
//! After each operation the second backend's result is replaced by the first's, so that each is checked on its own, on equal
//! inputs: differences do not add up, and the operation that is named is the one that is wrong.

use super::{
    AttentionSpec, Backend, Batch, BufferRole, ExpertsSpec, KvCacheShape, KvDtype, LayerAttention, StepLimits,
};
use crate::config::{Activation, KvCacheDtype, ModelConfig, RopeConfig, WeightDtype};
use crate::error::{Error, Result};
use crate::kv::{BlockCopy, LayerPlace};
use crate::sample::{SampleResults, SampleRow};
use crate::weights::{Dtype, LoraUpdate, TensorView};

/// The same on both backends.
#[derive(Debug)]
pub struct Pair<A, B> {
    /// What is checked.
    pub tested: A,
    /// What it is compared with.
    pub reference: B,
}

/// Of either backend.
fn both<V, W>(layer: LayerAttention<'_, Pair<V, W>>) -> (LayerAttention<'_, V>, LayerAttention<'_, W>) {
    let LayerAttention { spec, sinks } = layer;
    let (tested, reference) = (sinks.map(|sinks| &sinks.tested), sinks.map(|sinks| &sinks.reference));
    (LayerAttention { spec, sinks: tested }, LayerAttention { spec, sinks: reference })
}

/// Two backends as one, whose results are those of the first.
#[derive(Debug)]
pub struct Checked<A, B> {
    tested: A,
    reference: B,
    tolerance: f32,
}

impl<A: Backend, B: Backend> Checked<A, B> {
    /// `tolerance`: what an element may differ by, as a share of the greatest magnitude in its operation's result.
    pub fn new(tested: A, reference: B, tolerance: f32) -> Self {
        Self { tested, reference, tolerance }
    }

    /// Does `op` on both, and compares `out`.
    fn check(
        &self,
        op: &str,
        out: &mut Pair<A::Buffer, B::Buffer>,
        run: impl FnOnce(&mut Pair<A::Buffer, B::Buffer>) -> Result<()>,
    ) -> Result<()> {
        run(out)?;
        self.compare(op, out)
    }

    fn compare(&self, op: &str, out: &mut Pair<A::Buffer, B::Buffer>) -> Result<()> {
        // A device may add rows of padding.
        let num_rows = self.reference.num_rows(&out.reference);
        if self.tested.num_rows(&out.tested) < num_rows {
            let message = format!("{op}: {} rows where {num_rows} are expected", self.tested.num_rows(&out.tested));
            return Err(Error::internal(message));
        }
        let expected = self.reference.read(&out.reference, num_rows)?;
        let found = self.tested.read(&out.tested, num_rows)?;
        let bound = self.tolerance * expected.iter().fold(1e-3f32, |max, x| max.max(x.abs()));
        let differs = |(found, expected): (&f32, &f32)| (found - expected).abs() > bound || found.is_nan();
        if let Some(idx) = found.iter().zip(&expected).position(differs) {
            let count = found.iter().zip(&expected).filter(|&pair| differs(pair)).count();
            let (value, wanted, len) = (found[idx], expected[idx], expected.len());
            let message = format!(
                "{op} on {}: element {idx} is {value}, on {} {wanted}; {count} of {len} elements differ by more than {bound}",
                self.tested.description(),
                self.reference.description()
            );
            return Err(Error::internal(message));
        }
        self.reference.write(&mut out.reference, &found)
    }
}

impl<A: Backend, B: Backend> Backend for Checked<A, B> {
    type Buffer = Pair<A::Buffer, B::Buffer>;
    type Matrix = Pair<A::Matrix, B::Matrix>;
    type ExpertMatrices = Pair<A::ExpertMatrices, B::ExpertMatrices>;
    type Lora = Pair<A::Lora, B::Lora>;
    type Vector = Pair<A::Vector, B::Vector>;
    type KvCache = Pair<A::KvCache, B::KvCache>;
    type Rope = Pair<A::Rope, B::Rope>;
    type Batch = Pair<A::Batch, B::Batch>;
    type Answers = Pair<A::Answers, B::Answers>;

    fn description(&self) -> String {
        format!("{}, checked by {}", self.tested.description(), self.reference.description())
    }

    fn kv_pool_memory(&self) -> Result<usize> {
        Ok(self.tested.kv_pool_memory()?.min(self.reference.kv_pool_memory()?))
    }

    fn default_step_tokens(&self) -> usize {
        self.tested.default_step_tokens()
    }

    fn default_num_seqs(&self) -> usize {
        self.tested.default_num_seqs()
    }

    fn is_lost(&self) -> bool {
        self.tested.is_lost() || self.reference.is_lost()
    }

    fn buffer(&self, max_rows: usize, cols: usize, role: BufferRole) -> Result<Self::Buffer> {
        Ok(Pair {
            tested: self.tested.buffer(max_rows, cols, role)?,
            reference: self.reference.buffer(max_rows, cols, role)?,
        })
    }

    fn vector(&self, data: &[f32]) -> Result<Self::Vector> {
        Ok(Pair { tested: self.tested.vector(data)?, reference: self.reference.vector(data)? })
    }

    fn matrix(&self, parts: Vec<TensorView<'_>>, bias: Option<&[f32]>, dtype: WeightDtype) -> Result<Self::Matrix> {
        Ok(Pair {
            tested: self.tested.matrix(parts.clone(), bias, dtype)?,
            reference: self.reference.matrix(parts, bias, dtype)?,
        })
    }

    fn expert_matrices(
        &self,
        parts: Vec<TensorView<'_>>,
        num_experts: usize,
        bias: Option<&[f32]>,
        dtype: WeightDtype,
    ) -> Result<Self::ExpertMatrices> {
        Ok(Pair {
            tested: self.tested.expert_matrices(parts.clone(), num_experts, bias, dtype)?,
            reference: self.reference.expert_matrices(parts, num_experts, bias, dtype)?,
        })
    }

    fn lora(&self, shape: (&[usize], usize), num_adapters: usize, updates: &[LoraUpdate<'_>]) -> Result<Self::Lora> {
        Ok(Pair {
            tested: self.tested.lora(shape, num_adapters, updates)?,
            reference: self.reference.lora(shape, num_adapters, updates)?,
        })
    }

    fn memory_dtype(&self, stored: Dtype, asked: WeightDtype) -> Dtype {
        self.tested.memory_dtype(stored, asked)
    }

    fn matrix_bytes(&self, matrix: &Self::Matrix) -> usize {
        self.tested.matrix_bytes(&matrix.tested)
    }

    fn kv_dtype(&self, asked: KvCacheDtype) -> Result<KvDtype> {
        let dtype = self.tested.kv_dtype(asked)?;
        self.reference.kv_dtype(match dtype {
            KvDtype::F32 => KvCacheDtype::F32,
            KvDtype::F16 => KvCacheDtype::F16,
            KvDtype::Bf16 => KvCacheDtype::Bf16,
            KvDtype::Int8 => KvCacheDtype::Int8,
        })
    }

    fn kv_cache_bytes(&self, shape: &KvCacheShape) -> usize {
        self.tested.kv_cache_bytes(shape)
    }

    fn kv_cache(&self, shape: KvCacheShape, places: &[LayerPlace]) -> Result<Self::KvCache> {
        let (tested, reference) = (self.tested.kv_cache(shape, places)?, self.reference.kv_cache(shape, places)?);
        Ok(Pair { tested, reference })
    }

    fn rope(&self, config: &RopeConfig, max_len: usize) -> Result<Self::Rope> {
        Ok(Pair { tested: self.tested.rope(config, max_len)?, reference: self.reference.rope(config, max_len)? })
    }

    fn batch(&self, config: &ModelConfig, limits: &StepLimits) -> Result<Self::Batch> {
        Ok(Pair { tested: self.tested.batch(config, limits)?, reference: self.reference.batch(config, limits)? })
    }

    fn answers(&self) -> Result<Self::Answers> {
        Ok(Pair { tested: self.tested.answers()?, reference: self.reference.answers()? })
    }

    fn upload(&self, dst: &mut Self::Batch, batch: &Batch) -> Result<()> {
        self.tested.upload(&mut dst.tested, batch)?;
        self.reference.upload(&mut dst.reference, batch)
    }

    /// Every operation is made anew, or there would be nothing to compare.
    fn run(&self, _: &Self::Batch, forward: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        forward()
    }

    fn num_rows(&self, x: &Self::Buffer) -> usize {
        self.reference.num_rows(&x.reference)
    }

    fn read(&self, x: &Self::Buffer, num_rows: usize) -> Result<Vec<f32>> {
        self.tested.read(&x.tested, num_rows)
    }

    fn write(&self, x: &mut Self::Buffer, data: &[f32]) -> Result<()> {
        self.tested.write(&mut x.tested, data)?;
        self.reference.write(&mut x.reference, data)
    }

    fn copy_blocks(&self, kv: &mut Self::KvCache, copies: &[BlockCopy]) -> Result<()> {
        self.tested.copy_blocks(&mut kv.tested, copies)?;
        self.reference.copy_blocks(&mut kv.reference, copies)
    }

    fn embed(&self, out: &mut Self::Buffer, table: &Self::Matrix, batch: &Self::Batch, scale: f32) -> Result<()> {
        self.check("embed", out, |out| {
            self.tested.embed(&mut out.tested, &table.tested, &batch.tested, scale)?;
            self.reference.embed(&mut out.reference, &table.reference, &batch.reference, scale)
        })
    }

    fn rms_norm(&self, out: &mut Self::Buffer, x: &Self::Buffer, weight: &Self::Vector, eps: f32) -> Result<()> {
        self.check("rms_norm", out, |out| {
            self.tested.rms_norm(&mut out.tested, &x.tested, &weight.tested, eps)?;
            self.reference.rms_norm(&mut out.reference, &x.reference, &weight.reference, eps)
        })
    }

    fn add_rms_norm(
        &self,
        out: &mut Self::Buffer,
        residual: &mut Self::Buffer,
        delta: &Self::Buffer,
        weight: &Self::Vector,
        eps: f32,
    ) -> Result<()> {
        let (a, b) = (&mut residual.tested, &mut residual.reference);
        self.tested.add_rms_norm(&mut out.tested, a, &delta.tested, &weight.tested, eps)?;
        self.reference.add_rms_norm(&mut out.reference, b, &delta.reference, &weight.reference, eps)?;
        self.compare("add_rms_norm's residual", residual)?;
        self.compare("add_rms_norm", out)
    }

    fn layer_norm(
        &self,
        out: &mut Self::Buffer,
        x: &Self::Buffer,
        weight: &Self::Vector,
        bias: &Self::Vector,
        eps: f32,
    ) -> Result<()> {
        self.check("layer_norm", out, |out| {
            self.tested.layer_norm(&mut out.tested, &x.tested, &weight.tested, &bias.tested, eps)?;
            self.reference.layer_norm(&mut out.reference, &x.reference, &weight.reference, &bias.reference, eps)
        })
    }

    fn linear(&self, out: &mut Self::Buffer, x: &Self::Buffer, weight: &Self::Matrix) -> Result<()> {
        self.check("linear", out, |out| {
            self.tested.linear(&mut out.tested, &x.tested, &weight.tested)?;
            self.reference.linear(&mut out.reference, &x.reference, &weight.reference)
        })
    }

    fn has_adapters(&self, batch: &Self::Batch) -> bool {
        self.reference.has_adapters(&batch.reference)
    }

    fn add_lora(&self, out: &mut Self::Buffer, x: &Self::Buffer, lora: &Self::Lora, batch: &Self::Batch) -> Result<()> {
        self.check("lora", out, |out| {
            self.tested.add_lora(&mut out.tested, &x.tested, &lora.tested, &batch.tested)?;
            self.reference.add_lora(&mut out.reference, &x.reference, &lora.reference, &batch.reference)
        })
    }

    fn head_norm(
        &self,
        qkv: &mut Self::Buffer,
        (q, k): (&Self::Vector, &Self::Vector),
        spec: &AttentionSpec,
        eps: f32,
    ) -> Result<()> {
        self.check("head_norm", qkv, |qkv| {
            self.tested.head_norm(&mut qkv.tested, (&q.tested, &k.tested), spec, eps)?;
            self.reference.head_norm(&mut qkv.reference, (&q.reference, &k.reference), spec, eps)
        })
    }

    fn rope_append_kv(
        &self,
        qkv: &mut Self::Buffer,
        kv: &mut Self::KvCache,
        rope: &Self::Rope,
        batch: &Self::Batch,
        spec: &AttentionSpec,
    ) -> Result<()> {
        self.check(&format!("rope_append_kv of layer {}", spec.layer), qkv, |qkv| {
            let (a, b) = (&mut kv.tested, &mut kv.reference);
            self.tested.rope_append_kv(&mut qkv.tested, a, &rope.tested, &batch.tested, spec)?;
            self.reference.rope_append_kv(&mut qkv.reference, b, &rope.reference, &batch.reference, spec)
        })
    }

    fn attention(
        &self,
        out: &mut Self::Buffer,
        qkv: &Self::Buffer,
        kv: &Self::KvCache,
        batch: &Self::Batch,
        layer: LayerAttention<'_, Self::Vector>,
    ) -> Result<()> {
        self.check(&format!("attention of layer {}", layer.spec.layer), out, |out| {
            let (a, b) = both(layer);
            self.tested.attention(&mut out.tested, &qkv.tested, &kv.tested, &batch.tested, a)?;
            self.reference.attention(&mut out.reference, &qkv.reference, &kv.reference, &batch.reference, b)
        })
    }

    fn rope_attention(
        &self,
        (out, qkv): (&mut Self::Buffer, &mut Self::Buffer),
        kv: &mut Self::KvCache,
        rope: &Self::Rope,
        batch: &Self::Batch,
        layer: LayerAttention<'_, Self::Vector>,
    ) -> Result<()> {
        if !self.fuses_rope(kv, rope, batch, layer.spec) {
            self.rope_append_kv(qkv, kv, rope, batch, layer.spec)?;
            return self.attention(out, qkv, kv, batch, layer);
        }
        self.check(&format!("rope_attention of layer {}", layer.spec.layer), out, |out| {
            let (tested, reference) = (&mut kv.tested, &mut kv.reference);
            let Pair { tested: a, reference: b } = qkv;
            let (of_a, of_b) = both(layer);
            self.tested.rope_attention((&mut out.tested, a), tested, &rope.tested, &batch.tested, of_a)?;
            self.reference.rope_attention((&mut out.reference, b), reference, &rope.reference, &batch.reference, of_b)
        })
    }

    fn fuses_rope(&self, kv: &Self::KvCache, rope: &Self::Rope, batch: &Self::Batch, spec: &AttentionSpec) -> bool {
        self.tested.fuses_rope(&kv.tested, &rope.tested, &batch.tested, spec)
    }

    fn gate_act_mul(&self, out: &mut Self::Buffer, gate_up: &Self::Buffer, act: Activation) -> Result<()> {
        self.check("gate_act_mul", out, |out| {
            self.tested.gate_act_mul(&mut out.tested, &gate_up.tested, act)?;
            self.reference.gate_act_mul(&mut out.reference, &gate_up.reference, act)
        })
    }

    /// Both choose by the same logits.
    fn experts(
        &self,
        out: &mut Self::Buffer,
        x: &Self::Buffer,
        logits: &Self::Buffer,
        weights: [&Self::ExpertMatrices; 2],
        spec: &ExpertsSpec,
    ) -> Result<()> {
        self.check("experts", out, |out| {
            let (a, b) = (weights.map(|pair| &pair.tested), weights.map(|pair| &pair.reference));
            self.tested.experts(&mut out.tested, &x.tested, &logits.tested, a, spec)?;
            self.reference.experts(&mut out.reference, &x.reference, &logits.reference, b, spec)
        })
    }

    fn activate(&self, x: &mut Self::Buffer, act: Activation) -> Result<()> {
        self.check("activate", x, |x| {
            self.tested.activate(&mut x.tested, act)?;
            self.reference.activate(&mut x.reference, act)
        })
    }

    fn softcap(&self, x: &mut Self::Buffer, cap: f32) -> Result<()> {
        self.check("softcap", x, |x| {
            self.tested.softcap(&mut x.tested, cap)?;
            self.reference.softcap(&mut x.reference, cap)
        })
    }

    fn add(&self, out: &mut Self::Buffer, x: &Self::Buffer) -> Result<()> {
        self.check("add", out, |out| {
            self.tested.add(&mut out.tested, &x.tested)?;
            self.reference.add(&mut out.reference, &x.reference)
        })
    }

    fn gather_rows(&self, out: &mut Self::Buffer, x: &Self::Buffer, batch: &Self::Batch) -> Result<()> {
        self.check("gather_rows", out, |out| {
            self.tested.gather_rows(&mut out.tested, &x.tested, &batch.tested)?;
            self.reference.gather_rows(&mut out.reference, &x.reference, &batch.reference)
        })
    }

    fn sample(&self, out: &mut Self::Answers, logits: &Self::Buffer, rows: &[SampleRow<'_>]) -> Result<()> {
        self.tested.sample(&mut out.tested, &logits.tested, rows)?;
        self.reference.sample(&mut out.reference, &logits.reference, rows)
    }

    /// Logits are the same on both, and so must the answers be.
    fn read_answers<'a>(&self, answers: &'a mut Self::Answers) -> Result<&'a mut SampleResults> {
        let found = self.tested.read_answers(&mut answers.tested)?;
        let expected = self.reference.read_answers(&mut answers.reference)?;
        if found == expected {
            return Ok(found);
        }
        Err(Error::internal(format!("sample: {found:?} of logits of which {expected:?} was expected")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::CpuBackend;
    use crate::ops::testing::random;

    #[test]
    fn the_first_wrong_operation_is_named_and_no_other() {
        let checked = Checked::new(CpuBackend::new(Some(1)), CpuBackend::new(Some(2)), 1e-5);
        let buffer = || checked.buffer(3, 8, BufferRole::Activation).unwrap();
        let (mut x, mut out, mut normed) = (buffer(), buffer(), buffer());
        checked.write(&mut x, &random(24, 1)).unwrap();
        let good = checked.vector(&random(8, 2)).unwrap();
        checked.rms_norm(&mut out, &x, &good, 1e-5).unwrap();

        let mut bad = checked.vector(&random(8, 3)).unwrap();
        bad.reference[5] += 0.5;
        let error = checked.rms_norm(&mut out, &x, &bad, 1e-5).unwrap_err().to_string();
        assert!(error.contains("rms_norm on cpu (1 thread") && error.contains("element 5 is"), "{error}");
        assert!(error.contains("3 of 24 elements differ"), "{error}");

        // What differs a little is made equal: it does not add up.
        let mut delta = buffer();
        checked.write(&mut delta, &random(24, 4)).unwrap();
        delta.reference.data_mut().iter_mut().for_each(|x| *x *= 1.0 + 1e-6);
        for _ in 0..100 {
            checked.add_rms_norm(&mut normed, &mut x, &delta, &good, 1e-5).unwrap();
        }
        assert_eq!(x.tested.data(), x.reference.data());
        x.tested.data_mut()[23] = f32::NAN;
        let error = checked.add(&mut x, &delta).unwrap_err().to_string();
        assert!(error.contains("add on") && error.contains("element 23 is NaN"), "{error}");
    }
}
