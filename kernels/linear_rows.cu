// linear_rows: what linear.cu computes, of at most 16 tokens: weights pass by once. Arguments and the order of sums are linear.cu's.
//
// linear_rows8, linear_rows16: at most 8, 16 tokens. Block of 8 warps; a warp has 16 features and one of `splits` (1, 2, 4, 8)
// segments, so that also small matrices keep all multiprocessors loading. A lane copies its own 16 bytes of each step's rows to
// shared memory, STAGES steps deep, and takes them from there; tokens come from the caches, up to three steps ahead. The first steps' weights, and in the
// second cache some further ones, are asked for before the kernel before has ended. Grid: features / (128 / splits).
// linear_gated_rows8, linear_gated_rows16: gate_act_mul.cu of what those give, where rows of weights are gate's, then up's,
// `features` each. `splits` at most 4. Grid: features / (64 / splits).
//
// Dynamic shared memory: STAGES KiB a warp; static: at most 10 KiB, for the sums.
// Bounded by memory: the weights' bytes, once. 9 KiB are under way a warp.
#include "lib/platform.h"
#include "lib/activation.h"
#include "lib/e4m3.h"
#include "lib/linear.h"

static constexpr u32 WARPS = 8;
// Features of a warp and room, so that lanes of different tokens write to different banks.
static constexpr u32 SUMS_PITCH = FEATURES + 4;
// Steps of a warp's weights on their way.
static constexpr u32 STAGES = 10;
// Lines of 128 bytes of each of a warp's rows that come to the second cache before their steps, where tokens are so few that attention
// of theirs leaves memory idle.
static constexpr u32 LINES_AHEAD = 8, FEW_TOKENS = 2;

// A step of a warp's weights, 16 bytes a lane of the first eight rows and of the others. Each lane reads what it has copied.
struct Stage {
    uint4 low[32], high[32];
};

// The chunks of one warp: rows first_row.. of the weights' num_rows, columns start..end. `start` is a multiple of 64, `end` of 8.
template <typename W, int TILES>
DEVICE void stream(float (&sums)[TILES][4], const Product<W>& p, Stage* stages, u32 first_row, u32 num_rows, u32 start, u32 end) {
    using T = typename W::T;
    constexpr u32 STEP = W::CHUNKS * CHUNK, STEP_BYTES = 64;
    // Steps of tokens in registers: one is multiplied, the others are on their way.
    constexpr u32 X_STEPS = W::CHUNKS * TILES > 2 ? 2 : 4;
    const u32 lane = threadIdx.x % 32, g = lane / 4;
    const u32 num_steps = (end - start + STEP - 1) / STEP;
    // What is beyond the last row or token repeats it: nobody reads those sums.
    const u64 row_bytes = W::row_bytes(p.cols);
    auto weights = [&](u32 row) { return (const u8*)p.weight + min(row, num_rows - 1) * row_bytes + STEP_BYTES / STEP * start; };
    auto token = [&](u32 idx) { return p.x + (u64)min(idx, p.tokens - 1) * p.cols; };
    const u8* low_row = weights(first_row + g) + 16 * (lane % 4);
    const u8* high_row = weights(first_row + g + 8) + 16 * (lane % 4);
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
    for (u32 s = 0; s + 1 < STAGES; s++) copy_weights(s, s);
    if (p.tokens <= FEW_TOKENS) {
        const u8* further = weights(first_row + lane % 16) + (STAGES - 1) * STEP_BYTES;
        for (u32 line = lane / 16; line < LINES_AHEAD; line += 2) {
            if (STAGES - 1 + 2 * line < num_steps) prefetch_line(further + 128 * line);
        }
    }
    wait_for_writes();
    uint4 x[X_STEPS][W::CHUNKS][TILES];
#pragma unroll
    for (u32 s = 0; s + 1 < X_STEPS; s++) load_tokens(x[s], s);
    u32 slot = 0;
    for (u32 step = 0; step < num_steps; step += X_STEPS) {
#pragma unroll
        for (u32 i = 0; i < X_STEPS; i++) {
            if (step + i == num_steps) break;
            load_tokens(x[(i + X_STEPS - 1) % X_STEPS], step + i + X_STEPS - 1);
            copy_wait<STAGES - 2>();
            const uint4 low = stages[slot].low[lane], high = stages[slot].high[lane];
#pragma unroll
            for (int c = 0; c < W::CHUNKS; c++) multiply<T, TILES>(sums, W::of_memory(low, c), W::of_memory(high, c), x[i][c]);
            copy_weights(slot == 0 ? STAGES - 1 : slot - 1, step + i + STAGES - 1);
            slot = slot + 1 == STAGES ? 0 : slot + 1;
        }
    }
    copy_wait<0>();
}

