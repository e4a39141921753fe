//! [`Library`]: all kernels as the C++ compiler makes them, with the host shim. With `SCONCE_HOST_CHECK=1` they are compiled with
//! marks at loads and stores, and `kernels/host/check.h` looks for races and for what else a GPU would not forgive; with
//! `SCONCE_HOST_CHECK=accesses` `kernels/host/accesses.h` counts what they take.

use std::ffi::{CString, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use super::super::device::{Args, Dims};
use crate::error::{Error, Result};

type Launcher = unsafe extern "C" fn(*const c_void, *const u32, *const u32, u32, u32, *const *mut c_void) -> i32;

/// Every source's. Nothing is called by way of a table where the library has it itself.
const FLAGS: &[&str] =
    &["-std=c++17", "-g1", "-fPIC", "-fno-semantic-interposition", "-ffp-contract=off", "-DSCONCE_HOST", "-Wall"];

/// What is compiled with the checker's marks: the kernels, not the shim. They take most of the time, so that it is the compiler's own
/// which counts.
const CHECKED: &[&str] = &[
    "-DSCONCE_CHECKED",
    "-O1",
    "-fsanitize=thread,alignment,shift,bounds,float-cast-overflow,integer-divide-by-zero,signed-integer-overflow",
];

/// Kernels and the shim.
pub(super) struct Library {
    library: libloading::Library,
}

/// What the checker knows of a stream's latest kernels.
pub(super) struct StreamCheck {
    library: Arc<Library>,
    stream: *mut c_void,
}

// SAFETY: no thread owns the stream, which has a lock of its own.
unsafe impl Send for StreamCheck {}
// SAFETY: as above.
unsafe impl Sync for StreamCheck {}

impl Library {
    /// Compiled once a process, and again only when a source has changed.
    pub(super) fn of_all_kernels() -> Arc<Self> {
        static LIBRARY: OnceLock<Arc<Library>> = OnceLock::new();
        let is_checked = std::env::var_os("SCONCE_HOST_CHECK").is_some_and(|value| value == "1" || value == "accesses");
        Arc::clone(LIBRARY.get_or_init(|| Self::load(&["", "lib", "host"], is_checked)))
    }

    /// The shim's own tests' kernels alone, with the checker.
    pub(super) fn of_checked_tests() -> Arc<Self> {
        static LIBRARY: OnceLock<Arc<Library>> = OnceLock::new();
        Arc::clone(LIBRARY.get_or_init(|| Self::load(&["host"], true)))
    }

    fn load(folders: &[&str], is_checked: bool) -> Arc<Self> {
        let path = build(folders, is_checked);
        // SAFETY: the library is our own kernels, and runs nothing when it is loaded.
        let library = unsafe { libloading::Library::new(&path) }.expect("invariant: the compiler made a library");
        Arc::new(Self { library })
    }

    /// A function of the shim, or the caller of a kernel.
    fn function<F>(&self, name: &str) -> Option<libloading::Symbol<'_, F>> {
        let name = CString::new(name).expect("invariant: names are without zeros");
        // SAFETY: who asks gives the type that it has in kernels/host.
        unsafe { self.library.get(name.as_bytes_with_nul()) }.ok()
    }

    pub(super) fn has_kernel(&self, kernel: &str) -> bool {
        self.function::<*const ()>(&format!("{kernel}__host")).is_some()
    }

    /// Runs a kernel.
    pub(super) fn launch(&self, kernel: &str, dims: &Dims, args: &Args) -> Result<()> {
        let launcher = self.function::<Launcher>("shim_launch").expect("invariant: the shim is in the library");
        let Some(caller) = self.function::<unsafe extern "C" fn(*mut *mut c_void)>(&format!("{kernel}__host")) else {
            return Err(Error::internal(format!("there is no kernel {kernel}; does it have an EXPORT_KERNEL?")));
        };
        let (caller, pointers) = ((*caller as *const ()).cast(), args.pointers());
        let Dims { grid, block, shared_bytes, cluster, .. } = dims;
        // SAFETY: the symbols have these types; who launches has promised that the arguments are the kernel's.
        match unsafe { launcher(caller, grid.as_ptr(), block.as_ptr(), *cluster, *shared_bytes, pointers.as_ptr()) } {
            1 => Ok(()),
            2 => Err(Error::internal(format!("{kernel}: {}", self.faults()))),
            _ => Err(Error::internal(format!("{kernel} cannot be laid out as {dims:?}"))),
        }
    }

    /// What the checker found in this thread's latest launch.
    fn faults(&self) -> String {
        type Faults = unsafe extern "C" fn() -> *const std::ffi::c_char;
        let faults = self.function::<Faults>("shim_check_faults").expect("invariant: it has a checker");
        // SAFETY: the type is that in kernels/host/check.cpp; the text is this thread's until its next launch.
        unsafe { std::ffi::CStr::from_ptr(faults()) }.to_string_lossy().into_owned()
    }

    /// Whether this thread's launches have their accesses counted, in place of being checked.
    pub(super) fn count_accesses(&self, counts: bool) {
        let count = self.function::<unsafe extern "C" fn(u32)>("shim_count_accesses");
        // SAFETY: the type is that in kernels/host/accesses.cpp.
        unsafe { count.expect("invariant: it has a checker")(u32::from(counts)) };
    }

    /// Of a kernel's reads or writes of shared or of device memory: the requests that were counted, and what they took and needed.
    pub(super) fn accesses(&self, kernel: &str, is_shared: bool, is_write: bool) -> [u64; 3] {
        type Accesses = unsafe extern "C" fn(*const std::ffi::c_char, u32, u32, *mut u64);
        let accesses = self.function::<Accesses>("shim_accesses").expect("invariant: it has a checker");
        let kernel = CString::new(kernel).expect("invariant: names are without zeros");
        let mut counts = [0; 3];
        // SAFETY: the type is that in kernels/host/accesses.cpp, which writes three counts.
        unsafe { accesses(kernel.as_ptr(), u32::from(is_shared), u32::from(is_write), counts.as_mut_ptr()) };
        counts
    }

    /// Tells the checker of memory that kernels may use.
    pub(super) fn allocated(&self, address: u64, bytes: usize) {
        if let Some(tell) = self.function::<unsafe extern "C" fn(u64, u64)>("shim_check_allocated") {
            // SAFETY: the type is that in kernels/host/shadow.cpp.
            unsafe { tell(address, bytes as u64) };
        }
    }

    /// And of memory that they may use no more.
    pub(super) fn freed(&self, address: u64) {
        if let Some(tell) = self.function::<unsafe extern "C" fn(u64)>("shim_check_freed") {
            // SAFETY: the type is that in kernels/host/shadow.cpp.
            unsafe { tell(address) };
        }
    }
}

