// attention_decode: attention.cu's work for sequences of one query. Long contexts are cut into splits (Flash-Decoding, Dao et al.
// 2023), and what a block's warps do for one another in a split changes no bit: each tile's steps, and their order, are
// attention.cu's.
//
// Arguments are attention.cu's, but for prompts. Sequences of several queries are passed over; those of no key get zeros.
// shared_splits [num_seqs], or null for none: as many of a sequence's first splits are attention_shared's. arrivals [num_seqs,
// grid.y], zeros before and after. partials [num_seqs, num_heads, num_slots, DIM] and, behind all of them, (max, sum) [num_seqs,
// num_heads, num_slots, 2].
//
// Grid (parts, num_kv_heads * row tiles, num_seqs): a row tile is 16 of a key head's query heads; a part has an equal share of the
// splits that are not shared. With more than one part, which there must be where splits are shared, a sequence of several splits
// leaves each split's (O, max, sum) in partials, and the last of its blocks to arrive puts them together, from the first split to
// the last. The grid does not depend on lengths.
//
// A block has four warps and goes through its keys a round of four tiles at a time. Each warp has the scores of one tile, whose keys
// it copies for itself; tells the others its greatest; and, once it knows theirs, makes weights of its scores. Then each warp has a
// quarter of the dimensions of all four tiles' values. The next round's copies begin when a tile has been left: its keys' after its
// scores, its values' at the end of the round.
//
// attention_decode_int8: the same of a cache of 8 bits, whose numbers become T on their way from shared memory to a product, once for
// each warp that multiplies them.
//
// 128 threads. Shared memory: eight tiles of keys and values (lib/attention_tile.h), of 32 keys each or, beyond DIM 128, 16; 128 * tile
// bytes of weights; 272 bytes of maxima and arrivals. That leaves a multiprocessor room for the next product's weights.
//
// Bounded by memory, 4 * head_dim bytes a key and key head: up to 68 KiB a block are on their way, three blocks to an H100's
// multiprocessor. Of 8 bits half of that, and 2 * head_dim + 4 bytes.
#include "lib/platform.h"
#include "lib/softmax.h"
#include "lib/kv_int8.h"
#include "lib/attention_tile.h"

static constexpr u32 WARPS = 4, ROWS = 16;
// A sequence's last keys, at most, that the step itself writes: the query's own, and where drafts are computed along those before it.
static constexpr u32 STEP_KEYS = 16;

// What a block does: keys low to high, some of those that its query sees, which are in num_splits splits. num_blocks: how many blocks
// of the grid have work of this sequence and these heads.
struct Work {
    u32 token, num_keys, table_start, kv_head, first_head, num_rows, low, high, num_splits, num_blocks;
    bool is_partial;
};

// Returns whether there is work. All that it reads is the step's, uploaded before its first kernel.
template <typename T, typename C>
DEVICE bool take_decode(const Call<T, C>& call, const u32* shared_splits, Work& work) {
    const u32* seq = call.sequences + 4 * blockIdx.z;
    work.num_rows = 0;
    if (seq[1] != 1) return false;
    const u32 group = call.num_heads / call.num_kv_heads, row_tiles = (group + ROWS - 1) / ROWS;
    const u32 first_row = blockIdx.y % row_tiles * ROWS;
    work.token = seq[0];
    work.num_keys = seq[2];
    work.table_start = seq[3];
    work.kv_head = blockIdx.y / row_tiles;
    work.first_head = work.kv_head * group + first_row;
    work.num_rows = min(group - first_row, ROWS);
    if (work.num_keys == 0) return false;
    const u32 pos = work.num_keys - 1, row_low = low_of(pos, call.window);
    const u32 first_split = row_low / SPLIT;
    work.num_splits = pos / SPLIT - first_split + 1;
    // The last split is never shared.
    const u32 first_own = shared_splits == nullptr ? first_split : max(first_split, shared_splits[blockIdx.z]);
    const u32 num_own = first_split + work.num_splits - first_own, share = (num_own + gridDim.x - 1) / gridDim.x;
    if (blockIdx.x * share >= num_own) return false;
    const u32 begin = (first_own + blockIdx.x * share) * SPLIT;
    work.low = max(row_low, begin);
    work.high = min(pos, begin + share * SPLIT - 1);
    work.num_blocks = (num_own + share - 1) / share;
    work.is_partial = gridDim.x > 1 && work.num_splits > 1;
    return true;
}

