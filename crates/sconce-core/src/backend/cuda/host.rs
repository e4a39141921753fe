//! [`HostDevice`]: kernels on this machine's CPU, as the C++ compiler makes them with `kernels/host/shim.h`. It finds what
//! a GPU would not show: memory that was never written is NaN, and writes beyond an allocation end the test.
//!
//! Calls are carried out when they are made, or, on a device that is late, when somebody waits for them: who reads what he
//! has not waited for finds it in the one, who changes what is still to be read in the other.

#[cfg(test)]
mod check_tests;
mod library;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::device::{Args, BoxShape, Device, DevicePtr, Dims, Graph, Mailbox, Matmul, TensorMap};
use super::storage::{bytes_of, floats_of};
use crate::error::{Error, Result};
use library::{Library, StreamCheck};

/// Bytes after an allocation that nobody may write.
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0xa5;
/// Memory that was never written: NaN as any float.
const POISON: u8 = 0xff;

/// Kernels on the CPU.
pub(crate) struct HostDevice {
    stream: Arc<Stream>,
    /// Of so many candidates in a trial, which is the fastest.
    choose: Option<Box<dyn Fn(usize) -> usize + Send + Sync>>,
    /// Length of each allocation, by address.
    allocations: Mutex<HashMap<u64, usize>>,
}

/// What tests see of a device, and do to it.
#[derive(Clone, Default)]
pub(crate) struct Watch {
    /// The device fails from now on.
    pub(crate) is_lost: Arc<AtomicBool>,
    /// How often something was waited for while later calls were still to be carried out.
    pub(crate) num_early_waits: Arc<AtomicUsize>,
    /// How often each kernel was launched.
    pub(crate) num_launches: Arc<Mutex<HashMap<String, usize>>>,
}

/// Calls in order.
struct Stream {
    library: Arc<Library>,
    check: Option<StreamCheck>,
    is_late: bool,
    calls: Mutex<Calls>,
    watch: Watch,
}

#[derive(Default)]
struct Calls {
    captured: Option<Vec<Call>>,
    /// What is still to be carried out.
    queue: VecDeque<Call>,
    num_made: usize,
}

/// A call to be carried out later.
#[derive(Clone)]
enum Call {
    Launch { kernel: String, dims: Dims, args: Box<Args> },
    Matmul(Matmul),
    Copy { dst: DevicePtr, src: DevicePtr, bytes: usize },
    Upload { dst: DevicePtr, data: Vec<u8> },
    Clear { dst: DevicePtr, bytes: usize },
}

impl HostDevice {
    /// What it calls itself.
    pub(crate) const NAME: &str = "host shim";

    /// All kernels, compiled once a process, and again only when a source has changed.
    pub(crate) fn open() -> Arc<dyn Device> {
        Self::watched(false).0
    }

    /// The same with its watch, carrying out calls when they are made, or late.
    pub(crate) fn watched(is_late: bool) -> (Arc<dyn Device>, Watch) {
        let device = Self::new(is_late);
        let watch = device.stream.watch.clone();
        (Arc::new(device), watch)
    }

    /// The same, with trials that end as `choose` says of the number of candidates.
    pub(crate) fn choosing(choose: impl Fn(usize) -> usize + Send + Sync + 'static) -> Arc<dyn Device> {
        Arc::new(Self { choose: Some(Box::new(choose)), ..Self::new(false) })
    }

    /// With the checker, for kernels of `kernels/host/tests.cu` alone.
    pub(crate) fn checked() -> Arc<dyn Device> {
        let library = Library::of_checked_tests();
        // Also where all others' accesses are counted.
        library.count_accesses(false);
        Arc::new(Self::with(&library, false))
    }

    fn new(is_late: bool) -> Self {
        Self::with(&Library::of_all_kernels(), is_late)
    }

    fn with(library: &Arc<Library>, is_late: bool) -> Self {
        let (calls, watch, check) = (Mutex::default(), Watch::default(), StreamCheck::new(library));
        let stream = Stream { library: Arc::clone(library), check, is_late, calls, watch };
        Self { stream: Arc::new(stream), choose: None, allocations: Mutex::default() }
    }
}

