//! `sconce devices`: what models can run on here, and where there is no GPU, why.

use std::io::{self, Write as _};
use std::process::ExitCode;

use indicatif::BinaryBytes;
use sconce::cuda::{self, GpuInfo};

use super::Failure;

/// Flags of `sconce devices`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Try each GPU: memory, copies, kernels' loading, matrix products, graphs. Fails where there is none.
    #[arg(long)]
    test: bool,
}

/// Runs `sconce devices`.
pub(super) fn run(args: Args) -> Result<ExitCode, Failure> {
    let mut out = io::stdout();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    writeln!(out, "cpu      {threads} threads")?;
    let gpus = match cuda::available() {
        Ok(gpus) => gpus,
        Err(error) => {
            writeln!(out, "cuda     none: {error}")?;
            return Ok(if args.test { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        }
    };
    let mut is_good = true;
    for gpu in gpus {
        writeln!(out, "{}", line(&gpu))?;
        if args.test && gpu.problem().is_none() {
            match cuda::self_test(gpu.index) {
                Ok(lines) => lines.iter().try_for_each(|line| writeln!(out, "         {line}"))?,
                Err(error) => {
                    is_good = false;
                    writeln!(out, "         failed: {error}")?;
                }
            }
        }
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A GPU, for people.
pub(super) fn line(gpu: &GpuInfo) -> String {
    let (major, minor) = gpu.compute_capability;
    let problem = gpu.problem().map_or(String::new(), |problem| format!("; not supported: {problem}"));
    format!(
        "{:<8} {}, {}, compute capability {major}.{minor}, PCI {}, driver of CUDA {}{problem}",
        format!("cuda:{}", gpu.index),
        gpu.name,
        BinaryBytes(gpu.memory_bytes as u64),
        gpu.pci_bus_id,
        cuda::release(gpu.driver_version),
    )
}
