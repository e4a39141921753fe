// attention_decode: attention.cu's work for sequences of one query. Long contexts are cut into splits (Flash-Decoding, Dao et al.
// 2023), and what a block's warps do for one another in a split changes no bit: each tile's steps, and their order, are
// attention.cu's.
//
// With a table it does what rope_append_kv.cu does too, with the same bits: q, k and v come as a product has left them. Then the last key
// that a query sees is its own, which no other sees, and all the others are of steps before.
//
// Arguments are attention.cu's, but for prompts. Sequences of several queries are passed over; those of no key get zeros.
// shared_splits [num_seqs], or null for none: as many of a sequence's first splits are attention_shared's. arrivals [num_seqs,
// grid.y], zeros before and after. partials [num_seqs, num_heads, num_slots, DIM] and, behind all of them, (max, sum) [num_seqs,
// num_heads, num_slots, 2]. table [table_rows, rotary_dim] f32: of each row cosines, then sines; or null. table_rows [num_tokens]: by which of them a
// token turns. rotary_dim is a multiple of 4, at most head_dim. In a cache of 8 bits a table is for at most 16 query heads a key head.
// lets_next: let_next_begin_if's.
//
// Grid (parts, num_kv_heads * row tiles, num_seqs): a row tile is 16 of a key head's query heads; a part has an equal share of the
// splits that are not shared. With more than one part, which there must be where splits are shared, a sequence of several splits
// leaves each split's (O, max, sum) in partials, and the last of its blocks to arrive puts them together, from the first split to
// the last. The grid does not depend on lengths.
//
// What is turned is turned by all warps for one another, a row at a time, while the first tiles are on their way: the queries, and in the
// block that has it the last key. That one and its value stay in shared memory until their tile is there, where the copy has left zeros in
// their place. Then the tile's warp puts them there and in the cache; of several row tiles the first writes to the cache.
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
// bytes of weights, and in their place queries before, 32 * DIM; 4 * DIM bytes of a key and its value; 272 bytes of maxima and arrivals. That
// leaves a multiprocessor room for the next product's weights.
//
// Bounded by memory, 4 * head_dim bytes a key and key head: up to 68 KiB a block are on their way, three blocks to an H100's
// multiprocessor. Of 8 bits half of that, and 2 * head_dim + 4 bytes. With a table k and v are read once more and written once, and each
// part reads q and the token's row of the table.
#include "lib/platform.h"
#include "lib/softmax.h"
#include "lib/rope.h"
#include "lib/kv_int8.h"
#include "lib/attention_tile.h"

static constexpr u32 WARPS = 4, ROWS = 16;
// A sequence's last keys, at most, that the step itself writes: the query's own, and where drafts are computed along those before it.
static constexpr u32 STEP_KEYS = 16;
// No key has this number.
static constexpr u32 NO_KEY = 0xffffffffu;

