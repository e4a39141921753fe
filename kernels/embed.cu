// embed: out[t] = table[token_ids[t]] * scale, rows of the embedding table in f32 (Gemma's scale is sqrt(hidden)).
//
// token_ids [num_tokens]: tokens, or UNREAD_BIT and a row of sampled, where the step before has left what it sampled from
// that row of its logits and nobody has read yet; sampled [num_logits]; table [vocab_size, cols] in 16 bits; out [num_tokens, cols] f32, the residual stream.
// Grid (num_tokens, cols / (8 * threads)), at most 256 threads of 8 elements. No shared memory.
// Bounded by memory: 6 bytes an element.
#include "lib/platform.h"
#include "lib/vector.h"

// As backend/cuda/batch.rs has it.
static constexpr u32 UNREAD_BIT = 1u << 31;

template <typename T>
DEVICE void embed(float* out, const T* table, const u32* token_ids, const u32* sampled, u32 cols, float scale) {
    constexpr int WIDTH = 8;
    wait_for_kernel_before();
    const u64 start = (u64)(blockIdx.y * blockDim.x + threadIdx.x) * WIDTH;
    const bool is_aligned = cols % WIDTH == 0;
    u32 token_id = token_ids[blockIdx.x];
    if (token_id & UNREAD_BIT) token_id = sampled[token_id & ~UNREAD_BIT];
    float x[WIDTH];
    load_part<T, WIDTH>(x, table + (u64)token_id * cols, start, cols, is_aligned);
#pragma unroll
    for (int i = 0; i < WIDTH; i++) x[i] *= scale;
    store_part<float, WIDTH>(out + (u64)blockIdx.x * cols, x, start, cols, is_aligned);
}

#define KERNELS(T)                                                                                                     \
    extern "C" __global__ void embed_##T(float* out, const T* table, const u32* token_ids, const u32* sampled,         \
                                         u32 cols, float scale) {                                                      \
        embed<T>(out, table, token_ids, sampled, cols, scale);                                                         \
    }                                                                                                                  \
    EXPORT_KERNEL(embed_##T)
KERNELS(bf16)
KERNELS(f16)