// GATED: out = act(gate) * up, `features` of each, of which a block has the same: its first tiles of 16 features are gate's.
template <typename W, int TILES, bool GATED>
DEVICE void rows(const Product<W>& p, u32 splits, u32 kind) {
    using T = typename W::T;
    DYNAMIC_SHARED(stages);
    __shared__ float shared[WARPS][TILES * TOKENS][SUMS_PITCH];
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, tile = warp / splits;
    const u32 half_tiles = WARPS / splits / (GATED ? 2 : 1), block_features = half_tiles * FEATURES;
    const u32 block_feature = blockIdx.x * block_features, num_rows = (GATED ? 2 : 1) * p.features;
    const u32 feature = block_feature + tile % half_tiles * FEATURES;
    const u32 start = warp % splits * p.segment, end = min(start + p.segment, p.cols);
    // A thread's results are all of one feature: what they end with is there by then.
    constexpr u32 HALVES = GATED ? 2 : 1;
    const u32 at = threadIdx.x % block_features, own_feature = block_feature + at;
    float scales[HALVES], biases[HALVES];
#pragma unroll
    for (u32 half = 0; half < HALVES; half++) {
        const u32 row = half * p.features + own_feature;
        scales[half] = W::HAS_SCALE && own_feature < p.features ? p.scale[row] : 0.0f;
        biases[half] = p.bias != nullptr && own_feature < p.features ? p.bias[row] : 0.0f;
    }
    if (start >= end || feature >= p.features) {
        wait_for_writes();
    } else {
        float sums[TILES][4] = {};
        const u32 first_row = (tile < half_tiles ? 0 : p.features) + feature;
        stream<W, TILES>(sums, p, (Stage*)stages + warp * STAGES, first_row, num_rows, start, end);
#pragma unroll
        for (int t = 0; t < TILES; t++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                shared[warp][t * TOKENS + 2 * (lane % 4) + i % 2][lane / 4 + i / 2 * 8] = sums[t][i];
            }
        }
    }
    let_next_begin();
    __syncthreads();
    const u32 num_segments = (p.cols + p.segment - 1) / p.segment;
    auto total_of = [&](u32 token, u32 half) {
        const u32 first_warp = (half * block_features + at) / FEATURES * splits;
        float total = 0.0f;
        for (u32 s = 0; s < num_segments; s++) total += shared[first_warp + s][token][at % FEATURES];
        if (W::HAS_SCALE) total = scaled<W>(total, scales[half]);
        return p.bias != nullptr ? total + biases[half] : total;
    };
    if (own_feature >= p.features) return;
    for (u32 token = threadIdx.x / block_features; token < p.tokens; token += WARPS * 32 / block_features) {
        float total = total_of(token, 0);
        const u64 to = (u64)token * p.features + own_feature;
        if (GATED) {
            // Both are rounded as two launches would.
            const float up = to_float(from_float<T>(total_of(token, HALVES - 1)));
            total = __fmul_rn(activation(to_float(from_float<T>(total)), kind), up);
        }
        if (p.out_is_f32) {
            ((float*)p.out)[to] = total;
        } else {
            ((T*)p.out)[to] = from_float<T>(total);
        }
    }
}

#define ROWS(FORM, T, NAME, MAX)                                                                                       \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, 2)                                                   \
        linear_rows##MAX##_##NAME(ARGUMENTS(T), u32 splits) {                                                          \
        rows<FORM<T>, MAX / TOKENS, false>(PRODUCT, splits, 0);                                                        \
    }                                                                                                                  \
    EXPORT_KERNEL(linear_rows##MAX##_##NAME)                                                                           \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, 2)                                                   \
        linear_gated_rows##MAX##_##NAME(ARGUMENTS(T), u32 splits, u32 kind) {                                          \
        rows<FORM<T>, MAX / TOKENS, true>(PRODUCT, splits, kind);                                                      \
    }                                                                                                                  \
    EXPORT_KERNEL(linear_gated_rows##MAX##_##NAME)
#define KERNELS(FORM, T, NAME)                                                                                         \
    ROWS(FORM, T, NAME, 8)                                                                                             \
    ROWS(FORM, T, NAME, 16)
KERNELS(Plain, bf16, bf16)
KERNELS(Plain, f16, f16)
KERNELS(Fp8, bf16, fp8_bf16)
KERNELS(Fp8, f16, fp8_f16)
