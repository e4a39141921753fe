// What linear's kernels for Hopper have in common: products of tokens and weights in stages of shared memory, and the way of
// their sums to memory. After platform.h, hopper.h, vector.h, activation.h,
// tiles.h and e4m3.h.
#pragma once

// Tokens and threads of a warpgroup. Columns and bytes of a stage's rows; rows of a box; columns and bytes of a product's rows.
static constexpr u32 GROUP_TOKENS = 64, GROUP_THREADS = 128;
static constexpr u32 STEP = 64, ROW_BYTES = 128, BOX_ROWS = 64, PRODUCTS = 4, PRODUCT_BYTES = 32;

// What kernels are given. `scale`: one for a row of weight, or null. `token_scale`: one for a row of x, or null.
struct Call {
    void* out;
    const TensorMap* x;
    const TensorMap* weight;
    const float* scale;
    const float* token_scale;
    const float* bias;
    u32 tokens, features, cols, segment, out_is_f32;
};

// What a block does: tiles first, first + stride.. of `num`; of each the columns begin..end.
struct Share {
    u32 first, stride, num, begin, end;

    __device__ __forceinline__ bool is_empty() const { return begin >= end; }
};
// Every so manieth of the tiles, whole.
DEVICE Share whole_share(const Call& call, u32 num_tiles) { return {blockIdx.x, gridDim.x, num_tiles, 0, call.cols}; }
// One tile for a cluster of `splits` blocks, a segment for each; a block without a segment has nothing.
DEVICE Share split_share(const Call& call, u32 num_tiles, u32 splits) {
    const u32 begin = blockIdx.x % splits * call.segment, end = min(begin + call.segment, call.cols);
    return {blockIdx.x / splits, num_tiles, begin < end ? num_tiles : 0, begin, end};
}

// sums = the products of a warpgroup's tokens, PARTS times GROUP_TOKENS, and a tile's weights of columns begin..end, one at least, out
// of `shared`'s stages of `tokens` and `weights`. `leave(stage)` says that a warp has left one.
template <typename T, int FEATURES, int PARTS, typename Shared, u32 STAGES, typename Leave>
DEVICE void multiply(float (&sums)[PARTS][FEATURES / 2], Shared& shared, Pass<STAGES>& pass, u32 begin, u32 end,
                     const Leave& leave) {
    constexpr u32 TOKEN_BYTES = sizeof(shared.tokens[0]), WEIGHT_BYTES = sizeof(shared.weights[0]);
    constexpr u32 PART_BYTES = GROUP_TOKENS * ROW_BYTES;
    const u32 group = threadIdx.x / GROUP_THREADS;
    const u32 tokens = matrix_at(shared_address(shared.tokens[0] + group * PARTS * PART_BYTES), 16);
    const u32 weights = matrix_at(shared_address(shared.weights[0]), 16);
    u32 before = 0;
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
#pragma unroll
        for (int i = 0; i < FEATURES / 2; i++) sums[part][i] = 0.0f;
    }
    for (u32 col = begin; col < end; col += STEP) {
        barrier_wait(&shared.is_there[pass.stage], pass.parity);
        const u32 a = of_warp(matrix_further(tokens, pass.stage * TOKEN_BYTES));
        const u32 b = of_warp(matrix_further(weights, pass.stage * WEIGHT_BYTES));
        products_begin();
#pragma unroll
        for (u32 k = 0; k < PRODUCTS; k++) {
            const u32 at = k * PRODUCT_BYTES;
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
                product_shared<T, FEATURES>(sums[part], matrix_further(a, part * PART_BYTES + at), matrix_further(b, at), true);
            }
        }
        products_commit();
        products_wait<1>();
        if (col > begin) leave(before);
        before = pass.stage;
        pass.advance();
    }
    products_wait<0>();
#pragma unroll
    for (int part = 0; part < PARTS; part++) keep(sums[part]);
    leave(before);
}

// totals = the sums of all segments, added in order.
template <typename T, int FEATURES, typename Shared, u32 STAGES, typename Leave>
DEVICE void multiply_segments(float (&totals)[FEATURES / 2], const Call& call, Shared& shared, Pass<STAGES>& pass,
                              const Leave& leave) {
    float sums[1][FEATURES / 2];
#pragma unroll
    for (int i = 0; i < FEATURES / 2; i++) totals[i] = 0.0f;
    for (u32 begin = 0; begin < call.cols; begin += call.segment) {
        multiply<T, FEATURES>(sums, shared, pass, begin, min(begin + call.segment, call.cols), leave);
#pragma unroll
        for (int i = 0; i < FEATURES / 2; i++) totals[i] += sums[0][i];
    }
}

// What a token's totals lack where weights have scales.
template <typename T>
DEVICE float token_factor(const Call& call, u32 token) {
    if (call.token_scale == nullptr) return E4M3_FACTOR<T>;
    return token < call.tokens ? call.token_scale[token] : 0.0f;
}

