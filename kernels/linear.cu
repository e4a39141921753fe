// linear: out = x . weight^T + bias (torch's Linear), in 16 bits with f32 sums.
//
// x [tokens, cols] and weight [features, cols] in 16 bits, cols a multiple of 8; bias [features] f32 or null; out
// [tokens, features] f32 where `out_is_f32`, in x's type elsewhere.
//
// A number of out has the same bits whichever kernel computes it, and whatever else is computed beside it. Its sum over cols
// is cut into segments of `segment` columns, a multiple of 32 that depends on the matrix's shape alone. A segment's sum begins
// at 0 and takes chunks of 32 columns in order, two matrix products a chunk (`multiply`); segments' sums are added in
// order, then the bias. Within a chunk lane l of a warp has columns 8 * (l % 4).. of a row, 16 bytes as they lie in memory: the
// first product takes the lower four of each lane, the second the upper four. Sums do not mind which column a product calls
// its k-th, as long as weights and tokens agree: nothing is moved between lanes to suit the products' layout. Weights are the
// products' 16-row operand, tokens the 8-column one. That a product's sum does not depend on its place in the fragment is how
// tensor cores are; the tests ask for it.
//
// linear_rows8, linear_rows16: at most 8, 16 tokens. Block of 8 warps; a warp has 16 features and one of `splits` (1, 2, 4, 8)
// segments, so that also small matrices keep all multiprocessors loading. Weights go from memory to registers, several
// chunks ahead; tokens come from the caches. Grid: features / (128 / splits). Shared memory: at most 10 KiB, for the sums.
// Bounded by memory: the weights' bytes, once. 8 or 5 KiB are under way a warp.
//
// linear_tile64x32, 64x64, 128x128: tiles of features x tokens. Block of 4 warps; the tile's rows of some chunks are copied
// to shared memory, STAGES deep, chunk by chunk in rows of 64 bytes: two rows are all banks, so that the lanes' 16-byte reads
// do not collide. Grid: all tiles, up to 16 tiles of tokens for one of features after another, to share what the second cache
// holds. Dynamic shared memory: the stages, behind them the sums of finished segments where there is more than one (4 bytes
// a number of the tile), and in their place the results, on their way to whole rows: `Tile::shared_bytes`.
// The first two are bounded by memory where tokens are few; 128x128 by FLOPs, 2 * tokens * features * cols, at the rate of
// the warps' own matrix products.
//
// linear_add_bias: out += bias, for products by a library. Bounded by memory: 4 or 8 bytes a number.
#include "lib/platform.h"
#include "lib/vector.h"

// Columns of a chunk.
static constexpr u32 CHUNK = 32;
// Features of a matrix product, and tokens.
static constexpr u32 FEATURES = 16;
static constexpr u32 TOKENS = 8;

// What all kernels are given.
template <typename T>
struct Product {
    void* out;
    const T* x;
    const T* weight;
    const float* bias;
    u32 tokens, features, cols, segment;
    u32 out_is_f32;
};

// sums += the product of a chunk of columns: this lane's 8 columns of features g and g + 8 (g = lane / 4), `low` and `high`,
// and of token g of each of the tiles, x. The only place where products are summed.
template <typename T, int TILES>
DEVICE void multiply(float (&sums)[TILES][4], const uint4& low, const uint4& high, const uint4 (&x)[TILES]) {
    const u32 first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        const u32 b[2] = {x[t].x, x[t].y};
        mma_16x8x16<T>(sums[t], first, b);
    }
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        const u32 b[2] = {x[t].z, x[t].w};
        mma_16x8x16<T>(sums[t], second, b);
    }
}

static constexpr u32 ROWS_WARPS = 8;
// Features of a warp and room, so that lanes of different tokens write to different banks.
static constexpr u32 SUMS_PITCH = FEATURES + 4;

