//! The kernels against the reference; rows alone against rows beside others.

use std::sync::Arc;

use super::cuda::CudaLora;
use super::*;
use crate::backend::Batch;
use crate::backend::cpu::Isa;
use crate::backend::cuda::batch::DeviceBatch;
use crate::backend::cuda::device::{Device, ElemType};
use crate::backend::cuda::storage::Memory;
use crate::ops::testing::{assert_close, assert_device_close, devices, on_device, random, round};
use crate::weights::{Dtype, TensorView};

/// A matrix's parts, its columns, and of each adapter the ranks of the parts that it has.
type Shape = (&'static [usize], usize, &'static [&'static [(usize, usize)]]);

/// All parts and some; none; ranks above a warp's lanes; columns that are no whole vectors.
const SHAPES: [Shape; 4] = [
    (&[40, 16, 16], 32, &[&[(0, 4), (1, 4), (2, 9)], &[(2, 3)], &[], &[(0, 17), (1, 1)]]),
    (&[5], 33, &[&[(0, 1)], &[(0, 40)]]),
    (&[600, 700], 72, &[&[(0, 8), (1, 8)], &[(1, 16)]]),
    (&[300], 1100, &[&[(0, 16)], &[(0, 20)]]),
];

/// Random adapters, whose numbers `round` rounds.
fn lora((part_rows, cols, adapters): Shape, round: &dyn Fn(&[f32]) -> Vec<f32>) -> Lora {
    let mut updates = Vec::new();
    for (adapter, parts) in adapters.iter().enumerate() {
        for &(part, rank) in *parts {
            let seed = (10 * adapter + part) as u64;
            let view = |shape: [usize; 2], seed: u64| {
                let data = round(&random(shape[0] * shape[1], seed));
                TensorView::new(Dtype::F32, shape.to_vec(), bytemuck::cast_slice(&data).to_vec())
            };
            let (a, b) = (view([rank, cols], seed), view([part_rows[part], rank], seed + 5));
            // A power of two: the product is not rounded again.
            updates.push(LoraUpdate { adapter, part, a, b, scale: 0.5 });
        }
    }
    Lora::new((part_rows, cols), adapters.len(), &updates)
}

/// Of each of so many rows its adapter or none: runs of some, and others one by one.
fn adapters_of_rows(num_rows: usize, num_adapters: usize) -> Vec<u32> {
    (0..num_rows).map(|t| (if t % 20 < 11 { t / 20 } else { t * 7 / 3 } % (num_adapters + 1)) as u32).collect()
}

#[test]
fn kernel_equals_reference_and_a_row_alone() {
    for shape in SHAPES {
        let lora = lora(shape, &<[f32]>::to_vec);
        for num_rows in [0, 1, 3, 70] {
            let adapters = adapters_of_rows(num_rows, shape.2.len());
            let x = Buffer::from_vec(random(num_rows * lora.cols, 1), lora.cols);
            let before = random(num_rows * lora.rows, 2);
            let out = || Buffer::from_vec(before.clone(), lora.rows);
            let mut expected = out();
            reference(&mut expected, &x, &lora, &adapters);
            for isa in Isa::available() {
                let [one, three] = [1, 3].map(|num_threads| {
                    let mut found = out();
                    cpu(&mut Cpu::new(num_threads, isa), &mut found, &x, &lora, &adapters);
                    found
                });
                assert_close(one.data(), expected.data(), 2e-6);
                assert_eq!(one.data(), three.data(), "{isa:?}");
                let mut context = Cpu::new(2, isa);
                for (t, &adapter) in adapters.iter().enumerate() {
                    let mut alone = Buffer::from_vec(before[t * lora.rows..][..lora.rows].to_vec(), lora.rows);
                    let x = Buffer::from_vec(x.row(t).to_vec(), lora.cols);
                    cpu(&mut context, &mut alone, &x, &lora, &[adapter]);
                    assert_eq!(alone.data(), one.row(t), "{isa:?}, row {t}");
                    let is_changed = alone.data() != &before[t * lora.rows..][..lora.rows];
                    assert_eq!(is_changed, !lora.of_row(adapter).is_empty(), "row {t}");
                }
            }
        }
    }
}

/// What a device adds to rows of `before`.
fn on(
    device: &Arc<dyn Device>,
    lora: &CudaLora,
    before: (&[f32], usize),
    x: (&[f32], usize),
    rows: &[u32],
) -> Vec<f32> {
    let zeros = vec![0; rows.len()];
    let batch = Batch {
        token_ids: zeros.clone(),
        positions: zeros.clone(),
        rope_rows: zeros.clone(),
        adapters: rows.to_vec(),
        slot_mappings: [zeros, Vec::new()],
        ..Batch::default()
    };
    let mut inputs = DeviceBatch::new(device, 4 * rows.len()).unwrap();
    inputs.upload(&batch, None).unwrap();
    let hidden = Memory::new(device, 4 * rows.len() * lora.hidden_len()).unwrap();
    let x = on_device::buffer(device, x.0, x.1, lora.elem());
    let mut out = on_device::buffer(device, before.0, before.1, lora.elem());
    cuda::cuda(&**device, &mut out, &x, lora, &hidden, &inputs).unwrap();
    out.to_f32().unwrap()
}

#[test]
fn device_equals_reference_and_a_row_alone() {
    for device in devices() {
        for (elem, tolerance) in [(ElemType::Bf16, 4e-3), (ElemType::F16, 5e-4)] {
            for shape in SHAPES {
                let lora = lora(shape, &|data| round(data, elem));
                let there = CudaLora::new(&device, &lora, elem).unwrap();
                // The last takes tiles of rows.
                for num_rows in [0, 1, 5, 67] {
                    let adapters = adapters_of_rows(num_rows, shape.2.len());
                    let data = round(&random(num_rows * lora.cols, 1), elem);
                    let before = round(&random(num_rows * lora.rows, 2), elem);
                    let mut expected = Buffer::from_vec(before.clone(), lora.rows);
                    reference(&mut expected, &Buffer::from_vec(data.clone(), lora.cols), &lora, &adapters);
                    let found = on(&device, &there, (&before, lora.rows), (&data, lora.cols), &adapters);
                    assert_device_close(&found, expected.data(), tolerance);
                    for (t, &adapter) in adapters.iter().enumerate().step_by(5) {
                        let row = |data: &[f32], len: usize| data[t * len..][..len].to_vec();
                        let (before, x) = (row(&before, lora.rows), row(&data, lora.cols));
                        let alone = on(&device, &there, (&before, lora.rows), (&x, lora.cols), &[adapter]);
                        assert_eq!(alone, row(&found, lora.rows), "row {t} of {num_rows}");
                        assert_eq!(alone != before, !lora.of_row(adapter).is_empty(), "row {t}");
                    }
                }
            }
        }
    }
}
