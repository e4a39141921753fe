// Which queries of which prompt a block has, as attention_hopper.cu's arguments say. After lib/platform.h and lib/softmax.h.
#pragma once

template <typename T>
struct Call {
    T* out;
    const T* qkv;
    const u32* sequences;
    const u32* tables;
    // One a query head, or null.
    const float* sinks;
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

// As many queries of a prompt as num_rows have room for with all heads, those with most keys first.
template <typename T>
DEVICE bool take_prompt(const Call<T>& call, u32 num_rows, Work& work) {
    const u32 most = num_rows / (call.num_heads / call.num_kv_heads), tile = blockIdx.x / call.num_kv_heads;
    u32 idx, first;
    if (!find_prompt(call.sequences, call.prompts, call.num_prompts, most, tile, idx, first)) return false;
    const u32* seq = call.sequences + 4 * idx;
    work.kv_head = blockIdx.x % call.num_kv_heads;
    work.query_start = seq[0] + first;
    work.num_queries = min(most, seq[1] - first);
    work.first_pos = seq[2] - seq[1] + first;
    work.num_keys = seq[2];
    work.table_start = seq[3];
    work.low = low_of(work.first_pos, call.window);
    work.high = work.first_pos + work.num_queries - 1;
    return true;
}
