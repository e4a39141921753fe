//! A cache of 8 bits has the bits of one of 16 bits with the same numbers.

use super::*;
use crate::ops::expand_kv::tests as expand_kv;

/// One with a cache of 8 bits, and one with the same numbers in 16 bits. `max_tokens`: for how many there is room in 16 bits.
fn cases(
    device: &Arc<dyn Device>,
    spec: AttentionSpec,
    dtype: KvDtype,
    block_size: usize,
    max_keys: usize,
    max_tokens: usize,
) -> [Case; 2] {
    let new = || Case::new(device, spec, dtype, block_size, max_keys);
    let (mut plain, mut case) = (new(), new());
    case.kv = on_device::int8_kv_cache(device, &mut case.cpu_kv);
    case.space = case.space.with_expanded(expand_kv::space(device, case.elem, &spec, block_size, max_tokens));
    plain.kv = on_device::kv_cache(device, &case.cpu_kv);
    [case, plain]
}

fn check(cases: &[Case; 2], lens: &[(usize, usize)]) {
    let [case, plain] = cases;
    let batch = case.batch(lens, &case.tables(lens));
    let qkv = case.queries(batch.num_tokens());
    let found = case.run(&batch, &qkv, None);
    assert!(found == plain.run(&batch, &qkv, None), "{:?}, blocks of {}", case.spec, case.kv.shape.block_size);
    case.check_reference(&batch, &qkv, &found);
}

#[test]
fn decodes_and_prompts_of_all_widths() {
    for device in devices() {
        for head_dim in [4, 10, 16, 20, 40, 64, 80, 96, 128, 256] {
            for dtype in [KvDtype::Bf16, KvDtype::F16] {
                let cases = cases(&device, spec(4, 2, head_dim), dtype, 16, 500, 320);
                check(&cases, &[(1, 1), (33, 1), (40, 9), (290, 1)]);
            }
        }
    }
}

#[test]
fn groups_windows_caps_and_blocks() {
    for device in devices() {
        for (num_heads, num_kv_heads) in [(2, 2), (8, 2), (20, 1)] {
            for (block_size, dtype) in [(8, KvDtype::F16), (32, KvDtype::Bf16), (64, KvDtype::Bf16)] {
                let plain = spec(num_heads, num_kv_heads, 16);
                for (window, softcap) in [(None, None), (Some(1), Some(2.0)), (Some(9), None), (Some(300), Some(3.0))] {
                    let spec = AttentionSpec { window, softcap, ..plain };
                    check(
                        &cases(&device, spec, dtype, block_size, 1300, 320),
                        &[(5, 1), (70, 66), (300, 3), (600, 1), (61, 1)],
                    );
                }
            }
        }
    }
}

/// There is room for the longest of them alone, or for it and some of the others.
#[test]
fn prompts_that_do_not_fit_together_are_expanded_in_turn() {
    for device in devices() {
        let lens = [(20, 5), (30, 1), (16, 16), (200, 40), (48, 2), (9, 9), (17, 3)];
        for max_tokens in [200, 208, 240, 300, 3000] {
            check(&cases(&device, spec(4, 2, 32), KvDtype::Bf16, 16, 400, max_tokens), &lens);
        }
    }
}

#[test]
fn a_prompt_in_chunks_has_the_same_bits() {
    for device in devices() {
        for (window, head_dim) in [(None, 20), (Some(270), 64)] {
            let spec = AttentionSpec { window, ..spec(4, 2, head_dim) };
            let [case, _] = cases(&device, spec, KvDtype::Bf16, 16, 600, 560);
            let len = 553;
            let table = case.tables(&[(len, len)]).remove(0);
            let qkv = case.queries(len);
            let whole = case.run_chunks(&qkv, &table, &[len]);
            assert_eq!(case.run_chunks(&qkv, &table, &[250, 1, 1, 10, 1, 290]), whole);
            let ones: Vec<usize> = [500].into_iter().chain(vec![1; 53]).collect();
            assert_eq!(case.run_chunks(&qkv, &table, &ones), whole);
        }
    }
}

/// Those that begin alike, too, and the kernel for Hopper.
#[test]
fn other_kernels() {
    for device in devices() {
        for (head_dim, dtype) in [(20, KvDtype::F16), (64, KvDtype::Bf16), (128, KvDtype::Bf16), (256, KvDtype::F16)] {
            for window in [None, Some(130)] {
                let spec = AttentionSpec { window, ..spec(4, 2, head_dim) };
                let [case, plain] = cases(&device, spec, dtype, 16, 900, 320);
                case.check_shared_runs(&plain);
            }
        }
        if device.has_kernel("attention_hopper_bf16_128") {
            let mut cases = cases(&device, spec(8, 2, 128), KvDtype::Bf16, 16, 500, 208);
            cases = cases.map(|case| Case { space: case.space.with_hopper(usize::MAX), ..case });
            check(&cases, &[(200, 120), (30, 30), (40, 1), (100, 64)]);
        }
    }
}