// The chunks of one warp: features `first_feature`.., columns start..end. `end` is a multiple of 8.
template <typename T, int TILES, int STAGES>
DEVICE void stream(float (&sums)[TILES][4], const Product<T>& p, u32 first_feature, u32 start, u32 end) {
    const u32 lane = threadIdx.x % 32, g = lane / 4;
    // What is beyond the last feature or token repeats it: nobody reads those sums.
    auto row = [&](const T* matrix, u32 idx, u32 rows) { return matrix + (u64)min(idx, rows - 1) * p.cols; };
    const T* low_row = row(p.weight, first_feature + g, p.features);
    const T* high_row = row(p.weight, first_feature + g + 8, p.features);
    const u32 first_col = start + 8 * (lane % 4);
    uint4 low[STAGES], high[STAGES], x[STAGES][TILES];
    auto load_weights = [&](int stage, u32 chunk) {
        const u32 col = first_col + chunk * CHUNK;
        low[stage] = load_streaming_or_zero((const uint4*)(low_row + col), col < end);
        high[stage] = load_streaming_or_zero((const uint4*)(high_row + col), col < end);
    };
    auto load_tokens = [&](int stage, u32 chunk) {
        const u32 col = first_col + chunk * CHUNK;
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            x[stage][t] = make_uint4(0, 0, 0, 0);
            if (col < end) x[stage][t] = *(const uint4*)(row(p.x, t * TOKENS + g, p.tokens) + col);
        }
    };
    // Weights do not change: their loads begin before the kernel that writes x has ended.
#pragma unroll
    for (int s = 0; s < STAGES; s++) load_weights(s, s);
    wait_for_kernel_before();
#pragma unroll
    for (int s = 0; s < STAGES; s++) load_tokens(s, s);
    const u32 num_chunks = (end - start + CHUNK - 1) / CHUNK;
    u32 chunk = 0;
    for (; chunk + STAGES <= num_chunks; chunk += STAGES) {
#pragma unroll
        for (int s = 0; s < STAGES; s++) {
            multiply<T, TILES>(sums, low[s], high[s], x[s]);
            load_weights(s, chunk + STAGES + s);
            load_tokens(s, chunk + STAGES + s);
        }
    }
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (chunk + s < num_chunks) multiply<T, TILES>(sums, low[s], high[s], x[s]);
    }
}

template <typename T, int TILES, int STAGES>
DEVICE void rows(const Product<T>& p, u32 splits) {
    __shared__ float shared[ROWS_WARPS][TILES * TOKENS][SUMS_PITCH];
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 block_features = ROWS_WARPS / splits * FEATURES, block_feature = blockIdx.x * block_features;
    const u32 first_feature = block_feature + warp / splits * FEATURES;
    const u32 start = warp % splits * p.segment, end = min(start + p.segment, p.cols);
    if (start >= end || first_feature >= p.features) {
        wait_for_kernel_before();
    } else {
        float sums[TILES][4] = {};
        stream<T, TILES, STAGES>(sums, p, first_feature, start, end);
#pragma unroll
        for (int t = 0; t < TILES; t++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                shared[warp][t * TOKENS + 2 * (lane % 4) + i % 2][lane / 4 + i / 2 * 8] = sums[t][i];
            }
        }
    }
    __syncthreads();
    const u32 num_segments = (p.cols + p.segment - 1) / p.segment;
    for (u32 idx = threadIdx.x; idx < p.tokens * block_features; idx += ROWS_WARPS * 32) {
        const u32 token = idx / block_features, at = idx % block_features, feature = block_feature + at;
        if (feature >= p.features) continue;
        float total = 0.0f;
        for (u32 s = 0; s < num_segments; s++) total += shared[at / FEATURES * splits + s][token][at % FEATURES];
        if (p.bias != nullptr) total += p.bias[feature];
        const u64 to = (u64)token * p.features + feature;
        if (p.out_is_f32) {
            ((float*)p.out)[to] = total;
        } else {
            ((T*)p.out)[to] = from_float<T>(total);
        }
    }
}

// A tile's shape. ROW_WARPS of its 4 warps stand over each other along features, the others along tokens; a warp has F x N
// matrix products. A stage holds CHUNKS chunks.
template <int ROW_WARPS, int F, int N, int CHUNKS_, int STAGES_>
struct Tile {
    static constexpr u32 THREADS = 128;
    static constexpr int FEATURE_TILES = F, TOKEN_TILES = N, CHUNKS = CHUNKS_, STAGES = STAGES_;
    static constexpr u32 WARP_FEATURES = F * FEATURES, WARP_TOKENS = N * TOKENS;
    static constexpr u32 COLUMN_WARPS = 4 / ROW_WARPS;
    static constexpr u32 TILE_FEATURES = ROW_WARPS * WARP_FEATURES, TILE_TOKENS = COLUMN_WARPS * WARP_TOKENS;
    // In pieces of 16 bytes: of a chunk, 4 a row, and a half of the banks between chunks, so that copies do not collide.
    static constexpr u32 CHUNK_PIECES = 4 * (TILE_FEATURES + TILE_TOKENS) + (CHUNKS > 1 ? 4 : 0);
    static constexpr u32 STAGE_PIECES = CHUNKS * CHUNK_PIECES;
    // Rows that all threads copy at a time.
    static constexpr u32 ROWS_PER_PASS = THREADS / (4 * CHUNKS);
    // Of results in shared memory, in floats: lanes of different tokens write to different banks.
    static constexpr u32 PITCH = TILE_FEATURES + 4;
};
using Tile64x32 = Tile<4, 1, 4, 2, 7>;
using Tile64x64 = Tile<2, 2, 4, 2, 5>;
using Tile128x128 = Tile<2, 4, 8, 1, 3>;