// Zeros, of a sequence of no key.
template <typename T, typename C>
DEVICE void clear_rows(const Call<T, C>& call, const Work& work) {
    T* out = call.out + ((u64)work.token * call.num_heads + work.first_head) * call.head_dim;
    for (u32 i = threadIdx.x; i < work.num_rows * call.head_dim; i += 32 * WARPS) out[i] = from_float<T>(0.0f);
}

template <typename T, int DIM, typename C>
struct Decode {
    using Tiles = Tile<T, DIM, C>;
    static constexpr u32 TILE = Tiles::KEYS, ROUND = WARPS * TILE;
    static constexpr int Q_STEPS = Tiles::Q_STEPS, STEPS = TILE / 16;
    // Of 16 dimensions; a warp has every WARPS-th.
    static constexpr u32 PAIRS = DIM / 16, OWN_PAIRS = (PAIRS + WARPS - 1) / WARPS;
    static_assert(SPLIT % ROUND == 0, "a split is whole rounds");

    struct Shared {
        C keys[WARPS][Tiles::LEN], values[WARPS][Tiles::LEN];
        // What warps tell one another: weights, as products want them of each lane, and rows' greatest scores.
        uint4 weights[WARPS][STEPS][32];
        float greatest[ROWS][WARPS];
        u32 arrived;
    };

    // Starts the copies of the warp's tile of a round, of keys or of values; `row` as Tiles::cache_row gives it.
    DEVICE void copy_tile(const Call<T, C>& call, const Work& work, C* tile, const C* cache, u32 row, u32 round) {
#pragma unroll 4
        for (u32 i = threadIdx.x % 32; i < TILE * Tiles::PIECES; i += 32) {
            const u32 key = i / Tiles::PIECES, d = i % Tiles::PIECES * Tiles::PIECE;
            Tiles::copy_piece(call, tile + key * Tiles::ROW_LEN + d, cache, __shfl_sync(FULL_WARP, row, (int)key), d);
        }
        Tiles::copy_scales(call, tile, cache, row, work.low, round * WARPS + threadIdx.x / 32);
    }

    // Whether there is the warp's `i`th pair.
    DEVICE bool has_pair(u32 i) { return PAIRS % WARPS == 0 || threadIdx.x / 32 + WARPS * i < PAIRS; }

    // Writes a pair of dimensions of a row.
    DEVICE void write(const Call<T, C>& call, const Work& work, u32 row, u32 d, float x, float y, float sum) {
        if (d >= call.head_dim) return;
        const float inverse = __frcp_rn(sum);
        T* out = call.out + ((u64)work.token * call.num_heads + work.first_head + row) * call.head_dim;
        *(u32*)(out + d) = pack<T>(__fmul_rn(x, inverse), __fmul_rn(y, inverse));
    }

