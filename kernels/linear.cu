// linear: out = x . weight^T + bias (torch's Linear), in 16 bits with f32 sums; weights of 16 or 8 bits.
//
// x [tokens, cols] in 16 bits, cols a multiple of 8; weight [features, cols] in x's type (`Plain`), or e4m3 (`Fp8`) with
// scale [features] in f32, else null; bias [features] f32 or null; out [tokens, features] f32 where `out_is_f32`, in x's
// type elsewhere.
//
// A number of out has the same bits whichever kernel computes it, and whatever else is computed beside it. Its sum over cols
// is cut into segments of `segment` columns, a multiple of 64 that depends on the matrix's shape alone. A segment's sum begins
// at 0 and takes matrix products of 16 neighbouring columns in order, two a chunk of 32 (`multiply`); segments' sums are added
// in order, then the bias. Of a product's columns lane l of a warp has the four from 8 * (l % 2) + 4 * (l % 4 / 2) on. Sums do
// not mind which column a product calls its k-th, as long as weights and tokens agree, so that they are read 8 or 16 bytes at a
// time: of weights in memory 16, a chunk's 8 columns from 8 * (l % 4) on, and lanes l and l ^ 2 exchange halves (`exchange`).
// Weights are the products' 16-row operand, tokens the 8-column one. That a product's sum does not depend on its place in the
// fragment is how tensor cores are; the tests ask for it.
//
// Fp8: every e4m3 number is one of bf16 and of f16, so weights are expanded in registers and multiplied as 16 bits are, in the
// same order; a row's scale is applied to the total, before the bias. The bits are those of the kernels for 16 bits with
// expanded weights. Rows are padded to whole steps of 64 columns with zeros, two chunks a step: in a step lane l's 16 bytes
// are its columns of the four products, a word each, in the order 0, 2, 1, 3, so that the even bytes of a word are one pair and
// the odd ones the next. lib/e4m3.h expands them: some 9 instructions
// for 4 weights, half of what a device can issue while memory brings them.
//
// linear_rows8, linear_rows16: at most 8, 16 tokens. Block of 8 warps; a warp has 16 features and one of `splits` (1, 2, 4, 8)
// segments, so that also small matrices keep all multiprocessors loading. A lane copies its own 16 bytes of each step's rows to
// shared memory, ROWS_STAGES steps deep, and takes them from there; tokens come from the caches. The first steps' weights, and
// in the second cache some further ones, are asked for before the kernel before has ended. Grid: features / (128 / splits).
// Dynamic shared memory: ROWS_STAGES KiB a warp; static at most 10 KiB, for the sums.
// Bounded by memory: the weights' bytes, once. 9 KiB are under way a warp.
//
// linear_tile64x32, 64x64, 128x128: tiles of features x tokens. Block of 4 warps; the tile's rows of some chunks are copied
// to shared memory, STAGES deep, chunk by chunk in rows of 64 bytes, in every other pair of rows with their halves
// exchanged, so that the lanes' 8-byte reads do not collide. Grid: all tiles (lib/tiles.h). Dynamic shared memory: the stages, behind them the sums of finished segments where there is more than one (4 bytes
// a number of the tile), and in their place the results, on their way to whole rows: `Tile::shared_bytes`.
// The first two are bounded by memory where tokens are few; 128x128 by FLOPs, 2 * tokens * features * cols, at the rate of
// the warps' own matrix products.
//
// linear_add_bias: out += bias, for products by a library. Bounded by memory: 4 or 8 bytes a number.
#include "lib/platform.h"
#include "lib/vector.h"
#include "lib/tiles.h"
#include "lib/e4m3.h"

// Columns of a matrix product, its features and its tokens; columns of a chunk.
static constexpr u32 COLUMNS = 16, FEATURES = 16, TOKENS = 8, CHUNK = 2 * COLUMNS;

