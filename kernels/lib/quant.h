// Weights that stay in GGUF's block formats: small integers, of which 16 or 32 neighbours of a row share a scale and perhaps an
// offset. After platform.h.
//
// They are stored tile after tile, 16 rows by 128 columns, for 16 rows all tiles in order (backend/cuda/quant.rs): first the codes,
// then the scales of each row as the file has them. Columns are padded to whole tiles, rows to 16, with weights of 0. In a chunk of
// 32 columns lane l of a warp has, of rows l / 4 and l / 4 + 8, the columns that linear.cu gives it of the two products.
//
//   bits  codes of a tile, [..][2: rows l / 4, rows l / 4 + 8][32 lanes]
//   4     [4 chunks] words: in byte i the code of column i of the first product below, of the second above
//   5     the lower 4 as above; [1] words: in byte i, bit p, the upper bit of column i of product p of all eight
//   6     the lower 4 as above; [2 pairs of chunks] words: in byte i, bits 2 * p.., the upper two of product p of four
//   8     [4 chunks] pairs of words: in byte i the code of column i, of the first and of the second product
//
//   scales  of a tile, [16 rows]
//   D       [4 chunks] f16: d. A group's scale is d
//   DM      [4 chunks] f16 pairs: d, m. Its offset is m
//   K       f16 pair d, m; [4 chunks] bytes, factors of d; [4 chunks] bytes, factors of -m
//   K16     [8 groups of 16] signed bytes, factors of d; f16 d, 16 unused bits
//
// A weight is round(scale * q + offset), to 16 bits, where scale * q is exact and of what remains only scale * 128 - offset is rounded
// to f32 before: without offsets that is the number that expanding the file gives, with them within 2^-17 of a scale of it.
#pragma once

static constexpr u32 QUANT_ROWS = 16, QUANT_COLUMNS = 128, QUANT_CHUNKS = 4;

enum class Scaling { D, DM, K, K16 };

// Of one row and chunk: weight = number * scale + base, where number is a code's as `number_of` makes it.
struct Scale {
    float scale, base;
};

// ZERO: the code of 0.
template <typename T_, int BITS, int ZERO, Scaling SCALING>
struct Quant {
    using T = T_;
    static constexpr bool HAS_SCALE = false;
    static constexpr float FACTOR = 1.0f;
    static constexpr u32 CHUNKS = QUANT_CHUNKS;
    // Different scales in a chunk.
    static constexpr int GROUPS = SCALING == Scaling::K16 ? 2 : 1;
    static constexpr u32 CODE_BYTES = BITS * QUANT_ROWS * QUANT_COLUMNS / 8;
    static constexpr u32 ROW_SCALE_BYTES = SCALING == Scaling::D ? 8 : SCALING == Scaling::DM ? 16 : 12;
    static constexpr u32 TILE_BYTES = CODE_BYTES + QUANT_ROWS * ROW_SCALE_BYTES;

    // A code as a number of f32, plus BASE: it takes the place of some bits of BASE's.
    static constexpr float BASE = BITS == 8 ? 32768.0f : 128.0f;
    DEVICE float number_of(u32 codes, u32 byte) {
        return __uint_as_float(BITS == 8 ? __byte_perm(codes, 0x4700, 0x5404 | byte << 4)
                                         : __byte_perm(codes, 0x4300, 0x5044 | byte << 8));
    }

    // Of the scales at `at`, those of a tile: of row `row`, the `group`th of chunk `chunk`.
    DEVICE Scale scale_of(const u8* at, u32 row, u32 chunk, u32 group) {
        const u8* own = at + row * ROW_SCALE_BYTES;
        float scale, offset = 0.0f;
        if constexpr (SCALING == Scaling::D) {
            scale = to_float(((const f16*)own)[chunk]);
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
        return {scale, __fmaf_rn(-(BASE + ZERO), scale, offset)};
    }

    // A chunk's codes of lane `lane` and rows `half`, a byte each: four of the first product and four of the second.
    DEVICE uint2 codes_of(const u8* tile, u32 half, u32 lane, u32 chunk) {
        if constexpr (BITS == 8) {
            return ((const uint2*)tile)[(chunk * 2 + half) * 32 + lane];
        } else {
            return lower_and_upper(tile, half, lane, chunk);
        }
    }
    DEVICE uint2 lower_and_upper(const u8* tile, u32 half, u32 lane, u32 chunk) {
        const u32 word = ((const u32*)tile)[(chunk * 2 + half) * 32 + lane];
        uint2 codes = make_uint2(word & 0x0f0f0f0f, word >> 4 & 0x0f0f0f0f);
        const u32* upper = (const u32*)(tile + 4 * QUANT_ROWS * QUANT_COLUMNS / 8);
        if constexpr (BITS == 5) {
            const u32 bits = upper[half * 32 + lane] >> 2 * chunk;
            codes.x |= bits << 4 & 0x10101010, codes.y |= bits << 3 & 0x10101010;
        }
        if constexpr (BITS == 6) {
            const u32 bits = upper[(chunk / 2 * 2 + half) * 32 + lane] >> chunk % 2 * 4;
            codes.x |= bits << 4 & 0x30303030, codes.y |= bits << 2 & 0x30303030;
        }
        return codes;
    }

    // Four codes' weights.
    DEVICE uint2 weights_of(u32 codes, const Scale& scale) {
        float w[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) w[i] = __fmaf_rn(number_of(codes, i), scale.scale, scale.base);
        return make_uint2(pack<T>(w[0], w[1]), pack<T>(w[2], w[3]));
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
        const uint2 codes = codes_of(tile, half, lane, chunk);
        uint2 weights[2];
#pragma unroll
        for (u32 group = 0; group < 2; group++) {
            const Scale& own = scales.own[half][GROUPS == 2 ? group : 0];
            const Scale scale = {__shfl_sync(FULL_WARP, own.scale, from), __shfl_sync(FULL_WARP, own.base, from)};
            weights[group] = weights_of(group == 0 ? codes.x : codes.y, scale);
        }
        return make_uint4(weights[0].x, weights[0].y, weights[1].x, weights[1].y);
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