impl Stream {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().expect("invariant: no test goes on after a panic")
    }

    fn capture(&self, call: &Call) -> bool {
        self.calls().captured.as_mut().map(|captured| captured.push(call.clone())).is_some()
    }

    /// Carries out a call, now or late.
    fn make(&self, call: Call) -> Result<()> {
        let mut calls = self.calls();
        calls.num_made += 1;
        calls.queue.push_back(call);
        drop(calls);
        if self.is_late { Ok(()) } else { self.finish(usize::MAX) }
    }

    /// Carries out the first `num` calls that were ever made, as far as they are not.
    fn finish(&self, num: usize) -> Result<()> {
        let next = || {
            let mut calls = self.calls();
            if calls.num_made - calls.queue.len() < num { calls.queue.pop_front() } else { None }
        };
        while let Some(call) = next() {
            self.run(&call)?;
        }
        let is_early = !self.calls().queue.is_empty();
        self.watch.num_early_waits.fetch_add(usize::from(is_early), Ordering::Relaxed);
        Ok(())
    }

    fn run(&self, call: &Call) -> Result<()> {
        if let Call::Launch { kernel, dims, args } = call {
            if dims.is_empty() {
                return Ok(());
            }
            let mut num_launches = self.watch.num_launches.lock().expect("invariant: no test goes on after a panic");
            *num_launches.entry(kernel.clone()).or_default() += 1;
            drop(num_launches);
            if let Some(check) = &self.check {
                check.begin(kernel, dims.overlaps);
            }
            return self.library.launch(kernel, dims, args);
        }
        if let Some(check) = &self.check {
            check.no_kernel();
        }
        // SAFETY: who made the call has promised that the memory is there.
        unsafe {
            match call {
                Call::Launch { .. } => {}
                Call::Matmul(call) => matmul(call),
                Call::Copy { dst, src, bytes } => {
                    std::ptr::copy_nonoverlapping(src.0 as *const u8, dst.0 as *mut u8, *bytes);
                }
                Call::Upload { dst, data } => {
                    std::ptr::copy_nonoverlapping(data.as_ptr(), dst.0 as *mut u8, data.len());
                }
                Call::Clear { dst, bytes } => std::ptr::write_bytes(dst.0 as *mut u8, 0, *bytes),
            }
        }
        Ok(())
    }
}

/// # Safety
/// As [`Device::matmul`].
unsafe fn matmul(call: &Matmul) {
    let read = |ptr: DevicePtr, len: usize| {
        // SAFETY: the caller's.
        let bytes = unsafe { std::slice::from_raw_parts(ptr.0 as *const u8, len * call.in_type.bytes()) };
        floats_of(bytes, call.in_type)
    };
    let (x, weight) = (read(call.x, call.num_rows * call.cols), read(call.weight, call.out_cols * call.cols));
    for (row, x) in x.chunks_exact(call.cols).enumerate() {
        let dot = |w: &[f32]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>();
        let out: Vec<f32> = weight.chunks_exact(call.cols).map(dot).collect();
        let bytes = bytes_of(&out, call.out_type);
        let at = call.out.offset(row * call.out_stride * call.out_type.bytes());
        // SAFETY: the caller's.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at.0 as *mut u8, bytes.len()) };
    }
}

impl Device for HostDevice {
    fn name(&self) -> String {
        Self::NAME.into()
    }

    fn num_sms(&self) -> usize {
        4
    }

    fn max_shared_bytes(&self) -> usize {
        227 << 10
    }

    /// Always: the checker is to see that it is safe, however many rows there are.
    fn lets_next(&self, _: usize) -> bool {
        true
    }

    fn is_lost(&self) -> bool {
        self.stream.watch.is_lost.load(Ordering::Relaxed)
    }

    fn free_memory(&self) -> Result<usize> {
        Ok(1 << 30)
    }

    fn alloc(&self, bytes: usize) -> Result<DevicePtr> {
        let mut memory = vec![0u128; (bytes + GUARD).div_ceil(16) + 16];
        let data: &mut [u8] = bytemuck::cast_slice_mut(&mut memory);
        // Aligned as a GPU's is; what comes before is left.
        let start = data.as_ptr().align_offset(256);
        data[start..start + bytes].fill(POISON);
        data[start + bytes..].fill(GUARD_BYTE);
        let ptr = data[start..].as_ptr() as u64;
        // Tests are short: their memory is left to the end of the process, so that late writes are seen by nobody else.
        std::mem::forget(memory);
        self.stream.library.allocated(ptr, bytes);
        self.allocations.lock().expect("invariant: no test goes on after a panic").insert(ptr, bytes);
        Ok(DevicePtr(ptr))
    }

    unsafe fn free(&self, ptr: DevicePtr) {
        let done = self.stream.finish(usize::MAX);
        assert!(done.is_ok() || std::thread::panicking(), "{done:?}");
        let bytes = self.allocations.lock().expect("invariant: no test goes on after a panic").remove(&ptr.0);
        let bytes = bytes.expect("invariant: what is freed was allocated");
        self.stream.library.freed(ptr.0);
        // SAFETY: the guard was allocated with the memory.
        let guard = unsafe { std::slice::from_raw_parts((ptr.0 as usize + bytes) as *const u8, GUARD) };
        if guard.iter().any(|&byte| byte != GUARD_BYTE) && !std::thread::panicking() {
            panic!("a kernel wrote beyond an allocation of {bytes} bytes");
        }
    }

    unsafe fn upload(&self, dst: DevicePtr, src: &[u8]) -> Result<()> {
        self.stream.make(Call::Upload { dst, data: src.to_vec() })
    }

