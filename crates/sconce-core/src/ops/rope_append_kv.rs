//! `rope_append_kv`: turns q and k by their positions (RoPE, Su et al. 2021; the two-halves layout of Hugging Face's
//! `rotate_half`) and writes k and v to the paged cache. Bounded by memory: each element of q, k, v is moved once.

use crate::backend::cpu::{Buffer, KvCache, RopeTable};
use crate::backend::{AttentionSpec, Batch};
use crate::config::{RopeConfig, RopeScaling};

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
/// `kv[spec.layer]` at the batch's slots.
pub fn reference(qkv: &mut Buffer, kv: &mut KvCache, rope: &RopeTable, batch: &Batch, spec: &AttentionSpec) {
    assert_eq!(qkv.cols(), spec.qkv_dim(), "invariant: q, k and v of all heads");
    let dim = spec.head_dim;
    let (q_len, k_len) = (spec.num_heads * dim, spec.num_kv_heads * dim);
    let (block_size, half) = (kv.shape.block_size, rope.rotary_dim / 2);
    for (t, row) in qkv.data_mut().chunks_exact_mut(spec.qkv_dim()).enumerate() {
        let pos = batch.positions[t] as usize;
        let (cos, sin) = (&rope.cos[pos * half..(pos + 1) * half], &rope.sin[pos * half..(pos + 1) * half]);
        row[..q_len + k_len].chunks_exact_mut(dim).for_each(|head| rotate(head, cos, sin));
        let (block, offset) = (batch.slot_mapping[t] / block_size as u32, batch.slot_mapping[t] as usize % block_size);
        for head in 0..spec.num_kv_heads {
            let dst = kv.tile_start(block, head) + offset * dim;
            let (k, v) = (q_len + head * dim, q_len + k_len + head * dim);
            kv.k[spec.layer][dst..dst + dim].copy_from_slice(&row[k..k + dim]);
            kv.v[spec.layer][dst..dst + dim].copy_from_slice(&row[v..v + dim]);
        }
    }
}

/// Turns the pairs (i, i + half) of one head; dimensions beyond 2 * half pass through.
fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    let (low, rest) = head.split_at_mut(half);
    for i in 0..half {
        let (x, y) = (low[i], rest[i]);
        low[i] = x * cos[i] - y * sin[i];
        rest[i] = y * cos[i] + x * sin[i];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::KvCacheShape;
    use crate::ops::testing::{assert_close, random};

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
        let shape = KvCacheShape { num_layers: 2, num_blocks: 3, block_size: 2, num_kv_heads: 2, head_dim: 4 };
        let mut kv = KvCache::new(shape);
        let rope = table(&RopeConfig { rope_theta: 1e4, rotary_dim: 4, scaling: RopeScaling::Default }, 8);
        let mut batch = Batch::default();
        batch.push(&[7], &[2, 1], 3, 4, 2);
        let mut qkv = Buffer::from_vec(random(24, 5), 24);
        reference(&mut qkv, &mut kv, &rope, &batch, &spec);
        for head in 0..2 {
            let start = kv.tile_start(1, head) + 4;
            assert_eq!(kv.k[1][start..start + 4], qkv.row(0)[8 + head * 4..12 + head * 4]);
            assert_eq!(kv.v[1][start..start + 4], random(24, 5)[16 + head * 4..20 + head * 4]);
        }
        assert!(kv.k[0].iter().all(|&x| x == 0.0));
        assert_eq!(kv.k[1].iter().filter(|&&x| x != 0.0).count(), 8);
    }
}
