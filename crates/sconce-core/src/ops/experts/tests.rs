//! Routing by hand, and the CPU's kernels against the reference for every type of weights.

use super::*;
use crate::backend::cpu::{Arena, Cpu, Isa, ThreadPool};
use crate::config::{Activation, MatmulPrecision, WeightDtype};
use crate::ops::testing::{assert_close, random};
use crate::weights::{Dtype, TensorView, quant};

const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];
const BLOCKS: [Dtype; 13] = [
    Dtype::Q4_0,
    Dtype::Q4_1,
    Dtype::Q5_0,
    Dtype::Q5_1,
    Dtype::Q8_0,
    Dtype::Q2K,
    Dtype::Q3K,
    Dtype::Q4K,
    Dtype::Q5K,
    Dtype::Q6K,
    Dtype::Int4G32,
    Dtype::Int4G128,
    Dtype::Mxfp4,
];

fn routed(logits: &[f32], per_token: usize, normalizes: bool) -> Vec<Pick> {
    let mut picks = vec![Pick::default(); per_token];
    route(logits, normalizes, &mut picks);
    picks
}

fn experts_of(picks: &[Pick]) -> Vec<u32> {
    picks.iter().map(|pick| pick.expert).collect()
}

#[test]
fn the_greatest_logits_choose() {
    assert_eq!(experts_of(&routed(&[0.0, 3.0, -1.0, 2.0], 3, true)), [1, 3, 0]);
    // Of equals the first; NaN is the least, and each is chosen once.
    assert_eq!(experts_of(&routed(&[1.0, 2.0, 2.0, 1.0, 2.0], 4, true)), [1, 2, 4, 0]);
    assert_eq!(experts_of(&routed(&[f32::NAN, 1.0, f32::NAN, -1.0], 4, false)), [1, 3, 0, 2]);
    assert_eq!(experts_of(&routed(&[-0.0, 0.0], 2, true)), [0, 1]);
}

#[test]
fn weights_are_shares_of_the_chosen_or_of_all() {
    let logits = [0.5f32, 2.0, -1.0, 1.5];
    let exps = logits.map(f32::exp);
    let weights = |normalizes| -> Vec<f32> { routed(&logits, 2, normalizes).iter().map(|pick| pick.weight).collect() };
    let of = |sum: f32| [exps[1] / sum, exps[3] / sum];
    assert_close(&weights(true), &of(exps[1] + exps[3]), 1e-6);
    assert_close(&weights(false), &of(exps.iter().sum()), 1e-6);
    // Logits beyond the range of exponentials.
    let huge = routed(&[1000.0, 1000.0, -1000.0], 2, false);
    assert_close(&[huge[0].weight, huge[1].weight], &[0.5, 0.5], 1e-6);
}

/// A layer of experts.
struct Layer {
    gate_up: Vec<Matrix>,
    down: Vec<Matrix>,
}

impl Layer {
    /// [inter, hidden] of gate and of up in parts of their own.
    fn new(isa: Isa, num_experts: usize, [hidden, inter]: [usize; 2], dtype: Dtype) -> Self {
        let memory = &mut (ThreadPool::new(2), Arena::default());
        let mut part = |[rows, cols]: [usize; 2], seed: usize| {
            let data = if dtype.is_quantized() {
                quant::random_blocks(dtype, rows * cols / dtype.block_len(), seed as u64)
            } else {
                quant::encode(dtype, &random(rows * cols, seed as u64)).unwrap()
            };
            let view = TensorView::new(dtype, vec![rows, cols], data);
            linear::load_part((&mut memory.0, &mut memory.1), isa, view, WeightDtype::Auto).unwrap()
        };
        let mut matrix = |shape: [usize; 2], seeds: &[usize]| {
            let parts = seeds.iter().map(|&seed| part(shape, seed)).collect();
            // Of floats none has a bias.
            let bias = dtype.is_quantized().then(|| random(seeds.len() * shape[0], seeds[0] as u64 + 50).into());
            Matrix { parts, cols: shape[1], bias, column_order: None }
        };
        Self {
            gate_up: (0..num_experts).map(|e| matrix([inter, hidden], &[3 * e + 1, 3 * e + 2])).collect(),
            down: (0..num_experts).map(|e| matrix([hidden, inter], &[3 * e + 3])).collect(),
        }
    }

    fn weights(&self) -> [&[Matrix]; 2] {
        [&self.gate_up, &self.down]
    }

    fn hidden(&self) -> usize {
        self.gate_up[0].cols
    }

