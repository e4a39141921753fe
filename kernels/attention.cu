// attention: softmax(q . K^T * scale) . V over the paged cache, causal, grouped-query, with an optional sliding window and soft
// cap (cap * tanh(score / cap)). Online softmax (Milakov and Gimelshein 2018), queries and keys in tiles with tensor cores
// (FlashAttention-2, Dao 2023), long contexts in splits (Flash-Decoding, Dao et al. 2023). P is rounded to 16 bits for P . V,
// and so is what it is divided by: weights add up to 1.
//
// A query's bits depend on the query alone. Keys come in tiles of TILE at absolute positions, softmax begins anew at each
// absolute multiple of SPLIT keys, and the splits are put together from the first to the last by `merge`, wherever that
// happens. What a row does not see leaves its maximum, its sum and its output as they were, and no row reads another's. Sums
// and products that could be fused are written as what they are, so that the compiler has no choice.
//
// qkv [num_tokens, q of num_heads, k, v of num_kv_heads] of head_dim, 16 bits, q turned; head_dim even, at most DIM. keys, values
// [num_blocks, num_kv_heads, block_size, head_stride] of one layer, head_stride a multiple of 16 up to DIM, padded with zeros.
// sequences [num_seqs, 4]: first row, queries, keys (those of the queries are the last), where its block table begins in
// tables. prompts [num_prompts]: the sequences with more than one query. shared_splits [num_seqs], or null for none: as many of a
// sequence's first splits are attention_shared's (a file of its own). out [num_tokens, num_heads, head_dim].
//
// A block has one key head and as many queries with all their heads as its rows allow: 16 a warp, row r being query r / group,
// head r % group. K and V tiles pass through num_stages buffers of shared memory and serve all its warps.
//   num_prompts = 0: sequences of one query; grid (parts, num_kv_heads, num_seqs): a part has an equal share of the splits that
//     are not shared. With more than one part, which there must be where splits are shared, a sequence of several splits leaves
//     each split's (O, max, sum) in partials [num_seqs, num_heads, num_slots, DIM] and, behind all of them, [num_seqs, num_heads,
//     num_slots, 2], and attention_merge puts them together. Sequences of no key get zeros. The grid does not depend on lengths.
//   num_prompts > 0: grid (tiles of all prompts * num_kv_heads), a tile being the queries of a block.
// attention_merge: grid (num_heads, num_seqs), DIM threads (whole warps), no shared memory.
//
// Threads: 32 to 256. Shared memory: num_stages * 4 * TILE * (DIM + 8) bytes of tiles, rows 16 bytes apart from being aligned, so
// that ldmatrix meets each bank once; beyond DIM 128 2 * DIM bytes a thread of q, which registers have no room for; 2 * DIM bytes a
// thread for what the splits before have come to.
//
// Bounded when decoding by memory, 4 * head_dim bytes a key and key head (two tiles of 17 KiB a block are on their way at
// DIM 128, three blocks to an H100's multiprocessor); in prompts by FLOPs, 4 * head_dim a query head and key.
#include "lib/platform.h"
#include "lib/softmax.h"
#include "lib/attention.h"

// What a block does. Keys low to high are all that any of its queries sees in it.
struct Work {
    static constexpr bool IS_SHARED = false;
    u32 seq, query_start, num_queries, first_pos, table_start, kv_head, low, high;
    bool is_partial;

    __device__ __forceinline__ u32 token_of(u32 query) const { return query_start + query; }
    __device__ __forceinline__ u32 pos_of(u32 query) const { return first_pos + query; }
    __device__ __forceinline__ u32 seq_of(u32) const { return seq; }
};

// Where the splits of a sequence of one query are: the number of them.
DEVICE u32 splits_of(u32 num_keys, u32 window, u32& first) {
    if (num_keys == 0) return 0;
    first = low_of(num_keys - 1, window) / SPLIT;
    return (num_keys - 1) / SPLIT - first + 1;
}

