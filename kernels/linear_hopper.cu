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

// How a tile's sums become results.
enum Ending { SPLIT, SPLIT_GATED, WHOLE, SEGMENTS, GATED };

template <typename T, int GROUPS, int PARTS, int TILE_FEATURES, u32 STAGES, Ending ENDING>
struct Tile {
    static constexpr bool IS_SPLIT = ENDING == SPLIT || ENDING == SPLIT_GATED, IS_GATED = ENDING == GATED || ENDING == SPLIT_GATED;
    static_assert(PARTS == 1 || IS_SPLIT, "others store the tokens of one part");
    static constexpr u32 TOKENS = GROUPS * PARTS * GROUP_TOKENS, CONSUMERS = GROUPS * GROUP_THREADS;
    // Warps that bring stages.
    static constexpr u32 PRODUCERS = IS_SPLIT ? 2 : 4;
    static constexpr u32 OUT_FEATURES = IS_GATED ? TILE_FEATURES / 2 : TILE_FEATURES;
    static constexpr u32 TOKEN_BYTES = TOKENS * ROW_BYTES, WEIGHT_BYTES = TILE_FEATURES * ROW_BYTES;
    using Results = ::Results<T, TILE_FEATURES>;
    static constexpr int LEN = Results::LEN, BLOCKS = Results::BLOCKS;

    struct Shared {
        u8 tokens[STAGES][TOKEN_BYTES];
        u8 weights[STAGES][WEIGHT_BYTES];
        CopyBarrier is_there[STAGES], is_left[STAGES];
    };

    DEVICE TilePlace place_of(const Call& call, u32 tile) {
        return tile_place(tile, call.tokens, call.features, TOKENS, OUT_FEATURES);
    }

    // A stage of it. Where a tile is takes long to say: once a tile.
    struct Cursor {
        u32 tile, col;
        TilePlace place;

        __device__ __forceinline__ Cursor(const Call& call, const Share& share)
            : tile(share.first), col(share.begin), place(place_of(call, tile)) {}
        __device__ __forceinline__ bool is_over(const Share& share) const { return tile >= share.num; }
        __device__ __forceinline__ void advance(const Call& call, const Share& share) {
            col += STEP;
            if (col < share.end) return;
            col = share.begin;
            tile += share.stride;
            place = place_of(call, tile);
        }
    };

    // A stage's boxes, of tokens and then of weights, are shared among the producers' warps, each of which has every PRODUCERS-th.
    static constexpr u32 TOKEN_BOXES = TOKENS / BOX_ROWS, BOXES = TOKEN_BOXES + TILE_FEATURES / BOX_ROWS;

    DEVICE void bring_weights(const Call& call, Shared& shared, u32 stage, const Cursor& step, u32 producer) {
        CopyBarrier* is_there = &shared.is_there[stage];
        if (producer == 0) barrier_arrive_expecting(is_there, TOKEN_BYTES + WEIGHT_BYTES);
#pragma unroll 1
        for (u32 i = producer + tiles_of(TOKEN_BOXES - min(producer, TOKEN_BOXES), PRODUCERS) * PRODUCERS; i < BOXES; i += PRODUCERS) {
            const u32 row = (i - TOKEN_BOXES) * BOX_ROWS;
            const u32 of_half = IS_GATED && row >= OUT_FEATURES ? call.features + row - OUT_FEATURES : row;
            const u32 from = step.place.first_feature + of_half;
            u8* to = shared.weights[stage] + row * ROW_BYTES;
            copy_box(to, call.weight, is_there, step.col, from, 0);
        }
    }

    DEVICE void bring_tokens(const Call& call, Shared& shared, u32 stage, const Cursor& step, u32 producer) {
#pragma unroll 1
        for (u32 i = producer; i < TOKEN_BOXES; i += PRODUCERS) {
            const u32 row = i * BOX_ROWS;
            u8* to = shared.tokens[stage] + row * ROW_BYTES;
            copy_box(to, call.x, &shared.is_there[stage], step.col, step.place.first_token + row, 0);
        }
    }

    // One thread of a warp.
    DEVICE void produce(const Call& call, Shared& shared, const Share& share, u32 producer) {
        Pass<STAGES> pass;
        Cursor step(call, share), ahead = step;
        // Weights do not change.
        u32 num_ahead = 0;
        for (; num_ahead < STAGES && !ahead.is_over(share); num_ahead++, ahead.advance(call, share)) {
            bring_weights(call, shared, num_ahead, ahead, producer);
        }
        wait_for_writes();
        for (; !step.is_over(share); pass.advance(), step.advance(call, share)) {
            if (num_ahead > 0) {
                num_ahead--;
            } else {
                barrier_wait(&shared.is_left[pass.stage], pass.parity ^ 1);
                bring_weights(call, shared, pass.stage, step, producer);
            }
            bring_tokens(call, shared, pass.stage, step, producer);
        }
    }

    // Each warp says for itself that it has left a stage.
    DEVICE void leave(Shared& shared, u32 stage) {
        if (threadIdx.x % 32 == 0) barrier_arrive(&shared.is_left[stage]);
    }

    DEVICE void multiply_stages(float (&sums)[PARTS][LEN], Shared& shared, Pass<STAGES>& pass, u32 begin, u32 end) {
        multiply<T, TILE_FEATURES>(sums, shared, pass, begin, end, [&](u32 stage) { leave(shared, stage); });
    }

