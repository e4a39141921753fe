// attention_hopper: what attention.cu computes for prompts, on Hopper (sm_90a) alone: boxes by the tensor memory accelerator and
// products of warpgroups in place of the portable ones (FlashAttention-3, Shah et al. 2024).
//
// A block has one key head and 128 rows, row r being query r / group, head r % group, so that keys and values are read once for
// all heads that share them. The warps of its first warpgroup bring tiles of 64 keys and of their values. A page of the cache
// is contiguous for a key head, and a box of the map is such a page (or 64 keys of one) by 64 dimensions: the copy swizzles it
// as products want it, which copies of whole pages in one piece would not. Pages that no row sees are taken from beyond the
// array, where copies find zeros. The other two warpgroups have 64 rows each: scores from shared memory, weights from the
// registers in which scores come. While a group's weights meet the values, the scores of its next tile are under way; the
// groups take turns in starting products, so that one's softmax meets the other's products.
//
// The order of operations is attention.cu's: the softmax takes 32 keys at absolute positions, begins anew at each absolute
// multiple of SPLIT keys, and splits are merged from the first to the last. A query's bits depend on the query alone; they are
// attention.cu's if a warpgroup's product adds as mma.sync does, which a device is asked when it is opened. Beyond DIM 128
// registers do not hold two outputs: there the softmax takes 64 keys at a time and goes on over the splits.
//
// Arguments are attention.cu's, but that a map gives the cache: arrays [2 * layers: a layer's keys, then its values][num_rows =
// num_blocks * num_kv_heads * block_size][head_stride], boxes [1][min(block_size, 64)][64]; block_size a power of two from 8 on.
// layer: which. head_dim a multiple of 8, head_stride at least 64.
//
// Grid (tiles of all prompts * num_kv_heads), a tile being the queries of a block; 384 threads. Shared memory: 1024 bytes, for
// what is in it begins at a multiple of that; 128 rows of q; STAGES tiles of keys and of values; rows of 64 dimensions or a
// multiple; 2048 bytes of ones; 128 bytes of barriers.
//
// Bounded by FLOPs, 4 * head_dim a query head and key.
#include "lib/platform.h"
#include "lib/hopper.h"
#include "lib/softmax.h"
#include "lib/prompt.h"

static constexpr u32 TILE = 64, GROUP_ROWS = 64, GROUP_THREADS = 128, CONSUMERS = 2;
static constexpr u32 CHUNK_BYTES = 64 * 128, STEP_BYTES = 16 * 128; // Of 64, and of 16, rows of 64 dimensions.

template <typename T, int DIM>
struct Core {
    static constexpr u32 CHUNKS = (DIM + 63) / 64, TILE_BYTES = CHUNKS * CHUNK_BYTES;
    static constexpr u32 STAGES = DIM > 128 ? 2 : 4;
    static constexpr bool RESTARTS = DIM <= 128;
    // The softmax takes a tile's keys in so many parts.
    static constexpr int PARTS = RESTARTS ? 2 : 1, PART_STEPS = 4 / PARTS, PART_LEN = 32 / PARTS;
    static constexpr int O_LEN = DIM / 2, TOTAL_LEN = RESTARTS ? O_LEN : 1;

    struct Shared {
        u8 q[CONSUMERS][TILE_BYTES];
        u8 keys[STAGES][TILE_BYTES];
        u8 values[STAGES][TILE_BYTES];
        // 16 rows of ones: weights' sums are a product with them.
        u8 ones[STEP_BYTES];
        CopyBarrier has_keys[STAGES], has_values[STAGES], keys_left[STAGES], values_left[STAGES];
    };

