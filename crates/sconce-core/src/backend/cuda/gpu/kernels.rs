//! [`Kernels`]: all kernels, loaded and found by their names.

use std::collections::HashMap;
use std::ffi::CString;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use cudarc::driver::sys::{self, CUfunction_attribute as Attribute, CUjit_option as JitOption, CUresult};

use super::cache::KernelCache;
use super::compile::compile_all;
use super::context::Context;
use super::error::{driver_error, is_unsuitable_image};
use super::image::{Image, Packed, embedded, suitable};
use crate::error::{Error, Result};

/// Where kernels come from; `SCONCE_CUDA_KERNELS` chooses.
const CHOICE_VARIABLE: &str = "SCONCE_CUDA_KERNELS";

/// All kernels, loaded.
pub(super) struct Kernels {
    functions: HashMap<String, sys::CUfunction>,
    modules: Vec<sys::CUmodule>,
    context: Arc<Context>,
}

// SAFETY: the driver's handles may be used from any thread whose context is theirs, which `Context::enter` sees to.
unsafe impl Send for Kernels {}
// SAFETY: as above; nothing of it changes after it is made.
unsafe impl Sync for Kernels {}

/// Why images could not be loaded.
enum Refusal {
    /// They do not suit the device or the driver: others may.
    Unsuitable(Error),
    /// Anything else.
    Failed(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Kernels {
    /// Loads the best that there is: machine code, PTX, or the sources by way of NVRTC.
    pub(super) fn load(context: &Arc<Context>) -> Result<Self> {
        let info = &context.info;
        if let Some(problem) = info.problem() {
            return Err(Error::config("device", format!("cuda:{} ({}): {problem}", info.index, info.name)));
        }
        let choice = std::env::var(CHOICE_VARIABLE).unwrap_or_default();
        let is_wanted = |target: &&str| match choice.as_str() {
            "cubin" => target.starts_with("sm_"),
            "ptx" => target.starts_with("compute_"),
            "source" => false,
            _ => true,
        };
        let mut targets: Vec<&'static str> = embedded::IMAGES.iter().map(|image| image.target).collect();
        targets.retain(is_wanted);
        let mut refused = Vec::new();
        for target in suitable(info.compute_capability, &targets) {
            let packed = embedded::IMAGES.iter().filter(|image| image.target == target);
            let mut images = packed.map(Packed::unpack).collect::<Result<Vec<_>>>()?;
            if choice.contains('/') {
                images.iter_mut().try_for_each(|image| image.replace(Path::new(&choice)))?;
            }
            let from = format!("{target} of nvcc {}", embedded::NVCC_RELEASE.unwrap_or_default());
            match Self::load_images(context, &images, &from) {
                Ok(kernels) => return Ok(kernels),
                Err(Refusal::Failed(error)) => return Err(error),
                Err(Refusal::Unsuitable(error)) => {
                    tracing::warn!("kernels for {from} are refused: {error}");
                    refused.push(format!("{from}: {error}"));
                }
            }
        }
        let explain = |error: Error| match (refused.is_empty(), &error) {
            (false, Error::Config { field, message }) => Error::config(
                field.clone(),
                format!("{message}; and embedded kernels are refused: {}", refused.join("; ")),
            ),
            _ => error,
        };
        Self::load_sources(context).map_err(explain)
    }

    fn load_sources(context: &Arc<Context>) -> Result<Self> {
        let info = &context.info;
        let cache = KernelCache::of_user();
        let (sources, headers) = (embedded::SOURCES, embedded::HEADERS);
        let images = compile_all(sources, headers, info.compute_capability, info.driver_version, &cache)?;
        Self::load_images(context, &images, "NVRTC").map_err(|refusal| match refusal {
            Refusal::Failed(error) | Refusal::Unsuitable(error) => error,
        })
    }

    fn load_images(context: &Arc<Context>, images: &[Image], from: &str) -> Result<Self, Refusal> {
        let begun = Instant::now();
        context.enter()?;
        let mut kernels = Self { functions: HashMap::new(), modules: Vec::new(), context: context.clone() };
        let mut num_bytes = 0;
        for image in images {
            num_bytes += image.bytes.len();
            kernels.load_image(image)?;
        }
        tracing::debug!(
            "{} kernels of {} files ({num_bytes} bytes, {from}) are loaded in {:.0} ms",
            kernels.functions.len(),
            images.len(),
            begun.elapsed().as_secs_f64() * 1e3
        );
        Ok(kernels)
    }

    fn load_image(&mut self, image: &Image) -> Result<(), Refusal> {
        let context = &self.context;
        let mut log = vec![0u8; 8192];
        let mut options = [JitOption::CU_JIT_ERROR_LOG_BUFFER, JitOption::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        // Numbers go where pointers go, by value.
        let mut values = [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(log.len())];
        let mut module = std::ptr::null_mut();
        let bytes = image.bytes.as_ptr().cast();
        // SAFETY: the image is whole, ELF or PTX with a zero at its end; the log is as long as is said.
        let code = unsafe { sys::cuModuleLoadDataEx(&mut module, bytes, 2, options.as_mut_ptr(), values.as_mut_ptr()) };
        if code != CUresult::CUDA_SUCCESS {
            let log = String::from_utf8_lossy(&log);
            let log = log.split('\0').next().unwrap_or_default().trim();
            let call = format!("cuModuleLoadDataEx {}{}{log}", image.source, if log.is_empty() { "" } else { ": " });
            return Err(if is_unsuitable_image(code) {
                Refusal::Unsuitable(driver_error(&call, code))
            } else {
                Refusal::Failed(context.check(&call, code).err().unwrap_or_else(|| driver_error(&call, code)))
            });
        }
        self.modules.push(module);
        for name in image.kernel_names()? {
            let function = prepare(context, module, &name)?;
            if self.functions.insert(name.clone(), function).is_some() {
                return Err(Error::internal(format!("two kernels are called {name}")).into());
            }
        }
        Ok(())
    }

    /// The names of all.
    #[cfg(test)]
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.functions.keys().map(String::as_str)
    }

    /// The kernel of that name.
    pub(super) fn get(&self, name: &str) -> Result<sys::CUfunction> {
        self.functions.get(name).copied().ok_or_else(|| Error::internal(format!("there is no kernel {name}")))
    }
}

/// Finds a kernel and has it loaded now rather than at its first launch, which could be while a graph is captured; and lets it
/// ask for all the shared memory that a block can have.
fn prepare(context: &Context, module: sys::CUmodule, name: &str) -> Result<sys::CUfunction> {
    let c_name = CString::new(name).map_err(|_| Error::internal("a kernel's name holds a zero byte"))?;
    let mut function = std::ptr::null_mut();
    // SAFETY: the module is loaded, and the name ends with a zero.
    let code = unsafe { sys::cuModuleGetFunction(&mut function, module, c_name.as_ptr()) };
    context.check(&format!("cuModuleGetFunction {name}"), code)?;
    let attribute = |attribute| {
        let mut value = 0;
        // SAFETY: the function is of a loaded module; `value` is where the answer goes.
        let code = unsafe { sys::cuFuncGetAttribute(&mut value, attribute, function) };
        context.check(&format!("cuFuncGetAttribute {name}"), code).map(|()| value)
    };
    let static_shared = attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
    let registers = attribute(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?;
    let local = attribute(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?;
    let threads = attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
    tracing::trace!(
        "{name}: {registers} registers, {static_shared} B shared, {local} B local, {threads} threads at most"
    );
    let most = (context.max_shared_bytes - static_shared).max(0);
    // SAFETY: as above.
    let code =
        unsafe { sys::cuFuncSetAttribute(function, Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, most) };
    context.check(&format!("cuFuncSetAttribute {name}: {most} bytes of shared memory"), code)?;
    Ok(function)
}

impl Drop for Kernels {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            for module in self.modules.drain(..) {
                // SAFETY: no kernel of it runs: whoever drops this has waited, and nothing launches after.
                self.context.note("cuModuleUnload", unsafe { sys::cuModuleUnload(module) });
            }
        }
    }
}
