// linear_w8a8_hopper: products of inputs that are rounded to e4m3 with weights in e4m3, on Hopper (sm_90a) alone: twice the FLOPs of
// 16 bits, for half of the bytes. What is rounded, and how tensor cores add such products (some 14 bits of a sum are kept while they do),
// costs exactness, which is for those who asked for speed. Results depend on how many tokens there are, as tiles differ.
//
// linear_quantize: out [rows, row_bytes] e4m3 = x [rows, cols] / scale, in linear.cu's order of codes, zeros behind a row; scale [rows]
// f32: a row's greatest magnitude over 448. row_bytes: cols rounded up to 64. Grid: rows; 256 threads. Bounded by memory: 2 bytes an
// element, which are read twice, and one that is written.
//
// linear_w8a8_hopper_*: linear_hopper.cu's of these names, of boxes of codes (two are a number of 16 bits to who copies them; the order
// within a row is the same in both, so that it makes no difference), scale [features] and token_scale [tokens] f32. cols, segment: in
// pairs of codes, segment a multiple of 64. 128x256, and gated, take one segment.
//
// Bounded by the weights' bytes up to some 200 tokens, by FLOPs, 2 * tokens * features * cols, beyond.
#include "lib/platform.h"
#include "lib/hopper.h"
#include "lib/vector.h"
#include "lib/activation.h"
#include "lib/tiles.h"
#include "lib/e4m3.h"
#include "lib/linear_hopper.h"
#include "lib/linear_hopper_tile.h"

static constexpr float GREATEST = 448.0f;
// Columns whose codes are a lane's 16 bytes of a step of 64: four neighbours of each of its four products.
static constexpr u32 STEP_COLUMNS = 64, PRODUCT_COLUMNS = 16;

// A row's numbers whose codes are its 16 bytes number `piece`: four neighbours of each product, zeros beyond `cols`, a multiple of 8.
template <typename T>
DEVICE void load_piece(float (&x)[PRODUCTS][4], const T* row, u32 piece, u32 cols) {
    const u32 lane = piece % 4, first = piece / 4 * STEP_COLUMNS + lane % 2 * 8 + lane / 2 * 4;
#pragma unroll
    for (u32 product = 0; product < PRODUCTS; product++) {
        const u32 col = first + product * PRODUCT_COLUMNS;
        const uint2 words = col < cols ? *(const uint2*)(row + col) : make_uint2(0, 0);
        x[product][0] = low_float<T>(words.x);
        x[product][1] = high_float<T>(words.x);
        x[product][2] = low_float<T>(words.y);
        x[product][3] = high_float<T>(words.y);
    }
}

template <typename T>
DEVICE void quantize(u8* out, float* scale, const T* x, u32 cols, u32 row_bytes) {
    __shared__ u32 of_warps[32];
    wait_for_kernel_before();
    const T* row = x + (u64)blockIdx.x * cols;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // In integers the order is that of magnitudes, with infinity and NaN above all numbers.
    u32 greatest = 0;
    for (u32 i = threadIdx.x; i < row_bytes / 16; i += blockDim.x) {
        float numbers[PRODUCTS][4];
        load_piece(numbers, row, i, cols);
#pragma unroll
        for (u32 j = 0; j < PRODUCTS * 4; j++) greatest = max(greatest, __float_as_uint(numbers[j / 4][j % 4]) & 0x7fffffff);
    }
    greatest = __reduce_max_sync(FULL_WARP, greatest);
    if (lane == 0) of_warps[warp] = greatest;
    __syncthreads();
    greatest = __reduce_max_sync(FULL_WARP, lane < blockDim.x / 32 ? of_warps[lane] : 0);
    // A row of zeros has some scale; one with a number that is none has no other results.
    const float least = __uint_as_float(1u << 23), nan = __uint_as_float(0x7fc00000);
    const float own = greatest < 0x7f800000 ? fmaxf(__fmul_rn(__uint_as_float(greatest), 1.0f / GREATEST), least) : nan;
    const float inverse = __frcp_rn(own);
    if (threadIdx.x == 0) scale[blockIdx.x] = own;
    for (u32 i = threadIdx.x; i < row_bytes / 16; i += blockDim.x) {
        float numbers[PRODUCTS][4];
        load_piece(numbers, row, i, cols);
        u32 words[PRODUCTS];
#pragma unroll
        for (u32 product = 0; product < PRODUCTS; product++) {
            u32 codes[4];
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                const float number = __fmul_rn(numbers[product][j], inverse);
                codes[j] = e4m3_of(fminf(fmaxf(number, -GREATEST), GREATEST));
            }
            words[product] = codes[0] | codes[2] << 8 | codes[1] << 16 | codes[3] << 24;
        }
        *(uint4*)(out + (u64)blockIdx.x * row_bytes + 16 * i) = make_uint4(words[0], words[1], words[2], words[3]);
    }
}

#define QUANTIZE(T)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        linear_quantize_##T(u8* out, float* scale, const T* x, u32 cols, u32 row_bytes) {                              \
        quantize(out, scale, x, cols, row_bytes);                                                                      \
    }                                                                                                                  \
    EXPORT_KERNEL(linear_quantize_##T)
#define LINEAR(T, NAME, GROUPS, FEATURES, STAGES, ENDING, THREADS, BLOCKS, LAST)                                       \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) linear_w8a8_hopper_##NAME##_##T(                 \
        void* out, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight, const float* scale,  \
        const float* token_scale, const float* bias, u32 tokens, u32 features, u32 cols, u32 segment, u32 out_is_f32,  \
        u32 LAST) {                                                                                                    \
        const Call call = {out, &x, &weight, scale, token_scale, bias, tokens, features, cols, segment, out_is_f32};   \
        Tile<e4m3, T, GROUPS, 1, FEATURES, STAGES, ENDING>::run(call, LAST);                                           \
    }                                                                                                                  \
    EXPORT_KERNEL(linear_w8a8_hopper_##NAME##_##T)
#define KERNELS(T)                                                                                                     \
    QUANTIZE(T)                                                                                                        \
    LINEAR(T, split_64x128, 1, 128, 4, SPLIT, 192, 2, splits)                                                          \
    LINEAR(T, split_128x128, 2, 128, 6, SPLIT, 320, 1, splits)                                                         \
    LINEAR(T, split_gated_64x128, 1, 128, 4, SPLIT_GATED, 192, 2, kind)                                                \
    LINEAR(T, 128x128, 2, 128, 6, WHOLE, 384, 1, none)                                                                 \
    LINEAR(T, 128x256, 2, 256, 4, WHOLE, 384, 1, none)                                                                 \
    LINEAR(T, gated_128x256, 2, 256, 4, GATED, 384, 1, kind)
KERNELS(bf16)
KERNELS(f16)
