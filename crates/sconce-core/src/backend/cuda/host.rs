//! [`HostDevice`]: kernels on this machine's CPU, as the C++ compiler makes them with `kernels/host/shim.h`. It finds what
//! a GPU would not show: memory that was never written is NaN, and writes beyond an allocation end the test.
//!
//! Calls are carried out when they are made, or, on a device that is late, when somebody waits for them: who reads what he
//! has not waited for finds it in the one, who changes what is still to be read in the other.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use super::device::{Args, BoxShape, Device, DevicePtr, Dims, Graph, Mailbox, Matmul, TensorMap};
use super::storage::{bytes_of, floats_of};
use crate::error::{Error, Result};

/// Bytes after an allocation that nobody may write.
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0xa5;
/// Memory that was never written: NaN as any float.
const POISON: u8 = 0xff;

/// Kernels on the CPU.
pub(crate) struct HostDevice {
    stream: Arc<Stream>,
    /// Of so many candidates in a trial, which is the fastest.
    choose: Option<Box<dyn Fn(usize) -> usize + Send + Sync>>,
    /// Length of each allocation, by address.
    allocations: Mutex<HashMap<u64, usize>>,
}

/// What tests see of a device, and do to it.
#[derive(Clone, Default)]
pub(crate) struct Watch {
    /// The device fails from now on.
    pub(crate) is_lost: Arc<AtomicBool>,
    /// How often something was waited for while later calls were still to be carried out.
    pub(crate) num_early_waits: Arc<AtomicUsize>,
}

/// Calls in order.
struct Stream {
    library: Arc<libloading::Library>,
    is_late: bool,
    calls: Mutex<Calls>,
    watch: Watch,
}

#[derive(Default)]
struct Calls {
    captured: Option<Vec<Call>>,
    /// What is still to be carried out.
    queue: VecDeque<Call>,
    num_made: usize,
}

/// A call to be carried out later.
#[derive(Clone)]
enum Call {
    Launch { kernel: String, dims: Dims, args: Box<Args> },
    Matmul(Matmul),
    Copy { dst: DevicePtr, src: DevicePtr, bytes: usize },
    Upload { dst: DevicePtr, data: Vec<u8> },
    Clear { dst: DevicePtr, bytes: usize },
}

type Launcher = unsafe extern "C" fn(*const c_void, *const u32, *const u32, u32, u32, *const *mut c_void) -> i32;

impl HostDevice {
    /// What it calls itself.
    pub(crate) const NAME: &str = "host shim";

    /// All kernels, compiled once a process, and again only when a source has changed.
    pub(crate) fn open() -> Arc<dyn Device> {
        Self::watched(false).0
    }

    /// The same with its watch, carrying out calls when they are made, or late.
    pub(crate) fn watched(is_late: bool) -> (Arc<dyn Device>, Watch) {
        let device = Self::new(is_late);
        let watch = device.stream.watch.clone();
        (Arc::new(device), watch)
    }

    /// The same, with trials that end as `choose` says of the number of candidates.
    pub(crate) fn choosing(choose: impl Fn(usize) -> usize + Send + Sync + 'static) -> Arc<dyn Device> {
        Arc::new(Self { choose: Some(Box::new(choose)), ..Self::new(false) })
    }

    fn new(is_late: bool) -> Self {
        static LIBRARY: OnceLock<Arc<libloading::Library>> = OnceLock::new();
        let library = LIBRARY.get_or_init(|| {
            let path = build();
            // SAFETY: the library is our own kernels, and runs nothing when it is loaded.
            Arc::new(unsafe { libloading::Library::new(&path) }.expect("invariant: the compiler made a library"))
        });
        let (calls, watch) = (Mutex::default(), Watch::default());
        let stream = Stream { library: Arc::clone(library), is_late, calls, watch };
        Self { stream: Arc::new(stream), choose: None, allocations: Mutex::default() }
    }
}

