// Codes of e4m3. After platform.h.
#pragma once

// The nearest code, the even one of two; |x| is at most 448.
DEVICE u32 e4m3_of(float x) {
    const u32 bits = __float_as_uint(x) & 0x7fffffff;
    const u32 normal = (bits + 0x7ffff + (bits >> 20 & 1) >> 20) - (120 << 3);
    // Below 2^-6 codes are multiples of 2^-9.
    const u32 subnormal = __float_as_uint(__fadd_rn(__uint_as_float(bits), 16384.0f)) - __float_as_uint(16384.0f);
    return __float_as_uint(x) >> 24 & 0x80 | (bits < 121 << 23 ? subnormal : min(normal, 0x7eu));
}

// e4m3 numbers as 16-bit ones. Every one of them is one of bf16 and of f16: sign, exponent and mantissa are put at their places by
// shifts and masks, subnormals too (both types continue theirs below the least exponent in the same way), which leaves a power of
// two. f16: numbers are 2^-8 times what they should be, which changes no rounding and is made good in the total. bf16: 2^-120 would
// drown products and sums; an exact multiplication of the pair takes it back. That it takes subnormal inputs is in the PTX manual.

// What totals of products with such numbers lack.
template <typename T>
static constexpr float E4M3_FACTOR = IS_F16<T> ? 256.0f : 1.0f;

// Two numbers of bf16 times 2^120, exactly and with their signs.
DEVICE u32 times_2_to_120(u32 pair) { return fma_pairs<bf16>(pair, 0x7b807b80, 0x80008000); }

// Four e4m3 numbers as two pairs of 16-bit numbers: those of the even bytes, and those of the odd ones.
template <typename T>
DEVICE uint2 expand_e4m3(u32 codes);
template <>
__device__ __forceinline__ uint2 expand_e4m3<f16>(u32 codes) {
    return make_uint2((codes << 8 & 0x80008000) | (codes << 7 & 0x3f803f80), (codes & 0x80008000) | (codes >> 1 & 0x3f803f80));
}
template <>
__device__ __forceinline__ uint2 expand_e4m3<bf16>(u32 codes) {
    return make_uint2(times_2_to_120((codes << 8 & 0x80008000) | (codes << 4 & 0x07f007f0)),
                      times_2_to_120((codes & 0x80008000) | (codes >> 4 & 0x07f007f0)));
}
