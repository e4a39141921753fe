// attention: softmax(q . K^T * scale) . V over the paged cache, causal, grouped-query, with an optional sliding window and soft
// cap (cap * tanh(score / cap)); with sinks, which add a weight to each row's sum (modeling_gpt_oss.py). Online softmax (Milakov and Gimelshein 2018), queries and keys in tiles with tensor cores
// (FlashAttention-2, Dao 2023). P is rounded to 16 bits for P . V, and what it is divided by is P . 1: weights add up to 1.
// What a row's weights are relative to is its greatest score when that was last more than SLACK above it (lib/softmax.h).
// This file has prompts, sequences of several queries; attention_decode.cu has those of one.
//
// A query's bits depend on the query alone. Keys come in tiles at absolute positions, softmax begins anew at each absolute
// multiple of SPLIT keys, and the splits are put together from the first to the last by `merge`, wherever that happens. What a
// row does not see leaves its maximum, its sum and its output as they were, and no row reads another's. Sums and products that
// could be fused are written as what they are, so that the compiler has no choice.
//
// qkv [num_tokens, q of num_heads, k, v of num_kv_heads] of head_dim, 16 bits, q turned; head_dim even, at most DIM. keys, values
// [num_blocks, num_kv_heads, block_size, head_stride] of one layer, head_stride a multiple of 16 up to DIM, padded with zeros.
// sequences [num_seqs, 4]: first row, queries, keys (those of the queries are the last), where its block table begins in
// tables. prompts [num_prompts]: the sequences with more than one query. out [num_tokens, num_heads, head_dim]. sinks
// [num_heads] f32, or null. partials and num_slots are attention_decode.cu's. A cache of 8 bits is expanded first (expand_kv.cu).
//
// A block has one key head and as many queries with all their heads as its rows allow: 16 a warp, row r being query r / group,
// head r % group. K and V tiles pass through two buffers of shared memory and serve all its warps. Grid (tiles of all prompts *
// num_kv_heads), a tile being the queries of a block; 32 to 256 threads. Shared memory: 8 * tile * (DIM + 8) bytes of tiles, of
// 32 keys or, beyond DIM 128, 16, rows 16 bytes apart from being aligned, so that ldmatrix meets each bank once; beyond DIM 128
// 2 * DIM bytes a thread of q, which registers have no room for; 2 * DIM bytes a thread for what the splits before have come to.
//
// Bounded by FLOPs, 4 * head_dim a query head and key.
#include "lib/platform.h"
#include "lib/softmax.h"
#include "lib/kv_int8.h"
#include "lib/attention_tile.h"
#include "lib/attention.h"

// What a block does. Keys low to high are all that any of its queries sees.
struct Work {
    static constexpr bool IS_SHARED = false;
    u32 query_start, num_queries, first_pos, table_start, kv_head, low, high;

    __device__ __forceinline__ u32 token_of(u32 query) const { return query_start + query; }
    __device__ __forceinline__ u32 pos_of(u32 query) const { return first_pos + query; }
};

// The work of a block that has some queries of a prompt, those with most keys first.
template <typename T>
DEVICE bool take_prompt(const Call<T, T>& call, const u32* prompts, u32 num_prompts, Work& work) {
    const u32 most = blockDim.x / 2 / (call.num_heads / call.num_kv_heads), tile = blockIdx.x / call.num_kv_heads;
    u32 idx, first;
    if (!find_prompt(call.sequences, prompts, num_prompts, most, tile, idx, first)) return false;
    const u32* seq = call.sequences + 4 * idx;
    work.kv_head = blockIdx.x % call.num_kv_heads;
    work.query_start = seq[0] + first;
    work.num_queries = min(most, seq[1] - first);
    work.first_pos = seq[2] - seq[1] + first;
    work.table_start = seq[3];
    work.low = low_of(work.first_pos, call.window);
    work.high = work.first_pos + work.num_queries - 1;
    return true;
}

#define ATTENTION(C_NAME, T, C, DIM)                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        attention##C_NAME##_##T##_##DIM(CALL_ARGUMENTS(T, C), const u32* prompts, u32 num_prompts) {                   \
        wait_for_kernel_before();                                                                                      \
        const Call<T, C> call = CALL(T);                                                                               \
        Work work;                                                                                                     \
        if (take_prompt(call, prompts, num_prompts, work)) Core<T, DIM, C, Work>::run(call, work);                     \
    }                                                                                                                  \
    EXPORT_KERNEL(attention##C_NAME##_##T##_##DIM)
EACH_WIDTH(ATTENTION, , bf16, bf16)
EACH_WIDTH(ATTENTION, , f16, f16)
