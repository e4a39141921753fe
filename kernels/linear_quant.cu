// linear_quant: what linear.cu computes of weights that stay in block formats (lib/quant.h), with the bits that it has of the
// same numbers in 16 bits: they are expanded in registers on their way to the products.
//
// Arguments are linear.cu's; weight: tiles of 16 rows by 128 columns; scale unused; out: the first of `features` numbers in rows of
// `stride`, so that parts of different formats fill one row side by side. `segment` a multiple of 128.
//
// linear_rows8, linear_rows16, linear_gated_rows8, linear_gated_rows16: linear_rows.cu's of this name, where gate's features are a
// multiple of 16. A warp copies its tiles as they lie in memory, and takes them from there once all its lanes' copies are there.
// linear_tile64x64: linear.cu's; a step's tiles are copied as they lie in memory, and each is expanded by one warp.
// linear_expand: to [features][cols] in 16 bits, for products of many tokens by other kernels. Grid: row tiles, warps of a tile each
// along the columns; 256 threads.
//
// Bounded by memory of few tokens, the tiles' bytes, but where memory brings more than some 14 to 16 bytes a cycle and multiprocessor
// by instructions, 4 to 7 a weight and lane; of more tokens by FLOPs; linear_expand by memory, a tile's bytes and 4 KiB.
#include "lib/platform.h"
#include "lib/activation.h"
#include "lib/vector.h"
#include "lib/tiles.h"
#include "lib/e4m3.h"
#include "lib/linear.h"
#include "lib/linear_rows.h"
#include "lib/linear_tile.h"
#include "lib/quant.h"
#include "lib/linear_quant.h"

template <typename W>
using Tile64x64 = Tile<W, 4, 1, 8, 4, 3>;

template <typename W>
DEVICE void expand(typename W::T* out, const u8* weight, u32 features, u32 cols) {
    wait_for_kernel_before();
    const u32 lane = threadIdx.x % 32, column_tile = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32;
    if (column_tile >= num_tiles(cols)) return;
    const u8* tile = weight + ((u64)blockIdx.x * num_tiles(cols) + column_tile) * W::TILE_BYTES;
    const typename W::Scales scales = W::scales_of(tile);
#pragma unroll
    for (u32 c = 0; c < W::CHUNKS; c++) {
        const u32 col = column_tile * QUANT_COLUMNS + c * CHUNK + 8 * (lane % 2) + 4 * (lane % 4 / 2);
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 row = blockIdx.x * QUANT_ROWS + lane / 4 + 8 * half;
            const uint4 weights = W::expand(tile, scales, half, c);
            if (row >= features) continue;
            uint2* at = (uint2*)(out + (u64)row * cols + col);
            if (col < cols) at[0] = make_uint2(weights.x, weights.y);
            if (col + COLUMNS < cols) at[COLUMNS / 4] = make_uint2(weights.z, weights.w);
        }
    }
}

#define EXPAND(FORM, T, NAME)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        linear_expand_##NAME(T* out, const u8* weight, u32 features, u32 cols) {                                       \
        expand<FORM<T>>(out, weight, features, cols);                                                                  \
    }                                                                                                                  \
    EXPORT_KERNEL(linear_expand_##NAME)
#define KERNELS(FORM, NAME)                                                                                            \
    ROWS(FORM, bf16, NAME, 8, 3)                                                                                       \
    ROWS(FORM, bf16, NAME, 16, 2)                                                                                      \
    TILE(FORM, bf16, NAME, 64x64)                                                                                      \
    EXPAND(FORM, bf16, NAME)
KERNELS(Q4_0, q4_0_bf16)
KERNELS(Q4_1, q4_1_bf16)
KERNELS(Q5_0, q5_0_bf16)
KERNELS(Q5_1, q5_1_bf16)
KERNELS(Q8_0, q8_0_bf16)
KERNELS(Q4_K, q4_k_bf16)
KERNELS(Q5_K, q5_k_bf16)
KERNELS(Q6_K, q6_k_bf16)
KERNELS(INT4_G32, int4_g32_bf16)
KERNELS(INT4_G128, int4_g128_bf16)
KERNELS(MXFP4, mxfp4_bf16)