// The results of a tile of so many features.
template <typename T, int FEATURES>
struct Results {
    // A thread's sums; blocks of 8 features, of which it has two of each of two tokens.
    static constexpr int LEN = FEATURES / 2, BLOCKS = FEATURES / 8;

    // The first of this thread's two tokens of a tile; the other is the eighth after it.
    DEVICE u32 own_token() { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4; }

    // Of a quad's four words each, what its four lanes have as their `lane % 4`th.
    DEVICE void transpose(u32 (&words)[4]) {
        const bool is_odd = threadIdx.x % 2 != 0, is_upper = threadIdx.x % 4 >= 2;
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            const u32 got = __shfl_xor_sync(FULL_WARP, is_odd ? words[i] : words[i + 1], 1);
            (is_odd ? words[i] : words[i + 1]) = got;
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const u32 got = __shfl_xor_sync(FULL_WARP, is_upper ? words[i] : words[i + 2], 2);
            (is_upper ? words[i] : words[i + 2]) = got;
        }
    }

    // Applies the scales of rows `row`.. of e4m3 weights, as far as they are before `end`, and those of tokens.
    template <int NUM>
    DEVICE void apply_scale(const Call& call, const TilePlace& place, float* totals, u32 row, u32 end) {
        if (call.scale == nullptr) return;
        const u32 token = place.first_token + own_token();
        const float factors[2] = {token_factor<T>(call, token), token_factor<T>(call, token + 8)};
#pragma unroll
        for (int n = 0; n < NUM; n++) {
            const u32 own = row + n * 8 + threadIdx.x % 4 * 2;
            if (own >= end) continue;
            const float2 scale = *(const float2*)(call.scale + own);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float& total = totals[4 * n + i];
                total = __fmul_rn(__fmul_rn(total, factors[i / 2]), i % 2 == 0 ? scale.x : scale.y);
            }
        }
    }

    // Adds the bias of rows `row`.. of the weights, as far as they are before `end`.
    template <int NUM>
    DEVICE void add_bias(const Call& call, float* sums, u32 row, u32 end) {
        if (call.bias == nullptr) return;
#pragma unroll
        for (int n = 0; n < NUM; n++) {
            const u32 own = row + n * 8 + threadIdx.x % 4 * 2;
            if (own >= end) continue;
            const float2 bias = *(const float2*)(call.bias + own);
#pragma unroll
            for (int i = 0; i < 4; i++) sums[4 * n + i] += i % 2 == 0 ? bias.x : bias.y;
        }
    }

    // Writes results in T, whose pairs are in the words' order: four blocks at a time, a lane one of them as a whole.
    template <int NUM>
    DEVICE void store_words(const Call& call, const TilePlace& place, const u32 (&words)[2][NUM]) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const u32 token = place.first_token + own_token() + 8 * r;
#pragma unroll
            for (int n = 0; n < NUM; n += 4) {
                u32 own[4] = {words[r][n], words[r][n + 1], words[r][n + 2], words[r][n + 3]};
                transpose(own);
                const u32 feature = place.first_feature + (n + threadIdx.x % 4) * 8;
                if (token < call.tokens && feature < call.features) {
                    uint4* to = (uint4*)((T*)call.out + (u64)token * call.features + feature);
                    *to = make_uint4(own[0], own[1], own[2], own[3]);
                }
            }
        }
    }

    DEVICE void store_floats(const Call& call, const TilePlace& place, const float (&sums)[LEN]) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const u32 token = place.first_token + own_token() + 8 * r;
#pragma unroll
            for (int n = 0; n < BLOCKS; n += 4) {
                u32 even[4], odd[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    even[i] = __float_as_uint(sums[4 * (n + i) + 2 * r]);
                    odd[i] = __float_as_uint(sums[4 * (n + i) + 2 * r + 1]);
                }
                transpose(even);
                transpose(odd);
                const u32 feature = place.first_feature + (n + threadIdx.x % 4) * 8;
                if (token < call.tokens && feature < call.features) {
                    uint4* to = (uint4*)((float*)call.out + (u64)token * call.features + feature);
                    to[0] = make_uint4(even[0], odd[0], even[1], odd[1]);
                    to[1] = make_uint4(even[2], odd[2], even[3], odd[3]);
                }
            }
        }
    }

    // Totals of a tile to memory, with their scale and bias.
    DEVICE void store(const Call& call, const TilePlace& place, float (&totals)[LEN]) {
        apply_scale<BLOCKS>(call, place, totals, place.first_feature, call.features);
        add_bias<BLOCKS>(call, totals, place.first_feature, call.features);
        if (call.out_is_f32) return store_floats(call, place, totals);
        u32 words[2][BLOCKS];
#pragma unroll
        for (int i = 0; i < 2 * BLOCKS; i++) words[i % 2][i / 2] = pack<T>(totals[2 * i], totals[2 * i + 1]);
        store_words<BLOCKS>(call, place, words);
    }
};

