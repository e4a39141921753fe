// A warp's stream of weights of 16 bits or e4m3 (linear_rows.cu, experts_linear.cu): it copies its rows' steps to shared memory, STAGES
// deep, and takes them from there once all its lanes' copies are there; tokens come from the caches, up to three steps ahead. After
// linear_rows.h.
#pragma once

// A step of a warp's weights, 64 bytes of each of the first eight rows and of the others, as tiles have them in shared memory.
struct Stage {
    uint4 low[32], high[32];
};

template <typename W, int TILES>
DEVICE void stream(float (&sums)[TILES][4], const Product<W>& p, u8* memory, u32 first_row, u32 num_rows, u32 start, u32 end) {
    Stage* stages = (Stage*)memory;
    // Steps of a warp's weights on their way.
    constexpr u32 STAGES = W::STREAM_BYTES / sizeof(Stage);
    constexpr u32 STEP = W::CHUNKS * CHUNK, STEP_BYTES = 64;
    constexpr u32 X_STEPS = W::CHUNKS * TILES > 2 ? 2 : 4;
    const u32 lane = threadIdx.x % 32, g = lane / 4, place = 4 * g + place_of(lane % 4, g);
    const u32 num_steps = (end - start + STEP - 1) / STEP, num_whole = (end - start) / STEP;
    // What is beyond the last row repeats it, as tokens do.
    const u64 row_bytes = W::row_bytes(p.cols);
    auto weights = [&](u32 row) { return (const u8*)p.weight + min(row, num_rows - 1) * row_bytes + STEP_BYTES / STEP * start; };
    const u8* low_row = weights(first_row + g) + 16 * (lane % 4);
    const u8* high_row = weights(first_row + g + 8) + 16 * (lane % 4);
    // Of 16 bits a last chunk may be cut off; rows of e4m3 are padded to whole steps.
    const u32 own_bytes = W::CHUNKS > 1 ? num_steps * STEP_BYTES : 2 * (end - start) - min(16 * (lane % 4), 2 * (end - start));
    auto copy_weights = [&](u32 slot, u32 step, const u8* low, const u8* high) {
        if (step < num_steps) {
            const bool is_there = step * STEP_BYTES < own_bytes;
            copy_async(&stages[slot].low[place], low, is_there);
            copy_async(&stages[slot].high[place], high, is_there);
        }
        copy_commit();
    };
    // Weights do not change.
    for (u32 s = 0; s + 1 < STAGES; s++) {
        copy_weights(s, s, low_row, high_row);
        low_row += STEP_BYTES, high_row += STEP_BYTES;
    }
    if (p.tokens <= FEW_TOKENS) {
        const u8* further = weights(first_row + lane % 16) + (STAGES - 1) * STEP_BYTES;
        for (u32 line = lane / 16; line < BYTES_AHEAD / 128; line += 2) {
            if (STAGES - 1 + 2 * line < num_steps) prefetch_line(further + 128 * line);
        }
    }
    wait_for_writes();
    // Whole steps of tokens ask for no bounds; of X_STEPS in registers one is multiplied, the others are on their way.
    const typename W::T* tokens[TILES];
#pragma unroll
    for (int t = 0; t < TILES; t++) tokens[t] = own_tokens(p, t) + start;
    uint4 x[X_STEPS][W::CHUNKS][TILES];
    auto load_step = [&](u32 i) {
#pragma unroll
        for (u32 c = 0; c < W::CHUNKS; c++) load_chunk<W, TILES>(x[i % X_STEPS][c], tokens, i * W::CHUNKS + c);
    };
    auto multiply_step = [&](const Stage& stage, const uint4 (&x)[W::CHUNKS][TILES]) {
#pragma unroll
        for (u32 c = 0; c < W::CHUNKS; c++) {
            multiply<typename W::T, TILES>(sums, W::of_shared(stage.low, c), W::of_shared(stage.high, c), x[c]);
        }
    };
#pragma unroll
    for (u32 i = 0; i + 1 < X_STEPS; i++) {
        if (i < num_whole) load_step(i);
    }
    u32 slot = 0;
    for (u32 step = 0; step < num_whole; step += X_STEPS) {
#pragma unroll
        for (u32 i = 0; i < X_STEPS; i++) {
            if (step + i == num_whole) break;
            if (step + i + X_STEPS - 1 < num_whole) load_step(i + X_STEPS - 1);
            copy_wait<STAGES - 2>();
            // All lanes' copies of this step are there, and all have left the step before it, which is filled again.
            __syncwarp();
            multiply_step(stages[slot], x[i]);
            const u32 free = slot == 0 ? STAGES - 1 : slot - 1;
            copy_weights(free, step + i + STAGES - 1, low_row + i * STEP_BYTES, high_row + i * STEP_BYTES);
            slot = slot + 1 == STAGES ? 0 : slot + 1;
        }
#pragma unroll
        for (int t = 0; t < TILES; t++) tokens[t] += X_STEPS * STEP;
        low_row += X_STEPS * STEP_BYTES, high_row += X_STEPS * STEP_BYTES;
    }
    copy_wait<0>();
    __syncwarp();
    if (num_whole < num_steps) {
#pragma unroll
        for (u32 c = 0; c < W::CHUNKS; c++) load_tokens<W, TILES>(x[0][c], p, start + num_whole * STEP + c * CHUNK, end);
        multiply_step(stages[slot], x[0]);
    }
}
