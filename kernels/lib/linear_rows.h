// What kernels of at most 16 tokens have in common (linear_rows.cu, linear_quant.cu): a warp streams its rows of weights, and a
// block's warps put their sums together. After linear.h and activation.h.
#pragma once

static constexpr u32 WARPS = 8;
// Features of a warp and room, so that lanes of different tokens write to different banks.
static constexpr u32 SUMS_PITCH = FEATURES + 4;
// Where tokens are so few that their attention leaves memory idle, so many bytes of each of a warp's rows come to the second cache before
// their steps.
static constexpr u32 FEW_TOKENS = 2, BYTES_AHEAD = 1024;

// Where this lane's columns of the first chunk begin, of token g of the `tile`th tile. What is beyond the last token repeats it: nobody
// reads those sums.
template <typename W>
DEVICE const typename W::T* own_tokens(const Product<W>& p, u32 tile) {
    const u32 lane = threadIdx.x % 32;
    return p.x + (u64)min(tile * TOKENS + lane / 4, p.tokens - 1) * p.cols + 8 * (lane % 2) + 4 * (lane % 4 / 2);
}

// This lane's columns of a whole chunk, the `chunk`th from `tokens` on.
template <typename W, int TILES>
DEVICE void load_chunk(uint4 (&x)[TILES], const typename W::T* const (&tokens)[TILES], u32 chunk) {
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        const typename W::T* at = tokens[t] + chunk * CHUNK;
        const uint2 low = *(const uint2*)at, high = *(const uint2*)(at + COLUMNS);
        x[t] = make_uint4(low.x, low.y, high.x, high.y);
    }
}

// The same of the chunk from column `first` on, with zeros from `end` on.
template <typename W, int TILES>
DEVICE void load_tokens(uint4 (&x)[TILES], const Product<W>& p, u32 first, u32 end) {
    const u32 lane = threadIdx.x % 32, col = first + 8 * (lane % 2) + 4 * (lane % 4 / 2);
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        const typename W::T* at = own_tokens(p, t) + first;
        uint2 low = make_uint2(0, 0), high = make_uint2(0, 0);
        if (col < end) low = *(const uint2*)at;
        if (col + COLUMNS < end) high = *(const uint2*)(at + COLUMNS);
        x[t] = make_uint4(low.x, low.y, high.x, high.y);
    }
}

// A warp's products with columns start..end of rows first_row.. of the weights' num_rows, by way of W::STREAM_BYTES of shared memory that
// are its own. It waits for the kernel before. `start` is a multiple of 128, `end` of 8.
template <typename W, int TILES>
DEVICE void stream(float (&sums)[TILES][4], const Product<W>& p, u8* memory, u32 first_row, u32 num_rows, u32 start, u32 end);

// GATED: out = act(gate) * up, `features` of each, of which a block has the same: its first tiles of 16 features are gate's.
template <typename W, int TILES, bool GATED>
DEVICE void rows(const Product<W>& p, u32 splits, u32 kind) {
    using T = typename W::T;
    DYNAMIC_SHARED(memory);
    __shared__ float shared[WARPS][TILES * TOKENS][SUMS_PITCH];
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, tile = warp / splits;
    const u32 half_tiles = WARPS / splits / (GATED ? 2 : 1), block_features = half_tiles * FEATURES;
    const u32 block_feature = blockIdx.x * block_features, num_rows = (GATED ? 2 : 1) * p.features;
    const u32 feature = block_feature + tile % half_tiles * FEATURES;
    const u32 start = warp % splits * p.segment, end = min(start + p.segment, p.cols);
    // A thread's results are all of one feature: what they end with is there by then.
    constexpr u32 HALVES = GATED ? 2 : 1;
    const u32 at = threadIdx.x % block_features, own_feature = block_feature + at;
    float scales[HALVES], biases[HALVES];
#pragma unroll
    for (u32 half = 0; half < HALVES; half++) {
        const u32 row = half * p.features + own_feature;
        scales[half] = W::HAS_SCALE && own_feature < p.features ? p.scale[row] : 0.0f;
        biases[half] = p.bias != nullptr && own_feature < p.features ? p.bias[row] : 0.0f;
    }
    if (start >= end || feature >= p.features) {
        wait_for_writes();
    } else {
        float sums[TILES][4] = {};
        const u32 first_row = (tile < half_tiles ? 0 : p.features) + feature;
        stream<W, TILES>(sums, p, memory + warp * W::STREAM_BYTES, first_row, num_rows, start, end);
#pragma unroll
        for (int t = 0; t < TILES; t++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                shared[warp][t * TOKENS + 2 * (lane % 4) + i % 2][lane / 4 + i / 2 * 8] = sums[t][i];
            }
        }
    }
    __syncthreads();
    let_next_begin();
    const u32 num_segments = (p.cols + p.segment - 1) / p.segment;
    auto total_of = [&](u32 token, u32 half) {
        const u32 first_warp = (half * block_features + at) / FEATURES * splits;
        float total = 0.0f;
        for (u32 s = 0; s < num_segments; s++) total += shared[first_warp + s][token][at % FEATURES];
        if (W::HAS_SCALE) total = scaled<W>(total, scales[half]);
        return p.bias != nullptr ? total + biases[half] : total;
    };
    if (own_feature >= p.features) return;
    for (u32 token = threadIdx.x / block_features; token < p.tokens; token += WARPS * 32 / block_features) {
        float total = total_of(token, 0);
        const u64 to = (u64)token * p.stride + own_feature;
        if (GATED) {
            // Both are rounded as two launches would.
            const float up = to_float(from_float<T>(total_of(token, HALVES - 1)));
            total = gated(to_float(from_float<T>(total)), up, kind);
        }
        if (p.out_is_f32) {
            ((float*)p.out)[to] = total;
        } else {
            ((T*)p.out)[to] = from_float<T>(total);
        }
    }
}

#define ROWS(FORM, T, NAME, MAX, BLOCKS)                                                                               \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS)                                                   \
        linear_rows##MAX##_##NAME(ARGUMENTS(T), u32 splits) {                                                          \
        rows<FORM<T>, MAX / TOKENS, false>(PRODUCT, splits, 0);                                                        \
    }                                                                                                                  \
    EXPORT_KERNEL(linear_rows##MAX##_##NAME)                                                                           \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS)                                                   \
        linear_gated_rows##MAX##_##NAME(ARGUMENTS(T), u32 splits, u32 kind) {                                          \
        rows<FORM<T>, MAX / TOKENS, true>(PRODUCT, splits, kind);                                                      \
    }                                                                                                                  \
    EXPORT_KERNEL(linear_gated_rows##MAX##_##NAME)