// What makes a lane's columns of two products of its 16 bytes of a chunk: lanes 0 and 1 of four give away the upper half and keep
// the lower, lanes 2 and 3 the reverse.
DEVICE uint4 exchange(const uint4& piece) {
    const bool keeps_upper = (threadIdx.x & 2) != 0;
    const u32 x = __shfl_xor_sync(FULL_WARP, keeps_upper ? piece.x : piece.z, 2);
    const u32 y = __shfl_xor_sync(FULL_WARP, keeps_upper ? piece.y : piece.w, 2);
    return keeps_upper ? make_uint4(x, y, piece.z, piece.w) : make_uint4(piece.x, piece.y, x, y);
}

// In shared memory piece `idx` of the 16 bytes of a row of 64 is at this place of the row.
DEVICE u32 place_of(u32 idx, u32 row) { return idx ^ (row & 2); }

// This lane's columns of a chunk's two products, of row lane / 4 from `rows` on in shared memory.
DEVICE uint4 read_columns(const uint4* rows) {
    const u32 lane = threadIdx.x % 32, row = lane / 4;
    const uint2* own = (const uint2*)(rows + 4 * row + lane % 2) + lane % 4 / 2;
    const uint2 first = own[2 * place_of(0, row)], second = own[2 * place_of(2, row)];
    return make_uint4(first.x, first.y, second.x, second.y);
}

// How weights are stored. Rows are read in steps of 64 bytes, 16 a lane, which hold CHUNKS chunks.
template <typename T_>
struct Plain {
    using T = T_;
    static constexpr u32 CHUNKS = 1;
    static constexpr bool HAS_SCALE = false;
    // What totals lack.
    static constexpr float FACTOR = 1.0f;
    // Bytes of a row of `cols` columns.
    DEVICE u32 row_bytes(u32 cols) { return 2 * cols; }
    // This lane's columns of the two products of a chunk: of the step's 16 bytes that lie at its place in memory, the chunk `c`;
    DEVICE uint4 of_memory(const uint4& piece, u32 c) { return exchange(piece); }
    // and of a step in shared memory whose row 0 is at `rows`.
    DEVICE uint4 of_shared(const uint4* rows, u32 c) { return read_columns(rows); }
};

template <typename T_>
struct Fp8 {
    using T = T_;
    static constexpr u32 CHUNKS = 2;
    static constexpr bool HAS_SCALE = true;
    static constexpr float FACTOR = E4M3_FACTOR<T>;
    DEVICE u32 row_bytes(u32 cols) { return (cols + 63) / 64 * 64; }
    DEVICE uint4 of_memory(const uint4& piece, u32 c) {
        const uint2 first = expand_e4m3<T>(c == 0 ? piece.x : piece.z), second = expand_e4m3<T>(c == 0 ? piece.y : piece.w);
        return make_uint4(first.x, first.y, second.x, second.y);
    }
    DEVICE uint4 of_shared(const uint4* rows, u32 c) {
        const u32 lane = threadIdx.x % 32;
        return of_memory(rows[lane / 4 * 4 + place_of(lane % 4, lane / 4)], c);
    }
};

// What all kernels are given.
template <typename W>
struct Product {
    void* out;
    const typename W::T* x;
    const void* weight;
    const float* scale;
    const float* bias;
    u32 tokens, features, cols, segment;
    u32 out_is_f32;
};

// The end of a number: its total with the row's scale.
template <typename W>
DEVICE float scaled(float total, float scale) {
    return W::HAS_SCALE ? __fmul_rn(total * W::FACTOR, scale) : total;
}

// sums += the two products of a chunk: this lane's columns, those of the first and then those of the second, of features g and
// g + 8 (g = lane / 4), `low` and `high`, and of token g of each of the tiles, x. The only place where products are summed.
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

// Steps of a warp's weights on their way; lines of 128 bytes of each of its rows that come to the second cache before they are needed.
static constexpr u32 ROWS_STAGES = 10, LINES_AHEAD = 8;

// A step of a warp's weights, 16 bytes a lane of the first eight rows and of the others. Each lane reads what it has copied.
struct Stage {
    uint4 low[32], high[32];
};

