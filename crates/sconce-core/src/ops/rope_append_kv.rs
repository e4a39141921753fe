//! `rope_append_kv`: turns q and k by their positions (RoPE, Su et al. 2021; the two-halves layout of Hugging Face's
//! `rotate_half`) and writes k and v to the paged cache. Bounded by memory: each element of q, k, v is moved once.

use crate::backend::cpu::{Buffer, Cpu, KvCache, KvElem, RopeTable, SharedSlice, multiversion, with_kv_elem};
use crate::backend::cuda::batch::DeviceBatch;
use crate::backend::cuda::device::{Args, Device, Dims, ElemType};
use crate::backend::cuda::kv_cache::KvCache as CudaKvCache;
use crate::backend::cuda::storage::{Buffer as CudaBuffer, Memory, RopeTable as CudaRopeTable};
use crate::backend::{AttentionSpec, Batch, KvCacheShape};
use crate::config::{RopeConfig, RopeScaling};
use crate::error::Result;

/// Tokens that one task turns.
const TASK_TOKENS: usize = 16;
/// Dimensions of a key that are rounded together.
const CHUNK_LEN: usize = 64;

/// Cosines and sines of positions `0..max_len`. Angles are products in f32, as transformers computes them.
pub fn table(config: &RopeConfig, max_len: usize) -> RopeTable {
    let inv_freq = inverse_frequencies(config);
    let angle = |pos: usize, freq: f32| f64::from(pos as f32 * freq);
    let collect = |f: fn(f64) -> f64| {
        let row = |pos| inv_freq.iter().map(move |&freq| f(angle(pos, freq)) as f32);
        (0..max_len).flat_map(row).collect()
    };
    RopeTable { cos: collect(f64::cos), sin: collect(f64::sin), rotary_dim: config.rotary_dim }
}

/// Radians a position, [rotary_dim / 2], in f32 as transformers' `modeling_rope_utils.py` computes them.
fn inverse_frequencies(config: &RopeConfig) -> Vec<f32> {
    let dim = config.rotary_dim;
    let base = |i: usize| 1.0 / config.rope_theta.powf((2 * i) as f32 / dim as f32);
    (0..dim / 2).map(|i| scale_frequency(base(i), i, &config.scaling)).collect()
}

fn scale_frequency(freq: f32, idx: usize, scaling: &RopeScaling) -> f32 {
    match scaling {
        RopeScaling::Default => freq,
        RopeScaling::Linear { factor } => freq / factor,
        RopeScaling::Factors(factors) => freq / factors[idx],
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let original = *original_max_position_embeddings as f32;
            let wavelength = 2.0 * std::f32::consts::PI / freq;
            if wavelength > original / low_freq_factor {
                freq / factor
            } else if wavelength < original / high_freq_factor {
                freq
            } else {
                let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * freq / factor + smooth * freq
            }
        }
    }
}

/// `qkv`: [num_tokens, q of all heads, k of all heads, v of all heads], turned in place. k and v go to
/// `kv[spec.layer]` at the batch's slots, rounded to the cache's type.
pub fn reference(qkv: &mut Buffer, kv: &mut KvCache, rope: &RopeTable, batch: &Batch, spec: &AttentionSpec) {
    assert_eq!(qkv.cols(), spec.qkv_dim(), "invariant: q, k and v of all heads");
    let (dim, shape) = (spec.head_dim, kv.shape);
    let (q_len, k_len) = (spec.num_heads * dim, spec.num_kv_heads * dim);
    let (block_size, half) = (shape.block_size, rope.rotary_dim / 2);
    for (t, row) in qkv.data_mut().chunks_exact_mut(spec.qkv_dim()).enumerate() {
        let pos = batch.positions[t] as usize;
        let (cos, sin) = (&rope.cos[pos * half..(pos + 1) * half], &rope.sin[pos * half..(pos + 1) * half]);
        row[..q_len + k_len].chunks_exact_mut(dim).for_each(|head| rotate(head, cos, sin));
        let (block, offset) = (batch.slot_mapping[t] / block_size as u32, batch.slot_mapping[t] as usize % block_size);
        for (head, d) in (0..spec.num_kv_heads).flat_map(|head| (0..dim).map(move |d| (head, d))) {
            let (tile, i) = (shape.tile_start(block, head), q_len + head * dim + d);
            kv.k[spec.layer].set(tile + shape.key_offset(offset, d), &row[i..=i]);
            kv.v[spec.layer].set(tile + shape.value_offset(offset, d), &row[k_len + i..=k_len + i]);
        }
    }
}

