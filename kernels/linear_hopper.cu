// linear_hopper: what linear.cu computes of more than 16 tokens, on Hopper (sm_90a) alone: boxes by the tensor memory accelerator
// and products of warpgroups. linear_hopper_gated: act(gate) * up besides, where a matrix's rows are gate's, then up's
// (gate_act_mul.cu of what linear.cu gives).
//
// x, weight: boxes of [rows][cols] in 16 bits, 64 x 64, of x [tokens or more, cols] and of weight [features, cols] (gated:
// [2 * features, cols]); cols a multiple of 8, features too; bias f32, one for a row of weight, or null; out [tokens, features] f32
// where `out_is_f32`, in x's type elsewhere (gated: always). `kind`: see lib/activation.h.
//
// The order of sums is linear.cu's: products of 16 neighbouring columns one after another, from 0 in each segment of `segment`
// columns (a multiple of 64), segments' sums in order, then the bias. A token's bits are linear.cu's if a warpgroup's product
// adds as mma.sync does, which a device is asked when it is opened.
//
// Tokens are the products' rows, 64 a warpgroup, features their columns. A block's last warps bring a stage at a time, 64 columns
// of the tile's tokens and of its weights, of which the first do not wait for the kernel before. They share its boxes: one thread
// alone takes longer to ask for all than the tensor cores for their products. The other warps multiply; while a stage is multiplied
// the next one's products are already asked for.
//
// linear_hopper_split_<tokens>x<features>: tiles of 64, 128 or 256 tokens and 128 features. A cluster of `splits` blocks has a tile,
// a block one of its segments (or none), so that few tiles occupy a device. Sums go to shared memory, and each block adds its share
// of the tile over the cluster's. Grid: splits * tiles. Two blocks fit a multiprocessor. Of 256 tokens one: its two warpgroups have
// twice 64 tokens each, for which weights are read once; and of those named deep, whose stages are as many as it has room for: where
// there are no more blocks than multiprocessors, each must keep its own loading. Gated: one segment; 64 rows of gate and the same of
// up are a tile's 128.
// linear_hopper_<tokens>x<features>, 128x256 for one segment, 128x128 and 128x192 for any number, whose totals stay in registers:
// tile after tile by as many blocks as there are multiprocessors, stages of the next tile arriving while one is stored. Grid: at
// most the tiles. Gated: 128 rows of gate and the same of up are a tile's 256.
// Threads: 128 for each 64 tokens of a block (of 256: 128), and 128, or 64 where tiles are split. Dynamic shared memory: 1024 bytes, for what is in
// it begins at a multiple of that; STAGES stages of 128 bytes a token and feature of the tile; 128 bytes of barriers.
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

#define CALL {out, &x, &weight, nullptr, nullptr, bias, tokens, features, cols, segment, out_is_f32}
#define ARGUMENTS                                                                                                      \
    void *out, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight, const float *bias,       \
        u32 tokens, u32 features, u32 cols, u32 segment, u32 out_is_f32
#define LINEAR(T, NAME, GROUPS, PARTS, FEATURES, STAGES, ENDING, THREADS, BLOCKS, LAST)                                \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                      \
        linear_hopper_##NAME##_##T(ARGUMENTS, u32 LAST) {                                                              \
        const Call call = CALL;                                                                                        \
        Tile<T, T, GROUPS, PARTS, FEATURES, STAGES, ENDING>::run(call, LAST);                                             \
    }                                                                                                                  \
    EXPORT_KERNEL(linear_hopper_##NAME##_##T)
#define KERNELS(T)                                                                                                     \
    LINEAR(T, split_64x128, 1, 1, 128, 4, SPLIT, 192, 2, splits)                                                       \
    LINEAR(T, split_128x128, 2, 1, 128, 3, SPLIT, 320, 2, splits)                                                      \
    LINEAR(T, split_256x128, 2, 2, 128, 4, SPLIT, 320, 1, splits)                                                      \
    LINEAR(T, split_deep_64x128, 1, 1, 128, 8, SPLIT, 192, 1, splits)                                                  \
    LINEAR(T, split_deep_128x128, 2, 1, 128, 6, SPLIT, 320, 1, splits)                                                 \
    LINEAR(T, split_gated_64x128, 1, 1, 128, 4, SPLIT_GATED, 192, 2, kind)                                             \
    LINEAR(T, 128x128, 2, 1, 128, 6, SEGMENTS, 384, 1, none)                                                           \
    LINEAR(T, 128x192, 2, 1, 192, 5, SEGMENTS, 384, 1, none)                                                           \
    LINEAR(T, 128x256, 2, 1, 256, 4, WHOLE, 384, 1, none)                                                              \
    LINEAR(T, gated_128x256, 2, 1, 256, 4, GATED, 384, 1, kind)
KERNELS(bf16)
KERNELS(f16)