// This thread's share of copying the rows of one matrix that a tile has: always the same columns of chunks.
template <typename T>
struct Share {
    const T* from;
    u64 pass_stride;
    // Whether there is a row, by pass.
    u32 is_row;
};

// Its chunk of a stage, and the first of its 8 columns there.
template <typename S>
DEVICE u32 share_chunk() {
    return threadIdx.x / 4 % S::CHUNKS;
}
template <typename S>
DEVICE u32 share_col() {
    return share_chunk<S>() * CHUNK + threadIdx.x % 4 * 8;
}

// Of rows first_row.. of the `rows` of a matrix.
template <typename T, typename S, u32 TILE_ROWS>
DEVICE Share<T> share_of(const T* matrix, u32 first_row, u32 rows, u32 cols) {
    constexpr u32 PASSES = TILE_ROWS / S::ROWS_PER_PASS;
    static_assert(TILE_ROWS % S::ROWS_PER_PASS == 0 && PASSES <= 32, "passes are whole, and a bit each");
    const u32 row = first_row + threadIdx.x / (4 * S::CHUNKS);
    Share<T> share = {matrix + (u64)row * cols + share_col<S>(), (u64)S::ROWS_PER_PASS * cols, 0};
#pragma unroll
    for (u32 i = 0; i < PASSES; i++) share.is_row |= (u32)(row + i * S::ROWS_PER_PASS < rows) << i;
    return share;
}

// Starts the copies of the chunks from column `first_col` on to `to`, where the rows of the first begin.
template <typename T, typename S, u32 TILE_ROWS>
DEVICE void start_copies(uint4* to, const Share<T>& share, u32 first_col, u32 cols) {
    uint4* piece = to + share_chunk<S>() * S::CHUNK_PIECES + threadIdx.x / (4 * S::CHUNKS) * 4 + threadIdx.x % 4;
    const T* at = share.from + first_col;
    const u32 is_there = first_col + share_col<S>() < cols ? share.is_row : 0;
#pragma unroll
    for (u32 i = 0; i < TILE_ROWS / S::ROWS_PER_PASS; i++) {
        copy_async(piece + i * S::ROWS_PER_PASS * 4, at + i * share.pass_stride, is_there >> i & 1);
    }
}

// One chunk of a warp: its rows of weights and of tokens begin at `weights` and `x`.
template <typename T, typename S>
DEVICE void multiply_tile(float (&sums)[S::FEATURE_TILES][S::TOKEN_TILES][4], const uint4* weights, const uint4* x) {
    const u32 lane = threadIdx.x % 32;
    uint4 tokens[S::TOKEN_TILES], low[2], high[2];
    low[0] = weights[lane];
    high[0] = weights[4 * 8 + lane];
#pragma unroll
    for (int t = 0; t < S::TOKEN_TILES; t++) tokens[t] = x[t * 4 * TOKENS + lane];
#pragma unroll
    for (int f = 0; f < S::FEATURE_TILES; f++) {
        if (f + 1 < S::FEATURE_TILES) {
            low[(f + 1) % 2] = weights[(f + 1) * 4 * FEATURES + lane];
            high[(f + 1) % 2] = weights[(f + 1) * 4 * FEATURES + 4 * 8 + lane];
        }
        multiply<T, S::TOKEN_TILES>(sums[f], low[f % 2], high[f % 2], tokens);
    }
}

