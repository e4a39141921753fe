//! The device's kernels against the reference, for every form of weights, and rows against what they are alone.

use super::*;
use crate::backend::Backend;
use crate::backend::cpu::{Buffer as CpuBuffer, CpuBackend, Matrix};
use crate::backend::cuda::weights;
use crate::config::{Activation, Quantization, WeightDtype};
use crate::ops::experts::{Pick, reference, route};
use crate::ops::testing::{assert_device_close, devices, on_device, random, round};
use crate::weights::{Dtype, TensorView, WeightStore, quant};

const BLOCKS: [Dtype; 11] = [
    Dtype::Q4_0,
    Dtype::Q4_1,
    Dtype::Q5_0,
    Dtype::Q5_1,
    Dtype::Q8_0,
    Dtype::Q4K,
    Dtype::Q5K,
    Dtype::Q6K,
    Dtype::Int4G32,
    Dtype::Int4G128,
    Dtype::Mxfp4,
];

/// A layer's shape, and the type of its weights.
#[derive(Debug, Clone, Copy)]
struct Shape {
    num_experts: usize,
    per_token: usize,
    hidden: usize,
    inter: usize,
    dtype: Dtype,
}

impl Shape {
    fn new([num_experts, per_token, hidden, inter]: [usize; 4], dtype: Dtype) -> Self {
        Self { num_experts, per_token, hidden, inter, dtype }
    }

    fn elem(&self) -> ElemType {
        if self.dtype == Dtype::F16 { ElemType::F16 } else { ElemType::Bf16 }
    }

    fn spec(&self) -> ExpertsSpec {
        let act = if self.has_biases() { Activation::ClampedSwiglu } else { Activation::Silu };
        ExpertsSpec { per_token: self.per_token, normalizes: self.per_token != 3, act }
    }

    /// As gpt-oss has them.
    fn has_biases(&self) -> bool {
        self.per_token == 4
    }

    /// Of all experts' gate and up, and of down.
    fn biases(&self) -> [Option<Vec<f32>>; 2] {
        [2 * self.inter, self.hidden]
            .map(|rows| self.has_biases().then(|| random(self.num_experts * rows, rows as u64)))
    }

    fn view(&self, shape: [usize; 2], seed: usize) -> TensorView<'static> {
        let [len, seed] = [shape[0] * shape[1], seed];
        if self.dtype == Dtype::F8E4M3 {
            let store = WeightStore::dummy(seed as u64, Dtype::BF16).quantized(Quantization::Fp8);
            let view = store.get("model.layers.0.weight", &shape).unwrap();
            // Dummy weights are small.
            let scales = view.row_scales.iter().flatten().map(|scale| 8.0 * scale).collect();
            let data = view.data.into_owned();
            return TensorView { row_scales: Some(scales), ..TensorView::new(view.dtype, shape.to_vec(), data) };
        }
        let data = if self.dtype.is_quantized() {
            quant::random_blocks(self.dtype, len / self.dtype.block_len(), seed as u64)
        } else {
            quant::encode(self.dtype, &random(len, seed as u64).iter().map(|x| 0.3 * x).collect::<Vec<_>>()).unwrap()
        };
        TensorView::new(self.dtype, shape.to_vec(), data)
    }

    /// Gate over up of each expert, and down.
    fn views(&self) -> [Vec<TensorView<'static>>; 2] {
        let gate_up = (0..2 * self.num_experts).map(|i| self.view([self.inter, self.hidden], 2 * i + 1));
        let down = (0..self.num_experts).map(|i| self.view([self.hidden, self.inter], 2 * i + 2));
        [gate_up.collect(), down.collect()]
    }

    /// As the CPU has what the device has.
    fn matrices(&self) -> [Vec<Matrix>; 2] {
        let asked = if self.dtype.is_quantized() { WeightDtype::Bf16 } else { WeightDtype::Auto };
        let cpu = CpuBackend::new(Some(1));
        let ([gate_up, down], [of_gate_up, of_down]) = (self.views(), self.biases());
        [(gate_up, of_gate_up), (down, of_down)]
            .map(|(views, bias)| cpu.expert_matrices(views, self.num_experts, bias.as_deref(), asked).unwrap())
    }

    /// Inputs and logits of so many tokens.
    fn inputs(&self, num_tokens: usize) -> [Vec<f32>; 2] {
        let logits = random(num_tokens * self.num_experts, 6).into_iter().map(|x| 3.0 * x).collect();
        [round(&random(num_tokens * self.hidden, 5), self.elem()), logits]
    }

    fn expected(&self, num_tokens: usize) -> Vec<f32> {
        let ([x, logits], [gate_up, down]) = (self.inputs(num_tokens), self.matrices());
        let mut out = CpuBuffer::new(num_tokens, self.hidden);
        let (x, logits) = (CpuBuffer::from_vec(x, self.hidden), CpuBuffer::from_vec(logits, self.num_experts));
        reference(&mut out, &x, &logits, [&gate_up, &down], &self.spec());
        out.data().to_vec()
    }
}

