// Weights that stay in block formats: small integers, of which 16 or more neighbours of a row share a scale and perhaps an offset, or
// a code of 0. After platform.h.
//
// They are stored tile after tile, 16 rows by 128 columns, for 16 rows all tiles in order (backend/cuda/quant.rs): first the codes,
// then the scales of each row as the file has them. Columns are padded to whole tiles, rows to 16, with weights of 0. In a chunk of
// 32 columns lane l of a warp has, of rows l / 4 and l / 4 + 8, the columns that linear.cu gives it of the two products.
//
//   bits  codes of a tile, [..][2: rows l / 4, rows l / 4 + 8][32 lanes]
//   4     [4 chunks] words: from bit 0 on column 0 of the first product, column 2 of it, columns 0 and 2 of the second; from bit 16 on
//         columns 1 and 3 in the same way
//   5     the lower 4 as above; [1] words of upper bits, 8 of each chunk at the places of `upper_of`
//   6     the lower 4 as above; [2] words of the upper two bits, of two chunks each
//   8     [4 chunks] pairs of words, one a product: bytes are columns 0, 2, 1, 3
//
//   scales  of a tile, [16 rows]
//   D       [4 chunks] f16: d. A group's scale is d
//   DM      [4 chunks] f16 pairs: d, m. Its offset is m
//   DZ      [4 chunks] f16 pairs: d, the code of 0
//   TILE_DZ one such pair
//   K       f16 pair d, m; [4 chunks] bytes, factors of d; [4 chunks] bytes, factors of -m
//   K16     [8 groups of 16] signed bytes, factors of d; f16 d, 16 unused bits
//   E       [4 chunks] bytes: e. A group's scale is 2^(e - 127), and codes are those of e2m1
//
// A weight is scale * q + offset, rounded to f32 (the product is exact), and that to 16 bits: the number that expanding the file gives.
// A code that is masked out of a word is a pair's half in f16 as it stands, a subnormal one, 2^-24 times its integer: that is converted
// to f32 and multiplied by 2^24 times the scale, so that units for floating-point numbers do what those for integers lack time for.
//
// Where there is no offset and q has few bits, both weights of a pair come from four instructions in bf16, with the same bits. A code
// is 128 + q once the bits of 128 are set above it; 128 and the code of 0 are subtracted, exactly. Of d, 11 bits, the first 8 are a
// number of bf16, and so is the rest, of at most 3 bits; q times the rest is exact, and the sum with q times the first is rounded once.
//
// A code of e2m1 becomes 2^-126 times its number in bf16 once its bits are where bf16 has sign, last bits of the exponent and first bit of
// the fraction. Times 2^126 and times the scale it is exact.
#pragma once

static constexpr u32 QUANT_ROWS = 16, QUANT_COLUMNS = 128, QUANT_CHUNKS = 4;

enum class Scaling { D, DM, DZ, TILE_DZ, K, K16, E };

// Of one row and chunk: a weight is `scale` times its code's pair as f32, plus `base`.
struct FloatScale {
    float scale, base;

    __device__ __forceinline__ FloatScale of_lane(u32 lane) const {
        return {__shfl_sync(FULL_WARP, scale, lane), __shfl_sync(FULL_WARP, base, lane)};
    }
};

// The same as pairs of bf16, twice the same number each: the first bits of d, the rest, and what makes q of 128 and a code, which may be
// the same everywhere.
template <bool HAS_ZERO>
struct PairScale {
    u32 high, low, zero;

    __device__ __forceinline__ PairScale of_lane(u32 lane) const {
        return {__shfl_sync(FULL_WARP, high, lane), __shfl_sync(FULL_WARP, low, lane),
                HAS_ZERO ? __shfl_sync(FULL_WARP, zero, lane) : zero};
    }
};

// A power of two twice in bf16.
struct PowerScale {
    u32 pair;

