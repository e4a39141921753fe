//! Helpers of the ops' tests.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use crate::backend::cpu::{Arena, Matrix, MatrixPart, PartData, ThreadPool};
use crate::backend::cuda::device::{Device, ElemType};
use crate::backend::cuda::gpu::Gpu;
use crate::backend::cuda::host::HostDevice;
use crate::backend::cuda::storage::{bytes_of, floats_of};
use crate::ops::linear::FloatPanels;
use crate::weights::Dtype;

/// Reproducible numbers in [-1, 1).
pub(crate) fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// A matrix of f32 rows.
pub(crate) fn dense_matrix(data: &[f32], cols: usize) -> Matrix {
    float_matrix(Dtype::F32, data, cols)
}

/// A matrix of rows of a float type.
pub(crate) fn float_matrix(dtype: Dtype, data: &[f32], cols: usize) -> Matrix {
    let to_bytes = |&x: &f32| match dtype {
        Dtype::BF16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
        Dtype::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    };
    let (rows, bytes) = (data.len() / cols, data.iter().flat_map(to_bytes).collect::<Vec<u8>>());
    let panels =
        FloatPanels::pack((&mut ThreadPool::new(1), &mut Arena::default()), dtype, rows, cols, &bytes).unwrap();
    Matrix {
        parts: vec![MatrixPart { dtype, rows, data: PartData::FloatPanels(panels), row_scales: None }],
        cols,
        bias: None,
        column_order: None,
    }
}

/// Asserts equality within `tolerance`, relative to the greatest expected magnitude.
pub(crate) fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let bound = tolerance * expected.iter().fold(1.0f32, |m, x| m.max(x.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= bound, "element {i}: found {f}, expected {e}, tolerance {bound}");
    }
}

/// The same of what a device has computed, with a line for the table that `cargo xtask golden` makes:
/// `kernel|op|tolerance|cases so far|the worst of them`.
#[track_caller]
pub(crate) fn assert_device_close(found: &[f32], expected: &[f32], tolerance: f32) {
    static WORST: Mutex<BTreeMap<(String, u32), (usize, f32)>> = Mutex::new(BTreeMap::new());
    assert_close(found, expected, tolerance);
    let greatest = expected.iter().fold(1.0f32, |max, x| max.max(x.abs()));
    let error = found.iter().zip(expected).fold(0.0f32, |max, (f, e)| max.max((f - e).abs())) / greatest;
    let file = std::path::Path::new(std::panic::Location::caller().file());
    let op = file.iter().skip_while(|part| *part != "ops").nth(1).unwrap_or_default().to_string_lossy();
    let mut worst = WORST.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (count, worst) = worst.entry((op.trim_end_matches(".rs").into(), tolerance.to_bits())).or_default();
    (*count, *worst) = (*count + 1, worst.max(error));
    println!("kernel|{}|{tolerance:.0e}|{count}|{worst:.1e}", op.trim_end_matches(".rs"));
}

/// What kernels are tested on: the host shim, or with `REQUIRE_CUDA=1` the first GPU.
pub(crate) fn devices() -> Vec<Arc<dyn Device>> {
    if std::env::var_os("REQUIRE_CUDA").is_none_or(|value| value != "1") {
        return vec![HostDevice::open()];
    }
    // One for all tests: each would take its own cuBLASLt workspace and load all kernels.
    static GPU: OnceLock<Arc<dyn Device>> = OnceLock::new();
    vec![Arc::clone(
        GPU.get_or_init(|| Arc::new(Gpu::open(0).expect("invariant: REQUIRE_CUDA is set where there is a GPU"))),
    )]
}

/// Numbers as `elem` has them.
pub(crate) fn round(data: &[f32], elem: ElemType) -> Vec<f32> {
    floats_of(&bytes_of(data, elem), elem)
}

/// Makes what kernels take.
pub(crate) mod on_device {
    use super::*;
    use crate::backend::Batch;
    use crate::backend::cpu::KvCache as CpuKvCache;
    use crate::backend::cuda::batch::DeviceBatch;
    use crate::backend::cuda::kv_cache::KvCache;
    use crate::backend::cuda::storage::{Buffer, Form, Matrix, Memory, Vector};
    use crate::backend::{KvCacheShape, KvDtype};
    use crate::ops::expand_kv::tests as int8;

    /// Activations whose rows are all in use.
    pub(crate) fn buffer(device: &Arc<dyn Device>, data: &[f32], cols: usize, elem: ElemType) -> Buffer {
        let mut buffer = Buffer::new(device, data.len() / cols, cols, elem).unwrap();
        buffer.write_f32(data).unwrap();
        buffer
    }

    /// A vector.
    pub(crate) fn vector(device: &Arc<dyn Device>, data: &[f32]) -> Vector {
        let memory = Memory::of_bytes(device, &bytes_of(data, ElemType::F32)).unwrap();
        Vector { memory, len: data.len() }
    }

    /// A weight matrix.
    pub(crate) fn matrix(
        device: &Arc<dyn Device>,
        data: &[f32],
        cols: usize,
        elem: ElemType,
        bias: Option<&[f32]>,
    ) -> Matrix {
        let memory = Memory::of_bytes(device, &bytes_of(data, elem)).unwrap();
        let bias = bias.map(|bias| vector(device, bias));
        Matrix::new(memory, [data.len() / cols, cols], elem, Form::Floats, bias).unwrap()
    }