    // The last of a sequence's blocks to arrive puts the splits together.
    DEVICE void merge_splits(const Call<T, C>& call, const Work& work, Shared& shared, u32* arrivals) {
        // What this block's threads have written can be read by others before its arrival is; and theirs is read after it.
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) shared.arrived = atomicAdd(arrivals, 1u) + 1;
        __syncthreads();
        if (shared.arrived != work.num_blocks) return;
        __threadfence();
        if (threadIdx.x == 0) *arrivals = 0;
        for (u32 i = threadIdx.x; i < work.num_rows * (DIM / 4); i += 32 * WARPS) {
            const u32 row = i / (DIM / 4), d = i % (DIM / 4) * 4;
            const u64 slot = ((u64)blockIdx.z * call.num_heads + work.first_head + row) * call.num_slots;
            const float4* o = (const float4*)(call.partials + slot * DIM + d);
            const float2* softmax = (const float2*)(call.partials + Tiles::all_outputs(call)) + slot;
            Softmax all = {minus_infinity(), 0.0f};
            float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f}, factors[2];
#pragma unroll 8
            for (u32 split = 0; split < work.num_splits; split++) {
                const float2 part = softmax[split];
                const float4 own = o[(u64)split * (DIM / 4)];
                merge(all, {part.x, part.y}, factors);
                const float parts[4] = {own.x, own.y, own.z, own.w};
#pragma unroll
                for (int j = 0; j < 4; j++) sums[j] = merge_output(sums[j], parts[j], factors);
            }
            write(call, work, row, d, sums[0], sums[1], all.sum);
            write(call, work, row, d + 2, sums[2], sums[3], all.sum);
        }
    }

    DEVICE void run(const Call<T, C>& call, const Work& work, u32* arrivals) {
        DYNAMIC_SHARED(memory);
        Shared& shared = *(Shared*)memory;
        const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        auto find = [&](u32 round) {
            return Tiles::block_of(call, work.table_start, work.low, work.high, round * WARPS + warp);
        };
        auto row_of = [&](u32 round, u32 block) {
            return Tiles::cache_row(call, block, work.kv_head, work.low, work.high, round * WARPS + warp);
        };

        // Copies first, then what can be done while they are on their way. Of the keys only the last are the kernel's before.
        const u32 first_round = work.low / ROUND, end_round = work.high / ROUND + 1;
        const bool is_early = (first_round * WARPS + warp + 1) * TILE + STEP_KEYS <= work.num_keys;
        if (!is_early) wait_for_kernel_before();
        u32 row = row_of(first_round, find(first_round));
        copy_tile(call, work, shared.keys[warp], call.keys, row, first_round);
        copy_commit();
        copy_tile(call, work, shared.values[warp], call.values, row, first_round);
        copy_commit();
        u32 block = find(first_round + 1);
        if (is_early) wait_for_kernel_before();
        Rows rows;
        const T* from[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const u32 idx = lane / 4 + 8 * r;
            rows.is_there[r] = idx < work.num_rows;
            rows.head[r] = work.first_head + (rows.is_there[r] ? idx : 0);
            rows.query[r] = 0;
            rows.high[r] = work.num_keys - 1;
            rows.low[r] = low_of(rows.high[r], call.window);
            const u64 cols = (call.num_heads + 2 * call.num_kv_heads) * call.head_dim;
            from[r] = call.qkv + work.token * cols + rows.head[r] * call.head_dim;
        }
        u32 q[Q_STEPS][4];
#pragma unroll
        for (int k = 0; k < Q_STEPS; k++) Tiles::load_q(q[k], call, rows, from, k);

        // Of this warp's dimensions: the split's output, and that of the splits before, put together.
        float o[2 * OWN_PAIRS][4], total[2 * OWN_PAIRS][4], max[2], sum[4];
        Softmax before[2] = {{minus_infinity(), 0.0f}, {minus_infinity(), 0.0f}};
#pragma unroll
        for (u32 n = 0; n < 2 * OWN_PAIRS; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) o[n][i] = total[n][i] = 0.0f;
        }
        max[0] = max[1] = minus_infinity();
        sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
        for (u32 round = first_round; round < end_round; round++) {
            const u32 first_key = round * ROUND, own_key = first_key + warp * TILE;
            const bool is_last = round + 1 == end_round;
            copy_wait<1>();
            __syncwarp();
            float s[TILE / 8][4];
            Tiles::begin_scores(s);
            const auto scales = Tiles::key_scales(shared.keys[warp]);
#pragma unroll
            for (int k = 0; k < Q_STEPS; k++) Tiles::score(s, q[k], shared.keys[warp], scales, k);
            Tiles::cap_and_mask(call, rows, s, own_key, own_key < rows.low[0] || own_key + TILE - 1 > rows.high[0]);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const float greatest = Tiles::greatest(s, r);
                if (lane % 4 == 0) shared.greatest[lane / 4 + 8 * r][warp] = greatest;
            }
            __syncwarp();
            row = row_of(round + 1, block);
            if (!is_last) copy_tile(call, work, shared.keys[warp], call.keys, row, round + 1);
            copy_commit();
            __syncthreads();
            // What each tile's sums and outputs before it are to be multiplied by.
            float factors[WARPS][2], base[2];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const float4 of_row = *(const float4*)shared.greatest[lane / 4 + 8 * r];
                const float greatest[WARPS] = {of_row.x, of_row.y, of_row.z, of_row.w};
#pragma unroll
                for (u32 tile = 0; tile < WARPS; tile++) {
                    factors[tile][r] = raise(max[r], __fmul_rn(greatest[tile], call.factor));
                    if (tile == warp) base[r] = base_of(max[r]);
                }
            }
#pragma unroll
            for (int k = 0; k < STEPS; k++) {
                u32 a[4];
                Tiles::weigh(a, s, base, call.factor, k);
                shared.weights[warp][k][lane] = make_uint4(a[0], a[1], a[2], a[3]);
            }
            copy_wait<1>();
            __syncthreads();