    __device__ __forceinline__ PowerScale of_lane(u32 lane) const { return {__shfl_sync(FULL_WARP, pair, lane)}; }
};

template <bool IS_PAIR, bool HAS_ZERO, bool IS_POWER>
struct ScaleType {
    using Type = FloatScale;
};
template <bool HAS_ZERO>
struct ScaleType<true, HAS_ZERO, false> {
    using Type = PairScale<HAS_ZERO>;
};
template <>
struct ScaleType<false, false, true> {
    using Type = PowerScale;
};

// Eight codes of a row, those of two products: pairs of columns 0 and 1, and 2 and 3, of each.
struct CodePairs {
    u32 pairs[4];
};

// ZERO: the code of 0, where blocks do not say it.
template <typename T_, int BITS, int ZERO, Scaling SCALING>
struct Quant {
    using T = T_;
    static constexpr bool HAS_SCALE = false;
    static constexpr float FACTOR = 1.0f;
    // Three blocks of 8 warps of linear_rows8 have room on a multiprocessor of Hopper: expanding wants warps.
    static constexpr u32 CHUNKS = QUANT_CHUNKS, STREAM_BYTES = 8704;
    // Different scales in a chunk.
    static constexpr int GROUPS = SCALING == Scaling::K16 ? 2 : 1;
    static constexpr u32 CODE_BYTES = BITS * QUANT_ROWS * QUANT_COLUMNS / 8;
    static constexpr u32 ROW_SCALE_BYTES = SCALING == Scaling::D         ? 8
                                           : SCALING == Scaling::TILE_DZ || SCALING == Scaling::E ? 4
                                           : SCALING == Scaling::DM || SCALING == Scaling::DZ ? 16
                                                                                              : 12;
    static constexpr u32 TILE_BYTES = CODE_BYTES + QUANT_ROWS * ROW_SCALE_BYTES;

    static constexpr bool HAS_ZERO = SCALING == Scaling::DZ || SCALING == Scaling::TILE_DZ;
    static constexpr bool IS_PAIR = !IS_F16<T> && (HAS_ZERO || SCALING == Scaling::D) && BITS <= 5;
    static constexpr bool IS_POWER = SCALING == Scaling::E;
    static_assert(!IS_POWER || (!IS_F16<T> && BITS == 4), "codes of e2m1 become numbers of bf16");
    using Scale = typename ScaleType<IS_PAIR, HAS_ZERO, IS_POWER>::Type;

    // 128 twice in bf16, whose last bits are a code's place.
    static constexpr u32 OF_128 = 0x43004300;
    // Elsewhere the second pair of a product has codes four bits higher, but that of bytes.
    static constexpr float SECOND = BITS == 8 ? 1.0f : 0.0625f;

    // Of the scales at `at`, those of a tile: of row `row`, the `group`th of chunk `chunk`.
    DEVICE Scale scale_of(const u8* at, u32 row, u32 chunk, u32 group) {
        const u8* own = at + row * ROW_SCALE_BYTES;
        if constexpr (IS_POWER) {
            // The least one is subnormal.
            const u32 e = own[chunk], bits = e == 0 ? 0x40 : e << 7;
            return {bits | bits << 16};
        } else {
            return sum_scale_of(own, chunk, group);
        }
    }

