//! [`Gpu`]: a [`Device`] by way of NVIDIA's driver, which is loaded when it is asked for. Without one there is an error that
//! says what is missing, and nothing else happens.
//!
//! Everything runs on one stream, in order. Events are used for pinned memory, and where algorithms are tried, so that
//! captures see none.
//!
//! What it reads of the environment: `SCONCE_CUDA_LIBS` (folders with NVIDIA's libraries), `SCONCE_CUDA_KERNELS` (`cubin`,
//! `ptx` or `source` in place of the best of them; or a path with a `/` to a folder, whose `SOURCE.cubin` are taken in place of
//! the program's own), `SCONCE_CUDA_SYNC=1` (waits after every launch, so that an error names its kernel), `SCONCE_CUDA_PDL=0`
//! (no kernel begins before the one before it has ended), `SCONCE_CUDA_EARLY_ROWS` (of how many rows norms, RoPE and decode attention let
//! the next kernel in at once). `CUDA_VISIBLE_DEVICES` is the driver's own affair.

mod cache;
mod compile;
mod context;
mod error;
mod graph;
mod image;
mod info;
mod kernels;
mod launch;
mod load;
mod matmul;
mod peaks;
mod places;
mod self_test;
mod staging;
mod tensor_map;
mod trial;

#[cfg(test)]
mod tests;

pub use info::{GpuInfo, available, release};
pub use peaks::{time_attention, time_products};
pub use self_test::self_test;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use cudarc::driver::sys;

use self::context::Context;
use self::kernels::Kernels;
use self::launch::Launcher;
use self::matmul::Products;
use self::staging::{PinnedMailbox, Staging};
use super::device::{Args, BoxShape, Device, DevicePtr, Dims, Graph, Mailbox, Matmul, TensorMap};
use crate::error::Result;

/// A GPU.
pub(crate) struct Gpu {
    inner: Arc<Inner>,
}

/// What graphs keep alive. In the order in which it is given back.
struct Inner {
    kernels: Kernels,
    launcher: Launcher,
    products: Mutex<Products>,
    staging: Mutex<Staging>,
    waits_after_launch: bool,
    context: Arc<Context>,
}

impl Gpu {
    /// The GPU of that number, with its kernels loaded. After an error that lost the device, drop what there is of the old
    /// `Gpu` (its graphs too) and open a new one.
    pub(crate) fn open(index: usize) -> Result<Self> {
        let begun = Instant::now();
        info::initialize()?;
        let context = Arc::new(Context::new(index)?);
        let inner = Inner {
            kernels: Kernels::load(&context)?,
            launcher: Launcher::new(&context.info),
            products: Mutex::new(Products::new(&context)?),
            staging: Mutex::new(Staging::new(&context)?),
            waits_after_launch: std::env::var_os("SCONCE_CUDA_SYNC").is_some_and(|value| value == "1"),
            context,
        };
        let gpu = Self { inner: Arc::new(inner) };
        tracing::debug!("{} is ready after {:.2} s", gpu.name(), begun.elapsed().as_secs_f64());
        Ok(gpu)
    }

    /// What it is.
    pub(crate) fn info(&self) -> &GpuInfo {
        &self.inner.context.info
    }

