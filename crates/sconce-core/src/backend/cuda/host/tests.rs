//! The shim does what `kernels/lib/platform.h` promises; what it is there to find, it finds.

use std::sync::Arc;

use super::HostDevice;
use crate::backend::cuda::device::{Args, BoxShape, Device, DevicePtr, Dims, ElemType};
use crate::backend::cuda::storage::{Memory, bytes_of, floats_of};
use crate::ops::testing::{random, round};

fn launch(device: &Arc<dyn Device>, kernel: &str, dims: Dims, args: &Args) {
    // SAFETY: each test gives its kernel what its declaration in kernels/host/tests.cu asks for.
    unsafe { device.launch(kernel, &dims, args) }.unwrap();
}

fn words(memory: &Memory) -> Vec<u32> {
    let mut words = vec![0; memory.bytes() / 4];
    memory.read(0, bytemuck::cast_slice_mut(&mut words)).unwrap();
    words
}

fn floats(memory: &Memory) -> Vec<f32> {
    floats_of(bytemuck::cast_slice(&words(memory)), ElemType::F32)
}

#[test]
fn matrices_are_multiplied() {
    let device = HostDevice::open();
    let [a, b] = [(16, 1), (8, 2)].map(|(rows, seed)| round(&random(rows * 32, seed), ElemType::Bf16));
    let b_trans: Vec<f32> = (0..32 * 8).map(|i| b[i % 8 * 32 + i / 8]).collect();
    let upload = |data: &[f32]| Memory::of_bytes(&device, &bytes_of(data, ElemType::Bf16)).unwrap();
    let (a_there, b_there, trans_there) = (upload(&a), upload(&b), upload(&b_trans));
    let out = Memory::new(&device, 2 * 16 * 8 * 4).unwrap();
    let args = Args::new().with(out.ptr()).with(a_there.ptr()).with(b_there.ptr()).with(trans_there.ptr());
    launch(&device, "shim_test_mma", Dims::linear(1, 32).with_shared(3 << 10), &args);
    let dot = |i: usize| (0..32).map(|k| a[i / 8 * 32 + k] * b[i % 8 * 32 + k]).sum::<f32>();
    for (i, found) in floats(&out).into_iter().enumerate() {
        assert!((found - dot(i % 128)).abs() < 1e-5, "element {i}: {found} for {}", dot(i % 128));
    }
}

/// By way of boxes, swizzled. Of four blocks two copy at once and two late.
#[test]
fn warpgroups_multiply_boxes() {
    let device = HostDevice::open();
    let matrices: Vec<f32> = (1..4).flat_map(|seed| round(&random(64 * 128, seed), ElemType::Bf16)).collect();
    let there = Memory::of_bytes(&device, &bytes_of(&matrices, ElemType::Bf16)).unwrap();
    let shape = BoxShape { elem: ElemType::Bf16, dims: [128, 64, 3], box_dims: [64, 32, 1] };
    let map = device.tensor_map(there.ptr(), &shape).unwrap().unwrap();
    let [a, b, c] = [0, 1, 2].map(|i| &matrices[i * 64 * 128..][..64 * 128]);
    for _ in 0..4 {
        let out = Memory::new(&device, 64 * (64 + 128) * 4).unwrap();
        let args = Args::new().with(out.ptr()).with(there.ptr()).with_map(&map);
        launch(&device, "shim_test_warpgroup", Dims::linear(1, 160).with_shared((49 << 10) + 512), &args);
        for (i, found) in floats(&out).into_iter().enumerate() {
            let expected: f32 = if i < 64 * 64 {
                (0..128).map(|k| a[i / 64 * 128 + k] * b[i % 64 * 128 + k]).sum()
            } else {
                let (row, col) = ((i - 64 * 64) / 128, i % 128);
                // Rows 32.. are those from 40 on; beyond the array there are zeros.
                let of_c = |k: usize| {
                    if k < 32 { c[k * 128 + col] } else { c.get((k + 8) * 128 + col).copied().unwrap_or(0.0) }
                };
                (0..64).map(|k| a[row * 128 + k] * of_c(k)).sum()
            };
            assert!((found - expected).abs() < 1e-4, "element {i}: {found} for {expected}");
        }
    }
}

