// rms_norm: out = x / sqrt(mean(x^2) + eps) * weight, row by row; add_rms_norm: x += delta before (Zhang and Sennrich 2019;
// LlamaRMSNorm, in f32 throughout).
//
// x [rows, cols] f32, the residual stream; delta [rows, cols] and out [rows, cols] in 16 bits; weight [cols] f32.
// A block a row; threads: the next multiple of 32 to cols / 4, at most 1024. A thread keeps its share of the row in registers where
// cols <= 4 * 4 * threads, and reads it again otherwise. Shared memory: 128 bytes.
// Bounded by memory: 6 bytes an element (x, out) and 10 with delta (x twice, delta, out).
#include "lib/platform.h"

// Elements of a row that one thread takes at a time, and how often it keeps them.
static constexpr int WIDTH = 4;
static constexpr int NUM_KEPT = 4;

template <typename T, bool HAS_DELTA>
DEVICE void norm_row(T* out, float* x, const T* delta, const float* weight, u32 cols, float eps) {
    __shared__ float scratch[32];
    wait_for_kernel_before();
    const u64 start = (u64)blockIdx.x * cols;
    out += start;
    x += start;
    if (HAS_DELTA) delta += start;
    float kept[NUM_KEPT][WIDTH];
    float sum = 0.0f;
    const u32 stride = blockDim.x * WIDTH;
    // Unrolled by hand into what is kept and the rest: a register array has no run-time index.
#pragma unroll
    for (int i = 0; i < NUM_KEPT; i++) {
        const u32 col = threadIdx.x * WIDTH + i * stride;
#pragma unroll
        for (int j = 0; j < WIDTH; j++) {
            kept[i][j] = col + j < cols ? x[col + j] : 0.0f;
            if (HAS_DELTA && col + j < cols) x[col + j] = kept[i][j] += to_float(delta[col + j]);
            sum += kept[i][j] * kept[i][j];
        }
    }
    for (u32 col = threadIdx.x * WIDTH + NUM_KEPT * stride; col < cols; col += stride) {
        for (u32 j = col; j < min(col + WIDTH, cols); j++) {
            float value = x[j];
            if (HAS_DELTA) x[j] = value += to_float(delta[j]);
            sum += value * value;
        }
    }
    const float scale = rsqrtf(block_sum(sum, scratch) / cols + eps);
#pragma unroll
    for (int i = 0; i < NUM_KEPT; i++) {
        const u32 col = threadIdx.x * WIDTH + i * stride;
#pragma unroll
        for (int j = 0; j < WIDTH; j++) {
            if (col + j < cols) out[col + j] = from_float<T>(kept[i][j] * scale * weight[col + j]);
        }
    }
    for (u32 col = threadIdx.x * WIDTH + NUM_KEPT * stride; col < cols; col += stride) {
        for (u32 j = col; j < min(col + WIDTH, cols); j++) out[j] = from_float<T>(x[j] * scale * weight[j]);
    }
    let_next_kernel_begin();
}

#define KERNELS(T)                                                                                                     \
    extern "C" __global__ void rms_norm_##T(T* out, const float* x, const float* weight, u32 cols, float eps) {        \
        norm_row<T, false>(out, const_cast<float*>(x), nullptr, weight, cols, eps);                                    \
    }                                                                                                                  \
    EXPORT_KERNEL(rms_norm_##T)                                                                                        \
    extern "C" __global__ void add_rms_norm_##T(T* out, float* x, const T* delta, const float* weight, u32 cols,      \
                                                float eps) {                                                           \
        norm_row<T, true>(out, x, delta, weight, cols, eps);                                                           \
    }                                                                                                                  \
    EXPORT_KERNEL(add_rms_norm_##T)
KERNELS(bf16)
KERNELS(f16)
