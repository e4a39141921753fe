// What attention's kernels have in common: how splits of a softmax are put together, and which queries a block has. After
// lib/platform.h.
#pragma once

static constexpr u32 SPLIT = 256;

DEVICE float minus_infinity() { return -__int_as_float(0x7f800000); }

// The first key that a query sees.
DEVICE u32 low_of(u32 pos, u32 window) { return window != 0 && pos + 1 > window ? pos + 1 - window : 0; }

// How far, to the base 2, a score may exceed what its row's weights are relative to: until then nothing is rescaled (FlashAttention-4,
// Zadouri et al. 2026). Weights are up to 256, which both 16-bit types hold as exactly as those up to 1.
static constexpr float SLACK = 8.0f;

// What a row's weights are relative to, to the base 2, or minus infinity before any, comes to know the greatest score of further
// keys. Returns what sums and outputs before are to be multiplied by.
DEVICE float raise(float& max, float greatest) {
    const bool raises = greatest > __fadd_rn(max, SLACK);
    const float before = raises ? fast_exp2(__fsub_rn(max, greatest)) : 1.0f;
    if (raises) max = greatest;
    return before;
}
// What weights' exponents are relative to: no score is a number before any was seen.
DEVICE float base_of(float max) { return max == minus_infinity() ? 0.0f : max; }

// What one split's or several splits' weights are relative to (to the base 2), and their sum.
struct Softmax {
    float max, sum;
};

// The factors of two neighbours' sums and outputs when they are put together; `before` becomes both.
DEVICE void merge(Softmax& before, const Softmax& part, float (&factors)[2]) {
    const float max = fmaxf(before.max, part.max), base = max == minus_infinity() ? 0.0f : max;
    factors[0] = fast_exp2(__fsub_rn(before.max, base));
    factors[1] = fast_exp2(__fsub_rn(part.max, base));
    before.sum = __fmaf_rn(part.sum, factors[1], __fmul_rn(before.sum, factors[0]));
    before.max = max;
}
DEVICE float merge_output(float before, float part, const float (&factors)[2]) {
    return __fmaf_rn(part, factors[1], __fmul_rn(before, factors[0]));
}

// What a row's outputs are multiplied by in the end. A sink, which heads may have (`sinks`: one each, or null), is put together with the
// splits as one more whose only weight has no value.
DEVICE float share_of(Softmax all, const float* sinks, u32 head) {
    if (sinks == nullptr) return __frcp_rn(all.sum);
    float factors[2];
    merge(all, {__fmul_rn(sinks[head], 1.44269504f), 1.0f}, factors);
    return __fmul_rn(factors[0], __frcp_rn(all.sum));
}

// Finds the `tile`th tile of `most` queries of all prompts together: its sequence, and the first of its queries. Each prompt's
// tiles count from its end, for those have most keys. Whole warps call it.
DEVICE bool find_prompt(const u32* sequences, const u32* prompts, u32 num_prompts, u32 most, u32 tile, u32& seq, u32& first) {
    const u32 lane = threadIdx.x % 32;
    for (u32 start = 0; start < num_prompts; start += 32) {
        const bool is_there = start + lane < num_prompts;
        const u32 own = is_there ? prompts[start + lane] : 0;
        u32 end = is_there ? (sequences[4 * own + 1] + most - 1) / most : 0;
#pragma unroll
        for (u32 offset = 1; offset < 32; offset *= 2) {
            const u32 before = __shfl_up_sync(FULL_WARP, end, offset);
            if (lane >= offset) end += before;
        }
        const u32 beyond = __ballot_sync(FULL_WARP, end > tile);
        if (beyond != 0) {
            const int from = __ffs((int)beyond) - 1;
            first = (__shfl_sync(FULL_WARP, end, from) - 1 - tile) * most;
            seq = __shfl_sync(FULL_WARP, own, from);
            return true;
        }
        tile -= __shfl_sync(FULL_WARP, end, 31);
    }
    return false;
}