#pragma unroll
            for (u32 tile = 0; tile < WARPS; tile++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    sum[i] = __fmul_rn(sum[i], factors[tile][i / 2]);
#pragma unroll
                    for (u32 n = 0; n < 2 * OWN_PAIRS; n++) o[n][i] = __fmul_rn(o[n][i], factors[tile][i / 2]);
                }
#pragma unroll
                for (int k = 0; k < STEPS; k++) {
                    const uint4 weights = shared.weights[tile][k][lane];
                    const u32 a[4] = {weights.x, weights.y, weights.z, weights.w};
                    Tiles::add_weights(sum, a);
#pragma unroll
                    for (u32 i = 0; i < OWN_PAIRS; i++) {
                        if (has_pair(i)) Tiles::add_values(o[2 * i], o[2 * i + 1], a, shared.values[tile], k, warp + WARPS * i);
                    }
                }
            }
            __syncthreads();
            if (!is_last) copy_tile(call, work, shared.values[warp], call.values, row, round + 1);
            copy_commit();
            block = find(round + 2);
            if (!is_last && (first_key + ROUND) % SPLIT != 0) continue;
            // A split has ended.
            float both[2][2];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const float of_row = sum[2 * r];
                const u64 slot = Tiles::slot_of(call, blockIdx.z, rows.head[r], rows.low[r], first_key / SPLIT);
                if (work.is_partial && rows.is_there[r]) {
                    float2* out = (float2*)(call.partials + slot * DIM) + lane % 4;
#pragma unroll
                    for (u32 n = 0; n < 2 * OWN_PAIRS; n++) {
                        const u32 at = 8 * (warp + n / 2 * WARPS) + 4 * (n % 2);
                        if (has_pair(n / 2)) out[at] = make_float2(o[n][2 * r], o[n][2 * r + 1]);
                    }
                    float2* softmax = (float2*)(call.partials + Tiles::all_outputs(call));
                    if (warp == 0 && lane % 4 == 0) softmax[slot] = make_float2(max[r], of_row);
                }
                merge(before[r], {max[r], of_row}, both[r]);
                max[r] = minus_infinity();
                sum[2 * r] = sum[2 * r + 1] = 0.0f;
            }
#pragma unroll
            for (u32 n = 0; n < 2 * OWN_PAIRS; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    total[n][i] = merge_output(total[n][i], o[n][i], both[i / 2]);
                    o[n][i] = 0.0f;
                }
            }
        }
        copy_wait<0>();
        if (work.is_partial) return merge_splits(call, work, shared, arrivals);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (!rows.is_there[r]) continue;
#pragma unroll
            for (u32 n = 0; n < 2 * OWN_PAIRS; n++) {
                const u32 d = (warp + n / 2 * WARPS) * 16 + n % 2 * 8 + lane % 4 * 2;
                if (has_pair(n / 2)) {
                    write(call, work, lane / 4 + 8 * r, d, total[n][2 * r], total[n][2 * r + 1], before[r].sum);
                }
            }
        }
    }
};

#define ATTENTION(C_NAME, T, C, DIM)                                                                                   \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, DIM > 128 ? 2 : 3) attention_decode##C_NAME##_##T##_##DIM( \
        CALL_ARGUMENTS(T, C), const u32* shared_splits, u32* arrivals) {                                               \
        const Call<T, C> call = CALL(T);                                                                               \
        Work work;                                                                                                     \
        if (take_decode(call, shared_splits, work)) {                                                                  \
            Decode<T, DIM, C>::run(call, work, arrivals + blockIdx.z * gridDim.y + blockIdx.y);                           \
        } else {                                                                                                       \
            wait_for_kernel_before();                                                                                  \
            if (work.num_rows > 0 && work.num_keys == 0 && blockIdx.x == 0) clear_rows(call, work);                    \
        }                                                                                                              \
    }                                                                                                                  \
    EXPORT_KERNEL(attention_decode##C_NAME##_##T##_##DIM)
EACH_WIDTH(ATTENTION, , bf16, bf16)
EACH_WIDTH(ATTENTION, , f16, f16)
EACH_WIDTH(ATTENTION, _int8, bf16, i8)
EACH_WIDTH(ATTENTION, _int8, f16, i8)
