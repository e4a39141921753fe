//! The launches of `kernels/rope_append_kv.cu` and `kernels/rope_append_kv_int8.cu`.

use std::sync::Arc;

use crate::backend::AttentionSpec;
use crate::backend::cpu::RopeTable;
use crate::backend::cuda::batch::DeviceBatch;
use crate::backend::cuda::device::{Args, Device, Dims};
use crate::backend::cuda::kv_cache::KvCache;
use crate::backend::cuda::storage::{Buffer, Memory, RopeTable as DeviceTable};
use crate::error::Result;

/// Threads of a block, as the kernels' heads have them.
const THREADS: usize = 128;

/// `kernels/rope_append_kv.cu`: the same in 16 bits, which the cache has too. It gets the bits of k that `qkv` gets. Or
/// `kernels/rope_append_kv_int8.cu`, for a cache of 8 bits.
pub(crate) fn cuda(
    device: &dyn Device,
    qkv: &mut Buffer,
    kv: &mut KvCache,
    rope: &DeviceTable,
    batch: &DeviceBatch,
    spec: &AttentionSpec,
) -> Result<()> {
    assert_eq!((qkv.rows(), qkv.cols()), (batch.num_tokens(), spec.qkv_dim()), "invariant: q, k and v of all tokens");
    assert_eq!(qkv.elem(), kv.elem(), "invariant: the cache has the type of the activations");
    let (dim, half) = (spec.head_dim, rope.rotary_dim / 2);
    let args = Args::new().with(qkv.ptr()).with(kv.keys(spec.layer)).with(kv.values(spec.layer));
    let args = args.with(rope.memory.ptr()).with(batch.rope_rows()).with(batch.slot_mapping(kv.group(spec.layer)));
    let args = args.with(spec.num_heads).with(spec.num_kv_heads).with(dim).with(rope.rotary_dim);
    let args = args.with(kv.shape.block_size).with(kv.head_stride());
    let lets_next = u32::from(device.lets_next(qkv.rows()));
    if kv.is_int8() {
        let num_heads = spec.num_heads + 2 * spec.num_kv_heads;
        let grid = [qkv.rows() as u32, num_heads.div_ceil(THREADS / 32) as u32, 1];
        let kernel = qkv.elem().kernel("rope_append_kv_int8_bf16", "rope_append_kv_int8_f16");
        // SAFETY: the shapes were compared, attention's `check` the width; rows are within the table, slots within the cache or
        // NO_SLOT, and each head has a warp.
        return unsafe { device.launch(kernel, &Dims { grid, ..Dims::linear(0, THREADS) }, &args.with(lets_next)) };
    }
    let width = if dim.is_multiple_of(8) && half.is_multiple_of(8) { 8 } else { 1 };
    let num_turning = spec.num_heads + spec.num_kv_heads;
    let num_items = num_turning * ((dim - half) / width) + spec.num_kv_heads * (dim / width);
    let grid = [qkv.rows() as u32, num_items.div_ceil(THREADS) as u32, 1];
    let kernel = qkv.elem().kernel("rope_append_kv_bf16", "rope_append_kv_f16");
    let args = args.with(width).with(lets_next);
    // SAFETY: the shapes were compared, rows are within the table, slots within the cache or NO_SLOT, and each
    // item has a thread.
    unsafe { device.launch(kernel, &Dims { grid, ..Dims::linear(0, THREADS) }, &args) }
}

