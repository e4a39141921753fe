//! What can be tested without a GPU: where libraries are looked for, which image is chosen, what errors say, and everything
//! else against a stand-in for the driver.

#[cfg(target_os = "linux")]
mod fake;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use cudarc::driver::sys::CUresult;

use super::Gpu;
use super::cache::KernelCache;
use super::error::{describe, is_fatal};
use super::image::{Image, embedded, is_for, native_target, suitable};
use super::places::{Library, Places};
use crate::backend::cuda::device::{Args, DevicePtr, TensorMap};
use crate::error::ErrorKind;

/// Whether this machine has NVIDIA's driver, wherever it is.
fn has_driver() -> bool {
    let places = Places::of_machine();
    let dirs = [places.own, places.usual].concat();
    // SAFETY: the driver's initializers may run at any time.
    let by_name = unsafe { libloading::Library::new("libcuda.so.1") }.is_ok();
    by_name || !Places::files(&dirs, Library::Driver.file_names(0)).is_empty()
}

#[test]
fn without_a_driver_the_message_says_so() {
    if has_driver() {
        return;
    }
    let error = Gpu::open(0).err().expect("there is no driver");
    assert_eq!(error.kind(), ErrorKind::Config);
    let message = error.to_string();
    assert!(message.starts_with("device: there is no NVIDIA driver (libcuda.so.1); looked where"), "{message}");
    assert!(message.contains("SCONCE_CUDA_LIBS"), "{message}");
}

fn make(root: &Path, files: &[&str]) {
    for file in files {
        let path = root.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }
}

#[test]
fn libraries_are_found_in_the_usual_places() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    make(
        root,
        &[
            "venv/lib/python3.11/site-packages/nvidia/cublas/lib/libcublasLt.so.12",
            "venv/lib/python3.11/site-packages/nvidia/cu13/lib/libcublasLt.so.13",
            "tools/bin/python3",
            "tools/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
            "usr/local/cuda-12.8/lib64/libcublasLt.so.12",
            "usr/local/cuda-13.0/lib64/libcublasLt.so.13",
            "usr/local/cuda-13.0/lib64/stubs/libcuda.so",
            "usr/local/nvidia/lib64/libcuda.so.1",
            "ld/libcublasLt.so.12",
        ],
    );
    let var = |name: &str| -> Option<OsString> {
        let dir = match name {
            "VIRTUAL_ENV" => root.join("venv"),
            "PATH" => root.join("tools/bin"),
            "LD_LIBRARY_PATH" => root.join("ld"),
            "SCONCE_CUDA_LIBS" => PathBuf::from("mine"),
            _ => return None,
        };
        Some(dir.into_os_string())
    };
    let places = Places::find(var, root);
    assert_eq!(places.own, [PathBuf::from("mine")]);
    let files = |names: &[&str]| -> Vec<String> {
        let found = Places::files(&places.usual, names);
        found.iter().map(|path| path.strip_prefix(root).unwrap().display().to_string()).collect()
    };
    assert_eq!(files(Library::Driver.file_names(0)), ["usr/local/nvidia/lib64/libcuda.so.1"]);
    assert_eq!(
        files(Library::CublasLt.file_names(13)),
        [
            "usr/local/cuda-13.0/lib64/libcublasLt.so.13",
            "venv/lib/python3.11/site-packages/nvidia/cu13/lib/libcublasLt.so.13",
            "ld/libcublasLt.so.12",
            "usr/local/cuda-12.8/lib64/libcublasLt.so.12",
            "venv/lib/python3.11/site-packages/nvidia/cublas/lib/libcublasLt.so.12",
        ]
    );
    // A driver of CUDA 12 gets nothing of CUDA 13.
    assert!(files(Library::CublasLt.file_names(12)).iter().all(|file| file.ends_with(".12")));
    let in_tools = ["tools/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13"];
    assert_eq!(files(Library::Nvrtc.file_names(13)), in_tools);
    // Nothing is asked of an empty machine.
    let empty = Places::find(|_| None, &root.join("absent"));
    assert!(empty.own.is_empty() && empty.usual.is_empty());
}

#[test]
fn the_best_image_is_chosen() {
    let all = ["sm_80", "sm_89", "sm_90a", "compute_80", "sm_80"];
    let check = |capability, expected: &[&str]| assert_eq!(suitable(capability, &all), expected, "{capability:?}");
    check((8, 0), &["sm_80", "compute_80"]);
    check((8, 6), &["sm_80", "compute_80"]);
    check((8, 9), &["sm_89", "sm_80", "compute_80"]);
    check((9, 0), &["sm_90a", "compute_80"]);
    check((10, 0), &["compute_80"]);
    check((12, 1), &["compute_80"]);
    check((7, 5), &[]);
    assert_eq!(suitable((9, 0), &["sm_90", "sm_90a"]), ["sm_90a", "sm_90"]);
    assert_eq!([(8, 6), (9, 0), (12, 0)].map(native_target), ["sm_86", "sm_90a", "sm_120a"]);
}

