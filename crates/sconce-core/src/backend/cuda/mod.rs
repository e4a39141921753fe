//! The CUDA backend: [`device`] is what kernels run on, [`gpu`] is NVIDIA's.

#[allow(dead_code, reason = "what launches kernels is yet to come")]
pub(crate) mod device;
pub(crate) mod gpu;

pub use gpu::{GpuInfo, available, release, self_test};
