//! The kernel for Hopper against the portable one, bit by bit, and against the reference. On a GPU the comparison of bits is
//! printed; on the host shim, where both take sums in one order, it must hold.
#![allow(clippy::print_stdout)]

use std::sync::Arc;

use super::cuda_tests::{Case, spec};
use super::hopper::{EQUAL_DIMS, Kernel};
use crate::backend::cuda::device::Device;
use crate::backend::cuda::host::HostDevice;
use crate::backend::{AttentionSpec, Batch, KvDtype};
use crate::ops::testing::devices;

/// Devices that have the kernel. The host shim does.
fn hopper_devices() -> Vec<Arc<dyn Device>> {
    let mut devices = devices();
    devices.retain(|device| {
        let has = device.has_kernel("attention_hopper_bf16_128");
        assert!(has || device.name() != HostDevice::NAME, "the host shim has all kernels");
        if !has {
            println!("attention_hopper: {} does not have it", device.name());
        }
        has
    });
    devices
}

/// The kernel that a step's prompts are left to, if it is one for Hopper.
fn kernel_of(case: &Case, batch: &Batch) -> Option<&'static str> {
    let inputs = case.upload(batch, None);
    let prompts = 0..inputs.num_prompts();
    Kernel::choose(&*case.device, &case.kv, &inputs, prompts, &case.spec).map(|kernel| kernel.name)
}

/// What lies behind a sequence's keys in its last block is another's, and may be anything.
fn poison_rest(case: &Case, table: &[u32], context: usize) {
    let (shape, stride) = (case.kv.shape, case.kv.head_stride());
    let Some(&block) = table.get(context / shape.block_size) else { return };
    let first = context % shape.block_size;
    let nans = vec![0xff; (shape.block_size - first) * stride * 2];
    for start in [case.kv.keys(case.spec.layer), case.kv.values(case.spec.layer)] {
        for head in 0..shape.num_kv_heads {
            let row = (block as usize * shape.num_kv_heads + head) * shape.block_size + first;
            let at = (start.0 - case.kv.memory.ptr().0) as usize + row * stride * 2;
            case.kv.memory.write(at, &nans).unwrap();
        }
    }
}

/// Sequences of (context, query tokens), all together, and each alone where it has enough queries to be left to this kernel too.
fn check(device: &Arc<dyn Device>, spec: AttentionSpec, dtype: KvDtype, block_size: usize, lens: &[(usize, usize)]) {
    let num_keys = lens.iter().map(|&(context, _)| context.next_multiple_of(block_size)).sum();
    let mut case = Case::new(device, spec, dtype, block_size, num_keys);
    let tables = case.tables(lens);
    tables.iter().zip(lens).for_each(|(table, &(context, _))| poison_rest(&case, table, context));
    let batch = case.batch(lens, &tables);
    let qkv = case.queries(batch.num_tokens());
    let portable = case.run(&batch, &qkv, None);
    case.space = case.space.with_hopper(usize::MAX);
    let Some(name) = kernel_of(&case, &batch) else { panic!("{spec:?} {lens:?} is left to the portable kernel") };
    let found = case.run(&batch, &qkv, None);
    case.check_reference(&batch, &qkv, &found);

    let others = found.iter().zip(&portable).filter(|(found, portable)| found.to_bits() != portable.to_bits());
    let differences: Vec<f32> = others.map(|(found, portable)| (found - portable).abs()).collect();
    let (num, greatest) = (differences.len(), differences.iter().copied().fold(0.0, f32::max));
    println!("{name}: {num} of {} numbers are not the portable kernel's, by {greatest:.1e} at most", found.len());
    if device.name() == HostDevice::NAME && spec.head_dim <= EQUAL_DIMS {
        assert_eq!(num, 0, "{name} {spec:?} {lens:?}");
    }

    let (cols, out_cols) = (spec.qkv_dim(), spec.num_heads * spec.head_dim);
    for (seq, (&lens, table)) in batch.sequences.iter().zip(lens.iter().zip(&tables)) {
        let alone = case.batch(&[lens], std::slice::from_ref(table));
        if lens.1 == 1 || kernel_of(&case, &alone).is_some() {
            let end = seq.query_start + seq.query_len;
            let alone = case.run(&alone, &qkv[seq.query_start * cols..end * cols], None);
            assert_eq!(alone, found[seq.query_start * out_cols..end * out_cols], "{spec:?} {seq:?}");
        }
    }
}

