// Attention's core: some queries' rows, in tiles of 16 a warp, against a range of keys. kernels/attention.cu says what is computed,
// how arguments lie in memory, and why a row's bits depend on its query alone. After lib/platform.h and lib/softmax.h.
//
// A block's work is a type of its own, Work here, that says where a query is (token_of: its row in the step; pos_of: its position;
// seq_of: its sequence), whether queries are of several sequences (IS_SHARED), which keys the block has, low to high, of one block
// table, and whether a split's result goes to the memory of partial results (is_partial) or, put together with those before it, to
// out.
#pragma once

static constexpr u32 NO_ROW = 0xffffffffu;

template <typename T>
struct Call {
    T* out;
    const T* qkv;
    const T* keys;
    const T* values;
    const u32* sequences;
    const u32* tables;
    float* partials;
    u32 num_seqs, num_heads, num_kv_heads, head_dim, head_stride, block_size;
    // 0: none.
    u32 window;
    u32 num_slots, num_stages;
    // Scores are taken times this to the base 2, after the cap.
    float factor;
    // 0: none. A score's product with cap_factor is to the base 2 what tanh takes the exponential of.
    float cap, cap_factor;
};
#define CALL_ARGUMENTS(T)                                                                                              \
    T *out, const T *qkv, const T *keys, const T *values, const u32 *sequences, const u32 *tables, float *partials,    \
        u32 num_seqs, u32 num_heads, u32 num_kv_heads, u32 head_dim, u32 head_stride, u32 block_size, u32 window,      \
        u32 num_slots, u32 num_stages, float factor, float cap, float cap_factor
#define CALL(T)                                                                                                        \
    {out,      qkv,         keys,       values, sequences, tables,     partials, num_seqs, num_heads, num_kv_heads,    \
     head_dim, head_stride, block_size, window, num_slots, num_stages, factor,   cap,      cap_factor}

template <typename T, int DIM, typename Work>
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
            // Slots begin with the first split in which the row sees keys. Another sequence may see some in an earlier one.
            const u32 first_split = rows.low[r] / SPLIT;
            if (!rows.is_there[r] || (Work::IS_SHARED && split < first_split)) continue;
            const u64 head = (u64)work.seq_of(rows.query[r]) * call.num_heads + rows.head[r];
            const u64 at = head * call.num_slots + split - first_split;
            const u64 len = (u64)call.num_seqs * call.num_heads * call.num_slots * DIM;
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
                T* out = call.out + (u64)work.token_of(rows.query[r]) * cols + rows.head[r] * call.head_dim;
                const float inverse = __frcp_rn(before[r].sum);
                *(u32*)(out + n * 8 + col) =
                    pack<T>(__fmul_rn(pairs[2 * r], inverse), __fmul_rn(pairs[2 * r + 1], inverse));
            }
        }
    }

    DEVICE void load_q(const Call<T>& call, const Work& work, const Rows& rows, u32 (&q)[Q_STEPS][4], uint4* q_shared) {
        const u32 cols = (call.num_heads + 2 * call.num_kv_heads) * call.head_dim;
        const T* from[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const u32 token = rows.is_there[r] ? work.token_of(rows.query[r]) : 0;
            from[r] = call.qkv + (u64)token * cols + rows.head[r] * call.head_dim;
        }
#pragma unroll
        for (int k = 0; k < Q_STEPS; k++) {
            u32 a[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u32 col = k * 16 + threadIdx.x % 4 * 2 + i / 2 * 8, r = i % 2;
                a[i] = rows.is_there[r] && col < call.head_dim ? *(const u32*)(from[r] + col) : 0;
                if constexpr (KEEPS_Q) q[k][i] = a[i];
            }
            if constexpr (!KEEPS_Q) q_shared[k * blockDim.x] = make_uint4(a[0], a[1], a[2], a[3]);
        }
    }

    DEVICE void run(const Call<T>& call, const Work& work) {
        DYNAMIC_SHARED(shared);
        T* stages = (T*)shared;
        uint4* q_shared = (uint4*)(shared + call.num_stages * STAGE_LEN * sizeof(T)) + threadIdx.x;
        // Behind all else: where results are partial it is not there.
        float4* total = (float4*)(q_shared + (KEEPS_Q ? 0 : Q_STEPS * blockDim.x));
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
            rows.high[r] = work.pos_of(min(rows.query[r], last_query));
            rows.low[r] = low_of(rows.high[r], call.window);
        }
        const bool is_idle = first_row / group > last_query;
        // Where the first and the last of the warp's rows begin to see keys, and where they end.
        const u32 first_low = __reduce_min_sync(FULL_WARP, min(rows.low[0], rows.low[1]));
        const u32 last_low = __reduce_max_sync(FULL_WARP, max(rows.low[0], rows.low[1]));
        const u32 first_high = __reduce_min_sync(FULL_WARP, min(rows.high[0], rows.high[1]));
        const u32 last_high = __reduce_max_sync(FULL_WARP, max(rows.high[0], rows.high[1]));
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
