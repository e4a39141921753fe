//! Loading of NVIDIA's libraries. cudarc asks the system's loader for names and panics where it finds none; so each library
//! is looked for here first, by full path too, and kept loaded: the loader then finds it again by its name.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

use cudarc::driver::sys::{CUevent, CUresult};
use cudarc::{cublaslt, driver, nvrtc};
use libloading::Library as Handle;

use super::places::{Library, OWN_VARIABLE, Places};
use crate::error::{Error, Result};

/// Functions of the driver that this crate calls. A driver without one of them is too old; cudarc would panic.
const DRIVER_FUNCTIONS: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorString",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceTotalMem_v2",
    "cuDeviceGetAttribute",
    "cuDeviceGetPCIBusId",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxReset_v2",
    "cuCtxSetCurrent",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventElapsedTime",
    "cuGraphInstantiateWithFlags",
    "cuGraphUpload",
    "cuGraphLaunch",
    "cuGraphGetNodes",
    "cuGraphExecDestroy",
    "cuGraphDestroy",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuLaunchKernelEx",
    "cuTensorMapEncodeTiled",
];

const CUBLASLT_FUNCTIONS: &[&str] = &[
    "cublasLtGetVersion",
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoCheck",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
];

const NVRTC_FUNCTIONS: &[&str] = &[
    "nvrtcVersion",
    "nvrtcCreateProgram",
    "nvrtcCompileProgram",
    "nvrtcDestroyProgram",
    "nvrtcGetCUBIN",
    "nvrtcGetCUBINSize",
    "nvrtcGetProgramLog",
    "nvrtcGetProgramLogSize",
];

impl Library {
    fn functions(self) -> &'static [&'static str] {
        match self {
            Self::Driver => DRIVER_FUNCTIONS,
            Self::CublasLt => CUBLASLT_FUNCTIONS,
            Self::Nvrtc => NVRTC_FUNCTIONS,
        }
    }

    /// Whether cudarc would find it.
    fn is_found_by_bindings(self) -> bool {
        // SAFETY: these load a library by its name and let it go again; NVIDIA's libraries may be loaded at any time.
        unsafe {
            match self {
                Self::Driver => driver::sys::is_culib_present(),
                Self::CublasLt => cublaslt::sys::is_culib_present(),
                Self::Nvrtc => nvrtc::sys::is_culib_present(),
            }
        }
    }

    /// The library as cudarc has it. It must have been found.
    fn of_bindings(self) -> &'static Handle {
        // SAFETY: as above; `is_found_by_bindings` has answered, so that this does not panic.
        unsafe {
            match self {
                Self::Driver => driver::sys::culib(),
                Self::CublasLt => cublaslt::sys::culib(),
                Self::Nvrtc => nvrtc::sys::culib(),
            }
        }
    }
}

/// The milliseconds between two events. The bindings have a second version of it alone, which drivers before CUDA 12.8 lack.
///
/// # Safety
/// The driver is loaded; both events live, and keep the time.
pub(super) unsafe fn event_elapsed_time(ms: &mut f32, start: CUevent, end: CUevent) -> CUresult {
    type Function = unsafe extern "C" fn(*mut f32, CUevent, CUevent) -> CUresult;
    // SAFETY: this is the function's type in the driver's header; events are the caller's.
    unsafe {
        match Library::Driver.of_bindings().get::<Function>(b"cuEventElapsedTime\0") {
            Ok(function) => function(ms, start, end),
            Err(_) => CUresult::CUDA_ERROR_NOT_FOUND,
        }
    }
}

/// Libraries that are there and complete.
static LOADED: Mutex<Vec<Library>> = Mutex::new(Vec::new());

