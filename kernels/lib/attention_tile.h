// What attention does with a tile of keys and their values, for 16 rows of a warp. kernels/attention.cu says what is computed, how
// arguments lie in memory, and why a row's bits depend on its query alone: all kernels but Hopper's take these steps, in this
// order. After lib/platform.h, lib/softmax.h and lib/kv_int8.h.
//
// The cache has numbers of C: T itself, or 8 bits, which lib/kv_int8.h makes numbers of T on the way from shared memory. They are
// multiplied in the same order, so that bits are those of a cache of T with these numbers.
//
// A row is a query with one of its heads. A lane has a share of two rows, lane / 4 and 8 further, as mma_16x8x16 has it.
#pragma once

static constexpr u32 NO_ROW = 0xffffffffu;

template <typename T, typename C>
struct Call {
    T* out;
    const T* qkv;
    const C* keys;
    const C* values;
    const u32* sequences;
    const u32* tables;
    float* partials;
    // One a query head, or null.
    const float* sinks;
    u32 num_seqs, num_heads, num_kv_heads, head_dim, head_stride, block_size;
    // 0: none.
    u32 window;
    u32 num_slots;
    // Scores are taken times this to the base 2, after the cap.
    float factor;
    // 0: none. A score's product with cap_factor is to the base 2 what tanh takes the exponential of.
    float cap, cap_factor;
};
#define CALL_ARGUMENTS(T, C)                                                                                           \
    T *out, const T *qkv, const C *keys, const C *values, const u32 *sequences, const u32 *tables, float *partials,    \
        const float *sinks, u32 num_seqs, u32 num_heads, u32 num_kv_heads, u32 head_dim, u32 head_stride,              \
        u32 block_size, u32 window, u32 num_slots, float factor, float cap, float cap_factor
#define CALL(T)                                                                                                        \
    {out,          qkv,      keys,        values,     sequences, tables,    partials, sinks, num_seqs,  num_heads,     \
     num_kv_heads, head_dim, head_stride, block_size, window,    num_slots, factor,   cap,   cap_factor}

// A kernel for each width of heads that ops/attention/cuda.rs pads to; of a cache of C, names have C_NAME.
#define EACH_WIDTH(KERNEL, C_NAME, T, C)                                                                               \
    KERNEL(C_NAME, T, C, 16)                                                                                           \
    KERNEL(C_NAME, T, C, 32)                                                                                           \
    KERNEL(C_NAME, T, C, 64)                                                                                           \
    KERNEL(C_NAME, T, C, 80)                                                                                           \
    KERNEL(C_NAME, T, C, 96)                                                                                           \
    KERNEL(C_NAME, T, C, 128)                                                                                          \
    KERNEL(C_NAME, T, C, 256)

// The rows that a lane has a share of: which keys they see, low to high, and whether they are rows at all.
struct Rows {
    u32 query[2], head[2], low[2], high[2];
    bool is_there[2];
};

template <typename T, int DIM, typename C>
struct Tile {
    static constexpr bool IS_INT8 = sizeof(C) == 1;
    // Two buffers of 32 keys would leave no room for others beyond 128.
    static constexpr u32 KEYS = DIM > 128 ? 16 : 32;
    // Numbers that are copied together, and how many such pieces a key has.
    static constexpr u32 PIECE = 16 / sizeof(C), PIECES = DIM / PIECE;
    // A tile of keys, and one of values, lies in shared memory key after key, and their scales behind them. Rows are an odd number of
    // pieces apart: ldmatrix meets each bank once.
    static constexpr u32 ROW_LEN = (PIECES + 1 + PIECES % 2) * PIECE, SCALES = KEYS * ROW_LEN;
    static constexpr u32 LEN = SCALES + (IS_INT8 ? KEYS * sizeof(u16) : 0);
    static constexpr int Q_STEPS = DIM / 16;

    // The cache's block that has this lane's key of a tile: one lane looks for one key. Those from low to high are known to be there; what
    // is wanted of others is never read. It is asked for a tile ahead, and first needed by `cache_row`.
    DEVICE u32 block_of(const Call<T, C>& call, u32 table_start, u32 low, u32 high, u32 tile) {
        const u32 key = tile * KEYS + threadIdx.x % KEYS;
        return call.tables[table_start + min(max(key, low), high) / call.block_size];
    }
    // That key's row of the cache; of 8 bits, where scales lie between rows, the piece that begins it.
    DEVICE u32 cache_row(const Call<T, C>& call, u32 block, u32 kv_head, u32 low, u32 high, u32 tile) {
        const u32 key = tile * KEYS + threadIdx.x % KEYS, of_block = key % call.block_size;
        if (key < low || key > high) return NO_ROW;
        const u32 page = block * call.num_kv_heads + kv_head;
        if constexpr (IS_INT8) {
            return page * int8_page_pieces(call.block_size, call.head_stride) + of_block * (call.head_stride / PIECE);
        } else {
            return page * call.block_size + of_block;
        }
    }