    // Half of the boxes of all tiles' keys, from the first to the last tile that any row sees, or of their values; by a warp, of which a
    // lane brings a box. The next tile's page is looked up before this one's place is free, and first needed after.
    DEVICE void produce(const Call<T>& call, const TensorMap* map, const Work& work, Shared& shared, bool is_values, u32 half) {
        constexpr u32 NO_PAGE = ~0u;
        const u32 lane = threadIdx.x % 32, box = 2 * lane + half;
        const u32 box_keys = min(call.block_size, TILE), page_bits = __ffs((int)call.block_size) - 1;
        const u32 chunk = box % CHUNKS, first = box / CHUNKS * box_keys;
        const bool brings = first < TILE;
        const u32 bytes = __popc(__ballot_sync(FULL_WARP, brings)) * box_keys * 128;
        u8* to = (is_values ? shared.values : shared.keys)[0] + chunk * CHUNK_BYTES + first * 128;
        CopyBarrier* is_there = is_values ? shared.has_values : shared.has_keys;
        CopyBarrier* is_left = is_values ? shared.values_left : shared.keys_left;
        // What no row sees may be in no table any more.
        auto find = [&](u32 tile) {
            const u32 key = tile * TILE + first;
            if (!brings || key + box_keys <= work.low || key > work.high) return NO_PAGE;
            return call.tables[work.table_start + (key >> page_bits)];
        };
        Pass<STAGES> pass;
        u32 page = find(work.low / TILE);
        for (u32 tile = work.low / TILE; tile <= work.high / TILE; tile++, pass.advance()) {
            const u32 next = find(tile + 1);
            barrier_wait(&is_left[pass.stage], pass.parity ^ 1);
            if (lane == 0) barrier_arrive_expecting(&is_there[pass.stage], bytes);
            __syncwarp();
            if (brings) {
                // Where the cache has the box; beyond the array there are zeros.
                const u32 of_page = (tile * TILE + first) & (call.block_size - 1);
                const u32 row = page == NO_PAGE ? call.num_rows : ((page * call.num_kv_heads + work.kv_head) << page_bits) + of_page;
                copy_box(to + pass.stage * TILE_BYTES, map, &is_there[pass.stage], chunk * 64, row, 2 * call.layer + is_values);
            }
            page = next;
        }
    }

    // The keys that are seen by the two rows, 8 apart, that this thread has a share of.
    struct Rows {
        u32 low[2], high[2];
    };

    DEVICE void load_q(const Call<T>& call, const Work& work, u32 consumer, u8* q) {
        const u32 group = call.num_heads / call.num_kv_heads;
        const u32 cols = (call.num_heads + 2 * call.num_kv_heads) * call.head_dim;
        // All is asked for before any of it is put down.
        constexpr u32 PIECES = CHUNKS * 8, NUM = GROUP_ROWS * PIECES / GROUP_THREADS;
        uint4 parts[NUM];
#pragma unroll
        for (u32 i = 0; i < NUM; i++) {
            const u32 at = threadIdx.x % GROUP_THREADS + i * GROUP_THREADS, piece = at % PIECES;
            const u32 idx = consumer * GROUP_ROWS + at / PIECES;
            parts[i] = make_uint4(0, 0, 0, 0);
            if (idx / group < work.num_queries && piece * 8 < call.head_dim) {
                const u32 head = work.kv_head * group + idx % group;
                const T* row_start = call.qkv + (u64)(work.query_start + idx / group) * cols + head * call.head_dim;
                parts[i] = *(const uint4*)(row_start + piece * 8);
            }
        }
#pragma unroll
        for (u32 i = 0; i < NUM; i++) {
            const u32 at = threadIdx.x % GROUP_THREADS + i * GROUP_THREADS, row = at / PIECES, piece = at % PIECES;
            *(uint4*)(q + piece / 8 * CHUNK_BYTES + row * 128 + (piece % 8 ^ row % 8) * 16) = parts[i];
        }
        publish_shared();
        named_barrier_wait(1 + CONSUMERS + consumer, GROUP_THREADS);
    }

    // Of the last page what is not the sequence's, but an earlier one's: weights of 0 are no help against what is no number.
    DEVICE void clear_others(const Call<T>& call, const Work& work, u32 consumer, u8* values, u32 tile) {
        const u32 box_keys = min(call.block_size, TILE), within = work.num_keys % box_keys;
        if (within == 0 || tile != work.num_keys / TILE) return;
        const u32 first = work.num_keys % TILE, num_pieces = (box_keys - within) * 8;
        for (u32 i = threadIdx.x % GROUP_THREADS; i < CHUNKS * num_pieces; i += GROUP_THREADS) {
            u8* to = values + i / num_pieces * CHUNK_BYTES + first * 128 + i % num_pieces * 16;
            store_alike((uint4*)to, make_uint4(0, 0, 0, 0));
        }
        publish_shared();
        named_barrier_wait(1 + CONSUMERS + consumer, GROUP_THREADS);
    }