/// Makes cudarc's functions of `library` safe to call, or says what is missing and where it was looked for.
/// `driver_major` is the driver's CUDA release, 0 where it is not known yet.
pub(super) fn load(library: Library, driver_major: u32) -> Result<()> {
    let mut loaded = LOADED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if loaded.contains(&library) {
        return Ok(());
    }
    let begun = Instant::now();
    let places = Places::of_machine();
    let names = library.file_names(driver_major);
    let mut failures = Vec::new();
    let handle = try_paths(library, &Places::files(&places.own, names), &mut failures)
        .or_else(|| try_names(names, &mut failures))
        .or_else(|| try_paths(library, &Places::files(&places.usual, names), &mut failures));
    let Some((handle, from)) = handle.filter(|_| library.is_found_by_bindings()) else {
        return Err(Error::config("device", missing(library, &places, &failures)));
    };
    let used = library.of_bindings();
    let lacks = |name: &&&str| !has(used, name);
    if let Some(name) = library.functions().iter().find(lacks) {
        return Err(Error::config("device", format!("{} is too old: it has no {name}", library.title())));
    }
    if address(&handle, library.functions()[0]) != address(used, library.functions()[0]) {
        tracing::warn!("{}: found {from}, but the system's loader knows another one, which is used", library.title());
    }
    // For good: nothing that came from a library may outlive it, and the driver is not made to be loaded twice.
    std::mem::forget(handle);
    tracing::debug!("loaded {from} in {:.1} ms: {}", begun.elapsed().as_secs_f64() * 1e3, mapped(names[0]).join(", "));
    loaded.push(library);
    Ok(())
}

fn try_names(names: &[&str], failures: &mut Vec<String>) -> Option<(Handle, String)> {
    for name in names {
        match open(name.as_ref()) {
            Ok(handle) => return Some((handle, format!("{name} by the system's loader"))),
            // Absent is what most names are; anything else is worth telling.
            Err(message) if message.contains("No such file") => {}
            Err(message) => failures.push(message),
        }
    }
    None
}

fn try_paths(library: Library, paths: &[PathBuf], failures: &mut Vec<String>) -> Option<(Handle, String)> {
    for path in paths {
        if library == Library::Nvrtc {
            keep_builtins(path);
        }
        match open(path.as_os_str()) {
            Ok(handle) => return Some((handle, path.display().to_string())),
            Err(message) => failures.push(message),
        }
    }
    None
}

/// NVRTC loads its built-in functions by name when it first compiles, and has no path to its own folder.
fn keep_builtins(nvrtc: &std::path::Path) {
    let entries = nvrtc.parent().and_then(|dir| dir.read_dir().ok()).into_iter().flatten().flatten();
    for entry in entries {
        if entry.file_name().to_string_lossy().starts_with("libnvrtc-builtins.so.") {
            match open(entry.path().as_os_str()) {
                Ok(handle) => std::mem::forget(handle),
                Err(message) => tracing::debug!("{message}"),
            }
        }
    }
}

fn open(file: &std::ffi::OsStr) -> Result<Handle, String> {
    // SAFETY: the file bears the name of one of NVIDIA's libraries, whose initializers may run at any time.
    unsafe { Handle::new(file) }.map_err(|e| std::error::Error::source(&e).map_or(e.to_string(), ToString::to_string))
}

fn has(library: &Handle, name: &str) -> bool {
    address(library, name).is_some()
}

fn address(library: &Handle, name: &str) -> Option<usize> {
    // SAFETY: only the address is looked at.
    unsafe { library.get::<*const ()>(name.as_bytes()) }.ok().map(|symbol| symbol.addr())
}

fn missing(library: Library, places: &Places, failures: &[String]) -> String {
    let dirs: Vec<String> = places.own.iter().chain(&places.usual).map(|dir| dir.display().to_string()).collect();
    let mut message = format!(
        "there is no {}; looked where the system's loader looks, and in {} ({OWN_VARIABLE} names further folders)",
        library.title(),
        if dirs.is_empty() { "no other folder".to_owned() } else { dirs.join(", ") },
    );
    if !failures.is_empty() {
        message += &format!("; could not be loaded: {}", failures.join("; "));
    }
    message
}

/// Files in this process's memory whose names begin like `name` up to its first dot.
pub(super) fn mapped(name: &str) -> Vec<String> {
    let stem = name.split('.').next().unwrap_or(name);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    let mut files: Vec<String> = paths
        .filter(|path| path.rsplit('/').next().is_some_and(|file| file.starts_with(stem)))
        .map(str::to_owned)
        .collect();
    files.sort();
    files.dedup();
    files
}
