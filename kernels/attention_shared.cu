// attention_shared: attention_decode.cu's work where sequences of one query begin with the same keys: the beams of a prompt, several
// answers to one, requests behind one system prompt (cascade attention; Juravsky et al. 2024, Hydragen; Ye et al. 2025,
// FlashInfer). The keys of a split that is whole and the same for all of them are read once for many sequences.
//
// attention_shared_int8: the same of a cache of 8 bits.
//
// Arguments are attention.cu's, but for prompts. items [grid.x, 4]: neighbouring sequences, the first of them and how many; splits,
// the first of them and how many, none of which is the last of any of the sequences. No sequences: nothing to do.
// ops/attention/shared.rs makes them, and attention_decode's shared_splits with them.
//
// A block has one key head and the sequences of an item with all their heads, row r being sequence r / group, head r % group.
// Each split's (O, max, sum) goes where attention_decode leaves that of a sequence alone, with the same bits: what is done with a
// tile is the same, and a row's result does not depend on those beside it. attention_decode then does the splits behind them and
// puts all together. With a window, splits that none of the sequences sees are left out, and each sees what it would see alone.
//
// Grid (items, num_kv_heads), as many items as there are at most for a step of its shape; 32 to 256 threads, 16 rows a warp.
// Shared memory: attention's with three buffers, without what the splits before have come to.
//
// Bounded by memory, 4 * head_dim bytes a key, key head and item, or of 8 bits 2 * head_dim + 4, up to some 128 rows; 8 * DIM bytes of partial results a row and
// split come to it, which attention_decode has as well.
#include "lib/platform.h"
#include "lib/softmax.h"
#include "lib/kv_int8.h"
#include "lib/attention_tile.h"
#include "lib/attention.h"

// What a block does.
struct SharedWork {
    static constexpr bool IS_SHARED = true;
    // Of the first sequence on.
    const u32* sequences;
    u32 first_seq, num_queries, table_start, kv_head, low, high;

    __device__ __forceinline__ u32 token_of(u32 query) const { return sequences[4 * query]; }
    __device__ __forceinline__ u32 pos_of(u32 query) const { return sequences[4 * query + 2] - 1; }
    __device__ __forceinline__ u32 seq_of(u32 query) const { return first_seq + query; }
};

// Returns whether there is work. All that it reads is the step's, uploaded before its first kernel.
template <typename T, typename C>
DEVICE bool take_item(const Call<T, C>& call, const u32* items, SharedWork& work) {
    const u32* item = items + 4 * blockIdx.x;
    work.first_seq = item[0];
    work.num_queries = item[1];
    if (work.num_queries == 0) return false;
    work.sequences = call.sequences + 4 * work.first_seq;
    work.table_start = work.sequences[3];
    work.kv_head = blockIdx.y;
    // The first key that any of them sees.
    u32 low = 0xffffffffu;
    for (u32 i = threadIdx.x % 32; i < work.num_queries; i += 32) low = min(low, low_of(work.pos_of(i), call.window));
    work.low = max(item[2] * SPLIT, __reduce_min_sync(FULL_WARP, low));
    work.high = (item[2] + item[3]) * SPLIT - 1;
    return work.low <= work.high;
}

#define ATTENTION(C_NAME, T, C, DIM)                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        attention_shared##C_NAME##_##T##_##DIM(CALL_ARGUMENTS(T, C), const u32* items) {                               \
        const Call<T, C> call = CALL(T);                                                                               \
        SharedWork work;                                                                                               \
        if (take_item(call, items, work)) {                                                                            \
            Core<T, DIM, C, SharedWork>::run(call, work);                                                              \
        } else {                                                                                                       \
            wait_for_kernel_before();                                                                                  \
        }                                                                                                              \
    }                                                                                                                  \
    EXPORT_KERNEL(attention_shared##C_NAME##_##T##_##DIM)
EACH_WIDTH(ATTENTION, , bf16, bf16)
EACH_WIDTH(ATTENTION, , f16, f16)
EACH_WIDTH(ATTENTION, _int8, bf16, i8)
EACH_WIDTH(ATTENTION, _int8, f16, i8)
