// rope_append_kv_int8: what rope_append_kv.cu does, with a cache of 8 bits (lib/kv_int8.h): a head's key or value in it is the row's, rounded
// once more, with a scale of its own.
//
// Arguments are rope_append_kv.cu's, but that pages are of 8 bits; block_size is a multiple of 8, head_dim at most 256. Dimensions from
// head_dim on become zeros.
//
// A warp has a head of q, k or v of a token; grid (num_tokens, heads / 4), 128 threads; no shared memory.
//
// Bounded by memory: 4 bytes an element of q, 5 of k, 3 of v, and the token's row of the table, which all heads read.
#include "lib/platform.h"
#include "lib/rope.h"
#include "lib/kv_int8.h"

static constexpr u32 NO_SLOT = 0xffffffffu, WARPS = 4;
// A lane's, at most: of a head's numbers, that turn together, or that stand together in the cache.
static constexpr u32 MAX_PAIRS = 256 / 2 / 32;

struct Heads {
    u32 num_heads, num_kv_heads, head_dim, rotary_dim, block_size, head_stride;
};

// Turns a head that is q's or k's, in place. The table is asked for before the kernel before has ended, which writes none of it.
template <typename T>
DEVICE void turn(T* at, const float* angles, u32 half) {
    const u32 lane = threadIdx.x % 32;
    float cosines[MAX_PAIRS], sines[MAX_PAIRS];
#pragma unroll
    for (u32 i = 0; i < MAX_PAIRS; i++) {
        const u32 d = lane + 32 * i;
        if (d >= half) continue;
        cosines[i] = angles[d];
        sines[i] = angles[half + d];
    }
    wait_for_kernel_before();
#pragma unroll
    for (u32 i = 0; i < MAX_PAIRS; i++) {
        const u32 d = lane + 32 * i;
        if (d >= half) continue;
        const float x = to_float(at[d]), y = to_float(at[d + half]);
        at[d] = from_float<T>(turn_low(x, y, cosines[i], sines[i]));
        at[d + half] = from_float<T>(turn_high(x, y, cosines[i], sines[i]));
    }
}

// Brings a head to its place in the cache: its numbers, and their scale.
template <typename T>
DEVICE void append(u16* to, T* scale_to, const T* at, const Heads& heads) {
    const u32 lane = threadIdx.x % 32;
    const Int8Head<T, MAX_PAIRS> head = int8_head<T, MAX_PAIRS>(at, heads.head_dim);
#pragma unroll
    for (u32 i = 0; i < MAX_PAIRS; i++) {
        const u32 pair = lane + 32 * i;
        if (pair < heads.head_stride / 2) to[pair] = head.pairs[i];
    }
    if (lane == 0) *scale_to = head.scale;
}

template <typename T>
DEVICE void do_head(T* qkv, u8* keys, u8* values, const float* table, const u32* rows, const u32* slots, const Heads& heads) {
    const u32 token = blockIdx.x, head = blockIdx.y * WARPS + threadIdx.x / 32, num_turning = heads.num_heads + heads.num_kv_heads;
    const u32 slot = slots[token];
    T* at = qkv + ((u64)token * (num_turning + heads.num_kv_heads) + head) * heads.head_dim;
    if (head < num_turning) {
        turn(at, table + (u64)rows[token] * heads.rotary_dim, heads.rotary_dim / 2);
        // What a lane brings to the cache others have turned.
        __syncwarp();
    } else {
        wait_for_kernel_before();
    }
    if (head < heads.num_heads || head >= num_turning + heads.num_kv_heads || slot == NO_SLOT) return;
    const bool is_key = head < num_turning;
    const u32 kv_head = head - (is_key ? heads.num_heads : num_turning), offset = slot % heads.block_size;
    const u64 page = (u64)slot / heads.block_size * heads.num_kv_heads + kv_head;
    u8* start = (is_key ? keys : values) + page * int8_page_pieces(heads.block_size, heads.head_stride) * 16;
    append((u16*)(start + offset * heads.head_stride), (T*)(start + heads.block_size * heads.head_stride) + offset, at, heads);
}

#define KERNELS(T)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                           \
        rope_append_kv_int8_##T(T* qkv, u8* keys, u8* values, const float* table, const u32* rows,                        \
            const u32* slots, u32 num_heads, u32 num_kv_heads, u32 head_dim, u32 rotary_dim, u32 block_size,           \
            u32 head_stride, u32 lets_next) {                                                                          \
        let_next_begin_if(lets_next);                                                                                  \
        const Heads heads = {num_heads, num_kv_heads, head_dim, rotary_dim, block_size, head_stride};                  \
        do_head(qkv, keys, values, table, rows, slots, heads);                                                         \
    }                                                                                                                  \
    EXPORT_KERNEL(rope_append_kv_int8_##T)
KERNELS(bf16)
KERNELS(f16)
