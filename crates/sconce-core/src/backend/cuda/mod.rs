//! The CUDA backend: operations as hand-written kernels (`kernels/`), launched on a device ([`device`]): NVIDIA's GPUs
//! ([`gpu`]), or in tests this machine, by way of the host shim.

#[allow(dead_code, unreachable_pub, reason = "the backend whose types these are to be is yet to come")]
pub(crate) mod batch;
#[allow(dead_code, reason = "few operations launch kernels yet, and no model")]
pub(crate) mod device;
pub(crate) mod gpu;
#[cfg(test)]
pub(crate) mod host;
#[allow(dead_code, unreachable_pub, reason = "the backend whose types these are to be is yet to come")]
pub(crate) mod kv_cache;
#[allow(dead_code, unreachable_pub, reason = "the backend whose types these are to be is yet to come")]
pub(crate) mod storage;

pub use gpu::{GpuInfo, available, release, self_test};
