//! `gate_act_mul`: out = act(gate) * up, the gated MLP's middle. Rows of the input hold gate, then up. Of
//! [`Activation::ClampedSwiglu`] the second factor is 1 + up, both within limits.
//!
//! Bounded by the exponentials on the CPU.

use super::simd;
use crate::backend::cpu::{Buffer, Cpu, Isa, SharedSlice, multiversion};
use crate::backend::cuda::device::{Args, Device, Dims};
use crate::backend::cuda::storage::Buffer as CudaBuffer;
use crate::config::Activation;
use crate::error::Result;

/// `gate_up`: [rows, 2 * cols]; `out`: [rows, cols]. In f64 with the standard library's exponential.
pub fn reference(out: &mut Buffer, gate_up: &Buffer, act: Activation) {
    let cols = out.cols();
    assert_eq!(gate_up.cols(), 2 * cols, "invariant: gate and up");
    out.set_rows(gate_up.rows());
    for (out, gate_up) in out.data_mut().chunks_exact_mut(cols).zip(gate_up.data().chunks_exact(2 * cols)) {
        for (i, out) in out.iter_mut().enumerate() {
            let (x, up) = (f64::from(gate_up[i]), f64::from(gate_up[cols + i]));
            *out = (activation(act, x) * factor(act, up)) as f32;
        }
    }
}

/// act(x) in f64.
pub(super) fn activation(act: Activation, x: f64) -> f64 {
    match act {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
        Activation::ClampedSwiglu => {
            let x = x.min(f64::from(Activation::SWIGLU_LIMIT));
            x / (1.0 + (-f64::from(Activation::SWIGLU_ALPHA) * x).exp())
        }
    }
}

/// What act(gate) is multiplied with, in f64.
fn factor(act: Activation, up: f64) -> f64 {
    let limit = f64::from(Activation::SWIGLU_LIMIT);
    if act == Activation::ClampedSwiglu { up.clamp(-limit, limit) + 1.0 } else { up }
}

/// The same in f32, row by row over the threads.
pub(crate) fn cpu(cpu: &mut Cpu, out: &mut Buffer, gate_up: &Buffer, act: Activation) {
    let cols = out.cols();
    assert_eq!(gate_up.cols(), 2 * cols, "invariant: gate and up");
    out.set_rows(gate_up.rows());
    let (rows, isa) = (out.rows(), cpu.isa);
    let shared = SharedSlice::new(out.data_mut());
    cpu.pool.run(rows, &|t| {
        let columns = Columns { out: shared, out_cols: cols, first: t * cols, count: cols };
        self::columns(isa, columns, gate_up.row(t), act);
    });
}

/// What one task writes: `count` columns of each row of `out`, from element `first` on.
pub(super) struct Columns<'a> {
    pub(super) out: SharedSlice<'a, f32>,
    pub(super) out_cols: usize,
    pub(super) first: usize,
    pub(super) count: usize,
}

/// The columns' values; `gate_up`: [rows, 2 * count]. No other task writes these columns.
pub(super) fn columns(isa: Isa, columns: Columns<'_>, gate_up: &[f32], act: Activation) {
    match act {
        Activation::Silu => silu_mul(isa, columns, gate_up),
        Activation::GeluTanh => gelu_tanh_mul(isa, columns, gate_up),
        Activation::ClampedSwiglu => clamped_swiglu_mul(isa, columns, gate_up),
    }
}

