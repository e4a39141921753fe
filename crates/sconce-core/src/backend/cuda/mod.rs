//! The CUDA backend: operations as hand-written kernels (`kernels/`), launched on a device ([`device`]): NVIDIA's GPUs
//! ([`gpu`]), or in tests this machine, by way of the host shim.

mod backend;
pub(crate) mod batch;
pub(crate) mod device;
pub(crate) mod gpu;
mod graphs;
#[cfg(test)]
pub(crate) mod host;
pub(crate) mod kv_cache;
pub(crate) mod storage;
#[cfg(test)]
mod tests;
mod weights;

pub use backend::CudaBackend;
pub use gpu::{GpuInfo, available, release, self_test};
