// experts: a mixture of experts but for its products, which are experts_linear.cu's and experts_quant.cu's (modeling_mixtral.py,
// modeling_qwen3_moe.py). A pair is a token and one of its experts: token t has the pairs t * per_token.. by rank.
//
// experts_route: each token's experts are those with its greatest logits, of equals the first (NaN is the least); their weights are
// exp(logit - max) over the sum of these, or where `normalizes` is 0 of all experts'. logits [tokens, num_experts] f32, at most 512
// experts and 32 a token; picks [pairs]: the expert, and the bits of its weight in f32. A warp a token, in blocks of 4.
// experts_sort: gives pairs places, so that those of an expert are neighbours in the order of their tokens, copies each pair's row of x
// there, and cuts each expert's into tiles of at most `tile_rows`. x [tokens, cols] and rows [pairs, cols] in 16 bits, cols a multiple of
// 8; places [pairs]; tiles [max_tiles]: expert, first place, how many (behind the last tile 0). A block of 8 warps an expert.
// experts_combine: out = the sum of weight * result over a token's pairs, by rank, in f32. results [pairs, cols] by place, out
// [tokens, cols] in 16 bits. Grid (tokens, cols / 8 / threads).
//
// Bounded by memory: the rows of x and of results, per_token times each.
#include "lib/platform.h"
#include "lib/vector.h"
#include "lib/token.h"

static constexpr u32 MAX_EXPERTS = 512, SLOTS = MAX_EXPERTS / 32, NONE = 0xffffffffu;
static constexpr u32 SORT_WARPS = 8;

// An expert and its logit.
struct Candidate {
    float logit;
    u32 expert;
};
DEVICE Candidate better(const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.expert < b.expert) ? a : b;
}

extern "C" __global__ void __launch_bounds__(128) experts_route(uint2* picks, const float* logits, u32 tokens, u32 num_experts,
                                                                u32 per_token, u32 normalizes) {
    wait_for_kernel_before();
    const u32 lane = threadIdx.x % 32, token = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (token >= tokens) return;
    // Slot s has expert 32 * s + lane; a bit says that it is left.
    float own[SLOTS] = {};
    u32 left = 0;
#pragma unroll
    for (u32 s = 0; s < SLOTS; s++) {
        const u32 expert = 32 * s + lane;
        if (expert < num_experts) {
            own[s] = clean(logits[(u64)token * num_experts + expert]);
            left |= 1u << s;
        }
    }
    const u32 all = left;
    float max_logit = 0.0f, sum = 0.0f, weight = 0.0f;
    u32 picked = 0;
    for (u32 rank = 0; rank < per_token; rank++) {
        Candidate best = {-__int_as_float(0x7f800000), NONE};
#pragma unroll
        for (u32 s = 0; s < SLOTS; s++) {
            if (left >> s & 1) best = better(best, {own[s], 32 * s + lane});
        }
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) {
            best = better(best, {__shfl_xor_sync(FULL_WARP, best.logit, offset), __shfl_xor_sync(FULL_WARP, best.expert, offset)});
        }
        if (best.expert % 32 == lane) left &= ~(1u << best.expert / 32);
        if (rank == 0) max_logit = best.logit;
        const float of_rank = exact_exp(best.logit - max_logit);
        sum += of_rank;
        if (rank == lane) weight = of_rank, picked = best.expert;
    }
    if (normalizes == 0) {
        sum = 0.0f;
#pragma unroll
        for (u32 s = 0; s < SLOTS; s++) {
            if (all >> s & 1) sum += exact_exp(own[s] - max_logit);
        }
        sum = warp_sum(sum);
    }
    if (lane < per_token) picks[(u64)token * per_token + lane] = make_uint2(picked, __float_as_uint(__fdiv_rn(weight, sum)));
}
EXPORT_KERNEL(experts_route)

