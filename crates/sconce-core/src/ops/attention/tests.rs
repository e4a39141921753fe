//! The kernel against the reference, and against itself in other batches.

use super::*;
use crate::backend::cpu::Isa;
use crate::backend::{KvCacheShape, KvDtype};
use crate::config::MatmulPrecision;
use crate::ops::testing::{assert_close, random};

/// A batch of sequences (context, query tokens); `tables` are their blocks.
fn batch_of(lens: &[(usize, usize)], tables: &[Vec<u32>], block_size: usize) -> Batch {
    let mut batch = Batch::default();
    for (&(context, query), table) in lens.iter().zip(tables) {
        batch.push(&vec![0; query], &table[..context.div_ceil(block_size)], context - query, context, block_size);
    }
    batch.find_shared_prefixes();
    batch
}

/// Blocks in no order, none of them of two sequences but for the first `shared`, which are of all.
fn tables_of(lens: &[(usize, usize)], block_size: usize, shared: usize) -> Vec<Vec<u32>> {
    let mut next = 0;
    let mut table = |context: usize, first: &[u32]| {
        let own = (first.len()..context.div_ceil(block_size)).map(|_| {
            next += 1;
            next * 37 % 1021
        });
        first.iter().copied().chain(own).collect::<Vec<u32>>()
    };
    let first = table(shared * block_size, &[]);
    lens.iter().map(|&(context, _)| table(context, &first[..shared.min((context - 1) / block_size)])).collect()
}

fn cache(dtype: KvDtype, spec: &AttentionSpec, block_size: usize) -> KvCache {
    let (num_kv_heads, head_dim) = (spec.num_kv_heads, spec.head_dim);
    let shape = KvCacheShape { dtype, num_layers: 2, num_blocks: 1021, block_size, num_kv_heads, head_dim };
    let mut kv = KvCache::new(shape).unwrap();
    let len = kv.k[0].len();
    kv.k[spec.layer].set(0, &random(len, 1));
    kv.v[spec.layer].set(0, &random(len, 2));
    kv
}

fn queries(spec: &AttentionSpec, batch: &Batch) -> Buffer {
    let data = random(batch.num_tokens() * spec.qkv_dim(), 3).iter().map(|x| x * 4.0).collect();
    Buffer::from_vec(data, spec.qkv_dim())
}

fn run(context: &mut Cpu, qkv: &Buffer, kv: &KvCache, batch: &Batch, spec: &AttentionSpec) -> Buffer {
    let mut out = Buffer::new(batch.num_tokens(), spec.num_heads * spec.head_dim);
    let sinks = sinks_of(spec);
    cpu(context, &mut out, qkv, kv, batch, LayerAttention { spec, sinks: sinks.as_ref() });
    out
}

/// Layers with a window, or of wide heads, have sinks here, some of which outweigh all keys.
pub(super) fn sinks_of(spec: &AttentionSpec) -> Option<Vec<f32>> {
    let has_sinks = spec.window.is_some() || spec.head_dim >= 64;
    has_sinks.then(|| random(spec.num_heads, 4).into_iter().map(|x| 8.0 * x).collect())
}

fn spec(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> AttentionSpec {
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionSpec { layer: 1, num_heads, num_kv_heads, head_dim, scale, softcap: None, window: None }
}

fn check(spec: AttentionSpec, lens: &[(usize, usize)], block_size: usize, shared: usize) {
    for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Bf16] {
        check_dtype(dtype, spec, lens, block_size, shared);
    }
}

