// head_norm: x = x / sqrt(mean(x^2) + eps) * weight for each head of q, with the queries' weight, and of k, with the keys', in place
// (Qwen3's and Gemma 3's `q_norm` and `k_norm`; in f32, rounded once).
//
// qkv [num_tokens, q of num_heads, k of num_kv_heads, v of num_kv_heads] of head_dim, in 16 bits; v is left as it is. q_weight,
// k_weight [head_dim] f32.
// A warp has a head: a lane WIDTH neighbours of each 32 * WIDTH dimensions, kept in registers, up to heads of 256. Grid (num_tokens,
// heads of q and k / 4), 128 threads; no shared memory.
//
// Bounded by memory: 4 bytes an element of q and k.
#include "lib/platform.h"
#include "lib/vector.h"

static constexpr int WIDTH = 4, NUM_KEPT = 2, WARPS = 4;

template <typename T>
DEVICE void norm_head(T* qkv, const float* q_weight, const float* k_weight, u32 num_heads, u32 num_kv_heads, u32 head_dim,
                      float eps) {
    const u32 head = blockIdx.y * WARPS + threadIdx.x / 32, first = threadIdx.x % 32 * WIDTH;
    const bool is_aligned = head_dim % WIDTH == 0, is_there = head < num_heads + num_kv_heads;
    const float* weight = head < num_heads ? q_weight : k_weight;
    float x[NUM_KEPT][WIDTH], w[NUM_KEPT][WIDTH];
#pragma unroll
    for (int i = 0; i < NUM_KEPT; i++) load_part<float, WIDTH>(w[i], weight, first + i * 32 * WIDTH, head_dim, is_aligned);
    wait_for_kernel_before();
    if (!is_there) return;
    T* at = qkv + ((u64)blockIdx.x * (num_heads + 2 * num_kv_heads) + head) * head_dim;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < NUM_KEPT; i++) {
        load_part<T, WIDTH>(x[i], at, first + i * 32 * WIDTH, head_dim, is_aligned);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) sum += x[i][j] * x[i][j];
    }
    const float scale = rsqrtf(warp_sum(sum) / head_dim + eps);
#pragma unroll
    for (int i = 0; i < NUM_KEPT; i++) {
#pragma unroll
        for (int j = 0; j < WIDTH; j++) x[i][j] = x[i][j] * scale * w[i][j];
        store_part<T, WIDTH>(at, x[i], first + i * 32 * WIDTH, head_dim, is_aligned);
    }
}

#define KERNELS(T)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                           \
        head_norm_##T(T* qkv, const float* q_weight, const float* k_weight, u32 num_heads, u32 num_kv_heads,           \
                      u32 head_dim, float eps) {                                                                       \
        norm_head<T>(qkv, q_weight, k_weight, num_heads, num_kv_heads, head_dim, eps);                                 \
    }                                                                                                                  \
    EXPORT_KERNEL(head_norm_##T)
KERNELS(bf16)
KERNELS(f16)