    // The first half of the totals is gate's, the second up's; both are rounded as linear.cu stores them.
    DEVICE void store_gated(const Call& call, const TilePlace& place, float (&totals)[LEN], u32 kind) {
        constexpr int HALF = BLOCKS / 2;
        const u32 feature = place.first_feature;
        Results::template add_bias<HALF>(call, totals, feature, call.features);
        Results::template add_bias<HALF>(call, totals + LEN / 2, call.features + feature, 2 * call.features);
        u32 words[2][HALF];
#pragma unroll
        for (int i = 0; i < 2 * HALF; i++) {
            float values[2];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const float gate = to_float(from_float<T>(totals[2 * i + j]));
                const float up = to_float(from_float<T>(totals[LEN / 2 + 2 * i + j]));
                values[j] = __fmul_rn(activation(gate, kind), up);
            }
            words[i % 2][i / 2] = pack<T>(values[0], values[1]);
        }
        Results::template store_words<HALF>(call, place, words);
    }

    // Tile after tile.
    DEVICE void consume(const Call& call, Shared& shared, const Share& share, u32 kind) {
        Pass<STAGES> pass;
        for (u32 tile = share.first; tile < share.num; tile += share.stride) {
            float sums[PARTS][LEN];
            const TilePlace place = place_of(call, tile);
            if constexpr (ENDING == SEGMENTS) {
                const auto leave_stage = [&](u32 stage) { leave(shared, stage); };
                multiply_segments<T, TILE_FEATURES>(sums[0], call, shared, pass, leave_stage);
                Results::store(call, place, sums[0]);
            } else {
                multiply_stages(sums, shared, pass, share.begin, share.end);
#pragma unroll
                for (int i = 0; i < LEN; i++) sums[0][i] = 0.0f + sums[0][i];
                if constexpr (ENDING == GATED) {
                    store_gated(call, place, sums[0], kind);
                } else {
                    Results::store(call, place, sums[0]);
                }
            }
        }
    }

    using Sums = SplitSums<T, TILE_FEATURES, GROUPS, PARTS>;
    static_assert(!IS_SPLIT || Sums::BYTES <= STAGES * (TOKEN_BYTES + WEIGHT_BYTES), "sums take the stages' place");

    // The segment of this block, if it has one; then its share of the tile.
    DEVICE void consume_split(const Call& call, Shared& shared, const Share& share, u32 splits, u32 kind) {
        float* own = (float*)shared.tokens;
        if (!share.is_empty()) {
            Pass<STAGES> pass;
            float sums[PARTS][LEN];
            multiply_stages(sums, shared, pass, share.begin, share.end);
            Sums::put(own, sums);
        }
        Sums::template add<IS_GATED>(call, place_of(call, blockIdx.x / splits), own, splits, kind);
    }

    DEVICE Share share_of(const Call& call, u32 splits) {
        const u32 num_tiles = tiles_of(call.tokens, TOKENS) * tiles_of(call.features, OUT_FEATURES);
        return IS_SPLIT ? split_share(call, num_tiles, splits) : whole_share(call, num_tiles);
    }

    // `last`: a tile's splits, or what gate is activated by, which takes one segment.
    DEVICE void run(const Call& call, u32 last) {
        const u32 splits = IS_GATED ? 1 : last, kind = last;
        DYNAMIC_SHARED(memory);
        Shared& shared = *(Shared*)(memory + (0 - shared_address(memory)) % 1024);
        if (threadIdx.x == 0) {
            prefetch_map(call.x);
            prefetch_map(call.weight);
            for (u32 i = 0; i < STAGES; i++) {
                barrier_init(&shared.is_there[i], 1);
                barrier_init(&shared.is_left[i], CONSUMERS / 32);
            }
            barrier_init_done();
        }
        __syncthreads();
        // What is known before registers change hands has few of them: each role finds out for itself what there is to do.
        if (threadIdx.x / GROUP_THREADS == GROUPS) {
            if constexpr (!IS_SPLIT) give_registers<40>();
            if (threadIdx.x % 32 == 0) {
                produce(call, shared, share_of(call, splits), (threadIdx.x - CONSUMERS) / 32);
            } else {
                wait_for_writes();
            }
        } else {
            if constexpr (!IS_SPLIT) take_registers<232>();
            wait_for_writes();
            if constexpr (IS_SPLIT) {
                consume_split(call, shared, share_of(call, splits), splits, kind);
            } else {
                consume(call, shared, share_of(call, splits), kind);
            }
        }
    }
};

#define CALL {out, &x, &weight, nullptr, bias, tokens, features, cols, segment, out_is_f32}
#define ARGUMENTS                                                                                                      \
    void *out, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight, const float *bias,       \
        u32 tokens, u32 features, u32 cols, u32 segment, u32 out_is_f32
#define LINEAR(T, NAME, GROUPS, PARTS, FEATURES, STAGES, ENDING, THREADS, BLOCKS, LAST)                                \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                      \
        linear_hopper_##NAME##_##T(ARGUMENTS, u32 LAST) {                                                              \
        const Call call = CALL;                                                                                        \
        Tile<T, GROUPS, PARTS, FEATURES, STAGES, ENDING>::run(call, LAST);                                             \
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
