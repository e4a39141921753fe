//! [`Products`]: matrix products by cuBLASLt. What describes a product and the algorithm for it are made once per shape.
//!
//! cuBLASLt counts columns first. A row-major [n, k] is its column-major [k, n], so out = x . weight^T is
//! out^T [out_cols, n] = weight [out_cols, k] . x^T [k, n]: A is the weight, transposed, and B is x.
//!
//! The algorithm is chosen for the number of rows rounded up to a power of two and taken for all numbers of rows that round
//! to it, as long as the process lives: fewer questions, and sums of a row in one order whoever else is in the batch,
//! within those bounds. It is the fastest of a trial of those that cuBLASLt proposes, made when a shape comes for the first
//! time, with the call's own inputs and output. Where that cannot be, while a graph is captured or if timing fails, it is
//! cuBLASLt's first. A trial's winner may differ from run to run, and with it the last bits of results: products by
//! cuBLASLt are for those who asked for speed.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::sys::{
    self, cublasComputeType_t, cublasLtMatmulAlgo_t, cublasLtMatmulDescAttributes_t as DescAttribute,
    cublasLtMatmulHeuristicResult_t, cublasLtMatmulPreferenceAttributes_t as Preference, cublasStatus_t, cudaDataType,
};
use cudarc::driver::sys as driver;

use super::super::device::{DevicePtr, ElemType, Matmul};
use super::context::Context;
use super::error::cublas_error;
use super::load::load;
use super::places::Library;
use super::trial::fastest;
use crate::error::{Error, Result};

/// What NVIDIA advises for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;
/// The most alignment that makes a difference.
const MAX_ALIGNMENT: u64 = 256;
/// Algorithms that are asked for and tried.
const MAX_CANDIDATES: usize = 8;
/// Shapes that are kept. Prompts come in many lengths: when it is full, all are forgotten and made again.
const MAX_PLANS: usize = 4096;
/// cuBLAS's word for "transposed".
static TRANSPOSED: i32 = 1;

/// All that the choice of an algorithm depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    num_rows: usize,
    cols: usize,
    out_cols: usize,
    out_stride: usize,
    in_type: cudaDataType,
    out_type: cudaDataType,
    /// Of weight, x and out, in bytes.
    alignments: [u32; 3],
}

/// What describes a product to cuBLASLt, given back when it is dropped.
struct Descriptors {
    product: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
}

/// A shape's descriptors and algorithm.
struct Plan {
    descriptors: Descriptors,
    algorithm: cublasLtMatmulAlgo_t,
}

/// Products by cuBLASLt.
pub(super) struct Products {
    handle: sys::cublasLtHandle_t,
    workspace: driver::CUdeviceptr,
    plans: HashMap<Shape, Plan>,
    /// Algorithms of shapes whose number of rows is a power of two.
    algorithms: HashMap<Shape, cublasLtMatmulAlgo_t>,
    context: Arc<Context>,
}

// SAFETY: the handles may be used from any thread whose context is theirs; `&mut` keeps threads apart.
unsafe impl Send for Products {}

impl Products {
    /// Loads cuBLASLt and takes its workspace.
    pub(super) fn new(context: &Arc<Context>) -> Result<Self> {
        load(Library::CublasLt, context.info.driver_version / 1000)?;
        context.enter()?;
        let mut products = Self {
            handle: std::ptr::null_mut(),
            workspace: 0,
            plans: HashMap::new(),
            algorithms: HashMap::new(),
            context: context.clone(),
        };
        // SAFETY: the library is loaded; each call is given where its answer goes.
        unsafe {
            let code = driver::cuMemAlloc_v2(&mut products.workspace, WORKSPACE_BYTES);
            context.check("cuMemAlloc of cuBLASLt's workspace", code)?;
            check("cublasLtCreate", sys::cublasLtCreate(&mut products.handle))?;
            tracing::debug!("cuBLASLt {} is ready", sys::cublasLtGetVersion());
        }
        Ok(products)
    }