/// The same over the threads, some tokens each.
pub(crate) fn cpu(
    cpu: &mut Cpu,
    qkv: &mut Buffer,
    kv: &mut KvCache,
    rope: &RopeTable,
    batch: &Batch,
    spec: &AttentionSpec,
) {
    with_kv_elem!(kv.shape.dtype, E => run::<E>(cpu, qkv, kv, rope, batch, spec));
}

fn run<E: KvElem>(
    cpu: &mut Cpu,
    qkv: &mut Buffer,
    kv: &mut KvCache,
    rope: &RopeTable,
    batch: &Batch,
    spec: &AttentionSpec,
) {
    assert_eq!(qkv.cols(), spec.qkv_dim(), "invariant: q, k and v of all heads");
    let (num_tokens, qkv_dim, isa) = (qkv.rows(), spec.qkv_dim(), cpu.isa);
    let shape = kv.shape;
    let rows = SharedSlice::new(qkv.data_mut());
    let keys = SharedSlice::new(kv.k[spec.layer].as_mut_slice::<E>());
    let values = SharedSlice::new(kv.v[spec.layer].as_mut_slice::<E>());
    cpu.pool.run(num_tokens.div_ceil(TASK_TOKENS), &|task| {
        for t in task * TASK_TOKENS..num_tokens.min((task + 1) * TASK_TOKENS) {
            // SAFETY: this task alone has row t.
            let row = unsafe { rows.range(t * qkv_dim, qkv_dim) };
            turn(isa, row, batch.positions[t] as usize, rope, spec);
            append(row, batch.slot_mapping[t] as usize, keys, values, &shape, spec);
        }
    });
}

multiversion! {
    fn turn(row: &mut [f32], pos: usize, rope: &RopeTable, spec: &AttentionSpec) = turn_body
}

#[inline(always)]
fn turn_body<const FMA: bool>(row: &mut [f32], pos: usize, rope: &RopeTable, spec: &AttentionSpec) {
    let half = rope.rotary_dim / 2;
    let (cos, sin) = (&rope.cos[pos * half..(pos + 1) * half], &rope.sin[pos * half..(pos + 1) * half]);
    for head in row[..(spec.num_heads + spec.num_kv_heads) * spec.head_dim].chunks_exact_mut(spec.head_dim) {
        rotate(head, cos, sin);
    }
}

/// Writes a token's keys and values to its slot.
fn append<E: KvElem>(
    row: &[f32],
    slot: usize,
    keys: SharedSlice<'_, E>,
    values: SharedSlice<'_, E>,
    shape: &KvCacheShape,
    spec: &AttentionSpec,
) {
    let (dim, block_size) = (spec.head_dim, shape.block_size);
    let (block, offset) = ((slot / block_size) as u32, slot % block_size);
    let (q_len, k_len) = (spec.num_heads * dim, spec.num_kv_heads * dim);
    for head in 0..spec.num_kv_heads {
        let tile = shape.tile_start(block, head);
        let (k, v) = (&row[q_len + head * dim..][..dim], &row[q_len + k_len + head * dim..][..dim]);
        let mut rounded = [E::zeroed(); CHUNK_LEN];
        for (chunk, k) in k.chunks(CHUNK_LEN).enumerate() {
            E::round_all(&mut rounded[..k.len()], k);
            for (i, &k) in rounded[..k.len()].iter().enumerate() {
                // SAFETY: each token has a slot of its own.
                let cell = unsafe { keys.range(tile + shape.key_offset(offset, chunk * CHUNK_LEN + i), 1) };
                cell[0] = k;
            }
        }
        // SAFETY: as above.
        let cells = unsafe { values.range(tile + shape.value_offset(offset, 0), dim) };
        E::round_all(cells, v);
    }
}

