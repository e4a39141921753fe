//! `attention`: softmax(q . K^T * scale) . V over the paged cache, causal, grouped-query, with an optional sliding
//! window and soft cap.
//!
//! The CPU's kernel reads the cache block by block with an online softmax (Milakov and Gimelshein 2018), all query
//! heads of a key head together. A query's sums run over its blocks in order, so that its result depends neither on
//! how its prompt was cut into chunks nor on the rest of the batch. Bounded by the cache's bytes when decoding, by
//! FLOPs (4 * head_dim a query head and key) in prompts.

use super::simd;
use crate::backend::cpu::{Buffer, Cpu, KvCache, SharedSlice, multiversion};
use crate::backend::{AttentionSpec, Batch};

/// Most query heads a key head.
pub const MAX_GROUP: usize = 64;

/// `qkv`: [num_tokens, qkv_dim], q turned and k, v in the cache already. `out`: [num_tokens, num_heads * head_dim].
/// In f64, with all of a query's scores at once.
pub fn reference(out: &mut Buffer, qkv: &Buffer, kv: &KvCache, batch: &Batch, spec: &AttentionSpec) {
    let (dim, group) = (spec.head_dim, spec.num_heads / spec.num_kv_heads);
    let block_size = kv.shape.block_size;
    out.set_rows(qkv.rows());
    for seq in &batch.sequences {
        for t in seq.query_start..seq.query_start + seq.query_len {
            let pos = batch.positions[t] as usize;
            let first = spec.window.map_or(0, |w| (pos + 1).saturating_sub(w));
            for head in 0..spec.num_heads {
                let tile = |j: usize| {
                    let block = batch.block_tables[seq.table_start + j / block_size];
                    kv.tile_start(block, head / group) + j % block_size * dim
                };
                let q = &qkv.row(t)[head * dim..(head + 1) * dim];
                let score = |j: usize| {
                    let k = &kv.k[spec.layer][tile(j)..tile(j) + dim];
                    let dot: f64 = q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                    let scaled = dot * f64::from(spec.scale);
                    spec.softcap.map_or(scaled, |cap| f64::from(cap) * (scaled / f64::from(cap)).tanh())
                };
                let scores: Vec<f64> = (first..=pos).map(score).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let total: f64 = weights.iter().sum();
                let cols = out.cols();
                for d in 0..dim {
                    let v = |j: usize| f64::from(kv.v[spec.layer][tile(j) + d]);
                    let sum: f64 = (first..=pos).zip(&weights).map(|(j, w)| w * v(j)).sum();
                    out.data_mut()[t * cols + head * dim + d] = (sum / total) as f32;
                }
            }
        }
    }
}

/// The same in f32 over the threads: one task a query and key head.
pub(crate) fn cpu(cpu: &mut Cpu, out: &mut Buffer, qkv: &Buffer, kv: &KvCache, batch: &Batch, spec: &AttentionSpec) {
    let (dim, group, isa) = (spec.head_dim, spec.num_heads / spec.num_kv_heads, cpu.isa);
    assert!(group <= MAX_GROUP, "invariant: checked when the model was loaded");
    assert_eq!(out.cols(), spec.num_heads * dim, "invariant: all heads");
    out.set_rows(qkv.rows());
    let cols = out.cols();
    let shared = SharedSlice::new(out.data_mut());
    for seq in &batch.sequences {
        let table = &batch.block_tables[seq.table_start..];
        // The last queries have the most keys: they go first, so that the threads end together.
        cpu.pool.run(seq.query_len * spec.num_kv_heads, &|task| {
            let t = seq.query_start + seq.query_len - 1 - task / spec.num_kv_heads;
            let kv_head = task % spec.num_kv_heads;
            let start = kv_head * group * dim;
            // SAFETY: this task alone writes these heads of row t.
            let out = unsafe { shared.range(t * cols + start, group * dim) };
            let query = Query {
                q: &qkv.row(t)[start..start + group * dim],
                pos: batch.positions[t] as usize,
                kv_head,
                table,
                kv,
                spec,
            };
            attend(isa, out, &query);
        });
    }
}

/// One token's query heads of one key head.
struct Query<'a> {
    /// [group, head_dim].
    q: &'a [f32],
    pos: usize,
    kv_head: usize,
    table: &'a [u32],
    kv: &'a KvCache,
    spec: &'a AttentionSpec,
}