#[test]
fn all_widths_and_types() {
    for device in hopper_devices() {
        for (head_dim, dtype) in [
            (56, KvDtype::F16),
            (64, KvDtype::Bf16),
            (72, KvDtype::Bf16),
            (80, KvDtype::F16),
            (96, KvDtype::Bf16),
            (128, KvDtype::Bf16),
            (128, KvDtype::F16),
            (200, KvDtype::Bf16),
            (256, KvDtype::F16),
        ] {
            check(&device, spec(2, 1, head_dim), dtype, 16, &[(335, 70)]);
        }
    }
}

/// Sequences and windows that begin and end at edges of blocks, tiles and splits, and beside them.
#[test]
fn groups_windows_caps_and_blocks() {
    for device in hopper_devices() {
        let cases = [
            ((1, 1), 8, None, None, [(700, 130), (128, 128)]),
            ((2, 2), 16, Some(1), Some(2.0), [(330, 100), (64, 64)]),
            ((8, 2), 32, Some(9), None, [(300, 64), (257, 33)]),
            ((3, 1), 64, Some(300), Some(3.0), [(610, 85), (100, 50)]),
            ((20, 1), 128, Some(70), None, [(310, 14), (513, 12)]),
            ((64, 1), 256, None, Some(5.0), [(290, 2), (65, 3)]),
        ];
        for ((num_heads, num_kv_heads), block_size, window, softcap, lens) in cases {
            let spec = AttentionSpec { window, softcap, ..spec(num_heads, num_kv_heads, 64) };
            check(&device, spec, KvDtype::Bf16, block_size, &lens);
        }
    }
}

#[test]
fn prompts_of_all_lengths_beside_decodes() {
    for device in hopper_devices() {
        let few = (0..40).map(|i| (3 + i % 5, 1 + i % 3));
        let lens: Vec<_> = few.chain([(500, 1), (300, 230), (260, 257)]).collect();
        check(&device, spec(8, 1, 64), KvDtype::Bf16, 16, &lens);
    }
}

#[test]
fn a_prompt_in_chunks_has_the_same_bits() {
    for device in hopper_devices() {
        for (head_dim, window) in [(64, None), (64, Some(270)), (256, Some(100))] {
            let mut case = Case::new(&device, AttentionSpec { window, ..spec(4, 1, head_dim) }, KvDtype::Bf16, 16, 400);
            case.space = case.space.with_hopper(usize::MAX);
            let (len, chunks) = (390, [70, 33, 130, 157]);
            let table = case.tables(&[(len, len)]).remove(0);
            let mut end = 0;
            for chunk in chunks {
                end += chunk;
                assert!(kernel_of(&case, &case.batch(&[(end, chunk)], std::slice::from_ref(&table))).is_some());
            }
            let qkv = case.queries(len);
            assert_eq!(case.run_chunks(&qkv, &table, &chunks), case.run_chunks(&qkv, &table, &[len]));
        }
    }
}

#[test]
fn what_does_not_suit_is_left_to_the_portable_kernel() {
    for device in hopper_devices() {
        let kernel = |head_dim, block_size, lens: &[(usize, usize)]| {
            let case = Case::new(&device, spec(4, 1, head_dim), KvDtype::Bf16, block_size, 800);
            kernel_of(&case, &case.batch(lens, &case.tables(lens)))
        };
        let prompt = [(300, 64)];
        assert_eq!(kernel(128, 16, &prompt), Some("attention_hopper_bf16_128"));
        assert_eq!(kernel(100, 16, &prompt), None, "rows of 8 bytes");
        assert_eq!(kernel(48, 16, &prompt), None, "heads narrower than a box");
        assert_eq!(kernel(128, 4, &prompt), None, "blocks of fewer rows than are swizzled together");
        // Four heads of 16 queries are half of a block's rows.
        assert_eq!(kernel(128, 16, &[(300, 16)]), Some("attention_hopper_bf16_128"));
        assert_eq!(kernel(128, 16, &[(300, 15)]), None, "blocks that are for the most part empty");
        assert_eq!(kernel(128, 16, &[(300, 100), (40, 2)]), Some("attention_hopper_bf16_128"));
    }
}
