// What linear's kernels for all devices have in common: how weights are stored, and products of chunks. After platform.h and e4m3.h.
#pragma once

// Columns of a matrix product, its features and its tokens; columns of a chunk.
static constexpr u32 COLUMNS = 16, FEATURES = 16, TOKENS = 8, CHUNK = 2 * COLUMNS;

// In shared memory piece `idx` of the 16 bytes of a row of 64 is at this place of the row.
DEVICE u32 place_of(u32 idx, u32 row) { return idx ^ (row & 2); }

// This lane's columns of a chunk's two products, of row lane / 4 from `rows` on in shared memory.
DEVICE uint4 read_columns(const uint4* rows) {
    const u32 lane = threadIdx.x % 32, row = lane / 4;
    const uint2* own = (const uint2*)(rows + 4 * row + lane % 2) + lane % 4 / 2;
    const uint2 first = own[2 * place_of(0, row)], second = own[2 * place_of(2, row)];
    return make_uint4(first.x, first.y, second.x, second.y);
}

// How weights are stored. A step of 16 rows holds CHUNKS chunks in TILE_BYTES: here 64 bytes a row, 16 a lane. STREAM_BYTES: shared
// memory of a warp that streams them (linear_rows.h).
template <typename T_>
struct Plain {
    using T = T_;
    static constexpr u32 CHUNKS = 1, TILE_BYTES = FEATURES * 64, STREAM_BYTES = 10 * 1024;
    static constexpr bool HAS_SCALE = false;
    // What totals lack.
    static constexpr float FACTOR = 1.0f;
    // Bytes of a row of `cols` columns.
    DEVICE u32 row_bytes(u32 cols) { return 2 * cols; }
    // This lane's columns of the two products of a step's chunk `c`; the step is in shared memory, its row 0 at `rows`.
    DEVICE uint4 of_shared(const uint4* rows, u32 c) { return read_columns(rows); }
};

template <typename T_>
struct Fp8 {
    using T = T_;
    static constexpr u32 CHUNKS = 2, TILE_BYTES = FEATURES * 64, STREAM_BYTES = 10 * 1024;
    static constexpr bool HAS_SCALE = true;
    static constexpr float FACTOR = E4M3_FACTOR<T>;
    DEVICE u32 row_bytes(u32 cols) { return (cols + 63) / 64 * 64; }
    DEVICE uint4 of_shared(const uint4* rows, u32 c) {
        const u32 lane = threadIdx.x % 32;
        const uint4 piece = rows[lane / 4 * 4 + place_of(lane % 4, lane / 4)];
        const uint2 first = expand_e4m3<T>(c == 0 ? piece.x : piece.z), second = expand_e4m3<T>(c == 0 ? piece.y : piece.w);
        return make_uint4(first.x, first.y, second.x, second.y);
    }
};

// What all kernels are given.
template <typename W>
struct Product {
    void* out;
    const typename W::T* x;
    const void* weight;
    const float* scale;
    const float* bias;
    // stride: numbers of a row of out, `features` or more.
    u32 tokens, features, stride, cols, segment;
    u32 out_is_f32;
};

// The end of a number: its total with the row's scale.
template <typename W>
DEVICE float scaled(float total, float scale) {
    return W::HAS_SCALE ? __fmul_rn(total * W::FACTOR, scale) : total;
}

// sums += the two products of a chunk: this lane's columns, those of the first and then those of the second, of features g and
// g + 8 (g = lane / 4), `low` and `high`, and of token g of each of the tiles, x. The only place where products are summed.
template <typename T, int TILES>
DEVICE void multiply(float (&sums)[TILES][4], const uint4& low, const uint4& high, const uint4 (&x)[TILES]) {
    const u32 first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        const u32 b[2] = {x[t].x, x[t].y};
        mma_16x8x16<T>(sums[t], first, b);
    }
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        const u32 b[2] = {x[t].z, x[t].w};
        mma_16x8x16<T>(sums[t], second, b);
    }
}

// The arguments of kernels.
#define PRODUCT {out, x, weight, scale, bias, tokens, features, stride, cols, segment, out_is_f32}
#define ARGUMENTS(T)                                                                                                   \
    void *out, const T *x, const void *weight, const float *scale, const float *bias, u32 tokens, u32 features,        \
        u32 stride, u32 cols, u32 segment, u32 out_is_f32
