//! The checker finds what it is there to find, and nothing where there is nothing.

use std::sync::Arc;

use super::{HostDevice, Library};
use crate::backend::cuda::device::{Args, BoxShape, Device, Dims, ElemType};
use crate::backend::cuda::storage::{Memory, bytes_of};
use crate::error::Result;
use crate::ops::testing::random;

fn faulty(device: &Arc<dyn Device>, memory: &Memory, fault: u32) -> Result<()> {
    let arrivals = Memory::new(device, 4).unwrap();
    arrivals.clear().unwrap();
    faulty_kernel(device, memory, &arrivals, fault)
}

fn faulty_kernel(device: &Arc<dyn Device>, memory: &Memory, arrivals: &Memory, fault: u32) -> Result<()> {
    let args = Args::new().with(memory.ptr()).with(arrivals.ptr()).with(fault);
    // SAFETY: as kernels/host/tests.cu has it; what is read beyond the memory is its guard.
    unsafe { device.launch("shim_test_fault", &Dims::linear(2, 64).with_shared(512), &args) }
}

#[test]
fn each_fault_is_found() {
    let device = HostDevice::checked();
    let memory = Memory::new(&device, 128 * 4).unwrap();
    faulty(&device, &memory, 0).unwrap();
    for (fault, expected) in [
        (2, "a write ahead of the wait for the kernel before"),
        (3, "a read of shared memory, and a write by thread"),
        (4, "a read of shared memory, and a write by thread"),
        (5, "a write of device memory, and a write by another block"),
        (6, "a read beyond the block's shared memory"),
        (7, "a read of no allocation"),
        (8, "an address is not aligned"),
        (9, "a shift by too much"),
        (10, "a read of device memory, and a write by another block"),
        (11, "a read of device memory, and a write by another block"),
    ] {
        let Err(error) = faulty(&device, &memory, fault) else { panic!("fault {fault} is not found") };
        let error = error.to_string();
        assert!(error.contains(expected), "fault {fault}: {error}");
    }
    faulty(&device, &memory, 0).unwrap();
}

/// What a kernel reads ahead of its wait must not be written by those that may not have ended.
#[test]
fn reading_ahead_of_a_wait_is_found() {
    let device = HostDevice::checked();
    let [memory, other] = [(); 2].map(|()| Memory::new(&device, 128 * 4).unwrap());
    let arrivals = Memory::new(&device, 4).unwrap();
    let run = |memory: &Memory, fault: u32| faulty_kernel(&device, memory, &arrivals, fault);
    arrivals.clear().unwrap();
    // What the kernel before does not write may be read: the one before that has ended.
    for (memory, fault) in [(&memory, 0), (&other, 0), (&memory, 1)] {
        run(memory, fault).unwrap();
    }
    let expected = "a read ahead of the wait of what shim_test_fault writes";
    let error = run(&memory, 1).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
    // It has not where the kernel before lets the next one begin before its own wait.
    run(&memory, 0).unwrap();
    run(&other, 12).unwrap();
    let error = run(&memory, 1).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
    // A copy is waited for, and waits for all.
    run(&memory, 0).unwrap();
    arrivals.clear().unwrap();
    run(&memory, 1).unwrap();
}

#[test]
fn each_fault_of_copies_and_products_is_found() {
    let device = HostDevice::checked();
    let a = Memory::of_bytes(&device, &bytes_of(&random(64 * 64, 1), ElemType::Bf16)).unwrap();
    let out = Memory::new(&device, 2 * 128 * 4).unwrap();
    let shape = BoxShape { elem: ElemType::Bf16, dims: [64, 64, 1], box_dims: [64, 64, 1] };
    let map = device.tensor_map(a.ptr(), &shape).unwrap().unwrap();
    let run = |fault: u32| {
        let args = Args::new().with(out.ptr()).with(a.ptr()).with_map(&map).with(fault);
        // SAFETY: as kernels/host/tests.cu has it.
        unsafe { device.launch("shim_test_copy_fault", &Dims::linear(2, 128).with_shared(25 << 10 | 512), &args) }
    };
    run(0).unwrap();
    for (fault, expected) in [
        (1, "a copy of a box to a barrier that was not published"),
        (2, "a product's read of what was written and not published"),
        (3, "a read of shared memory, and a write by thread"),
        (4, "a product's read of shared memory, and a copy of a box by a copy"),
        (5, "a copy of a box of shared memory, and a product's read by thread"),
        (6, "a copy of a box of shared memory, and a product's read by thread"),
    ] {
        let Err(error) = run(fault) else { panic!("fault {fault} is not found") };
        let error = error.to_string();
        assert!(error.contains(expected), "fault {fault}: {error}");
    }
}

#[test]
fn wavefronts_and_sectors_are_counted() {
    let (device, library) = (HostDevice::checked(), Library::of_checked_tests());
    let x = Memory::of_bytes(&device, &bytes_of(&random(1024, 1), ElemType::F32)).unwrap();
    let out = Memory::new(&device, 64 * 4).unwrap();
    library.count_accesses(true);
    let args = Args::new().with(out.ptr()).with(x.ptr());
    // SAFETY: as kernels/host/tests.cu has it.
    unsafe { device.launch("shim_test_accesses", &Dims::linear(1, 64), &args) }.unwrap();
    library.count_accesses(false);
    let accesses = |is_shared, is_write| library.accesses("shim_test_accesses", is_shared, is_write);
    // Requests, what they took and needed; of both warps, unless said.
    assert_eq!(accesses(true, true), [8, 2 * 4 * 4, 2 * 4 * 4], "copies to shared memory");
    let taken = 1 + 2 + 8 + 4 + 8 + 1 + 16;
    let needed = 1 + 1 + 1 + 4 + 4 + 1 + 4;
    assert_eq!(accesses(true, false), [2 * 7, 2 * taken, 2 * needed], "reads of shared memory");
    assert_eq!(accesses(false, false), [8 + 2, 128 + 32 + 16, 128 + 4 + 2], "reads of device memory");
    assert_eq!(accesses(false, true), [2, 4 + 2, 4 + 2], "writes of device memory");
}
