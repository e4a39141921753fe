//! Operations of the CPU backend at the starter model's shapes: `cargo bench -p sconce-benches`.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sconce_core::backend::cpu::{Buffer, CpuBackend};
use sconce_core::backend::{AttentionSpec, Backend, Batch, BufferRole, ExpertsSpec, KvCacheShape, KvDtype};
use sconce_core::config::{Activation, SamplingParams, WeightDtype};
use sconce_core::kv::LayerGroups;
use sconce_core::sample::{SampleInput, SampleKind, SampleResults, SampleRow, TokenCounts};
use sconce_core::weights::{Dtype, WeightStore};

const HIDDEN: usize = 576;
const INTERMEDIATE: usize = 1536;
const BLOCK_SIZE: usize = 16;

fn input(rows: usize, cols: usize) -> Buffer {
    Buffer::from_vec((0..rows * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.02).collect(), cols)
}

/// Bytes of weights a second for few rows; FLOPs a second for many.
fn linear(c: &mut Criterion) {
    let backend = CpuBackend::new(None);
    let mut group = c.benchmark_group(format!("linear, {}", backend.description()));
    for dtype in [Dtype::Q4_0, Dtype::Q4_1, Dtype::Q8_0, Dtype::BF16, Dtype::F32] {
        let store = WeightStore::dummy(1, dtype);
        let tensor = store
            .get("model.layers.0.mlp.up_proj.weight", &[2 * INTERMEDIATE, HIDDEN])
            .expect("invariant: dummy weights have every tensor");
        let bytes = tensor.data.len() as u64;
        let weight = backend.matrix(vec![tensor], None, WeightDtype::Auto).expect("invariant: the CPU has the memory");
        for rows in [1, 8, 128] {
            let x = input(rows, HIDDEN);
            let mut out = backend
                .buffer(rows, 2 * INTERMEDIATE, BufferRole::Activation)
                .expect("invariant: the CPU has the memory");
            let flops = (2 * rows * HIDDEN * 2 * INTERMEDIATE) as u64;
            group.throughput(if rows == 1 { Throughput::Bytes(bytes) } else { Throughput::Elements(flops) });
            group.bench_function(BenchmarkId::new(dtype.name(), rows), |b| {
                b.iter(|| backend.linear(&mut out, black_box(&x), &weight));
            });
        }
    }
    group.finish();
}

/// Bytes of keys and values a second for one query, FLOPs a second for a chunk of a prompt.
fn attention(c: &mut Criterion) {
    let backend = CpuBackend::new(None);
    let mut group = c.benchmark_group("attention, 9 heads of 64 on 3 key heads");
    let spec = AttentionSpec {
        layer: 0,
        num_heads: 9,
        num_kv_heads: 3,
        head_dim: 64,
        scale: 0.125,
        softcap: None,
        window: None,
    };
    for (context, queries) in [(512, 1), (8192, 1), (512, 512), (8192, 512)] {
        for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Bf16] {
            let num_blocks = context / BLOCK_SIZE;
            let shape = KvCacheShape {
                dtype,
                num_layers: 1,
                num_blocks,
                block_size: BLOCK_SIZE,
                num_kv_heads: 3,
                head_dim: 64,
            };
            let layers = LayerGroups::one(&[None], BLOCK_SIZE);
            let kv = backend.kv_cache(shape, layers.places()).expect("invariant: the CPU has the memory");
            let mut batch = Batch::default();
            let blocks: Vec<u32> = (0..num_blocks as u32).collect();
            batch.push(&vec![0; queries], &blocks, context - queries, context, BLOCK_SIZE);
            let qkv = input(queries, spec.qkv_dim());
            let mut out =
                backend.buffer(queries, 9 * 64, BufferRole::Activation).expect("invariant: the CPU has the memory");
            // Keys that the queries see; two products of each with each dimension, and two FLOPs a product.
            let num_seen = queries * (context - queries) + queries * (queries + 1) / 2;
            group.throughput(match queries {
                1 => Throughput::Bytes(shape.num_bytes() as u64),
                _ => Throughput::Elements((num_seen * 9 * 64 * 4) as u64),
            });
            group.bench_function(BenchmarkId::new(format!("context {context} in {dtype}"), queries), |b| {
                b.iter(|| backend.attention(&mut out, black_box(&qkv), &kv, &batch, (&spec).into()));
            });
        }
    }
    group.finish();
}