impl Stream {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().expect("invariant: no test goes on after a panic")
    }

    fn capture(&self, call: &Call) -> bool {
        self.calls().captured.as_mut().map(|captured| captured.push(call.clone())).is_some()
    }

    /// Carries out a call, now or late.
    fn make(&self, call: Call) -> Result<()> {
        let mut calls = self.calls();
        calls.num_made += 1;
        calls.queue.push_back(call);
        drop(calls);
        if self.is_late { Ok(()) } else { self.finish(usize::MAX) }
    }

    /// Carries out the first `num` calls that were ever made, as far as they are not.
    fn finish(&self, num: usize) -> Result<()> {
        let next = || {
            let mut calls = self.calls();
            if calls.num_made - calls.queue.len() < num { calls.queue.pop_front() } else { None }
        };
        while let Some(call) = next() {
            self.run(&call)?;
        }
        let is_early = !self.calls().queue.is_empty();
        self.watch.num_early_waits.fetch_add(usize::from(is_early), Ordering::Relaxed);
        Ok(())
    }

    fn run(&self, call: &Call) -> Result<()> {
        if let Call::Launch { kernel, dims, args } = call {
            return launch(&self.library, kernel, dims, args);
        }
        // SAFETY: who made the call has promised that the memory is there.
        unsafe {
            match call {
                Call::Launch { .. } => {}
                Call::Matmul(call) => matmul(call),
                Call::Copy { dst, src, bytes } => {
                    std::ptr::copy_nonoverlapping(src.0 as *const u8, dst.0 as *mut u8, *bytes);
                }
                Call::Upload { dst, data } => {
                    std::ptr::copy_nonoverlapping(data.as_ptr(), dst.0 as *mut u8, data.len());
                }
                Call::Clear { dst, bytes } => std::ptr::write_bytes(dst.0 as *mut u8, 0, *bytes),
            }
        }
        Ok(())
    }
}

fn launch(library: &libloading::Library, kernel: &str, dims: &Dims, args: &Args) -> Result<()> {
    if dims.is_empty() {
        return Ok(());
    }
    // SAFETY: the symbols have these types in kernels/host.
    let done = unsafe {
        let launcher = library.get::<Launcher>(b"shim_launch\0").expect("invariant: the shim is in the library");
        let name = format!("{kernel}__host\0");
        let Ok(kernel) = library.get::<unsafe extern "C" fn(*mut *mut c_void)>(name.as_bytes()) else {
            return Err(Error::internal(format!("there is no kernel {kernel}; does it have an EXPORT_KERNEL?")));
        };
        let (kernel, pointers) = ((*kernel as *const ()).cast(), args.pointers());
        let Dims { grid, block, shared_bytes, cluster, .. } = dims;
        launcher(kernel, grid.as_ptr(), block.as_ptr(), *cluster, *shared_bytes, pointers.as_ptr())
    };
    if done == 1 { Ok(()) } else { Err(Error::internal(format!("{kernel} cannot be laid out as {dims:?}"))) }
}

/// # Safety
/// As [`Device::matmul`].
unsafe fn matmul(call: &Matmul) {
    let read = |ptr: DevicePtr, len: usize| {
        // SAFETY: the caller's.
        let bytes = unsafe { std::slice::from_raw_parts(ptr.0 as *const u8, len * call.in_type.bytes()) };
        floats_of(bytes, call.in_type)
    };
    let (x, weight) = (read(call.x, call.num_rows * call.cols), read(call.weight, call.out_cols * call.cols));
    for (row, x) in x.chunks_exact(call.cols).enumerate() {
        let dot = |w: &[f32]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>();
        let out: Vec<f32> = weight.chunks_exact(call.cols).map(dot).collect();
        let bytes = bytes_of(&out, call.out_type);
        let at = call.out.offset(row * call.out_stride * call.out_type.bytes());
        // SAFETY: the caller's.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at.0 as *mut u8, bytes.len()) };
    }
}

impl Device for HostDevice {
    fn name(&self) -> String {
        Self::NAME.into()
    }

    fn num_sms(&self) -> usize {
        4
    }

    fn max_shared_bytes(&self) -> usize {
        227 << 10
    }

    fn is_lost(&self) -> bool {
        self.stream.watch.is_lost.load(Ordering::Relaxed)
    }

    fn free_memory(&self) -> Result<usize> {
        Ok(1 << 30)
    }