impl StreamCheck {
    /// For a new stream, where there is a checker.
    pub(super) fn new(library: &Arc<Library>) -> Option<Self> {
        let make = library.function::<unsafe extern "C" fn() -> *mut c_void>("shim_check_stream")?;
        // SAFETY: the type is that in kernels/host/check.cpp.
        Some(Self { stream: unsafe { make() }, library: Arc::clone(library) })
    }

    /// This kernel is launched next, by this thread.
    pub(super) fn begin(&self, kernel: &str, overlaps: bool) {
        type Begin = unsafe extern "C" fn(*const std::ffi::c_char, *mut c_void, u32);
        let begin = self.library.function::<Begin>("shim_check_launch").expect("invariant: it has a checker");
        let kernel = CString::new(kernel).expect("invariant: names are without zeros");
        // SAFETY: the type is that in kernels/host/check.cpp; the name is copied.
        unsafe { begin(kernel.as_ptr(), self.stream, u32::from(overlaps)) };
    }

    /// Something that is no kernel is next.
    pub(super) fn no_kernel(&self) {
        self.call("shim_check_no_kernel");
    }

    fn call(&self, name: &str) {
        let call = self.library.function::<unsafe extern "C" fn(*mut c_void)>(name);
        // SAFETY: the type is that in kernels/host/check.cpp.
        unsafe { call.expect("invariant: it has a checker")(self.stream) };
    }
}

impl Drop for StreamCheck {
    fn drop(&mut self) {
        self.call("shim_check_stream_ended");
    }
}

/// Compiles all kernels into one library, unless that was done of the same sources.
fn build(folders: &[&str], is_checked: bool) -> PathBuf {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    let mut sources = Vec::new();
    let mut hasher = DefaultHasher::new();
    (folders, FLAGS, is_checked.then_some(CHECKED)).hash(&mut hasher);
    for folder in ["", "lib", "host"] {
        let entries = std::fs::read_dir(kernels.join(folder)).expect("invariant: the kernels are beside the crate");
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("invariant: readable").path()).collect();
        paths.sort();
        for path in paths.into_iter().filter(|path| path.is_file()) {
            std::fs::read(&path).expect("invariant: readable").hash(&mut hasher);
            let is_source = path.extension().is_some_and(|e| e == "cu" || e == "cpp");
            sources.extend((is_source && folders.contains(&folder)).then_some(path));
        }
    }
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/host-kernels");
    std::fs::create_dir_all(&dir).expect("invariant: target can be written");
    let path = dir.join(format!("{:016x}.so", hasher.finish()));
    if !path.exists() {
        compile(&sources, is_checked, &path);
    }
    path
}

/// One compiler a source, as many at once as there are cores; then one library.
fn compile(sources: &[PathBuf], is_checked: bool, path: &Path) {
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
                    let is_shim = source.extension().is_some_and(|e| e == "cpp");
                    let checked = if !is_checked {
                        &[]
                    } else if is_shim {
                        &CHECKED[..1]
                    } else {
                        CHECKED
                    };
                    run(Command::new(&compiler)
                        .args(FLAGS)
                        .args(["-O2", "-Wno-unknown-pragmas"])
                        .args(checked)
                        .args(["-x", "c++", "-c"])
                        .arg(source)
                        .arg("-o")
                        .arg(&objects[i]));
                }
            });
        }
    });
    run(Command::new(&compiler).args(["-shared", "-Wl,-Bsymbolic", "-o"]).arg(&own).args(&objects));
    // Another process may have been as quick: whichever is last, the library is whole.
    std::fs::rename(&own, path).expect("invariant: target can be written");
    objects.iter().for_each(|object| _ = std::fs::remove_file(object));
}
