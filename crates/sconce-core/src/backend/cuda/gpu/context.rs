//! [`Context`]: a device's primary context and the one stream that everything runs on, in order.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use super::error::{driver_error, is_fatal};
use super::info::{self, GpuInfo};
use crate::error::{Error, Result};

/// A stream that does not wait for the driver's default one.
const NON_BLOCKING: u32 = 1;

/// A device's primary context and a stream.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) info: GpuInfo,
    pub(super) num_sms: usize,
    /// The most shared memory that a block can ask for.
    pub(super) max_shared_bytes: i32,
    device: sys::CUdevice,
    raw: sys::CUcontext,
    stream: sys::CUstream,
    /// The error after which nothing works any more.
    lost: OnceLock<String>,
    is_capturing: AtomicBool,
}

// SAFETY: the driver's handles may be used from any thread; `enter` makes the context the calling thread's before each use.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks what its calls share.
unsafe impl Sync for Context {}

impl Context {
    /// The context of device `index`. The driver must have been initialized.
    pub(super) fn new(index: usize) -> Result<Self> {
        let begun = Instant::now();
        let info = info::describe(index)?;
        let mut device = 0;
        // SAFETY: `device` is where the answer goes; so with all calls below.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, info::ordinal(index)) })?;
        let attribute = |attribute| info::attribute(device, attribute);
        let num_sms = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let max_shared_bytes = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: as above.
        check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&mut raw, device) })?;
        let mut context = Self {
            info,
            num_sms: usize::try_from(num_sms).unwrap_or(1).max(1),
            max_shared_bytes,
            device,
            raw,
            stream: std::ptr::null_mut(),
            lost: OnceLock::new(),
            is_capturing: AtomicBool::new(false),
        };
        context.enter()?;
        let mut stream = std::ptr::null_mut();
        // SAFETY: as above.
        context.check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut stream, NON_BLOCKING) })?;
        context.stream = stream;
        let ms = begun.elapsed().as_secs_f64() * 1e3;
        tracing::debug!("cuda:{index} has a context after {ms:.0} ms: {:?}", context.info);
        Ok(context)
    }

    /// The stream.
    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Makes the context the calling thread's. Nothing of it may be used before. An error once the device is lost.
    pub(super) fn enter(&self) -> Result<()> {
        if let Some(reason) = self.lost.get() {
            return Err(Error::Device { message: format!("the device is lost since an earlier error: {reason}") });
        }
        // SAFETY: the context is retained until `self` is dropped.
        self.check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.raw) })
    }

    /// Turns a code into a result, and remembers a fatal one.
    pub(super) fn check(&self, call: &str, code: CUresult) -> Result<()> {
        let result = check(call, code);
        if let Err(error) = &result
            && is_fatal(code)
        {
            // The driver is gone when the process ends, which threads may outlive for a moment: nobody's error.
            if code == CUresult::CUDA_ERROR_DEINITIALIZED {
                tracing::debug!("{}: {error}", self.info.name);
            } else {
                tracing::error!("{}: {error}", self.info.name);
            }
            let _ = self.lost.set(error.to_string());
        }
        result
    }

    /// Says of a failed clean-up no more than a line: there is nothing that could be done.
    pub(super) fn note(&self, call: &str, code: CUresult) {
        if code != CUresult::CUDA_SUCCESS {
            tracing::debug!("{call}: {code:?}");
        }
    }

    /// Whether nothing works any more.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    /// Waits for everything on the stream.
    pub(super) fn synchronize(&self) -> Result<()> {
        self.forbid_in_capture("waiting for the device")?;
        self.enter()?;
        // SAFETY: the stream lives as long as `self`.
        self.check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream) })
    }

    /// Whether launches are written down rather than carried out.
    pub(super) fn is_capturing(&self) -> bool {
        self.is_capturing.load(Ordering::Relaxed)
    }

    /// Notes the beginning or end of a capture.
    pub(super) fn set_capturing(&self, is_capturing: bool) {
        self.is_capturing.store(is_capturing, Ordering::Relaxed);
    }

    /// An error while a graph is captured: `what` would break the capture, or be replayed with memory that has changed.
    pub(super) fn forbid_in_capture(&self, what: &str) -> Result<()> {
        if self.is_capturing() {
            return Err(Error::internal(format!("{what} while a CUDA graph is captured")));
        }
        Ok(())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: nobody uses the stream or the context after this. A lost context takes all that belongs to it along: the
        // reset destroys it, so that the next one begins anew.
        unsafe {
            if !self.is_lost() && !self.stream.is_null() {
                self.note("cuCtxSetCurrent", sys::cuCtxSetCurrent(self.raw));
                self.note("cuStreamDestroy", sys::cuStreamDestroy_v2(self.stream));
            }
            self.note("cuDevicePrimaryCtxRelease", sys::cuDevicePrimaryCtxRelease_v2(self.device));
            if self.is_lost() {
                self.note("cuDevicePrimaryCtxReset", sys::cuDevicePrimaryCtxReset_v2(self.device));
                tracing::info!("cuda:{} has been reset after an error", self.info.index);
            }
        }
    }
}

/// Turns a code into a result.
pub(super) fn check(call: &str, code: CUresult) -> Result<()> {
    if code == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(driver_error(call, code)) }
}
