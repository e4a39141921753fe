//! `rope_append_kv`: turns q and k by their rows of a table of angles (RoPE, Su et al. 2021; the two-halves layout of Hugging Face's
//! `rotate_half`) and writes k and v to the paged cache. Bounded by memory: each element of q, k, v is moved once.

pub(crate) mod cuda;

use crate::backend::cpu::{Buffer, Cpu, KvCache, KvElem, RopeTable, SharedSlice, multiversion, with_kv_elem};
use crate::backend::{AttentionSpec, Batch, KvCacheShape};
use crate::config::{RopeConfig, RopeScaling, Yarn};

/// Tokens that one task turns.
const TASK_TOKENS: usize = 16;
/// Dimensions of a key that are rounded together.
const CHUNK_LEN: usize = 64;

/// Cosines and sines of positions `0..max_len`. Angles are products in f32, as transformers computes them. Of `longrope` there are
/// first those of a short sequence's positions, then, where there can be long ones, theirs ([`RopeConfig::short_len`]).
pub fn table(config: &RopeConfig, max_len: usize) -> RopeTable {
    let factor = match &config.scaling {
        RopeScaling::Long(long) => long.attention_factor,
        RopeScaling::Yarn(yarn) => yarn.attention_factor,
        _ => 1.0,
    };
    let short_len = config.short_len(max_len);
    let sets = [(false, short_len.unwrap_or(max_len)), (true, short_len.map_or(0, |_| max_len))];
    let sets = sets.map(|(is_long, len)| (inverse_frequencies(config, is_long), len));
    let angle = |pos: usize, freq: f32| f64::from(pos as f32 * freq);
    let collect = |f: fn(f64) -> f64| {
        let row = |inv_freq, pos| <[f32]>::iter(inv_freq).map(move |&freq| f(angle(pos, freq)) as f32 * factor);
        sets.iter().flat_map(|(inv_freq, len)| (0..*len).flat_map(move |pos| row(inv_freq, pos))).collect()
    };
    RopeTable { cos: collect(f64::cos), sin: collect(f64::sin), rotary_dim: config.rotary_dim }
}

/// Radians a position, [rotary_dim / 2], in f32 as transformers' `modeling_rope_utils.py` computes them; those of long sequences, if
/// `is_long` and they are others.
fn inverse_frequencies(config: &RopeConfig, is_long: bool) -> Vec<f32> {
    let dim = config.rotary_dim;
    let period = |i: usize| config.rope_theta.powf((2 * i) as f32 / dim as f32);
    (0..dim / 2).map(|i| scaled_frequency(period(i), i, config, is_long)).collect()
}