// Adds sums to what stands in `totals` (to 0 where `is_first`), this thread's own numbers; they stay in both.
template <typename S>
DEVICE void add_totals(float (&sums)[S::FEATURE_TILES][S::TOKEN_TILES][4], float4* totals, bool is_first) {
#pragma unroll
    for (int f = 0; f < S::FEATURE_TILES; f++) {
#pragma unroll
        for (int t = 0; t < S::TOKEN_TILES; t++) {
            float4* at = totals + (f * S::TOKEN_TILES + t) * S::THREADS + threadIdx.x;
            float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (!is_first) total = *at;
            total = make_float4(total.x + sums[f][t][0], total.y + sums[f][t][1], total.z + sums[f][t][2],
                                total.w + sums[f][t][3]);
            sums[f][t][0] = total.x, sums[f][t][1] = total.y, sums[f][t][2] = total.z, sums[f][t][3] = total.w;
            *at = total;
        }
    }
}

// Writes a tile's results, which all threads have brought to shared memory, row after row.
template <typename T, typename Out, typename S>
DEVICE void write_tile(Out* out, const Product<T>& p, const float* results, u32 first_token, u32 first_feature) {
    constexpr int WIDTH = 8;
    const bool is_aligned = p.features % WIDTH == 0;
    for (u32 idx = threadIdx.x; idx < S::TILE_TOKENS * S::TILE_FEATURES / WIDTH; idx += S::THREADS) {
        const u32 token = idx / (S::TILE_FEATURES / WIDTH), at = idx % (S::TILE_FEATURES / WIDTH) * WIDTH;
        if (first_token + token >= p.tokens) break;
        float values[WIDTH], bias[WIDTH];
        load_vector<float, WIDTH>(values, results + token * S::PITCH + at);
        if (p.bias != nullptr) {
            load_part<float, WIDTH>(bias, p.bias, first_feature + at, p.features, is_aligned);
#pragma unroll
            for (int i = 0; i < WIDTH; i++) values[i] += bias[i];
        }
        store_part<Out, WIDTH>(out + (u64)(first_token + token) * p.features, values, first_feature + at, p.features, is_aligned);
    }
}

template <typename T, typename S>
DEVICE void tile(const Product<T>& p) {
    constexpr u32 MAX_GROUP = 16;
    DYNAMIC_SHARED(shared);
    uint4* stages = (uint4*)shared;
    float4* totals = (float4*)(stages + S::STAGES * S::STAGE_PIECES);
    float* results = (float*)shared;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 num_rows = (p.features + S::TILE_FEATURES - 1) / S::TILE_FEATURES;
    const u32 num_columns = (p.tokens + S::TILE_TOKENS - 1) / S::TILE_TOKENS;
    const u32 group = blockIdx.x / (MAX_GROUP * num_rows), in_group = blockIdx.x % (MAX_GROUP * num_rows);
    const u32 group_columns = min(MAX_GROUP, num_columns - group * MAX_GROUP);
    const u32 first_feature = in_group / group_columns * S::TILE_FEATURES;
    const u32 first_token = (group * MAX_GROUP + in_group % group_columns) * S::TILE_TOKENS;
    const auto weights = share_of<T, S, S::TILE_FEATURES>(p.weight, first_feature, p.features, p.cols);
    const auto tokens = share_of<T, S, S::TILE_TOKENS>(p.x, first_token, p.tokens, p.cols);
    const u32 warp_feature = warp / S::COLUMN_WARPS * S::WARP_FEATURES, warp_token = warp % S::COLUMN_WARPS * S::WARP_TOKENS;
    const u32 num_chunks = (p.cols + CHUNK - 1) / CHUNK, segment_chunks = p.segment / CHUNK;
    auto copy = [&](u32 first_chunk, u32 slot) {
        uint4* stage = stages + slot * S::STAGE_PIECES;
        if (first_chunk < num_chunks) {
            start_copies<T, S, S::TILE_FEATURES>(stage, weights, first_chunk * CHUNK, p.cols);
            start_copies<T, S, S::TILE_TOKENS>(stage + S::TILE_FEATURES * 4, tokens, first_chunk * CHUNK, p.cols);
        }
        copy_commit();
    };
    wait_for_kernel_before();
#pragma unroll
    for (u32 s = 0; s + 1 < S::STAGES; s++) copy(s * S::CHUNKS, s);
    float sums[S::FEATURE_TILES][S::TOKEN_TILES][4] = {};
    u32 slot = 0, segment_end = segment_chunks;
    for (u32 first_chunk = 0; first_chunk < num_chunks; first_chunk += S::CHUNKS) {
        copy_wait<S::STAGES - 2>();
        // All copies of this stage are there, and all threads have left the one before it, which is filled again.
        __syncthreads();
        copy(first_chunk + (S::STAGES - 1) * S::CHUNKS, slot == 0 ? S::STAGES - 1 : slot - 1);
        const uint4* stage = stages + slot * S::STAGE_PIECES;
        slot = slot + 1 == S::STAGES ? 0 : slot + 1;
#pragma unroll
        for (u32 c = 0; c < S::CHUNKS; c++) {
            if (c > 0 && first_chunk + c >= num_chunks) break;
            const uint4* rows = stage + c * S::CHUNK_PIECES;
            multiply_tile<T, S>(sums, rows + warp_feature * 4, rows + (S::TILE_FEATURES + warp_token) * 4);
            if (first_chunk + c + 1 == segment_end && segment_end < num_chunks) {
                add_totals<S>(sums, totals, segment_end == segment_chunks);
                segment_end += segment_chunks;
#pragma unroll
                for (int f = 0; f < S::FEATURE_TILES; f++) {
#pragma unroll
                    for (int i = 0; i < S::TOKEN_TILES * 4; i++) sums[f][i / 4][i % 4] = 0.0f;
                }
            }
        }
    }
    copy_wait<0>();
    if (segment_chunks < num_chunks) add_totals<S>(sums, totals, false);
    // Results take the place of stages and totals.
    __syncthreads();
#pragma unroll
    for (int f = 0; f < S::FEATURE_TILES; f++) {
#pragma unroll
        for (int i = 0; i < S::TOKEN_TILES * 4; i++) {
            const u32 token = warp_token + i / 4 * TOKENS + 2 * (lane % 4) + i % 2;
            const u32 feature = warp_feature + f * FEATURES + lane / 4 + i % 4 / 2 * 8;
            results[token * S::PITCH + feature] = 0.0f + sums[f][i / 4][i % 4];
        }
    }
    __syncthreads();
    if (p.out_is_f32) {
        write_tile<T, float, S>((float*)p.out, p, results, first_token, first_feature);
    } else {
        write_tile<T, T, S>((T*)p.out, p, results, first_token, first_feature);
    }
}