/// A layer on a device.
struct Layer {
    shape: Shape,
    device: Arc<dyn Device>,
    space: ExpertsSpace,
    weights: [ExpertMatrices; 2],
}

impl Layer {
    fn new(device: &Arc<dyn Device>, shape: Shape, max_tokens: usize) -> Self {
        let Shape { num_experts, per_token, hidden, inter, .. } = shape;
        let config = ExpertsConfig { num_experts, per_token, intermediate_size: inter, normalizes: true };
        let ([gate_up, down], [of_gate_up, of_down]) = (shape.views(), shape.biases());
        let load = |views, bias: Option<Vec<f32>>| {
            weights::load_experts(device, views, num_experts, bias.as_deref(), shape.elem(), true).unwrap()
        };
        let space = ExpertsSpace::new(device, shape.elem(), hidden, &config, max_tokens).unwrap();
        Self { shape, device: Arc::clone(device), space, weights: [load(gate_up, of_gate_up), load(down, of_down)] }
    }

    fn run(&mut self, [x, logits]: [&[f32]; 2]) -> Vec<f32> {
        let (device, elem, hidden) = (&self.device, self.shape.elem(), self.shape.hidden);
        let mut out = Buffer::new(device, x.len() / hidden, hidden, elem).unwrap();
        let x = on_device::buffer(device, x, hidden, elem);
        let logits = on_device::buffer(device, logits, self.shape.num_experts, ElemType::F32);
        let [gate_up, down] = &self.weights;
        self.space.experts(&mut out, &x, &logits, [gate_up, down], &self.shape.spec()).unwrap();
        out.to_f32().unwrap()
    }
}

#[test]
fn device_equals_reference() {
    for device in devices() {
        // Few tokens are streamed, many take tiles; segments of one half of the columns, and rows that end within a tile.
        for (shape, tokens) in [
            (Shape::new([4, 2, 64, 48], Dtype::BF16), vec![0, 1, 7, 40]),
            (Shape::new([8, 3, 40, 24], Dtype::F16), vec![1, 30]),
            (Shape::new([35, 4, 576, 40], Dtype::BF16), vec![3]),
            (Shape::new([3, 3, 24, 520], Dtype::F16), vec![2, 70]),
            (Shape::new([1, 1, 8, 16], Dtype::BF16), vec![3, 9]),
            (Shape::new([4, 2, 72, 48], Dtype::F8E4M3), vec![5, 40]),
            // As many columns as gpt-oss has, which end within a tile.
            (Shape::new([5, 4, 2880, 32], Dtype::Mxfp4), vec![2, 30]),
            (Shape::new([5, 4, 96, 352], Dtype::Mxfp4), vec![1, 30]),
        ] {
            let tolerance = if shape.elem() == ElemType::F16 { 2e-3 } else { 1.5e-2 };
            let mut layer = Layer::new(&device, shape, *tokens.iter().max().unwrap());
            assert_eq!(layer.weights[0].all.is_fp8(), shape.dtype == Dtype::F8E4M3);
            for num_tokens in tokens {
                let [x, logits] = shape.inputs(num_tokens);
                assert_device_close(&layer.run([&x, &logits]), &shape.expected(num_tokens), tolerance);
            }
        }
    }
}

#[test]
fn blocks_equal_reference() {
    for device in devices() {
        for dtype in BLOCKS {
            let shape = Shape::new([2, 1, 256, 256], dtype);
            let mut layer = Layer::new(&device, shape, 20);
            assert!(layer.weights.iter().all(|weights| weights.all.is_quantized()));
            for num_tokens in [2, 20] {
                let [x, logits] = shape.inputs(num_tokens);
                assert_device_close(&layer.run([&x, &logits]), &shape.expected(num_tokens), 1.5e-2);
            }
        }
    }
}

