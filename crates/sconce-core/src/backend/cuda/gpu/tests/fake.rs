//! The whole of [`Gpu`] against a stand-in for NVIDIA's libraries (fake_nvidia.c). A process loads a driver once, so each
//! case is a process of its own: this test program again, told to run one of the `child` tests.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::image::embedded;
use super::super::places::OWN_VARIABLE;
use super::super::self_test::self_test;
use super::super::{Gpu, available};
use crate::backend::cuda::device::{Args, BoxShape, Device, Dims, ElemType, Matmul};
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
        assert_eq!(lines.len(), 9, "{lines:?}");
        println!("{}", lines.join("\n"));
    }
}

#[test]
fn child_launch() {
    if is_child() {
        let gpu = Gpu::open(0).unwrap();
        let there = gpu.alloc(64).unwrap();
        let dims = Dims { grid: [1, 2, 3], block: [32, 4, 5], shared_bytes: 70_000, cluster: 1, overlaps: true };
        // What it is called depends on who compiled it.
        let name = gpu.inner.kernels.names().next().expect("invariant: there is a kernel").to_owned();
        let mut seen = [0u32; 9];
        // SAFETY: the stand-in's kernel takes an address with room for 36 bytes and a number.
        unsafe {
            gpu.launch(&name, &dims, &Args::new().with(there).with(77u32)).unwrap();
            gpu.download(bytemuck::cast_slice_mut(&mut seen), there).unwrap();
            assert_eq!(seen, [1, 2, 3, 32, 4, 5, 70_000, 77, 1]);
            // Not before the one before it has ended.
            gpu.launch(&name, &dims.behind(true), &Args::new().with(there).with(77u32)).unwrap();
            gpu.download(bytemuck::cast_slice_mut(&mut seen), there).unwrap();
            assert_eq!(seen, [1, 2, 3, 32, 4, 5, 70_000, 77, 0]);
            let empty = Dims { grid: [1, 0, 1], ..dims };
            gpu.launch("absent", &empty, &Args::new()).unwrap();
            assert!(error(gpu.launch("absent", &dims, &Args::new())).contains("there is no kernel absent"));
            let refused = error(gpu.launch(&name, &Dims { grid: [9, 9, 9], ..dims }, &Args::new()));
            assert!(refused.contains(&format!("cuLaunchKernelEx {name} with 0 arguments, Dims")), "{refused}");
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

/// Prints of some launches, the last of them for a graph, whether each may begin before the one before it has ended.
#[test]
fn child_overlap() {
    if is_child() {
        let gpu = Gpu::open(0).unwrap();
        let there = gpu.alloc(64).unwrap();
        let name = gpu.inner.kernels.names().next().expect("invariant: there is a kernel").to_owned();
        let launch = || {
            let mut seen = [0u32; 9];
            // SAFETY: as in `child_launch`; the stand-in launches at once, whatever is captured.
            unsafe {
                gpu.launch(&name, &Dims::linear(1, 32), &Args::new().with(there).with(77u32)).unwrap();
                std::ptr::copy_nonoverlapping(there.0 as *const u32, seen.as_mut_ptr(), seen.len());
            }
            seen[8]
        };
        let eager = [launch(), launch()];
        gpu.begin_capture().unwrap();
        let captured = launch();
        drop(gpu.end_capture().unwrap());
        println!("overlaps: {eager:?}, {captured} in a graph");
    }
}

/// Products of two numbers of rows that round to the same, and one in a graph: before them where `FAKE_GRAPH_FIRST` is set.
#[test]
fn child_products() {
    if is_child() {
        let gpu = Gpu::open(0).unwrap();
        let [out, x, weight] = [(); 3].map(|()| gpu.alloc(1 << 16).unwrap());
        let product = |num_rows: usize| {
            let (in_type, out_type) = (ElemType::Bf16, ElemType::F32);
            let call = Matmul { out, x, weight, num_rows, cols: 64, out_cols: 64, out_stride: 64, in_type, out_type };
            // SAFETY: there is memory for 64 rows; what is in it does not matter.
            unsafe { gpu.matmul(&call) }.unwrap();
        };
        let graph = || {
            gpu.begin_capture().unwrap();
            product(40);
            drop(gpu.end_capture().unwrap());
        };
        if std::env::var_os("FAKE_GRAPH_FIRST").is_some() {
            graph();
        }
        product(40);
        product(50);
        graph();
    }
}

#[test]
fn child_map() {
    if is_child() {
        let gpu = Gpu::open(0).unwrap();
        let there = gpu.alloc(64).unwrap();
        let shape = BoxShape { elem: ElemType::Bf16, dims: [80, 48, 4], box_dims: [64, 16, 1] };
        let map = gpu.tensor_map(there, &shape).unwrap();
        if gpu.info().compute_capability == (9, 0) && std::env::var_os("FAKE_FAIL").is_none() {
            assert_eq!(map.unwrap().0[..9], [there.0, 80, 48, 4, 160, 7680, 64, 16, 1]);
            let refused = gpu.tensor_map(there, &BoxShape { elem: ElemType::F32, ..shape });
            assert!(error(refused).contains("kernels copy boxes of 16 bits"));
        } else {
            assert_eq!(map, None);
        }
        // SAFETY: nobody uses it.
        unsafe { gpu.free(there) };
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
        assert_eq!(self_test(0).unwrap().len(), 9);
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
    // Of the algorithms that are proposed the fastest is kept, also for graphs; the first where they cannot be timed.
    for (vars, kept, is_tried) in [(&[][..], 3, true), (&[("FAKE_FAIL", "cuEventElapsedTime:1")], 5, false)] {
        let printed = child("child_products", dir.path(), vars);
        let products: Vec<_> = printed.lines().filter_map(|line| line.strip_prefix("fake: a product of ")).collect();
        let of = |ms: u32| products.iter().filter(|line| line.starts_with(&format!("{ms} ms"))).count();
        assert_eq!(products.last().copied(), Some(format!("{kept} ms in a graph").as_str()), "{products:?}");
        assert_eq!((of(1), of(9) > 0), (0, is_tried), "{products:?}");
        assert!(
            products[products.len() - 3..].iter().all(|line| line.starts_with(&format!("{kept} ms"))),
            "{products:?}"
        );
    }
    // What a graph is written down with is not tried.
    let printed = child("child_products", dir.path(), &[("FAKE_GRAPH_FIRST", "1")]);
    let is_first = |line: &str| !line.starts_with("fake: a product of") || line.starts_with("fake: a product of 5 ms");
    assert!(printed.lines().all(is_first), "{printed}");
    let printed = child("child_lost_device", dir.path(), &[("FAKE_FAIL", "cuStreamSynchronize:700")]);
    assert!(printed.contains("fake: reset with 0 contexts"), "{printed}");
    if embedded::SOURCES.is_empty() {
        return;
    }
    child("child_launch", dir.path(), &[]);
    let overlaps = |vars: &[(&str, &str)], expected: &str| {
        let printed = child("child_overlap", dir.path(), vars);
        assert!(printed.contains(&format!("overlaps: {expected}\n")), "{vars:?}: {printed}");
    };
    overlaps(&[], "[1, 1], 1 in a graph");
    overlaps(&[("SCONCE_CUDA_PDL", "0")], "[0, 0], 0 in a graph");
    overlaps(&[("FAKE_DRIVER", "12020")], "[1, 1], 0 in a graph");
    // Refused once: never asked for again.
    overlaps(&[("FAKE_FAIL", "cuLaunchKernelEx:801")], "[0, 0], 0 in a graph");
    child("child_map", dir.path(), &[]);
    child("child_map", dir.path(), &[("FAKE_FAIL", "cuTensorMapEncodeTiled:1")]);
    if embedded::IMAGES.is_empty() {
        return;
    }
    child("child_map", dir.path(), &[("FAKE_CC", "89")]);
    overlaps(&[("FAKE_CC", "89")], "[0, 0], 0 in a graph");
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