    /// Inputs and logits of so many tokens.
    fn inputs(&self, num_tokens: usize) -> [Buffer; 2] {
        let (hidden, num_experts) = (self.hidden(), self.down.len());
        let logits = random(num_tokens * num_experts, 8).into_iter().map(|x| 3.0 * x).collect();
        [Buffer::from_vec(random(num_tokens * hidden, 7), hidden), Buffer::from_vec(logits, num_experts)]
    }

    fn run(&self, context: &mut Cpu, [x, logits]: &[Buffer; 2], spec: &ExpertsSpec) -> Vec<f32> {
        let mut out = Buffer::new(x.rows(), self.hidden());
        cpu(context, &mut out, x, logits, self.weights(), spec);
        out.data().to_vec()
    }

    fn check(&self, context: &mut Cpu, num_tokens: usize, spec: &ExpertsSpec, tolerance: f32) {
        let inputs = self.inputs(num_tokens);
        let mut expected = Buffer::new(num_tokens, self.hidden());
        reference(&mut expected, &inputs[0], &inputs[1], self.weights(), spec);
        assert_close(&self.run(context, &inputs, spec), expected.data(), tolerance);
    }
}

fn spec(per_token: usize, normalizes: bool) -> ExpertsSpec {
    ExpertsSpec { per_token, normalizes, act: Activation::Silu }
}

#[test]
fn kernels_equal_the_reference() {
    for isa in Isa::available() {
        // In halves of whole panels and others; one expert, and all of them.
        for (num_experts, per_token, shape) in [(4, 2, [24, 20]), (6, 3, [40, 64]), (1, 1, [8, 32]), (3, 3, [33, 33])] {
            for dtype in FLOATS {
                let layer = Layer::new(isa, num_experts, shape, dtype);
                for num_tokens in [0, 1, 2, 19] {
                    let spec = spec(per_token, num_tokens % 2 == 0);
                    layer.check(&mut Cpu::new(2, isa), num_tokens, &spec, 2e-5);
                }
            }
        }
    }
}

#[test]
fn kernels_of_blocks_equal_the_reference() {
    for isa in Isa::available() {
        for dtype in BLOCKS {
            let layer = Layer::new(isa, 3, [256, 256], dtype);
            let mut context = Cpu { precision: MatmulPrecision::Exact, ..Cpu::new(2, isa) };
            for act in [Activation::GeluTanh, Activation::ClampedSwiglu] {
                layer.check(&mut context, 9, &ExpertsSpec { act, ..spec(2, true) }, 2e-4);
            }
        }
    }
}

#[test]
fn a_row_has_its_bits_whatever_is_beside_it() {
    for isa in Isa::available() {
        for (dtype, shape) in
            [(Dtype::F32, [24, 20]), (Dtype::BF16, [40, 64]), (Dtype::Q4_0, [64, 96]), (Dtype::Q4K, [256, 256])]
        {
            let (layer, spec) = (Layer::new(isa, 5, shape, dtype), spec(2, false));
            for precision in [MatmulPrecision::Exact, MatmulPrecision::Mixed, MatmulPrecision::Fast] {
                let [x, logits] = layer.inputs(23);
                let context = |threads| Cpu { precision, ..Cpu::new(threads, isa) };
                let together = layer.run(&mut context(3), &[x, logits], &spec);
                let [x, logits] = layer.inputs(23);
                let mut alone = context(1);
                for t in 0..23 {
                    let row = |of: &Buffer| Buffer::from_vec(of.row(t).to_vec(), of.cols());
                    let found = layer.run(&mut alone, &[row(&x), row(&logits)], &spec);
                    assert_eq!(
                        found,
                        together[t * shape[0]..(t + 1) * shape[0]],
                        "{isa:?} {dtype} {precision:?} row {t}"
                    );
                }
            }
        }
    }
}

#[test]
fn inputs_follow_the_order_of_each_experts_columns() {
    let isa = Isa::detect();
    for num_experts in [1, 4] {
        let mut layer = Layer::new(isa, num_experts, [32, 64], Dtype::Q8_0);
        for (e, [gate_up, down]) in layer.gate_up.iter_mut().zip(&mut layer.down).map(|(a, b)| [a, b]).enumerate() {
            let order = |cols: usize| (0..cols as u32).map(|i| (i * 5 + e as u32) % cols as u32).collect();
            // Of some matrices.
            gate_up.column_order = (e != 1).then(|| order(32));
            down.column_order = (e != 2).then(|| order(64));
        }
        layer.check(&mut Cpu { precision: MatmulPrecision::Exact, ..Cpu::new(2, isa) }, 12, &spec(1, true), 2e-4);
    }
}
