//! `head_norm`: RMSNorm of each head of q and of k by itself, before they turn (`q_norm` and `k_norm` of Qwen3 and Gemma 3), or of all heads
//! of q as one, and of k (OLMo 2).
//!
//! Bounded by memory: q and k are read and written once.

use super::simd;
use crate::backend::AttentionSpec;
use crate::backend::cpu::{Buffer, Cpu, SharedSlice, multiversion};
use crate::backend::cuda::device::{Args, Device, Dims};
use crate::backend::cuda::storage::{Buffer as CudaBuffer, Vector};
use crate::error::Result;

/// `qkv`: [num_tokens, q of all heads, k of all heads, v of all heads]; heads of q and k become x / sqrt(mean(x^2) + eps) * weight, in
/// place. `q`, `k`: [head_dim], the weights of all heads of either, each normalised by itself; or [num_heads * head_dim] and
/// [num_kv_heads * head_dim], where all are normalised as one. The sum is taken in f64.
pub fn reference(qkv: &mut Buffer, (q, k): (&[f32], &[f32]), spec: &AttentionSpec, eps: f32) {
    check(qkv.cols(), [q.len(), k.len()], spec);
    for row in qkv.data_mut().chunks_exact_mut(spec.qkv_dim()) {
        for (part, weight) in parts(row, (q, k), spec) {
            let sum = part.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
            let scale = 1.0 / (sum / part.len() as f64 + f64::from(eps)).sqrt();
            part.iter_mut().zip(weight).for_each(|(x, &w)| *x = (f64::from(*x) * scale) as f32 * w);
        }
    }
}

/// What of a token's q and k is normalised by itself, with its weight: as long as that.
#[inline(always)]
fn parts<'a>(
    row: &'a mut [f32],
    (q, k): (&'a [f32], &'a [f32]),
    spec: &AttentionSpec,
) -> impl Iterator<Item = (&'a mut [f32], &'a [f32])> {
    let (queries, rest) = row.split_at_mut(spec.num_heads * spec.head_dim);
    let keys = &mut rest[..spec.num_kv_heads * spec.head_dim];
    let of_queries = queries.chunks_exact_mut(q.len()).map(move |part| (part, q));
    of_queries.chain(keys.chunks_exact_mut(k.len()).map(move |part| (part, k)))
}

/// Whether all heads are normalised as one.
fn check(qkv_dim: usize, weights: [usize; 2], spec: &AttentionSpec) -> bool {
    assert_eq!(qkv_dim, spec.qkv_dim(), "invariant: all heads");
    let is_of_one = weights == [spec.head_dim; 2];
    let of_all = [spec.num_heads, spec.num_kv_heads].map(|heads| heads * spec.head_dim);
    assert!(is_of_one || weights == of_all, "invariant: weights of a head, or of all");
    !is_of_one
}

/// Tokens that one task takes: a decode step of a few sequences wakes nobody.
const TASK_TOKENS: usize = 4;

/// The same with f32 sums in 16 lanes, tokens over the threads.
pub(crate) fn cpu(cpu: &mut Cpu, qkv: &mut Buffer, weights: (&[f32], &[f32]), spec: &AttentionSpec, eps: f32) {
    check(qkv.cols(), [weights.0.len(), weights.1.len()], spec);
    let (num_tokens, qkv_dim, isa) = (qkv.rows(), spec.qkv_dim(), cpu.isa);
    let rows = SharedSlice::new(qkv.data_mut());
    cpu.pool.run(num_tokens.div_ceil(TASK_TOKENS), &|task| {
        for t in task * TASK_TOKENS..num_tokens.min((task + 1) * TASK_TOKENS) {
            // SAFETY: this task alone has row t.
            norm_token(isa, unsafe { rows.range(t * qkv_dim, qkv_dim) }, weights, spec, eps);
        }
    });
}

multiversion! {
    fn norm_token(row: &mut [f32], weights: (&[f32], &[f32]), spec: &AttentionSpec, eps: f32) = norm_token_body
}

#[inline(always)]
fn norm_token_body<const FMA: bool>(row: &mut [f32], weights: (&[f32], &[f32]), spec: &AttentionSpec, eps: f32) {
    for (part, weight) in parts(row, weights, spec) {
        let scale = 1.0 / (simd::dot::<FMA>(part, part) / part.len() as f32 + eps).sqrt();
        for (x, weight) in part.iter_mut().zip(weight) {
            *x = *x * scale * weight;
        }
    }
}

/// Heads of a block, a warp each, as the kernel has them.
const BLOCK_HEADS: usize = 4;
/// Threads of a block that normalises all heads as one, at most.
const MAX_THREADS: usize = 512;

