// Which queries of which prompt a block has, as attention_hopper.cu's arguments say. After platform.h.
#pragma once

template <typename T>
struct Call {
    T* out;
    const T* qkv;
    const u32* sequences;
    const u32* tables;
    const u32* prompts;
    u32 num_prompts, num_heads, num_kv_heads, head_dim, block_size, num_rows, layer;
    // 0: none.
    u32 window;
    // Scores are taken times this to the base 2, after the cap.
    float factor;
    // 0: none. A score's product with cap_factor is to the base 2 what tanh takes the exponential of.
    float cap, cap_factor;
};

// What a block does. Keys low to high are all that any of its queries sees; its sequence has num_keys.
struct Work {
    u32 query_start, num_queries, first_pos, num_keys, table_start, kv_head, low, high;
};

DEVICE float minus_infinity() { return -__int_as_float(0x7f800000); }

// The first key that a query sees.
DEVICE u32 low_of(u32 pos, u32 window) { return window != 0 && pos + 1 > window ? pos + 1 - window : 0; }

// As many queries of a prompt as num_rows have room for with all heads, those with most keys first.
template <typename T>
DEVICE bool take_prompt(const Call<T>& call, u32 num_rows, Work& work) {
    const u32 most = num_rows / (call.num_heads / call.num_kv_heads), lane = threadIdx.x % 32;
    u32 tile = blockIdx.x / call.num_kv_heads;
    work.kv_head = blockIdx.x % call.num_kv_heads;
    for (u32 start = 0; start < call.num_prompts; start += 32) {
        const bool is_there = start + lane < call.num_prompts;
        const u32 own = is_there ? call.prompts[start + lane] : 0;
        u32 end = is_there ? (call.sequences[4 * own + 1] + most - 1) / most : 0;
#pragma unroll
        for (u32 offset = 1; offset < 32; offset *= 2) {
            const u32 before = __shfl_up_sync(FULL_WARP, end, offset);
            if (lane >= offset) end += before;
        }
        const u32 beyond = __ballot_sync(FULL_WARP, end > tile);
        if (beyond != 0) {
            const int from = __ffs((int)beyond) - 1;
            // Counted from the prompt's end.
            tile = __shfl_sync(FULL_WARP, end, from) - 1 - tile;
            const u32* seq = call.sequences + 4 * __shfl_sync(FULL_WARP, own, from);
            const u32 first = tile * most;
            work.query_start = seq[0] + first;
            work.num_queries = min(most, seq[1] - first);
            work.first_pos = seq[2] - seq[1] + first;
            work.num_keys = seq[2];
            work.table_start = seq[3];
            work.low = low_of(work.first_pos, call.window);
            work.high = work.first_pos + work.num_queries - 1;
            return true;
        }
        tile -= __shfl_sync(FULL_WARP, end, 31);
    }
    return false;
}
