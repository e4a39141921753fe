//! Embeds the CUDA kernels: always their sources, for NVRTC at run time; where nvcc is found, machine code for the devices
//! that matter and PTX for later ones too. A build needs no CUDA.
//!
//! A compiled image is kept in the output folder under a hash of all that went into it: a change of one kernel compiles one.

// What a build script prints is for cargo.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod nvcc;

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use nvcc::{CUBINS, FLAGS, Nvcc, Target};

/// For devices newer than all that there is machine code for: the driver compiles it.
const PTX: Target = Target { name: "compute_80", flags: &["-gencode=arch=compute_80,code=compute_80", "-ptx"] };

fn main() {
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    if let Err(message) = embed() {
        // A message of several lines is one line of cargo's each.
        eprintln!("{message}");
        eprintln!("NVCC= (empty) leaves the kernels to be compiled at run time");
        std::process::exit(1);
    }
}

fn embed() -> Result<(), String> {
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let crate_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    let kernels = crate_dir.join("../../kernels");
    let kernels = fs::canonicalize(&kernels).map_err(|e| format!("{}: {e}", kernels.display()))?;
    let sources = nvcc::files_of(&kernels, "cu")?;
    let headers = nvcc::files_of(&kernels.join("lib"), "h")?;
    // Folders for what comes and goes, files for what changes.
    println!("cargo:rerun-if-changed={}", kernels.display());
    println!("cargo:rerun-if-changed={}", kernels.join("lib").display());

    let nvcc = nvcc::find()?;
    let mut code = String::from("// Made by the build script.\n");
    let compiler = nvcc.as_ref().map(|nvcc| nvcc.release.as_str());
    let _ = writeln!(code, "pub(in super::super) static NVCC_RELEASE: Option<&str> = {compiler:?};");
    let _ = writeln!(code, "pub(in super::super) static SOURCES: &[(&str, &str)] = &[");
    for path in &sources {
        let _ = writeln!(code, "    ({:?}, include_str!({path:?})),", stem(path));
    }
    let _ = writeln!(code, "];\npub(in super::super) static HEADERS: &[(&str, &str)] = &[");
    for path in &headers {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let _ = writeln!(code, "    ({:?}, include_str!({path:?})),", format!("lib/{name}"));
    }
    let _ = writeln!(code, "];\npub(in super::super) static IMAGES: &[Packed] = &[");
    if let Some(nvcc) = nvcc {
        println!("cargo:rerun-if-changed={}", nvcc.program.display());
        for image in compile_all(&nvcc, &sources, &headers, &out_dir)? {
            let _ = writeln!(code, "    {image},");
        }
    }
    code.push_str("];\n");
    write(&out_dir.join("kernels.rs"), code.as_bytes())
}

/// Compiles every source for every target that it is for, and returns a line of Rust for each.
fn compile_all(nvcc: &Nvcc, sources: &[PathBuf], headers: &[PathBuf], out_dir: &Path) -> Result<Vec<String>, String> {
    let mut common = DefaultHasher::new();
    (FLAGS, &nvcc.release).hash(&mut common);
    for header in headers {
        read(header)?.hash(&mut common);
    }
    let targets = || CUBINS.iter().chain([&PTX]);
    let jobs: Vec<(&PathBuf, &Target)> = sources.iter().flat_map(|s| targets().map(move |t| (s, t))).collect();
    let jobs: Vec<_> = jobs.into_iter().filter(|(source, target)| nvcc::suits(&stem(source), target)).collect();
    nvcc::in_parallel(&jobs, |&(source, target)| {
        let mut hasher = common.clone();
        (read(source)?, target.flags).hash(&mut hasher);
        let key = hasher.finish();
        let packed = out_dir.join(format!("{}.{}.{key:016x}.z", stem(source), target.name));
        let length_file = packed.with_extension("len");
        if !packed.is_file() || !length_file.is_file() {
            let image = packed.with_extension("image");
            nvcc.compile(source, target, &[], &image)?;
            let bytes = read(&image)?;
            write(&packed, &deflate(&bytes)?)?;
            write(&length_file, bytes.len().to_string().as_bytes())?;
            fs::remove_file(&image).map_err(|e| format!("{}: {e}", image.display()))?;
        }
        let len: usize = String::from_utf8_lossy(&read(&length_file)?).parse().map_err(|e| format!("{e}"))?;
        let (source, target) = (stem(source), target.name);
        Ok(format!(
            "Packed {{ source: {source:?}, target: {target:?}, len: {len}, bytes: include_bytes!({packed:?}) }}"
        ))
    })
}

fn deflate(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bytes).and_then(|()| encoder.finish()).map_err(|e| format!("deflate: {e}"))
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|e| format!("{}: {e}", path.display()))
}
