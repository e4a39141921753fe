//! [`Peaks::of_gpu`]: what a GPU does at most, measured; [`time_products`] and [`time_attention`]: what kernels do of it.

use std::sync::Arc;
use std::time::Instant;

use super::super::device::{Device, ElemType, Matmul};
use super::super::storage::Memory;
use super::Gpu;
use crate::backend::Peaks;
use crate::error::Result;
use crate::ops::attention::timing::{AttentionTime, AttentionWork};
use crate::ops::linear::timing::ProductTime;
use crate::ops::{attention, linear};
use crate::weights::Dtype;

/// What is copied at most: far more than the caches hold.
const COPY_BYTES: usize = 1 << 30;
/// Rows and columns of the product.
const DIM: usize = 8192;
/// One part of the free memory in so many is the most that a measurement takes.
const MEMORY_SHARE: usize = 4;
/// Copies, and products, of one try; and tries.
const NUM_RUNS: usize = 10;
const NUM_TRIES: usize = 5;

impl Peaks {
    /// GPU `index`, in about a second. Errors: it cannot be used, or has no memory left.
    pub fn of_gpu(index: usize) -> Result<Self> {
        let device: Arc<dyn Device> = Arc::new(Gpu::open(index)?);
        Ok(Self {
            num_threads: 0,
            dram_read_gb_per_s: copy_gb_per_s(&device)?,
            f32_gflop_per_s: None,
            int8_gop_per_s: None,
            bf16_gflop_per_s: Some(product_gflop_per_s(&device)?),
        })
    }
}

/// What each kernel of GPU `index` that could multiply takes, of random weights [rows, columns] that are stored as `dtype` (BF16, F8_E4M3
/// or a block format that GPUs have kernels for), and so many tokens in bf16. Errors: the GPU cannot be used, or has no memory left.
pub fn time_products(index: usize, shape: [usize; 2], dtype: Dtype, tokens: &[usize]) -> Result<Vec<ProductTime>> {
    let device: Arc<dyn Device> = Arc::new(Gpu::open(index)?);
    linear::timing::time_products(&device, shape, dtype, tokens)
}

/// What attention of GPU `index` takes of each of the works, with 32 query heads, 8 key heads and 128 dimensions in bf16, keys and values
/// of 16 bits and of 8, and blocks of `block_size` tokens. Errors: the GPU cannot be used, or has no memory left.
pub fn time_attention(index: usize, block_size: usize, works: &[AttentionWork]) -> Result<Vec<AttentionTime>> {
    let device: Arc<dyn Device> = Arc::new(Gpu::open(index)?);
    attention::timing::time_attention(&device, [32, 8, 128], block_size, works)
}

fn copy_gb_per_s(device: &Arc<dyn Device>) -> Result<f64> {
    let bytes = COPY_BYTES.min(device.free_memory()? / MEMORY_SHARE);
    let (src, dst) = (Memory::new(device, bytes)?, Memory::new(device, bytes)?);
    src.clear()?;
    // SAFETY: both have so many bytes.
    let seconds = shortest(&**device, || unsafe { device.copy(dst.ptr(), src.ptr(), bytes) })?;
    Ok(2.0 * bytes as f64 / seconds / 1e9)
}

fn product_gflop_per_s(device: &Arc<dyn Device>) -> Result<f64> {
    let elem = ElemType::Bf16;
    // Numbers like weights: a product of zeros takes less power, and is faster than any other.
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        half::bf16::from_f32((state >> 8) as f32 / (1 << 23) as f32 - 1.0).to_bits()
    };
    let numbers: Vec<u16> = (0..DIM * DIM).map(|_| random()).collect();
    let operand = || Memory::of_bytes(device, bytemuck::cast_slice(&numbers));
    let (x, weight, out) = (operand()?, operand()?, Memory::new(device, DIM * DIM * elem.bytes())?);
    let call = Matmul {
        out: out.ptr(),
        x: x.ptr(),
        weight: weight.ptr(),
        num_rows: DIM,
        cols: DIM,
        out_cols: DIM,
        out_stride: DIM,
        in_type: elem,
        out_type: elem,
    };
    // SAFETY: each has as many elements as the shape says.
    let seconds = shortest(&**device, || unsafe { device.matmul(&call) })?;
    Ok(2.0 * (DIM as f64).powi(3) / seconds / 1e9)
}

/// Seconds of one run: the shortest of several tries of several runs, which hide what it takes to launch one.
fn shortest(device: &dyn Device, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut shortest = f64::INFINITY;
    for try_idx in 0..=NUM_TRIES {
        device.synchronize()?;
        let begun = Instant::now();
        (0..NUM_RUNS).try_for_each(|_| run())?;
        device.synchronize()?;
        // The first chooses algorithms and wakes the clocks.
        if try_idx > 0 {
            shortest = shortest.min(begun.elapsed().as_secs_f64() / NUM_RUNS as f64);
        }
    }
    Ok(shortest)
}