    fn alloc(&self, bytes: usize) -> Result<DevicePtr> {
        let mut memory = vec![0u128; (bytes + GUARD).div_ceil(16) + 16];
        let data: &mut [u8] = bytemuck::cast_slice_mut(&mut memory);
        // Aligned as a GPU's is; what comes before is left.
        let start = data.as_ptr().align_offset(256);
        data[start..start + bytes].fill(POISON);
        data[start + bytes..].fill(GUARD_BYTE);
        let ptr = data[start..].as_ptr() as u64;
        // Tests are short: their memory is left to the end of the process, so that late writes are seen by nobody else.
        std::mem::forget(memory);
        self.allocations.lock().expect("invariant: no test goes on after a panic").insert(ptr, bytes);
        Ok(DevicePtr(ptr))
    }

    unsafe fn free(&self, ptr: DevicePtr) {
        let done = self.stream.finish(usize::MAX);
        assert!(done.is_ok() || std::thread::panicking(), "{done:?}");
        let bytes = self.allocations.lock().expect("invariant: no test goes on after a panic").remove(&ptr.0);
        let bytes = bytes.expect("invariant: what is freed was allocated");
        // SAFETY: the guard was allocated with the memory.
        let guard = unsafe { std::slice::from_raw_parts((ptr.0 as usize + bytes) as *const u8, GUARD) };
        if guard.iter().any(|&byte| byte != GUARD_BYTE) && !std::thread::panicking() {
            panic!("a kernel wrote beyond an allocation of {bytes} bytes");
        }
    }

    unsafe fn upload(&self, dst: DevicePtr, src: &[u8]) -> Result<()> {
        self.stream.make(Call::Upload { dst, data: src.to_vec() })
    }

    unsafe fn download(&self, dst: &mut [u8], src: DevicePtr) -> Result<()> {
        self.stream.finish(usize::MAX)?;
        // SAFETY: the caller's.
        unsafe { std::ptr::copy_nonoverlapping(src.0 as *const u8, dst.as_mut_ptr(), dst.len()) };
        Ok(())
    }

    fn mailbox(&self, len: usize) -> Result<Box<dyn Mailbox>> {
        let memory = self.alloc(len * 4)?;
        Ok(Box::new(HostMailbox { stream: Arc::clone(&self.stream), memory, len, wanted: 0 }))
    }

    unsafe fn copy(&self, dst: DevicePtr, src: DevicePtr, bytes: usize) -> Result<()> {
        let call = Call::Copy { dst, src, bytes };
        if self.stream.capture(&call) { Ok(()) } else { self.stream.make(call) }
    }

    unsafe fn clear(&self, dst: DevicePtr, bytes: usize) -> Result<()> {
        self.stream.make(Call::Clear { dst, bytes })
    }

    fn has_kernel(&self, kernel: &str) -> bool {
        // SAFETY: the symbol is looked for, and nothing is done with it.
        unsafe { self.stream.library.get::<*const ()>(format!("{kernel}__host\0").as_bytes()) }.is_ok()
    }

    /// As kernels/host/hopper.cpp reads it.
    fn tensor_map(&self, at: DevicePtr, shape: &BoxShape) -> Result<Option<TensorMap>> {
        let [cols, rows, arrays] = shape.dims.map(|dim| dim as u64);
        let row_bytes = cols * shape.elem.bytes() as u64;
        let [box_cols, box_rows, box_arrays] = shape.box_dims.map(u64::from);
        let words = [at.0, cols, rows, arrays, row_bytes, rows * row_bytes, box_cols, box_rows, box_arrays];
        let mut map = TensorMap::default();
        map.0[..words.len()].copy_from_slice(&words);
        Ok(Some(map))
    }

    unsafe fn launch(&self, kernel: &str, dims: &Dims, args: &Args) -> Result<()> {
        let call = Call::Launch { kernel: kernel.into(), dims: *dims, args: Box::new(*args) };
        if self.stream.capture(&call) { Ok(()) } else { self.stream.make(call) }
    }

    unsafe fn matmul(&self, call: &Matmul) -> Result<()> {
        let call = Call::Matmul(*call);
        if self.stream.capture(&call) { Ok(()) } else { self.stream.make(call) }
    }