/// Whichever kernel multiplies.
#[test]
fn a_row_has_its_bits_whatever_is_beside_it() {
    for device in devices() {
        for shape in [
            Shape::new([4, 2, 544, 48], Dtype::BF16),
            Shape::new([4, 2, 40, 24], Dtype::F16),
            Shape::new([3, 2, 64, 520], Dtype::F8E4M3),
            Shape::new([3, 2, 544, 32], Dtype::Q4_0),
            Shape::new([6, 4, 160, 96], Dtype::Mxfp4),
        ] {
            let (mut layer, num_tokens) = (Layer::new(&device, shape, 70), 70);
            let [x, logits] = shape.inputs(num_tokens);
            let together = layer.run([&x, &logits]);
            for (first, count) in [(0, 1), (33, 1), (60, 10)] {
                let rows = |data: &[f32], cols: usize| data[first * cols..(first + count) * cols].to_vec();
                let alone = layer.run([&rows(&x, shape.hidden), &rows(&logits, shape.num_experts)]);
                assert!(alone == rows(&together, shape.hidden), "{shape:?}: {count} rows from {first}");
            }
        }
    }
}

#[test]
fn tokens_take_the_experts_that_they_have_on_the_cpu() {
    for device in devices() {
        for (num_experts, per_token, normalizes) in
            [(1, 1, true), (8, 2, true), (40, 8, false), (512, 32, false), (64, 32, true)]
        {
            let num_tokens = 9;
            let mut logits: Vec<f32> = random(num_tokens * num_experts, 3).into_iter().map(|x| 5.0 * x).collect();
            // Ties, and what is no number.
            logits[..num_experts].iter_mut().for_each(|x| *x = x.round());
            logits[num_experts..num_experts + num_experts / 2].fill(f32::NAN);
            let config = ExpertsConfig { num_experts, per_token, intermediate_size: 8, normalizes };
            let space = ExpertsSpace::new(&device, ElemType::Bf16, 8, &config, num_tokens).unwrap();
            let there = on_device::buffer(&device, &logits, num_experts, ElemType::F32);
            space.route(&there, &ExpertsSpec { per_token, normalizes, act: Activation::Silu }).unwrap();
            let mut bytes = vec![0; num_tokens * per_token * PICK_BYTES];
            space.picks.read(0, &mut bytes).unwrap();
            let pick = |bytes: &[u8; 8]| {
                let [expert, weight] = [0, 4].map(|at| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i])));
                Pick { expert, weight: f32::from_bits(weight) }
            };
            let found: Vec<Pick> = bytes.as_chunks().0.iter().map(pick).collect();
            let mut expected = vec![Pick::default(); num_tokens * per_token];
            for (logits, picks) in logits.chunks(num_experts).zip(expected.chunks_mut(per_token)) {
                route(logits, normalizes, picks);
            }
            let experts = |picks: &[Pick]| picks.iter().map(|pick| pick.expert).collect::<Vec<_>>();
            let weights = |picks: &[Pick]| picks.iter().map(|pick| pick.weight).collect::<Vec<_>>();
            assert_eq!(experts(&found), experts(&expected));
            assert_device_close(&weights(&found), &weights(&expected), 1e-6);
        }
    }
}

#[test]
fn what_cannot_be_on_a_device_is_refused_or_expanded() {
    for device in devices() {
        let shape = Shape::new([2, 1, 32, 24], Dtype::Q8_0);
        // An expert's rows are no whole tiles.
        let [gate_up, mut down] =
            [shape.view([24, 32], 1), shape.view([32, 32], 2)].map(|view| vec![view.clone(), view]);
        let load = |views| weights::load_experts(&device, views, 2, None, ElemType::Bf16, true);
        assert!(!load(gate_up).unwrap().all.is_quantized());
        assert!(load(down.clone()).unwrap().all.is_quantized());
        // Nor are all of one format.
        down[1] = Shape { dtype: Dtype::Q4_0, ..shape }.view([32, 32], 3);
        assert!(!load(down.clone()).unwrap().all.is_quantized());
        down[1].column_order = Some((0..32).rev().collect());
        let error = load(down).err().unwrap().to_string();
        assert!(error.contains("act-order"), "{error}");
    }
}
