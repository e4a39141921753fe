//! `rms_norm`: out = x / sqrt(mean(x^2) + eps) * weight, row by row (Zhang and Sennrich 2019; LlamaRMSNorm).
//!
//! Bounded by memory: x is read twice, from the nearest cache the second time.

use super::simd;
use crate::backend::cpu::{Buffer, Cpu, SharedSlice, multiversion};
use crate::backend::cuda::device::{Args, Device, Dims, ElemType};
use crate::backend::cuda::storage::{Buffer as CudaBuffer, Vector};
use crate::error::Result;

/// `x`, `out`: [rows, cols]; `weight`: [cols]. The sum is taken in f64.
pub fn reference(out: &mut Buffer, x: &Buffer, weight: &[f32], eps: f32) {
    assert_eq!((out.cols(), weight.len()), (x.cols(), x.cols()), "invariant: equal widths");
    out.set_rows(x.rows());
    for (out, x) in out.data_mut().chunks_exact_mut(weight.len()).zip(x.data().chunks_exact(weight.len())) {
        let sum = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
        let scale = 1.0 / (sum / x.len() as f64 + f64::from(eps)).sqrt();
        out.iter_mut().zip(x).zip(weight).for_each(|((o, &x), &w)| *o = (f64::from(x) * scale) as f32 * w);
    }
}

/// Threads of a block at most, as the kernel has them.
const MAX_THREADS: usize = 896;
/// Rows that one task computes: a decode step of a few sequences wakes nobody.
const TASK_ROWS: usize = 8;

/// The same with f32 sums in 16 lanes, rows over the threads.
pub(crate) fn cpu(cpu: &mut Cpu, out: &mut Buffer, x: &Buffer, weight: &[f32], eps: f32) {
    let cols = x.cols();
    assert_eq!((out.cols(), weight.len()), (cols, cols), "invariant: equal widths");
    out.set_rows(x.rows());
    let (isa, out) = (cpu.isa, SharedSlice::new(out.data_mut()));
    cpu.pool.run(x.rows().div_ceil(TASK_ROWS), &|task| {
        for t in task * TASK_ROWS..x.rows().min((task + 1) * TASK_ROWS) {
            // SAFETY: each task has rows of its own.
            norm_row(isa, unsafe { out.range(t * cols, cols) }, x.row(t), weight, eps);
        }
    });
}

/// residual += delta, then the same of it.
pub(crate) fn add_cpu(
    cpu: &mut Cpu,
    out: &mut Buffer,
    residual: &mut Buffer,
    delta: &Buffer,
    weight: &[f32],
    eps: f32,
) {
    let (rows, cols, isa) = (residual.rows(), residual.cols(), cpu.isa);
    assert_eq!((delta.rows(), delta.cols()), (rows, cols), "invariant: equal shapes");
    assert_eq!((out.cols(), weight.len()), (cols, cols), "invariant: equal widths");
    out.set_rows(rows);
    let (out, residual) = (SharedSlice::new(out.data_mut()), SharedSlice::new(residual.data_mut()));
    cpu.pool.run(rows.div_ceil(TASK_ROWS), &|task| {
        for t in task * TASK_ROWS..rows.min((task + 1) * TASK_ROWS) {
            // SAFETY: each task has rows of its own.
            let (out, x) = unsafe { (out.range(t * cols, cols), residual.range(t * cols, cols)) };
            x.iter_mut().zip(delta.row(t)).for_each(|(x, delta)| *x += delta);
            norm_row(isa, out, x, weight, eps);
        }
    });
}

multiversion! {
    fn norm_row(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) = norm_row_body
}

