//! `activate`: x = act(x), in place: the middle of an MLP without a gate (Phi-2).

use super::gate_act_mul::{self, activation};
use crate::backend::cpu::{Buffer, Cpu, SharedSlice};
use crate::config::Activation;

/// In f64.
pub fn reference(x: &mut Buffer, act: Activation) {
    x.data_mut().iter_mut().for_each(|x| *x = activation(act, f64::from(*x)) as f32);
}

/// The same in f32, row by row over the threads.
pub(crate) fn cpu(cpu: &mut Cpu, x: &mut Buffer, act: Activation) {
    let (rows, cols, isa) = (x.rows(), x.cols(), cpu.isa);
    let shared = SharedSlice::new(x.data_mut());
    cpu.pool.run(rows, &|t| {
        // SAFETY: task t alone touches row t.
        gate_act_mul::activate_row(isa, unsafe { shared.range(t * cols, cols) }, act);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Isa;
    use crate::ops::testing::{assert_close, random};

    #[test]
    fn kernel_equals_reference() {
        for isa in Isa::available() {
            for act in [Activation::Silu, Activation::GeluTanh] {
                let data: Vec<f32> = random(3 * 77, 1).iter().map(|x| x * 30.0).collect();
                let (mut expected, mut found) = (Buffer::from_vec(data.clone(), 77), Buffer::from_vec(data, 77));
                reference(&mut expected, act);
                cpu(&mut Cpu::new(2, isa), &mut found, act);
                assert_close(found.data(), expected.data(), 1e-6);
            }
        }
    }
}