    /// Puts a product on the stream.
    ///
    /// # Safety
    /// There is so much memory as the shapes say.
    pub(super) unsafe fn run(&mut self, call: &Matmul) -> Result<()> {
        let shape = Shape::of(call)?;
        if !self.plans.contains_key(&shape) {
            // SAFETY: by this function's contract.
            let plan = unsafe { self.plan(shape, call)? };
            if self.plans.len() >= MAX_PLANS {
                self.plans.clear();
            }
            self.plans.insert(shape, plan);
        }
        let Some(Plan { descriptors, algorithm }) = self.plans.get(&shape) else {
            return Err(Error::internal("a matrix product's plan is gone"));
        };
        // SAFETY: by this function's contract.
        unsafe { self.multiply(call, descriptors, algorithm) }
    }

    /// # Safety
    /// There is so much memory as the shapes say; the descriptors are the call's, and the algorithm is good for them.
    unsafe fn multiply(
        &self,
        call: &Matmul,
        descriptors: &Descriptors,
        algorithm: &cublasLtMatmulAlgo_t,
    ) -> Result<()> {
        let (alpha, beta) = (1.0f32, 0.0f32);
        let pointer = |ptr: DevicePtr| std::ptr::without_provenance_mut::<c_void>(ptr.0 as usize);
        let (weight, x, out) = (pointer(call.weight), pointer(call.x), pointer(call.out));
        // SAFETY: by this function's contract; scalars are f32 as the descriptor says and are read before the call returns;
        // beta is 0, so that `out` is not read; the workspace is used in the stream's order.
        let code = unsafe {
            sys::cublasLtMatmul(
                self.handle,
                descriptors.product,
                (&raw const alpha).cast(),
                weight,
                descriptors.weight,
                x,
                descriptors.x,
                (&raw const beta).cast(),
                out,
                descriptors.out,
                out,
                descriptors.out,
                algorithm,
                std::ptr::without_provenance_mut(self.workspace as usize),
                WORKSPACE_BYTES,
                self.context.stream().cast(),
            )
        };
        check(&format!("cublasLtMatmul {call:?}"), code)
    }

    /// # Safety
    /// As [`Products::run`].
    unsafe fn plan(&mut self, shape: Shape, call: &Matmul) -> Result<Plan> {
        let descriptors = Descriptors::new(&shape)?;
        let rounded = Shape { num_rows: shape.num_rows.next_power_of_two(), ..shape };
        if !self.algorithms.contains_key(&rounded) {
            let candidates = self.candidates(&Descriptors::new(&rounded)?, &rounded)?;
            // SAFETY: by this function's contract.
            let algorithm = unsafe { self.choose(&candidates, call, &descriptors) };
            self.algorithms.insert(rounded, algorithm);
        }
        if let Some(&algorithm) = self.algorithms.get(&rounded)
            && self.is_good_for(&descriptors, &algorithm)
        {
            return Ok(Plan { descriptors, algorithm });
        }
        tracing::debug!("{shape:?}: the algorithm of {} rows does not serve", rounded.num_rows);
        let candidates = self.candidates(&descriptors, &shape)?;
        // SAFETY: by this function's contract.
        let algorithm = unsafe { self.choose(&candidates, call, &descriptors) };
        Ok(Plan { descriptors, algorithm })
    }

    /// The fastest of the candidates, of which there is at least one, in a trial with the call's inputs, which leaves its output
    /// to be written again.
    ///
    /// # Safety
    /// As [`Products::run`]; the descriptors are the call's.
    unsafe fn choose(
        &self,
        candidates: &[cublasLtMatmulAlgo_t],
        call: &Matmul,
        descriptors: &Descriptors,
    ) -> cublasLtMatmulAlgo_t {
        let first = candidates[0];
        if candidates.len() == 1 || self.context.is_capturing() {
            return first;
        }
        let suitable: Vec<_> = candidates.iter().filter(|algorithm| self.is_good_for(descriptors, algorithm)).collect();
        // SAFETY: by this function's contract; the algorithms were checked for the descriptors.
        let mut work = |idx: usize| unsafe { self.multiply(call, descriptors, suitable[idx]) };
        match fastest(&self.context, suitable.len(), &mut || Ok(()), &mut work) {
            Ok(Some((idx, ms))) => {
                tracing::debug!("{call:?}: algorithm {idx} of {} takes {:.1} us", suitable.len(), ms * 1e3);
                *suitable[idx]
            }
            Ok(None) => first,
            Err(error) => {
                tracing::debug!("{call:?}: no trial of algorithms, the first is taken: {error}");
                first
            }
        }
    }

