// Attention of blocks of many rows: some queries' rows, 16 a warp, against a range of keys that all warps share. After
// lib/attention_tile.h.
//
// A block's work is a type of its own, Work here, that says where a query is (token_of: its row in the step; pos_of: its position),
// which keys the block has, low to high, of one block table, and whether queries are of several sequences (IS_SHARED; seq_of: of
// which): then each split's result goes to the memory of partial results, and otherwise, put together with those before it, to out.
// What is shared waits for the kernel before by itself.
#pragma once

template <typename T, int DIM, typename C, typename Work>
struct Core {
    using Tiles = Tile<T, DIM, C>;
    static constexpr u32 TILE = Tiles::KEYS, STAGE_LEN = 2 * Tiles::LEN;
    static constexpr bool KEEPS_Q = DIM <= 128;
    static constexpr int Q_STEPS = Tiles::Q_STEPS;
    // What is shared is read by few blocks, each of which has two tiles on their way; prompts have other warps to do meanwhile.
    static constexpr u32 STAGES = Work::IS_SHARED ? 3 : 2;

    // Starts the copies of a tile; `row` as Tiles::cache_row gives it.
    DEVICE void copy_tile(const Call<T, C>& call, const Work& work, C* stage, u32 row, u32 tile) {
        for (u32 i = threadIdx.x; i < TILE * Tiles::PIECES; i += blockDim.x) {
            const u32 key = i / Tiles::PIECES, d = i % Tiles::PIECES * Tiles::PIECE;
            const u32 from = __shfl_sync(FULL_WARP, row, (int)key);
            C* to = stage + key * Tiles::ROW_LEN + d;
            Tiles::copy_piece(call, to, call.keys, from, d);
            Tiles::copy_piece(call, to + Tiles::LEN, call.values, from, d);
        }
        if (threadIdx.x >= 32) return;
        Tiles::copy_scales(call, stage, call.keys, row, work.low, tile);
        Tiles::copy_scales(call, stage + Tiles::LEN, call.values, row, work.low, tile);
    }

    // One tile: scores become weights, and o += weights . V.
    DEVICE void attend(const Call<T, C>& call, const Rows& rows, const u32 (&q)[Q_STEPS][4], const uint4* q_shared,
                       float (&o)[DIM / 8][4], float (&max)[2], float (&sum)[4], const C* keys, u32 first_key,
                       bool is_masked) {
        float s[TILE / 8][4], base[2], factors[2];
        Tiles::begin_scores(s);
        const auto scales = Tiles::key_scales(keys);
#pragma unroll
        for (int k = 0; k < Q_STEPS; k++) {
            if constexpr (KEEPS_Q) {
                Tiles::score(s, q[k], keys, scales, k);
            } else {
                const uint4 kept = q_shared[k * blockDim.x];
                const u32 a[4] = {kept.x, kept.y, kept.z, kept.w};
                Tiles::score(s, a, keys, scales, k);
            }
        }
        Tiles::cap_and_mask(call, rows, s, first_key, is_masked);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            factors[r] = raise(max[r], __fmul_rn(Tiles::greatest(s, r), call.factor));
            base[r] = base_of(max[r]);
        }
        // Most tiles rescale nothing.
        if (!__all_sync(FULL_WARP, factors[0] == 1.0f && factors[1] == 1.0f)) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                sum[i] = __fmul_rn(sum[i], factors[i / 2]);
#pragma unroll
                for (int n = 0; n < DIM / 8; n++) o[n][i] = __fmul_rn(o[n][i], factors[i / 2]);
            }
        }
        const C* values = keys + Tiles::LEN;
#pragma unroll
        for (int k = 0; k < (int)TILE / 16; k++) {
            u32 a[4];
            Tiles::weigh(a, s, base, call.factor, k);
            Tiles::add_weights(sum, a);
#pragma unroll
            for (int n = 0; n < DIM / 8; n += 2) Tiles::add_values(o[n], o[n + 1], a, values, k, n / 2);
        }
    }

    // A split's result goes to the memory of partial results.
    DEVICE void save(const Call<T, C>& call, const Work& work, const Rows& rows, const float (&o)[DIM / 8][4],
                     const float (&max)[2], const float (&sum)[2], u32 split) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            // Another sequence may see keys in an earlier split.
            if (!rows.is_there[r] || split < rows.low[r] / SPLIT) continue;
            const u64 slot = Tiles::slot_of(call, work.seq_of(rows.query[r]), rows.head[r], rows.low[r], split);
            const u32 lane = threadIdx.x % 4;
            float2* out = (float2*)(call.partials + slot * DIM) + lane;