    // Starts the copy of a piece, from dimension d on, of the key whose row this is; what is not there becomes zeros: it is masked, and
    // leaves sums and outputs as they are.
    DEVICE void copy_piece(const Call<T, C>& call, C* to, const C* cache, u32 row, u32 d) {
        const bool is_there = row != NO_ROW && d < call.head_stride;
        copy_async(to, cache + (is_there ? (u64)row * (IS_INT8 ? PIECE : call.head_stride) + d : 0), is_there);
    }

    // Starts the copies of the scales of a tile's keys, by one warp, `row` as `cache_row` gives it: those of 8 keys by the lane of the
    // first that is there.
    DEVICE void copy_scales(const Call<T, C>& call, C* tile, const C* cache, u32 row, u32 low, u32 idx) {
        if constexpr (IS_INT8) {
            const u32 lane = threadIdx.x % 32, key = idx * KEYS + lane;
            const bool is_there = row != NO_ROW, is_first = key % 8 == 0;
            // Of a first that is not there another one may be.
            if (lane < KEYS && (is_there ? is_first || key == low : is_first && (key > low || key + 8 <= low))) {
                const u32 of_block = key % call.block_size;
                const u64 piece = (u64)row + (call.block_size - of_block) * (call.head_stride / PIECE) + of_block / 8;
                copy_async(tile + SCALES + lane / 8 * PIECE, cache + (is_there ? piece * PIECE : 0), is_there);
            }
            __syncwarp();
        }
    }

    // Brings a key or a value, [DIM] in shared memory with zeros from head_dim on, to its place in a tile and, unless the cache is null,
    // which one of 8 bits is not, to its row there, as `cache_row` gives it. By a warp.
    DEVICE void put_row(const Call<T, C>& call, C* tile, C* cache, u32 row, u32 key, const T* from) {
        const u32 lane = threadIdx.x % 32, of_tile = key % KEYS;
        C* to = tile + of_tile * ROW_LEN;
        if constexpr (IS_INT8) {
            constexpr u32 PAIRS = (DIM / 2 + 31) / 32;
            const Int8Head<T, PAIRS> head = int8_head<T, PAIRS>(from, call.head_dim);
            C* at = cache + (u64)row * PIECE;
#pragma unroll
            for (u32 i = 0; i < PAIRS; i++) {
                const u32 pair = lane + 32 * i;
                if (pair < DIM / 2) ((u16*)to)[pair] = head.pairs[i];
                if (pair < call.head_stride / 2) ((u16*)at)[pair] = head.pairs[i];
            }
            if (lane == 0) {
                const u32 of_block = key % call.block_size;
                ((T*)(tile + SCALES))[of_tile] = head.scale;
                ((T*)(at + (call.block_size - of_block) * call.head_stride))[of_block] = head.scale;
            }
        } else {
            if (lane < PIECES) ((uint4*)to)[lane] = ((const uint4*)from)[lane];
            if (cache == nullptr) return;
            C* at = cache + (u64)row * call.head_stride;
            for (u32 d = 2 * lane; d < call.head_dim; d += 64) *(u32*)(at + d) = *(const u32*)(from + d);
        }
    }

    // The scales of a lane's keys as scores want them.
    struct KeyScales {
        ScalePair pairs[IS_INT8 ? KEYS / 8 : 1];
    };
    DEVICE KeyScales key_scales(const C* keys) {
        KeyScales scales = {};
        if constexpr (IS_INT8) {
#pragma unroll
            for (u32 n = 0; n < KEYS / 8; n++) {
                scales.pairs[n] = scale_pair<T>(0x10001u * ((const u16*)(keys + SCALES))[n * 8 + threadIdx.x % 32 / 4]);
            }
        }
        return scales;
    }