#[test]
fn a_folder_s_images_are_taken_in_place_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("linear.cubin"), b"other").unwrap();
    let ours = |source: &str| Image { source: source.into(), bytes: b"ours".to_vec() };
    for (source, expected) in [("linear", &b"other"[..]), ("sample", &b"ours"[..])] {
        let mut image = ours(source);
        image.replace(dir.path()).unwrap();
        assert_eq!(image.bytes, expected);
    }
    let error = ours("linear").replace(&dir.path().join("absent")).unwrap_err().to_string();
    assert!(error.contains("absent/linear.cubin"), "{error}");
}

#[test]
fn kernels_are_named_by_their_image() {
    let ptx = b".version 8.0\n.visible .entry add_bf16(\n.param .u64 p\n)\n{\n}\n.entry two (\n.func f(\0";
    let image = |bytes: &[u8]| Image { source: "test".into(), bytes: bytes.to_vec() };
    assert_eq!(image(ptx).kernel_names().unwrap(), ["add_bf16", "two"]);
    for broken in [&b"\x7fELF"[..], &[&b"\x7fELF"[..], &[0xff; 60]].concat(), b"", b"no kernel"] {
        assert!(image(broken).kernel_names().is_err());
    }
    assert!(is_for("add", "sm_80") && is_for("add_hopper", "sm_90a") && !is_for("add_hopper", "sm_120a"));
    assert!(embedded::IMAGES.iter().all(|image| is_for(image.source, image.target)));
    // Both forms that the compiler makes name the same.
    for source in embedded::IMAGES.iter().filter(|image| image.target == "compute_80") {
        let names = |target: &str| {
            let packed = embedded::IMAGES.iter().find(|image| (image.source, image.target) == (source.source, target));
            let mut names = packed.unwrap().unpack().unwrap().kernel_names().unwrap();
            names.sort();
            names
        };
        let of_ptx = names("compute_80");
        assert!(!of_ptx.is_empty());
        for target in ["sm_80", "sm_89", "sm_90a"] {
            assert_eq!(names(target), of_ptx, "{} for {target}", source.source);
        }
    }
}

#[test]
fn the_cache_returns_what_was_kept_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let var = |name: &str| (name == "SCONCE_CACHE").then(|| dir.path().as_os_str().to_owned());
    let cache = KernelCache::from_vars(var);
    let key = KernelCache::key(&["text", "sm_90a"]);
    let others = [&["text", "sm_80"][..], &["textsm_90a"], &["text", "sm_90a", ""], &["texts", "m_90a"]];
    assert!(others.iter().all(|parts| KernelCache::key(parts) != key));
    assert_eq!(cache.get("add", &key), None);
    cache.put("add", &key, b"image");
    assert_eq!(cache.get("add", &key).as_deref(), Some(&b"image"[..]));
    assert_eq!(cache.get("mul", &key), None);
    let files: Vec<PathBuf> =
        std::fs::read_dir(dir.path().join("kernels")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [file] = files.as_slice() else { panic!("one file, no temporary one: {files:?}") };
    let whole = std::fs::read(file).unwrap();
    for broken in [&whole[..whole.len() - 1], &whole[..10], &[&whole[..], b"more"].concat()] {
        std::fs::write(file, broken).unwrap();
        assert_eq!(cache.get("add", &key), None);
    }
    // Where nothing can be kept, nothing is: no error, no folder.
    let nowhere = KernelCache::from_vars(|_| None);
    nowhere.put("add", &key, b"image");
    assert_eq!(nowhere.get("add", &key), None);
}

#[test]
fn errors_say_what_was_called_and_what_to_do() {
    use CUresult::*;
    let message = describe("cuInit", CUDA_ERROR_SYSTEM_NOT_READY, "system not yet initialized");
    assert!(message.starts_with("cuInit: CUDA_ERROR_SYSTEM_NOT_READY (system not yet initialized): a service"));
    assert_eq!(describe("cuCall", CUDA_ERROR_INVALID_VALUE, ""), "cuCall: CUDA_ERROR_INVALID_VALUE");
    assert!(describe("cuCall", CUDA_ERROR_ILLEGAL_ADDRESS, "").contains("SCONCE_CUDA_SYNC=1"));
    assert!(is_fatal(CUDA_ERROR_LAUNCH_FAILED) && is_fatal(CUDA_ERROR_ECC_UNCORRECTABLE));
    assert!(!is_fatal(CUDA_ERROR_OUT_OF_MEMORY) && !is_fatal(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES));
}

#[test]
fn arguments_lie_where_the_driver_reads_them() {
    let maps = [9, 10].map(|word| TensorMap([word; 16]));
    let args = Args::new().with(DevicePtr(0x1234_5678_9abc)).with(7u32).with_map(&maps[0]).with(1.5f32).with(3usize);
    let args = args.with_map(&maps[1]);
    let pointers = args.pointers();
    assert!([2, 5].iter().all(|&i| pointers[i].addr().is_multiple_of(64)), "the driver wants maps aligned");
    // SAFETY: each pointer is to a cell of `args`, of 8 bytes, or to a map of its.
    unsafe {
        assert_eq!(pointers[0].cast::<u64>().read(), 0x1234_5678_9abc);
        assert_eq!(pointers[1].cast::<u32>().read(), 7);
        assert_eq!([2, 5].map(|i| pointers[i].cast::<TensorMap>().read()), maps);
        assert_eq!(pointers[3].cast::<f32>().read(), 1.5);
        assert_eq!(pointers[4].cast::<u32>().read(), 3);
    }
    assert_eq!(args.len(), 6);
}
