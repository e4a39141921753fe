//! `sconce devices`: what models can run on here, and where there is no GPU, why.

use std::io::{self, Write as _};
use std::process::ExitCode;

use indicatif::BinaryBytes;
use sconce::Dtype;
use sconce::cuda::{self, AttentionWork, GpuInfo};

use super::Failure;

/// Flags of `sconce devices`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Try each GPU: memory, copies, kernels' loading, matrix products, graphs. Fails where there is none.
    #[arg(long)]
    test: bool,
    /// Time each kernel that could multiply the matrices of Llama-3.1-8B, and NVIDIA's library, for 1 to 8192 tokens. Fails
    /// where there is no GPU.
    #[arg(long)]
    products: bool,
    /// Time attention with the heads of Llama-3.1-8B, of prompts and of decodes, with several sizes of the cache's blocks. Fails where
    /// there is no GPU.
    #[arg(long)]
    attention: bool,
}

/// Rows and columns of q, k and v; attention's output; gate and up; down.
const LLAMA_8B: [[usize; 2]; 4] = [[6144, 4096], [4096, 4096], [28672, 4096], [4096, 14336]];
const TOKENS: [usize; 10] = [1, 8, 16, 32, 64, 128, 256, 512, 2048, 8192];
/// From so many on weights in block formats are expanded.
const MAX_QUANTIZED_TOKENS: usize = 512;
const DTYPES: [Dtype; 7] =
    [Dtype::BF16, Dtype::F8E4M3, Dtype::Q4_0, Dtype::Q4K, Dtype::Q6K, Dtype::Q8_0, Dtype::Int4G128];

/// Runs `sconce devices`.
pub(super) fn run(args: Args) -> Result<ExitCode, Failure> {
    let mut out = io::stdout();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    writeln!(out, "cpu      {threads} threads")?;
    let is_asked = args.test || args.products || args.attention;
    let gpus = match cuda::available() {
        Ok(gpus) => gpus,
        Err(error) => {
            writeln!(out, "cuda     none: {error}")?;
            return Ok(if is_asked { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        }
    };
    // Where something was asked for, something has to have been tried.
    let mut is_good = !is_asked || gpus.iter().any(|gpu| gpu.problem().is_none());
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
        if args.products && gpu.problem().is_none() {
            products(&mut out, gpu.index)?;
        }
        if args.attention && gpu.problem().is_none() {
            attention(&mut out, gpu.index)?;
        }
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A line a kernel, a `*` where it is the one that steps use; `gated` has its activation to do besides.
fn products(out: &mut impl io::Write, index: usize) -> Result<(), Failure> {
    for dtype in DTYPES {
        writeln!(out, "products with weights in {dtype}: us, TFLOP/s, GB/s of weights")?;
        let is_used = |&&tokens: &&usize| !dtype.is_quantized() || tokens <= MAX_QUANTIZED_TOKENS;
        let tokens: Vec<usize> = TOKENS.iter().filter(is_used).copied().collect();
        for shape in LLAMA_8B {
            for time in cuda::time_products(index, shape, dtype, &tokens)? {
                let [rows, cols] = time.shape;
                let (us, size) = (time.microseconds, (rows * cols) as f64);
                let bytes = (rows * dtype.row_bytes(cols)) as f64;
                let (tflops, rate) = (2.0 * size * time.num_tokens as f64 / us / 1e6, bytes / us / 1e3);
                let mark = if time.is_chosen { '*' } else { ' ' };
                let what = format!("{rows} x {cols}, {} tokens", time.num_tokens);
                writeln!(out, "{what:<28} {mark} {:<34} {us:>9.1} {tflops:>7.1} {rate:>7.0}", time.kernel)?;
            }
        }
    }
    Ok(())
}

/// Sequences, tokens of each in the step, and in the cache.
const ATTENTION: [[usize; 3]; 11] = [
    [1, 2048, 2048],
    [1, 8192, 8192],
    [1, 2048, 8192],
    [16, 128, 128],
    [1, 1, 256],
    [1, 1, 4096],
    [1, 1, 32768],
    [8, 1, 2048],
    [16, 1, 1024],
    [64, 1, 1024],
    [256, 1, 1024],
];
const BLOCK_SIZES: [usize; 3] = [16, 32, 64];

/// A line a step and size of blocks.
fn attention(out: &mut impl io::Write, index: usize) -> Result<(), Failure> {
    let works = ATTENTION.map(|[num_seqs, query_len, context_len]| AttentionWork { num_seqs, query_len, context_len });
    writeln!(out, "attention of a layer: us, TFLOP/s, GB/s of keys and values")?;
    for block_size in BLOCK_SIZES {
        for time in cuda::time_attention(index, block_size, &works)? {
            let AttentionWork { num_seqs, query_len, context_len } = time.work;
            let what =
                format!("{num_seqs} x {query_len} of {context_len} in {}, blocks of {block_size}", time.kv_dtype);
            let kernel = if time.is_hopper { "Hopper" } else { "portable" };
            let (us, tflops, rate) = (time.microseconds, time.tflop_per_s, time.gb_per_s);
            writeln!(out, "{what:<46} {kernel:<8} {us:>9.1} {tflops:>7.1} {rate:>7.0}")?;
        }
    }
    Ok(())
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
