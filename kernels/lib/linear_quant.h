// Products of weights in block formats (linear_quant.cu, experts_quant.cu), in tiles of 16 rows by 128 columns that are copied as they lie
// in memory: a warp's stream of them, and what linear_tile.h asks for. After linear_rows.h, linear_tile.h and quant.h.
#pragma once

DEVICE u32 num_tiles(u32 cols) { return tiles_of(cols, QUANT_COLUMNS); }

template <typename W, int TILES>
DEVICE void stream(float (&sums)[TILES][4], const Product<W>& p, u8* memory, u32 first_row, u32, u32 start, u32 end) {
    constexpr u32 STAGES = W::STREAM_BYTES / W::TILE_BYTES, PIECES = W::TILE_BYTES / 16, AHEAD = W::CHUNKS - 1;
    const u32 lane = threadIdx.x % 32, num_steps = tiles_of(end - start, QUANT_COLUMNS), num_whole = (end - start) / QUANT_COLUMNS;
    const u8* tiles = (const u8*)p.weight + ((u64)(first_row / QUANT_ROWS) * num_tiles(p.cols) + start / QUANT_COLUMNS) * W::TILE_BYTES;
    auto copy_tile = [&](u32 slot, u32 step) {
        const u8* from = tiles + (u64)step * W::TILE_BYTES;
#pragma unroll
        for (u32 i = 0; i < PIECES; i += 32) {
            const u32 at = 16 * (i + lane);
            if (step < num_steps && i + lane < PIECES) copy_async(memory + slot * W::TILE_BYTES + at, from + at);
        }
        copy_commit();
    };
    // Weights do not change.
    for (u32 s = 0; s + 1 < STAGES; s++) copy_tile(s, s);
    if (p.tokens <= FEW_TOKENS) {
        const u32 begin = (STAGES - 1) * W::TILE_BYTES;
        const u32 ahead = min(num_steps * W::TILE_BYTES, begin + QUANT_ROWS * BYTES_AHEAD);
        for (u32 at = begin + 128 * lane; at < ahead; at += 128 * 32) prefetch_line(tiles + at);
    }
    wait_for_writes();
    const typename W::T* tokens[TILES];
#pragma unroll
    for (int t = 0; t < TILES; t++) tokens[t] = own_tokens(p, t) + start;
    // Chunks of tokens in registers: one is multiplied, the others are on their way.
    uint4 x[W::CHUNKS][TILES];
    if (num_whole > 0) {
#pragma unroll
        for (u32 c = 0; c < AHEAD; c++) load_chunk<W, TILES>(x[c], tokens, c);
    }
    u32 slot = 0;
    for (u32 step = 0; step < num_steps; step++) {
        copy_wait<STAGES - 2>();
        // All lanes' copies of this step are there, and all have left the step before it, which is filled again.
        __syncwarp();
        copy_tile(slot == 0 ? STAGES - 1 : slot - 1, step + STAGES - 1);
        const u8* tile = memory + slot * W::TILE_BYTES;
        slot = slot + 1 == STAGES ? 0 : slot + 1;
        const typename W::Scales scales = W::scales_of(tile);
        if (step == num_whole) {
            // The columns end within the tile.
            for (u32 c = 0; c * CHUNK < (end - start) % QUANT_COLUMNS; c++) {
                load_chunk<W, TILES>(x[0], tokens, c);
                multiply<typename W::T, TILES>(sums, W::expand(tile, scales, 0, c), W::expand(tile, scales, 1, c), x[0]);
            }
            break;
        }
#pragma unroll
        for (u32 c = 0; c < W::CHUNKS; c++) {
            const u32 next = c + AHEAD;
            if (next < W::CHUNKS || step + 1 < num_whole) load_chunk<W, TILES>(x[next % W::CHUNKS], tokens, next);
            multiply<typename W::T, TILES>(sums, W::expand(tile, scales, 0, c), W::expand(tile, scales, 1, c), x[c]);
        }
#pragma unroll
        for (int t = 0; t < TILES; t++) tokens[t] += QUANT_COLUMNS;
    }
    copy_wait<0>();
}

// A tile's weights, as linear_tile.h asks for them.
template <typename S, typename T, int BITS, int ZERO, Scaling SCALING>
struct TileWeights<Quant<T, BITS, ZERO, SCALING>, S> {
    using W = Quant<T, BITS, ZERO, SCALING>;
    static constexpr u32 ROW_TILES = S::TILE_FEATURES / QUANT_ROWS, PIECES = W::TILE_BYTES / 16;
    const u8* from;
    u64 row_bytes;
    u32 num_rows;
    // Of the step at hand.
    typename W::Scales scales[S::FEATURE_TILES];

    __device__ __forceinline__ TileWeights(const Product<W>& p, u32 first_feature) {
        row_bytes = (u64)num_tiles(p.cols) * W::TILE_BYTES;
        from = (const u8*)p.weight + first_feature / QUANT_ROWS * row_bytes;
        num_rows = tiles_of(p.features - first_feature, QUANT_ROWS);
    }
    __device__ __forceinline__ void start(uint4* stage, u32 first_chunk) const {
        const u8* step = from + (u64)(first_chunk / W::CHUNKS) * W::TILE_BYTES;
#pragma unroll
        for (u32 row = 0; row < ROW_TILES; row++) {
#pragma unroll
            for (u32 i = 0; i < PIECES; i += S::THREADS) {
                const u32 at = i + threadIdx.x;
                if (at < PIECES) copy_async(stage + row * PIECES + at, step + row * row_bytes + 16 * at, row < num_rows);
            }
        }
    }
    __device__ __forceinline__ uint4 read(const uint4* step, u32 warp_feature, u32 f, u32 half, u32 c) {
        const u8* tile = (const u8*)(step + (warp_feature / QUANT_ROWS + f) * PIECES);
        if (c == 0 && half == 0) scales[f] = W::scales_of(tile);
        return W::expand(tile, scales[f], half, c);
    }
};
