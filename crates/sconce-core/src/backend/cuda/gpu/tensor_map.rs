//! Arrays as Hopper's copies of boxes see them.

use cudarc::driver::sys::{
    self, CUtensorMap, CUtensorMapDataType as DataType, CUtensorMapFloatOOBfill as Fill,
    CUtensorMapInterleave as Interleave, CUtensorMapL2promotion as Promotion, CUtensorMapSwizzle as Swizzle,
};

use super::super::device::{BoxShape, DevicePtr, ElemType, TensorMap};
use super::context::Context;
use crate::error::{Error, Result};

/// What has copies of boxes and kernels that use them.
const HOPPER: (u32, u32) = (9, 0);

/// A map, or `None` on other devices, and where the driver refuses it: all that is done with a map can be done without. What
/// lies beyond the array is zeros to a copy.
pub(super) fn encode(context: &Context, at: DevicePtr, shape: &BoxShape) -> Result<Option<TensorMap>> {
    if context.info.compute_capability != HOPPER {
        return Ok(None);
    }
    let data_type = match shape.elem {
        ElemType::Bf16 => DataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        ElemType::F16 => DataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        ElemType::F32 => return Err(Error::internal(format!("no map of {shape:?}: kernels copy boxes of 16 bits"))),
    };
    let dims = shape.dims.map(|dim| dim as u64);
    let row_bytes = dims[0] * shape.elem.bytes() as u64;
    let strides = [row_bytes, row_bytes * dims[1]];
    let steps = [1u32; 3];
    let mut map = CUtensorMap { opaque: [0; 16] };
    let address = std::ptr::without_provenance_mut(at.0 as usize);
    context.enter()?;
    // SAFETY: the map is where the answer goes; the lists are as long as three dimensions want, strides one less.
    let code = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            data_type,
            3,
            address,
            dims.as_ptr(),
            strides.as_ptr(),
            shape.box_dims.as_ptr(),
            steps.as_ptr(),
            Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    match context.check(&format!("cuTensorMapEncodeTiled of {shape:?}"), code) {
        Ok(()) => Ok(Some(TensorMap(map.opaque))),
        Err(error) if context.is_lost() => Err(error),
        Err(error) => {
            tracing::warn!("{error}; kernels for Hopper that want it are not used");
            Ok(None)
        }
    }
}
