// head_norm: x = x / sqrt(mean(x^2) + eps) * weight for each head of q, with the queries' weight, and of k, with the keys', in place
// (Qwen3's and Gemma 3's `q_norm` and `k_norm`; in f32, rounded once). all_heads_norm: the same for all heads of q as one, and of k (OLMo 2).
//
// qkv [num_tokens, q of num_heads, k of num_kv_heads, v of num_kv_heads] of head_dim, in 16 bits; v is left as it is. q_weight,
// k_weight [head_dim] f32, or [q_len] and [k_len], the widths of all heads.
// A warp has a head: a lane WIDTH neighbours of each 32 * WIDTH dimensions, kept in registers, up to heads of 256. Grid (num_tokens,
// heads of q and k / 4), 128 threads; no shared memory.
//
// all_heads_norm: a block has a token's q or its k, and reads it again once the sum is known. Grid (num_tokens, 2), threads: the next
// multiple of 32 to q_len / 8, at most 512; 128 bytes of shared memory.
//
// Bounded by memory: 4 bytes an element of q and k; what is read again is in the nearest cache.
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

template <typename T>
DEVICE void norm_all(T* qkv, const float* q_weight, const float* k_weight, u32 q_len, u32 k_len, float eps) {
    __shared__ float scratch[32];
    const bool is_q = blockIdx.y == 0, is_aligned = q_len % WIDTH == 0 && k_len % WIDTH == 0;
    const u32 len = is_q ? q_len : k_len;
    const float* weight = is_q ? q_weight : k_weight;
    T* at = qkv + (u64)blockIdx.x * (q_len + 2 * k_len) + (is_q ? 0 : q_len);
    wait_for_kernel_before();
    float x[WIDTH], w[WIDTH], sum = 0.0f;
    for (u32 col = threadIdx.x * WIDTH; col < len; col += blockDim.x * WIDTH) {
        load_part<T, WIDTH>(x, at, col, len, is_aligned);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) sum += x[j] * x[j];
    }
    const float scale = rsqrtf(block_sum(sum, scratch) / len + eps);
    for (u32 col = threadIdx.x * WIDTH; col < len; col += blockDim.x * WIDTH) {
        load_part<T, WIDTH>(x, at, col, len, is_aligned);
        load_part<float, WIDTH>(w, weight, col, len, is_aligned);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) x[j] = x[j] * scale * w[j];
        store_part<T, WIDTH>(at, x, col, len, is_aligned);
    }
}

#define KERNELS(T)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                           \
        head_norm_##T(T* qkv, const float* q_weight, const float* k_weight, u32 num_heads, u32 num_kv_heads,           \
                      u32 head_dim, float eps) {                                                                       \
        norm_head<T>(qkv, q_weight, k_weight, num_heads, num_kv_heads, head_dim, eps);                                 \
    }                                                                                                                  \
    EXPORT_KERNEL(head_norm_##T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(512)                                                                  \
        all_heads_norm_##T(T* qkv, const float* q_weight, const float* k_weight, u32 q_len, u32 k_len, float eps) {    \
        norm_all<T>(qkv, q_weight, k_weight, q_len, k_len, eps);                                                       \
    }                                                                                                                  \
    EXPORT_KERNEL(all_heads_norm_##T)
KERNELS(bf16)
KERNELS(f16)
