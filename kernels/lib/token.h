// The tokens of a row of logits: their order, what they weigh, and sums over a block. After lib/platform.h.
#pragma once

// Keys: 32 bits of the logit in order, then the id, lowest best.
static constexpr u32 ID_BITS = 20;
static constexpr u32 MAX_ID = (1u << ID_BITS) - 1;
static constexpr float MIN_LOGIT = -3.402823466e+38f;
static constexpr float MAX_LOGIT = 3.402823466e+38f;
static constexpr float WEIGHT_ONE = 17179869184.0f;

// One of a row's two views: logits and the temperature that their weights are taken at.
struct View {
    const float* logits;
    // The best of disjoint parts.
    const u64* best;
    u32 num_best;
    u32 len;
    float temperature;
    float max;
};

// NaN is as impossible as -inf, and +inf is the greatest finite number.
DEVICE float clean(float logit) {
    const float number = logit > -__int_as_float(0x7f800000) ? logit : -__int_as_float(0x7f800000);
    return number < MAX_LOGIT ? number : MAX_LOGIT;
}

DEVICE u64 key_of(u32 id, float logit) {
    // Adding 0 makes -0 equal to 0.
    const u32 bits = __float_as_uint(__fadd_rn(logit, 0.0f));
    const u32 ordered = bits >> 31 ? ~bits : bits | 1u << 31;
    return (u64)ordered << ID_BITS | (MAX_ID - min(id, MAX_ID));
}
DEVICE u32 id_of(u64 key) { return MAX_ID - (u32)(key & MAX_ID); }
DEVICE float logit_of(u64 key) {
    const u32 ordered = (u32)(key >> ID_BITS);
    return __uint_as_float(ordered >> 31 ? ordered & ~(1u << 31) : ~ordered);
}

// exp(x) for x <= 0: the CPU's (sample/numeric.rs), operation by operation, none fused.
DEVICE float exact_exp(float x) {
    const float shifted = __fadd_rn(__fmul_rn(x, 1.4426950408889634f), 12582912.0f);
    const float n = __fsub_rn(shifted, 12582912.0f);
    const float r = __fsub_rn(__fsub_rn(x, __fmul_rn(n, 0.6933594f)), __fmul_rn(n, -2.1219444e-4f));
    float y = __fadd_rn(1.0f / 720.0f, __fmul_rn(r, 1.0f / 5040.0f));
    y = __fadd_rn(1.0f / 120.0f, __fmul_rn(r, y));
    y = __fadd_rn(1.0f / 24.0f, __fmul_rn(r, y));
    y = __fadd_rn(1.0f / 6.0f, __fmul_rn(r, y));
    y = __fadd_rn(0.5f, __fmul_rn(r, y));
    y = __fadd_rn(1.0f, __fadd_rn(r, __fmul_rn(__fmul_rn(r, r), y)));
    const float scale = __uint_as_float((__float_as_uint(shifted) << 23) + 0x3f800000u);
    return x >= -87.0f ? __fmul_rn(y, scale) : 0.0f;
}

// In [0, 1], a multiple of 2^-34. `logit` is clean, the view's greatest finite.
DEVICE float weight_of(const View& view, float logit) {
    const float weight = exact_exp(__fdiv_rn(__fsub_rn(logit, view.max), view.temperature));
    const float grid = 1.0f / 2048.0f;
    return weight < grid ? __fsub_rn(__fadd_rn(weight, grid), grid) : weight;
}
// In units of 2^-34.
DEVICE u64 mass_of(float weight) { return (u64)(weight * WEIGHT_ONE); }

// How many tokens, and what they weigh.
struct Sum {
    u32 count;
    u64 mass;
};
DEVICE Sum operator+(Sum a, Sum b) { return {a.count + b.count, a.mass + b.mass}; }

template <typename T>
DEVICE T warp_reduce(T x, bool is_max) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        const T other = __shfl_xor_sync(FULL_WARP, x, offset);
        x = is_max ? max(x, other) : x + other;
    }
    return x;
}

// The sum or the greatest of a block of at most 1024 threads, in every thread.
DEVICE u64 block_reduce(u64 x, bool is_max, u64* scratch) {
    x = warp_reduce(x, is_max);
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, num_warps = blockDim.x / 32;
    __syncthreads();
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    return warp_reduce(lane < num_warps ? scratch[lane] : 0ull, is_max);
}

DEVICE u64 block_max(u64 x, u64* scratch) { return block_reduce(x, true, scratch); }
DEVICE u64 block_total(u64 x, u64* scratch) { return block_reduce(x, false, scratch); }

