//! `cargo xtask kernels`: compiles every kernel for every device that matters, without one, and shows what each takes of a
//! multiprocessor. A kernel that keeps registers in memory (a spill) fails, unless kernels/spills.txt gives a reason.

#[path = "../../sconce-core/build/nvcc.rs"]
mod nvcc;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nvcc::{CUBINS, Nvcc};

/// nvcc, its headers and its parts, of one release, as Python packages. A driver of CUDA 13.0 refuses PTX of later ones.
const PACKAGES: &[&str] = &[
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];

/// What one kernel takes on one kind of device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Usage {
    kernel: String,
    target: String,
    registers: u32,
    shared_bytes: u32,
    stack_bytes: u32,
    spill_bytes: u32,
}

/// What kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Devices {
    /// All that they are for.
    All,
    /// The oldest of them: what it can do later ones can, and what is for Hopper has a file of its own. Registers may differ.
    Oldest,
}

/// Compiles all kernels, prints the table, and fails on what it should not show.
pub(crate) fn run(root: &Path, devices: Devices) -> Result<(), String> {
    let nvcc = match nvcc::find()? {
        Some(nvcc) => nvcc,
        None => install(root)?,
    };
    println!("{} of release {}", nvcc.program.display(), nvcc.release);
    let kernels = root.join("kernels");
    let out_dir = root.join("target/kernels");
    fs::create_dir_all(&out_dir).map_err(|e| format!("{}: {e}", out_dir.display()))?;
    let sources = nvcc::files_of(&kernels, "cu")?;
    let stem = |source: &Path| source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let num_targets = if devices == Devices::All { CUBINS.len() } else { 1 };
    let jobs: Vec<_> = sources
        .iter()
        .flat_map(|source| {
            let suitable = CUBINS.iter().filter(move |target| nvcc::suits(&stem(source), target));
            suitable.take(num_targets).map(move |target| (source, target))
        })
        .collect();
    let outputs = nvcc::in_parallel(&jobs, |&(source, target)| {
        let stem = stem(source);
        let out = out_dir.join(format!("{stem}.{}.cubin", target.name));
        let said = nvcc.compile(source, target, &["-Xptxas", "-v", "-Werror", "all-warnings"], &out)?;
        let usages = parse(&said, target.name);
        if usages.is_empty() {
            return Err(format!("{} for {}: it has no kernel", source.display(), target.name));
        }
        Ok(usages)
    })?;
    let usages: Vec<Usage> = outputs.into_iter().flatten().collect();
    print!("{}", table(&usages));
    let allowed = kernels.join("spills.txt");
    let text = if allowed.exists() { fs::read_to_string(&allowed).map_err(|e| e.to_string())? } else { String::new() };
    let mut allowed = parse_allowed(&text)?;
    if devices != Devices::All {
        allowed
            .retain(|(kernel, target)| usages.iter().any(|usage| usage.kernel == *kernel && usage.target == *target));
    }
    let problems = problems(&usages, &allowed);
    problems.iter().for_each(|problem| println!("{problem}"));
    let num_kernels = usages.iter().map(|usage| &usage.kernel).collect::<BTreeSet<_>>().len();
    let whom = if devices == Devices::All { "all devices" } else { "the oldest devices that they are for" };
    let counts = format!("{num_kernels} kernels of {} files for {whom}", sources.len());
    if problems.is_empty() {
        println!("kernels: {counts}, no spill without a reason");
        Ok(())
    } else {
        Err(format!("kernels: {counts}, {} problems", problems.len()))
    }
}

/// nvcc in `target/`, by way of pip: it needs no GPU and no rights.
fn install(root: &Path) -> Result<Nvcc, String> {
    let home = root.join("target").join("nvcc-13.0.88");
    let program = home.join("bin/nvcc");
    if program.is_file() {
        return nvcc::ask(&program);
    }
    eprintln!("there is no nvcc; bringing {} to {}", PACKAGES[0], home.display());
    let temporary = home.with_extension(format!("{}.tmp", std::process::id()));
    let describe = |what: &Path, e: std::io::Error| format!("{}: {e}", what.display());
    // One call: pip does not merge a later package into a folder that is there.
    let arguments = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile"];
    let python = if cfg!(windows) { "python" } else { "python3" };
    let mut command = Command::new(python);
    command.args(arguments).args(["--root-user-action", "ignore", "--target"]).arg(&temporary).args(PACKAGES);
    let status = command.status().map_err(|e| format!("{python} -m pip: {e}"))?;
    if !status.success() {
        return Err(format!("{python} -m pip install {}: {status}", PACKAGES.join(" ")));
    }
    let whole = temporary.join("nvidia/cu13");
    // Another run may have been faster.
    if let Err(error) = fs::rename(&whole, &home)
        && !program.is_file()
    {
        return Err(describe(&home, error));
    }
    fs::remove_dir_all(&temporary).map_err(|e| describe(&temporary, e))?;
    nvcc::ask(&program)
}

