//! The whole of [`Gpu`] against a stand-in for NVIDIA's libraries (fake_nvidia.c). A process loads a driver once, so each
//! case is a process of its own: this test program again, told to run one of the `child` tests.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::image::embedded;
use super::super::places::OWN_VARIABLE;
use super::super::self_test::self_test;
use super::super::{Gpu, available};
use crate::backend::cuda::device::{Args, Device, Dims};
use crate::error::Result;

/// The stand-ins, under the names of what they stand in for.
fn libraries() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/backend/cuda/gpu/tests/fake_nvidia.c");
    for name in ["libcuda.so.1", "libcublasLt.so.13", "libnvrtc.so.13"] {
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu11", "-O2", "-shared", "-fPIC", "-o"]).arg(dir.path().join(name));
        let status = cc.arg(format!("-Wl,-soname,{name}")).arg(&source).status().unwrap();
        assert!(status.success(), "cc {}", source.display());
        // The first name that the bindings ask for: whatever this machine has of it comes second.
        let plain = name.split_inclusive(".so").next().unwrap();
        std::os::unix::fs::symlink(name, dir.path().join(plain)).unwrap();
    }
    dir
}

/// Runs one of the children; returns what it printed.
fn child(name: &str, libraries: &Path, vars: &[(&str, &str)]) -> String {
    let cache = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--nocapture", &format!("backend::cuda::gpu::tests::fake::{name}")]);
    command.env(CHILD, "1").env(OWN_VARIABLE, libraries).env("SCONCE_CACHE", cache.path());
    command.env("LD_LIBRARY_PATH", libraries).envs(vars.iter().copied());
    let output = command.output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {vars:?}:\n{printed}");
    assert!(printed.contains("child ran"), "{name} {vars:?} ran nothing:\n{printed}");
    printed.into_owned()
}

const CHILD: &str = "SCONCE_TEST_CHILD";

/// Whether this process is a child; else the test has nothing to do.
fn is_child() -> bool {
    let is_child = std::env::var_os(CHILD).is_some();
    if is_child {
        println!("child ran");
    }
    is_child
}

/// The error's text.
fn error<T>(result: Result<T>) -> String {
    result.err().map_or_else(|| panic!("expected an error"), |error| error.to_string())
}

#[test]
fn child_self_test() {
    if is_child() {
        let gpus = available().unwrap();
        assert_eq!((gpus.len(), gpus[0].name.as_str(), gpus[0].compute_capability), (1, "Fake H100", (9, 0)));
        assert!(error(Gpu::open(3)).contains("there is no cuda:3; the driver shows 1 GPUs"));
        let lines = self_test(0).unwrap();
        assert_eq!(lines.len(), 8, "{lines:?}");
        println!("{}", lines.join("\n"));
    }
}

#[test]
fn child_launch() {
    if is_child() {
        let gpu = Gpu::open(0).unwrap();
        let there = gpu.alloc(64).unwrap();
        let dims = Dims { grid: [1, 2, 3], block: [32, 4, 5], shared_bytes: 70_000 };
        // What it is called depends on who compiled it.
        let name = gpu.inner.kernels.names().next().expect("invariant: there is a kernel").to_owned();
        let mut seen = [0u32; 8];
        // SAFETY: the stand-in's kernel takes an address with room for 32 bytes and a number.
        unsafe {
            gpu.launch(&name, &dims, &Args::new().with(there).with(77u32)).unwrap();
            gpu.download(bytemuck::cast_slice_mut(&mut seen), there).unwrap();
            assert_eq!(seen, [1, 2, 3, 32, 4, 5, 70_000, 77]);
            let empty = Dims { grid: [1, 0, 1], ..dims };
            gpu.launch("absent", &empty, &Args::new()).unwrap();
            assert!(error(gpu.launch("absent", &dims, &Args::new())).contains("there is no kernel absent"));
            let refused = error(gpu.launch(&name, &Dims { grid: [9, 9, 9], ..dims }, &Args::new()));
            assert!(refused.contains(&format!("cuLaunchKernel {name} with 0 arguments, Dims")), "{refused}");
            assert!(!gpu.inner.context.is_lost());
            gpu.begin_capture().unwrap();
            for refused in [gpu.synchronize(), gpu.upload(there, &[0]), gpu.begin_capture(), gpu.alloc(1).map(|_| ())] {
                assert!(error(refused).contains("while a CUDA graph is captured"));
            }
            drop(gpu.end_capture().unwrap());
            assert!(error(gpu.end_capture().map(|_| ())).contains("not begun"));
            gpu.free(there);
        }
    }
}

