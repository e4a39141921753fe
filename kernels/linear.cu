// linear: out = x . weight^T + bias (torch's Linear), in 16 bits with f32 sums; weights of 16 or 8 bits.
//
// x [tokens, cols] in 16 bits, cols a multiple of 8; weight [features, cols] in x's type (`Plain`), or e4m3 (`Fp8`) with
// scale [features] in f32, else null; bias [features] f32 or null; out f32 where `out_is_f32`, in x's
// type elsewhere: of each token `features` numbers, `stride` numbers behind those of the token before.
//
// A number of out has the same bits whichever kernel computes it, and whatever else is computed beside it. Its sum over cols
// is cut into segments of `segment` columns, a multiple of 128 that depends on the matrix's shape alone. A segment's sum begins
// at 0 and takes matrix products of 16 neighbouring columns in order, two a chunk of 32 (`multiply`); segments' sums are added
// in order, then the bias. Of a product's columns lane l of a warp has the four from 8 * (l % 2) + 4 * (l % 4 / 2) on. Sums do
// not mind which column a product calls its k-th, as long as weights and tokens agree, so that they are read 8 bytes at a time.
// Weights are the products' 16-row operand, tokens the 8-column one. That a product's sum does not depend on its place in the
// fragment is how tensor cores are; the tests ask for it.
//
// Fp8: every e4m3 number is one of bf16 and of f16, so weights are expanded in registers and multiplied as 16 bits are, in the
// same order; a row's scale is applied to the total, before the bias. The bits are those of the kernels for 16 bits with
// expanded weights. Rows are padded to whole steps of 64 columns with zeros, two chunks a step: in a step lane l's 16 bytes
// are its columns of the four products, a word each, in the order 0, 2, 1, 3, so that the even bytes of a word are one pair and
// the odd ones the next. lib/e4m3.h expands them: some 9 instructions for 4 weights, half of what a device can issue while memory
// brings them.
//
// linear_tile64x32, 64x64, 128x128: tiles of features x tokens. Block of 4 warps; the tile's rows of some chunks are copied
// to shared memory, STAGES deep, chunk by chunk in rows of 64 bytes, in every other pair of rows with their halves
// exchanged, so that the lanes' 8-byte reads do not collide. Grid: all tiles (lib/tiles.h). Dynamic shared memory: the stages,
// behind them the sums of finished segments where there is more than one (4 bytes a number of the tile), and in their place the
// results, on their way to whole rows: `Tile::shared_bytes`. At most 16 tokens are linear_rows.cu's.
// The first two are bounded by memory where tokens are few; 128x128 by FLOPs, 2 * tokens * features * cols, at the rate of
// the warps' own matrix products.
//
// linear_add_bias: out += bias, for products by a library. Bounded by memory: 4 or 8 bytes a number.
#include "lib/platform.h"
#include "lib/vector.h"
#include "lib/tiles.h"
#include "lib/e4m3.h"
#include "lib/linear.h"
#include "lib/linear_tile.h"

template <typename W>
using Tile64x32 = Tile<W, 4, 1, 4, 2, 7>;
template <typename W>
using Tile64x64 = Tile<W, 2, 2, 4, 2, 5>;
template <typename W>
using Tile128x128 = Tile<W, 2, 4, 8, 1, 3>;

template <typename T>
DEVICE void add_bias(T* out, const float* bias, u32 features) {
    wait_for_kernel_before();
    const u32 feature = blockIdx.y * blockDim.x + threadIdx.x;
    T* at = out + (u64)blockIdx.x * features + feature;
    if (feature < features) *at = from_float<T>(to_float(*at) + bias[feature]);
}

#define ADD_BIAS(T)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(256) linear_add_bias_##T(T* out, const float* bias, u32 features) {   \
        add_bias<T>(out, bias, features);                                                                              \
    }                                                                                                                  \
    EXPORT_KERNEL(linear_add_bias_##T)
#define KERNELS(FORM, T, NAME)                                                                                         \
    TILE(FORM, T, NAME, 64x32)                                                                                         \
    TILE(FORM, T, NAME, 64x64)                                                                                         \
    TILE(FORM, T, NAME, 128x128)
KERNELS(Plain, bf16, bf16)
KERNELS(Plain, f16, f16)
KERNELS(Fp8, bf16, fp8_bf16)
KERNELS(Fp8, f16, fp8_f16)
ADD_BIAS(bf16)
ADD_BIAS(f16)
typedef float f32;
ADD_BIAS(f32)