multiversion! {
    fn silu_mul(columns: Columns<'_>, gate_up: &[f32]) = silu_mul_body
}

#[inline(always)]
fn silu_mul_body<const FMA: bool>(columns: Columns<'_>, gate_up: &[f32]) {
    act_mul(columns, gate_up, silu::<FMA>);
}

multiversion! {
    fn gelu_tanh_mul(columns: Columns<'_>, gate_up: &[f32]) = gelu_tanh_mul_body
}

#[inline(always)]
fn gelu_tanh_mul_body<const FMA: bool>(columns: Columns<'_>, gate_up: &[f32]) {
    act_mul(columns, gate_up, gelu_tanh::<FMA>);
}

multiversion! {
    fn clamped_swiglu_mul(columns: Columns<'_>, gate_up: &[f32]) = clamped_swiglu_mul_body
}

#[inline(always)]
fn clamped_swiglu_mul_body<const FMA: bool>(columns: Columns<'_>, gate_up: &[f32]) {
    const LIMIT: f32 = Activation::SWIGLU_LIMIT;
    gated_columns(columns, gate_up, |gate, up| clamped_swish::<FMA>(gate) * (up.clamp(-LIMIT, LIMIT) + 1.0));
}

#[inline(always)]
fn act_mul(columns: Columns<'_>, gate_up: &[f32], act: impl Fn(f32) -> f32) {
    gated_columns(columns, gate_up, |gate, up| act(gate) * up);
}

#[inline(always)]
fn gated_columns(columns: Columns<'_>, gate_up: &[f32], gated: impl Fn(f32, f32) -> f32) {
    for (t, row) in gate_up.chunks_exact(2 * columns.count).enumerate() {
        // SAFETY: the columns are the caller's alone.
        let out = unsafe { columns.out.range(columns.first + t * columns.out_cols, columns.count) };
        let (gate, up) = row.split_at(columns.count);
        for ((out, &x), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = gated(x, up);
        }
    }
}

/// row = act(row), for [`super::activate`].
pub(super) fn activate_row(isa: Isa, row: &mut [f32], act: Activation) {
    match act {
        Activation::Silu => silu_row(isa, row),
        Activation::GeluTanh => gelu_tanh_row(isa, row),
        Activation::ClampedSwiglu => clamped_swish_row(isa, row),
    }
}

multiversion! {
    fn silu_row(row: &mut [f32]) = silu_row_body
}

#[inline(always)]
fn silu_row_body<const FMA: bool>(row: &mut [f32]) {
    for x in row {
        *x = silu::<FMA>(*x);
    }
}

multiversion! {
    fn gelu_tanh_row(row: &mut [f32]) = gelu_tanh_row_body
}

#[inline(always)]
fn gelu_tanh_row_body<const FMA: bool>(row: &mut [f32]) {
    for x in row {
        *x = gelu_tanh::<FMA>(*x);
    }
}

multiversion! {
    fn clamped_swish_row(row: &mut [f32]) = clamped_swish_row_body
}

#[inline(always)]
fn clamped_swish_row_body<const FMA: bool>(row: &mut [f32]) {
    for x in row {
        *x = clamped_swish::<FMA>(*x);
    }
}

#[inline(always)]
fn clamped_swish<const FMA: bool>(x: f32) -> f32 {
    // What is no number stays so.
    let x = if x > Activation::SWIGLU_LIMIT { Activation::SWIGLU_LIMIT } else { x };
    x / (1.0 + simd::exp::<FMA>(-Activation::SWIGLU_ALPHA * x))
}

#[inline(always)]
fn silu<const FMA: bool>(x: f32) -> f32 {
    x / (1.0 + simd::exp::<FMA>(-x))
}

#[inline(always)]
fn gelu_tanh<const FMA: bool>(x: f32) -> f32 {
    // 0.5 * (1 + tanh(y)) = 1 / (1 + exp(-2y))
    let y = 0.797_884_6 * (x + 0.044715 * x * x * x);
    x / (1.0 + simd::exp::<FMA>(-2.0 * y))
}

/// `kernels/gate_act_mul.cu`. Both have 16 bits.
pub(crate) fn cuda(device: &dyn Device, out: &mut CudaBuffer, gate_up: &CudaBuffer, act: Activation) -> Result<()> {
    let cols = out.cols();
    assert_eq!((gate_up.cols(), gate_up.elem()), (2 * cols, out.elem()), "invariant: gate and up");
    out.set_rows(gate_up.rows());
    let args = Args::new().with(out.ptr()).with(gate_up.ptr()).with(cols).with(activation_kind(act));
    let dims = Dims::over_rows(out.rows(), cols.div_ceil(8));
    // SAFETY: the shapes were compared.
    unsafe { device.launch(out.elem().kernel("gate_act_mul_bf16", "gate_act_mul_f16"), &dims, &args) }
}

/// Its number in `kernels/lib/activation.h`.
pub(super) fn activation_kind(act: Activation) -> u32 {
    match act {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
        Activation::ClampedSwiglu => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::device::ElemType;
    use crate::ops::testing::{assert_close, assert_device_close, devices, on_device, random, round};

    const ALL: [Activation; 3] = [Activation::Silu, Activation::GeluTanh, Activation::ClampedSwiglu];

    #[test]
    fn device_equals_reference() {
        for device in devices() {
            for (elem, tolerance) in [(ElemType::Bf16, 4e-3), (ElemType::F16, 5e-4)] {
                for act in ALL {
                    for (rows, cols) in [(0, 4), (1, 1), (3, 33), (2, 1536), (1, 4104)] {
                        let mut data: Vec<f32> = random(rows * 2 * cols, 3).iter().map(|x| x * 20.0).collect();
                        if let Some(first) = data.first_mut() {
                            *first = -300.0; // exp overflows to infinity: the product is 0
                        }
                        let data = round(&data, elem);
                        let mut expected = Buffer::new(rows, cols);
                        reference(&mut expected, &Buffer::from_vec(data.clone(), 2 * cols), act);
                        let gate_up = on_device::buffer(&device, &data, 2 * cols, elem);
                        let mut found = CudaBuffer::new(&device, rows, cols, elem).unwrap();
                        cuda(&*device, &mut found, &gate_up, act).unwrap();
                        assert_device_close(&found.to_f32().unwrap(), expected.data(), tolerance);
                    }
                }
            }
        }
    }

    #[test]
    fn kernel_equals_reference() {
        for isa in Isa::available() {
            let mut context = Cpu::new(2, isa);
            for act in ALL {
                for (rows, cols) in [(0, 4), (1, 1), (3, 33), (2, 1536)] {
                    let mut data: Vec<f32> = random(rows * 2 * cols, 3).iter().map(|x| x * 20.0).collect();
                    if let Some(first) = data.first_mut() {
                        *first = -300.0; // exp overflows to infinity: the product is 0
                    }
                    let gate_up = Buffer::from_vec(data, 2 * cols);
                    let (mut expected, mut found) = (Buffer::new(rows, cols), Buffer::new(rows, cols));
                    reference(&mut expected, &gate_up, act);
                    cpu(&mut context, &mut found, &gate_up, act);
                    assert_close(found.data(), expected.data(), 2e-5);
                }
            }
        }
    }
}
