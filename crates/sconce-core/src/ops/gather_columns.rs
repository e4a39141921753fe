//! `gather_columns`: inputs of weights whose columns are not stored in order, in the order that they are stored in.

use crate::backend::cpu::{Buffer, SharedSlice, ThreadPool};
use crate::backend::cuda::device::{Args, Device, Dims, ElemType};
use crate::backend::cuda::storage::{Buffer as CudaBuffer, Memory};
use crate::error::Result;

/// Rows that one task gathers.
const TASK_ROWS: usize = 8;

/// out[t][i] = x[t][order[i]]. `out`: [n, cols].
pub fn reference(out: &mut Buffer, x: &Buffer, order: &[u32]) {
    assert_eq!(x.cols(), order.len(), "invariant: each column has its place");
    out.reshape(x.rows(), x.cols());
    for t in 0..x.rows() {
        let row = x.row(t);
        let cols = x.cols();
        let out = &mut out.data_mut()[t * cols..(t + 1) * cols];
        out.iter_mut().zip(order).for_each(|(out, &col)| *out = row[col as usize]);
    }
}

/// The same by all threads.
pub(crate) fn cpu(pool: &mut ThreadPool, out: &mut Buffer, x: &Buffer, order: &[u32]) {
    assert_eq!(x.cols(), order.len(), "invariant: each column has its place");
    out.reshape(x.rows(), x.cols());
    let cols = x.cols();
    let shared = SharedSlice::new(out.data_mut());
    pool.run(x.rows().div_ceil(TASK_ROWS), &|task| {
        for t in task * TASK_ROWS..x.rows().min((task + 1) * TASK_ROWS) {
            // SAFETY: each task has rows of its own.
            let out = unsafe { shared.range(t * cols, cols) };
            let row = x.row(t);
            out.iter_mut().zip(order).for_each(|(out, &col)| *out = row[col as usize]);
        }
    });
}

/// `kernels/gather_columns.cu`, of elements of 16 bits. `order`: [cols] u32, each below cols.
pub(crate) fn cuda(device: &dyn Device, out: &mut CudaBuffer, x: &CudaBuffer, order: &Memory) -> Result<()> {
    assert_eq!((out.cols(), out.elem()), (x.cols(), x.elem()), "invariant: equal widths and types");
    assert!(
        x.elem() != ElemType::F32 && order.bytes() == 4 * x.cols(),
        "invariant: 16 bits, and an order of all columns"
    );
    out.set_rows(x.rows());
    let args = Args::new().with(out.ptr()).with(x.ptr()).with(order.ptr()).with(x.cols());
    // SAFETY: the widths are equal, and the order is one of the columns.
    unsafe { device.launch("gather_columns", &Dims::over_rows(x.rows(), x.cols()), &args) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_device_close, devices, on_device, random, round};

    /// Of `cols` columns, none where it was where that is possible.
    fn order(cols: usize) -> Vec<u32> {
        (0..cols as u32).map(|i| (i * 7 + 3) % cols as u32).collect()
    }

    #[test]
    fn kernel_equals_reference() {
        for (rows, cols) in [(0, 8), (1, 1), (3, 40), (33, 2305)] {
            let (order, x) = (order(cols), Buffer::from_vec(random(rows * cols, 1), cols));
            let [mut expected, mut found] = [(); 2].map(|()| Buffer::default());
            reference(&mut expected, &x, &order);
            cpu(&mut ThreadPool::new(2), &mut found, &x, &order);
            assert_eq!(found.data(), expected.data(), "{rows} x {cols}");
        }
    }

    #[test]
    fn device_equals_reference() {
        for device in devices() {
            for elem in [ElemType::Bf16, ElemType::F16] {
                for (rows, cols) in [(0, 8), (1, 1), (3, 40), (33, 2305)] {
                    let (order, data) = (order(cols), round(&random(rows * cols, 1), elem));
                    let mut expected = Buffer::default();
                    reference(&mut expected, &Buffer::from_vec(data.clone(), cols), &order);
                    let x = on_device::buffer(&device, &data, cols, elem);
                    let mut out = CudaBuffer::new(&device, rows, cols, elem).unwrap();
                    let order = Memory::of_bytes(&device, bytemuck::cast_slice(&order)).unwrap();
                    cuda(&*device, &mut out, &x, &order).unwrap();
                    assert_device_close(&out.to_f32().unwrap(), expected.data(), 0.0);
                }
            }
        }
    }

    #[test]
    fn columns_come_in_the_order_asked_for() {
        let x = Buffer::from_vec(vec![0.0, 1.0, 2.0, 10.0, 11.0, 12.0], 3);
        let mut out = Buffer::default();
        reference(&mut out, &x, &[2, 0, 1]);
        assert_eq!(out.data(), [2.0, 0.0, 1.0, 12.0, 10.0, 11.0]);
    }
}