    // Starts a tile's scores: q . K^T.
    DEVICE void start_scores(float (&s)[32], u32 q, u32 keys) {
#pragma unroll
        for (u32 k = 0; k < DIM / 16; k++) {
            const u32 at = k / 4 * CHUNK_BYTES + k % 4 * 32;
            product_shared<T, 64>(s, matrix_further(q, at), matrix_further(keys, at), k > 0);
        }
        products_commit();
    }

    // Starts o += weights . V of a part of a tile, and sums of the weights.
    template <int PART>
    DEVICE void start_weighing(float (&o)[O_LEN], float (&sum)[4], const u32 (&weights)[16], u32 values, u32 ones) {
#pragma unroll
        for (int k = PART * PART_STEPS; k < (PART + 1) * PART_STEPS; k++) {
            const u32 rows = matrix_further(values, k * STEP_BYTES);
            const u32* a = weights + 4 * k;
            product_registers<T, 8>(sum, a, ones);
            if constexpr (DIM % 128 == 0) {
#pragma unroll
                for (int n = 0; n < DIM / 128; n++) {
                    product_registers<T, 128>(o + 64 * n, a, matrix_further(rows, 2 * n * CHUNK_BYTES));
                }
            } else {
                product_registers<T, 64>(o, a, rows);
                if constexpr (DIM > 64) product_registers<T, DIM - 64>(o + 32, a, matrix_further(rows, CHUNK_BYTES));
            }
        }
        products_commit();
    }

    // Scores after the cap, and without what rows do not see.
    DEVICE void cap_and_mask(const Call<T>& call, const Rows& rows, float (&s)[32], u32 first_key, bool is_masked) {
        if (call.cap != 0.0f) {
#pragma unroll
            for (int i = 0; i < 32; i++) {
                const float power = fast_exp2(__fmul_rn(s[i], call.cap_factor));
                s[i] = __fmaf_rn(-2.0f * call.cap, __frcp_rn(__fadd_rn(power, 1.0f)), call.cap);
            }
        }
        if (is_masked) {
            const u32 own_key = first_key + threadIdx.x % 4 * 2;
#pragma unroll
            for (int i = 0; i < 32; i++) {
                const u32 key = own_key + i / 4 * 8 + i % 2;
                if (key < rows.low[i / 2 % 2] || key > rows.high[i / 2 % 2]) s[i] = minus_infinity();
            }
        }
    }

    // The two rows' softmax: what weights are relative to, to the base 2; and of each part of the tile that was seen last, the same for
    // its scores and what the sums and outputs before it are to be multiplied by.
    struct State {
        float max[2], base[PARTS][2], factor[PARTS][2];

        __device__ __forceinline__ void begin() { max[0] = max[1] = minus_infinity(); }