/// Turns the pairs (i, i + half) of one head; dimensions beyond 2 * half pass through.
#[inline(always)]
fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    let (low, rest) = head.split_at_mut(half);
    for i in 0..half {
        let (x, y) = (low[i], rest[i]);
        low[i] = x * cos[i] - y * sin[i];
        rest[i] = y * cos[i] + x * sin[i];
    }
}

/// Threads of a block, as the kernel's head has them.
const THREADS: usize = 128;

/// `kernels/rope_append_kv.cu`: the same in 16 bits, which the cache has too. It gets the bits of k that `qkv` gets.
pub(crate) fn cuda(
    device: &dyn Device,
    qkv: &mut CudaBuffer,
    kv: &mut CudaKvCache,
    rope: &CudaRopeTable,
    batch: &DeviceBatch,
    spec: &AttentionSpec,
) -> Result<()> {
    assert_eq!((qkv.rows(), qkv.cols()), (batch.num_tokens(), spec.qkv_dim()), "invariant: q, k and v of all tokens");
    assert_eq!(qkv.elem(), kv.elem(), "invariant: the cache has the type of the activations");
    let (dim, half) = (spec.head_dim, rope.rotary_dim / 2);
    let width = if dim.is_multiple_of(8) && half.is_multiple_of(8) { 8 } else { 1 };
    let num_turning = spec.num_heads + spec.num_kv_heads;
    let num_items = num_turning * ((dim - half) / width) + spec.num_kv_heads * (dim / width);
    let grid = [qkv.rows() as u32, num_items.div_ceil(THREADS) as u32, 1];
    let args = Args::new().with(qkv.ptr()).with(kv.keys(spec.layer)).with(kv.values(spec.layer));
    let args = args.with(rope.memory.ptr()).with(batch.positions()).with(batch.slot_mapping());
    let args = args.with(spec.num_heads).with(spec.num_kv_heads).with(dim).with(rope.rotary_dim);
    let args = args.with(kv.shape.block_size).with(kv.head_stride()).with(width);
    let kernel = if qkv.elem() == ElemType::Bf16 { "rope_append_kv_bf16" } else { "rope_append_kv_f16" };
    // SAFETY: the shapes were compared, positions are within the table, slots within the cache or NO_SLOT, and each
    // item has a thread.
    unsafe { device.launch(kernel, &Dims { grid, ..Dims::linear(0, THREADS) }, &args) }
}

