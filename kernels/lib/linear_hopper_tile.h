// Tiles of products whose operands come as boxes from memory to the tensor cores, with nothing done to them on the way
// (linear_hopper.cu, linear_w8a8_hopper.cu, which say what they compute). After linear_hopper.h.
//
// In: what is multiplied; T: the type of results that are not f32. Columns are counted in 16 bits, so that two of e4m3 are one.
#pragma once

// How a tile's sums become results.
enum Ending { SPLIT, SPLIT_GATED, WHOLE, SEGMENTS, GATED };

template <typename In, typename T, int GROUPS, int PARTS, int TILE_FEATURES, u32 STAGES, Ending ENDING>
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
            if (!is_over(share)) place = place_of(call, tile);
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
        multiply<In, TILE_FEATURES>(sums, shared, pass, begin, end, [&](u32 stage) { leave(shared, stage); });
    }

    // The first half of the totals is gate's, the second up's; both are rounded as linear.cu stores them.
    DEVICE void store_gated(const Call& call, const TilePlace& place, float (&totals)[LEN], u32 kind) {
        constexpr int HALF = BLOCKS / 2;
        const u32 feature = place.first_feature;
        Results::template apply_scale<HALF>(call, place, totals, feature, call.features);
        Results::template apply_scale<HALF>(call, place, totals + LEN / 2, call.features + feature, 2 * call.features);
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
                values[j] = gated(gate, up, kind);
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
                multiply_segments<In, TILE_FEATURES>(sums[0], call, shared, pass, leave_stage);
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