fn check_dtype(dtype: KvDtype, spec: AttentionSpec, lens: &[(usize, usize)], block_size: usize, shared: usize) {
    let kv = cache(dtype, &spec, block_size);
    let tables = tables_of(lens, block_size, shared);
    let mut batch = batch_of(lens, &tables, block_size);
    let qkv = queries(&spec, &batch);
    let mut expected = Buffer::new(batch.num_tokens(), spec.num_heads * spec.head_dim);
    let sinks = sinks_of(&spec);
    reference(&mut expected, &qkv, &kv, &batch, LayerAttention { spec: &spec, sinks: sinks.as_ref() });
    let precisions = [MatmulPrecision::Exact, MatmulPrecision::Fast];
    for (isa, precision) in Isa::available().into_iter().flat_map(|isa| precisions.map(|precision| (isa, precision))) {
        let mut context = Cpu::new(2, isa);
        context.precision = precision;
        let found = run(&mut context, &qkv, &kv, &batch, &spec);
        // Queries are up to 4, so that in bf16 scores are off by some hundredths.
        let is_rounded = isa == Isa::Avx512Bf16 && precision == MatmulPrecision::Fast;
        assert_close(found.data(), expected.data(), if is_rounded { 3e-2 } else { 1e-5 });
        // Each sequence alone, and without the knowledge of what is shared: the same bits.
        for (seq, (&lens, table)) in batch.sequences.iter().zip(lens.iter().zip(&tables)) {
            let alone = batch_of(&[lens], std::slice::from_ref(table), block_size);
            let rows = seq.query_start * spec.qkv_dim()..(seq.query_start + seq.query_len) * spec.qkv_dim();
            let qkv = Buffer::from_vec(qkv.data()[rows].to_vec(), spec.qkv_dim());
            let alone = run(&mut context, &qkv, &kv, &alone, &spec);
            let start = seq.query_start * alone.cols();
            assert_eq!(alone.data(), &found.data()[start..start + alone.data().len()], "{isa:?} {seq:?}");
        }
        let runs = std::mem::take(&mut batch.shared_prefixes);
        assert_eq!(run(&mut context, &qkv, &kv, &batch, &spec).data(), found.data(), "{isa:?}");
        batch.shared_prefixes = runs;
    }
}

#[test]
fn kernel_equals_reference() {
    let lens = [(1, 1), (8, 8), (9, 1), (23, 7), (90, 1), (77, 77), (130, 2)];
    for (num_heads, num_kv_heads) in [(4, 4), (6, 2), (5, 1), (20, 1)] {
        for head_dim in [20, 24, 64, 80, 128, 256] {
            let spec = spec(num_heads, num_kv_heads, head_dim);
            check(spec, &lens, 16, 0);
            check(AttentionSpec { window: Some(9), ..spec }, &lens, 16, 0);
            check(AttentionSpec { window: Some(1), softcap: Some(2.0), ..spec }, &lens, 16, 0);
        }
    }
}

#[test]
fn blocks_of_every_size() {
    let lens = [(1, 1), (9, 1), (23, 7), (77, 77), (300, 1)];
    for block_size in [1, 2, 4, 8, 16, 32, 64, 128, 256] {
        check(spec(6, 2, 20), &lens, block_size, 0);
        check(AttentionSpec { window: Some(70), ..spec(6, 2, 20) }, &lens, block_size, 0);
    }
}

#[test]
fn sequences_that_share_blocks_read_them_together() {
    let lens = [(200, 1), (203, 1), (161, 1), (300, 1), (170, 1), (163, 1), (165, 1)];
    for (num_heads, num_kv_heads) in [(3, 3), (6, 2), (5, 1), (32, 4)] {
        let spec = spec(num_heads, num_kv_heads, 32);
        for shared in [1, 4, 7, 10] {
            check(spec, &lens, 16, shared);
            check(AttentionSpec { window: Some(100), softcap: Some(3.0), ..spec }, &lens, 16, shared);
        }
        check(spec, &lens, 4, 39);
    }
    // Beside a prompt, and another group.
    let lens = [(40, 40), (90, 1), (91, 1), (92, 1), (64, 5), (90, 1), (90, 1)];
    check(spec(6, 2, 24), &lens, 16, 5);
}

