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
// tables. prompts [num_prompts]: the sequences with more than one query. out [num_tokens, num_heads, head_dim].
//
// A block has one key head and as many queries with all their heads as its rows allow: 16 a warp, row r being query r / group,
// head r % group. K and V tiles pass through num_stages buffers of shared memory and serve all its warps.
//   num_prompts = 0: sequences of one query; grid (parts, num_kv_heads, num_seqs): a part has an equal share of the splits. With
//     more than one part, a sequence of several splits leaves each split's (O, max, sum) in partials
//     [num_seqs, num_heads, num_slots, DIM] and, behind all of them, [num_seqs, num_heads, num_slots, 2], and attention_merge puts
//     them together. Sequences of no key get zeros. The grid does not depend on lengths.
//   num_prompts > 0: grid (tiles of all prompts * num_kv_heads), a tile being the queries of a block.
// attention_merge: grid (num_heads, num_seqs), DIM threads (whole warps), no shared memory.
//
// Threads: 32 to 256. Shared memory: num_stages * 4 * TILE * (DIM + 8) bytes of tiles, rows 16 bytes apart from being aligned, so
// that ldmatrix meets each bank once; 2 * DIM bytes a thread for what the splits before have come to; beyond DIM 128 2 * DIM
// bytes a thread of q, which registers have no room for.
//
// Bounded when decoding by memory, 4 * head_dim bytes a key and key head (two tiles of 17 KiB a block are on their way at
// DIM 128, three blocks to an H100's multiprocessor); in prompts by FLOPs, 4 * head_dim a query head and key.
#include "lib/platform.h"

static constexpr u32 SPLIT = 256;
static constexpr u32 NO_ROW = 0xffffffffu;

template <typename T>
struct Call {
    T* out;
    const T* qkv;
    const T* keys;
    const T* values;
    const u32* sequences;
    const u32* tables;
    const u32* prompts;
    float* partials;
    u32 num_prompts, num_heads, num_kv_heads, head_dim, head_stride, block_size;
    // 0: none.
    u32 window;
    u32 num_slots, num_stages;
    // Scores are taken times this to the base 2, after the cap.
    float factor;
    // 0: none. A score's product with cap_factor is to the base 2 what tanh takes the exponential of.
    float cap, cap_factor;
};

// What a block does. Keys low to high are all that any of its queries sees in it.
struct Work {
    u32 seq, query_start, num_queries, first_pos, table_start, kv_head, low, high, first_split;
    bool is_partial;
};

DEVICE float minus_infinity() { return -__int_as_float(0x7f800000); }

// The first key that a query sees.
DEVICE u32 low_of(u32 pos, u32 window) { return window != 0 && pos + 1 > window ? pos + 1 - window : 0; }

// One split's or several splits' maximum (to the base 2) and sum.
struct Softmax {
    float max, sum;
};

// The factors of two neighbours' sums and outputs when they are put together; `before` becomes both.
DEVICE void merge(Softmax& before, const Softmax& part, float (&factors)[2]) {
    const float max = fmaxf(before.max, part.max), base = max == minus_infinity() ? 0.0f : max;
    factors[0] = fast_exp2(__fsub_rn(before.max, base));
    factors[1] = fast_exp2(__fsub_rn(part.max, base));
    before.sum = __fmaf_rn(part.sum, factors[1], __fmul_rn(before.sum, factors[0]));
    before.max = max;
}
DEVICE float merge_output(float before, float part, const float (&factors)[2]) {
    return __fmaf_rn(part, factors[1], __fmul_rn(before, factors[0]));
}

// Where the splits of a sequence of one query are: the number of them.
DEVICE u32 splits_of(u32 num_keys, u32 window, u32& first) {
    if (num_keys == 0) return 0;
    first = low_of(num_keys - 1, window) / SPLIT;
    return (num_keys - 1) / SPLIT - first + 1;
}

