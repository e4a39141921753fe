//! [`SharedGpu`]: one GPU for several models.

use std::sync::{Mutex, PoisonError, Weak};

use super::backend::CudaBackend;
use super::device::Device;
use crate::config::WeightDtype;
use crate::error::Result;
use crate::weights::Dtype;

/// A GPU for several models, which take turns on one stream. It is opened once for as long as one of them holds it: kernels are
/// loaded once, and what one has lost all have lost.
#[derive(Debug)]
pub struct SharedGpu {
    index: usize,
    device: Mutex<Weak<dyn Device>>,
}

impl SharedGpu {
    /// That of a backend.
    pub fn of(backend: &CudaBackend) -> Self {
        Self { index: backend.index(), device: Mutex::new(backend.device()) }
    }

    /// A backend for weights that are stored as `stored` and asked for as `asked`: on the device that others hold, or, once all have
    /// given it up, on one that is opened anew. Errors: those of [`CudaBackend::open`].
    pub fn open(&self, asked: WeightDtype, stored: Dtype) -> Result<CudaBackend> {
        let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        let backend = match device.upgrade() {
            Some(device) => CudaBackend::open_on(device, self.index, asked, stored)?,
            None => CudaBackend::open(self.index, asked, stored)?,
        };
        *device = backend.device();
        Ok(backend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::device::ElemType;
    use crate::ops::testing::devices;

    #[test]
    fn a_gpu_is_shared_for_as_long_as_somebody_holds_it() {
        let first = CudaBackend::new(devices().remove(0), ElemType::Bf16);
        let shared = SharedGpu::of(&first);
        let open = |stored| shared.open(WeightDtype::Auto, stored).expect("the device is open");
        let (a, b) = (open(Dtype::BF16), open(Dtype::F16));
        assert!(Weak::ptr_eq(&a.device(), &first.device()) && Weak::ptr_eq(&b.device(), &first.device()));
        assert_eq!([a.weight_dtype(), b.weight_dtype()], [WeightDtype::Bf16, WeightDtype::F16]);
        drop((first, a));
        assert!(Weak::ptr_eq(&open(Dtype::BF16).device(), &b.device()));
        let device = b.device();
        drop(b);
        assert!(device.upgrade().is_none(), "whoever shares it does not hold it");
    }
}