        __device__ __forceinline__ void see(const float (&s)[32], float scale) {
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    float most = minus_infinity();
#pragma unroll
                    for (int i = part * PART_LEN; i < (part + 1) * PART_LEN; i += 4) {
                        most = fmaxf(most, fmaxf(s[i + 2 * r], s[i + 2 * r + 1]));
                    }
                    most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, 1));
                    most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, 2));
                    factor[part][r] = raise(max[r], __fmul_rn(most, scale));
                    base[part][r] = base_of(max[r]);
                }
            }
        }
    };

    DEVICE void exponentials(float (&s)[32], const State& state, float scale) {
#pragma unroll
        for (int i = 0; i < 32; i++) s[i] = fast_exp2(__fmaf_rn(s[i], scale, -state.base[i / PART_LEN][i / 2 % 2]));
    }

    // Weights as products want them, which is where scores are.
    DEVICE void weigh(u32 (&weights)[16], const float (&s)[32]) {
#pragma unroll
        for (int i = 0; i < 16; i++) weights[i] = pack<T>(s[2 * i], s[2 * i + 1]);
    }

    // Most tiles rescale nothing.
    DEVICE void rescale(float (&o)[O_LEN], float (&sum)[4], const float (&factor)[2]) {
        if (__all_sync(FULL_WARP, factor[0] == 1.0f && factor[1] == 1.0f)) return;
#pragma unroll
        for (int i = 0; i < O_LEN; i++) o[i] = __fmul_rn(o[i], factor[i / 2 % 2]);
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] = __fmul_rn(sum[i], factor[i / 2]);
    }

    // Splits before, put together.
    struct Splits {
        Softmax softmax[2];
        float total[TOTAL_LEN];
    };

    // A split's sums and outputs, which begin anew.
    DEVICE void add_split(Splits& splits, float (&o)[O_LEN], float (&sum)[4], const float (&split_max)[2]) {
        float factors[2][2];
#pragma unroll
        for (int r = 0; r < 2; r++) merge(splits.softmax[r], {split_max[r], sum[2 * r]}, factors[r]);
        sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
#pragma unroll
        for (int i = 0; i < O_LEN; i++) {
            splits.total[i] = merge_output(splits.total[i], o[i], factors[i / 2 % 2]);
            o[i] = 0.0f;
        }
    }

    // The first of the thread's two rows, of the block's.
    DEVICE u32 first_row(u32 consumer) {
        const u32 thread = threadIdx.x % GROUP_THREADS;
        return consumer * GROUP_ROWS + thread / 32 * 16 + thread % 32 / 4;
    }

    DEVICE void store(const Call<T>& call, const Work& work, u32 consumer, const float (&o)[O_LEN], const Softmax (&all)[2]) {
        const u32 group = call.num_heads / call.num_kv_heads, col = threadIdx.x % 4 * 2;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const u32 row = first_row(consumer) + 8 * r;
            if (row / group >= work.num_queries) continue;
            const u32 head = work.kv_head * group + row % group;
            T* out = call.out + ((u64)(work.query_start + row / group) * call.num_heads + head) * call.head_dim;
            const float share = share_of(all[r], call.sinks, head);
#pragma unroll
            for (int n = 0; n < DIM / 8; n++) {
                if (n * 8 + col >= call.head_dim) continue;
                const float* pair = o + 4 * n + 2 * r;
                *(u32*)(out + n * 8 + col) = pack<T>(__fmul_rn(pair[0], share), __fmul_rn(pair[1], share));
            }
        }
    }

    // The groups start products in turn, tile by tile.
    struct Turns {
        u32 consumer, left;
        bool is_first = true;

        __device__ __forceinline__ void take() {
            if (consumer > 0 || !is_first) named_barrier_wait(1 + consumer, CONSUMERS * GROUP_THREADS);
            is_first = false;
        }
        __device__ __forceinline__ void give() {
            left--;
            if (consumer == 0 || left > 0) named_barrier_arrive(1 + (consumer ^ 1), CONSUMERS * GROUP_THREADS);
        }
    };

    // A group that consumes: which; where its first matrix in shared memory would be as products want it; the stage that is next.
    struct Consumer {
        u32 idx, matrices;
        Turns turns;
        Pass<STAGES> pass;
    };

    // Each warp says for itself that it has left a stage.
    DEVICE void leave(CopyBarrier& left) {
        if (threadIdx.x % 32 == 0) barrier_arrive(&left);
    }

    DEVICE void skip(Shared& shared, Consumer& consumer) {
        Pass<STAGES>& pass = consumer.pass;
        barrier_wait(&shared.has_keys[pass.stage], pass.parity);
        leave(shared.keys_left[pass.stage]);
        barrier_wait(&shared.has_values[pass.stage], pass.parity);
        leave(shared.values_left[pass.stage]);
        pass.advance();
        consumer.turns.take();
        consumer.turns.give();
    }

    // What a group sees: tiles begin to end (none: equal), of which those are masked that its warp's rows do not see whole.
    struct Range {
        u32 begin, end, first_high, last_low;

        __device__ __forceinline__ bool cuts(u32 tile) const {
            return tile * TILE + TILE - 1 > first_high || tile * TILE < last_low;
        }
    };

    DEVICE Range range_of(const Call<T>& call, const Work& work, u32 consumer, u32 end_tile) {
        const u32 group = call.num_heads / call.num_kv_heads, last_query = work.num_queries - 1;
        const u32 group_row = consumer * GROUP_ROWS, warp_row = group_row + threadIdx.x % GROUP_THREADS / 32 * 16;
        Range range;
        range.first_high = work.first_pos + min(warp_row / group, last_query);
        range.last_low = low_of(work.first_pos + min((warp_row + 15) / group, last_query), call.window);
        const bool is_idle = group_row / group > last_query;
        const u32 last_high = work.first_pos + min((group_row + GROUP_ROWS - 1) / group, last_query);
        range.begin = is_idle ? end_tile : low_of(work.first_pos + group_row / group, call.window) / TILE;
        range.end = is_idle ? end_tile : last_high / TILE + 1;
        return range;
    }

    DEVICE Rows rows_of(const Call<T>& call, const Work& work, u32 consumer) {
        const u32 group = call.num_heads / call.num_kv_heads;
        Rows rows;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            rows.high[r] = work.first_pos + min((first_row(consumer) + 8 * r) / group, work.num_queries - 1);
            rows.low[r] = low_of(rows.high[r], call.window);
        }
        return rows;
    }

    DEVICE void consume(const Call<T>& call, const Work& work, Shared& shared, u32 idx) {
        const u32 first_tile = work.low / TILE, end_tile = work.high / TILE + 1;
        Consumer consumer = {idx, of_warp(matrix_at(shared_address(&shared), CHUNK_BYTES)), {idx, end_tile - first_tile}, {}};
        load_q(call, work, idx, shared.q[idx]);
        const Range range = range_of(call, work, idx, end_tile);
        for (u32 tile = first_tile; tile < range.begin; tile++) skip(shared, consumer);
        if (range.begin < range.end) attend(call, work, shared, consumer, range);
        for (u32 tile = range.end; tile < end_tile; tile++) skip(shared, consumer);
    }

    DEVICE void attend(const Call<T>& call, const Work& work, Shared& shared, Consumer& consumer, const Range& range) {
        Pass<STAGES>& pass = consumer.pass;
        Turns& turns = consumer.turns;
        const Rows rows = rows_of(call, work, consumer.idx);
        const u32 q = matrix_further(consumer.matrices, consumer.idx * TILE_BYTES);
        const u32 keys = matrix_further(consumer.matrices, CONSUMERS * TILE_BYTES);
        const u32 values = matrix_further(keys, STAGES * TILE_BYTES), ones = matrix_further(values, STAGES * TILE_BYTES);
        Splits splits;
        float o[O_LEN], sum[4] = {0.0f, 0.0f, 0.0f, 0.0f}, s[32];
        u32 weights[16];
        State state;
#pragma unroll
        for (int i = 0; i < O_LEN; i++) o[i] = 0.0f;
#pragma unroll
        for (int i = 0; i < TOTAL_LEN; i++) splits.total[i] = 0.0f;
        splits.softmax[0] = splits.softmax[1] = {minus_infinity(), 0.0f};
        state.begin();

        // The first tile's scores.
        barrier_wait(&shared.has_keys[pass.stage], pass.parity);
        turns.take();
        products_begin();
        start_scores(s, q, of_warp(matrix_further(keys, pass.stage * TILE_BYTES)));
        turns.give();
        products_wait<0>();
        keep(s);
        leave(shared.keys_left[pass.stage]);
        cap_and_mask(call, rows, s, range.begin * TILE, range.cuts(range.begin));
        state.see(s, call.factor);
        exponentials(s, state, call.factor);
        weigh(weights, s);

        for (u32 tile = range.begin; tile + 1 < range.end; tile++) {
            const Pass<STAGES> own = pass;
            pass.advance();
            barrier_wait(&shared.has_keys[pass.stage], pass.parity);
            barrier_wait(&shared.has_values[own.stage], own.parity);
            const u32 own_values = of_warp(matrix_further(values, own.stage * TILE_BYTES));
            turns.take();
            products_begin();
            start_scores(s, q, of_warp(matrix_further(keys, pass.stage * TILE_BYTES)));
            start_weighing<0>(o, sum, weights, own_values, ones);
            turns.give();
            products_wait<1>();
            keep(s);
            leave(shared.keys_left[pass.stage]);
            const bool ends = RESTARTS && (tile + 1) % (SPLIT / TILE) == 0;
            const float split_max[2] = {state.max[0], state.max[1]};
            const float second_factor[2] = {state.factor[PARTS - 1][0], state.factor[PARTS - 1][1]};
            if (ends) state.begin();
            cap_and_mask(call, rows, s, (tile + 1) * TILE, range.cuts(tile + 1));
            state.see(s, call.factor);
            if constexpr (PARTS == 2) {
                products_wait<0>();
                keep(o);
                keep(sum);
                rescale(o, sum, second_factor);
                products_begin();
                start_weighing<PARTS - 1>(o, sum, weights, own_values, ones);
            }
            exponentials(s, state, call.factor);
            products_wait<0>();
            keep(o);
            keep(sum);
            leave(shared.values_left[own.stage]);
            if constexpr (RESTARTS) {
                if (ends) add_split(splits, o, sum, split_max);
            }
            rescale(o, sum, state.factor[0]);
            weigh(weights, s);
        }

        // The last tile's values.
        barrier_wait(&shared.has_values[pass.stage], pass.parity);
        clear_others(call, work, consumer.idx, shared.values[pass.stage], range.end - 1);
        const u32 own_values = of_warp(matrix_further(values, pass.stage * TILE_BYTES));
        products_begin();
        start_weighing<0>(o, sum, weights, own_values, ones);
        products_wait<0>();
        keep(o);
        keep(sum);
        if constexpr (PARTS == 2) {
            rescale(o, sum, state.factor[PARTS - 1]);
            products_begin();
            start_weighing<PARTS - 1>(o, sum, weights, own_values, ones);
            products_wait<0>();
            keep(o);
            keep(sum);
        }
        leave(shared.values_left[pass.stage]);
        pass.advance();
        if constexpr (RESTARTS) {
            add_split(splits, o, sum, state.max);
            store(call, work, consumer.idx, splits.total, splits.softmax);
        } else {
            const Softmax all[2] = {{state.max[0], sum[0]}, {state.max[1], sum[2]}};
            store(call, work, consumer.idx, o, all);
        }
    }

    DEVICE void run(const Call<T>& call, const TensorMap* map) {
        DYNAMIC_SHARED(memory);
        Shared& shared = *(Shared*)(memory + (0 - shared_address(memory)) % 1024);
        if (threadIdx.x == 0) {
            prefetch_map(map);
            for (u32 i = 0; i < STAGES; i++) {
                barrier_init(&shared.has_keys[i], 2);
                barrier_init(&shared.has_values[i], 2);
                barrier_init(&shared.keys_left[i], CONSUMERS * GROUP_THREADS / 32);
                barrier_init(&shared.values_left[i], CONSUMERS * GROUP_THREADS / 32);
            }
            barrier_init_done();
        }
        if (threadIdx.x < STEP_BYTES / 16) {
            const u32 pair = pack<T>(1.0f, 1.0f);
            ((uint4*)shared.ones)[threadIdx.x] = make_uint4(pair, pair, pair, pair);
            publish_shared();
        }
        __syncthreads();
        // What is known before registers change hands has few of them: each group finds out for itself what there is to do.
        const u32 warpgroup = threadIdx.x / GROUP_THREADS;
        Work work;
        if (warpgroup == 0) {
            give_registers<24>();
            const u32 warp = threadIdx.x / 32;
            if (take_prompt(call, CONSUMERS * GROUP_ROWS, work)) produce(call, map, work, shared, warp / 2 == 1, warp % 2);
        } else {
            take_registers<240>();
            if (take_prompt(call, CONSUMERS * GROUP_ROWS, work)) consume(call, work, shared, warpgroup - 1);
        }
    }
};

