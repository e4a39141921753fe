// embed: out[t] = table[token_ids[t]] * scale, rows of the embedding table in f32 (Gemma's scale is sqrt(hidden)).
//
// token_ids [num_tokens]: tokens, or UNREAD_BIT and a row of sampled, where the step before has left what it sampled from
// that row of its logits and nobody has read yet; sampled [num_logits]; table [vocab_size, cols] in 16 bits; out [num_tokens, cols] f32, the residual stream.
// Grid (num_tokens, cols / (8 * threads)), at most 256 threads of 8 elements. No shared memory.
// Bounded by memory: 6 bytes an element.
#include "lib/platform.h"
#include "lib/vector.h"
#include "lib/quant.h"

// As backend/cuda/batch.rs has it.
static constexpr u32 UNREAD_BIT = 1u << 31;

DEVICE u32 own_token(const u32* token_ids, const u32* sampled) {
    const u32 token_id = token_ids[blockIdx.x];
    return token_id & UNREAD_BIT ? sampled[token_id & ~UNREAD_BIT] : token_id;
}

template <typename T>
DEVICE void embed(float* out, const T* table, const u32* token_ids, const u32* sampled, u32 cols, float scale) {
    constexpr int WIDTH = 8;
    wait_for_kernel_before();
    const u64 start = (u64)(blockIdx.y * blockDim.x + threadIdx.x) * WIDTH;
    const bool is_aligned = cols % WIDTH == 0;
    float x[WIDTH];
    load_part<T, WIDTH>(x, table + (u64)own_token(token_ids, sampled) * cols, start, cols, is_aligned);
#pragma unroll
    for (int i = 0; i < WIDTH; i++) x[i] *= scale;
    store_part<float, WIDTH>(out + (u64)blockIdx.x * cols, x, start, cols, is_aligned);
}

// A thread has what a lane of products has of a chunk: four columns of each of two.
template <typename W>
DEVICE void embed_quant(float* out, const u8* table, const u32* token_ids, const u32* sampled, u32 cols, float scale) {
    wait_for_kernel_before();
    const u32 idx = blockIdx.y * blockDim.x + threadIdx.x, own = idx % 4, chunk = idx / 4 % QUANT_CHUNKS;
    const u32 tile_idx = idx / (4 * QUANT_CHUNKS), num_tiles = (cols + QUANT_COLUMNS - 1) / QUANT_COLUMNS;
    const u32 col = tile_idx * QUANT_COLUMNS + chunk * 32 + 8 * (own % 2) + 4 * (own / 2);
    if (col >= cols) return;
    const u32 token_id = own_token(token_ids, sampled), row = token_id % QUANT_ROWS;
    const u8* tile = table + ((u64)(token_id / QUANT_ROWS) * num_tiles + tile_idx) * W::TILE_BYTES;
    const CodePairs codes = W::codes_of(tile, row / 8, row % 8 * 4 + own, chunk);
#pragma unroll
    for (u32 product = 0; product < 2; product++) {
        const u32 group = W::GROUPS == 2 ? product : 0;
        const typename W::Scale own_scale = W::scale_of(tile + W::CODE_BYTES, row, chunk, group);
        float x[4];
        unpack_word<typename W::T>(x, W::weights_of(codes.pairs[2 * product], own_scale, false));
        unpack_word<typename W::T>(x + 2, W::weights_of(codes.pairs[2 * product + 1], own_scale, true));
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] *= scale;
        // Blocks of all formats have whole chunks.
        store_vector<float, 4>(out + (u64)blockIdx.x * cols + col + 16 * product, x);
    }
}

#define QUANT_KERNEL(FORM, NAME)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        embed_##NAME(float* out, const u8* table, const u32* token_ids, const u32* sampled, u32 cols, float scale) {   \
        embed_quant<FORM<bf16>>(out, table, token_ids, sampled, cols, scale);                                          \
    }                                                                                                                  \
    EXPORT_KERNEL(embed_##NAME)
#define KERNELS(T)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        embed_##T(float* out, const T* table, const u32* token_ids, const u32* sampled, u32 cols, float scale) {       \
        embed<T>(out, table, token_ids, sampled, cols, scale);                                                         \
    }                                                                                                                  \
    EXPORT_KERNEL(embed_##T)
KERNELS(bf16)
KERNELS(f16)
QUANT_KERNEL(Q4_0, q4_0_bf16)
QUANT_KERNEL(Q4_1, q4_1_bf16)
QUANT_KERNEL(Q5_0, q5_0_bf16)
QUANT_KERNEL(Q5_1, q5_1_bf16)
QUANT_KERNEL(Q8_0, q8_0_bf16)
QUANT_KERNEL(Q4_K, q4_k_bf16)
QUANT_KERNEL(Q5_K, q5_k_bf16)
QUANT_KERNEL(Q6_K, q6_k_bf16)
QUANT_KERNEL(INT4_G32, int4_g32_bf16)
QUANT_KERNEL(INT4_G128, int4_g128_bf16)
QUANT_KERNEL(MXFP4, mxfp4_bf16)
