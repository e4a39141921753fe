// Tiles of linear's products, features by tokens, on all devices (linear.cu, linear_quant.cu): the tile's rows of some chunks are copied
// to shared memory, STAGES deep, tokens chunk by chunk in rows of 64 bytes, in every other pair of rows with their halves
// exchanged, so that the lanes' 8-byte reads do not collide. After vector.h, tiles.h and linear.h.
#pragma once

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
    // In pieces of 16 bytes: a step's weights, and behind them its chunks of tokens, with a half of the banks
    // between chunks, so that copies do not collide.
    static constexpr u32 WEIGHT_PIECES = TILE_FEATURES / FEATURES * W::TILE_BYTES / 16, TOKEN_PIECES = 4 * TILE_TOKENS + (CHUNKS > 1 ? 4 : 0);
    static constexpr u32 STEP_PIECES = WEIGHT_PIECES + W::CHUNKS * TOKEN_PIECES, STEPS = CHUNKS / W::CHUNKS;
    static constexpr u32 STAGE_PIECES = STEPS * STEP_PIECES;
    // Of results in shared memory, in floats: lanes of different tokens write to different banks.
    static constexpr u32 PITCH = TILE_FEATURES + 4;
};
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

// A tile's weights: `start` has the steps from a chunk on copied, and `read` gives this lane's columns of a chunk's two products, the
// `c`th of a step, of rows lane / 4 + 8 * half of the `f`th 16 of its warp's. Those whose rows follow one another:
template <typename W, typename S>
struct TileWeights {
    Share share;
    u32 row_bytes;

    __device__ __forceinline__ TileWeights(const Product<W>& p, u32 first_feature)
        : share(share_of<S::TILE_FEATURES, S::STEPS>(p.weight, W::row_bytes(p.cols), first_feature, p.features)),
          row_bytes(W::row_bytes(p.cols)) {}
    __device__ __forceinline__ void start(uint4* stage, u32 first_chunk) const {
        start_copies<S::TILE_FEATURES, S::STEPS>(stage, S::STEP_PIECES, share, first_chunk / W::CHUNKS * 64, row_bytes);
    }
    __device__ __forceinline__ uint4 read(const uint4* step, u32 warp_feature, u32 f, u32 half, u32 c) {
        return W::of_shared(step + 4 * (warp_feature + f * FEATURES + half * 8), c);
    }
};

// One chunk of a warp, the `c`th of its step, which begins at `step`; its rows of tokens begin at `x`.
template <typename W, typename S>
DEVICE void multiply_tile(float (&sums)[S::FEATURE_TILES][S::TOKEN_TILES][4], TileWeights<W, S>& weights, const uint4* step,
                          u32 warp_feature, const uint4* x, u32 c) {
    uint4 tokens[S::TOKEN_TILES], low[2], high[2];
    low[0] = weights.read(step, warp_feature, 0, 0, c);
    high[0] = weights.read(step, warp_feature, 0, 1, c);
#pragma unroll
    for (int t = 0; t < S::TOKEN_TILES; t++) tokens[t] = read_columns(x + t * 4 * TOKENS);
#pragma unroll
    for (int f = 0; f < S::FEATURE_TILES; f++) {
        if (f + 1 < S::FEATURE_TILES) {
            low[(f + 1) % 2] = weights.read(step, warp_feature, f + 1, 0, c);
            high[(f + 1) % 2] = weights.read(step, warp_feature, f + 1, 1, c);
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
    const bool is_aligned = p.features % WIDTH == 0 && p.stride % WIDTH == 0;
    for (u32 idx = threadIdx.x; idx < S::TILE_TOKENS * S::TILE_FEATURES / WIDTH; idx += S::THREADS) {
        const u32 token = idx / (S::TILE_FEATURES / WIDTH), at = idx % (S::TILE_FEATURES / WIDTH) * WIDTH;
        if (first_token + token >= p.tokens) break;
        float values[WIDTH], scale[WIDTH], bias[WIDTH];
        const float4* from = (const float4*)(results + token * S::PITCH + at);
        const float4 first = from[first_half()], second = from[1 - first_half()];
        values[0] = first.x, values[1] = first.y, values[2] = first.z, values[3] = first.w;
        values[4] = second.x, values[5] = second.y, values[6] = second.z, values[7] = second.w;
        order_halves(values);
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
        store_part<Out, WIDTH>(out + (u64)(first_token + token) * p.stride, values, first_feature + at, p.features, is_aligned);
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
    const u32 token_bytes = 2 * p.cols;
    TileWeights<W, S> weights(p, first_feature);
    const Share tokens = share_of<S::TILE_TOKENS, S::CHUNKS>(p.x, token_bytes, first_token, p.tokens);
    // Where the tokens of a chunk begin in a stage. Where a step has several chunks, a stage has one step.
    static_assert(W::CHUNKS == 1 || S::STEPS == 1, "chunks of tokens are equally far from one another");
    constexpr u32 TOKEN_STRIDE = W::CHUNKS == 1 ? S::STEP_PIECES : S::TOKEN_PIECES;
    const u32 warp_feature = warp / S::COLUMN_WARPS * S::WARP_FEATURES, warp_token = warp % S::COLUMN_WARPS * S::WARP_TOKENS;
    const u32 num_chunks = (p.cols + CHUNK - 1) / CHUNK, segment_chunks = p.segment / CHUNK;
    auto copy = [&](u32 first_chunk, u32 slot) {
        uint4* stage = stages + slot * S::STAGE_PIECES;
        if (first_chunk < num_chunks) {
            weights.start(stage, first_chunk);
            start_copies<S::TILE_TOKENS, S::CHUNKS>(stage + S::WEIGHT_PIECES, TOKEN_STRIDE, tokens, first_chunk * 64, token_bytes);
        }
        copy_commit();
    };
    wait_for_writes();
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
            const uint4* step = stage + c / W::CHUNKS * S::STEP_PIECES;
            const uint4* x = stage + S::WEIGHT_PIECES + c * TOKEN_STRIDE;
            multiply_tile<W, S>(sums, weights, step, warp_feature, x + warp_token * 4, c % W::CHUNKS);
            // Segments are whole steps.
            if ((c + 1) % W::CHUNKS == 0 && first_chunk + c + 1 == segment_end && segment_end < num_chunks) {
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
    let_next_begin();
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

#define TILE(FORM, T, NAME, SHAPE)                                                                                     \
    extern "C" __global__ void __launch_bounds__(128, 2) linear_tile##SHAPE##_##NAME(ARGUMENTS(T)) {                   \
        tile<FORM<T>, Tile##SHAPE<FORM<T>>>(PRODUCT);                                                                  \
    }                                                                                                                  \
    EXPORT_KERNEL(linear_tile##SHAPE##_##NAME)