#define ATTENTION(T, DIM)                                                                                              \
    extern "C" __global__ void __launch_bounds__((1 + CONSUMERS) * GROUP_THREADS, 1)                                   \
        attention_hopper_##T##_##DIM(T* out, const T* qkv, const __grid_constant__ TensorMap map,                      \
                                     const u32* sequences, const u32* tables, const float* sinks, const u32* prompts,  \
                                     u32 num_prompts, u32 num_heads, u32 num_kv_heads, u32 head_dim, u32 block_size,   \
                                     u32 num_rows, u32 layer, u32 window, float factor, float cap, float cap_factor) { \
        wait_for_kernel_before();                                                                                      \
        const Call<T> call = {out,       qkv,          sequences, tables,     sinks,    prompts, num_prompts,            \
                              num_heads, num_kv_heads, head_dim,  block_size, num_rows, layer,   window,                 \
                              factor,    cap,          cap_factor};                                                    \
        Core<T, DIM>::run(call, &map);                                                                                 \
    }                                                                                                                  \
    EXPORT_KERNEL(attention_hopper_##T##_##DIM)
#define KERNELS(T) ATTENTION(T, 64) ATTENTION(T, 80) ATTENTION(T, 96) ATTENTION(T, 128) ATTENTION(T, 256)
KERNELS(bf16)
KERNELS(f16)