/// `kernels/head_norm.cu`: the same in 16 bits.
pub(crate) fn cuda(
    device: &dyn Device,
    qkv: &mut CudaBuffer,
    (q, k): (&Vector, &Vector),
    spec: &AttentionSpec,
    eps: f32,
) -> Result<()> {
    if check(qkv.cols(), [q.len, k.len], spec) {
        let args = Args::new().with(qkv.ptr()).with(q.memory.ptr()).with(k.memory.ptr());
        let args = args.with(q.len).with(k.len).with(eps);
        let threads = q.len.div_ceil(8).next_multiple_of(32).min(MAX_THREADS);
        let dims = Dims { grid: [qkv.rows() as u32, 2, 1], ..Dims::linear(0, threads) };
        // SAFETY: the shapes were compared; a block has q of a token, or k.
        return unsafe { device.launch(qkv.elem().kernel("all_heads_norm_bf16", "all_heads_norm_f16"), &dims, &args) };
    }
    assert!(spec.head_dim <= 256, "invariant: checked when the model was loaded");
    let args = Args::new().with(qkv.ptr()).with(q.memory.ptr()).with(k.memory.ptr());
    let args = args.with(spec.num_heads).with(spec.num_kv_heads).with(spec.head_dim).with(eps);
    let num_heads = spec.num_heads + spec.num_kv_heads;
    let grid = [qkv.rows() as u32, num_heads.div_ceil(BLOCK_HEADS) as u32, 1];
    let dims = Dims { grid, ..Dims::linear(0, 32 * BLOCK_HEADS) };
    // SAFETY: the shapes were compared, and each head has a warp.
    unsafe { device.launch(qkv.elem().kernel("head_norm_bf16", "head_norm_f16"), &dims, &args) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Isa;
    use crate::backend::cuda::device::ElemType;
    use crate::ops::testing::{assert_close, assert_device_close, devices, on_device, random, round};

    fn spec(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> AttentionSpec {
        AttentionSpec { layer: 0, num_heads, num_kv_heads, head_dim, scale: 1.0, softcap: None, window: None }
    }

    /// Heads of q, of k, and their width; not all are whole vectors, and all of the last are more than a block takes at a time.
    const SHAPES: [(usize, usize, usize); 6] =
        [(1, 1, 2), (3, 1, 6), (4, 2, 12), (7, 1, 128), (4, 2, 256), (40, 8, 128)];

    /// Each shape, with the lengths of weights of a head, and of all heads.
    fn cases() -> impl Iterator<Item = (AttentionSpec, [usize; 2])> {
        SHAPES.into_iter().flat_map(|(heads, kv_heads, dim)| {
            [[dim, dim], [heads * dim, kv_heads * dim]].map(|lens| (spec(heads, kv_heads, dim), lens))
        })
    }

    #[test]
    fn kernel_equals_reference() {
        for (spec, [q_len, k_len]) in cases() {
            let (q, k) = (random(q_len, 2), random(k_len, 3));
            for (rows, isa) in
                [0, 1, 19].into_iter().flat_map(|rows| Isa::available().into_iter().map(move |i| (rows, i)))
            {
                let data = random(rows * spec.qkv_dim(), 1);
                let mut expected = Buffer::from_vec(data.clone(), spec.qkv_dim());
                reference(&mut expected, (&q, &k), &spec, 1e-6);
                let [one, three] = [1, 3].map(|num_threads| {
                    let mut found = Buffer::from_vec(data.clone(), spec.qkv_dim());
                    cpu(&mut Cpu::new(num_threads, isa), &mut found, (&q, &k), &spec, 1e-6);
                    found
                });
                assert_close(one.data(), expected.data(), 1e-5);
                assert_eq!(three.data(), one.data(), "threads change no bit");
                let values = (spec.num_heads + spec.num_kv_heads) * spec.head_dim;
                for (found, data) in one.data().chunks(spec.qkv_dim()).zip(data.chunks(spec.qkv_dim())) {
                    assert_eq!(found[values..], data[values..], "values are left as they are");
                }
            }
        }
    }

    #[test]
    fn device_equals_reference() {
        for device in devices() {
            for (elem, tolerance) in [(ElemType::Bf16, 4e-3), (ElemType::F16, 5e-4)] {
                for ((spec, [q_len, k_len]), rows) in cases().flat_map(|case| [0, 1, 5].map(|rows| (case, rows))) {
                    let data = round(&random(rows * spec.qkv_dim(), 1), elem);
                    let (q, k) = (random(q_len, 2), random(k_len, 3));
                    let mut expected = Buffer::from_vec(data.clone(), spec.qkv_dim());
                    reference(&mut expected, (&q, &k), &spec, 1e-6);
                    let [q, k] = [q, k].map(|weight| on_device::vector(&device, &weight));
                    let mut found = on_device::buffer(&device, &data, spec.qkv_dim(), elem);
                    cuda(&*device, &mut found, (&q, &k), &spec, 1e-6).unwrap();
                    assert_device_close(&found.to_f32().unwrap(), expected.data(), tolerance);
                }
            }
        }
    }
}