#pragma unroll
            for (int n = 0; n < DIM / 8; n++) out[4 * n] = make_float2(o[n][2 * r], o[n][2 * r + 1]);
            if (lane == 0) ((float2*)(call.partials + Tiles::all_outputs(call)))[slot] = make_float2(max[r], sum[r]);
        }
    }

    // A split's result is put together with those before it, which `total` has unless it is the first, and with `is_last`
    // goes to out.
    DEVICE void add_split(const Call<T, C>& call, const Work& work, const Rows& rows, const float (&o)[DIM / 8][4],
                          const float (&max)[2], const float (&sum)[2], Softmax (&before)[2], float4* total, bool is_first,
                          bool is_last) {
        float factors[2][2];
#pragma unroll
        for (int r = 0; r < 2; r++) merge(before[r], {max[r], sum[r]}, factors[r]);
        if (is_last) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                // In the sum's place, as nothing follows: registers are few.
                if (rows.is_there[r]) before[r].sum = share_of(before[r], call.sinks, rows.head[r]);
            }
        }
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
                const float share = before[r].sum;
                *(u32*)(out + n * 8 + col) = pack<T>(__fmul_rn(pairs[2 * r], share), __fmul_rn(pairs[2 * r + 1], share));
            }
        }
    }

    DEVICE void load_q(const Call<T, C>& call, const Work& work, const Rows& rows, u32 (&q)[Q_STEPS][4], uint4* q_shared) {
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
            Tiles::load_q(a, call, rows, from, k);
            if constexpr (KEEPS_Q) {
#pragma unroll
                for (int i = 0; i < 4; i++) q[k][i] = a[i];
            } else {
                q_shared[k * blockDim.x] = make_uint4(a[0], a[1], a[2], a[3]);
            }
        }
    }

    DEVICE void run(const Call<T, C>& call, const Work& work) {
        DYNAMIC_SHARED(shared);
        C* stages = (C*)shared;
        uint4* q_shared = (uint4*)(shared + STAGES * STAGE_LEN * sizeof(C)) + threadIdx.x;
        // Behind all else, of prompts alone.
        float4* total = (float4*)(q_shared + (KEEPS_Q ? 0 : Q_STEPS * blockDim.x));
        const u32 first_row = threadIdx.x / 32 * 16, group = call.num_heads / call.num_kv_heads;
        const u32 last_query = work.num_queries - 1;
        auto find = [&](u32 tile) { return Tiles::block_of(call, work.table_start, work.low, work.high, tile); };
        auto row_of = [&](u32 tile, u32 block) {
            return Tiles::cache_row(call, block, work.kv_head, work.low, work.high, tile);
        };

        // Copies first, then what can be done while they are on their way.
        const u32 first_tile = work.low / TILE, end_tile = work.high / TILE + 1;
        u32 copied = first_tile, copied_stage = 0, block = find(first_tile);
        for (u32 i = 1; i < STAGES; i++) {
            if (copied < end_tile) copy_tile(call, work, stages + copied_stage * STAGE_LEN, row_of(copied, block), copied);
            copy_commit();
            block = find(++copied);
            copied_stage++;
        }
        // What is shared is of earlier steps, and read ahead of the kernel before.
        if constexpr (Work::IS_SHARED) wait_for_kernel_before();
        Rows rows;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const u32 idx = first_row + threadIdx.x % 32 / 4 + 8 * r;
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

        float o[DIM / 8][4], max[2], sum[4];
        Softmax before[2] = {{minus_infinity(), 0.0f}, {minus_infinity(), 0.0f}};
        bool begins = true, is_first = true;
        u32 stage = 0;
        for (u32 tile = first_tile; tile < end_tile; tile++) {
            copy_wait<STAGES - 2>();
            // All have the tile, and have left the one before, whose place the next one takes.
            __syncthreads();
            if (copied < end_tile) copy_tile(call, work, stages + copied_stage * STAGE_LEN, row_of(copied, block), copied);
            copy_commit();
            block = find(++copied);
            copied_stage = copied_stage + 1 == STAGES ? 0 : copied_stage + 1;
            const C* keys = stages + stage * STAGE_LEN;
            stage = stage + 1 == STAGES ? 0 : stage + 1;
            if (is_idle) continue;
            if (begins) {
#pragma unroll
                for (int n = 0; n < DIM / 8; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) o[n][i] = 0.0f;
                }
                max[0] = max[1] = minus_infinity();
                sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
            }
            const u32 first_key = tile * TILE, last_key = first_key + TILE - 1;
            if (first_key <= last_high && last_key >= first_low) {
                attend(call, rows, q, q_shared, o, max, sum, keys, first_key, last_key > first_high || first_key < last_low);
            }
            const bool is_last = tile + 1 == end_tile;
            begins = is_last || (last_key + 1) % SPLIT == 0;
            if (!begins) continue;
            const float sums[2] = {sum[0], sum[2]};
            if constexpr (Work::IS_SHARED) {
                save(call, work, rows, o, max, sums, first_key / SPLIT);
            } else {
                add_split(call, work, rows, o, max, sums, before, total, is_first, is_last);
                is_first = false;
            }
        }
        copy_wait<0>();
    }
};