/// The table as the kernel reads it: of each row the cosines, then the sines.
pub(crate) fn table(device: &Arc<dyn Device>, table: &RopeTable) -> Result<DeviceTable> {
    let half = (table.rotary_dim / 2).max(1);
    let rows = table.cos.chunks(half).zip(table.sin.chunks(half));
    let floats: Vec<f32> = rows.flat_map(|(cos, sin)| cos.iter().chain(sin).copied()).collect();
    let memory = Memory::of_bytes(device, bytemuck::cast_slice(&floats))?;
    Ok(DeviceTable { memory, rotary_dim: table.rotary_dim })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::device::ElemType;
    use crate::backend::{Batch, KvCacheShape, KvDtype, cpu};
    use crate::config::{RopeConfig, RopeScaling};
    use crate::ops::expand_kv::tests as int8;
    use crate::ops::rope_append_kv;
    use crate::ops::testing::{assert_device_close, devices, on_device, random, round};

    /// One device, one type: against the reference; padding tokens turn, and write nothing.
    fn check_device(device: &Arc<dyn Device>, dtype: KvDtype, spec: &AttentionSpec, rotary_dim: usize) {
        let (num_kv_heads, head_dim) = (spec.num_kv_heads, spec.head_dim);
        let shape = KvCacheShape { dtype, num_layers: 2, num_blocks: 9, block_size: 4, num_kv_heads, head_dim };
        let table =
            rope_append_kv::table(&RopeConfig { rope_theta: 1e4, rotary_dim, scaling: RopeScaling::Default }, 64);
        let rope = super::table(device, &table).unwrap();
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
            batch.shift_rope_rows(batch.num_tokens() / 2, 40);
            let rows = num_rows.unwrap_or(batch.num_tokens());
            let data = round(&random(rows * spec.qkv_dim(), 5), elem);
            let mut expected =
                cpu::Buffer::from_vec(data[..batch.num_tokens() * spec.qkv_dim()].to_vec(), spec.qkv_dim());
            let mut cpu_kv = cpu::KvCache::new(shape).unwrap();
            rope_append_kv::reference(&mut expected, &mut cpu_kv, &table, &batch, spec);

            let mut on_dev = DeviceBatch::new(device, 400).unwrap();
            on_dev.upload(&batch, num_rows).unwrap();
            let mut qkv = on_device::buffer(device, &data, spec.qkv_dim(), elem);
            let mut kv = on_device::kv_cache(device, &cpu::KvCache::new(shape).unwrap());
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
            for (t, &slot) in batch.slot_mappings[0].iter().enumerate() {
                for head in 0..num_kv_heads {
                    let at = ((slot as usize / 4 * num_kv_heads + head) * 4 + slot as usize % 4) * head_dim;
                    let in_row = t * spec.qkv_dim() + (spec.num_heads + head) * head_dim;
                    assert_eq!(keys[at..at + head_dim], found[in_row..in_row + head_dim]);
                }
            }
        }
    }

    /// A cache of 8 bits has the row's keys and values, rounded; padding tokens write nothing.
    fn check_int8(device: &Arc<dyn Device>, elem: ElemType, spec: &AttentionSpec, rotary_dim: usize) {
        let (num_kv_heads, head_dim, block_size) = (spec.num_kv_heads, spec.head_dim, 8);
        let dtype = KvDtype::Int8;
        let shape = KvCacheShape { dtype, num_layers: 2, num_blocks: 5, block_size, num_kv_heads, head_dim };
        let table =
            rope_append_kv::table(&RopeConfig { rope_theta: 1e4, rotary_dim, scaling: RopeScaling::Default }, 64);
        let rope = super::table(device, &table).unwrap();
        let mut batch = Batch::default();
        batch.push(&[7], &[3, 1], 10, 11, block_size);
        batch.push(&[7; 12], &[0, 4], 1, 13, block_size);
        batch.shift_rope_rows(4, 40);
        let (rows, cols, tolerance) = (15, spec.qkv_dim(), if elem == ElemType::F16 { 1e-3 } else { 8e-3 });
        // Rows of several magnitudes, and one that is zeros.
        let magnitude = |row: usize| [1.0, 300.0, 1e-3, 0.0][row % 4];
        let data = random(rows * cols, 5).into_iter().enumerate().map(|(i, x)| x * magnitude(i / cols));
        let data = round(&data.collect::<Vec<_>>(), elem);
        let mut expected = cpu::Buffer::from_vec(data[..13 * cols].to_vec(), cols);
        let as_f32 = KvCacheShape { dtype: KvDtype::F32, ..shape };
        rope_append_kv::reference(&mut expected, &mut cpu::KvCache::new(as_f32).unwrap(), &table, &batch, spec);

        let mut on_dev = DeviceBatch::new(device, 400).unwrap();
        // Padding tokens are no part of the batch's sequences.
        let mut padded = batch.clone();
        padded.token_ids.extend([0; 2]);
        padded.rope_rows.extend([0; 2]);
        padded.slot_mappings[0].extend([u32::MAX; 2]);
        on_dev.upload(&padded, None).unwrap();
        let mut qkv = on_device::buffer(device, &data, cols, elem);
        let mut kv = KvCache::new(device, elem, shape).unwrap();
        cuda(&**device, &mut qkv, &mut kv, &rope, &on_dev, spec).unwrap();
        let found = qkv.to_f32().unwrap();
        assert_device_close(&found[..13 * cols], expected.data(), tolerance);
        let (keys, values) = on_device::kv_rows(&kv, spec.layer);
        let [mut own_keys, mut own_values] = [(); 2].map(|()| vec![0.0; keys.len()]);
        for (t, &slot) in batch.slot_mappings[0].iter().enumerate() {
            for head in 0..num_kv_heads {
                let (block, offset) = (slot as usize / block_size, slot as usize % block_size);
                let at = ((block * num_kv_heads + head) * block_size + offset) * head_dim;
                let of_row = |first: usize| &found[t * cols + (first + head) * head_dim..][..head_dim];
                let (key, value) = (of_row(spec.num_heads), of_row(spec.num_heads + num_kv_heads));
                own_keys[at..at + head_dim].copy_from_slice(&int8::round(key, elem));
                own_values[at..at + head_dim].copy_from_slice(&int8::round(value, elem));
            }
        }
        assert!(keys == own_keys && values == own_values, "{spec:?} {elem:?}");
        let others = on_device::kv_rows(&kv, 0);
        assert!(others.0.iter().chain(&others.1).all(|&x| x == 0.0), "another layer was written");
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
                check_int8(&device, ElemType::Bf16, &spec, rotary_dim);
                check_int8(&device, ElemType::F16, &spec, rotary_dim);
            }
        }
    }
}
