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
pub(crate) mod quant;
mod shared;
pub(crate) mod storage;
#[cfg(test)]
mod tests;
pub(crate) mod weights;

pub use crate::ops::attention::timing::{AttentionTime, AttentionWork};
pub use crate::ops::linear::timing::ProductTime;
pub use backend::CudaBackend;
pub(crate) use backend::STEP_TOKENS;
pub use gpu::{GpuInfo, available, release, self_test, time_attention, time_products};
pub use shared::SharedGpu;

use crate::backend::KvDtype;
use crate::config::{KvCacheDtype, WeightDtype};
use crate::error::Result;
use crate::weights::Dtype;

/// The type in memory of weights that are stored as `stored`, beside activations of `dtype`, one of 16 bits.
pub(crate) fn memory_dtype(stored: Dtype, keeps_blocks: bool, dtype: WeightDtype) -> Dtype {
    let elem = if dtype == WeightDtype::F16 { device::ElemType::F16 } else { device::ElemType::Bf16 };
    match (stored, dtype) {
        (Dtype::F8E4M3, _) => Dtype::F8E4M3,
        _ if keeps_blocks && weights::stays(stored, elem) => stored,
        (_, WeightDtype::F16) => Dtype::F16,
        _ => Dtype::BF16,
    }
}

/// Whether weights stay in their block formats: where no type is asked for, as on the CPU.
pub(crate) fn keeps_blocks(asked: WeightDtype) -> bool {
    asked == WeightDtype::Auto
}

/// The types that a model's weights, and its keys and values, have on a GPU. `stored`: what most weights are stored in.
/// Errors: a type was asked for that GPUs do not have.
pub(crate) fn dtypes(asked: WeightDtype, kv: KvCacheDtype, stored: Dtype) -> Result<(WeightDtype, KvDtype)> {
    let elem = weights::elem_type(asked, stored)?;
    Ok((weights::weight_dtype(elem), kv_cache::dtype(elem, kv)?))
}