    // The same of formats whose codes are integers, of a row's scales.
    DEVICE Scale sum_scale_of(const u8* own, u32 chunk, u32 group) {
        float scale, zero = (float)ZERO, offset = 0.0f;
        if constexpr (SCALING == Scaling::D) {
            scale = to_float(((const f16*)own)[chunk]);
        } else if constexpr (HAS_ZERO) {
            const u32 pair = ((const u32*)own)[SCALING == Scaling::TILE_DZ ? 0 : chunk];
            scale = low_float<f16>(pair), zero = high_float<f16>(pair);
        } else if constexpr (SCALING == Scaling::DM) {
            const u32 pair = ((const u32*)own)[chunk];
            scale = low_float<f16>(pair), offset = high_float<f16>(pair);
        } else if constexpr (SCALING == Scaling::K) {
            const u32 pair = *(const u32*)own;
            scale = __fmul_rn(low_float<f16>(pair), (float)own[4 + chunk]);
            offset = -__fmul_rn(high_float<f16>(pair), (float)own[8 + chunk]);
        } else {
            scale = __fmul_rn(to_float(*(const f16*)(own + 8)), (float)((const i8*)own)[2 * chunk + group]);
        }
        if constexpr (IS_PAIR) {
            const float high = __uint_as_float(__float_as_uint(scale) & 0xffff0000), low = __fadd_rn(scale, -high);
            return {pack<T>(high, high), pack<T>(low, low), pack<T>(-128.0f - zero, -128.0f - zero)};
        } else {
            return {__fmul_rn(scale, 16777216.0f), __fmaf_rn(-zero, scale, offset)};
        }
    }

    // The upper bits of a pair, brought to their place above the lower ones. Each half of the word has UNIT bits of the first pairs of both
    // products and of two chunks (of one, where UNIT is 2) from bit 4 on, of the other chunks from bit 12 on; of the second pairs from bit 8
    // on, and from bit 0 on.
    DEVICE u32 upper_of(u32 word, u32 chunk, u32 pair) {
        constexpr u32 UNIT = BITS - 4, MASK = UNIT == 2 ? 0x00300030 : 0x00100010;
        const u32 further = pair / 2 * UNIT + (UNIT == 2 ? 0 : chunk % 2 * 2);
        const bool is_outer = UNIT == 2 ? chunk % 2 != 0 : chunk / 2 != 0;
        if (pair % 2 == 0) return word >> (further + (is_outer ? 8 : 0)) & MASK;
        return (is_outer ? word << (8 - further) : word >> further) & MASK << 4;
    }

    // A chunk's codes of lane `lane` and rows `half`.
    DEVICE CodePairs codes_of(const u8* tile, u32 half, u32 lane, u32 chunk) {
        const u32 place = (chunk * 2 + half) * 32 + lane;
        CodePairs codes;
        if constexpr (BITS == 8) {
            const uint2 words = ((const uint2*)tile)[place];
            codes = {{words.x & 0x00ff00ff, words.x >> 8 & 0x00ff00ff, words.y & 0x00ff00ff, words.y >> 8 & 0x00ff00ff}};
        } else if constexpr (IS_POWER) {
            // Signs to the halves' first bits, what else there is to where bf16 has the end of the exponent.
            const u32 word = ((const u32*)tile)[place];
            constexpr u32 SIGNS = 0x80008000, OTHERS = 0x01c001c0;
            codes.pairs[0] = and_or(word << 12, SIGNS, word << 6 & OTHERS);
            codes.pairs[1] = and_or(word << 8, SIGNS, word << 2 & OTHERS);
            codes.pairs[2] = and_or(word << 4, SIGNS, word >> 2 & OTHERS);
            codes.pairs[3] = and_or(word, SIGNS, word >> 6 & OTHERS);
        } else if constexpr (BITS == 4 && IS_PAIR) {
            const u32 word = ((const u32*)tile)[place];
#pragma unroll
            for (u32 pair = 0; pair < 4; pair++) codes.pairs[pair] = and_or(word >> 4 * pair, 0x000f000f, OF_128);
        } else {
            const u32 word = ((const u32*)tile)[place];
            codes = {{word & 0x000f000f, word & 0x00f000f0, word >> 8 & 0x000f000f, word >> 8 & 0x00f000f0}};
        }
        if constexpr (BITS == 5 || BITS == 6) {
            const u32* uppers = (const u32*)(tile + 4 * QUANT_ROWS * QUANT_COLUMNS / 8);
            const u32 upper = uppers[((BITS == 6 ? chunk / 2 * 2 : 0) + half) * 32 + lane];
#pragma unroll
            for (u32 pair = 0; pair < 4; pair++) {
                codes.pairs[pair] |= upper_of(upper, chunk, pair);
                if (IS_PAIR) codes.pairs[pair] = codes.pairs[pair] >> (pair % 2 * 4) | OF_128;
            }
        }
        return codes;
    }