    unsafe fn download(&self, dst: &mut [u8], src: DevicePtr) -> Result<()> {
        self.stream.finish(usize::MAX)?;
        // SAFETY: the caller's.
        unsafe { std::ptr::copy_nonoverlapping(src.0 as *const u8, dst.as_mut_ptr(), dst.len()) };
        Ok(())
    }

    fn mailbox(&self, len: usize) -> Result<Box<dyn Mailbox>> {
        let memory = self.alloc(len * 4)?;
        Ok(Box::new(HostMailbox { stream: Arc::clone(&self.stream), memory, len, wanted: 0 }))
    }

    unsafe fn copy(&self, dst: DevicePtr, src: DevicePtr, bytes: usize) -> Result<()> {
        let call = Call::Copy { dst, src, bytes };
        if self.stream.capture(&call) { Ok(()) } else { self.stream.make(call) }
    }

    unsafe fn clear(&self, dst: DevicePtr, bytes: usize) -> Result<()> {
        self.stream.make(Call::Clear { dst, bytes })
    }

    fn has_kernel(&self, kernel: &str) -> bool {
        self.stream.library.has_kernel(kernel)
    }

    /// As kernels/host/hopper.cpp reads it; `None` where a driver refuses.
    fn tensor_map(&self, at: DevicePtr, shape: &BoxShape) -> Result<Option<TensorMap>> {
        let [cols, rows, arrays] = shape.dims.map(|dim| dim as u64);
        let row_bytes = cols * shape.elem.bytes() as u64;
        let are_within = shape.dims.iter().all(|&dim| (1..=1 << 32).contains(&dim)) && rows * row_bytes < 1 << 40;
        let is_aligned = at.0.is_multiple_of(16) && row_bytes.is_multiple_of(16);
        if !are_within || !is_aligned || shape.box_dims.iter().any(|dim| !(1..=256).contains(dim)) {
            return Ok(None);
        }
        let [box_cols, box_rows, box_arrays] = shape.box_dims.map(u64::from);
        let words = [at.0, cols, rows, arrays, row_bytes, rows * row_bytes, box_cols, box_rows, box_arrays];
        let mut map = TensorMap::default();
        map.0[..words.len()].copy_from_slice(&words);
        Ok(Some(map))
    }

    unsafe fn launch(&self, kernel: &str, dims: &Dims, args: &Args) -> Result<()> {
        let call = Call::Launch { kernel: kernel.into(), dims: *dims, args: Box::new(*args) };
        if self.stream.capture(&call) { Ok(()) } else { self.stream.make(call) }
    }

    unsafe fn matmul(&self, call: &Matmul) -> Result<()> {
        let call = Call::Matmul(*call);
        if self.stream.capture(&call) { Ok(()) } else { self.stream.make(call) }
    }

    /// Nothing is carried out: this machine's times say nothing.
    fn fastest(
        &self,
        num_candidates: usize,
        _before: &mut dyn FnMut() -> Result<()>,
        _work: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Option<usize>> {
        Ok(self.choose.as_ref().map(|choose| choose(num_candidates)))
    }

    fn synchronize(&self) -> Result<()> {
        self.stream.finish(usize::MAX)
    }

    fn begin_capture(&self) -> Result<()> {
        self.stream.calls().captured = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<Box<dyn Graph>> {
        let calls = self.stream.calls().captured.take();
        let calls = calls.ok_or_else(|| Error::internal("nothing was being captured"))?;
        Ok(Box::new(HostGraph { calls, stream: Arc::clone(&self.stream) }))
    }
}

struct HostGraph {
    calls: Vec<Call>,
    stream: Arc<Stream>,
}

impl Graph for HostGraph {
    unsafe fn launch(&self) -> Result<()> {
        self.calls.iter().try_for_each(|call| self.stream.make(call.clone()))
    }
}

/// Memory that is left to the end of the process, as with allocations.
struct HostMailbox {
    stream: Arc<Stream>,
    memory: DevicePtr,
    len: usize,
    /// So many calls had been made with the last that it waits for.
    wanted: usize,
}

impl Mailbox for HostMailbox {
    unsafe fn fetch(&mut self, at: usize, src: DevicePtr, len: usize) -> Result<()> {
        assert!(at + len <= self.len, "invariant: what is fetched fits");
        self.stream.make(Call::Copy { dst: self.memory.offset(at * 4), src, bytes: len * 4 })?;
        self.wanted = self.stream.calls().num_made;
        Ok(())
    }

    fn wait(&self) -> Result<&[u32]> {
        if self.stream.watch.is_lost.load(Ordering::Relaxed) {
            return Err(Error::Device { message: "the device is lost".into() });
        }
        self.stream.finish(self.wanted)?;
        // SAFETY: so much was allocated, and nobody writes it until the next `fetch`.
        Ok(unsafe { std::slice::from_raw_parts(self.memory.0 as *const u32, self.len) })
    }
}
