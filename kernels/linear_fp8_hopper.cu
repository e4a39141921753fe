// linear_fp8_hopper: what linear.cu computes of e4m3 weights and many tokens, on Hopper (sm_90a) alone, with the bits that
// linear_hopper.cu has of the same numbers in 16 bits.
//
// x, bias, out: linear_hopper.cu's. weight: boxes, 64 x 64 as if they were of 16 bits, of [features][cols rounded up to 64] codes in
// linear.cu's order; scale [features] f32.
//
// A block's one or two warpgroups multiply, 64 tokens each; a further one expands: of the 128 columns of codes that come at a time it
// makes two stages of weights in 16 bits, swizzled as boxes of them would be, which is some 330 instructions for each of its
// threads. Of what is left one thread brings codes, which do not wait for the kernel before, and another tokens.
//
// linear_fp8_hopper: tiles of 128 tokens and 128 features, any number of segments, tile after tile by as many blocks as there are
// multiprocessors. Grid: at most the tiles. 512 threads.
// linear_fp8_hopper_split_<tokens>x128: tiles of 64 or 128 tokens; a cluster of `splits` blocks has a tile, a block one of its segments
// (or none), as linear_hopper.cu's do. Grid: splits * tiles. 320 or 448 threads.
// Dynamic shared memory: 1024 bytes, for what is in it begins at a multiple of that; STAGES stages of 128 bytes a token and feature;
// CODE_STAGES of 16 KB; 256 bytes of barriers.
//
// Bounded by the weights' bytes of few tokens, by FLOPs, 2 * tokens * features * cols, of many.
#include "lib/platform.h"
#include "lib/hopper.h"
#include "lib/vector.h"
#include "lib/activation.h"
#include "lib/tiles.h"
#include "lib/e4m3.h"
#include "lib/linear_hopper.h"

static constexpr u32 FEATURES = 128;
// Columns of a stage of codes, and threads that expand a step of it.
static constexpr u32 CODES = 128, EXPANDERS = 64;

template <typename T, int GROUPS, u32 STAGES, u32 CODE_STAGES, bool IS_SPLIT>
struct Tile {
    static constexpr u32 TOKENS = GROUPS * GROUP_TOKENS, CONSUMERS = GROUPS * GROUP_THREADS;
    static constexpr u32 TOKEN_BYTES = TOKENS * ROW_BYTES, WEIGHT_BYTES = FEATURES * ROW_BYTES;

    struct Shared {
        u8 tokens[STAGES][TOKEN_BYTES];
        u8 weights[STAGES][WEIGHT_BYTES];
        u8 codes[CODE_STAGES][WEIGHT_BYTES];
        CopyBarrier is_there[STAGES], is_left[STAGES], has_codes[CODE_STAGES], codes_left[CODE_STAGES];
    };

    DEVICE TilePlace place_of(const Call& call, u32 tile) {
        return tile_place(tile, call.tokens, call.features, TOKENS, FEATURES);
    }

    DEVICE Share share_of(const Call& call, u32 splits) {
        const u32 num_tiles = tiles_of(call.tokens, TOKENS) * tiles_of(call.features, FEATURES);
        return IS_SPLIT ? split_share(call, num_tiles, splits) : whole_share(call, num_tiles);
    }

    // Weights do not change: the first of them do not wait for the kernel before.
    DEVICE void bring_codes(const Call& call, Shared& shared, const Share& share) {
        Pass<CODE_STAGES> pass;
        u32 num_ahead = 0;
        for (u32 tile = share.first; tile < share.num; tile += share.stride) {
            const u32 first = place_of(call, tile).first_feature;
            for (u32 col = share.begin; col < share.end; col += CODES, pass.advance()) {
                if (num_ahead++ == CODE_STAGES) wait_for_writes();
                CopyBarrier* has_codes = &shared.has_codes[pass.stage];
                barrier_wait(&shared.codes_left[pass.stage], pass.parity ^ 1);
                barrier_arrive_expecting(has_codes, WEIGHT_BYTES);
#pragma unroll
                for (u32 row = 0; row < FEATURES; row += BOX_ROWS) {
                    // In units of 16 bits.
                    copy_box(shared.codes[pass.stage] + row * ROW_BYTES, call.weight, has_codes, col / 2, first + row, 0);
                }
            }
        }
        if (num_ahead <= CODE_STAGES) wait_for_writes();
    }

    DEVICE void bring_tokens(const Call& call, Shared& shared, const Share& share) {
        Pass<STAGES> pass;
        for (u32 tile = share.first; tile < share.num; tile += share.stride) {
            const u32 first = place_of(call, tile).first_token;
            for (u32 col = share.begin; col < share.end; col += STEP, pass.advance()) {
                CopyBarrier* is_there = &shared.is_there[pass.stage];
                barrier_wait(&shared.is_left[pass.stage], pass.parity ^ 1);
                barrier_arrive_expecting(is_there, TOKEN_BYTES);
#pragma unroll
                for (u32 row = 0; row < TOKENS; row += BOX_ROWS) {
                    copy_box(shared.tokens[pass.stage] + row * ROW_BYTES, call.x, is_there, col, first + row, 0);
                }
            }
        }
    }

    // Each warp says for itself that it has done with a barrier's stage.
    DEVICE void arrive(CopyBarrier& barrier) {
        if (threadIdx.x % 32 == 0) barrier_arrive(&barrier);
    }