    /// Nothing is carried out: this machine's times say nothing.
    fn fastest(
        &self,
        num_candidates: usize,
        _before: &mut dyn FnMut() -> Result<()>,
        _work: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Option<usize>> {
        Ok(self.choose.as_ref().map(|choose| choose(num_candidates)))
    }

    fn synchronize(&self) -> Result<()> {
        self.stream.finish(usize::MAX)
    }

    fn begin_capture(&self) -> Result<()> {
        self.stream.calls().captured = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<Box<dyn Graph>> {
        let calls = self.stream.calls().captured.take();
        let calls = calls.ok_or_else(|| Error::internal("nothing was being captured"))?;
        Ok(Box::new(HostGraph { calls, stream: Arc::clone(&self.stream) }))
    }
}

struct HostGraph {
    calls: Vec<Call>,
    stream: Arc<Stream>,
}

impl Graph for HostGraph {
    unsafe fn launch(&self) -> Result<()> {
        self.calls.iter().try_for_each(|call| self.stream.make(call.clone()))
    }
}

/// Memory that is left to the end of the process, as with allocations.
struct HostMailbox {
    stream: Arc<Stream>,
    memory: DevicePtr,
    len: usize,
    /// So many calls had been made with the last that it waits for.
    wanted: usize,
}

impl Mailbox for HostMailbox {
    unsafe fn fetch(&mut self, at: usize, src: DevicePtr, len: usize) -> Result<()> {
        assert!(at + len <= self.len, "invariant: what is fetched fits");
        self.stream.make(Call::Copy { dst: self.memory.offset(at * 4), src, bytes: len * 4 })?;
        self.wanted = self.stream.calls().num_made;
        Ok(())
    }

    fn wait(&self) -> Result<&[u32]> {
        if self.stream.watch.is_lost.load(Ordering::Relaxed) {
            return Err(Error::Device { message: "the device is lost".into() });
        }
        self.stream.finish(self.wanted)?;
        // SAFETY: so much was allocated, and nobody writes it until the next `fetch`.
        Ok(unsafe { std::slice::from_raw_parts(self.memory.0 as *const u32, self.len) })
    }
}

/// Compiles all kernels into one library, unless that was done of the same sources.
fn build() -> PathBuf {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    let mut sources = Vec::new();
    let mut hasher = DefaultHasher::new();
    for folder in ["", "lib", "host"] {
        let entries = std::fs::read_dir(kernels.join(folder)).expect("invariant: the kernels are beside the crate");
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("invariant: readable").path()).collect();
        paths.sort();
        for path in paths.into_iter().filter(|path| path.is_file()) {
            std::fs::read(&path).expect("invariant: readable").hash(&mut hasher);
            let is_source = path.extension().is_some_and(|e| e == "cu" || e == "cpp");
            sources.extend(is_source.then_some(path));
        }
    }
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/host-kernels");
    std::fs::create_dir_all(&dir).expect("invariant: target can be written");
    let path = dir.join(format!("{:016x}.so", hasher.finish()));
    if !path.exists() {
        compile(&sources, &path);
    }
    path
}

/// One compiler a source, as many at once as there are cores; then one library.
fn compile(sources: &[PathBuf], path: &Path) {
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let run = |command: &mut Command| {
        let output =
            command.output().unwrap_or_else(|e| panic!("{compiler:?}: {e}: tests of kernels need a C++ compiler"));
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let own = path.with_extension(std::process::id().to_string());
    let objects: Vec<PathBuf> =
        (0..sources.len()).map(|i| own.with_extension(format!("{}-{i}.o", std::process::id()))).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, Into::into).min(sources.len()) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(source) = sources.get(i) else { break };
                    run(Command::new(&compiler)
                        .args(["-std=c++17", "-O2", "-g1", "-fPIC", "-DSCONCE_HOST", "-Wall", "-Wno-unknown-pragmas"])
                        .arg("-ffp-contract=off")
                        .args(["-x", "c++", "-c"])
                        .arg(source)
                        .arg("-o")
                        .arg(&objects[i]));
                }
            });
        }
    });
    run(Command::new(&compiler).args(["-shared", "-o"]).arg(&own).args(&objects));
    // Another process may have been as quick: whichever is last, the library is whole.
    std::fs::rename(&own, path).expect("invariant: target can be written");
    objects.iter().for_each(|object| _ = std::fs::remove_file(object));
}