// The work of a block that has a share of a sequence of one query. Returns whether there is any.
template <typename T>
DEVICE bool take_decode(const Call<T>& call, Work& work) {
    const u32* seq = call.sequences + 4 * blockIdx.z;
    const u32 num_keys = seq[2];
    if (seq[1] != 1) return false;
    work.seq = blockIdx.z;
    work.query_start = seq[0];
    work.num_queries = 1;
    work.table_start = seq[3];
    work.kv_head = blockIdx.y;
    const u32 num_splits = splits_of(num_keys, call.window, work.first_split);
    if (num_splits == 0) {
        const u32 len = call.num_heads / call.num_kv_heads * call.head_dim;
        T* out = call.out + ((u64)work.query_start * call.num_kv_heads + work.kv_head) * len;
        for (u32 i = threadIdx.x; blockIdx.x == 0 && i < len; i += blockDim.x) out[i] = from_float<T>(0.0f);
        return false;
    }
    const u32 share = (num_splits + gridDim.x - 1) / gridDim.x;
    if (blockIdx.x * share >= num_splits) return false;
    work.first_pos = num_keys - 1;
    const u32 begin = (work.first_split + blockIdx.x * share) * SPLIT;
    work.low = max(low_of(work.first_pos, call.window), begin);
    work.high = min(work.first_pos, begin + share * SPLIT - 1);
    work.is_partial = gridDim.x > 1 && num_splits > 1;
    return true;
}

// The work of a block that has some queries of a prompt, those with most keys first.
template <typename T>
DEVICE bool take_prompt(const Call<T>& call, Work& work) {
    const u32 most = blockDim.x / 2 / (call.num_heads / call.num_kv_heads), lane = threadIdx.x % 32;
    u32 tile = blockIdx.x / call.num_kv_heads;
    work.kv_head = blockIdx.x % call.num_kv_heads;
    for (u32 start = 0; start < call.num_prompts; start += 32) {
        const bool is_there = start + lane < call.num_prompts;
        const u32 own = is_there ? call.prompts[start + lane] : 0;
        const u32 num_tiles = is_there ? (call.sequences[4 * own + 1] + most - 1) / most : 0;
        u32 end = num_tiles;
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
            work.seq = __shfl_sync(FULL_WARP, own, from);
            const u32* seq = call.sequences + 4 * work.seq;
            const u32 first = tile * most;
            work.query_start = seq[0] + first;
            work.num_queries = min(most, seq[1] - first);
            work.first_pos = seq[2] - seq[1] + first;
            work.table_start = seq[3];
            work.low = low_of(work.first_pos, call.window);
            work.high = work.first_pos + work.num_queries - 1;
            work.first_split = work.low / SPLIT;
            work.is_partial = false;
            return true;
        }
        tile -= __shfl_sync(FULL_WARP, end, 31);
    }
    return false;
}

template <typename T, int DIM>
struct Core {
    // Two buffers of 32 keys would leave no room for others beyond 128.
    static constexpr u32 TILE = DIM > 128 ? 16 : 32;
    static constexpr u32 ROW_LEN = DIM + 8;
    static constexpr u32 STAGE_LEN = 2 * TILE * ROW_LEN;
    static constexpr bool KEEPS_Q = DIM <= 128;
    static constexpr u32 PIECES = DIM / 8;
    static constexpr int Q_STEPS = DIM / 16;

    // What this thread's lane knows of the two rows that it has a share of, 8 apart.
    struct Rows {
        u32 query[2], head[2], low[2], high[2];
        bool is_there[2];
    };

    // The cache's row of this lane's key of a tile: one lane looks for one key.
    DEVICE u32 cache_row(const Call<T>& call, const Work& work, u32 tile) {
        const u32 key = tile * TILE + threadIdx.x % TILE;
        // Known to be there; what is wanted of others is never read.
        const u32 within = min(max(key, work.low), work.high);
        const u32 block = call.tables[work.table_start + within / call.block_size];
        const u32 row = (block * call.num_kv_heads + work.kv_head) * call.block_size + within % call.block_size;
        return key == within ? row : NO_ROW;
    }

    // Starts the copies of a tile; `row` as cache_row gives it.
    DEVICE void copy_tile(const Call<T>& call, T* stage, u32 row) {
        for (u32 i = threadIdx.x; i < TILE * PIECES; i += blockDim.x) {
            const u32 key = i / PIECES, d = i % PIECES * 8, from = __shfl_sync(FULL_WARP, row, (int)key);
            const bool is_there = from != NO_ROW && d < call.head_stride;
            const u64 offset = is_there ? (u64)from * call.head_stride + d : 0;
            copy_async(stage + key * ROW_LEN + d, call.keys + offset, is_there);
            copy_async(stage + (TILE + key) * ROW_LEN + d, call.values + offset, is_there);
        }
    }

