// expand_kv: the keys and values of some prompts, from one layer of a cache of 8 bits (lib/kv_int8.h) to a cache of 16 bits, where attention's
// kernels for prompts read them: they would expand a key once for each 16 queries.
//
// keys, values [num_blocks, num_kv_heads] pages of one layer; out_keys, out_values [pages, num_kv_heads, block_size,
// head_stride], 16 bits; sequences and tables are attention.cu's, prompts [grid.y] of it. The prompts' pages become those of the
// output, one prompt after another, whole, and out_tables says which where tables has the page. Pages that no query of the prompt sees
// are left as they are; tables may name none there.
//
// Grid (most pages of a prompt, prompts), 256 threads, each of which takes 16 numbers at a time; no shared memory. block_size a multiple
// of 8, head_stride of 16.
//
// Bounded by memory: 3 bytes a number, a small part of what attention takes where a prompt's queries are not few.
#include "lib/platform.h"
#include "lib/softmax.h"
#include "lib/kv_int8.h"

static constexpr u32 THREADS = 256;

struct Shape {
    u32 num_kv_heads, head_stride, block_size;
};

// Pages of the prompts before this block's, by whole warps.
DEVICE u32 pages_before(const u32* sequences, const u32* prompts, u32 block_size) {
    u32 sum = 0;
    for (u32 i = threadIdx.x % 32; i < blockIdx.y; i += 32) sum += (sequences[4 * prompts[i] + 2] + block_size - 1) / block_size;
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(FULL_WARP, sum, offset);
    return sum;
}

// The pages of all key heads of a block.
template <typename T>
DEVICE void expand_block(T* out, const i8* cache, u32 to, u32 from, const Shape& shape) {
    const u32 pieces_of_key = shape.head_stride / 16, pieces = shape.block_size * pieces_of_key;
    const u32 page_pieces = int8_page_pieces(shape.block_size, shape.head_stride);
    for (u32 i = threadIdx.x; i < shape.num_kv_heads * pieces; i += THREADS) {
        const u32 head = i / pieces, in_page = i % pieces;
        const uint4* page = (const uint4*)cache + ((u64)from * shape.num_kv_heads + head) * page_pieces;
        const uint4 words = page[in_page];
        const ScalePair scale = scale_pair<T>(0x10001u * ((const u16*)(page + pieces))[in_page / pieces_of_key]);
        const uint2 a = expand_int8<T>(words.x, scale), b = expand_int8<T>(words.y, scale);
        const uint2 c = expand_int8<T>(words.z, scale), d = expand_int8<T>(words.w, scale);
        uint4* own = (uint4*)out + 2 * (((u64)to * shape.num_kv_heads + head) * pieces + in_page);
        own[0] = make_uint4(a.x, b.x, c.x, d.x);
        own[1] = make_uint4(a.y, b.y, c.y, d.y);
    }
}

#define KERNELS(T)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        expand_kv_##T(T* out_keys, T* out_values, u32* out_tables, const i8* keys, const i8* values,               \
            const u32* sequences, const u32* tables, const u32* prompts, u32 num_kv_heads, u32 head_stride,            \
            u32 block_size, u32 window) {                                                                              \
        wait_for_kernel_before();                                                                                      \
        const u32* seq = sequences + 4 * prompts[blockIdx.y];                                                          \
        const u32 first_key = blockIdx.x * block_size, low = low_of(seq[2] - seq[1], window);                          \
        if (first_key >= seq[2] || first_key + block_size <= low) return;                                              \
        const u32 to = pages_before(sequences, prompts, block_size) + blockIdx.x;                                      \
        const u32 from = tables[seq[3] + blockIdx.x];                                                                  \
        const Shape shape = {num_kv_heads, head_stride, block_size};                                                   \
        expand_block(out_keys, keys, to, from, shape);                                                                 \
        expand_block(out_values, values, to, from, shape);                                                             \
        if (threadIdx.x == 0) out_tables[seq[3] + blockIdx.x] = to;                                                    \
    }                                                                                                                  \
    EXPORT_KERNEL(expand_kv_##T)
KERNELS(bf16)
KERNELS(f16)