    fn is_good_for(&self, descriptors: &Descriptors, algorithm: &cublasLtMatmulAlgo_t) -> bool {
        let Descriptors { product, weight, x, out } = *descriptors;
        let mut result = no_result();
        // SAFETY: the handles live; `result` is where the answer goes.
        let code =
            unsafe { sys::cublasLtMatmulAlgoCheck(self.handle, product, weight, x, out, out, algorithm, &mut result) };
        code == cublasStatus_t::CUBLAS_STATUS_SUCCESS && result.workspaceSize <= WORKSPACE_BYTES
    }

    /// What cuBLASLt proposes, best first, of what the workspace is large enough for: one at least.
    fn candidates(&self, descriptors: &Descriptors, shape: &Shape) -> Result<Vec<cublasLtMatmulAlgo_t>> {
        let Descriptors { product, weight, x, out } = *descriptors;
        let (mut results, mut count) = ([no_result(); MAX_CANDIDATES], 0);
        let preferences = Preferences::new(shape)?;
        // SAFETY: the handles live; there is room for the results that are asked for.
        let code = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                product,
                weight,
                x,
                out,
                out,
                preferences.0,
                MAX_CANDIDATES as i32,
                results.as_mut_ptr(),
                &mut count,
            )
        };
        check(&format!("cublasLtMatmulAlgoGetHeuristic {shape:?}"), code)?;
        let results = &results[..usize::try_from(count).unwrap_or(0).min(MAX_CANDIDATES)];
        let is_suitable = |result: &&cublasLtMatmulHeuristicResult_t| {
            result.state == cublasStatus_t::CUBLAS_STATUS_SUCCESS && result.workspaceSize <= WORKSPACE_BYTES
        };
        let candidates: Vec<_> = results.iter().filter(is_suitable).map(|result| result.algo).collect();
        if candidates.is_empty() {
            return Err(Error::Device { message: format!("cuBLASLt has no algorithm for {shape:?}") });
        }
        tracing::debug!("{shape:?}: {} algorithms", candidates.len());
        Ok(candidates)
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        self.plans.clear();
        if self.context.enter().is_ok() {
            // SAFETY: nothing uses the workspace or the handle after this; both were made here.
            unsafe {
                if !self.handle.is_null() {
                    sys::cublasLtDestroy(self.handle);
                }
                self.context.note("cuMemFree", driver::cuMemFree_v2(self.workspace));
            }
        }
    }
}

impl Shape {
    fn of(call: &Matmul) -> Result<Self> {
        let Matmul { num_rows, cols, out_cols, out_stride, in_type, out_type, .. } = *call;
        let is_supported = out_type == in_type || out_type == ElemType::F32;
        if !is_supported || [num_rows, cols, out_cols].contains(&0) || out_stride < out_cols {
            return Err(Error::internal(format!("no such matrix product: {call:?}")));
        }
        let alignment = |ptr: DevicePtr| 1u32 << (ptr.0 | MAX_ALIGNMENT).trailing_zeros();
        Ok(Self {
            num_rows,
            cols,
            out_cols,
            out_stride,
            in_type: data_type(in_type),
            out_type: data_type(out_type),
            alignments: [call.weight, call.x, call.out].map(alignment),
        })
    }
}

fn data_type(elem: ElemType) -> cudaDataType {
    match elem {
        ElemType::F32 => cudaDataType::CUDA_R_32F,
        ElemType::Bf16 => cudaDataType::CUDA_R_16BF,
        ElemType::F16 => cudaDataType::CUDA_R_16F,
    }
}

