//! Compiles the kernels' sources with NVRTC, where there is no machine code for the device or the driver refuses it.

use std::ffi::{CString, c_char};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use cudarc::nvrtc::sys::{self, nvrtcResult};

use super::cache::KernelCache;
use super::image::{Image, is_for, native_target};
use super::load::load;
use super::places::Library;
use crate::error::{Error, Result};

/// A list of sources or headers: name, text.
pub(super) type Texts = [(&'static str, &'static str)];

/// Compiles all `sources` for a device, on some threads; what is in `cache` is taken from there.
pub(super) fn compile_all(
    sources: &Texts,
    headers: &Texts,
    capability: (u32, u32),
    driver_version: u32,
    cache: &KernelCache,
) -> Result<Vec<Image>> {
    load(Library::Nvrtc, driver_version / 1000)?;
    let begun = Instant::now();
    let version = version()?;
    let target = native_target(capability);
    let options = [format!("--gpu-architecture={target}"), "--std=c++17".into(), "-lineinfo".into()];
    let sources: Vec<_> = sources.iter().filter(|(source, _)| is_for(source, &target)).collect();
    tracing::info!(
        "compiling the CUDA kernels with NVRTC {version} ({}), unless they are kept from before",
        options[0]
    );
    let (next, num_compiled) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        let mut images = Vec::new();
        while let Some((source, text)) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut parts = vec![version.as_str(), text];
            parts.extend(options.iter().map(String::as_str));
            parts.extend(headers.iter().flat_map(|&(name, text)| [name, text]));
            let key = KernelCache::key(&parts);
            let bytes = match cache.get(source, &key) {
                Some(bytes) => bytes,
                None => {
                    let bytes = compile(source, text, headers, &options)?;
                    num_compiled.fetch_add(1, Ordering::Relaxed);
                    cache.put(source, &key, &bytes);
                    bytes
                }
            };
            images.push(Image { source: (*source).into(), bytes });
        }
        Ok(images)
    };
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from).min(sources.len()).clamp(1, 8);
    let images = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..num_threads).map(|_| scope.spawn(work)).collect();
        let results = threads.into_iter().map(|thread| {
            thread.join().unwrap_or_else(|_| Err(Error::internal("a thread that compiled kernels has panicked")))
        });
        results.collect::<Result<Vec<_>>>()
    })?;
    let (num_compiled, secs) = (num_compiled.into_inner(), begun.elapsed().as_secs_f64());
    tracing::info!(
        "{num_compiled} of {} kernel files compiled, the others kept from before, in {secs:.1} s",
        sources.len()
    );
    Ok(images.into_iter().flatten().collect())
}

fn version() -> Result<String> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is loaded; the answer goes to the two numbers.
    check("nvrtcVersion", unsafe { sys::nvrtcVersion(&mut major, &mut minor) })?;
    Ok(format!("{major}.{minor}"))
}

/// A program of NVRTC's, given back when it is dropped.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program was created, and this is its only owner.
        unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

/// Machine code of one source.
fn compile(name: &str, text: &str, headers: &Texts, options: &[String]) -> Result<Vec<u8>> {
    let c_string = |text: &str| CString::new(text).map_err(|_| Error::internal(format!("{name}.cu holds a zero byte")));
    let source = c_string(text)?;
    let file = c_string(&format!("{name}.cu"))?;
    // A header includes its neighbours by their bare names.
    let names = headers.iter().flat_map(|&(name, _)| [name, name.trim_start_matches("lib/")]);
    let header_names = names.map(c_string).collect::<Result<Vec<_>>>()?;
    let header_texts = headers.iter().flat_map(|&(_, text)| [text, text]).map(c_string).collect::<Result<Vec<_>>>()?;
    let options = options.iter().map(|option| c_string(option)).collect::<Result<Vec<_>>>()?;
    let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<*const c_char>>();
    let (name_pointers, text_pointers) = (pointers(&header_names), pointers(&header_texts));
    let option_pointers = pointers(&options);
    let mut program = Program(std::ptr::null_mut());
    // SAFETY: the library is loaded; all strings end with a zero and live until the program is dropped, which happens before
    // they are; the lists are as long as they are said to be.
    unsafe {
        let code = sys::nvrtcCreateProgram(
            &mut program.0,
            source.as_ptr(),
            file.as_ptr(),
            name_pointers.len() as i32,
            text_pointers.as_ptr(),
            name_pointers.as_ptr(),
        );
        check("nvrtcCreateProgram", code)?;
        let code = sys::nvrtcCompileProgram(program.0, option_pointers.len() as i32, option_pointers.as_ptr());
        if code != nvrtcResult::NVRTC_SUCCESS {
            let message = format!("nvrtcCompileProgram {name}.cu: {code:?}\n{}", log_of(&program));
            return Err(Error::Device { message });
        }
        let mut len = 0;
        check("nvrtcGetCUBINSize", sys::nvrtcGetCUBINSize(program.0, &mut len))?;
        let mut cubin = vec![0u8; len];
        check("nvrtcGetCUBIN", sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()))?;
        Ok(cubin)
    }
}

fn log_of(program: &Program) -> String {
    let mut len = 0;
    // SAFETY: the program lives; the log is written to a buffer of the length that was asked for.
    unsafe {
        if sys::nvrtcGetProgramLogSize(program.0, &mut len) != nvrtcResult::NVRTC_SUCCESS {
            return String::new();
        }
        let mut log = vec![0u8; len];
        if sys::nvrtcGetProgramLog(program.0, log.as_mut_ptr().cast()) != nvrtcResult::NVRTC_SUCCESS {
            return String::new();
        }
        String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_owned()
    }
}

fn check(call: &str, code: nvrtcResult) -> Result<()> {
    if code == nvrtcResult::NVRTC_SUCCESS {
        Ok(())
    } else {
        Err(Error::Device { message: format!("{call}: {code:?}") })
    }
}
