//! Where NVIDIA's libraries may be, beside the places that the system's own loader knows.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A library that is loaded when a GPU is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Library {
    /// The driver's.
    Driver,
    /// Matrix products.
    CublasLt,
    /// The run-time compiler, and what it needs beside it.
    Nvrtc,
}

impl Library {
    /// What it is for, and where it comes from.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Driver => "NVIDIA driver (libcuda.so.1)",
            Self::CublasLt => "cuBLASLt (libcublasLt.so.13 or .12; of the CUDA toolkit, or pip install nvidia-cublas)",
            Self::Nvrtc => "NVRTC (libnvrtc.so.13 or .12; of the CUDA toolkit, or pip install nvidia-cuda-nvrtc)",
        }
    }

    /// File names, best first. A driver older than CUDA 13 does not run libraries of CUDA 13.
    pub(super) fn file_names(self, driver_major: u32) -> &'static [&'static str] {
        match (self, driver_major >= 13) {
            (Self::Driver, _) => &["libcuda.so.1", "libcuda.so"],
            (Self::CublasLt, true) => &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"],
            (Self::CublasLt, false) => &["libcublasLt.so.12", "libcublasLt.so"],
            (Self::Nvrtc, true) => &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"],
            (Self::Nvrtc, false) => &["libnvrtc.so.12", "libnvrtc.so"],
        }
    }
}

/// The variable that names folders to look in before all others.
pub(super) const OWN_VARIABLE: &str = "SCONCE_CUDA_LIBS";

/// Folders that are there, in the order in which they are looked in.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    /// Those of [`OWN_VARIABLE`], whether they are there or not: they come before the system's loader.
    pub(super) own: Vec<PathBuf>,
    /// Those that come after it.
    pub(super) usual: Vec<PathBuf>,
}

impl Places {
    /// Of this machine.
    pub(super) fn of_machine() -> Self {
        Self::find(|name| std::env::var_os(name), Path::new("/"))
    }

    /// Of variables that `var` looks up, and a file system that begins at `root`.
    pub(super) fn find(var: impl Fn(&str) -> Option<OsString>, root: &Path) -> Self {
        let list = |name: &str| -> Vec<PathBuf> {
            let value = var(name).unwrap_or_default();
            std::env::split_paths(&value).filter(|path| !path.as_os_str().is_empty()).collect()
        };
        let mut dirs = list("LD_LIBRARY_PATH");
        for home in ["CUDA_HOME", "CUDA_PATH"].into_iter().flat_map(list) {
            dirs.extend(toolkit(&home));
        }
        // Python environments: the active one, and those whose programs are on the path.
        let mut prefixes: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().flat_map(list).collect();
        let of_program = |bin: PathBuf| (bin.file_name()? == "bin").then(|| bin.parent().map(Path::to_owned)).flatten();
        prefixes.extend(list("PATH").into_iter().filter_map(of_program));
        prefixes.extend(list("HOME").into_iter().map(|home| home.join(".local")));
        prefixes.extend(["usr/local", "usr", "opt/conda", "opt/venv"].map(|prefix| root.join(prefix)));
        let mut toolkits = matching(&root.join("usr/local"), |name| name == "cuda" || name.starts_with("cuda-"));
        // `cuda` is the chosen one; then the newest.
        toolkits.sort_by_key(|path| std::cmp::Reverse((path.ends_with("cuda"), version_of(path))));
        dirs.extend(toolkits.iter().flat_map(|home| toolkit(home)));
        dirs.extend(prefixes.iter().flat_map(|prefix| wheels(prefix)));
        dirs.extend(prefixes.iter().map(|prefix| prefix.join("lib")));
        let drivers = [
            "usr/local/nvidia/lib64",
            "usr/local/nvidia/lib",
            "usr/lib/x86_64-linux-gnu",
            "usr/lib/aarch64-linux-gnu",
            "usr/lib64",
            "usr/lib/wsl/lib",
            "run/opengl-driver/lib",
        ];
        dirs.extend(drivers.map(|dir| root.join(dir)));
        let mut usual: Vec<PathBuf> = Vec::new();
        for dir in dirs {
            if dir.is_dir() && !usual.contains(&dir) {
                usual.push(dir);
            }
        }
        Self { own: list(OWN_VARIABLE), usual }
    }

    /// Files of `names` in the folders, name by name: a better name in a later folder comes before a worse one.
    pub(super) fn files(dirs: &[PathBuf], names: &[&str]) -> Vec<PathBuf> {
        let in_all = |name: &&str| dirs.iter().map(|dir| dir.join(name)).collect::<Vec<_>>();
        names.iter().flat_map(in_all).filter(|path| path.is_file()).collect()
    }
}

/// Folders of a toolkit that hold libraries. Its `stubs` are for linking and its `compat` for the few devices that take it.
fn toolkit(home: &Path) -> Vec<PathBuf> {
    ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"].map(|dir| home.join(dir)).to_vec()
}

/// Folders of NVIDIA's wheels in the Python environment at `prefix`.
fn wheels(prefix: &Path) -> Vec<PathBuf> {
    let pythons = matching(&prefix.join("lib"), |name| name.starts_with("python3"));
    let packages = pythons.iter().flat_map(|python| ["site-packages", "dist-packages"].map(|dir| python.join(dir)));
    packages
        .flat_map(|packages| {
            let mut parts = matching(&packages.join("nvidia"), |_| true);
            // cu13 before what has a folder for each library, which is CUDA 12's.
            parts.sort_by_key(|path| std::cmp::Reverse(version_of(path)));
            parts
        })
        .map(|part| part.join("lib"))
        .filter(|dir| dir.is_dir())
        .collect()
}

/// Entries of `dir` whose names are as wanted.
fn matching(dir: &Path, is_wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> =
        entries.filter(|entry| entry.file_name().to_str().is_some_and(&is_wanted)).map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The numbers in a folder's name: [12, 8] for cuda-12.8.
fn version_of(path: &Path) -> Vec<u32> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}
