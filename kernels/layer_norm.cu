// layer_norm: out = (x - mean) / sqrt(variance + eps) * weight + bias, row by row (Ba et al. 2016; torch's LayerNorm, in f32
// throughout). The variance is that about the mean, not a difference of squares.
//
// x [rows, cols] f32, the residual stream; out [rows, cols] in 16 bits; weight, bias [cols] f32.
// A block a row; threads: the next multiple of 32 to cols / 4, at most 1024. A thread keeps its share of the row in registers where
// cols <= 4 * 4 * threads, and reads it again otherwise. Shared memory: 256 bytes.
// Bounded by memory: 6 bytes an element.
#include "lib/platform.h"
#include "lib/vector.h"

static constexpr int MAX_THREADS = 1024;

// Elements of a row that one thread takes at a time, and how often it keeps them.
static constexpr int WIDTH = 4;
static constexpr int NUM_KEPT = 4;

// What is beyond the row counts as its mean.
DEVICE float squares_about(const float (&x)[WIDTH], float mean, u32 col, u32 cols) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < WIDTH; j++) {
        const float distance = col + j < cols ? x[j] - mean : 0.0f;
        sum += distance * distance;
    }
    return sum;
}

template <typename T>
DEVICE void write(T* out, const float (&x)[WIDTH], float mean, float scale, const float* weight, const float* bias, u32 col,
                  u32 cols, bool is_aligned) {
    float w[WIDTH], b[WIDTH], y[WIDTH];
    load_part<float, WIDTH>(w, weight, col, cols, is_aligned);
    load_part<float, WIDTH>(b, bias, col, cols, is_aligned);
#pragma unroll
    for (int j = 0; j < WIDTH; j++) y[j] = (x[j] - mean) * scale * w[j] + b[j];
    store_part<T, WIDTH>(out, y, col, cols, is_aligned);
}

template <typename T>
DEVICE void norm_row(T* out, const float* x, const float* weight, const float* bias, u32 cols, float eps) {
    __shared__ float scratch[2][32];
    wait_for_kernel_before();
    const u64 start = (u64)blockIdx.x * cols;
    out += start;
    x += start;
    const bool is_aligned = cols % WIDTH == 0;
    const u32 first = threadIdx.x * WIDTH, stride = blockDim.x * WIDTH;
    float kept[NUM_KEPT][WIDTH], more[WIDTH];
    float sum = 0.0f;
    // Unrolled into what is kept and the rest: a register array has no run-time index.
#pragma unroll
    for (int i = 0; i < NUM_KEPT; i++) {
        load_part<float, WIDTH>(kept[i], x, first + i * stride, cols, is_aligned);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) sum += kept[i][j];
    }
    for (u32 col = first + NUM_KEPT * stride; col < cols; col += stride) {
        load_part<float, WIDTH>(more, x, col, cols, is_aligned);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) sum += more[j];
    }
    const float mean = block_sum(sum, scratch[0]) / cols;
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < NUM_KEPT; i++) sum += squares_about(kept[i], mean, first + i * stride, cols);
    for (u32 col = first + NUM_KEPT * stride; col < cols; col += stride) {
        load_part<float, WIDTH>(more, x, col, cols, is_aligned);
        sum += squares_about(more, mean, col, cols);
    }
    const float scale = rsqrtf(block_sum(sum, scratch[1]) / cols + eps);
#pragma unroll
    for (int i = 0; i < NUM_KEPT; i++) {
        const u32 col = first + i * stride;
        if (col < cols) write<T>(out, kept[i], mean, scale, weight, bias, col, cols, is_aligned);
    }
    for (u32 col = first + NUM_KEPT * stride; col < cols; col += stride) {
        load_part<float, WIDTH>(more, x, col, cols, is_aligned);
        write<T>(out, more, mean, scale, weight, bias, col, cols, is_aligned);
    }
}

#define KERNELS(T)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS)                                                          \
        layer_norm_##T(T* out, const float* x, const float* weight, const float* bias, u32 cols, float eps) {          \
        norm_row<T>(out, x, weight, bias, cols, eps);                                                                  \
    }                                                                                                                  \
    EXPORT_KERNEL(layer_norm_##T)
KERNELS(bf16)
KERNELS(f16)