// A tile whose segments are a cluster's blocks'. Each has its sums in its shared memory, in floats; rows are apart so that the lanes
// of four tokens write to different banks.
template <typename T, int FEATURES, int GROUPS, int PARTS>
struct SplitSums {
    static constexpr u32 TOKENS = GROUPS * PARTS * GROUP_TOKENS, CONSUMERS = GROUPS * GROUP_THREADS;
    static constexpr u32 PITCH = FEATURES + 8, BYTES = TOKENS * PITCH * 4;
    // Of a token's features, as many as a thread adds at a time.
    static constexpr u32 WIDTH = 8;
    // Blocks of a cluster.
    static constexpr u32 MAX_SPLITS = 8;

    // This block's, where the stages were: by the threads that multiply, when all of them are done.
    DEVICE void put(float* own, const float (&sums)[PARTS][FEATURES / 2]) {
        named_barrier_wait(1, CONSUMERS);
        let_next_begin();
        const u32 own_token = Results<T, FEATURES>::own_token() + threadIdx.x / GROUP_THREADS * (PARTS - 1) * GROUP_TOKENS;
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
#pragma unroll
            for (int i = 0; i < FEATURES / 2; i += 2) {
                const u32 token = own_token + part * GROUP_TOKENS + i % 4 / 2 * 8;
                float* to = own + token * PITCH + i / 4 * 8 + threadIdx.x % 4 * 2;
                *(float2*)to = make_float2(sums[part][i], sums[part][i + 1]);
            }
        }
    }

    // WIDTH totals of a token, from feature `at` of the tile on, with scale and bias: those of `row`.. of the weights.
    // `factor`: the token's.
    DEVICE void total(float (&totals)[WIDTH], const Call& call, const float* own, u32 token, u32 at, u32 row, float factor) {
        const u32 num_segments = tiles_of(call.cols, call.segment);
        // All is asked for before the first of it is there.
        float scale[WIDTH], bias[WIDTH];
        if (call.scale != nullptr) load_vector<float, WIDTH>(scale, call.scale + row);
        if (call.bias != nullptr) load_vector<float, WIDTH>(bias, call.bias + row);
        const float4* from = (const float4*)(own + token * PITCH + at);
        const u32 half = first_half();
        float4 first[MAX_SPLITS], second[MAX_SPLITS];
#pragma unroll
        for (u32 s = 0; s < MAX_SPLITS; s++) {
            if (s >= num_segments) break;
            first[s] = load_of_cluster(from + half, s);
            second[s] = load_of_cluster(from + 1 - half, s);
        }
#pragma unroll
        for (u32 j = 0; j < WIDTH; j++) totals[j] = 0.0f;
#pragma unroll
        for (u32 s = 0; s < MAX_SPLITS; s++) {
            if (s >= num_segments) break;
            const float sums[WIDTH] = {first[s].x,  first[s].y,  first[s].z,  first[s].w,
                                       second[s].x, second[s].y, second[s].z, second[s].w};
#pragma unroll
            for (u32 j = 0; j < WIDTH; j++) totals[j] += sums[j];
        }
        order_halves(totals);
        if (call.scale != nullptr) {
#pragma unroll
            for (u32 j = 0; j < WIDTH; j++) totals[j] = __fmul_rn(__fmul_rn(totals[j], factor), scale[j]);
        }
        if (call.bias != nullptr) {
#pragma unroll
            for (u32 j = 0; j < WIDTH; j++) totals[j] += bias[j];
        }
    }

    // Each block adds its share of the tile, a number by its segments in order, and writes it. GATED: the first half of the tile is
    // gate's, the second up's; both are rounded as two launches would.
    template <bool GATED>
    DEVICE void add(const Call& call, const TilePlace& place, const float* own, u32 splits, u32 kind) {
        constexpr u32 OUT_FEATURES = GATED ? FEATURES / 2 : FEATURES, ROW_PIECES = OUT_FEATURES / WIDTH;
        cluster_barrier();
        const u32 num_tokens = min(TOKENS, call.tokens - place.first_token);
        for (u32 i = cluster_rank() * CONSUMERS + threadIdx.x; i < num_tokens * ROW_PIECES; i += splits * CONSUMERS) {
            const u32 token = i / ROW_PIECES, at = i % ROW_PIECES * WIDTH, feature = place.first_feature + at;
            if (feature >= call.features) continue;
            const float factor = token_factor<T>(call, place.first_token + token);
            float totals[WIDTH];
            total(totals, call, own, token, at, feature, factor);
            if constexpr (GATED) {
                float up[WIDTH];
                total(up, call, own, token, OUT_FEATURES + at, call.features + feature, factor);
#pragma unroll
                for (u32 j = 0; j < WIDTH; j++) {
                    const float gate = to_float(from_float<T>(totals[j]));
                    totals[j] = gated(gate, to_float(from_float<T>(up[j])), kind);
                }
            }
            const u64 to = (u64)(place.first_token + token) * call.features + feature;
            if (call.out_is_f32) {
                store_vector<float, WIDTH>((float*)call.out + to, totals);
            } else {
                store_vector<T, WIDTH>((T*)call.out + to, totals);
            }
        }
        // Others have read this block's sums.
        cluster_barrier();
    }
};
