//! `activate`: x = act(x), in place: the middle of an MLP without a gate (Phi-2).

use super::gate_act_mul::{self, activation, activation_kind};
use crate::backend::cpu::{Buffer, Cpu, SharedSlice};
use crate::backend::cuda::device::{Args, Device, Dims};
use crate::backend::cuda::storage::Buffer as CudaBuffer;
use crate::config::Activation;
use crate::error::Result;

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

/// `kernels/activate.cu`. `x` has 16 bits.
pub(crate) fn cuda(device: &dyn Device, x: &mut CudaBuffer, act: Activation) -> Result<()> {
    let len = x.rows() * x.cols();
    let args = Args::new().with(x.ptr()).with(len as u64).with(activation_kind(act));
    // SAFETY: the length is that of the rows in use.
    unsafe { device.launch(x.elem().kernel("activate_bf16", "activate_f16"), &Dims::over(len.div_ceil(8)), &args) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Isa;
    use crate::backend::cuda::device::ElemType;
    use crate::ops::testing::{assert_close, assert_device_close, devices, on_device, random, round};

    #[test]
    fn device_equals_reference() {
        for device in devices() {
            for (elem, tolerance) in [(ElemType::Bf16, 4e-3), (ElemType::F16, 5e-4)] {
                for act in [Activation::Silu, Activation::GeluTanh, Activation::ClampedSwiglu] {
                    for (rows, cols) in [(0, 8), (1, 1), (3, 77), (2, 2560)] {
                        let data: Vec<f32> = random(rows * cols, 1).iter().map(|x| x * 30.0).collect();
                        let data = round(&data, elem);
                        let mut expected = Buffer::from_vec(data.clone(), cols);
                        reference(&mut expected, act);
                        let mut found = on_device::buffer(&device, &data, cols, elem);
                        cuda(&*device, &mut found, act).unwrap();
                        assert_device_close(&found.to_f32().unwrap(), expected.data(), tolerance);
                    }
                }
            }
        }
    }

    #[test]
    fn kernel_equals_reference() {
        for isa in Isa::available() {
            for act in [Activation::Silu, Activation::GeluTanh, Activation::ClampedSwiglu] {
                let data: Vec<f32> = random(3 * 77, 1).iter().map(|x| x * 30.0).collect();
                let (mut expected, mut found) = (Buffer::from_vec(data.clone(), 77), Buffer::from_vec(data, 77));
                reference(&mut expected, act);
                cpu(&mut Cpu::new(2, isa), &mut found, act);
                assert_close(found.data(), expected.data(), 1e-6);
            }
        }
    }
}
