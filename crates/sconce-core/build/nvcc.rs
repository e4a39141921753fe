//! nvcc: where it is, what it compiles kernels for, and with which flags. The build script and `cargo xtask kernels`
//! share this file.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every compilation's flags. `-lineinfo` lets compute-sanitizer and Nsight name lines; it costs no speed.
pub(crate) const FLAGS: &[&str] = &["-O3", "-std=c++17", "-lineinfo"];

/// What kernels are compiled for.
pub(crate) struct Target {
    /// Its name, which files carry.
    pub(crate) name: &'static str,
    /// Its flags.
    pub(crate) flags: &'static [&'static str],
}

/// Machine code for the devices that matter.
pub(crate) const CUBINS: &[Target] = &[
    Target { name: "sm_80", flags: &["-gencode=arch=compute_80,code=sm_80", "-cubin"] },
    Target { name: "sm_89", flags: &["-gencode=arch=compute_89,code=sm_89", "-cubin"] },
    Target { name: "sm_90a", flags: &["-gencode=arch=compute_90a,code=sm_90a", "-cubin"] },
];

/// What sources for Hopper alone end with, and what such are compiled for.
const HOPPER: (&str, &str) = ("_hopper", "sm_90a");

/// Whether `source` (a file's name without `.cu`) is for `target`: most are for all.
pub(crate) fn suits(source: &str, target: &Target) -> bool {
    !source.ends_with(HOPPER.0) || target.name == HOPPER.1
}

/// Oldest release whose nvcc knows all targets.
const OLDEST: (u32, u32) = (12, 0);

/// An nvcc that answers.
pub(crate) struct Nvcc {
    /// The program.
    pub(crate) program: PathBuf,
    /// Its release, as `13.0`.
    pub(crate) release: String,
}

/// Looks where nvcc may be: `NVCC` (empty: use none), `CUDA_HOME`, `CUDA_PATH`, `PATH`, /usr/local/cuda. An error where
/// somebody has asked for one that does not serve.
pub(crate) fn find() -> Result<Option<Nvcc>, String> {
    if let Some(program) = env::var_os("NVCC") {
        return if program.is_empty() { Ok(None) } else { ask(Path::new(&program)).map(Some) };
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).filter(|home| !home.is_empty());
    let in_homes = homes.map(|home| PathBuf::from(home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let places = in_homes.chain(env::split_paths(&path)).chain([PathBuf::from("/usr/local/cuda/bin")]);
    let name = if cfg!(windows) { "nvcc.exe" } else { "nvcc" };
    Ok(places.map(|dir| dir.join(name)).filter(|program| program.is_file()).find_map(|program| ask(&program).ok()))
}

/// Runs `nvcc --version`.
pub(crate) fn ask(program: &Path) -> Result<Nvcc, String> {
    let name = program.display();
    let output = Command::new(program).arg("--version").output().map_err(|e| format!("{name}: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let release = text.split("release ").nth(1).and_then(|rest| rest.split([',', '\n']).next());
    let Some(release) = release.filter(|_| output.status.success()) else {
        return Err(format!("{name} --version: {}, no release in what it prints", output.status));
    };
    let numbers: Vec<u32> = release.split('.').filter_map(|part| part.trim().parse().ok()).collect();
    match numbers[..] {
        [major, minor, ..] if (major, minor) >= OLDEST => {
            Ok(Nvcc { program: program.to_owned(), release: format!("{major}.{minor}") })
        }
        _ => Err(format!("{name} is of release {release}; kernels need {}.{} or later", OLDEST.0, OLDEST.1)),
    }
}

impl Nvcc {
    /// Compiles `source` for `target` to `out`. Returns what the compiler had to say.
    pub(crate) fn compile(&self, source: &Path, target: &Target, extra: &[&str], out: &Path) -> Result<String, String> {
        let mut include: OsString = "-I".into();
        include.push(source.parent().unwrap_or(Path::new(".")));
        let mut command = Command::new(&self.program);
        command.args(FLAGS).args(target.flags).args(extra).arg(include).arg("-o").arg(out).arg(source);
        let output = command.output().map_err(|e| format!("{}: {e}", self.program.display()))?;
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            Ok(said.into_owned())
        } else {
            Err(format!("{} for {}: {}\n{said}", source.display(), target.name, output.status))
        }
    }
}

/// The files of `dir` that end with `.extension`, in order. None where there is no such folder.
pub(crate) fn files_of(dir: &Path, extension: &str) -> Result<Vec<PathBuf>, String> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    Ok(files)
}

/// Runs `work` on every item, on all processors. The first error ends it.
pub(crate) fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R, String> + Sync,
) -> Result<Vec<R>, String> {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    let num_threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len().max(1));
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<Result<R, String>>>> = items.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..num_threads {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { break };
                    let result = work(item);
                    if result.is_err() {
                        next.store(items.len(), Ordering::Relaxed);
                    }
                    if let Ok(mut slot) = results[at].lock() {
                        *slot = Some(result);
                    }
                }
            });
        }
    });
    results.into_iter().filter_map(|slot| slot.into_inner().ok().flatten()).collect()
}
