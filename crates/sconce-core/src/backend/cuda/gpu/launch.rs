//! [`Launcher`]: puts kernels on the stream. On Hopper and later a kernel begins while the one before it ends (programmatic
//! dependent launch): its blocks take their places, and do what needs nothing of those before it.
//!
//! That it is safe is the kernels' doing. Each thread of each kernel waits (`wait_for_writes`) before it reads what the kernel
//! before may write and before it writes anything. The wait returns when that kernel has ended and its writes can be seen; as that
//! one has waited too, so have all before it. A kernel lets the next one begin (`let_next_begin`) no earlier than when it has
//! waited itself: all but the kernel directly before have ended by then, and what that one does not write (weights, the step's
//! inputs, keys of earlier steps) can be read ahead of the wait. Norms, RoPE and decode attention of few rows let the next one
//! begin at once: what comes behind them reads nothing ahead of its wait that is written from the kernel before them on. One that
//! streams weights lets the next one in when they are there: the weights of the next product are under way while what comes between
//! is computed, and its blocks find all multiprocessors free of products. One whose weights a step writes (`Dims::behind`) begins when
//! they are written, for it would read them ahead of its wait. Copies, cuBLASLt's products, graphs and whatever else is no kernel of
//! ours wait for all before them, and are waited for in full.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys::{
    self, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue,
    CUlaunchAttributeValue_union__bindgen_ty_1 as ClusterDim, CUlaunchConfig, CUresult,
};

use super::super::device::Dims;
use super::context::Context;
use super::info::GpuInfo;

/// The first devices that can, and the first driver whose graphs can.
const MIN_COMPUTE_CAPABILITY: (u32, u32) = (9, 0);
const MIN_GRAPH_DRIVER: u32 = 12_030;

/// Rows of which norms, RoPE and decode attention let the next kernel in at once, unless `SCONCE_CUDA_EARLY_ROWS` says otherwise.
const EARLY_ROWS: usize = 2;

/// How kernels are launched.
pub(super) struct Launcher {
    /// Whether a kernel may begin before the one before it has ended; no more once the driver has refused.
    overlaps: AtomicBool,
    overlaps_in_graphs: bool,
    pub(super) early_rows: usize,
}

fn early_rows(setting: Option<&str>) -> usize {
    let Some(setting) = setting else { return EARLY_ROWS };
    setting.parse().unwrap_or_else(|_| {
        tracing::warn!("SCONCE_CUDA_EARLY_ROWS is no number: {setting:?}; {EARLY_ROWS} in its place");
        EARLY_ROWS
    })
}

impl Launcher {
    /// For a device. `SCONCE_CUDA_PDL=0`: each kernel begins when the one before it has ended.
    pub(super) fn new(info: &GpuInfo) -> Self {
        let is_wanted = std::env::var_os("SCONCE_CUDA_PDL").is_none_or(|value| value != "0");
        Self {
            overlaps: AtomicBool::new(is_wanted && info.compute_capability >= MIN_COMPUTE_CAPABILITY),
            overlaps_in_graphs: info.driver_version >= MIN_GRAPH_DRIVER,
            early_rows: early_rows(std::env::var("SCONCE_CUDA_EARLY_ROWS").ok().as_deref()),
        }
    }

    /// Puts a kernel on the stream, and returns what the driver says.
    ///
    /// # Safety
    /// `params` are the function's parameters, and the memory that they name is as the kernel's head says.
    pub(super) unsafe fn launch(
        &self,
        context: &Context,
        function: sys::CUfunction,
        dims: &Dims,
        params: *mut *mut c_void,
    ) -> CUresult {
        let overlaps = dims.overlaps
            && self.overlaps.load(Ordering::Relaxed)
            && (self.overlaps_in_graphs || !context.is_capturing());
        // SAFETY: by the contract.
        let code = unsafe { launch(context, function, dims, params, overlaps) };
        if code == CUresult::CUDA_SUCCESS || !overlaps {
            return code;
        }
        // SAFETY: by the contract; nothing was launched.
        let plain = unsafe { launch(context, function, dims, params, false) };
        // A call that fails may spoil the capture it was made in: then the next one must do without.
        if matches!(plain, CUresult::CUDA_SUCCESS | CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED) {
            self.overlaps.store(false, Ordering::Relaxed);
            tracing::debug!(
                "the driver refuses programmatic dependent launches ({code:?}): kernels follow one another"
            );
        }
        plain
    }
}

/// # Safety
/// As [`Launcher::launch`].
unsafe fn launch(
    context: &Context,
    function: sys::CUfunction,
    dims: &Dims,
    params: *mut *mut c_void,
    overlaps: bool,
) -> CUresult {
    let attribute = |id, value| CUlaunchAttribute { id, pad: [0; 4], value };
    let cluster = ClusterDim { x: dims.cluster, y: 1, z: 1 };
    let mut attributes = [
        attribute(
            CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            CUlaunchAttributeValue { programmaticStreamSerializationAllowed: i32::from(overlaps) },
        ),
        attribute(
            CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            CUlaunchAttributeValue { clusterDim: cluster },
        ),
    ];
    // Of the two what is asked for: drivers and devices that know neither are given none.
    let wanted = match (overlaps, dims.cluster > 1) {
        (false, false) => &mut attributes[..0],
        (true, false) => &mut attributes[..1],
        (false, true) => &mut attributes[1..],
        (true, true) => &mut attributes[..],
    };
    let config = CUlaunchConfig {
        gridDimX: dims.grid[0],
        gridDimY: dims.grid[1],
        gridDimZ: dims.grid[2],
        blockDimX: dims.block[0],
        blockDimY: dims.block[1],
        blockDimZ: dims.block[2],
        sharedMemBytes: dims.shared_bytes,
        hStream: context.stream(),
        attrs: wanted.as_mut_ptr(),
        numAttrs: wanted.len() as u32,
    };
    // SAFETY: the function is loaded and the stream lives; parameters are its own by the contract; the driver copies all that it
    // is given before it returns.
    unsafe { sys::cuLaunchKernelEx(&config, function, params, std::ptr::null_mut()) }
}
