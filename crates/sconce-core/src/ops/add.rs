//! `add`: out += x, element by element. Bounded by memory: 12 bytes an element.

use crate::backend::cpu::{Buffer, Cpu, SharedSlice, multiversion};
use crate::backend::cuda::device::{Args, Device, Dims, ElemType};
use crate::backend::cuda::storage::Buffer as CudaBuffer;
use crate::error::Result;

/// out[t, i] += x[t, i]; both [rows, cols], f32.
pub fn reference(out: &mut Buffer, x: &Buffer) {
    assert_eq!((out.rows(), out.cols()), (x.rows(), x.cols()), "invariant: equal shapes");
    out.data_mut().iter_mut().zip(x.data()).for_each(|(o, x)| *o += x);
}

/// Rows that one task adds: a decode step of a few sequences wakes nobody.
const TASK_ROWS: usize = 8;

/// The same, rows over the threads.
pub(crate) fn cpu(cpu: &mut Cpu, out: &mut Buffer, x: &Buffer) {
    let (rows, cols, isa) = (x.rows(), x.cols(), cpu.isa);
    assert_eq!((out.rows(), out.cols()), (rows, cols), "invariant: equal shapes");
    let out = SharedSlice::new(out.data_mut());
    cpu.pool.run(rows.div_ceil(TASK_ROWS), &|task| {
        let (start, end) = (task * TASK_ROWS * cols, rows.min((task + 1) * TASK_ROWS) * cols);
        // SAFETY: each task has rows of its own.
        add_slice(isa, unsafe { out.range(start, end - start) }, &x.data()[start..end]);
    });
}

multiversion! {
    fn add_slice(out: &mut [f32], x: &[f32]) = add_slice_body
}

#[inline(always)]
fn add_slice_body<const FMA: bool>(out: &mut [f32], x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += x;
    }
}

/// `kernels/add.cu`. `out` is f32 or of the type of `x`, which has 16 bits.
pub(crate) fn cuda(device: &dyn Device, out: &mut CudaBuffer, x: &CudaBuffer) -> Result<()> {
    assert_eq!((out.rows(), out.cols()), (x.rows(), x.cols()), "invariant: equal shapes");
    let kernel = if out.elem() == ElemType::F32 {
        x.elem().kernel("add_to_f32_bf16", "add_to_f32_f16")
    } else {
        assert_eq!(out.elem(), x.elem(), "invariant: equal types");
        x.elem().kernel("add_bf16", "add_f16")
    };
    let len = x.rows() * x.cols();
    let args = Args::new().with(out.ptr()).with(x.ptr()).with(len as u64);
    // SAFETY: the shapes are equal.
    unsafe { device.launch(kernel, &Dims::over(len.div_ceil(8)), &args) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Isa;
    use crate::ops::testing::{assert_device_close, devices, on_device, random, round};

    #[test]
    fn device_equals_reference() {
        for device in devices() {
            for (elem, tolerance) in [(ElemType::Bf16, 4e-3), (ElemType::F16, 5e-4)] {
                for (out_elem, tolerance) in [(ElemType::F32, 0.0), (elem, tolerance)] {
                    for (rows, cols) in [(0, 8), (1, 1), (3, 17), (5, 576), (2, 2560)] {
                        let (out, x) = (random(rows * cols, 1), random(rows * cols, 2));
                        let (out, x) = (round(&out, out_elem), round(&x, elem));
                        let mut expected = Buffer::from_vec(out.clone(), cols);
                        reference(&mut expected, &Buffer::from_vec(x.clone(), cols));
                        let mut found = on_device::buffer(&device, &out, cols, out_elem);
                        cuda(&*device, &mut found, &on_device::buffer(&device, &x, cols, elem)).unwrap();
                        assert_device_close(&found.to_f32().unwrap(), expected.data(), tolerance);
                    }
                }
            }
        }
    }

    #[test]
    fn kernel_equals_reference() {
        for isa in Isa::available() {
            for num_threads in [1, 2, 5] {
                let mut context = Cpu::new(num_threads, isa);
                for (rows, cols) in [(0, 8), (1, 1), (3, 17), (8, 64), (41, 576)] {
                    let x = Buffer::from_vec(random(rows * cols, 1), cols);
                    let mut expected = Buffer::from_vec(random(rows * cols, 2), cols);
                    let mut found = Buffer::from_vec(expected.data().to_vec(), cols);
                    reference(&mut expected, &x);
                    cpu(&mut context, &mut found, &x);
                    assert_eq!(found.data(), expected.data());
                }
            }
        }
    }
}