extern "C" __global__ void __launch_bounds__(SORT_WARPS * 32)
    experts_sort(u32* places, uint4* tiles, u16* rows, const uint2* picks, const u16* x, u32 num_pairs, u32 per_token, u32 cols,
                 u32 tile_rows, u32 max_tiles) {
    __shared__ u32 counts[MAX_EXPERTS], found[SORT_WARPS];
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, expert = blockIdx.x, num_experts = gridDim.x;
    for (u32 i = threadIdx.x; i < num_experts; i += blockDim.x) counts[i] = 0;
    __syncthreads();
    wait_for_kernel_before();
    // Warps have shares of pairs, whole votes.
    const u32 share = (num_pairs + SORT_WARPS * 32 - 1) / (SORT_WARPS * 32) * 32;
    const u32 begin = min(num_pairs, warp * share), end = min(num_pairs, begin + share);
    u32 own = 0;
    for (u32 pair = begin + lane; pair < end; pair += 32) {
        const u32 of_pair = picks[pair].x;
        atomicAdd(&counts[of_pair], 1u);
        own += of_pair == expert ? 1 : 0;
    }
    own = warp_reduce(own, false);
    if (lane == 0) found[warp] = own;
    __syncthreads();
    // What comes before this expert.
    u32 place = 0, first_tile = 0, num_tiles = 0;
    for (u32 i = lane; i < num_experts; i += 32) {
        const u32 of_expert = (counts[i] + tile_rows - 1) / tile_rows;
        if (i < expert) place += counts[i], first_tile += of_expert;
        num_tiles += of_expert;
    }
    place = warp_reduce(place, false), first_tile = warp_reduce(first_tile, false), num_tiles = warp_reduce(num_tiles, false);
    const u32 count = counts[expert];
    for (u32 i = threadIdx.x; i * tile_rows < count; i += blockDim.x) {
        tiles[first_tile + i] = make_uint4(expert, place + i * tile_rows, min(tile_rows, count - i * tile_rows), 0);
    }
    if (expert == 0) {
        for (u32 i = num_tiles + threadIdx.x; i < max_tiles; i += blockDim.x) tiles[i] = make_uint4(0, 0, 0, 0);
    }
    for (u32 i = 0; i < warp; i++) place += found[i];
    for (u32 first = begin; first < end; first += 32) {
        const u32 pair = first + lane;
        const bool is_own = pair < end && picks[pair].x == expert;
        u32 votes = __ballot_sync(FULL_WARP, is_own);
        if (is_own) places[pair] = place + __popc(votes & ((1u << lane) - 1));
        for (; votes != 0; votes &= votes - 1, place++) {
            const u64 token = (first + __ffs((int)votes) - 1) / per_token;
            for (u32 col = 8 * lane; col < cols; col += 8 * 32) {
                *(uint4*)(rows + (u64)place * cols + col) = *(const uint4*)(x + token * cols + col);
            }
        }
    }
}
EXPORT_KERNEL(experts_sort)

template <typename T>
DEVICE void combine(T* out, const T* results, const uint2* picks, const u32* places, u32 per_token, u32 cols) {
    constexpr int WIDTH = 8;
    wait_for_kernel_before();
    const u32 col = (blockIdx.y * blockDim.x + threadIdx.x) * WIDTH;
    if (col >= cols) return;
    float sum[WIDTH] = {};
    for (u32 rank = 0; rank < per_token; rank++) {
        const u64 pair = (u64)blockIdx.x * per_token + rank;
        const float weight = __uint_as_float(picks[pair].y);
        float values[WIDTH];
        load_vector<T, WIDTH>(values, results + (u64)places[pair] * cols + col);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) sum[i] += weight * values[i];
    }
    store_vector<T, WIDTH>(out + (u64)blockIdx.x * cols + col, sum);
}

#define COMBINE(T)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        experts_combine_##T(T* out, const T* results, const uint2* picks, const u32* places, u32 per_token, u32 cols) { \
        combine<T>(out, results, picks, places, per_token, cols);                                                      \
    }                                                                                                                  \
    EXPORT_KERNEL(experts_combine_##T)
COMBINE(bf16)
COMBINE(f16)