    // The weights of a pair, the first or the second of its product.
    DEVICE u32 weights_of(u32 pair, const Scale& scale, bool is_second) {
        if constexpr (IS_POWER) {
            constexpr u32 TO_NUMBER = 0x7e807e80; // 2^126
            return fma_pairs<bf16>(fma_pairs<bf16>(pair, TO_NUMBER, 0), scale.pair, 0);
        } else if constexpr (IS_PAIR) {
            constexpr u32 ONE = 0x3f803f80;
            const u32 q = fma_pairs<bf16>(pair, ONE, scale.zero);
            return fma_pairs<bf16>(q, scale.high, fma_pairs<bf16>(q, scale.low, 0));
        } else {
            const float factor = is_second ? __fmul_rn(scale.scale, SECOND) : scale.scale;
            return pack<T>(__fmaf_rn(low_float<f16>(pair), factor, scale.base), __fmaf_rn(high_float<f16>(pair), factor, scale.base));
        }
    }

    // Of a tile, the scales of rows l / 4 and l / 4 + 8 of chunk l % 4, which lane l hands to its neighbours.
    struct Scales {
        Scale own[2][GROUPS];
    };
    DEVICE Scales scales_of(const u8* tile) {
        const u32 lane = threadIdx.x % 32;
        Scales scales;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
#pragma unroll
            for (u32 group = 0; group < GROUPS; group++) {
                scales.own[half][group] = scale_of(tile + CODE_BYTES, lane / 4 + 8 * half, lane % 4, group);
            }
        }
        return scales;
    }

    // This lane's columns of a chunk's two products, of rows `half`. Whole warps call it.
    DEVICE uint4 expand(const u8* tile, const Scales& scales, u32 half, u32 chunk) {
        const u32 lane = threadIdx.x % 32, from = lane / 4 * 4 + chunk;
        const CodePairs codes = codes_of(tile, half, lane, chunk);
        u32 weights[4];
#pragma unroll
        for (u32 product = 0; product < 2; product++) {
            const Scale& own = scales.own[half][GROUPS == 2 ? product : 0];
            const Scale scale = SCALING == Scaling::TILE_DZ ? own : own.of_lane(from);
            weights[2 * product] = weights_of(codes.pairs[2 * product], scale, false);
            weights[2 * product + 1] = weights_of(codes.pairs[2 * product + 1], scale, true);
        }
        return make_uint4(weights[0], weights[1], weights[2], weights[3]);
    }
};

template <typename T>
using Q4_0 = Quant<T, 4, 8, Scaling::D>;
template <typename T>
using Q4_1 = Quant<T, 4, 0, Scaling::DM>;
template <typename T>
using Q5_0 = Quant<T, 5, 16, Scaling::D>;
template <typename T>
using Q5_1 = Quant<T, 5, 0, Scaling::DM>;
template <typename T>
using Q8_0 = Quant<T, 8, 128, Scaling::D>;
template <typename T>
using Q4_K = Quant<T, 4, 0, Scaling::K>;
template <typename T>
using Q5_K = Quant<T, 5, 0, Scaling::K>;
template <typename T>
using Q6_K = Quant<T, 6, 32, Scaling::K16>;
template <typename T>
using INT4_G32 = Quant<T, 4, 0, Scaling::DZ>;
template <typename T>
using INT4_G128 = Quant<T, 4, 0, Scaling::TILE_DZ>;
template <typename T>
using MXFP4 = Quant<T, 4, 0, Scaling::E>;
