// A KV cache of 8 bits: each token's key or value of a head has a scale of its own. After lib/platform.h.
//
// A number is a sign and 7 bits of magnitude, times the scale, rounded to T. Numbers stand so that tensor cores can have them: of each 16
// dimensions, i and i + 8 have two bytes; the first one's lower bits are the magnitude of i, the second one's that of i + 8, and each
// one's upper bit is the other's sign. A page, a block of one head, is [block_size, head_stride] bytes and [block_size] scales, numbers
// of T.
//
// A magnitude m is BIAS + m once the bits of BIAS are set above it; times the scale, less BIAS times the scale, rounded once.
#pragma once

template <typename T>
static constexpr u32 BIAS_PAIR = IS_F16<T> ? 0x64006400 : 0x43004300;
// Less BIAS.
template <typename T>
static constexpr u32 MINUS_BIAS_PAIR = BIAS_PAIR<T> | 0x80008000;
// A bound of scales, so that BIAS times one is a number still: 64 less one unit in the last place, and 2^119.
template <typename T>
static constexpr float GREATEST_SCALE = IS_F16<T> ? 63.96875f : 6.646139978924579e35f;

// 16 bytes each; block_size is a multiple of 8, head_stride of 16.
DEVICE u32 int8_page_pieces(u32 block_size, u32 head_stride) { return block_size * (head_stride + 2) / 16; }

// Two scales, and what makes up for BIAS.
struct ScalePair {
    u32 scales, offsets;
};
template <typename T>
DEVICE ScalePair scale_pair(u32 scales) {
    // Less nothing.
    return {scales, fma_pairs<T>(scales, MINUS_BIAS_PAIR<T>, 0x80008000)};
}

// Four numbers of the cache as two pairs of T: of the lower dimensions, and of those 8 further.
template <typename T>
DEVICE uint2 expand_int8(u32 word, const ScalePair& pair) {
    const u32 others = __byte_perm(word, 0, 0x2301);
    const u32 low = fma_pairs<T>(and_or(word, 0x007f007f, BIAS_PAIR<T>), pair.scales, pair.offsets);
    const u32 high = fma_pairs<T>(and_or(others, 0x007f007f, BIAS_PAIR<T>), pair.scales, pair.offsets);
    return make_uint2(low ^ (word & 0x80008000), high ^ (others & 0x80008000));
}

// The scale of numbers of this greatest magnitude.
template <typename T>
DEVICE T int8_scale(float most) {
    return from_float<T>(fminf(__fdiv_rn(most, 127.0f), GREATEST_SCALE<T>));
}

// Numbers of two dimensions, 8 apart, in the cache.
DEVICE u32 int8_of(float x, float scale) {
    const int q = scale == 0.0f ? 0 : (int)rintf(fminf(fmaxf(__fdiv_rn(x, scale), -127.0f), 127.0f));
    return q < 0 ? 0x80 | (u32)-q : (u32)q;
}
DEVICE u16 int8_pair(float low, float high, float scale) {
    const u32 a = int8_of(low, scale), b = int8_of(high, scale);
    return (u16)((a & 0x7f) | (b & 0x80) | (b & 0x7f) << 8 | (a & 0x80) << 8);
}

// A head's numbers, of a lane every 32nd pair of dimensions that stand together, and its scale.
template <typename T, u32 PAIRS>
struct Int8Head {
    u16 pairs[PAIRS];
    T scale;
};
// Made of its head_dim numbers of T by a warp, which has all of them. Dimensions behind them are zeros.
template <typename T, u32 PAIRS>
DEVICE Int8Head<T, PAIRS> int8_head(const T* at, u32 head_dim) {
    float low[PAIRS], high[PAIRS], most = 0.0f;
#pragma unroll
    for (u32 i = 0; i < PAIRS; i++) {
        const u32 pair = threadIdx.x % 32 + 32 * i, d = pair / 8 * 16 + pair % 8;
        low[i] = d < head_dim ? to_float(at[d]) : 0.0f;
        high[i] = d + 8 < head_dim ? to_float(at[d + 8]) : 0.0f;
        most = fmaxf(most, fmaxf(fabsf(low[i]), fabsf(high[i])));
    }
    Int8Head<T, PAIRS> head;
    head.scale = int8_scale<T>(warp_max(most));
    const float scale = to_float(head.scale);
#pragma unroll
    for (u32 i = 0; i < PAIRS; i++) head.pairs[i] = int8_pair(low[i], high[i], scale);
    return head;
}