/// Blocks wholly before the window may be another sequence's by now, which may have come to no numbers.
#[test]
fn what_lies_before_the_window_does_not_show() {
    let lens = [(300, 1), (150, 3), (400, 90), (70, 1)];
    for (dtype, block_size) in [KvDtype::F32, KvDtype::F16, KvDtype::Bf16].into_iter().zip([16, 8, 32]).chain([
        (KvDtype::Bf16, 16),
        (KvDtype::F16, 64),
        (KvDtype::F32, 1),
    ]) {
        let spec = AttentionSpec { window: Some(41), ..spec(6, 2, 64) };
        let mut kv = cache(dtype, &spec, block_size);
        let tables = tables_of(&lens, block_size, 0);
        let batch = batch_of(&lens, &tables, block_size);
        let qkv = queries(&spec, &batch);
        let precisions = [MatmulPrecision::Exact, MatmulPrecision::Fast];
        let mut contexts = Vec::new();
        for (isa, precision) in
            Isa::available().into_iter().flat_map(|isa| precisions.map(|precision| (isa, precision)))
        {
            let mut context = Cpu::new(2, isa);
            context.precision = precision;
            contexts.push(context);
        }
        let expected: Vec<_> = contexts.iter_mut().map(|context| run(context, &qkv, &kv, &batch, &spec)).collect();
        let block_len = kv.k[spec.layer].len() / kv.shape.num_blocks;
        for (&(context, query), table) in lens.iter().zip(&tables) {
            let first_seen = (context - query + 1).saturating_sub(41);
            for &block in &table[..first_seen / block_size] {
                for side in [&mut kv.k, &mut kv.v] {
                    side[spec.layer].set(block as usize * block_len, &vec![f32::NAN; block_len]);
                }
            }
        }
        for (context, expected) in contexts.iter_mut().zip(expected) {
            let found = run(context, &qkv, &kv, &batch, &spec);
            assert_eq!(found.data(), expected.data(), "{dtype:?}, blocks of {block_size}");
        }
    }
}

/// One long sequence is shared among the threads; beside others it is not.
#[test]
fn parts_of_a_long_context_come_to_the_same() {
    let lens = [(2 * PART_LEN + 77, 1)];
    check(spec(3, 1, 32), &lens, 16, 0);
    check(AttentionSpec { window: Some(PART_LEN + 5), ..spec(3, 1, 32) }, &lens, 16, 0);
    let lens = [(3 * PART_LEN, 2), (3 * PART_LEN + 1, 1), (5, 1), (PART_LEN, 1), (PART_LEN + 1, 1)];
    check(spec(3, 1, 32), &lens, 16, 0);
    check(spec(8, 4, 16), &lens, 16, 0);
    check(spec(8, 4, 16), &[(1500, 1), (1400, 1), (1300, 1)], 16, 70);
}

#[test]
fn chunks_of_a_prompt_come_to_the_same() {
    let spec = spec(6, 2, 64);
    for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Bf16] {
        check_chunks(&spec, &cache(dtype, &spec, 16));
    }
}

fn check_chunks(spec: &AttentionSpec, kv: &KvCache) {
    let tables = tables_of(&[(600, 600)], 16, 0);
    let whole = batch_of(&[(600, 600)], &tables, 16);
    let qkv = queries(spec, &whole);
    for isa in Isa::available() {
        let mut context = Cpu::new(2, isa);
        let expected = run(&mut context, &qkv, kv, &whole, spec);
        let mut start = 0;
        for len in [1, 2, 97, 300, 200] {
            let chunk = batch_of(&[(start + len, len)], &tables, 16);
            let rows = qkv.data()[start * spec.qkv_dim()..(start + len) * spec.qkv_dim()].to_vec();
            let found = run(&mut context, &Buffer::from_vec(rows, spec.qkv_dim()), kv, &chunk, spec);
            let cols = found.cols();
            assert_eq!(found.data(), &expected.data()[start * cols..(start + len) * cols], "{isa:?} from {start}");
            start += len;
        }
    }
}

#[test]
fn an_empty_step_has_nothing_to_attend() {
    check(spec(2, 1, 16), &[], 16, 0);
}

#[test]
fn in_bf16_the_cache_may_round_as_well() {
    let spec = AttentionSpec { window: Some(150), ..spec(6, 2, 80) };
    let lens = [(1, 1), (23, 7), (200, 130), (601, 1)];
    let tables = tables_of(&lens, 16, 0);
    let batch = batch_of(&lens, &tables, 16);
    let qkv = queries(&spec, &batch);
    let mut context = Cpu::new(2, Isa::detect());
    context.precision = MatmulPrecision::Fast;
    if is_in_bf16(&context) {
        let [f32, bf16] = [KvDtype::F32, KvDtype::Bf16].map(|dtype| cache(dtype, &spec, 16));
        let found = run(&mut context, &qkv, &f32, &batch, &spec);
        assert_eq!(run(&mut context, &qkv, &bf16, &batch, &spec).data(), found.data());
    }
}