#[test]
fn conversions_are_those_of_half() {
    let device = HostDevice::open();
    // Every sign and exponent, with fractions that round both ways and that lie halfway.
    let bits = (0..512u32).flat_map(|top| [0, 0xfff, 0x1000, 0x3000, 0x7fff, 0x8000, 0x18000].map(|f| top << 23 | f));
    let x: Vec<f32> = bits.map(f32::from_bits).filter(|x| x.is_finite()).collect();
    let there = Memory::of_bytes(&device, &bytes_of(&x, ElemType::F32)).unwrap();
    let [out, back] = [1, 2].map(|n| Memory::new(&device, n * x.len() * 4).unwrap());
    let args = Args::new().with(out.ptr()).with(back.ptr()).with(there.ptr()).with(x.len());
    launch(&device, "shim_test_convert", Dims::linear(x.len().div_ceil(64), 64), &args);
    let (out, back) = (words(&out), floats(&back));
    for (i, &x) in x.iter().enumerate() {
        let (b, h) = (half::bf16::from_f32(x), half::f16::from_f32(x.clamp(-65504.0, 65504.0)));
        assert_eq!(out[i], u32::from(b.to_bits()) | u32::from(h.to_bits()) << 16, "{x:e}");
        assert_eq!((back[i], back[out.len() + i]), (b.to_f32(), h.to_f32()), "{x:e}");
    }
}

#[test]
fn threads_of_a_block_work_together() {
    let device = HostDevice::open();
    for threads in [32, 96, 1024] {
        let [sum, before, votes] = [(); 3].map(|()| Memory::new(&device, threads * 4).unwrap());
        let args = Args::new().with(sum.ptr()).with(before.ptr()).with(votes.ptr());
        launch(&device, "shim_test_warp", Dims::linear(1, threads), &args);
        assert_eq!(floats(&sum), vec![(threads * (threads - 1) / 2) as f32; threads]);
        let one_less = |i: usize| if i.is_multiple_of(32) { i as u32 } else { i as u32 - 1 };
        assert_eq!(words(&before), (0..threads).map(one_less).collect::<Vec<_>>());
        assert_eq!(words(&votes), vec![0xaaaa_aaaa; threads]);
    }
}

#[test]
fn graphs_run_what_was_written_down() {
    let device = HostDevice::open();
    let [sum, before, votes] = [(); 3].map(|()| Memory::new(&device, 32 * 4).unwrap());
    votes.clear().unwrap();
    let args = Args::new().with(sum.ptr()).with(before.ptr()).with(votes.ptr());
    device.begin_capture().unwrap();
    launch(&device, "shim_test_warp", Dims::linear(1, 32), &args);
    let graph = device.end_capture().unwrap();
    assert_eq!(words(&votes), [0; 32]);
    // SAFETY: the memory is still there.
    unsafe { graph.launch() }.unwrap();
    assert_eq!(words(&votes), [0xaaaa_aaaa; 32]);
}

#[test]
fn what_cannot_be_launched_is_said() {
    let device = HostDevice::open();
    // SAFETY: nothing is launched.
    let error =
        |kernel: &str, dims: Dims| unsafe { device.launch(kernel, &dims, &Args::new()) }.unwrap_err().to_string();
    assert!(error("absent", Dims::linear(1, 32)).contains("there is no kernel absent"));
    assert!(error("shim_test_warp", Dims::linear(1, 33)).contains("shim_test_warp cannot be laid out"));
}

#[test]
#[should_panic(expected = "a kernel wrote beyond an allocation of 64 bytes")]
fn writing_too_far_is_found() {
    let device = HostDevice::open();
    let [sum, before, votes] = [64, 128, 128].map(|bytes| Memory::new(&device, bytes).unwrap());
    let args: Args = [sum.ptr(), before.ptr(), votes.ptr()].into_iter().fold(Args::new(), |a, p: DevicePtr| a.with(p));
    // The checker would say so.
    // SAFETY: what is behind the memory is its guard.
    _ = unsafe { device.launch("shim_test_warp", &Dims::linear(1, 32), &args) };
}