/// The table as the kernel reads it: of each position the cosines, then the sines.
pub(crate) fn table_cuda(device: &std::sync::Arc<dyn Device>, table: &RopeTable) -> Result<CudaRopeTable> {
    let half = (table.rotary_dim / 2).max(1);
    let rows = table.cos.chunks(half).zip(table.sin.chunks(half));
    let floats: Vec<f32> = rows.flat_map(|(cos, sin)| cos.iter().chain(sin).copied()).collect();
    let memory = Memory::of_bytes(device, bytemuck::cast_slice(&floats))?;
    Ok(CudaRopeTable { memory, rotary_dim: table.rotary_dim })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::KvDtype;
    use crate::backend::cpu::{Isa, KvLayer};
    use crate::ops::testing::{assert_close, assert_device_close, devices, on_device, random, round};

    #[test]
    fn llama3_keeps_high_and_stretches_low_frequencies() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let plain = RopeConfig { rope_theta: 5e5, rotary_dim: 128, scaling: RopeScaling::Default };
        let (plain, scaled) = (inverse_frequencies(&plain), inverse_frequencies(&RopeConfig { scaling, ..plain }));
        assert_eq!(scaled[..20], plain[..20]);
        assert_close(&scaled[40..], &plain[40..].iter().map(|f| f / 8.0).collect::<Vec<_>>(), 1e-9);
        assert!(scaled.windows(2).all(|w| w[1] < w[0]));
    }

    #[test]
    fn scores_depend_on_the_distance_alone() {
        let config = RopeConfig { rope_theta: 1e4, rotary_dim: 16, scaling: RopeScaling::Linear { factor: 2.0 } };
        let table = table(&config, 64);
        let (q, k) = (random(20, 1), random(20, 2));
        let score = |i: usize, j: usize| {
            let turned = |x: &[f32], pos: usize| {
                let mut x = x.to_vec();
                rotate(&mut x, &table.cos[pos * 8..(pos + 1) * 8], &table.sin[pos * 8..(pos + 1) * 8]);
                x
            };
            turned(&q, i).iter().zip(turned(&k, j)).map(|(a, b)| a * b).sum::<f32>()
        };
        assert_close(&[score(40, 33)], &[score(7, 0)], 1e-5);
        assert_close(&[score(0, 0)], &[q.iter().zip(&k).map(|(a, b)| a * b).sum()], 1e-5);
    }

    #[test]
    fn keys_and_values_land_in_their_slots() {
        let spec = AttentionSpec {
            layer: 1,
            num_heads: 2,
            num_kv_heads: 2,
            head_dim: 4,
            scale: 1.0,
            softcap: None,
            window: None,
        };
        let shape = KvCacheShape {
            dtype: KvDtype::F32,
            num_layers: 2,
            num_blocks: 3,
            block_size: 2,
            num_kv_heads: 2,
            head_dim: 4,
        };
        let mut kv = KvCache::new(shape);
        let rope = table(&RopeConfig { rope_theta: 1e4, rotary_dim: 4, scaling: RopeScaling::Default }, 8);
        let mut batch = Batch::default();
        batch.push(&[7], &[2, 1], 3, 4, 2);
        let mut qkv = Buffer::from_vec(random(24, 5), 24);
        reference(&mut qkv, &mut kv, &rope, &batch, &spec);
        for head in 0..2 {
            let tile = shape.tile_start(1, head);
            for d in 0..4 {
                assert_eq!(kv.k[1].get(tile + shape.key_offset(1, d)), qkv.row(0)[8 + head * 4 + d]);
                assert_eq!(kv.v[1].get(tile + shape.value_offset(1, d)), random(24, 5)[16 + head * 4 + d]);
            }
        }
        let count = |layer: usize| kv.k[layer].as_slice::<f32>().iter().filter(|&&x| x != 0.0).count();
        assert_eq!((count(0), count(1)), (0, 8));
    }

    fn check<E: KvElem>(tokens: usize, spec: &AttentionSpec, rotary_dim: usize) {
        let (num_kv_heads, head_dim) = (spec.num_kv_heads, spec.head_dim);
        let shape =
            KvCacheShape { dtype: E::DTYPE, num_layers: 1, num_blocks: 16, block_size: 4, num_kv_heads, head_dim };
        let rope = table(&RopeConfig { rope_theta: 1e4, rotary_dim, scaling: RopeScaling::Default }, 64);
        let mut batch = Batch::default();
        batch.push(&vec![7; tokens], &(0..16).rev().collect::<Vec<_>>(), 3, 64, 4);
        let data = random(tokens * spec.qkv_dim(), 5);
        let mut expected = (Buffer::from_vec(data.clone(), spec.qkv_dim()), KvCache::new(shape));
        reference(&mut expected.0, &mut expected.1, &rope, &batch, spec);
        let floats = |layer: &KvLayer| (0..layer.len()).map(|i| layer.get(i)).collect::<Vec<f32>>();
        // Turned keys may round to neighbours.
        let tolerance = if E::DTYPE == KvDtype::F32 { 1e-6 } else { 1e-2 };
        for isa in Isa::available() {
            let mut found = (Buffer::from_vec(data.clone(), spec.qkv_dim()), KvCache::new(shape));
            cpu(&mut Cpu::new(2, isa), &mut found.0, &mut found.1, &rope, &batch, spec);
            assert_close(found.0.data(), expected.0.data(), 1e-6);
            assert_close(&floats(&found.1.k[0]), &floats(&expected.1.k[0]), tolerance);
            assert_eq!(floats(&found.1.v[0]), floats(&expected.1.v[0]));
        }
    }

    #[test]
    fn kernel_equals_reference() {
        for (num_heads, num_kv_heads, head_dim, rotary_dim) in
            [(2, 2, 4, 4), (6, 2, 20, 8), (3, 1, 64, 64), (2, 1, 80, 32)]
        {
            let (scale, softcap, window) = (1.0, None, None);
            let spec = AttentionSpec { layer: 0, num_heads, num_kv_heads, head_dim, scale, softcap, window };
            for tokens in [0, 1, 37] {
                check::<f32>(tokens, &spec, rotary_dim);
                check::<half::f16>(tokens, &spec, rotary_dim);
                check::<half::bf16>(tokens, &spec, rotary_dim);
            }
        }
    }

    /// One device, one type: against the reference; padding tokens turn, and write nothing.
    fn check_device(device: &std::sync::Arc<dyn Device>, dtype: KvDtype, spec: &AttentionSpec, rotary_dim: usize) {
        let (num_kv_heads, head_dim) = (spec.num_kv_heads, spec.head_dim);
        let shape = KvCacheShape { dtype, num_layers: 2, num_blocks: 9, block_size: 4, num_kv_heads, head_dim };
        let table = table(&RopeConfig { rope_theta: 1e4, rotary_dim, scaling: RopeScaling::Default }, 64);
        let rope = table_cuda(device, &table).unwrap();
        let (elem, tolerance) = if dtype == KvDtype::F16 { (ElemType::F16, 1e-3) } else { (ElemType::Bf16, 8e-3) };
        // One token of each sequence, padded; then prompts, of 0 tokens too.
        for (lens, num_rows) in
            [(vec![(3, 1), (9, 1), (17, 1)], Some(5)), (vec![(7, 4), (21, 21)], None), (vec![], None)]
        {
            let mut batch = Batch::default();
            let mut free = (0..9).rev();
            for &(context, query) in &lens {
                let blocks: Vec<u32> = free.by_ref().take(usize::div_ceil(context, 4)).collect();
                batch.push(&vec![7; query], &blocks, context - query, context, 4);
            }
            let rows = num_rows.unwrap_or(batch.num_tokens());
            let data = round(&random(rows * spec.qkv_dim(), 5), elem);
            let mut expected = Buffer::from_vec(data[..batch.num_tokens() * spec.qkv_dim()].to_vec(), spec.qkv_dim());
            let mut cpu_kv = KvCache::new(shape);
            reference(&mut expected, &mut cpu_kv, &table, &batch, spec);

            let mut on_dev = DeviceBatch::new(device, 400).unwrap();
            on_dev.upload(&batch, num_rows).unwrap();
            let mut qkv = on_device::buffer(device, &data, spec.qkv_dim(), elem);
            let mut kv = on_device::kv_cache(device, &KvCache::new(shape));
            cuda(&**device, &mut qkv, &mut kv, &rope, &on_dev, spec).unwrap();
            let found = qkv.to_f32().unwrap();
            assert_device_close(&found[..expected.data().len()], expected.data(), tolerance);
            for layer in 0..2 {
                let (found, expected) = (on_device::kv_rows(&kv, layer), on_device::cpu_kv_rows(&cpu_kv, layer));
                assert_device_close(&found.0, &expected.0, tolerance);
                assert_eq!(found.1, expected.1, "values are moved as they are");
            }
            // The cache has the bits of the row.
            let keys = on_device::kv_rows(&kv, spec.layer).0;
            for (t, &slot) in batch.slot_mapping.iter().enumerate() {
                for head in 0..num_kv_heads {
                    let at = ((slot as usize / 4 * num_kv_heads + head) * 4 + slot as usize % 4) * head_dim;
                    let in_row = t * spec.qkv_dim() + (spec.num_heads + head) * head_dim;
                    assert_eq!(keys[at..at + head_dim], found[in_row..in_row + head_dim]);
                }
            }
        }
    }

    #[test]
    fn device_equals_reference() {
        for device in devices() {
            for (num_heads, num_kv_heads, head_dim, rotary_dim) in [
                (2, 2, 4, 4),
                (6, 2, 20, 8),
                (3, 1, 10, 10),
                (3, 1, 64, 64),
                (9, 3, 80, 32),
                (4, 2, 24, 8),
                (2, 1, 256, 128),
            ] {
                let (scale, softcap, window) = (1.0, None, None);
                let spec = AttentionSpec { layer: 1, num_heads, num_kv_heads, head_dim, scale, softcap, window };
                check_device(&device, KvDtype::Bf16, &spec, rotary_dim);
                check_device(&device, KvDtype::F16, &spec, rotary_dim);
            }
        }
    }
}