impl Descriptors {
    fn new(shape: &Shape) -> Result<Self> {
        let (compute, scale) = (cublasComputeType_t::CUBLAS_COMPUTE_32F, cudaDataType::CUDA_R_32F);
        let mut made = Self {
            product: std::ptr::null_mut(),
            weight: std::ptr::null_mut(),
            x: std::ptr::null_mut(),
            out: std::ptr::null_mut(),
        };
        let (rows, cols, out_cols) = (shape.num_rows as u64, shape.cols as u64, shape.out_cols as u64);
        let (in_type, out_type) = (shape.in_type, shape.out_type);
        // SAFETY: the library is loaded; each call is given where its answer goes, and the attribute's value and length.
        unsafe {
            check("cublasLtMatmulDescCreate", sys::cublasLtMatmulDescCreate(&mut made.product, compute, scale))?;
            let code = sys::cublasLtMatmulDescSetAttribute(
                made.product,
                DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const TRANSPOSED).cast(),
                size_of::<i32>(),
            );
            check("cublasLtMatmulDescSetAttribute", code)?;
            let layout = |at: &mut _, elem, rows: u64, cols: u64, stride: i64| {
                check("cublasLtMatrixLayoutCreate", sys::cublasLtMatrixLayoutCreate(at, elem, rows, cols, stride))
            };
            layout(&mut made.weight, in_type, cols, out_cols, shape.cols as i64)?;
            layout(&mut made.x, in_type, cols, rows, shape.cols as i64)?;
            layout(&mut made.out, out_type, out_cols, rows, shape.out_stride as i64)?;
        }
        Ok(made)
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: each was made here or is null, and this is the only owner.
        unsafe {
            if !self.product.is_null() {
                sys::cublasLtMatmulDescDestroy(self.product);
            }
            for layout in [self.weight, self.x, self.out].into_iter().filter(|layout| !layout.is_null()) {
                sys::cublasLtMatrixLayoutDestroy(layout);
            }
        }
    }
}

/// What an algorithm may use, given back when it is dropped.
struct Preferences(sys::cublasLtMatmulPreference_t);

impl Preferences {
    fn new(shape: &Shape) -> Result<Self> {
        let mut made = Self(std::ptr::null_mut());
        let workspace = WORKSPACE_BYTES as u64;
        let [weight, x, out] = shape.alignments;
        // cuBLASLt takes 256 for granted where nothing is said.
        let alignments = [
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, weight),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out),
        ];
        // SAFETY: the library is loaded; attributes are given by address and length.
        unsafe {
            check("cublasLtMatmulPreferenceCreate", sys::cublasLtMatmulPreferenceCreate(&mut made.0))?;
            let set = |attribute, value: *const c_void, len| {
                let code = sys::cublasLtMatmulPreferenceSetAttribute(made.0, attribute, value, len);
                check(&format!("cublasLtMatmulPreferenceSetAttribute {attribute:?}"), code)
            };
            let most = Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            set(most, (&raw const workspace).cast(), size_of::<u64>())?;
            for (attribute, bytes) in &alignments {
                set(*attribute, std::ptr::from_ref(bytes).cast(), size_of::<u32>())?;
            }
        }
        Ok(made)
    }
}

impl Drop for Preferences {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: it was made here, and this is the only owner.
            unsafe { sys::cublasLtMatmulPreferenceDestroy(self.0) };
        }
    }
}

fn no_result() -> cublasLtMatmulHeuristicResult_t {
    cublasLtMatmulHeuristicResult_t {
        algo: cublasLtMatmulAlgo_t { data: [0; 8] },
        workspaceSize: 0,
        state: cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
        wavesCount: 0.0,
        reserved: [0; 4],
    }
}

fn check(call: &str, code: cublasStatus_t) -> Result<()> {
    if code == cublasStatus_t::CUBLAS_STATUS_SUCCESS { Ok(()) } else { Err(cublas_error(call, code)) }
}