// The chunks of one warp: features `first_feature`.., columns start..end. `start` is a multiple of 64, `end` of 8.
template <typename W, int TILES>
DEVICE void stream(float (&sums)[TILES][4], const Product<W>& p, Stage* stages, u32 first_feature, u32 start, u32 end) {
    using T = typename W::T;
    constexpr u32 STEP = W::CHUNKS * CHUNK, STEP_BYTES = 64;
    const u32 lane = threadIdx.x % 32, g = lane / 4;
    const u32 num_steps = (end - start + STEP - 1) / STEP;
    // What is beyond the last feature or token repeats it: nobody reads those sums.
    const u64 row_bytes = W::row_bytes(p.cols);
    auto weights = [&](u32 feature) {
        return (const u8*)p.weight + min(feature, p.features - 1) * row_bytes + STEP_BYTES / STEP * start;
    };
    auto token = [&](u32 idx) { return p.x + (u64)min(idx, p.tokens - 1) * p.cols; };
    const u8* low_row = weights(first_feature + g) + 16 * (lane % 4);
    const u8* high_row = weights(first_feature + g + 8) + 16 * (lane % 4);
    // Of 16 bits a last chunk may be cut off; rows of e4m3 are padded to whole steps.
    const u32 own_bytes = W::CHUNKS > 1 ? num_steps * STEP_BYTES : 2 * (end - start) - min(16 * (lane % 4), 2 * (end - start));
    auto copy_weights = [&](u32 slot, u32 step) {
        const u32 at = step * STEP_BYTES;
        if (step < num_steps) {
            copy_async(&stages[slot].low[lane], low_row + at, at < own_bytes);
            copy_async(&stages[slot].high[lane], high_row + at, at < own_bytes);
        }
        copy_commit();
    };
    auto load_tokens = [&](uint4 (&x)[W::CHUNKS][TILES], u32 step) {
#pragma unroll
        for (int c = 0; c < W::CHUNKS; c++) {
            const u32 col = start + 8 * (lane % 2) + 4 * (lane % 4 / 2) + step * STEP + c * CHUNK;
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                const T* row = token(t * TOKENS + g);
                uint2 first = make_uint2(0, 0), second = make_uint2(0, 0);
                if (col < end) first = *(const uint2*)(row + col);
                if (col + COLUMNS < end) second = *(const uint2*)(row + col + COLUMNS);
                x[c][t] = make_uint4(first.x, first.y, second.x, second.y);
            }
        }
    };
    // Weights do not change.
    for (u32 s = 0; s + 1 < ROWS_STAGES; s++) copy_weights(s, s);
    const u8* further = weights(first_feature + lane % 16) + (ROWS_STAGES - 1) * STEP_BYTES;
    for (u32 line = lane / 16; line < LINES_AHEAD; line += 2) {
        if ((ROWS_STAGES - 1 + 2 * line) < num_steps) prefetch_line(further + 128 * line);
    }
    wait_for_kernel_before();
    uint4 x[2][W::CHUNKS][TILES];
    load_tokens(x[0], 0);
    u32 slot = 0;
    for (u32 step = 0; step < num_steps; step += 2) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            if (step + i == num_steps) break;
            load_tokens(x[1 - i], step + i + 1);
            copy_wait<ROWS_STAGES - 2>();
            const uint4 low = stages[slot].low[lane], high = stages[slot].high[lane];
#pragma unroll
            for (int c = 0; c < W::CHUNKS; c++) multiply<T, TILES>(sums, W::of_memory(low, c), W::of_memory(high, c), x[i][c]);
            copy_weights(slot == 0 ? ROWS_STAGES - 1 : slot - 1, step + i + ROWS_STAGES - 1);
            slot = slot + 1 == ROWS_STAGES ? 0 : slot + 1;
        }
    }
    copy_wait<0>();
}