    // Scores of a tile: q . K^T.
    DEVICE void score(float (&s)[TILE / 8][4], const u32 (&q)[Q_STEPS][4], const uint4* q_shared, const T* keys) {
        const u32 lane = threadIdx.x % 32;
        const T* own = keys + (lane / 16 * 8 + lane % 8) * ROW_LEN + lane / 8 % 2 * 8;
#pragma unroll
        for (u32 n = 0; n < TILE / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) s[n][i] = 0.0f;
        }
#pragma unroll
        for (int k = 0; k < Q_STEPS; k++) {
            u32 a[4];
            if constexpr (KEEPS_Q) {
#pragma unroll
                for (int i = 0; i < 4; i++) a[i] = q[k][i];
            } else {
                const uint4 kept = q_shared[k * blockDim.x];
                a[0] = kept.x, a[1] = kept.y, a[2] = kept.z, a[3] = kept.w;
            }
#pragma unroll
            for (u32 n = 0; n < TILE / 8; n += 2) {
                u32 pairs[4];
                load_matrix_x4(pairs, own + n * 8 * ROW_LEN + k * 16);
                const u32 low[2] = {pairs[0], pairs[1]}, high[2] = {pairs[2], pairs[3]};
                mma_16x8x16<T>(s[n], a, low);
                mma_16x8x16<T>(s[n + 1], a, high);
            }
        }
    }

    // One tile: scores become weights, and o += weights . V. sums are the lane's own share.
    DEVICE void attend(const Call<T>& call, const Rows& rows, float (&o)[DIM / 8][4], float (&max)[2], float (&sum)[2],
                       float (&s)[TILE / 8][4], const T* values, u32 first_key, bool is_masked) {
        const u32 lane = threadIdx.x % 32;
        if (call.cap != 0.0f) {
#pragma unroll
            for (u32 n = 0; n < TILE / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float power = fast_exp2(__fmul_rn(s[n][i], call.cap_factor));
                    s[n][i] = __fmaf_rn(-2.0f * call.cap, __frcp_rn(__fadd_rn(power, 1.0f)), call.cap);
                }
            }
        }
        if (is_masked) {
#pragma unroll
            for (u32 n = 0; n < TILE / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const u32 key = first_key + n * 8 + lane % 4 * 2 + i % 2;
                    if (key < rows.low[i / 2] || key > rows.high[i / 2]) s[n][i] = minus_infinity();
                }
            }
        }
        float base[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float most = minus_infinity();
#pragma unroll
            for (u32 n = 0; n < TILE / 8; n++) most = fmaxf(most, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
            most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, 1));
            most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, 2));
            most = fmaxf(max[r], __fmul_rn(most, call.factor));
            base[r] = most == minus_infinity() ? 0.0f : most;
            const float factor = fast_exp2(__fsub_rn(max[r], base[r]));
            max[r] = most;
            sum[r] = __fmul_rn(sum[r], factor);
#pragma unroll
            for (int n = 0; n < DIM / 8; n++) {
                o[n][2 * r] = __fmul_rn(o[n][2 * r], factor);
                o[n][2 * r + 1] = __fmul_rn(o[n][2 * r + 1], factor);
            }
        }
        const T* own = values + lane % 16 * ROW_LEN + lane / 16 * 8;
#pragma unroll
        for (u32 k = 0; k < TILE / 16; k++) {
            // The lane's scores are where a product wants its weights.
            u32 a[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float* of = &s[2 * k + i / 2][i % 2 * 2];
                const float minus = -base[i % 2];
                a[i] = pack<T>(fast_exp2(__fmaf_rn(of[0], call.factor, minus)),
                               fast_exp2(__fmaf_rn(of[1], call.factor, minus)));
                sum[i % 2] = __fadd_rn(sum[i % 2], __fadd_rn(low_float<T>(a[i]), high_float<T>(a[i])));
            }
#pragma unroll
            for (int n = 0; n < DIM / 8; n += 2) {
                u32 pairs[4];
                load_matrix_x4_trans(pairs, own + k * 16 * ROW_LEN + n * 8);
                const u32 low[2] = {pairs[0], pairs[1]}, high[2] = {pairs[2], pairs[3]};
                mma_16x8x16<T>(o[n], a, low);
                mma_16x8x16<T>(o[n + 1], a, high);
            }
        }
    }

    // A split's result goes to the memory of partial results.
    DEVICE void save(const Call<T>& call, const Work& work, const Rows& rows, const float (&o)[DIM / 8][4],
                     const float (&max)[2], const float (&sum)[2], u32 split) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (!rows.is_there[r]) continue;
            const u64 head = (u64)work.seq * call.num_heads + rows.head[r];
            const u64 at = head * call.num_slots + split - work.first_split;
            const u64 len = (u64)gridDim.z * call.num_heads * call.num_slots * DIM;
            const u32 lane = threadIdx.x % 4;
            float2* out = (float2*)(call.partials + at * DIM) + lane;