/// What `ptxas -v` says of each kernel.
fn parse(said: &str, target: &str) -> Vec<Usage> {
    let mut usages: Vec<Usage> = Vec::new();
    for line in said.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            usages.push(Usage { kernel, target: target.to_owned(), ..Usage::default() });
        }
        let Some(usage) = usages.last_mut() else { continue };
        // The number before the words.
        let number = |words: &str| -> Option<u32> {
            line.split(words).next().filter(|before| before.len() < line.len())?.split_whitespace().last()?.parse().ok()
        };
        if let Some(bytes) = number(" bytes stack frame") {
            usage.stack_bytes = bytes;
            usage.spill_bytes =
                number(" bytes spill stores").unwrap_or(0).max(number(" bytes spill loads").unwrap_or(0));
        }
        if let Some(registers) = number(" registers") {
            usage.registers = registers;
            usage.shared_bytes = number(" bytes smem").unwrap_or(0);
        }
    }
    usages
}

/// A line a kernel; registers, shared memory, stack and spills for each device.
fn table(usages: &[Usage]) -> String {
    let mut rows: BTreeMap<&str, Vec<&Usage>> = BTreeMap::new();
    for usage in usages {
        rows.entry(&usage.kernel).or_default().push(usage);
    }
    let width = rows.keys().map(|name| name.len()).max().unwrap_or(0).max(6);
    let mut text = format!("{:width$}", "kernel");
    for target in CUBINS {
        let _ = write!(text, "  {:>28}", format!("{}: regs smem stack spill", target.name));
    }
    text.push('\n');
    for (kernel, row) in rows {
        let _ = write!(text, "{kernel:width$}");
        for target in CUBINS {
            let Some(usage) = row.iter().find(|usage| usage.target == target.name) else {
                let _ = write!(text, "  {:>28}", "");
                continue;
            };
            let Usage { registers, shared_bytes, stack_bytes, spill_bytes, .. } = usage;
            let _ = write!(text, "  {registers:>10} {shared_bytes:>5} {stack_bytes:>5} {spill_bytes:>5}");
        }
        text.push('\n');
    }
    text
}

/// Lines of `kernel target reason`; `#` begins a comment.
fn parse_allowed(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut allowed = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.splitn(3, ' ').collect::<Vec<_>>()[..] {
            [kernel, target, reason] if !reason.trim().is_empty() => allowed.push((kernel.into(), target.into())),
            _ => return Err(format!("kernels/spills.txt:{number}: expected: kernel target reason")),
        }
    }
    Ok(allowed)
}

/// Spills without a reason, and reasons without a spill.
fn problems(usages: &[Usage], allowed: &[(String, String)]) -> Vec<String> {
    let is = |usage: &Usage, (kernel, target): &(String, String)| usage.kernel == *kernel && usage.target == *target;
    let spilling = || usages.iter().filter(|usage| usage.spill_bytes > 0);
    let unexplained = spilling().filter(|usage| !allowed.iter().any(|entry| is(usage, entry)));
    let unexplained = unexplained.map(|usage| {
        let Usage { kernel, target, spill_bytes, .. } = usage;
        format!("error: {kernel} spills {spill_bytes} bytes on {target}; if it must, kernels/spills.txt says why")
    });
    let idle = allowed.iter().filter(|entry| !spilling().any(|usage| is(usage, entry)));
    let idle = idle.map(|(kernel, target)| format!("error: kernels/spills.txt: {kernel} does not spill on {target}"));
    unexplained.chain(idle).collect()
}

/// Where the release's nvcc is, for whoever builds with it.
pub(crate) fn nvcc_path(root: &Path) -> Result<PathBuf, String> {
    Ok(match nvcc::find()? {
        Some(nvcc) => nvcc.program,
        None => install(root)?.program,
    })
}
