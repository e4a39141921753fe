// RoPE (Su et al. 2021; the two halves of Hugging Face's `rotate_half`): a pair of numbers, half of what turns apart, turned by an angle.
// In f32, each product and sum rounded as it is written here, so that all kernels have the same bits. After lib/platform.h.
#pragma once

// What the pair's lower number becomes, and its higher one.
DEVICE float turn_low(float low, float high, float cosine, float sine) { return __fmaf_rn(low, cosine, -__fmul_rn(high, sine)); }
DEVICE float turn_high(float low, float high, float cosine, float sine) { return __fmaf_rn(high, cosine, __fmul_rn(low, sine)); }
