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
#include "lib/linear_rows.h"

// A step of a warp's weights, 16 bytes a lane of the first eight rows and of the others. Each lane reads what it has copied.
struct Stage {
    uint4 low[32], high[32];
};

template <typename W, int TILES>
DEVICE void stream(float (&sums)[TILES][4], const Product<W>& p, u8* memory, u32 first_row, u32 num_rows, u32 start, u32 end) {
    Stage* stages = (Stage*)memory;
    // Steps of a warp's weights on their way.
    constexpr u32 STAGES = W::STREAM_BYTES / sizeof(Stage);
    constexpr u32 STEP = W::CHUNKS * CHUNK, STEP_BYTES = 64;
    // Steps of tokens in registers: one is multiplied, the others are on their way.
    constexpr u32 X_STEPS = W::CHUNKS * TILES > 2 ? 2 : 4;
    const u32 lane = threadIdx.x % 32, g = lane / 4;
    const u32 num_steps = (end - start + STEP - 1) / STEP;
    // What is beyond the last row repeats it, as tokens do.
    const u64 row_bytes = W::row_bytes(p.cols);
    auto weights = [&](u32 row) { return (const u8*)p.weight + min(row, num_rows - 1) * row_bytes + STEP_BYTES / STEP * start; };
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
    auto load_step = [&](uint4 (&x)[W::CHUNKS][TILES], u32 step) {
#pragma unroll
        for (u32 c = 0; c < W::CHUNKS; c++) load_tokens<W, TILES>(x[c], p, start + step * STEP + c * CHUNK, end);
    };
    // Weights do not change.
    for (u32 s = 0; s + 1 < STAGES; s++) copy_weights(s, s);
    if (p.tokens <= FEW_TOKENS) {
        const u8* further = weights(first_row + lane % 16) + (STAGES - 1) * STEP_BYTES;
        for (u32 line = lane / 16; line < BYTES_AHEAD / 128; line += 2) {
            if (STAGES - 1 + 2 * line < num_steps) prefetch_line(further + 128 * line);
        }
    }
    wait_for_writes();
    uint4 x[X_STEPS][W::CHUNKS][TILES];
#pragma unroll
    for (u32 s = 0; s + 1 < X_STEPS; s++) load_step(x[s], s);
    u32 slot = 0;
    for (u32 step = 0; step < num_steps; step += X_STEPS) {
#pragma unroll
        for (u32 i = 0; i < X_STEPS; i++) {
            if (step + i == num_steps) break;
            load_step(x[(i + X_STEPS - 1) % X_STEPS], step + i + X_STEPS - 1);
            copy_wait<STAGES - 2>();
            const uint4 low = stages[slot].low[lane], high = stages[slot].high[lane];
#pragma unroll
            for (int c = 0; c < W::CHUNKS; c++) multiply<typename W::T, TILES>(sums, W::of_memory(low, c), W::of_memory(high, c), x[i][c]);
            copy_weights(slot == 0 ? STAGES - 1 : slot - 1, step + i + STAGES - 1);
            slot = slot + 1 == STAGES ? 0 : slot + 1;
        }
    }
    copy_wait<0>();
}

#define KERNELS(FORM, T, NAME)                                                                                         \
    ROWS(FORM, T, NAME, 8, 2)                                                                                          \
    ROWS(FORM, T, NAME, 16, 2)
KERNELS(Plain, bf16, bf16)
KERNELS(Plain, f16, f16)
KERNELS(Fp8, bf16, fp8_bf16)
KERNELS(Fp8, f16, fp8_f16)
