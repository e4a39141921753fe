//! `gather_rows`: the rows whose logits are wanted.

use crate::backend::cpu::Buffer;
use crate::backend::cuda::batch::DeviceBatch;
use crate::backend::cuda::device::{Args, Device, Dims};
use crate::backend::cuda::storage::Buffer as CudaBuffer;
use crate::error::Result;

/// out[i] = x[rows[i]]. `out`: [rows.len(), cols].
pub fn reference(out: &mut Buffer, x: &Buffer, rows: &[u32]) {
    assert_eq!(out.cols(), x.cols(), "invariant: equal widths");
    out.set_rows(rows.len());
    let cols = x.cols();
    for (dst, &row) in out.data_mut().chunks_exact_mut(cols).zip(rows) {
        dst.copy_from_slice(x.row(row as usize));
    }
}

/// `kernels/gather_rows.cu`, of elements of any type.
pub(crate) fn cuda(device: &dyn Device, out: &mut CudaBuffer, x: &CudaBuffer, batch: &DeviceBatch) -> Result<()> {
    assert_eq!((out.cols(), out.elem()), (x.cols(), x.elem()), "invariant: equal widths and types");
    out.set_rows(batch.num_logits());
    let row_bytes = x.cols() * x.elem().bytes();
    let args = Args::new().with(out.ptr()).with(x.ptr()).with(batch.logit_rows()).with(row_bytes);
    let piece_bytes = if row_bytes.is_multiple_of(16) { 16 } else { 2 };
    // SAFETY: the widths are equal, and the batch names rows of its own.
    unsafe { device.launch("gather_rows", &Dims::over_rows(out.rows(), row_bytes / piece_bytes), &args) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::device::ElemType;
    use crate::ops::testing::{assert_device_close, devices, on_device, random, round};

    #[test]
    fn device_equals_reference() {
        for device in devices() {
            for elem in [ElemType::F32, ElemType::Bf16, ElemType::F16] {
                for (rows, cols) in [(&[][..], 8), (&[2], 1), (&[6, 0, 6, 3], 17), (&[5, 1], 2304)] {
                    let data = round(&random(7 * cols, 1), elem);
                    let mut expected = Buffer::new(rows.len(), cols);
                    reference(&mut expected, &Buffer::from_vec(data.clone(), cols), rows);
                    let x = on_device::buffer(&device, &data, cols, elem);
                    let mut out = CudaBuffer::new(&device, rows.len(), cols, elem).unwrap();
                    cuda(&*device, &mut out, &x, &on_device::batch(&device, &[0; 7], rows)).unwrap();
                    assert_device_close(&out.to_f32().unwrap(), expected.data(), 0.0);
                }
            }
        }
    }

    #[test]
    fn rows_come_in_the_order_asked_for() {
        let x = Buffer::from_vec(vec![0.0, 1.0, 10.0, 11.0, 20.0, 21.0], 2);
        let mut out = Buffer::new(3, 2);
        reference(&mut out, &x, &[2, 0]);
        assert_eq!(out.data(), [20.0, 21.0, 0.0, 1.0]);
    }
}