template <typename T>
DEVICE void add_bias(T* out, const float* bias, u32 features) {
    wait_for_kernel_before();
    const u32 feature = blockIdx.y * blockDim.x + threadIdx.x;
    T* at = out + (u64)blockIdx.x * features + feature;
    if (feature < features) *at = from_float<T>(to_float(*at) + bias[feature]);
}

#define PRODUCT(T) {out, x, weight, bias, tokens, features, cols, segment, out_is_f32}
#define ARGUMENTS(T)                                                                                                   \
    void *out, const T *x, const T *weight, const float *bias, u32 tokens, u32 features, u32 cols, u32 segment,        \
        u32 out_is_f32
#define ROWS(T, MAX, STAGES)                                                                                           \
    extern "C" __global__ void __launch_bounds__(ROWS_WARPS * 32, 2)                                                   \
        linear_rows##MAX##_##T(ARGUMENTS(T), u32 splits) {                                                             \
        rows<T, MAX / TOKENS, STAGES>(PRODUCT(T), splits);                                                             \
    }                                                                                                                  \
    EXPORT_KERNEL(linear_rows##MAX##_##T)
#define TILE(T, SHAPE)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(128, 2) linear_tile##SHAPE##_##T(ARGUMENTS(T)) {                      \
        tile<T, Tile##SHAPE>(PRODUCT(T));                                                                              \
    }                                                                                                                  \
    EXPORT_KERNEL(linear_tile##SHAPE##_##T)
#define ADD_BIAS(T)                                                                                                    \
    extern "C" __global__ void linear_add_bias_##T(T* out, const float* bias, u32 features) {                          \
        add_bias<T>(out, bias, features);                                                                              \
    }                                                                                                                  \
    EXPORT_KERNEL(linear_add_bias_##T)
#define KERNELS(T) ROWS(T, 8, 8) ROWS(T, 16, 5) TILE(T, 64x32) TILE(T, 64x64) TILE(T, 128x128) ADD_BIAS(T)
KERNELS(bf16)
KERNELS(f16)
typedef float f32;
ADD_BIAS(f32)