// With a table queries, and each one's own key and value, come as a product has left them. Without one queries are turned, and all keys
// and values are in the cache.
struct Rope {
    const float* table;
    const u32* rows;
    u32 rotary_dim;
};

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
    // Of two dimensions; of a row that is turned a lane has every 32nd.
    static constexpr u32 WORDS = (DIM / 2 + 31) / 32;
    static_assert(SPLIT % ROUND == 0, "a split is whole rounds");

    struct Shared {
        C keys[WARPS][Tiles::LEN], values[WARPS][Tiles::LEN];
        // What warps tell one another, as products want it of each lane: the queries' steps, where they are turned here; then weights, each
        // warp's steps.
        uint4 operands[WARPS * STEPS > Q_STEPS ? WARPS * STEPS : Q_STEPS][32];
        // The new key and its value, where they come with the query.
        uint4 added[2][DIM / 8];
        // Rows' greatest scores.
        float greatest[ROWS][WARPS];
        u32 arrived;
    };

    // Starts the copies of the warp's tile of a round, of keys or of values; `row` as Tiles::cache_row gives it. The new key is not in the
    // cache: it becomes zeros.
    DEVICE void copy_tile(const Call<T, C>& call, const Work& work, C* tile, const C* cache, u32 row, u32 round, u32 new_key) {
        const u32 idx = round * WARPS + threadIdx.x / 32;
        if (idx * TILE + threadIdx.x % TILE == new_key) row = NO_ROW;
#pragma unroll 4
        for (u32 i = threadIdx.x % 32; i < TILE * Tiles::PIECES; i += 32) {
            const u32 key = i / Tiles::PIECES, d = i % Tiles::PIECES * Tiles::PIECE;
            Tiles::copy_piece(call, tile + key * Tiles::ROW_LEN + d, cache, __shfl_sync(FULL_WARP, row, (int)key), d);
        }
        // The new key alone: all scales become zeros too.
        Tiles::copy_scales(call, tile, cache, row, work.low == new_key ? NO_KEY : work.low, idx);
    }

    // What a lane needs of the table.
    struct Angles {
        float2 cosines[WORDS], sines[WORDS];
    };
    DEVICE Angles angles_of(const Rope& rope, u32 table_row) {
        const u32 half = rope.rotary_dim / 2;
        Angles angles;
#pragma unroll
        for (u32 i = 0; i < WORDS; i++) {
            const u32 d = 2 * (threadIdx.x % 32 + 32 * i);
            const float* at = rope.table + (u64)table_row * rope.rotary_dim + (d < half ? d : d - half);
            const bool is_there = d < rope.rotary_dim;
            angles.cosines[i] = is_there ? *(const float2*)at : make_float2(0.0f, 0.0f);
            angles.sines[i] = is_there ? *(const float2*)(at + half) : make_float2(0.0f, 0.0f);
        }
        return angles;
    }

    // A word of a row once it has turned. `other`: the one half of what turns apart.
    DEVICE u32 turn(u32 word, u32 other, bool is_low, const float2& cosines, const float2& sines) {
        const u32 low = is_low ? word : other, high = is_low ? other : word;
        const float x[2] = {low_float<T>(low), high_float<T>(low)}, y[2] = {low_float<T>(high), high_float<T>(high)};
        if (is_low) return pack<T>(turn_low(x[0], y[0], cosines.x, sines.x), turn_low(x[1], y[1], cosines.y, sines.y));
        return pack<T>(turn_high(x[0], y[0], cosines.x, sines.x), turn_high(x[1], y[1], cosines.y, sines.y));
    }

    // Brings the block's queries to shared memory, turned, and where `has_new` is true the new key, turned too, and its value. A row a warp,
    // two at a time: they are asked for together.
    DEVICE void turn_rows(const Call<T, C>& call, const Work& work, const Rope& rope, const Angles& angles, bool has_new, Shared& shared) {
        const u32 lane = threadIdx.x % 32, half = rope.rotary_dim / 2, num_turning = call.num_heads + call.num_kv_heads;
        const u32 end = work.num_rows + (has_new ? 2 : 0);
        const T* token = call.qkv + (u64)work.token * (num_turning + call.num_kv_heads) * call.head_dim;
        for (u32 first = threadIdx.x / 32; first < end; first += 2 * WARPS) {
            u32 words[2][WORDS], others[2][WORDS];
#pragma unroll
            for (u32 r = 0; r < 2; r++) {
                const u32 row = first + r * WARPS;
                const u32 of_new = (row == work.num_rows ? call.num_heads : num_turning) + work.kv_head;
                const T* at = token + (row < work.num_rows ? work.first_head + row : of_new) * call.head_dim;
#pragma unroll
                for (u32 i = 0; i < WORDS; i++) {
                    const u32 d = 2 * (lane + 32 * i);
                    words[r][i] = row < end && d < call.head_dim ? *(const u32*)(at + d) : 0;
                    const bool turns = row < end && row <= work.num_rows && d < rope.rotary_dim;
                    others[r][i] = turns ? *(const u32*)(at + (d < half ? d + half : d - half)) : 0;
                }
            }
#pragma unroll
            for (u32 r = 0; r < 2; r++) {
                const u32 row = first + r * WARPS;
#pragma unroll
                for (u32 i = 0; i < WORDS; i++) {
                    const u32 idx = lane + 32 * i, d = 2 * idx;
                    if (row >= end || d >= DIM) continue;
                    const bool turns = row <= work.num_rows && d < rope.rotary_dim;
                    const u32 word = turns ? turn(words[r][i], others[r][i], d < half, angles.cosines[i], angles.sines[i]) : words[r][i];
                    // Where a product's first operand is.
                    u32* of_query = (u32*)&shared.operands[idx / 8][row % 8 * 4 + idx % 4] + row / 8 + idx / 4 % 2 * 2;
                    *(row < work.num_rows ? of_query : (u32*)shared.added[row - work.num_rows] + idx) = word;
                }
            }
        }
    }

    // Brings the new key, or its value, to its tile, whose copies this thread has waited for, and, from the first row tile's block, to the
    // cache.
    DEVICE void put_new(const Call<T, C>& call, const Work& work, C* tile, const C* cache, u32 row, u32 key, const uint4* from) {
        __syncwarp();
        const bool is_first = work.first_head % (call.num_heads / call.num_kv_heads) == 0;
        row = __shfl_sync(FULL_WARP, row, (int)(key % TILE));
        Tiles::put_row(call, tile, is_first ? (C*)cache : nullptr, row, key, (const T*)from);
    }

    // Whether there is the warp's `i`th pair.
    DEVICE bool has_pair(u32 i) { return PAIRS % WARPS == 0 || threadIdx.x / 32 + WARPS * i < PAIRS; }

    // Writes a pair of dimensions of a row.
    DEVICE void write(const Call<T, C>& call, const Work& work, u32 row, u32 d, float x, float y, float share) {
        if (d >= call.head_dim) return;
        T* out = call.out + ((u64)work.token * call.num_heads + work.first_head + row) * call.head_dim;
        *(u32*)(out + d) = pack<T>(__fmul_rn(x, share), __fmul_rn(y, share));
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
            const float share = share_of(all, call.sinks, work.first_head + row);
            write(call, work, row, d, sums[0], sums[1], share);
            write(call, work, row, d + 2, sums[2], sums[3], share);
        }
    }

    DEVICE void run(const Call<T, C>& call, const Work& work, u32* arrivals, const Rope& rope) {
        DYNAMIC_SHARED(memory);
        Shared& shared = *(Shared*)memory;
        const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        auto find = [&](u32 round) {
            return Tiles::block_of(call, work.table_start, work.low, work.high, round * WARPS + warp);
        };
        auto row_of = [&](u32 round, u32 block) {
            return Tiles::cache_row(call, block, work.kv_head, work.low, work.high, round * WARPS + warp);
        };

        // Copies first, then what can be done while they are on their way. Of the keys only the last are the kernel's before, and what comes
        // with a query is not copied at all.
        const u32 first_round = work.low / ROUND, end_round = work.high / ROUND + 1;
        const bool turns = rope.table != nullptr;
        const u32 new_key = turns && work.high + 1 == work.num_keys ? work.high : NO_KEY;
        const bool is_early = turns || (first_round * WARPS + warp + 1) * TILE + STEP_KEYS <= work.num_keys;
        if (!is_early) wait_for_kernel_before();
        u32 row = row_of(first_round, find(first_round));
        copy_tile(call, work, shared.keys[warp], call.keys, row, first_round, new_key);
        copy_commit();
        copy_tile(call, work, shared.values[warp], call.values, row, first_round, new_key);
        copy_commit();
        u32 block = find(first_round + 1);
        Angles angles;
        if (turns) angles = angles_of(rope, rope.rows[work.token]);
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
        if (turns) {
            turn_rows(call, work, rope, angles, new_key != NO_KEY, shared);
            __syncthreads();
#pragma unroll
            for (int k = 0; k < Q_STEPS; k++) {
                const uint4 words = shared.operands[k][lane];
                q[k][0] = rows.is_there[0] ? words.x : 0;
                q[k][1] = rows.is_there[1] ? words.y : 0;
                q[k][2] = rows.is_there[0] ? words.z : 0;
                q[k][3] = rows.is_there[1] ? words.w : 0;
            }
        } else {
#pragma unroll
            for (int k = 0; k < Q_STEPS; k++) Tiles::load_q(q[k], call, rows, from, k);
        }

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
            const bool is_last = round + 1 == end_round, has_new = new_key / TILE == round * WARPS + warp;
            copy_wait<1>();
            if (has_new) put_new(call, work, shared.keys[warp], call.keys, row, new_key, shared.added[0]);
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
            if (!is_last) {
                row = row_of(round + 1, block);
                copy_tile(call, work, shared.keys[warp], call.keys, row, round + 1, new_key);
            }
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
                shared.operands[warp * STEPS + k][lane] = make_uint4(a[0], a[1], a[2], a[3]);
            }
            copy_wait<1>();
            if (has_new) put_new(call, work, shared.values[warp], call.values, row, new_key, shared.added[1]);
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
                    const uint4 weights = shared.operands[tile * STEPS + k][lane];
                    const u32 a[4] = {weights.x, weights.y, weights.z, weights.w};
                    Tiles::add_weights(sum, a);
