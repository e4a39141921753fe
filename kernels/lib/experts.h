// What the products of experts have in common (experts_linear.cu, experts_quant.cu): a block's rows and its expert's weights come from
// memory, what follows is linear's. After linear_rows.h and linear_tile.h.
#pragma once

// The product of this block's tile: rows of one expert, of whose weights there are `expert_rows` rows in `expert_bytes`. It waits for the
// kernel before, which wrote the tiles. There may be fewer tiles than blocks: then there are no tokens.
template <typename W>
DEVICE Product<W> product_of_tile(Product<W> p, const uint4* tiles, u64 expert_bytes, u32 expert_rows) {
    wait_for_writes();
    const uint4 tile = tiles[blockIdx.y];
    const u32 expert = tile.x, first = tile.y;
    p.out = (typename W::T*)p.out + (u64)first * p.stride;
    p.x += (u64)first * p.cols;
    p.weight = (const u8*)p.weight + expert * expert_bytes;
    if (W::HAS_SCALE) p.scale += (u64)expert * expert_rows;
    if (p.bias != nullptr) p.bias += (u64)expert * expert_rows;
    p.tokens = tile.z;
    return p;
}

#define EXPERT_ARGUMENTS(T)                                                                                            \
    T *out, const T *x, const void *weight, const float *scale, const float *bias, const uint4 *tiles,                 \
        u64 expert_bytes, u32 expert_rows, u32 features, u32 cols, u32 segment
#define EXPERT_PRODUCT(FORM, T)                                                                                        \
    product_of_tile<FORM<T>>({out, x, weight, scale, bias, 0, features, features, cols, segment, 0}, tiles,            \
                             expert_bytes, expert_rows)
#define EXPERTS(FORM, T, NAME, BLOCKS)                                                                                 \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS)                                                   \
        experts_rows_##NAME(EXPERT_ARGUMENTS(T), u32 splits) {                                                         \
        const Product<FORM<T>> p = EXPERT_PRODUCT(FORM, T);                                                            \
        if (p.tokens > 0) rows<FORM<T>, 1, false>(p, splits, 0);                                                       \
    }                                                                                                                  \
    EXPORT_KERNEL(experts_rows_##NAME)                                                                                 \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS)                                                   \
        experts_gated_rows_##NAME(EXPERT_ARGUMENTS(T), u32 splits, u32 kind) {                                         \
        const Product<FORM<T>> p = EXPERT_PRODUCT(FORM, T);                                                            \
        if (p.tokens > 0) rows<FORM<T>, 1, true>(p, splits, kind);                                                     \
    }                                                                                                                  \
    EXPORT_KERNEL(experts_gated_rows_##NAME)                                                                           \
    extern "C" __global__ void __launch_bounds__(128, 2) experts_tile_##NAME(EXPERT_ARGUMENTS(T)) {                    \
        const Product<FORM<T>> p = EXPERT_PRODUCT(FORM, T);                                                            \
        if (p.tokens > 0) tile<FORM<T>, Tile64x64<FORM<T>>>(p);                                                        \
    }                                                                                                                  \
    EXPORT_KERNEL(experts_tile_##NAME)
