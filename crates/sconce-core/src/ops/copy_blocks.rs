//! `copy_blocks`: copies whole KV blocks, in all arrays, for copy-on-write. 2 * block bytes a copy and array.

use std::sync::Arc;

use crate::backend::cpu::KvCache;
use crate::backend::cuda::device::{Args, Device, Dims};
use crate::backend::cuda::kv_cache::KvCache as CudaKvCache;
use crate::backend::cuda::storage::Memory;
use crate::error::Result;
use crate::kv::BlockCopy;

/// Carries out the copies in order: a block can be the source of one and the destination of a later one.
pub fn reference(kv: &mut KvCache, copies: &[BlockCopy]) {
    let len = kv.shape.block_len();
    for copy in copies {
        let (src, dst) = (copy.src as usize * len, copy.dst as usize * len);
        kv.k.iter_mut().chain(&mut kv.v).for_each(|layer| layer.copy_within(src..src + len, dst));
    }
}

/// Copies of one launch; more take several.
const MAX_COPIES: usize = 256;
/// Threads of a block, and the bytes that each has of a KV block, as the kernel's head has them.
const THREADS: usize = 128;
const THREAD_BYTES: usize = 16;

/// Where a device reads the list of copies. Taken once.
pub(crate) struct CopySpace {
    /// [MAX_COPIES, 2 (source, destination)] u32.
    copies: Memory,
}

impl CopySpace {
    /// Room for the copies of a launch.
    pub(crate) fn new(device: &Arc<dyn Device>) -> Result<Self> {
        Ok(Self { copies: Memory::new(device, MAX_COPIES * 8)? })
    }
}

/// `kernels/copy_blocks.cu`: the same, in one launch for all arrays.
pub(crate) fn cuda(device: &dyn Device, space: &CopySpace, kv: &mut CudaKvCache, copies: &[BlockCopy]) -> Result<()> {
    let (shape, block_bytes) = (kv.shape, kv.block_bytes());
    let grid = [block_bytes.div_ceil(THREADS * THREAD_BYTES) as u32, 2 * shape.num_layers as u32, 1];
    for copies in copies.chunks(MAX_COPIES) {
        let mut words = [0; 2 * MAX_COPIES];
        for (words, copy) in words.chunks_exact_mut(2).zip(copies) {
            assert!((copy.src.max(copy.dst) as usize) < shape.num_blocks, "invariant: blocks are the pool's");
            words.copy_from_slice(&[copy.src, copy.dst]);
        }
        space.copies.write(0, bytemuck::cast_slice(&words[..2 * copies.len()]))?;
        let args = Args::new().with(kv.memory.ptr()).with(space.copies.ptr()).with(copies.len());
        let args = args.with(block_bytes as u64).with((shape.num_blocks * block_bytes) as u64);
        // SAFETY: the blocks were checked, arrays of keys and values follow one another, and each 16 bytes have a thread.
        unsafe { device.launch("copy_blocks", &Dims { grid, ..Dims::linear(0, THREADS) }, &args)? };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{KvCacheShape, KvDtype};
    use crate::ops::testing::{assert_device_close, devices, on_device, random};

    #[test]
    fn copies_chain_in_order_and_reach_every_layer() {
        for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Bf16] {
            let shape =
                KvCacheShape { dtype, num_layers: 2, num_blocks: 3, block_size: 2, num_kv_heads: 1, head_dim: 2 };
            let mut kv = KvCache::new(shape).unwrap();
            for layer in kv.k.iter_mut().chain(&mut kv.v) {
                (0..12).for_each(|i| layer.set(i, &[(i / 4) as f32]));
            }
            reference(&mut kv, &[BlockCopy { src: 0, dst: 1 }, BlockCopy { src: 1, dst: 2 }]);
            assert!(kv.k.iter().chain(&kv.v).all(|layer| (0..12).all(|i| layer.get(i) == 0.0)), "{dtype}");
        }
    }

    /// Pages are copied with their scales.
    #[test]
    fn device_equals_reference_in_int8() {
        for device in devices() {
            let space = CopySpace::new(&device).unwrap();
            for (block_size, num_kv_heads, head_dim) in [(8, 1, 16), (8, 3, 20), (16, 2, 128)] {
                let (dtype, num_blocks) = (KvDtype::Bf16, 5);
                let shape = KvCacheShape { dtype, num_layers: 2, num_blocks, block_size, num_kv_heads, head_dim };
                let mut cpu = KvCache::new(shape).unwrap();
                for (seed, layer) in cpu.k.iter_mut().chain(&mut cpu.v).enumerate() {
                    layer.set(0, &random(layer.len(), seed as u64 + 1));
                }
                let mut kv = on_device::int8_kv_cache(&device, &mut cpu);
                let copies = [BlockCopy { src: 4, dst: 0 }, BlockCopy { src: 0, dst: 2 }, BlockCopy { src: 1, dst: 4 }];
                reference(&mut cpu, &copies);
                cuda(&*device, &space, &mut kv, &copies).unwrap();
                for layer in 0..2 {
                    assert!(on_device::kv_rows(&kv, layer) == on_device::cpu_kv_rows(&cpu, layer), "{shape:?}");
                }
            }
        }
    }

    #[test]
    fn device_equals_reference() {
        for device in devices() {
            let space = CopySpace::new(&device).unwrap();
            for (num_kv_heads, head_dim, num_copies) in [(1, 2, 0), (1, 2, 1), (2, 20, 9), (3, 128, 2), (2, 16, 300)] {
                let (dtype, num_blocks) = (KvDtype::Bf16, 7);
                let shape = KvCacheShape { dtype, num_layers: 3, num_blocks, block_size: 8, num_kv_heads, head_dim };
                let mut cpu = KvCache::new(shape).unwrap();
                for (seed, layer) in cpu.k.iter_mut().chain(&mut cpu.v).enumerate() {
                    layer.set(0, &random(layer.len(), seed as u64 + 1));
                }
                let mut kv = on_device::kv_cache(&device, &cpu);
                // Chains among them: 7 blocks are few.
                let copies: Vec<BlockCopy> = random(num_copies, 9)
                    .iter()
                    .map(|x| ((x + 1.0) * 1e4) as u32)
                    .map(|x| BlockCopy { src: x % 7, dst: (x + 1 + x / 7 % 6) % 7 })
                    .collect();
                reference(&mut cpu, &copies);
                cuda(&*device, &space, &mut kv, &copies).unwrap();
                for layer in 0..3 {
                    let (found, expected) = (on_device::kv_rows(&kv, layer), on_device::cpu_kv_rows(&cpu, layer));
                    assert_device_close(&found.0, &expected.0, 0.0);
                    assert_device_close(&found.1, &expected.1, 0.0);
                }
            }
        }
    }
}