/// YaRN's frequency, of the place `idx` among all.
fn yarn_frequency(period: f32, idx: usize, yarn: &Yarn, config: &RopeConfig) -> f32 {
    let (dim, theta) = (config.rotary_dim as f64, f64::from(config.rope_theta));
    let original = yarn.original_max_position_embeddings as f64;
    let place = |turns: f32| {
        let wavelength = original / (f64::from(turns) * 2.0 * std::f64::consts::PI);
        dim * wavelength.ln() / (2.0 * theta.ln())
    };
    let (low, high) = (place(yarn.beta_fast), place(yarn.beta_slow));
    let (low, high) = if yarn.truncate { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = (low.max(0.0), high.min(dim - 1.0));
    // As transformers has it, so that there is no division by 0.
    let high = if low == high { high + 0.001 } else { high };
    let kept = 1.0 - ((idx as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
    1.0 / (yarn.factor * period) * (1.0 - kept) + 1.0 / period * kept
}

fn scaled_frequency(period: f32, idx: usize, config: &RopeConfig, is_long: bool) -> f32 {
    let freq = 1.0 / period;
    match &config.scaling {
        RopeScaling::Default => freq,
        RopeScaling::Linear { factor } => freq / factor,
        RopeScaling::Long(long) => {
            let factors = if is_long { &long.long_factors } else { &long.short_factors };
            1.0 / (factors[idx] * period)
        }
        RopeScaling::Yarn(yarn) => yarn_frequency(period, idx, yarn, config),
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
    let (block_size, place, start) = (shape.block_size, kv.places[spec.layer], kv.start(spec.layer));
    for (t, row) in qkv.data_mut().chunks_exact_mut(spec.qkv_dim()).enumerate() {
        let (cos, sin) = rope.row(batch.rope_rows[t] as usize);
        row[..q_len + k_len].chunks_exact_mut(dim).for_each(|head| rotate(head, cos, sin));
        let slot = batch.slot_mappings[place.group][t] as usize;
        let (block, offset) = ((slot / block_size) as u32, slot % block_size);
        for (head, d) in (0..spec.num_kv_heads).flat_map(|head| (0..dim).map(move |d| (head, d))) {
            let (tile, i) = (start + shape.tile_start(block, head), q_len + head * dim + d);
            kv.k[place.array].set(tile + shape.key_offset(offset, d), &row[i..=i]);
            kv.v[place.array].set(tile + shape.value_offset(offset, d), &row[k_len + i..=k_len + i]);
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
    let (shape, slots) = (kv.shape, &batch.slot_mappings[kv.places[spec.layer].group]);
    let rows = SharedSlice::new(qkv.data_mut());
    let [keys, values] = kv.layer_mut::<E>(spec.layer).map(SharedSlice::new);
    cpu.pool.run(num_tokens.div_ceil(TASK_TOKENS), &|task| {
        for t in task * TASK_TOKENS..num_tokens.min((task + 1) * TASK_TOKENS) {
            // SAFETY: this task alone has row t.
            let row = unsafe { rows.range(t * qkv_dim, qkv_dim) };
            turn(isa, row, batch.rope_rows[t] as usize, rope, spec);
            append(row, slots[t] as usize, keys, values, &shape, spec);
        }
    });
}

multiversion! {
    fn turn(row: &mut [f32], table_row: usize, rope: &RopeTable, spec: &AttentionSpec) = turn_body
}

#[inline(always)]
fn turn_body<const FMA: bool>(row: &mut [f32], table_row: usize, rope: &RopeTable, spec: &AttentionSpec) {
    let (cos, sin) = rope.row(table_row);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::KvDtype;
    use crate::backend::cpu::{Isa, KvLayer};
    use crate::config::LongRope;
    use crate::ops::testing::{assert_close, random};

    fn spec(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> AttentionSpec {
        AttentionSpec { layer: 0, num_heads, num_kv_heads, head_dim, scale: 1.0, softcap: None, window: None }
    }

    #[test]
    fn llama3_keeps_high_and_stretches_low_frequencies() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let plain = RopeConfig { rope_theta: 5e5, rotary_dim: 128, scaling: RopeScaling::Default };
        let (plain, scaled) =
            (inverse_frequencies(&plain, false), inverse_frequencies(&RopeConfig { scaling, ..plain }, false));
        assert_eq!(scaled[..20], plain[..20]);
        assert_close(&scaled[40..], &plain[40..].iter().map(|f| f / 8.0).collect::<Vec<_>>(), 1e-9);
        assert!(scaled.windows(2).all(|w| w[1] < w[0]));
    }

    #[test]
    fn long_sequences_turn_by_rows_of_their_own() {
        let (short_factors, long_factors) = (vec![1.0, 2.0, 3.5], vec![1.5, 4.0, 40.0]);
        let scaling = RopeScaling::Long(LongRope {
            short_factors: short_factors.clone(),
            long_factors: long_factors.clone(),
            original_max_position_embeddings: 5,
            attention_factor: 1.25,
        });
        let config = RopeConfig { rope_theta: 1e4, rotary_dim: 6, scaling };
        let rows = |factors: &[f32], len: usize| {
            let angle =
                |pos: usize, i: usize| pos as f64 / (f64::from(factors[i]) * 1e4_f64.powf(2.0 * i as f64 / 6.0));
            (0..len).flat_map(|pos| (0..3).map(move |i| angle(pos, i))).collect::<Vec<_>>()
        };
        for (max_len, short_rows, long_rows) in [(0, 0, 0), (4, 4, 0), (5, 5, 0), (6, 5, 6), (300, 5, 300)] {
            let (found, half) = (table(&config, max_len), 3);
            let angles = [rows(&short_factors, short_rows), rows(&long_factors, long_rows)].concat();
            let of = |f: fn(f64) -> f64| angles.iter().map(|&angle| (f(angle) * 1.25) as f32).collect::<Vec<_>>();
            assert_close(&found.cos, &of(f64::cos), 3e-5);
            assert_close(&found.sin, &of(f64::sin), 3e-5);
            assert_eq!(config.short_len(max_len), (long_rows > 0).then_some(found.cos.len() / half - long_rows));
        }
    }

    /// Layers that do not turn have them.
    #[test]
    fn infinite_factors_change_no_bit() {
        let scaling = RopeScaling::Factors(vec![f32::INFINITY; 2]);
        let table = table(&RopeConfig { rope_theta: 1e4, rotary_dim: 4, scaling }, 5000);
        let data = random(3 * 8, 1);
        for isa in Isa::available() {
            for position in [0, 1, 4999] {
                let mut row = data.clone();
                turn(isa, &mut row, position, &table, &spec(1, 1, 8));
                assert_eq!(row, data);
            }
        }
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
        let spec = AttentionSpec { layer: 1, ..spec(2, 2, 4) };
        let shape = KvCacheShape {
            dtype: KvDtype::F32,
            num_layers: 2,
            num_blocks: 3,
            block_size: 2,
            num_kv_heads: 2,
            head_dim: 4,
        };
        let mut kv = KvCache::new(shape).unwrap();
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
        batch.shift_rope_rows(tokens / 2, 20);
        let data = random(tokens * spec.qkv_dim(), 5);
        let mut expected = (Buffer::from_vec(data.clone(), spec.qkv_dim()), KvCache::new(shape).unwrap());
        reference(&mut expected.0, &mut expected.1, &rope, &batch, spec);
        let floats = |layer: &KvLayer| (0..layer.len()).map(|i| layer.get(i)).collect::<Vec<f32>>();
        // Turned keys may round to neighbours.
        let tolerance = if E::DTYPE == KvDtype::F32 { 1e-6 } else { 1e-2 };
        for isa in Isa::available() {
            let mut found = (Buffer::from_vec(data.clone(), spec.qkv_dim()), KvCache::new(shape).unwrap());
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
            let spec = spec(num_heads, num_kv_heads, head_dim);
            for tokens in [0, 1, 37] {
                check::<f32>(tokens, &spec, rotary_dim);
                check::<half::f16>(tokens, &spec, rotary_dim);
                check::<half::bf16>(tokens, &spec, rotary_dim);
            }
        }
    }
}
