//! `gated_linear`: out = act(gate) * up, where rows of x . W^T + bias hold gate, then up: [`linear`] and [`gate_act_mul`] in one.
//!
//! On the CPU a task computes some columns of gate and the same ones of up, and multiplies them while the caches have them: memory
//! sees half as many stores, and no loads. The bits are those of the two operations. On a GPU one launch does both where tokens
//! are few, and on Hopper of most shapes ([`linear::cuda::gated`]).

use std::cell::RefCell;
use std::ops::Range;

use super::gate_act_mul::{self, Columns};
use super::linear::{self, Inputs, PAIR, Place};
use crate::backend::cpu::{Buffer, Cpu, Matrix, SharedSlice};
use crate::config::Activation;

/// Bytes of gate and up that a task has at once, where a pair of panels of all tokens is not more: they stay in the second cache,
/// beside inputs and weights.
const SCRATCH_BYTES: usize = 128 << 10;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = RefCell::default();
}

/// `x`: [n, cols]; `weight`: [2 * inter, cols]; `out`: [n, inter].
pub fn reference(out: &mut Buffer, x: &Buffer, weight: &Matrix, act: Activation) {
    let mut gate_up = Buffer::new(x.rows(), weight.rows());
    linear::reference(&mut gate_up, x, weight);
    gate_act_mul::reference(out, &gate_up, act);
}

/// The same with the CPU's kernels. `gate_up`: room for [n, 2 * inter], used where rows of gate and up do not fill pairs of panels.
pub(crate) fn cpu(cpu: &mut Cpu, out: &mut Buffer, gate_up: &mut Buffer, x: &Buffer, weight: &Matrix, act: Activation) {
    let (num_tokens, inter) = (x.rows(), out.cols());
    assert_eq!((x.cols(), 2 * inter), (weight.cols, weight.rows()), "invariant: shapes fit");
    if !has_whole_pairs(weight) {
        linear::cpu(cpu, gate_up, x, weight);
        return gate_act_mul::cpu(cpu, out, gate_up, act);
    }
    out.set_rows(num_tokens);
    let (pool, inputs) = Inputs::of(cpu, x, std::slice::from_ref(weight), weight.column_order.as_deref());
    let place = Place { out: SharedSlice::new(out.data_mut()), cols: inter, first_row: 0, first: 0 };
    linear::for_shares(pool, inter / PAIR, &|pairs| {
        multiply(&inputs, weight, act, pairs, 0..num_tokens, place);
    });
}

/// Whether gate and up are whole pairs of panels each, which [`multiply`] takes.
pub(super) fn has_whole_pairs(weight: &Matrix) -> bool {
    (weight.rows() / 2).is_multiple_of(PAIR) && weight.parts.iter().all(|part| part.rows.is_multiple_of(PAIR))
}

/// What some pairs of gate's panels, and the same of up's, give of some tokens: one task's share.
pub(super) fn multiply(
    inputs: &Inputs<'_>,
    weight: &Matrix,
    act: Activation,
    pairs: Range<usize>,
    tokens: Range<usize>,
    place: Place<'_>,
) {
    let inter = weight.rows() / 2;
    let num_pairs = inter / PAIR;
    let most = (SCRATCH_BYTES / (8 * PAIR * tokens.len()).max(1)).max(1);
    SCRATCH.with_borrow_mut(|scratch| {
        for first in pairs.clone().step_by(most) {
            let end = pairs.end.min(first + most);
            let cols = (end - first) * PAIR;
            let len = tokens.len() * 2 * cols;
            scratch.resize(len.max(scratch.len()), 0.0);
            let scratch = &mut scratch[..len];
            let gate_up = SharedSlice::new(&mut *scratch);
            for half in 0..2 {
                let first_row = half * inter + first * PAIR;
                let place = Place { out: gate_up, cols: 2 * cols, first_row, first: half * cols };
                inputs.multiply(weight, half * num_pairs + first..half * num_pairs + end, tokens.clone(), place);
            }
            let first = place.first + first * PAIR;
            let columns = Columns { out: place.out, out_cols: place.cols, first, count: cols };
            gate_act_mul::columns(inputs.isa(), columns, scratch, act);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Isa;
    use crate::ops::testing::{assert_close, float_matrix, random};
    use crate::weights::Dtype;

    /// Gate over up in one part, in two, and in parts that end elsewhere.
    fn matrices(inter: usize, cols: usize) -> Vec<Matrix> {
        let data = random(2 * inter * cols, 4);
        let of = |rows: &[usize], dtype: Dtype| {
            let mut begin = 0;
            let mut matrix =
                Matrix { parts: Vec::new(), cols, bias: Some(random(2 * inter, 5).into()), column_order: None };
            for rows in rows {
                let part = &data[begin * cols..(begin + rows) * cols];
                matrix.parts.append(&mut float_matrix(dtype, part, cols).parts);
                begin += rows;
            }
            matrix
        };
        let mut scaled = of(&[inter, inter], Dtype::BF16);
        scaled.parts[1].row_scales = Some(random(inter, 6).into());
        let most = inter + inter / 2;
        vec![of(&[2 * inter], Dtype::F32), scaled, of(&[most, 2 * inter - most], Dtype::F16)]
    }

    #[test]
    fn kernel_equals_reference_and_the_two_operations() {
        for isa in Isa::available() {
            for act in [Activation::Silu, Activation::GeluTanh, Activation::ClampedSwiglu] {
                for (rows, inter, cols) in [(0, 32, 8), (1, 64, 33), (3, 20, 16), (5, 33, 8), (700, 192, 24)] {
                    for weight in matrices(inter, cols) {
                        let x = Buffer::from_vec(random(rows * cols, 9), cols);
                        let [mut expected, mut found, mut apart] = [(); 3].map(|()| Buffer::new(rows, inter));
                        let mut gate_up = Buffer::new(rows, 2 * inter);
                        reference(&mut expected, &x, &weight, act);
                        let context = &mut Cpu::new(2, isa);
                        cpu(context, &mut found, &mut gate_up, &x, &weight, act);
                        assert_close(found.data(), expected.data(), 2e-5);
                        linear::cpu(context, &mut gate_up, &x, &weight);
                        gate_act_mul::cpu(context, &mut apart, &gate_up, act);
                        assert_eq!(found.data(), apart.data(), "{isa:?}, {rows} x {inter} x {cols}");
                    }
                }
            }
        }
    }
}
