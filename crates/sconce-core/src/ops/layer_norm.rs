//! `layer_norm`: out = (x - mean) / sqrt(variance + eps) * weight + bias, row by row (Ba et al. 2016).
//!
//! Bounded by memory: x is read three times, from the nearest cache after the first.

use super::simd;
use crate::backend::cpu::{Buffer, Cpu, SharedSlice, multiversion};
use crate::backend::cuda::device::{Args, Device, Dims, ElemType};
use crate::backend::cuda::storage::{Buffer as CudaBuffer, Vector};
use crate::error::Result;

/// `x`, `out`: [rows, cols]; `weight`, `bias`: [cols]. Sums are taken in f64.
pub fn reference(out: &mut Buffer, x: &Buffer, weight: &[f32], bias: &[f32], eps: f32) {
    let cols = x.cols();
    assert_eq!((out.cols(), weight.len(), bias.len()), (cols, cols, cols), "invariant: equal widths");
    out.set_rows(x.rows());
    for (out, x) in out.data_mut().chunks_exact_mut(cols).zip(x.data().chunks_exact(cols)) {
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / cols as f64;
        let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / cols as f64;
        let scale = 1.0 / (variance + f64::from(eps)).sqrt();
        for (i, out) in out.iter_mut().enumerate() {
            *out = ((f64::from(x[i]) - mean) * scale) as f32 * weight[i] + bias[i];
        }
    }
}

/// Rows that one task computes: a decode step of a few sequences wakes nobody.
const TASK_ROWS: usize = 8;

/// The same with f32 sums in 16 lanes, rows over the threads.
pub(crate) fn cpu(cpu: &mut Cpu, out: &mut Buffer, x: &Buffer, weight: &[f32], bias: &[f32], eps: f32) {
    let cols = x.cols();
    assert_eq!((out.cols(), weight.len(), bias.len()), (cols, cols, cols), "invariant: equal widths");
    out.set_rows(x.rows());
    let (isa, out) = (cpu.isa, SharedSlice::new(out.data_mut()));
    cpu.pool.run(x.rows().div_ceil(TASK_ROWS), &|task| {
        for t in task * TASK_ROWS..x.rows().min((task + 1) * TASK_ROWS) {
            // SAFETY: each task has rows of its own.
            norm_row(isa, unsafe { out.range(t * cols, cols) }, x.row(t), weight, bias, eps);
        }
    });
}

multiversion! {
    fn norm_row(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) = norm_row_body
}

#[inline(always)]
fn norm_row_body<const FMA: bool>(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
    let len = x.len() as f32;
    let mean = simd::sum(x) / len;
    for (out, x) in out.iter_mut().zip(x) {
        *out = x - mean;
    }
    let scale = 1.0 / (simd::dot::<FMA>(out, out) / len + eps).sqrt();
    for ((out, &weight), &bias) in out.iter_mut().zip(weight).zip(bias) {
        *out = simd::mul_add::<FMA>(*out * scale, weight, bias);
    }
}

/// `kernels/layer_norm.cu`. `x` is f32, `out` of 16 bits.
pub(crate) fn cuda(
    device: &dyn Device,
    out: &mut CudaBuffer,
    x: &CudaBuffer,
    weight: &Vector,
    bias: &Vector,
    eps: f32,
) -> Result<()> {
    let cols = x.cols();
    assert_eq!((out.cols(), weight.len, bias.len), (cols, cols, cols), "invariant: equal widths");
    assert_eq!(x.elem(), ElemType::F32, "invariant: the residual stream is f32");
    out.set_rows(x.rows());
    let args = Args::new().with(out.ptr()).with(x.ptr()).with(weight.memory.ptr()).with(bias.memory.ptr());
    let args = args.with(cols).with(eps);
    let dims = Dims::linear(x.rows(), cols.div_ceil(4).next_multiple_of(32).min(1024));
    // SAFETY: the shapes were compared.
    unsafe { device.launch(out.elem().kernel("layer_norm_bf16", "layer_norm_f16"), &dims, &args) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Isa;
    use crate::ops::testing::{assert_close, assert_device_close, devices, on_device, random};

    #[test]
    fn device_equals_reference() {
        for device in devices() {
            for (elem, tolerance) in [(ElemType::Bf16, 4e-3), (ElemType::F16, 5e-4)] {
                // The last is wider than what threads keep in registers.
                for (rows, cols) in [(0, 8), (1, 1), (3, 17), (5, 576), (2, 2560), (1, 16500)] {
                    let x: Vec<f32> = random(rows * cols, 1).iter().map(|x| x + 3.0).collect();
                    let (weight, bias) = (random(cols, 2), random(cols, 3));
                    let mut expected = Buffer::new(rows, cols);
                    reference(&mut expected, &Buffer::from_vec(x.clone(), cols), &weight, &bias, 1e-5);
                    let x = on_device::buffer(&device, &x, cols, ElemType::F32);
                    let [weight, bias] = [weight, bias].map(|v| on_device::vector(&device, &v));
                    let mut found = CudaBuffer::new(&device, rows, cols, elem).unwrap();
                    cuda(&*device, &mut found, &x, &weight, &bias, 1e-5).unwrap();
                    assert_device_close(&found.to_f32().unwrap(), expected.data(), tolerance);
                }
            }
        }
    }

    #[test]
    fn kernel_equals_reference() {
        for isa in Isa::available() {
            for (rows, cols) in [(0, 8), (1, 1), (3, 17), (41, 576), (2, 2560)] {
                let x = Buffer::from_vec(random(rows * cols, 1).iter().map(|x| x + 3.0).collect(), cols);
                let (weight, bias) = (random(cols, 2), random(cols, 3));
                let mut expected = Buffer::new(rows, cols);
                reference(&mut expected, &x, &weight, &bias, 1e-5);
                let [one, two, five] = [1, 2, 5].map(|num_threads| {
                    let mut found = Buffer::new(rows, cols);
                    cpu(&mut Cpu::new(num_threads, isa), &mut found, &x, &weight, &bias, 1e-5);
                    found
                });
                assert_close(one.data(), expected.data(), 1e-5);
                // Threads change no bit.
                assert_eq!(two.data(), one.data());
                assert_eq!(five.data(), one.data());
            }
        }
    }
}