/// Sequences with a prompt of 1024 tokens in common and 64 of their own: read together, and each for itself.
fn shared_prefix(c: &mut Criterion) {
    const PREFIX: usize = 1024;
    const OWN: usize = 64;
    let backend = CpuBackend::new(None);
    let mut group = c.benchmark_group("attention, a prefix of 1024 tokens in common");
    for (name, num_heads, num_kv_heads, head_dim) in
        [("9 heads of 64 on 3", 9, 3, 64), ("32 heads of 128 on 8", 32, 8, 128)]
    {
        let spec =
            AttentionSpec { layer: 0, num_heads, num_kv_heads, head_dim, scale: 0.1, softcap: None, window: None };
        for num_seqs in [4, 16] {
            let num_blocks = (PREFIX + num_seqs * OWN) / BLOCK_SIZE;
            let dtype = KvDtype::F16;
            let shape =
                KvCacheShape { dtype, num_layers: 1, num_blocks, block_size: BLOCK_SIZE, num_kv_heads, head_dim };
            let layers = LayerGroups::one(&[None], BLOCK_SIZE);
            let kv = backend.kv_cache(shape, layers.places()).expect("invariant: the CPU has the memory");
            let mut batch = Batch::default();
            for seq in 0..num_seqs {
                let own = (PREFIX + seq * OWN) / BLOCK_SIZE;
                let blocks: Vec<u32> =
                    (0..PREFIX / BLOCK_SIZE).chain(own..own + OWN / BLOCK_SIZE).map(|b| b as u32).collect();
                batch.push(&[0], &blocks, PREFIX + OWN - 1, PREFIX + OWN, BLOCK_SIZE);
            }
            let qkv = input(num_seqs, spec.qkv_dim());
            let mut out = backend
                .buffer(num_seqs, num_heads * head_dim, BufferRole::Activation)
                .expect("invariant: the CPU has the memory");
            for way in ["apart", "together"] {
                if way == "together" {
                    batch.find_shared_prefixes();
                }
                group.bench_function(BenchmarkId::new(format!("{name}, {num_seqs} sequences"), way), |b| {
                    b.iter(|| backend.attention(&mut out, black_box(&qkv), &kv, &batch, (&spec).into()));
                });
            }
        }
    }
    group.finish();
}

/// A mixture of experts, and a dense MLP with as many parameters as a token meets there.
fn experts(c: &mut Criterion) {
    const MEMORY: &str = "invariant: the CPU has the memory";
    const NUM_EXPERTS: usize = 16;
    let backend = CpuBackend::new(None);
    let mut group = c.benchmark_group("experts, 2 of 16 a token, and a dense MLP");
    let (store, spec) =
        (WeightStore::dummy(1, Dtype::Q4_0), ExpertsSpec { per_token: 2, normalizes: true, act: Activation::Silu });
    let tensor = |rows: usize, cols: usize| {
        let name = "model.layers.0.mlp.up_proj.weight";
        store.get(name, &[rows, cols]).expect("invariant: dummy weights have every tensor")
    };
    let of_experts = |num_parts: usize, rows, cols| {
        let parts = (0..num_parts).map(|_| tensor(rows, cols)).collect();
        backend.expert_matrices(parts, NUM_EXPERTS, None, WeightDtype::Auto).expect(MEMORY)
    };
    let inter = INTERMEDIATE / spec.per_token;
    let (gate_up, down) = (of_experts(2 * NUM_EXPERTS, inter, HIDDEN), of_experts(NUM_EXPERTS, HIDDEN, inter));
    let dense = |parts| backend.matrix(parts, None, WeightDtype::Auto).expect(MEMORY);
    let dense_gate_up = dense(vec![tensor(INTERMEDIATE, HIDDEN), tensor(INTERMEDIATE, HIDDEN)]);
    let dense_down = dense(vec![tensor(HIDDEN, INTERMEDIATE)]);
    for rows in [1, 16, 128] {
        let (x, logits) = (input(rows, HIDDEN), input(rows, NUM_EXPERTS));
        let buffer = |cols| backend.buffer(rows, cols, BufferRole::Activation).expect(MEMORY);
        let (mut out, mut act, mut room) = (buffer(HIDDEN), buffer(INTERMEDIATE), buffer(2 * INTERMEDIATE));
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(BenchmarkId::new("experts", rows), |b| {
            b.iter(|| backend.experts(&mut out, black_box(&x), &logits, [&gate_up, &down], &spec));
        });
        group.bench_function(BenchmarkId::new("dense", rows), |b| {
            b.iter(|| {
                backend.gated_linear(&mut act, &mut room, black_box(&x), &dense_gate_up, spec.act)?;
                backend.linear(&mut out, &act, &dense_down)
            });
        });
    }
    group.finish();
}