    fn staging(&self) -> Result<MutexGuard<'_, Staging>> {
        self.inner.context.enter()?;
        Ok(self.inner.staging.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

impl Inner {
    /// For finding a kernel that fails: its error comes with its name.
    fn wait_if_asked(&self, what: &str) -> Result<()> {
        if !self.waits_after_launch || self.context.is_capturing() {
            return Ok(());
        }
        // SAFETY: the stream lives as long as the context.
        let code = unsafe { sys::cuStreamSynchronize(self.context.stream()) };
        self.context.check(&format!("cuStreamSynchronize after {what}"), code)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // What is under way uses what is about to be given back. A lost device has nothing under way.
        self.context.set_capturing(false);
        if let Err(error) = self.context.synchronize() {
            tracing::debug!("{error}");
        }
    }
}

impl Device for Gpu {
    fn name(&self) -> String {
        let GpuInfo { index, name, memory_bytes, compute_capability: (major, minor), driver_version, .. } = self.info();
        let gib = *memory_bytes as f64 / (1u64 << 30) as f64;
        let version = release(*driver_version);
        format!("cuda:{index} ({name}, {gib:.0} GiB, compute capability {major}.{minor}, driver of CUDA {version})")
    }

    fn num_sms(&self) -> usize {
        self.inner.context.num_sms
    }

    fn max_shared_bytes(&self) -> usize {
        self.inner.context.max_shared_bytes.max(0) as usize
    }

    fn lets_next(&self, num_rows: usize) -> bool {
        num_rows <= self.inner.launcher.early_rows
    }

    fn is_lost(&self) -> bool {
        self.inner.context.is_lost()
    }

    fn free_memory(&self) -> Result<usize> {
        let context = &self.inner.context;
        context.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both are where the answers go.
        context.check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok(free)
    }

    fn alloc(&self, bytes: usize) -> Result<DevicePtr> {
        let context = &self.inner.context;
        context.forbid_in_capture("allocating memory")?;
        context.enter()?;
        let mut ptr = 0;
        // The driver refuses to allocate nothing; what is empty gets an address of its own all the same.
        // SAFETY: `ptr` is where the answer goes.
        let code = unsafe { sys::cuMemAlloc_v2(&mut ptr, bytes.max(1)) };
        context.check(&format!("cuMemAlloc of {bytes} bytes"), code)?;
        Ok(DevicePtr(ptr))
    }

    unsafe fn free(&self, ptr: DevicePtr) {
        let context = &self.inner.context;
        // A lost device has no memory left to give back.
        if context.enter().is_ok() {
            // SAFETY: by the contract it was allocated here and is not used any more. The driver waits for what uses it.
            context.note("cuMemFree", unsafe { sys::cuMemFree_v2(ptr.0) });
        }
    }

    unsafe fn upload(&self, dst: DevicePtr, src: &[u8]) -> Result<()> {
        self.inner.context.forbid_in_capture("an upload")?;
        // SAFETY: by the contract.
        unsafe { self.staging()?.upload(dst, src) }
    }

    unsafe fn download(&self, dst: &mut [u8], src: DevicePtr) -> Result<()> {
        self.inner.context.forbid_in_capture("a download")?;
        // SAFETY: by the contract.
        unsafe { self.staging()?.download(dst, src) }
    }

    fn mailbox(&self, len: usize) -> Result<Box<dyn Mailbox>> {
        self.inner.context.enter()?;
        Ok(Box::new(PinnedMailbox::new(&self.inner.context, len)?))
    }

    unsafe fn copy(&self, dst: DevicePtr, src: DevicePtr, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let context = &self.inner.context;
        context.enter()?;
        // SAFETY: by the contract there is so much memory at both.
        let code = unsafe { sys::cuMemcpyDtoDAsync_v2(dst.0, src.0, bytes, context.stream()) };
        context.check("cuMemcpyDtoDAsync", code)
    }

    unsafe fn clear(&self, dst: DevicePtr, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let context = &self.inner.context;
        context.enter()?;
        // SAFETY: by the contract there is so much memory.
        let code = unsafe { sys::cuMemsetD8Async(dst.0, 0, bytes, context.stream()) };
        context.check("cuMemsetD8Async", code)
    }

    fn has_kernel(&self, kernel: &str) -> bool {
        self.inner.kernels.get(kernel).is_ok()
    }

    fn tensor_map(&self, at: DevicePtr, shape: &BoxShape) -> Result<Option<TensorMap>> {
        tensor_map::encode(&self.inner.context, at, shape)
    }

    unsafe fn launch(&self, kernel: &str, dims: &Dims, args: &Args) -> Result<()> {
        if dims.is_empty() {
            return Ok(());
        }
        let context = &self.inner.context;
        let function = self.inner.kernels.get(kernel)?;
        context.enter()?;
        let mut pointers = args.pointers();
        // SAFETY: the arguments are the function's own by the contract.
        let code = unsafe { self.inner.launcher.launch(context, function, dims, pointers.as_mut_ptr()) };
        if code != sys::CUresult::CUDA_SUCCESS {
            return context.check(&format!("cuLaunchKernelEx {kernel} with {} arguments, {dims:?}", args.len()), code);
        }
        self.inner.wait_if_asked(kernel)
    }

    unsafe fn matmul(&self, call: &Matmul) -> Result<()> {
        if call.num_rows == 0 {
            return Ok(());
        }
        self.inner.context.enter()?;
        let mut products = self.inner.products.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // SAFETY: by the contract.
        unsafe { products.run(call)? };
        self.inner.wait_if_asked("cublasLtMatmul")
    }

    fn fastest(
        &self,
        num_candidates: usize,
        before: &mut dyn FnMut() -> Result<()>,
        work: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Option<usize>> {
        let context = &self.inner.context;
        context.forbid_in_capture("a trial")?;
        context.enter()?;
        Ok(trial::fastest(context, num_candidates, before, work)?.map(|(idx, _)| idx))
    }

    fn synchronize(&self) -> Result<()> {
        self.inner.context.synchronize()
    }

    fn begin_capture(&self) -> Result<()> {
        graph::begin_capture(&self.inner.context)
    }

    fn end_capture(&self) -> Result<Box<dyn Graph>> {
        Ok(Box::new(graph::end_capture(&self.inner)?))
    }
}
