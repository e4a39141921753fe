//! `softcap`: x = cap * tanh(x / cap), in place (Gemma 2's logits). Bounded by the hyperbolic tangents.

use super::simd;
use crate::backend::cpu::{Buffer, Cpu, SharedSlice, multiversion};
use crate::backend::cuda::device::{Args, Device, Dims, ElemType};
use crate::backend::cuda::storage::Buffer as CudaBuffer;
use crate::error::Result;

/// Elements a task.
const CHUNK: usize = 4096;

/// In f64 with the standard library's tangent.
pub fn reference(x: &mut Buffer, cap: f32) {
    let cap = f64::from(cap);
    x.data_mut().iter_mut().for_each(|x| *x = (cap * (f64::from(*x) / cap).tanh()) as f32);
}

/// The same in f32 over the threads.
pub(crate) fn cpu(cpu: &mut Cpu, x: &mut Buffer, cap: f32) {
    let isa = cpu.isa;
    let data = x.data_mut();
    let len = data.len();
    let shared = SharedSlice::new(data);
    cpu.pool.run(len.div_ceil(CHUNK), &|task| {
        // SAFETY: tasks have disjoint chunks.
        let chunk = unsafe { shared.range(task * CHUNK, CHUNK.min(len - task * CHUNK)) };
        cap_slice(isa, chunk, cap);
    });
}

multiversion! {
    fn cap_slice(x: &mut [f32], cap: f32) = cap_slice_body
}

#[inline(always)]
fn cap_slice_body<const FMA: bool>(x: &mut [f32], cap: f32) {
    for x in x {
        *x = cap * simd::tanh::<FMA>(*x / cap);
    }
}

/// `kernels/softcap.cu`. Logits are f32.
pub(crate) fn cuda(device: &dyn Device, x: &mut CudaBuffer, cap: f32) -> Result<()> {
    assert_eq!(x.elem(), ElemType::F32, "invariant: logits are f32");
    let len = x.rows() * x.cols();
    let args = Args::new().with(x.ptr()).with(len as u64).with(cap);
    // SAFETY: the length is that of the rows in use.
    unsafe { device.launch("softcap_f32", &Dims::over(len.div_ceil(4)), &args) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Isa;
    use crate::ops::testing::{assert_close, assert_device_close, devices, on_device, random};

    #[test]
    fn device_equals_reference() {
        for device in devices() {
            for (rows, cols) in [(0, 5), (1, 1), (3, 5001)] {
                let data: Vec<f32> = random(rows * cols, 1).iter().map(|x| x * x * x * 200.0).collect();
                let mut expected = Buffer::from_vec(data.clone(), cols);
                reference(&mut expected, 30.0);
                let mut found = on_device::buffer(&device, &data, cols, ElemType::F32);
                cuda(&*device, &mut found, 30.0).unwrap();
                assert_device_close(&found.to_f32().unwrap(), expected.data(), 1e-6);
            }
        }
    }

    #[test]
    fn kernel_equals_reference() {
        for isa in Isa::available() {
            for (rows, cols) in [(0, 5), (1, 1), (3, 5000)] {
                let data: Vec<f32> = random(rows * cols, 1).iter().map(|x| x * x * x * 200.0).collect();
                let (mut expected, mut found) = (Buffer::from_vec(data.clone(), cols), Buffer::from_vec(data, cols));
                reference(&mut expected, 30.0);
                cpu(&mut Cpu::new(2, isa), &mut found, 30.0);
                assert_close(found.data(), expected.data(), 1e-6);
            }
        }
    }
}