fn elementwise(c: &mut Criterion) {
    let backend = CpuBackend::new(None);
    let mut group = c.benchmark_group("rows of the starter model");
    let (x, gate_up) = (input(128, HIDDEN), input(128, 2 * INTERMEDIATE));
    let weight = vec![1.0; HIDDEN];
    let mut out = backend.buffer(128, HIDDEN, BufferRole::Activation).expect("invariant: the CPU has the memory");
    let mut mlp = backend.buffer(128, INTERMEDIATE, BufferRole::Activation).expect("invariant: the CPU has the memory");
    group.throughput(Throughput::Elements(128));
    group.bench_function("rms_norm", |b| b.iter(|| backend.rms_norm(&mut out, black_box(&x), &weight, 1e-5)));
    let bias = vec![0.5; HIDDEN];
    group
        .bench_function("layer_norm", |b| b.iter(|| backend.layer_norm(&mut out, black_box(&x), &weight, &bias, 1e-5)));
    let spec = AttentionSpec {
        layer: 0,
        num_heads: 9,
        num_kv_heads: 3,
        head_dim: 64,
        scale: 0.125,
        softcap: None,
        window: None,
    };
    let (mut qkv, head) = (input(128, spec.qkv_dim()), vec![1.0; spec.head_dim]);
    group.bench_function("head_norm", |b| b.iter(|| backend.head_norm(&mut qkv, (&head, &head), &spec, 1e-6)));
    group.bench_function("add", |b| b.iter(|| backend.add(&mut out, black_box(&x))));
    group.bench_function("gate_act_mul", |b| {
        b.iter(|| backend.gate_act_mul(&mut mlp, black_box(&gate_up), Activation::Silu));
    });
    group.finish();
}

/// Rows of the logits of the starter model, by one thread and by all.
fn sample(c: &mut Criterion) {
    let mut group = c.benchmark_group("sample, rows of 49152");
    let settings = [
        ("greedy", SamplingParams { temperature: 0.0, ..Default::default() }),
        ("top-p 0.9", SamplingParams { top_p: 0.9, ..Default::default() }),
        ("5 logprobs", SamplingParams { logprobs: Some(5), ..Default::default() }),
    ];
    let counts = TokenCounts::new(&[]);
    for num_rows in [1, 16] {
        let logits = input(num_rows, 49152);
        for (name, params) in &settings {
            let row = |row| {
                let input = SampleInput {
                    params,
                    counts: &counts,
                    seed: 1,
                    sequence_index: 0,
                    position: 0,
                    end_token_ids: &[],
                    allowed: None,
                };
                SampleRow { row, kind: SampleKind::Token(input) }
            };
            let rows: Vec<_> = (0..num_rows).map(row).collect();
            let mut out = SampleResults::default();
            group.throughput(Throughput::Elements(num_rows as u64));
            for backend in [CpuBackend::new(Some(1)), CpuBackend::new(None)] {
                let id = BenchmarkId::new(format!("{name}, {num_rows} rows"), backend.description());
                group.bench_function(id, |b| b.iter(|| backend.sample(&mut out, black_box(&logits), &rows)));
            }
        }
    }
    group.finish();
}

criterion_group!(benches, linear, attention, shared_prefix, experts, elementwise, sample);
criterion_main!(benches);
