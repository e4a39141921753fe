//! `copy_blocks`: copies whole KV blocks, in all layers, for copy-on-write. 2 * block bytes a copy and layer.

use crate::backend::cpu::KvCache;
use crate::kv::BlockCopy;

/// Carries out the copies in order: a block can be the source of one and the destination of a later one.
pub fn reference(kv: &mut KvCache, copies: &[BlockCopy]) {
    let len = kv.shape.block_len();
    for copy in copies {
        let (src, dst) = (copy.src as usize * len, copy.dst as usize * len);
        kv.k.iter_mut().chain(&mut kv.v).for_each(|layer| layer.copy_within(src..src + len, dst));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{KvCacheShape, KvDtype};

    #[test]
    fn copies_chain_in_order_and_reach_every_layer() {
        for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Bf16] {
            let shape =
                KvCacheShape { dtype, num_layers: 2, num_blocks: 3, block_size: 2, num_kv_heads: 1, head_dim: 2 };
            let mut kv = KvCache::new(shape);
            for layer in kv.k.iter_mut().chain(&mut kv.v) {
                (0..12).for_each(|i| layer.set(i, &[(i / 4) as f32]));
            }
            reference(&mut kv, &[BlockCopy { src: 0, dst: 1 }, BlockCopy { src: 1, dst: 2 }]);
            assert!(kv.k.iter().chain(&kv.v).all(|layer| (0..12).all(|i| layer.get(i) == 0.0)), "{dtype}");
        }
    }
}