#[test]
fn child_lost_device() {
    if is_child() {
        let gpu = Gpu::open(0).unwrap();
        let first = error(gpu.synchronize());
        let words = "cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS (words of the driver)";
        assert!(first.contains(words), "{first}");
        assert!(gpu.inner.context.is_lost());
        let later = error(gpu.alloc(1));
        assert!(later.contains("the device is lost since an earlier error") && later.contains(words), "{later}");
        drop(gpu);
        // The stand-in fails once: what is new works.
        assert_eq!(self_test(0).unwrap().len(), 8);
    }
}

#[test]
fn child_error() {
    if is_child() {
        println!("message: {}", error(Gpu::open(0)));
    }
}

#[test]
fn against_a_stand_in_for_the_driver() {
    let dir = libraries();
    let lines = child("child_self_test", dir.path(), &[]);
    assert!(lines.contains("graph of a copy and a product"), "{lines}");
    child("child_self_test", dir.path(), &[("SCONCE_CUDA_KERNELS", "source")]);
    child("child_self_test", dir.path(), &[("SCONCE_CUDA_SYNC", "1")]);
    let printed = child("child_lost_device", dir.path(), &[("FAKE_FAIL", "cuStreamSynchronize:700")]);
    assert!(printed.contains("fake: reset with 0 contexts"), "{printed}");
    if embedded::SOURCES.is_empty() {
        return;
    }
    child("child_launch", dir.path(), &[]);
    if embedded::IMAGES.is_empty() {
        return;
    }
    // An image that is refused gives way to the sources; a build without nvcc has none.
    child("child_self_test", dir.path(), &[("FAKE_FAIL", "cuModuleLoadDataEx:222"), ("SCONCE_CUDA_KERNELS", "cubin")]);
}

#[test]
fn what_was_loaded_by_its_path_is_found_by_its_name() {
    if super::has_driver() {
        return;
    }
    let dir = libraries();
    for plain in ["libcuda.so", "libcublasLt.so", "libnvrtc.so"] {
        std::fs::remove_file(dir.path().join(plain)).unwrap();
    }
    child("child_self_test", dir.path(), &[("LD_LIBRARY_PATH", "")]);
    child("child_self_test", dir.path(), &[("LD_LIBRARY_PATH", ""), ("SCONCE_CUDA_KERNELS", "source")]);
}

#[test]
fn what_is_missing_is_named() {
    let dir = libraries();
    let says = |vars: &[(&str, &str)], dir: &PathBuf, expected: &str| {
        let printed = child("child_error", dir, vars);
        let message = printed.lines().find(|line| line.starts_with("message: ")).unwrap_or_default();
        assert!(message.contains(expected), "{vars:?}: {message}\nexpected: {expected}");
    };
    let path = dir.path().to_owned();
    says(
        &[("FAKE_FAIL", "cuInit:100")],
        &path,
        "cuInit: CUDA_ERROR_NO_DEVICE (words of the driver): the driver is there",
    );
    says(&[("FAKE_DRIVER", "11040")], &path, "is of CUDA 11.4; 12.0 or later is needed");
    says(&[("FAKE_CC", "75")], &path, "cuda:0 (Fake H100): compute capability 7.5; 8.0 (Ampere) or later is needed");
    says(&[("FAKE_FAIL", "cuMemAlloc:2")], &path, "CUDA_ERROR_OUT_OF_MEMORY");
    says(&[("FAKE_FAIL", "cublasLtCreate:1")], &path, "cublasLtCreate: CUBLAS_STATUS_NOT_INITIALIZED");
    let source = ("SCONCE_CUDA_KERNELS", "source");
    if embedded::SOURCES.is_empty() {
        return;
    }
    says(&[("FAKE_FAIL", "nvrtcCompileProgram:6"), source], &path, "NVRTC_ERROR_COMPILATION");
}
