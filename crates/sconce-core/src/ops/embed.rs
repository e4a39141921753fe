//! `embed`: rows of the embedding table, in f32, times a scale (Gemma's sqrt(hidden); 1 elsewhere).

use crate::backend::cpu::{Buffer, Matrix};
use crate::backend::cuda::batch::DeviceBatch;
use crate::backend::cuda::device::{Args, Device, DevicePtr, Dims, ElemType};
use crate::backend::cuda::quant;
use crate::backend::cuda::storage::{Buffer as CudaBuffer, Matrix as CudaMatrix};
use crate::error::Result;
use crate::ops::linear::{self, cuda_quant::kernel_of};
use crate::weights::Dtype;

/// out[t] = table[token_ids[t]] * scale. `out`: [num_tokens, hidden]; quantized rows are dequantized.
pub fn reference(out: &mut Buffer, table: &Matrix, token_ids: &[u32], scale: f32) {
    assert_eq!(out.cols(), table.cols, "invariant: equal widths");
    let part = &table.parts[0];
    out.set_rows(token_ids.len());
    for (row, &id) in out.data_mut().chunks_exact_mut(table.cols).zip(token_ids) {
        linear::dequantize_row(part, id as usize, row);
        row.iter_mut().for_each(|x| *x *= scale);
    }
}

/// `kernels/embed.cu`. `out` is f32. `sampled`: of each row of the logits of the step before, the token that was sampled, for
/// tokens that are not known yet.
pub(crate) fn cuda(
    device: &dyn Device,
    out: &mut CudaBuffer,
    table: &CudaMatrix,
    batch: &DeviceBatch,
    sampled: DevicePtr,
    scale: f32,
) -> Result<()> {
    assert_eq!((out.cols(), out.elem()), (table.cols, ElemType::F32), "invariant: the residual stream is f32");
    assert!(!table.is_fp8(), "invariant: embeddings of e4m3 are refused");
    assert!(table.quant_parts().len() <= 1, "invariant: an embedding is one tensor");
    out.set_rows(batch.num_tokens());
    let args = Args::new().with(out.ptr()).with(table.memory.ptr()).with(batch.token_ids());
    let args = args.with(sampled).with(table.cols).with(scale);
    let (kernel, units) = match table.quant_parts().first() {
        Some(part) => (kernel_of!("embed", part.dtype), table.cols.next_multiple_of(quant::COLUMNS) / 8),
        None => (table.elem.kernel("embed_bf16", "embed_f16"), table.cols.div_ceil(8)),
    };
    // SAFETY: the widths are equal, and the engine's tokens are of the vocabulary, or rows that were sampled.
    unsafe { device.launch(kernel, &Dims::over_rows(out.rows(), units), &args) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Batch;
    use crate::backend::cuda::storage::Memory;
    use crate::ops::testing::{assert_device_close, dense_matrix, devices, on_device, random, round};

    #[test]
    fn device_equals_reference() {
        for device in devices() {
            for elem in [ElemType::Bf16, ElemType::F16] {
                for (tokens, cols) in [(&[][..], 8), (&[4], 8), (&[6, 0, 6, 3], 40), (&[1, 2, 0], 2304)] {
                    let data = round(&random(7 * cols, 1), elem);
                    let mut expected = Buffer::new(tokens.len(), cols);
                    reference(&mut expected, &dense_matrix(&data, cols), tokens, 48.3);
                    let table = on_device::matrix(&device, &data, cols, elem, None);
                    let batch = on_device::batch(&device, tokens, &[]);
                    let mut out = CudaBuffer::new(&device, tokens.len(), cols, ElemType::F32).unwrap();
                    cuda(&*device, &mut out, &table, &batch, DevicePtr::NULL, 48.3).unwrap();
                    assert_device_close(&out.to_f32().unwrap(), expected.data(), 0.0);
                }
            }
        }
    }

    #[test]
    fn quantized_rows_are_what_products_take_of_them() {
        use crate::backend::cuda::storage::floats_of;
        use crate::backend::cuda::weights;
        use crate::ops::linear::cuda_quant::tests::FORMATS;
        use crate::weights::{TensorView, convert, quant as formats};
        for device in devices() {
            for dtype in FORMATS {
                let (rows, cols) = (37, 5 * dtype.block_len().max(96));
                let data = formats::random_blocks(dtype, rows * cols / dtype.block_len(), 3);
                let mut expanded = Vec::new();
                convert(dtype, &data, Dtype::BF16, &mut expanded);
                let expanded = floats_of(&expanded, ElemType::Bf16);
                let tokens = [36, 0, 15, 16, 7];
                let mut expected = Buffer::new(tokens.len(), cols);
                reference(&mut expected, &dense_matrix(&expanded, cols), &tokens, 48.3);
                let view = TensorView::new(dtype, vec![rows, cols], data);
                let table = weights::load(&device, vec![view], None, ElemType::Bf16, true).unwrap();
                let batch = on_device::batch(&device, &tokens, &[]);
                let mut out = CudaBuffer::new(&device, tokens.len(), cols, ElemType::F32).unwrap();
                cuda(&*device, &mut out, &table, &batch, DevicePtr::NULL, 48.3).unwrap();
                assert_device_close(&out.to_f32().unwrap(), expected.data(), 0.0);
            }
        }
    }

    #[test]
    fn device_equals_reference_with_tokens_that_are_not_read() {
        for device in devices() {
            let data = round(&random(7 * 8, 1), ElemType::Bf16);
            let table = on_device::matrix(&device, &data, 8, ElemType::Bf16, None);
            let sampled = Memory::of_bytes(&device, bytemuck::cast_slice(&[9u32, 5, 9, 6])).unwrap();
            let mut batch = Batch::default();
            for (token, unread) in [(2, None), (u32::MAX, Some(3)), (u32::MAX, Some(1)), (4, None)] {
                batch.push(&[token], &[0], 0, 0, 1);
                unread.into_iter().for_each(|row| batch.set_last_unread(row));
            }
            let mut there = DeviceBatch::new(&device, 100).unwrap();
            // As they are, and with a row of padding.
            for num_rows in [None, Some(5)] {
                there.upload(&batch, num_rows).unwrap();
                let tokens = [2, 6, 5, 4, 0];
                let tokens = &tokens[..num_rows.unwrap_or(4)];
                let mut expected = Buffer::new(tokens.len(), 8);
                reference(&mut expected, &dense_matrix(&data, 8), tokens, 1.0);
                let mut out = CudaBuffer::new(&device, tokens.len(), 8, ElemType::F32).unwrap();
                cuda(&*device, &mut out, &table, &there, sampled.ptr(), 1.0).unwrap();
                assert_device_close(&out.to_f32().unwrap(), expected.data(), 0.0);
            }
        }
    }

    #[test]
    fn rows_are_looked_up_and_scaled() {
        let table = dense_matrix(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2);
        let mut out = Buffer::new(4, 2);
        reference(&mut out, &table, &[2, 0, 2], 0.5);
        assert_eq!(out.data(), [2.5, 3.0, 0.5, 1.0, 2.5, 3.0]);
        reference(&mut out, &table, &[], 1.0);
        assert_eq!(out.rows(), 0);
    }
}