#pragma unroll
                    for (u32 i = 0; i < OWN_PAIRS; i++) {
                        if (has_pair(i)) Tiles::add_values(o[2 * i], o[2 * i + 1], a, shared.values[tile], k, warp + WARPS * i);
                    }
                }
            }
            __syncthreads();
            if (!is_last) copy_tile(call, work, shared.values[warp], call.values, row, round + 1, new_key);
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
            const float share = share_of(before[r], call.sinks, rows.head[r]);
#pragma unroll
            for (u32 n = 0; n < 2 * OWN_PAIRS; n++) {
                const u32 d = (warp + n / 2 * WARPS) * 16 + n % 2 * 8 + lane % 4 * 2;
                if (has_pair(n / 2)) {
                    write(call, work, lane / 4 + 8 * r, d, total[n][2 * r], total[n][2 * r + 1], share);
                }
            }
        }
    }
};

#define ATTENTION(C_NAME, T, C, DIM)                                                                                   \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, DIM > 128 ? 2 : 3) attention_decode##C_NAME##_##T##_##DIM( \
        CALL_ARGUMENTS(T, C), const u32* shared_splits, u32* arrivals, const float* table, const u32* table_rows,      \
        u32 rotary_dim, u32 lets_next) {                                                                               \
        let_next_begin_if(lets_next);                                                                                  \
        const Call<T, C> call = CALL(T);                                                                               \
        Work work;                                                                                                     \
        if (take_decode(call, shared_splits, work)) {                                                                  \
            u32* arrived = arrivals + blockIdx.z * gridDim.y + blockIdx.y;                                             \
            Decode<T, DIM, C>::run(call, work, arrived, {table, table_rows, rotary_dim});                              \
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