    // This lane's part of a step of 16 dimensions of its rows' queries, `from`: a[i] is of row i % 2.
    DEVICE void load_q(u32 (&a)[4], const Call<T, C>& call, const Rows& rows, const T* const (&from)[2], int step) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 col = step * 16 + threadIdx.x % 4 * 2 + i / 2 * 8, r = i % 2;
            a[i] = rows.is_there[r] && col < call.head_dim ? *(const u32*)(from[r] + col) : 0;
        }
    }

    // Scores, q . K^T, begin with nothing and take 16 dimensions a step.
    DEVICE void begin_scores(float (&s)[KEYS / 8][4]) {
#pragma unroll
        for (u32 n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) s[n][i] = 0.0f;
        }
    }
    DEVICE void score(float (&s)[KEYS / 8][4], const u32 (&q)[4], const C* keys, const KeyScales& scales, int step) {
        const u32 lane = threadIdx.x % 32;
        if constexpr (IS_INT8) {
            u32 words[KEYS / 8];
            const C* own = keys + lane % KEYS * ROW_LEN + step * 16;
            if constexpr (KEYS == 32) {
                load_matrix_x4(words, own);
            } else {
                load_matrix_x2(words, own);
            }
#pragma unroll
            for (u32 n = 0; n < KEYS / 8; n++) {
                const uint2 pairs = expand_int8<T>(words[n], scales.pairs[n]);
                const u32 b[2] = {pairs.x, pairs.y};
                mma_16x8x16<T>(s[n], q, b);
            }
        } else {
            const C* own = keys + (lane / 16 * 8 + lane % 8) * ROW_LEN + lane / 8 % 2 * 8 + step * 16;
#pragma unroll
            for (u32 n = 0; n < KEYS / 8; n += 2) {
                u32 pairs[4];
                load_matrix_x4(pairs, own + n * 8 * ROW_LEN);
                const u32 low[2] = {pairs[0], pairs[1]}, high[2] = {pairs[2], pairs[3]};
                mma_16x8x16<T>(s[n], q, low);
                mma_16x8x16<T>(s[n + 1], q, high);
            }
        }
    }

    // Scores after the cap, and without what rows do not see.
    DEVICE void cap_and_mask(const Call<T, C>& call, const Rows& rows, float (&s)[KEYS / 8][4], u32 first_key, bool is_masked) {
        if (call.cap != 0.0f) {
#pragma unroll
            for (u32 n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float power = fast_exp2(__fmul_rn(s[n][i], call.cap_factor));
                    s[n][i] = __fmaf_rn(-2.0f * call.cap, __frcp_rn(__fadd_rn(power, 1.0f)), call.cap);
                }
            }
        }
        if (is_masked) {
#pragma unroll
            for (u32 n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const u32 key = first_key + n * 8 + threadIdx.x % 4 * 2 + i % 2;
                    if (key < rows.low[i / 2] || key > rows.high[i / 2]) s[n][i] = minus_infinity();
                }
            }
        }
    }

    // The greatest of a row's scores.
    DEVICE float greatest(const float (&s)[KEYS / 8][4], int r) {
        float most = minus_infinity();
#pragma unroll
        for (u32 n = 0; n < KEYS / 8; n++) most = fmaxf(most, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
        most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, 1));
        return fmaxf(most, __shfl_xor_sync(FULL_WARP, most, 2));
    }

    // The weights of 16 keys, which are where a product wants them: a lane's scores are of the same keys and rows.
    DEVICE void weigh(u32 (&a)[4], const float (&s)[KEYS / 8][4], const float (&base)[2], float factor, int step) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float* of = &s[2 * step + i / 2][i % 2 * 2];
            const float minus = -base[i % 2];
            a[i] = pack<T>(fast_exp2(__fmaf_rn(of[0], factor, minus)), fast_exp2(__fmaf_rn(of[1], factor, minus)));
        }
    }

    // The rows' sums of weights are a product with ones: sum[0] and sum[2] are the lane's two rows'.
    DEVICE void add_weights(float (&sum)[4], const u32 (&a)[4]) {
        const u32 ones[2] = {pack<T>(1.0f, 1.0f), pack<T>(1.0f, 1.0f)};
        mma_16x8x16<T>(sum, a, ones);
    }

    // o += weights . V of 16 keys and the 16 dimensions of `pair`.
    DEVICE void add_values(float (&low)[4], float (&high)[4], const u32 (&a)[4], const C* values, int step, u32 pair) {
        const u32 lane = threadIdx.x % 32;
        const C* own = values + (lane % 16 + step * 16) * ROW_LEN + pair * 16;
        u32 of_low[2], of_high[2];
        if constexpr (IS_INT8) {
            u32 words[2];
            load_matrix_x2_trans(words, own);
            // Of the two keys whose values a register has.
            const u32* scales = (const u32*)(values + SCALES) + step * 8 + lane % 4;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const uint2 pairs = expand_int8<T>(words[i], scale_pair<T>(scales[4 * i]));
                of_low[i] = pairs.x;
                of_high[i] = pairs.y;
            }
        } else {
            u32 pairs[4];
            load_matrix_x4_trans(pairs, own + lane / 16 * 8);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                of_low[i] = pairs[i];
                of_high[i] = pairs[2 + i];
            }
        }
        mma_16x8x16<T>(low, a, of_low);
        mma_16x8x16<T>(high, a, of_high);
    }

    // Of a row, where (O, max, sum) of one of its splits lies in the memory of partial results: the number of its O among all, and
    // how many numbers all O have. Slots begin with the first split in which the row sees keys.
    DEVICE u64 slot_of(const Call<T, C>& call, u32 seq, u32 head, u32 low, u32 split) {
        return ((u64)seq * call.num_heads + head) * call.num_slots + split - low / SPLIT;
    }
    DEVICE u64 all_outputs(const Call<T, C>& call) { return (u64)call.num_seqs * call.num_heads * call.num_slots * DIM; }
};