template <typename W, int TILES>
DEVICE void rows(const Product<W>& p, u32 splits) {
    using T = typename W::T;
    DYNAMIC_SHARED(stages);
    __shared__ float shared[ROWS_WARPS][TILES * TOKENS][SUMS_PITCH];
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 block_features = ROWS_WARPS / splits * FEATURES, block_feature = blockIdx.x * block_features;
    const u32 first_feature = block_feature + warp / splits * FEATURES;
    const u32 start = warp % splits * p.segment, end = min(start + p.segment, p.cols);
    if (start >= end || first_feature >= p.features) {
        wait_for_kernel_before();
    } else {
        float sums[TILES][4] = {};
        stream<W, TILES>(sums, p, (Stage*)stages + warp * ROWS_STAGES, first_feature, start, end);
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
        if (W::HAS_SCALE) total = scaled<W>(total, p.scale[feature]);
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
// matrix products. A stage holds CHUNKS chunks, in steps of a form's.
template <typename W, int ROW_WARPS, int F, int N, int LEAST_CHUNKS, int STAGES_>
struct Tile {
    static constexpr u32 THREADS = 128;
    static constexpr int FEATURE_TILES = F, TOKEN_TILES = N, STAGES = STAGES_;
    static constexpr int CHUNKS = LEAST_CHUNKS > W::CHUNKS ? LEAST_CHUNKS : W::CHUNKS;
    static constexpr u32 WARP_FEATURES = F * FEATURES, WARP_TOKENS = N * TOKENS;
    static constexpr u32 COLUMN_WARPS = 4 / ROW_WARPS;
    static constexpr u32 TILE_FEATURES = ROW_WARPS * WARP_FEATURES, TILE_TOKENS = COLUMN_WARPS * WARP_TOKENS;
    // In pieces of 16 bytes, 4 a row: a step's weights, and behind them its chunks of tokens, with a half of the banks
    // between chunks, so that copies do not collide.
    static constexpr u32 WEIGHT_PIECES = 4 * TILE_FEATURES, TOKEN_PIECES = 4 * TILE_TOKENS + (CHUNKS > 1 ? 4 : 0);
    static constexpr u32 STEP_PIECES = WEIGHT_PIECES + W::CHUNKS * TOKEN_PIECES, STEPS = CHUNKS / W::CHUNKS;
    static constexpr u32 STAGE_PIECES = STEPS * STEP_PIECES;
    // Of results in shared memory, in floats: lanes of different tokens write to different banks.
    static constexpr u32 PITCH = TILE_FEATURES + 4;
};
template <typename W>
using Tile64x32 = Tile<W, 4, 1, 4, 2, 7>;
template <typename W>
using Tile64x64 = Tile<W, 2, 2, 4, 2, 5>;
template <typename W>
using Tile128x128 = Tile<W, 2, 4, 8, 1, 3>;

// This thread's share of copying the rows of one matrix that a tile has: always the same 16 bytes of a step.
struct Share {
    const u8* from;
    u64 pass_stride;
    // Whether there is a row, by pass.
    u32 is_row;
};

// Rows that all threads copy at a time, STEPS steps of 64 bytes of each, and this thread's place in such a row.
template <u32 STEPS>
static constexpr u32 ROWS_PER_PASS = 128 / (4 * STEPS);
template <u32 STEPS>
DEVICE u32 share_byte() {
    return threadIdx.x % (4 * STEPS) * 16;
}

// Of rows first_row.. of the `rows` of a matrix.
template <u32 TILE_ROWS, u32 STEPS>
DEVICE Share share_of(const void* matrix, u32 row_bytes, u32 first_row, u32 rows) {
    constexpr u32 STRIDE = ROWS_PER_PASS<STEPS>, PASSES = TILE_ROWS / STRIDE;
    static_assert(TILE_ROWS % STRIDE == 0 && PASSES <= 32, "passes are whole, and a bit each");
    const u32 row = first_row + threadIdx.x / (4 * STEPS);
    Share share = {(const u8*)matrix + (u64)row * row_bytes + share_byte<STEPS>(), (u64)STRIDE * row_bytes, 0};
#pragma unroll
    for (u32 i = 0; i < PASSES; i++) share.is_row |= (u32)(row + i * STRIDE < rows) << i;
    return share;
}

// Starts the copies of the steps from byte `first` of the rows on to `to`, where the rows of the first begin; those of the
// next are `step_pieces` after them.
template <u32 TILE_ROWS, u32 STEPS>
DEVICE void start_copies(uint4* to, u32 step_pieces, const Share& share, u32 first, u32 row_bytes) {
    const u32 row = threadIdx.x / (4 * STEPS);
    static_assert(ROWS_PER_PASS<STEPS> % 4 == 0, "a thread's rows have their pieces in one order");
    uint4* piece = to + threadIdx.x / 4 % STEPS * step_pieces + row * 4 + place_of(threadIdx.x % 4, row);
    const u8* at = share.from + first;
    const u32 is_there = first + share_byte<STEPS>() < row_bytes ? share.is_row : 0;
#pragma unroll
    for (u32 i = 0; i < TILE_ROWS / ROWS_PER_PASS<STEPS>; i++) {
        copy_async(piece + i * ROWS_PER_PASS<STEPS> * 4, at + i * share.pass_stride, is_there >> i & 1);
    }
}

// One chunk of a warp, the `c`th of its step: its rows of weights and of tokens begin at `weights` and `x`.
template <typename W, typename S>
DEVICE void multiply_tile(float (&sums)[S::FEATURE_TILES][S::TOKEN_TILES][4], const uint4* weights, const uint4* x, u32 c) {
    uint4 tokens[S::TOKEN_TILES], low[2], high[2];
    low[0] = W::of_shared(weights, c);
    high[0] = W::of_shared(weights + 4 * 8, c);
#pragma unroll
    for (int t = 0; t < S::TOKEN_TILES; t++) tokens[t] = read_columns(x + t * 4 * TOKENS);
#pragma unroll
    for (int f = 0; f < S::FEATURE_TILES; f++) {
        if (f + 1 < S::FEATURE_TILES) {
            low[(f + 1) % 2] = W::of_shared(weights + (f + 1) * 4 * FEATURES, c);
            high[(f + 1) % 2] = W::of_shared(weights + (f + 1) * 4 * FEATURES + 4 * 8, c);
        }
        multiply<typename W::T, S::TOKEN_TILES>(sums[f], low[f % 2], high[f % 2], tokens);
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
template <typename W, typename Out, typename S>
DEVICE void write_tile(Out* out, const Product<W>& p, const float* results, u32 first_token, u32 first_feature) {
    constexpr int WIDTH = 8;
    const bool is_aligned = p.features % WIDTH == 0;
    for (u32 idx = threadIdx.x; idx < S::TILE_TOKENS * S::TILE_FEATURES / WIDTH; idx += S::THREADS) {
        const u32 token = idx / (S::TILE_FEATURES / WIDTH), at = idx % (S::TILE_FEATURES / WIDTH) * WIDTH;
        if (first_token + token >= p.tokens) break;
        float values[WIDTH], scale[WIDTH], bias[WIDTH];
        load_vector<float, WIDTH>(values, results + token * S::PITCH + at);
        if (W::HAS_SCALE) {
            load_part<float, WIDTH>(scale, p.scale, first_feature + at, p.features, is_aligned);
#pragma unroll
            for (int i = 0; i < WIDTH; i++) values[i] = scaled<W>(values[i], scale[i]);
        }
        if (p.bias != nullptr) {
            load_part<float, WIDTH>(bias, p.bias, first_feature + at, p.features, is_aligned);
#pragma unroll
            for (int i = 0; i < WIDTH; i++) values[i] += bias[i];
        }
        store_part<Out, WIDTH>(out + (u64)(first_token + token) * p.features, values, first_feature + at, p.features, is_aligned);
    }
}

template <typename W, typename S>
DEVICE void tile(const Product<W>& p) {
    using T = typename W::T;
    DYNAMIC_SHARED(shared);
    uint4* stages = (uint4*)shared;
    float4* totals = (float4*)(stages + S::STAGES * S::STAGE_PIECES);
    float* results = (float*)shared;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const TilePlace place = tile_place(blockIdx.x, p.tokens, p.features, S::TILE_TOKENS, S::TILE_FEATURES);
    const u32 first_feature = place.first_feature, first_token = place.first_token;
    const u32 weight_bytes = W::row_bytes(p.cols), token_bytes = 2 * p.cols;
    const Share weights = share_of<S::TILE_FEATURES, S::STEPS>(p.weight, weight_bytes, first_feature, p.features);
    const Share tokens = share_of<S::TILE_TOKENS, S::CHUNKS>(p.x, token_bytes, first_token, p.tokens);
    // Where the tokens of a chunk begin in a stage. Where a step has several chunks, a stage has one step.
    static_assert(W::CHUNKS == 1 || S::STEPS == 1, "chunks of tokens are equally far from one another");
    constexpr u32 TOKEN_STRIDE = W::CHUNKS == 1 ? S::STEP_PIECES : S::TOKEN_PIECES;
    const u32 warp_feature = warp / S::COLUMN_WARPS * S::WARP_FEATURES, warp_token = warp % S::COLUMN_WARPS * S::WARP_TOKENS;
    const u32 num_chunks = (p.cols + CHUNK - 1) / CHUNK, segment_chunks = p.segment / CHUNK;
    auto copy = [&](u32 first_chunk, u32 slot) {
        uint4* stage = stages + slot * S::STAGE_PIECES;
        if (first_chunk < num_chunks) {
            start_copies<S::TILE_FEATURES, S::STEPS>(stage, S::STEP_PIECES, weights, first_chunk / W::CHUNKS * 64, weight_bytes);
            start_copies<S::TILE_TOKENS, S::CHUNKS>(stage + S::WEIGHT_PIECES, TOKEN_STRIDE, tokens, first_chunk * 64, token_bytes);
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
            const uint4* rows = stage + c / W::CHUNKS * S::STEP_PIECES;
            const uint4* x = stage + S::WEIGHT_PIECES + c * TOKEN_STRIDE;
            multiply_tile<W, S>(sums, rows + warp_feature * 4, x + warp_token * 4, c % W::CHUNKS);
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
        write_tile<W, float, S>((float*)p.out, p, results, first_token, first_feature);
    } else {
        write_tile<W, T, S>((T*)p.out, p, results, first_token, first_feature);
    }
}

template <typename T>
DEVICE void add_bias(T* out, const float* bias, u32 features) {
    wait_for_kernel_before();
    const u32 feature = blockIdx.y * blockDim.x + threadIdx.x;
    T* at = out + (u64)blockIdx.x * features + feature;
    if (feature < features) *at = from_float<T>(to_float(*at) + bias[feature]);
}

#define PRODUCT {out, x, weight, scale, bias, tokens, features, cols, segment, out_is_f32}
#define ARGUMENTS(T)                                                                                                   \
    void *out, const T *x, const void *weight, const float *scale, const float *bias, u32 tokens, u32 features,        \
        u32 cols, u32 segment, u32 out_is_f32
#define ROWS(FORM, T, NAME, MAX)                                                                                       \
    extern "C" __global__ void __launch_bounds__(ROWS_WARPS * 32, 2)                                                   \
        linear_rows##MAX##_##NAME(ARGUMENTS(T), u32 splits) {                                                          \
        rows<FORM<T>, MAX / TOKENS>(PRODUCT, splits);                                                                  \
    }                                                                                                                  \
    EXPORT_KERNEL(linear_rows##MAX##_##NAME)
#define TILE(FORM, T, NAME, SHAPE)                                                                                     \
    extern "C" __global__ void __launch_bounds__(128, 2) linear_tile##SHAPE##_##NAME(ARGUMENTS(T)) {                   \
        tile<FORM<T>, Tile##SHAPE<FORM<T>>>(PRODUCT);                                                                  \
    }                                                                                                                  \
    EXPORT_KERNEL(linear_tile##SHAPE##_##NAME)
#define ADD_BIAS(T)                                                                                                    \
    extern "C" __global__ void linear_add_bias_##T(T* out, const float* bias, u32 features) {                          \
        add_bias<T>(out, bias, features);                                                                              \
    }                                                                                                                  \
    EXPORT_KERNEL(linear_add_bias_##T)
#define KERNELS(FORM, T, NAME)                                                                                         \
    ROWS(FORM, T, NAME, 8)                                                                                             \
    ROWS(FORM, T, NAME, 16)                                                                                            \
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