#pragma unroll
            for (int n = 0; n < DIM / 8; n++) out[4 * n] = make_float2(o[n][2 * r], o[n][2 * r + 1]);
            if (lane == 0) *(float2*)(call.partials + len + 2 * at) = make_float2(max[r], sum[r]);
        }
    }

    // A split's result is put together with those before it, which `total` has unless it is the first, and with `is_last`
    // goes to out.
    DEVICE void add_split(const Call<T>& call, const Work& work, const Rows& rows, float (&o)[DIM / 8][4],
                          const float (&max)[2], const float (&sum)[2], Softmax (&before)[2], float4* total, bool is_first,
                          bool is_last) {
        float factors[2][2];
#pragma unroll
        for (int r = 0; r < 2; r++) merge(before[r], {max[r], sum[r]}, factors[r]);
        const u32 cols = call.num_heads * call.head_dim, col = threadIdx.x % 4 * 2;
#pragma unroll
        for (int n = 0; n < DIM / 8; n++) {
            const float4 kept = is_first ? make_float4(0.0f, 0.0f, 0.0f, 0.0f) : total[n * blockDim.x];
            const float4 both = make_float4(merge_output(kept.x, o[n][0], factors[0]), merge_output(kept.y, o[n][1], factors[0]),
                                            merge_output(kept.z, o[n][2], factors[1]), merge_output(kept.w, o[n][3], factors[1]));
            if (!is_last) {
                total[n * blockDim.x] = both;
                continue;
            }
            const float pairs[4] = {both.x, both.y, both.z, both.w};
#pragma unroll
            for (int r = 0; r < 2; r++) {
                if (!rows.is_there[r] || n * 8 + col >= call.head_dim) continue;
                T* out = call.out + (u64)(work.query_start + rows.query[r]) * cols + rows.head[r] * call.head_dim;
                const float inverse = __frcp_rn(before[r].sum);
                *(u32*)(out + n * 8 + col) =
                    pack<T>(__fmul_rn(pairs[2 * r], inverse), __fmul_rn(pairs[2 * r + 1], inverse));
            }
        }
    }

    DEVICE void load_q(const Call<T>& call, const Work& work, const Rows& rows, u32 (&q)[Q_STEPS][4], uint4* q_shared) {
        const u32 cols = (call.num_heads + 2 * call.num_kv_heads) * call.head_dim;
#pragma unroll
        for (int k = 0; k < Q_STEPS; k++) {
            u32 a[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u32 col = k * 16 + threadIdx.x % 4 * 2 + i / 2 * 8, r = i % 2;
                const T* from = call.qkv + (u64)(work.query_start + rows.query[r]) * cols + rows.head[r] * call.head_dim;
                a[i] = rows.is_there[r] && col < call.head_dim ? *(const u32*)(from + col) : 0;
                if constexpr (KEEPS_Q) q[k][i] = a[i];
            }
            if constexpr (!KEEPS_Q) q_shared[k * blockDim.x] = make_uint4(a[0], a[1], a[2], a[3]);
        }
    }

    DEVICE void run(const Call<T>& call, const Work& work) {
        DYNAMIC_SHARED(shared);
        T* stages = (T*)shared;
        float4* total = (float4*)(shared + call.num_stages * STAGE_LEN * sizeof(T));
        uint4* q_shared = (uint4*)(total + DIM / 8 * blockDim.x) + threadIdx.x;
        total += threadIdx.x;
        const u32 lane = threadIdx.x % 32, first_row = threadIdx.x / 32 * 16, group = call.num_heads / call.num_kv_heads;
        const u32 last_query = work.num_queries - 1;

        // Copies first, then what can be done while they are on their way.
        const u32 first_tile = work.low / TILE, end_tile = work.high / TILE + 1;
        u32 copied = first_tile, copied_stage = 0, row = cache_row(call, work, first_tile);
        for (u32 i = 1; i < call.num_stages; i++) {
            if (copied < end_tile) copy_tile(call, stages + copied_stage * STAGE_LEN, row);
            copy_commit();
            row = cache_row(call, work, ++copied);
            copied_stage++;
        }
        Rows rows;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const u32 idx = first_row + lane / 4 + 8 * r;
            rows.query[r] = idx / group;
            rows.head[r] = work.kv_head * group + idx % group;
            rows.is_there[r] = rows.query[r] <= last_query;
            rows.high[r] = work.first_pos + min(rows.query[r], last_query);
            rows.low[r] = low_of(rows.high[r], call.window);
        }
        // What the first and the last row of the warp see.
        const bool is_idle = first_row / group > last_query;
        const u32 first_high = work.first_pos + min(first_row / group, last_query);
        const u32 last_high = work.first_pos + min((first_row + 15) / group, last_query);
        const u32 first_low = low_of(first_high, call.window), last_low = low_of(last_high, call.window);
        u32 q[Q_STEPS][4];
        load_q(call, work, rows, q, q_shared);

        float o[DIM / 8][4], max[2], sum[2];
        Softmax before[2] = {{minus_infinity(), 0.0f}, {minus_infinity(), 0.0f}};
        bool begins = true, is_first = true;
        u32 stage = 0;
        for (u32 tile = first_tile; tile < end_tile; tile++) {
            if (call.num_stages == 2) {
                copy_wait<0>();
            } else {
                copy_wait<1>();
            }
            // All have the tile, and have left the one before, whose place the next one takes.
            __syncthreads();
            if (copied < end_tile) copy_tile(call, stages + copied_stage * STAGE_LEN, row);
            copy_commit();
            row = cache_row(call, work, ++copied);
            copied_stage = copied_stage + 1 == call.num_stages ? 0 : copied_stage + 1;
            const T* keys = stages + stage * STAGE_LEN;
            stage = stage + 1 == call.num_stages ? 0 : stage + 1;
            if (is_idle) continue;
            if (begins) {
#pragma unroll
                for (int n = 0; n < DIM / 8; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) o[n][i] = 0.0f;
                }
                max[0] = max[1] = minus_infinity();
                sum[0] = sum[1] = 0.0f;
            }
            const u32 first_key = tile * TILE, last_key = first_key + TILE - 1;
            if (first_key <= last_high && last_key >= first_low) {
                float s[TILE / 8][4];
                score(s, q, q_shared, keys);
                attend(call, rows, o, max, sum, s, keys + TILE * ROW_LEN, first_key,
                       last_key > first_high || first_key < last_low);
            }
            const bool is_last = tile + 1 == end_tile;
            begins = is_last || (last_key + 1) % SPLIT == 0;
            if (!begins) continue;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                sum[r] = __fadd_rn(sum[r], __shfl_xor_sync(FULL_WARP, sum[r], 1));
                sum[r] = __fadd_rn(sum[r], __shfl_xor_sync(FULL_WARP, sum[r], 2));
            }
            if (work.is_partial) {
                save(call, work, rows, o, max, sum, first_key / SPLIT);
            } else {
                add_split(call, work, rows, o, max, sum, before, total, is_first, is_last);
                is_first = false;
            }
        }
        copy_wait<0>();
    }
};

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
    let_next_kernel_begin();
}

#define ATTENTION(T, DIM)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        attention_##T##_##DIM(T* out, const T* qkv, const T* keys, const T* values, const u32* sequences,              \
                              const u32* tables, const u32* prompts, float* partials, u32 num_prompts, u32 num_heads,  \
                              u32 num_kv_heads, u32 head_dim, u32 head_stride, u32 block_size, u32 window,             \
                              u32 num_slots, u32 num_stages, float factor, float cap, float cap_factor) {              \
        wait_for_kernel_before();                                                                                      \
        const Call<T> call = {out,         qkv,       keys,         values,     sequences,   tables,     prompts,      \
                              partials,    num_prompts, num_heads,  num_kv_heads, head_dim,  head_stride, block_size,  \
                              window,      num_slots, num_stages,   factor,     cap,         cap_factor};              \
        Work work;                                                                                                     \
        if (num_prompts > 0 ? take_prompt(call, work) : take_decode(call, work)) Core<T, DIM>::run(call, work);        \
        let_next_kernel_begin();                                                                                       \
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
