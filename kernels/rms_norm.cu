// rms_norm: out = x / sqrt(mean(x^2) + eps) * weight, row by row; add_rms_norm: x += delta before (Zhang and Sennrich 2019;
// LlamaRMSNorm, in f32 throughout).
//
// x [rows, cols] f32, the residual stream, or (rms_norm_of_*) in 16 bits, a product's output; delta [rows, cols] and out
// [rows, cols] in 16 bits; weight [cols] f32. lets_next: let_next_begin_if's.
// A block a row; threads: the next multiple of 32 to cols / 16, at most 896. A thread keeps its share of the row in registers where
// cols <= 4 * 4 * threads, and reads it again otherwise; the share's weights come before the kernel before has ended. Shared memory:
// 128 bytes.
// Bounded by memory: 6 bytes an element (x, out), 4 where x has 16 bits, and 12 with delta (x twice, delta, out).
#include "lib/platform.h"
#include "lib/vector.h"

// Elements of a row that one thread takes at a time, and how often it keeps them.
static constexpr int WIDTH = 4;
static constexpr int NUM_KEPT = 4;
// Of a block: more would leave too few registers for each.
static constexpr int MAX_THREADS = 896;

template <typename T, typename X, bool HAS_DELTA>
DEVICE void norm_row(T* out, X* x, const T* delta, const float* weight, u32 cols, float eps) {
    __shared__ float scratch[32];
    const u64 start = (u64)blockIdx.x * cols;
    out += start;
    x += start;
    if (HAS_DELTA) delta += start;
    const bool is_aligned = cols % WIDTH == 0;
    const u32 first = threadIdx.x * WIDTH, stride = blockDim.x * WIDTH;
    // Unrolled into what is kept and the rest: a register array has no run-time index.
    float kept[NUM_KEPT][WIDTH], added[NUM_KEPT][WIDTH], w[NUM_KEPT][WIDTH];
#pragma unroll
    for (int i = 0; i < NUM_KEPT; i++) load_part<float, WIDTH>(w[i], weight, first + i * stride, cols, is_aligned);
    wait_for_kernel_before();
    float sum = 0.0f;
    // Adds delta to x, and squares.
    auto take = [&](float (&values)[WIDTH], const float (&added)[WIDTH], u32 col) {
        if (HAS_DELTA) {
#pragma unroll
            for (int j = 0; j < WIDTH; j++) values[j] += added[j];
            store_part<X, WIDTH>(x, values, col, cols, is_aligned);
        }
#pragma unroll
        for (int j = 0; j < WIDTH; j++) sum += values[j] * values[j];
    };
    auto read = [&](float (&values)[WIDTH], float (&added)[WIDTH], u32 col) {
        load_part<X, WIDTH>(values, x, col, cols, is_aligned);
        if (HAS_DELTA) load_part<T, WIDTH>(added, delta, col, cols, is_aligned);
    };
    // All is asked for before anything is written.
#pragma unroll
    for (int i = 0; i < NUM_KEPT; i++) read(kept[i], added[i], first + i * stride);
#pragma unroll
    for (int i = 0; i < NUM_KEPT; i++) take(kept[i], added[i], first + i * stride);
    float more[WIDTH], more_added[WIDTH], more_w[WIDTH];
    for (u32 col = first + NUM_KEPT * stride; col < cols; col += stride) {
        read(more, more_added, col);
        take(more, more_added, col);
    }
    const float scale = rsqrtf(block_sum(sum, scratch) / cols + eps);
    auto write = [&](float (&values)[WIDTH], const float (&w)[WIDTH], u32 col) {
#pragma unroll
        for (int j = 0; j < WIDTH; j++) values[j] = values[j] * scale * w[j];
        store_part<T, WIDTH>(out, values, col, cols, is_aligned);
    };
#pragma unroll
    for (int i = 0; i < NUM_KEPT; i++) write(kept[i], w[i], first + i * stride);
    for (u32 col = first + NUM_KEPT * stride; col < cols; col += stride) {
        load_part<X, WIDTH>(more, x, col, cols, is_aligned);
        load_part<float, WIDTH>(more_w, weight, col, cols, is_aligned);
        write(more, more_w, col);
    }
}

#define KERNELS(T)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS)                                                          \
        rms_norm_##T(T* out, const float* x, const float* weight, u32 cols, float eps, u32 lets_next) {                \
        let_next_begin_if(lets_next);                                                                                  \
        norm_row<T, float, false>(out, const_cast<float*>(x), nullptr, weight, cols, eps);                             \
    }                                                                                                                  \
    EXPORT_KERNEL(rms_norm_##T)                                                                                        \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS)                                                          \
        rms_norm_of_##T(T* out, const T* x, const float* weight, u32 cols, float eps, u32 lets_next) {                 \
        let_next_begin_if(lets_next);                                                                                  \
        norm_row<T, T, false>(out, const_cast<T*>(x), nullptr, weight, cols, eps);                                     \
    }                                                                                                                  \
    EXPORT_KERNEL(rms_norm_of_##T)                                                                                     \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS)                                                          \
        add_rms_norm_##T(T* out, float* x, const T* delta, const float* weight, u32 cols, float eps, u32 lets_next) {  \
        let_next_begin_if(lets_next);                                                                                  \
        norm_row<T, float, true>(out, x, delta, weight, cols, eps);                                                    \
    }                                                                                                                  \
    EXPORT_KERNEL(add_rms_norm_##T)
KERNELS(bf16)
KERNELS(f16)