    // A thread's rows of a step: of a row's four pieces of 16 codes, each a lane's share of four products, every four codes become 8
    // bytes. Every other eight rows take the pieces in another order, so that two rows of a warp do not write to the same banks.
    DEVICE void expand(u8* weights, const u8* codes, u32 half) {
#pragma unroll
        for (u32 row = threadIdx.x % EXPANDERS; row < FEATURES; row += EXPANDERS) {
            const u32 turned = row / 8 % 2 * 2;
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const u32 lane = i ^ turned;
                const uint4 piece = *(const uint4*)(codes + row * ROW_BYTES + ((half * 4 + lane) ^ row % 8) * 16);
                const u32 words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
                for (u32 product = 0; product < 4; product++) {
                    const u32 place = (2 * product + lane % 2) ^ row % 8;
                    *(uint2*)(weights + row * ROW_BYTES + place * 16 + lane / 2 * 8) = expand_e4m3<T>(words[product]);
                }
            }
        }
    }

    // Half of the threads expand the first step of a stage of codes, half the second: so each has the time of two.
    DEVICE void expand_all(const Call& call, Shared& shared, const Share& share) {
        const u32 own_half = threadIdx.x / EXPANDERS % 2;
        Pass<STAGES> pass;
        Pass<CODE_STAGES> code_pass;
        for (u32 tile = share.first; tile < share.num; tile += share.stride) {
            for (u32 col = share.begin; col < share.end; col += STEP, pass.advance()) {
                const u32 half = (col - share.begin) / STEP % 2;
                if (half == 0) barrier_wait(&shared.has_codes[code_pass.stage], code_pass.parity);
                if (half == own_half) {
                    barrier_wait(&shared.is_left[pass.stage], pass.parity ^ 1);
                    expand(shared.weights[pass.stage], shared.codes[code_pass.stage], half);
                    publish_shared();
                    __syncwarp();
                    arrive(shared.is_there[pass.stage]);
                }
                if (half == 1 || col + STEP >= share.end) {
                    arrive(shared.codes_left[code_pass.stage]);
                    code_pass.advance();
                }
            }
        }
    }

    using Sums = SplitSums<T, FEATURES, GROUPS, 1>;
    static_assert(Sums::BYTES <= STAGES * (TOKEN_BYTES + WEIGHT_BYTES), "sums take the stages' place");

    DEVICE void consume(const Call& call, Shared& shared, const Share& share, u32 splits) {
        using Results = ::Results<T, FEATURES>;
        Pass<STAGES> pass;
        const auto leave_stage = [&](u32 stage) { arrive(shared.is_left[stage]); };
        if constexpr (IS_SPLIT) {
            float* own = (float*)shared.tokens;
            if (!share.is_empty()) {
                float sums[1][Results::LEN];
                multiply<T, FEATURES>(sums, shared, pass, share.begin, share.end, leave_stage);
                Sums::put(own, sums);
            }
            Sums::template add<false>(call, place_of(call, blockIdx.x / splits), own, splits, 0);
        } else {
            for (u32 tile = share.first; tile < share.num; tile += share.stride) {
                float totals[Results::LEN];
                multiply_segments<T, FEATURES>(totals, call, shared, pass, leave_stage);
                Results::store(call, place_of(call, tile), totals);
            }
        }
    }

    DEVICE void run(const Call& call, u32 splits) {
        DYNAMIC_SHARED(memory);
        Shared& shared = *(Shared*)(memory + (0 - shared_address(memory)) % 1024);
        if (threadIdx.x == 0) {
            prefetch_map(call.x);
            prefetch_map(call.weight);
            for (u32 i = 0; i < STAGES; i++) {
                // The tokens' bringer, and the warps that expand.
                barrier_init(&shared.is_there[i], 1 + EXPANDERS / 32);
                barrier_init(&shared.is_left[i], CONSUMERS / 32);
            }
            for (u32 i = 0; i < CODE_STAGES; i++) {
                barrier_init(&shared.has_codes[i], 1);
                barrier_init(&shared.codes_left[i], GROUP_THREADS / 32);
            }
            barrier_init_done();
        }
        __syncthreads();
        // Where blocks are split, registers suffice for all threads.
        const u32 warpgroup = threadIdx.x / GROUP_THREADS, of_group = threadIdx.x % GROUP_THREADS;
        if (warpgroup > GROUPS) {
            if constexpr (!IS_SPLIT) give_registers<40>();
            if (of_group == 0) {
                bring_codes(call, shared, share_of(call, splits));
            } else {
                wait_for_writes();
                if (of_group == 32) bring_tokens(call, shared, share_of(call, splits));
            }
        } else if (warpgroup == GROUPS) {
            if constexpr (!IS_SPLIT) give_registers<96>();
            wait_for_writes();
            expand_all(call, shared, share_of(call, splits));
        } else {
            if constexpr (!IS_SPLIT) take_registers<184>();
            wait_for_writes();
            consume(call, shared, share_of(call, splits), splits);
        }
    }
};

#define LINEAR(T, NAME, GROUPS, STAGES, CODE_STAGES, IS_SPLIT, THREADS)                                                \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) linear_fp8_hopper##NAME##_##T(                            \
        void* out, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight, const float* scale,  \
        const float* bias, u32 tokens, u32 features, u32 cols, u32 segment, u32 out_is_f32, u32 splits) {              \
        const Call call = {out, &x, &weight, scale, nullptr, bias, tokens, features, cols, segment, out_is_f32};                \
        Tile<T, GROUPS, STAGES, CODE_STAGES, IS_SPLIT>::run(call, splits);                                             \
    }                                                                                                                  \
    EXPORT_KERNEL(linear_fp8_hopper##NAME##_##T)
#define KERNELS(T)                                                                                                     \
    LINEAR(T, , 2, 4, 3, false, 512)                                                                                   \
    LINEAR(T, _split_64x128, 1, 4, 6, true, 320)                                                                       \
    LINEAR(T, _split_128x128, 2, 4, 5, true, 448)
KERNELS(bf16)
KERNELS(f16)
