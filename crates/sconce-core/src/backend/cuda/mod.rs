//! The CUDA backend: operations as hand-written kernels (`kernels/`), launched on a [`Device`](device::Device).

pub(crate) mod device;
#[cfg(test)]
pub(crate) mod host;
pub(crate) mod storage;
