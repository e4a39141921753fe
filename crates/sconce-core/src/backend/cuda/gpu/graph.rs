//! [`GpuGraph`]: launches that were written down once and are run with one call.

use std::sync::Arc;
use std::time::Instant;

use cudarc::driver::sys::{self, CUresult, CUstreamCaptureMode};

use super::super::device::Graph;
use super::Inner;
use super::context::Context;
use crate::error::{Error, Result};

/// Launches, ready to run. It keeps the kernels loaded.
pub(super) struct GpuGraph {
    runnable: sys::CUgraphExec,
    gpu: Arc<Inner>,
}

// SAFETY: the driver's handles may be used from any thread, one at a time, which `&self` of a value that is not Sync ensures.
unsafe impl Send for GpuGraph {}

/// From now on the stream writes down what is launched on it. The thread that captures cannot allocate meanwhile; others can.
pub(super) fn begin_capture(context: &Context) -> Result<()> {
    context.forbid_in_capture("beginning another capture")?;
    context.enter()?;
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    // SAFETY: the stream lives as long as the context.
    let code = unsafe { sys::cuStreamBeginCapture_v2(context.stream(), mode) };
    context.check("cuStreamBeginCapture", code)?;
    context.set_capturing(true);
    Ok(())
}

/// Ends the capture, whatever has become of it, and makes what was written down runnable.
pub(super) fn end_capture(gpu: &Arc<Inner>) -> Result<GpuGraph> {
    let context = &gpu.context;
    if !context.is_capturing() {
        return Err(Error::internal("the end of a CUDA graph's capture that was not begun"));
    }
    context.set_capturing(false);
    context.enter()?;
    let begun = Instant::now();
    let mut graph = std::ptr::null_mut();
    // SAFETY: the stream lives; `graph` is where the answer goes.
    let code = unsafe { sys::cuStreamEndCapture(context.stream(), &mut graph) };
    if code == CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED {
        let message =
            "cuStreamEndCapture: a call that was made during the capture cannot be part of a graph, or failed";
        return Err(Error::Device { message: message.into() });
    }
    context.check("cuStreamEndCapture", code)?;
    if graph.is_null() {
        return Err(Error::Device { message: "cuStreamEndCapture: there is no graph".into() });
    }
    let (mut runnable, mut num_nodes) = (std::ptr::null_mut(), 0);
    // SAFETY: the graph was just made; nodes are counted, not listed; the runnable one does not need it any more.
    let code = unsafe {
        context.note("cuGraphGetNodes", sys::cuGraphGetNodes(graph, std::ptr::null_mut(), &mut num_nodes));
        let code = sys::cuGraphInstantiateWithFlags(&mut runnable, graph, 0);
        context.note("cuGraphDestroy", sys::cuGraphDestroy(graph));
        code
    };
    context.check(&format!("cuGraphInstantiateWithFlags of {num_nodes} nodes"), code)?;
    let made = GpuGraph { runnable, gpu: gpu.clone() };
    // SAFETY: the graph is runnable, and the stream lives.
    context.check("cuGraphUpload", unsafe { sys::cuGraphUpload(made.runnable, context.stream()) })?;
    tracing::debug!("a CUDA graph of {num_nodes} nodes is ready after {:.1} ms", begun.elapsed().as_secs_f64() * 1e3);
    Ok(made)
}

impl Graph for GpuGraph {
    unsafe fn launch(&self) -> Result<()> {
        let context = &self.gpu.context;
        context.forbid_in_capture("launching a graph")?;
        context.enter()?;
        // SAFETY: the graph is runnable and the stream lives; the memory that it names is there by the contract.
        context.check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.runnable, context.stream()) })?;
        self.gpu.wait_if_asked("a CUDA graph")
    }
}

impl Drop for GpuGraph {
    fn drop(&mut self) {
        if self.gpu.context.enter().is_ok() {
            // SAFETY: a graph that still runs is given back when it is done.
            self.gpu.context.note("cuGraphExecDestroy", unsafe { sys::cuGraphExecDestroy(self.runnable) });
        }
    }
}
