// rope_append_kv: turns the pairs (i, i + rotary_dim / 2) of q's and k's heads by the angles in a row of a table, and writes k
// and v to the paged cache (lib/rope.h). In f32, rounded once: the cache gets the bits of k that qkv gets. Of steps of single queries
// attention_decode.cu does the same on its way.
//
// qkv [num_tokens, q of num_heads, k of num_kv_heads, v of num_kv_heads] of head_dim, in 16 bits, turned in place.
// keys, values [num_blocks, num_kv_heads, block_size, head_stride], of one layer, in the same type; dimensions from head_dim on
// are left as they are. table [table_rows, rotary_dim] f32: of each row cosines, then sines. rows [num_tokens]: by which of
// them a token turns. slots [num_tokens]: block * block_size + offset, or NO_SLOT where nothing goes to the cache. lets_next:
// let_next_begin_if's.
//
// A thread has an item: WIDTH pairs of a head, or WIDTH dimensions that do not turn, or WIDTH dimensions of v. WIDTH is 8 where
// halves and heads are whole vectors of 16 bytes, else 1. Grid (num_tokens, items / 128), 128 threads; no shared memory.
//
// Bounded by memory: 4 bytes an element of q, 6 of k, 4 of v, and the token's row of the table, which all heads read.
#include "lib/platform.h"
#include "lib/rope.h"
#include "lib/vector.h"

static constexpr u32 NO_SLOT = 0xffffffffu;

struct Heads {
    u32 num_heads, num_kv_heads, head_dim, rotary_dim, block_size, head_stride;
};

// WIDTH neighbours as they lie in memory.
template <u32 WIDTH>
struct Bits;
template <>
struct Bits<8> {
    typedef uint4 Type;
};
template <>
struct Bits<1> {
    typedef u16 Type;
};

template <typename T>
DEVICE void unpack(float (&x)[8], uint4 bits) {
    const u32 pairs[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[2 * i] = low_float<T>(pairs[i]);
        x[2 * i + 1] = high_float<T>(pairs[i]);
    }
}
template <typename T>
DEVICE void unpack(float (&x)[1], u16 bits) {
    x[0] = to_float(T{bits});
}
template <typename T>
DEVICE uint4 round_all(const float (&x)[8]) {
    return make_uint4(pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]), pack<T>(x[6], x[7]));
}
template <typename T>
DEVICE u16 round_all(const float (&x)[1]) {
    return from_float<T>(x[0]).bits;
}

// An item. What it needs of the table is asked for before the kernel before has ended, which writes none of it.
template <typename T, u32 WIDTH>
DEVICE void do_item(T* row, T* key, T* value, const float* angles, const Heads& heads, u32 item, u64 head_step) {
    typedef typename Bits<WIDTH>::Type B;
    const u32 half = heads.rotary_dim / 2, num_pairs = half / WIDTH;
    // Items of a head that turns, those of its pairs first, and of one of v.
    const u32 of_turning = (heads.head_dim - half) / WIDTH, of_value = heads.head_dim / WIDTH;
    const u32 num_turning = heads.num_heads + heads.num_kv_heads;
    if (item >= num_turning * of_turning) {
        wait_for_kernel_before();
        item -= num_turning * of_turning;
        const u32 head = item / of_value, d = item % of_value * WIDTH;
        if (head >= heads.num_kv_heads || value == nullptr) return;
        const u64 from = (u64)(num_turning + head) * heads.head_dim + d;
        *(B*)(value + head * head_step + d) = *(const B*)(row + from);
        return;
    }
    const u32 head = item / of_turning, in_head = item % of_turning;
    T* at = row + (u64)head * heads.head_dim;
    T* copy = head >= heads.num_heads && key != nullptr ? key + (head - heads.num_heads) * head_step : nullptr;
    if (in_head >= num_pairs) {
        wait_for_kernel_before();
        const u32 d = heads.rotary_dim + (in_head - num_pairs) * WIDTH;
        if (copy != nullptr) *(B*)(copy + d) = *(const B*)(at + d);
        return;
    }
    const u32 d = in_head * WIDTH;
    float x[WIDTH], y[WIDTH], cosines[WIDTH], sines[WIDTH];
    if constexpr (WIDTH == 8) {
        load_vector<float, 8>(cosines, angles + d);
        load_vector<float, 8>(sines, angles + half + d);
    } else {
        cosines[0] = angles[d];
        sines[0] = angles[half + d];
    }
    wait_for_kernel_before();
    unpack<T>(x, *(const B*)(at + d));
    unpack<T>(y, *(const B*)(at + d + half));
#pragma unroll
    for (u32 i = 0; i < WIDTH; i++) {
        const float low = x[i];
        x[i] = turn_low(low, y[i], cosines[i], sines[i]);
        y[i] = turn_high(low, y[i], cosines[i], sines[i]);
    }
    const B low = round_all<T>(x), high = round_all<T>(y);
    *(B*)(at + d) = low;
    *(B*)(at + d + half) = high;
    if (copy != nullptr) {
        *(B*)(copy + d) = low;
        *(B*)(copy + d + half) = high;
    }
}

template <typename T>
DEVICE void do_token(T* qkv, T* keys, T* values, const float* table, const u32* rows, const u32* slots,
                     const Heads& heads, u32 width) {
    const u32 token = blockIdx.x, item = blockIdx.y * blockDim.x + threadIdx.x, slot = slots[token];
    T* row = qkv + (u64)token * (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim;
    const float* angles = table + (u64)rows[token] * heads.rotary_dim;
    const u64 head_step = (u64)heads.block_size * heads.head_stride;
    const u64 start = slot / heads.block_size * heads.num_kv_heads * head_step + slot % heads.block_size * heads.head_stride;
    T* key = slot == NO_SLOT ? nullptr : keys + start;
    T* value = slot == NO_SLOT ? nullptr : values + start;
    if (width == 8) {
        do_item<T, 8>(row, key, value, angles, heads, item, head_step);
    } else {
        do_item<T, 1>(row, key, value, angles, heads, item, head_step);
    }
}

#define KERNELS(T)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        rope_append_kv_##T(T* qkv, T* keys, T* values, const float* table, const u32* rows, const u32* slots,          \
            u32 num_heads, u32 num_kv_heads, u32 head_dim, u32 rotary_dim, u32 block_size, u32 head_stride,            \
            u32 width, u32 lets_next) {                                                                                \
        let_next_begin_if(lets_next);                                                                                  \
        const Heads heads = {num_heads, num_kv_heads, head_dim, rotary_dim, block_size, head_stride};                  \
        do_token(qkv, keys, values, table, rows, slots, heads, width);                                                 \
    }                                                                                                                  \
    EXPORT_KERNEL(rope_append_kv_##T)
KERNELS(bf16)
KERNELS(f16)
