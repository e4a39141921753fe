//! What the driver's and cuBLASLt's codes say, and which of them a device does not recover from.

use std::ffi::CStr;

use cudarc::cublaslt::sys::cublasStatus_t;
use cudarc::driver::sys::{self, CUresult};

use crate::error::Error;

/// A failed call of the driver. The driver must be loaded.
pub(super) fn driver_error(call: &str, code: CUresult) -> Error {
    let mut text = std::ptr::null();
    // SAFETY: `text` is where the driver writes the address of one of its constants.
    let words = match unsafe { sys::cuGetErrorString(code, &mut text) } {
        CUresult::CUDA_SUCCESS if !text.is_null() => {
            // SAFETY: it is a constant of the driver's that ends with a zero.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        }
        _ => String::new(),
    };
    Error::Device { message: describe(call, code, &words) }
}

/// The code's name, the driver's words, and what to do where that is known.
pub(super) fn describe(call: &str, code: CUresult, words: &str) -> String {
    let mut message = format!("{call}: {code:?}");
    if !words.is_empty() {
        message += &format!(" ({words})");
    }
    if let Some(hint) = hint(code) {
        message += &format!(": {hint}");
    }
    message
}

fn hint(code: CUresult) -> Option<&'static str> {
    use CUresult::*;
    Some(match code {
        CUDA_ERROR_NO_DEVICE => "the driver is there, but it shows no GPU; CUDA_VISIBLE_DEVICES may hide it",
        CUDA_ERROR_STUB_LIBRARY => {
            "the library is the toolkit's stub for linking; take its folder out of LD_LIBRARY_PATH"
        }
        CUDA_ERROR_OPERATING_SYSTEM => {
            "the device's files cannot be opened: the container was started without the GPU?"
        }
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => "the library and the kernel's module are of different drivers",
        CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            "the library is of a compatibility package that this GPU cannot use"
        }
        CUDA_ERROR_SYSTEM_NOT_READY => "a service is not running: on machines with NVSwitch, nvidia-fabricmanager",
        CUDA_ERROR_DEVICE_UNAVAILABLE => "another process has the GPU for itself",
        CUDA_ERROR_OUT_OF_MEMORY => "other processes may use the GPU's memory too",
        code if is_fatal(code) => "a kernel that was launched before it may be at fault; SCONCE_CUDA_SYNC=1 names it",
        _ => return None,
    })
}

/// Whether every later call in this context fails too.
pub(super) fn is_fatal(code: CUresult) -> bool {
    use CUresult::*;
    matches!(
        code,
        CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_DEINITIALIZED
            | CUDA_ERROR_EXTERNAL_DEVICE
            | CUDA_ERROR_CONTAINED
            | CUDA_ERROR_TENSOR_MEMORY_LEAK
            | CUDA_ERROR_UNKNOWN
    )
}

/// Whether an image does not suit the device or the driver, so that another one is worth a try.
pub(super) fn is_unsuitable_image(code: CUresult) -> bool {
    use CUresult::*;
    matches!(
        code,
        CUDA_ERROR_INVALID_IMAGE
            | CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUDA_ERROR_INVALID_PTX
            | CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | CUDA_ERROR_JIT_COMPILER_NOT_FOUND
            | CUDA_ERROR_JIT_COMPILATION_DISABLED
            | CUDA_ERROR_INVALID_SOURCE
            | CUDA_ERROR_NOT_SUPPORTED
    )
}

/// A failed call of cuBLASLt.
pub(super) fn cublas_error(call: &str, code: cublasStatus_t) -> Error {
    Error::Device { message: format!("{call}: {code:?}") }
}