#[inline(always)]
fn norm_row_body<const FMA: bool>(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let scale = 1.0 / (simd::dot::<FMA>(x, x) / x.len() as f32 + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

/// `kernels/rms_norm.cu`. `out` has 16 bits; `x` is f32 or of the same type.
pub(crate) fn cuda(device: &dyn Device, out: &mut CudaBuffer, x: &CudaBuffer, weight: &Vector, eps: f32) -> Result<()> {
    check(out, x, weight);
    let args = Args::new().with(out.ptr()).with(x.ptr()).with(weight.memory.ptr()).with(x.cols()).with(eps);
    let args = args.with(u32::from(device.lets_next(x.rows())));
    let kernel = if x.elem() == ElemType::F32 {
        out.elem().kernel("rms_norm_bf16", "rms_norm_f16")
    } else {
        assert_eq!(x.elem(), out.elem(), "invariant: equal types");
        out.elem().kernel("rms_norm_of_bf16", "rms_norm_of_f16")
    };
    // SAFETY: `check` compared the shapes.
    unsafe { device.launch(kernel, &dims(x), &args) }
}

/// The same after x += delta.
pub(crate) fn cuda_add(
    device: &dyn Device,
    out: &mut CudaBuffer,
    x: &mut CudaBuffer,
    delta: &CudaBuffer,
    weight: &Vector,
    eps: f32,
) -> Result<()> {
    check(out, x, weight);
    assert_eq!(x.elem(), ElemType::F32, "invariant: the residual stream is f32");
    assert_eq!((delta.rows(), delta.cols(), delta.elem()), (x.rows(), x.cols(), out.elem()), "invariant: equal shapes");
    let args = Args::new().with(out.ptr()).with(x.ptr()).with(delta.ptr()).with(weight.memory.ptr());
    let args = args.with(x.cols()).with(eps).with(u32::from(device.lets_next(x.rows())));
    let kernel = out.elem().kernel("add_rms_norm_bf16", "add_rms_norm_f16");
    // SAFETY: `check` compared the shapes.
    unsafe { device.launch(kernel, &dims(x), &args) }
}

fn check(out: &mut CudaBuffer, x: &CudaBuffer, weight: &Vector) {
    assert_eq!((out.cols(), weight.len), (x.cols(), x.cols()), "invariant: equal widths");
    out.set_rows(x.rows());
}

fn dims(x: &CudaBuffer) -> Dims {
    Dims::linear(x.rows(), x.cols().div_ceil(16).next_multiple_of(32).min(MAX_THREADS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Isa;
    use crate::ops::add;
    use crate::ops::testing::{assert_close, assert_device_close, devices, on_device, random, round};

    #[test]
    fn kernel_equals_reference() {
        for isa in Isa::available() {
            for (rows, cols) in [(0, 8), (1, 1), (3, 17), (19, 576), (2, 3584)] {
                let x = Buffer::from_vec(random(rows * cols, 1), cols);
                let weight = random(cols, 2);
                let (mut expected, mut found) = (Buffer::new(rows, cols), Buffer::new(rows, cols));
                reference(&mut expected, &x, &weight, 1e-5);
                let mut context = Cpu::new(2, isa);
                cpu(&mut context, &mut found, &x, &weight, 1e-5);
                assert_close(found.data(), expected.data(), 1e-5);
                let delta = Buffer::from_vec(random(rows * cols, 3), cols);
                let (mut sum, mut residual) =
                    (Buffer::from_vec(x.data().to_vec(), cols), Buffer::from_vec(x.data().to_vec(), cols));
                add::reference(&mut sum, &delta);
                reference(&mut expected, &sum, &weight, 1e-5);
                add_cpu(&mut context, &mut found, &mut residual, &delta, &weight, 1e-5);
                assert_eq!(residual.data(), sum.data());
                assert_close(found.data(), expected.data(), 1e-5);
            }
        }
    }

    /// What stands for no norm: so great an epsilon, its root as the weight. Roots on a GPU may be a little off.
    #[test]
    fn an_epsilon_beyond_all_squares_leaves_a_row_as_it_is() {
        let (cols, eps) = (576, 2f32.powi(100));
        let data: Vec<f32> = random(3 * cols, 1).iter().map(|x| x * x * x * 1e4).collect();
        let (x, weight) = (Buffer::from_vec(data.clone(), cols), vec![2f32.powi(50); cols]);
        for isa in Isa::available() {
            let mut found = Buffer::new(3, cols);
            cpu(&mut Cpu::new(2, isa), &mut found, &x, &weight, eps);
            assert_eq!(found.data(), data);
        }
        for device in devices() {
            let x = on_device::buffer(&device, &data, cols, ElemType::F32);
            let mut out = CudaBuffer::new(&device, 3, cols, ElemType::Bf16).unwrap();
            cuda(&*device, &mut out, &x, &on_device::vector(&device, &weight), eps).unwrap();
            let found = out.to_f32().unwrap();
            let is_near = |(found, x): (&f32, &f32)| (found - x).abs() <= x.abs() / 255.0;
            assert!(found.iter().zip(&data).all(is_near));
        }
    }

    #[test]
    fn device_equals_reference() {
        for device in devices() {
            for (elem, tolerance) in [(ElemType::Bf16, 4e-3), (ElemType::F16, 5e-4)] {
                // The last is wider than what threads keep in registers.
                for (rows, cols) in [(0, 8), (1, 1), (3, 17), (5, 576), (2, 3584), (1, 16500)] {
                    let (x, delta) = (random(rows * cols, 1), round(&random(rows * cols, 3), elem));
                    let weight = random(cols, 2);
                    let w = on_device::vector(&device, &weight);
                    let mut x_dev = on_device::buffer(&device, &x, cols, ElemType::F32);
                    let delta_dev = on_device::buffer(&device, &delta, cols, elem);
                    let mut out = CudaBuffer::new(&device, rows, cols, elem).unwrap();
                    let mut expected = Buffer::new(rows, cols);

                    let host = Buffer::from_vec(x.clone(), cols);
                    reference(&mut expected, &host, &weight, 1e-5);
                    cuda(&*device, &mut out, &x_dev, &w, 1e-5).unwrap();
                    assert_device_close(&out.to_f32().unwrap(), expected.data(), tolerance);

                    let host = Buffer::from_vec(delta.clone(), cols);
                    reference(&mut expected, &host, &weight, 1e-5);
                    cuda(&*device, &mut out, &delta_dev, &w, 1e-5).unwrap();
                    assert_device_close(&out.to_f32().unwrap(), expected.data(), tolerance);

                    let sum = x.iter().zip(&delta).map(|(x, d)| x + d).collect();
                    let host = Buffer::from_vec(sum, cols);
                    reference(&mut expected, &host, &weight, 1e-5);
                    cuda_add(&*device, &mut out, &mut x_dev, &delta_dev, &w, 1e-5).unwrap();
                    assert_device_close(&out.to_f32().unwrap(), expected.data(), tolerance);
                    assert_eq!(x_dev.to_f32().unwrap(), host.data());
                }
            }
        }
    }
}