multiversion! {
    fn attend(out: &mut [f32], query: &Query<'_>) = attend_body
}

#[inline(always)]
fn attend_body<const FMA: bool>(out: &mut [f32], query: &Query<'_>) {
    let Query { spec, kv, pos, .. } = *query;
    let (dim, block_size) = (spec.head_dim, kv.shape.block_size);
    let first = spec.window.map_or(0, |w| (pos + 1).saturating_sub(w));
    let (mut max, mut total) = ([f32::NEG_INFINITY; MAX_GROUP], [0.0f32; MAX_GROUP]);
    let mut scores = [0.0f32; 256];
    out.fill(0.0);
    for block_idx in first / block_size..=pos / block_size {
        let begin = block_idx * block_size;
        let (lo, hi) = (first.max(begin) - begin, (pos + 1).min(begin + block_size) - begin);
        let tile = kv.tile_start(query.table[block_idx], query.kv_head);
        let keys = &kv.k[spec.layer][tile + lo * dim..tile + hi * dim];
        let values = &kv.v[spec.layer][tile + lo * dim..tile + hi * dim];
        let scores = &mut scores[..hi - lo];
        for (g, (q, out)) in query.q.chunks_exact(dim).zip(out.chunks_exact_mut(dim)).enumerate() {
            for (score, k) in scores.iter_mut().zip(keys.chunks_exact(dim)) {
                *score = simd::dot::<FMA>(q, k) * spec.scale;
            }
            if let Some(cap) = spec.softcap {
                for score in scores.iter_mut() {
                    *score = cap * simd::tanh::<FMA>(*score / cap);
                }
            }
            let mut new_max = max[g];
            for &score in scores.iter() {
                new_max = new_max.max(score);
            }
            let shrink = simd::exp::<FMA>(max[g] - new_max);
            for score in scores.iter_mut() {
                *score = simd::exp::<FMA>(*score - new_max);
            }
            total[g] = simd::mul_add::<FMA>(total[g], shrink, simd::sum(scores));
            max[g] = new_max;
            if shrink != 1.0 {
                simd::scale(out, shrink);
            }
            for (&weight, v) in scores.iter().zip(values.chunks_exact(dim)) {
                simd::axpy::<FMA>(out, weight, v);
            }
        }
    }
    for (g, out) in out.chunks_exact_mut(dim).enumerate() {
        simd::scale(out, 1.0 / total[g]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::KvCacheShape;
    use crate::backend::cpu::Isa;
    use crate::ops::testing::{assert_close, random};

    const BLOCK_SIZE: usize = 8;

    /// A cache of random keys and values, and a batch of sequences (context, query tokens) on shuffled blocks.
    fn setup(spec: &AttentionSpec, lens: &[(usize, usize)]) -> (KvCache, Batch, Buffer) {
        let shape = KvCacheShape {
            num_layers: 2,
            num_blocks: 64,
            block_size: BLOCK_SIZE,
            num_kv_heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
        };
        let mut kv = KvCache::new(shape);
        let len = kv.k[0].len();
        kv.k[spec.layer] = random(len, 1);
        kv.v[spec.layer] = random(len, 2);
        let (mut batch, mut next) = (Batch::default(), 0);
        for &(context, query) in lens {
            let blocks: Vec<u32> = (0..context.div_ceil(BLOCK_SIZE)).map(|i| ((next + i) * 37 % 64) as u32).collect();
            next += blocks.len();
            batch.push(&vec![0; query], &blocks, context - query, context, BLOCK_SIZE);
        }
        let qkv = random(batch.num_tokens() * spec.qkv_dim(), 3).iter().map(|x| x * 4.0).collect();
        (kv, batch, Buffer::from_vec(qkv, spec.qkv_dim()))
    }

    fn check(spec: AttentionSpec, lens: &[(usize, usize)]) {
        let (kv, batch, qkv) = setup(&spec, lens);
        let cols = spec.num_heads * spec.head_dim;
        let mut expected = Buffer::new(batch.num_tokens(), cols);
        reference(&mut expected, &qkv, &kv, &batch, &spec);
        for isa in Isa::available() {
            let mut found = Buffer::new(batch.num_tokens(), cols);
            cpu(&mut Cpu::new(2, isa), &mut found, &qkv, &kv, &batch, &spec);
            assert_close(found.data(), expected.data(), 1e-5);
        }
    }

    #[test]
    fn kernel_equals_reference() {
        let lens = [(1, 1), (8, 8), (9, 1), (23, 7), (40, 1), (17, 17)];
        for (num_heads, num_kv_heads) in [(4, 4), (6, 2), (5, 1)] {
            for head_dim in [20, 24, 64, 80, 128, 256] {
                let scale = 1.0 / (head_dim as f32).sqrt();
                let spec =
                    AttentionSpec { layer: 1, num_heads, num_kv_heads, head_dim, scale, softcap: None, window: None };
                check(spec, &lens);
                check(AttentionSpec { window: Some(9), ..spec }, &lens);
                check(AttentionSpec { window: Some(1), softcap: Some(2.0), ..spec }, &lens);
            }
        }
    }

    #[test]
    fn a_query_does_not_depend_on_its_batch_or_chunk() {
        let spec = AttentionSpec {
            layer: 0,
            num_heads: 6,
            num_kv_heads: 2,
            head_dim: 64,
            scale: 0.125,
            softcap: None,
            window: None,
        };
        let (kv, whole, qkv) = setup(&spec, &[(29, 29), (12, 3)]);
        let cols = spec.num_heads * spec.head_dim;
        let mut context = Cpu::new(2, Isa::detect());
        let mut expected = Buffer::new(32, cols);
        cpu(&mut context, &mut expected, &qkv, &kv, &whole, &spec);
        // The first sequence's last token alone.
        let mut alone = Batch::default();
        let blocks = &whole.block_tables[..4];
        alone.push(&[0], blocks, 28, 29, BLOCK_SIZE);
        let row = Buffer::from_vec(qkv.row(28).to_vec(), spec.qkv_dim());
        let mut found = Buffer::new(1, cols);
        cpu(&mut context, &mut found, &row, &kv, &alone, &spec);
        assert_eq!(found.row(0), expected.row(28));
    }
}