    /// A step of these tokens, of which these rows' logits are wanted.
    pub(crate) fn batch(device: &Arc<dyn Device>, token_ids: &[u32], logit_rows: &[u32]) -> DeviceBatch {
        let zeros = vec![0; token_ids.len()];
        let batch = Batch {
            token_ids: token_ids.to_vec(),
            positions: zeros.clone(),
            slot_mappings: [zeros, Vec::new()],
            logit_rows: logit_rows.to_vec(),
            ..Batch::default()
        };
        let mut there = DeviceBatch::new(device, 4 * token_ids.len() + logit_rows.len()).unwrap();
        there.upload(&batch, None).unwrap();
        there
    }

    /// A cache of the same contents.
    pub(crate) fn kv_cache(device: &Arc<dyn Device>, cpu: &CpuKvCache) -> KvCache {
        let elem = if cpu.shape.dtype == KvDtype::F16 { ElemType::F16 } else { ElemType::Bf16 };
        let kv = KvCache::new(device, elem, cpu.shape).unwrap();
        let (dim, stride) = (cpu.shape.head_dim, kv.head_stride());
        for layer in 0..cpu.shape.num_layers {
            let (keys, values) = cpu_kv_rows(cpu, layer);
            for (start, rows) in [(kv.keys(layer), keys), (kv.values(layer), values)] {
                let mut padded = vec![0.0; rows.len() / dim * stride];
                padded.chunks_exact_mut(stride).zip(rows.chunks_exact(dim)).for_each(|(to, from)| {
                    to[..dim].copy_from_slice(from);
                });
                kv.memory.write((start.0 - kv.memory.ptr().0) as usize, &bytes_of(&padded, kv.elem())).unwrap();
            }
        }
        kv
    }

    /// A cache of 8 bits of the same contents, to which the CPU's are rounded.
    pub(crate) fn int8_kv_cache(device: &Arc<dyn Device>, cpu: &mut CpuKvCache) -> KvCache {
        let elem = if cpu.shape.dtype == KvDtype::F16 { ElemType::F16 } else { ElemType::Bf16 };
        let kv = KvCache::new(device, elem, KvCacheShape { dtype: KvDtype::Int8, ..cpu.shape }).unwrap();
        let shape = cpu.shape;
        for layer in 0..shape.num_layers {
            let (keys, values) = cpu_kv_rows(cpu, layer);
            for (start, rows, is_key) in [(kv.keys(layer), keys, true), (kv.values(layer), values, false)] {
                let pages: Vec<u8> =
                    rows.chunks(shape.block_size * shape.head_dim).flat_map(|rows| int8::page(rows, &kv)).collect();
                kv.memory.write((start.0 - kv.memory.ptr().0) as usize, &pages).unwrap();
                let rounded: Vec<f32> = rows.chunks(shape.head_dim).flat_map(|x| int8::round(x, elem)).collect();
                let side = if is_key { &mut cpu.k[layer] } else { &mut cpu.v[layer] };
                for (idx, &x) in rounded.iter().enumerate() {
                    let (row, d) = (idx / shape.head_dim, idx % shape.head_dim);
                    let tile = row / shape.block_size * shape.block_size * shape.head_dim;
                    let offset = row % shape.block_size;
                    let at = if is_key { shape.key_offset(offset, d) } else { shape.value_offset(offset, d) };
                    side.set(tile + at, &[x]);
                }
            }
        }
        kv
    }

    /// A layer's keys and values, [num_blocks, num_kv_heads, block_size, head_dim]. Dimensions that pad must be zero.
    pub(crate) fn kv_rows(kv: &KvCache, layer: usize) -> (Vec<f32>, Vec<f32>) {
        let (dim, stride) = (kv.shape.head_dim, kv.head_stride());
        let read = |start: u64| {
            let mut bytes = vec![0; kv.shape.num_blocks * kv.block_bytes()];
            kv.memory.read((start - kv.memory.ptr().0) as usize, &mut bytes).unwrap();
            let padded = if kv.is_int8() { int8::floats_of(&bytes, kv) } else { floats_of(&bytes, kv.elem()) };
            let mut rows = padded.chunks_exact(stride);
            assert!(rows.clone().all(|row| row[dim..].iter().all(|&x| x == 0.0)), "padding is not zero");
            rows.by_ref().flat_map(|row| &row[..dim]).copied().collect()
        };
        (read(kv.keys(layer).0), read(kv.values(layer).0))
    }

    /// The same of the CPU's cache.
    pub(crate) fn cpu_kv_rows(kv: &CpuKvCache, layer: usize) -> (Vec<f32>, Vec<f32>) {
        let (shape, mut keys, mut values) = (kv.shape, Vec::new(), Vec::new());
        for tile in 0..shape.num_blocks * shape.num_kv_heads {
            let start = tile * shape.block_size * shape.head_dim;
            for (offset, d) in (0..shape.block_size).flat_map(|o| (0..shape.head_dim).map(move |d| (o, d))) {
                keys.push(kv.k[layer].get(start + shape.key_offset(offset, d)));
                values.push(kv.v[layer].get(start + shape.value_offset(offset, d)));
            }
        }
        (keys, values)
    }
}
