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

DEVICE u32 num_tiles(u32 cols) { return tiles_of(cols, QUANT_COLUMNS); }

template <typename W, int TILES>
DEVICE void stream(float (&sums)[TILES][4], const Product<W>& p, u8* memory, u32 first_row, u32, u32 start, u32 end) {
    constexpr u32 STAGES = W::STREAM_BYTES / W::TILE_BYTES, PIECES = W::TILE_BYTES / 16, AHEAD = W::CHUNKS - 1;
    const u32 lane = threadIdx.x % 32, num_steps = tiles_of(end - start, QUANT_COLUMNS), num_whole = (end - start) / QUANT_COLUMNS;
    const u8* tiles = (const u8*)p.weight + ((u64)(first_row / QUANT_ROWS) * num_tiles(p.cols) + start / QUANT_COLUMNS) * W::TILE_BYTES;
    auto copy_tile = [&](u32 slot, u32 step) {
        const u8* from = tiles + (u64)step * W::TILE_BYTES;
#pragma unroll
        for (u32 i = 0; i < PIECES; i += 32) {
            const u32 at = 16 * (i + lane);
            if (step < num_steps && i + lane < PIECES) copy_async(memory + slot * W::TILE_BYTES + at, from + at);
        }
        copy_commit();
    };
    // Weights do not change.
    for (u32 s = 0; s + 1 < STAGES; s++) copy_tile(s, s);
    if (p.tokens <= FEW_TOKENS) {
        const u32 begin = (STAGES - 1) * W::TILE_BYTES;
        const u32 ahead = min(num_steps * W::TILE_BYTES, begin + QUANT_ROWS * BYTES_AHEAD);
        for (u32 at = begin + 128 * lane; at < ahead; at += 128 * 32) prefetch_line(tiles + at);
    }
    wait_for_writes();
    const typename W::T* tokens[TILES];
#pragma unroll
    for (int t = 0; t < TILES; t++) tokens[t] = own_tokens(p, t) + start;
    // Chunks of tokens in registers: one is multiplied, the others are on their way.
    uint4 x[W::CHUNKS][TILES];
    if (num_whole > 0) {
#pragma unroll
        for (u32 c = 0; c < AHEAD; c++) load_chunk<W, TILES>(x[c], tokens, c);
    }
    u32 slot = 0;
    for (u32 step = 0; step < num_steps; step++) {
        copy_wait<STAGES - 2>();
        // All lanes' copies of this step are there, and all have left the step before it, which is filled again.
        __syncwarp();
        copy_tile(slot == 0 ? STAGES - 1 : slot - 1, step + STAGES - 1);
        const u8* tile = memory + slot * W::TILE_BYTES;
        slot = slot + 1 == STAGES ? 0 : slot + 1;
        const typename W::Scales scales = W::scales_of(tile);
        if (step == num_whole) {
            // The columns end within the tile.
            for (u32 c = 0; c * CHUNK < (end - start) % QUANT_COLUMNS; c++) {
                load_chunk<W, TILES>(x[0], tokens, c);
                multiply<typename W::T, TILES>(sums, W::expand(tile, scales, 0, c), W::expand(tile, scales, 1, c), x[0]);
            }
            break;
        }
#pragma unroll
        for (u32 c = 0; c < W::CHUNKS; c++) {
            const u32 next = c + AHEAD;
            if (next < W::CHUNKS || step + 1 < num_whole) load_chunk<W, TILES>(x[next % W::CHUNKS], tokens, next);
            multiply<typename W::T, TILES>(sums, W::expand(tile, scales, 0, c), W::expand(tile, scales, 1, c), x[c]);
        }
#pragma unroll
        for (int t = 0; t < TILES; t++) tokens[t] += QUANT_COLUMNS;
    }
    copy_wait<0>();
}

// A tile's weights, as linear_tile.h asks for them.
template <typename S, typename T, int BITS, int ZERO, Scaling SCALING>
struct TileWeights<Quant<T, BITS, ZERO, SCALING>, S> {
    using W = Quant<T, BITS, ZERO, SCALING>;
    static constexpr u32 ROW_TILES = S::TILE_FEATURES / QUANT_ROWS, PIECES = W::TILE_BYTES / 16;
    const u8* from;
    u64 row_bytes;
    u32 num_rows;
    // Of the step at hand.
    typename W::Scales scales[S::FEATURE_TILES];

    __device__ __forceinline__ TileWeights(const Product<W>& p, u32 first_feature) {
        row_bytes = (u64)num_tiles(p.cols) * W::TILE_BYTES;
        from = (const u8*)p.weight + first_feature / QUANT_ROWS * row_bytes;
        num_rows = tiles_of(p.features - first_feature, QUANT_ROWS);
    }
    __device__ __forceinline__ void start(uint4* stage, u32 first_chunk) const {
        const u8* step = from + (u64)(first_chunk / W::CHUNKS) * W::TILE_BYTES;
#pragma unroll
        for (u32 row = 0; row < ROW_TILES; row++) {
#pragma unroll
            for (u32 i = 0; i < PIECES; i += S::THREADS) {
                const u32 at = i + threadIdx.x;
                if (at < PIECES) copy_async(stage + row * PIECES + at, step + row * row_bytes + 16 * at, row < num_rows);
            }
        }
    }
    __device__ __forceinline__ uint4 read(const uint4* step, u32 warp_feature, u32 f, u32 half, u32 c) {
        const u8* tile = (const u8*)(step + (warp_feature / QUANT_ROWS + f) * PIECES);
        if (c == 0 && half == 0) scales[f] = W::scales_of(tile);
        return W::expand(tile, scales[f], half, c);
    }
};

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