// The work of a block that has a share of a sequence of one query. Returns whether there is any.
template <typename T>
DEVICE bool take_decode(const Call<T>& call, const u32* shared_splits, Work& work) {
    const u32* seq = call.sequences + 4 * blockIdx.z;
    const u32 num_keys = seq[2];
    if (seq[1] != 1) return false;
    work.seq = blockIdx.z;
    work.query_start = seq[0];
    work.num_queries = 1;
    work.table_start = seq[3];
    work.kv_head = blockIdx.y;
    u32 first_split;
    const u32 num_splits = splits_of(num_keys, call.window, first_split);
    if (num_splits == 0) {
        const u32 len = call.num_heads / call.num_kv_heads * call.head_dim;
        T* out = call.out + ((u64)work.query_start * call.num_kv_heads + work.kv_head) * len;
        for (u32 i = threadIdx.x; blockIdx.x == 0 && i < len; i += blockDim.x) out[i] = from_float<T>(0.0f);
        return false;
    }
    // The last split is never shared.
    const u32 first_own = shared_splits == nullptr ? first_split : max(first_split, shared_splits[blockIdx.z]);
    const u32 num_own = first_split + num_splits - first_own;
    const u32 share = (num_own + gridDim.x - 1) / gridDim.x;
    if (blockIdx.x * share >= num_own) return false;
    work.first_pos = num_keys - 1;
    const u32 begin = (first_own + blockIdx.x * share) * SPLIT;
    work.low = max(low_of(work.first_pos, call.window), begin);
    work.high = min(work.first_pos, begin + share * SPLIT - 1);
    work.is_partial = gridDim.x > 1 && num_splits > 1;
    return true;
}

// The work of a block that has some queries of a prompt, those with most keys first.
template <typename T>
DEVICE bool take_prompt(const Call<T>& call, const u32* prompts, u32 num_prompts, Work& work) {
    const u32 most = blockDim.x / 2 / (call.num_heads / call.num_kv_heads), tile = blockIdx.x / call.num_kv_heads;
    u32 first;
    if (!find_prompt(call.sequences, prompts, num_prompts, most, tile, work.seq, first)) return false;
    const u32* seq = call.sequences + 4 * work.seq;
    work.kv_head = blockIdx.x % call.num_kv_heads;
    work.query_start = seq[0] + first;
    work.num_queries = min(most, seq[1] - first);
    work.first_pos = seq[2] - seq[1] + first;
    work.table_start = seq[3];
    work.low = low_of(work.first_pos, call.window);
    work.high = work.first_pos + work.num_queries - 1;
    work.is_partial = false;
    return true;
}

template <typename T>
DEVICE void merge_splits(T* out, const float* partials, const u32* sequences, u32 dim, u32 head_dim, u32 num_slots, u32 window) {
    wait_for_kernel_before();
    const u32* seq = sequences + 4 * blockIdx.y;
    const u32 d = threadIdx.x, num_heads = gridDim.x;
    u32 first;
    const u32 num_splits = splits_of(seq[2], window, first);
    if (seq[1] == 1 && num_splits > 1 && d < head_dim) {
        const u64 start = ((u64)blockIdx.y * num_heads + blockIdx.x) * num_slots;
        const float* o = partials + start * dim + d;
        const float2* softmax = (const float2*)(partials + (u64)gridDim.y * num_heads * num_slots * dim) + start;
        Softmax all = {minus_infinity(), 0.0f};
        float sum = 0.0f, factors[2];
#pragma unroll 8
        for (u32 i = 0; i < num_splits; i++) {
            const float2 part = softmax[i];
            merge(all, {part.x, part.y}, factors);
            sum = merge_output(sum, o[(u64)i * dim], factors);
        }
        out[((u64)seq[0] * num_heads + blockIdx.x) * head_dim + d] = from_float<T>(__fmul_rn(sum, __frcp_rn(all.sum)));
    }
}

#define ATTENTION(T, DIM)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256) attention_##T##_##DIM(                                           \
        CALL_ARGUMENTS(T), const u32* prompts, u32 num_prompts, const u32* shared_splits) {                            \
        wait_for_kernel_before();                                                                                      \
        const Call<T> call = CALL(T);                                                                                  \
        Work work;                                                                                                     \
        const bool has_work = num_prompts > 0 ? take_prompt(call, prompts, num_prompts, work)                          \
                                              : take_decode(call, shared_splits, work);                                \
        if (has_work) Core<T, DIM, Work>::run(call, work);                                                             \
    }                                                                                                                  \
    EXPORT_KERNEL(attention_##T##_##DIM)
#define KERNELS(T)                                                                                                     \
    ATTENTION(T, 16)                                                                                                   \
    ATTENTION(T, 32)                                                                                                   \
    ATTENTION(T, 64)                                                                                                   \
    ATTENTION(T, 80)                                                                                                   \
    ATTENTION(T, 96)                                                                                                   \
    ATTENTION(T, 128)                                                                                                  \
    ATTENTION(T, 256)                                                                                                  \
    extern "C" __global__ void attention_merge_##T(T* out, const float* partials, const u32* sequences, u32 dim,       \
                                                   u32 head_dim, u32 num_slots, u32 window) {                          \
        merge_splits(out, partials, sequences, dim, head_dim, num_slots, window);                                      \
    }                                                                                                                  \
    EXPORT_KERNEL(attention_merge_##T)
KERNELS(bf16)
KERNELS(f16)
