//! `random`: weights for measuring, made where they are used. Bounded by integer arithmetic; nothing is read.

use crate::backend::cuda::device::{Args, Device, DevicePtr, Dims, ElemType};
use crate::backend::cuda::storage::Matrix;
use crate::error::Result;
use crate::weights::{fp8, random_weight};

/// Element `i` of `out` is that of counter `i`: nearly normal, with a standard deviation of 0.02.
pub fn reference(out: &mut [f32], seed: u64) {
    out.iter_mut().enumerate().for_each(|(i, out)| *out = random_weight(seed, i as u64));
}

/// The scale of rows of e4m3: the greatest of these numbers becomes 448.
pub(crate) const FP8_SCALE: f32 = 0.069_282_03 / fp8::MAX;

/// `kernels/random.cu`: the same, rounded to the 16 bits of `out`; where it is e4m3, byte `i` of it is number `i` over
/// [`FP8_SCALE`].
pub(crate) fn cuda(device: &dyn Device, out: &mut Matrix, seed: u64) -> Result<()> {
    if out.is_fp8() {
        let len = out.memory.bytes();
        let args = Args::new().with(out.memory.ptr()).with(len as u64).with(seed).with(1.0 / FP8_SCALE);
        // SAFETY: the matrix has so many bytes, whole steps of 64.
        return unsafe { device.launch("random_fp8", &Dims::over(len / 8), &args) };
    }
    fill(device, out.memory.ptr(), out.rows * out.cols, out.elem, seed)
}

/// The same for `len` elements from `at` on, a multiple of 8, which are there.
pub(crate) fn fill(device: &dyn Device, at: DevicePtr, len: usize, elem: ElemType, seed: u64) -> Result<()> {
    let args = Args::new().with(at).with(len as u64).with(seed);
    // SAFETY: the caller has so many elements, whole eighths of them.
    unsafe { device.launch(elem.kernel("random_bf16", "random_f16"), &Dims::over(len / 8), &args) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::storage::{Form, floats_of};
    use crate::ops::testing::{assert_device_close, devices, on_device, round};

    #[test]
    fn device_equals_reference() {
        for device in devices() {
            for elem in [ElemType::Bf16, ElemType::F16] {
                for (rows, cols) in [(0, 8), (1, 8), (37, 264)] {
                    let mut expected = vec![0.0; rows * cols];
                    reference(&mut expected, 0x1234_5678_9abc_def0);
                    let mut matrix = on_device::matrix(&device, &vec![0.0; rows * cols], cols, elem, None);
                    cuda(&*device, &mut matrix, 0x1234_5678_9abc_def0).unwrap();
                    let mut bytes = vec![0; 2 * rows * cols];
                    matrix.memory.read(0, &mut bytes).unwrap();
                    assert_device_close(&floats_of(&bytes, elem), &round(&expected, elem), 0.0);
                }
            }
        }
    }

    #[test]
    fn codes_are_those_of_the_reference() {
        for device in devices() {
            let mut matrix = on_device::matrix(&device, &[0.0; 2 * 2048], 2048, ElemType::Bf16, None);
            matrix.form = Form::Fp8(on_device::vector(&device, &[FP8_SCALE; 2]));
            cuda(&*device, &mut matrix, 77).unwrap();
            let (mut codes, mut numbers) = (vec![0; matrix.memory.bytes()], vec![0.0; matrix.memory.bytes()]);
            matrix.memory.read(0, &mut codes).unwrap();
            reference(&mut numbers, 77);
            let expected: Vec<u8> = numbers.iter().map(|x| fp8::encode(x * (1.0 / FP8_SCALE))).collect();
            assert_eq!(codes, expected);
        }
    }

    #[test]
    fn numbers_have_their_mean_and_deviation() {
        let mut numbers = vec![0.0; 100_000];
        reference(&mut numbers, 7);
        let mean = numbers.iter().map(|&x| f64::from(x)).sum::<f64>() / 1e5;
        let variance = numbers.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 1e5;
        assert!(mean.abs() < 3e-4 && (variance.sqrt() - 0.02).abs() < 2e-4, "{mean} {variance}");
    }
}
