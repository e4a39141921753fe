// lora: out += scale * B . (A . x), where each row has an adapter's A and B, or none (Hu et al. 2021). Two kernels: lora_shrink gives
// hidden = A . x, lora_expand adds scale * B . hidden.
//
// x [num_rows, cols], out [num_rows, rows] in 16 bits; hidden [num_rows, num_parts, max_rank] f32, of which the ranks that an adapter does
// not have are neither written nor read. adapters [num_rows]: an adapter's number from 1 on, or 0. updates [num_adapters, num_parts]; a
// [all ranks, cols]; b of each update [rank, rows of the part], scaled. part_end0, part_end1: where the second and the third part of a
// row of out begin.
// A block has TILE neighbouring rows and goes through them by runs of one adapter, whose weights it reads once. lora_shrink: grid
// (num_rows / TILE, num_parts * max_rank), a block a row of A, 128 threads that share its columns; 16 * TILE bytes of shared memory.
// lora_expand: grid (num_rows / TILE, rows / 128), 128 threads, a column of out each. Sums are in f32, in an order that depends on the
// row and its adapter alone: columns by thread, lanes, then warps in order; ranks in order.
// Bounded by memory, A and B once a run of rows, or from some dozens of rows of one adapter on by FLOPs: 2 * rank * (rows + cols) a row.
#include "lib/platform.h"
#include "lib/vector.h"

static constexpr int THREADS = 128, WARPS = THREADS / 32, WIDTH = 8;

// What an adapter adds to a part: so many ranks, from a row of `a` and an element of `b` on.
struct Update {
    u32 rank, first_row;
    u64 start;
};

// How many rows from `row` on, before `end`, have its adapter.
DEVICE u32 run_len(const u32* adapters, u32 row, u32 end) {
    u32 len = 1;
    while (row + len < end && adapters[row + len] == adapters[row]) len++;
    return len;
}

// hidden of one rank, of `len` rows from x on, which are as many as TILE or fewer.
template <typename T, int TILE>
DEVICE void shrink_run(float* hidden, u32 hidden_stride, const T* x, const T* a, u32 len, u32 cols, float (*scratch)[TILE]) {
    const bool is_aligned = cols % WIDTH == 0;
    const u32 warp = threadIdx.x / 32;
    float sums[TILE];
#pragma unroll
    for (int i = 0; i < TILE; i++) sums[i] = 0.0f;
    for (u32 col = threadIdx.x * WIDTH; col < cols; col += THREADS * WIDTH) {
        float weights[WIDTH];
        load_part<T, WIDTH>(weights, a, col, cols, is_aligned);
#pragma unroll
        for (int i = 0; i < TILE; i++) {
            if ((u32)i < len) {
                float inputs[WIDTH];
                load_part<T, WIDTH>(inputs, x + (u64)i * cols, col, cols, is_aligned);
#pragma unroll
                for (int j = 0; j < WIDTH; j++) sums[i] = __fmaf_rn(weights[j], inputs[j], sums[i]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < TILE; i++) {
        const float sum = warp_sum(sums[i]);
        if (threadIdx.x % 32 == 0) scratch[warp][i] = sum;
    }
    __syncthreads();
    if (threadIdx.x < len) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < WARPS; i++) sum += scratch[i][threadIdx.x];
        hidden[(u64)threadIdx.x * hidden_stride] = sum;
    }
    // The next run writes it anew.
    __syncthreads();
}

template <typename T, int TILE>
DEVICE void shrink(float* hidden, const T* x, const T* a, const Update* updates, const u32* adapters, u32 num_rows,
                   u32 num_parts, u32 max_rank, u32 cols) {
    __shared__ float scratch[WARPS][TILE];
    wait_for_kernel_before();
    const u32 part = blockIdx.y / max_rank, rank = blockIdx.y % max_rank, stride = num_parts * max_rank;
    const u32 end = min((blockIdx.x + 1) * TILE, num_rows);
    for (u32 row = blockIdx.x * TILE; row < end;) {
        const u32 adapter = adapters[row], len = run_len(adapters, row, end);
        if (adapter != 0) {
            const Update update = updates[(adapter - 1) * num_parts + part];
            if (rank < update.rank) {
                shrink_run<T, TILE>(hidden + (u64)row * stride + blockIdx.y, stride, x + (u64)row * cols,
                                    a + (u64)(update.first_row + rank) * cols, len, cols, scratch);
            }
        }
        row += len;
    }
}

template <typename T, int TILE>
DEVICE void expand(T* out, const float* hidden, const T* b, const Update* updates, const u32* adapters, u32 num_rows,
                   u32 num_parts, u32 max_rank, u32 rows, u32 part_end0, u32 part_end1) {
    wait_for_kernel_before();
    const u32 col = blockIdx.y * THREADS + threadIdx.x, stride = num_parts * max_rank;
    if (col >= rows) return;
    const u32 part = (u32)(col >= part_end0) + (u32)(col >= part_end1);
    const u32 part_start = part == 0 ? 0 : part == 1 ? part_end0 : part_end1;
    const u32 part_rows = (part == 0 ? part_end0 : part == 1 ? part_end1 : rows) - part_start;
    const u32 end = min((blockIdx.x + 1) * TILE, num_rows);
    for (u32 row = blockIdx.x * TILE; row < end;) {
        const u32 adapter = adapters[row], len = run_len(adapters, row, end);
        if (adapter != 0) {
            const Update update = updates[(adapter - 1) * num_parts + part];
            const T* weights = b + update.start + (col - part_start);
            const float* from = hidden + (u64)row * stride + part * max_rank;
            float sums[TILE];
#pragma unroll
            for (int i = 0; i < TILE; i++) sums[i] = 0.0f;
#pragma unroll 4
            for (u32 r = 0; r < update.rank; r++) {
                const float weight = to_float(weights[(u64)r * part_rows]);
#pragma unroll
                for (int i = 0; i < TILE; i++) {
                    if ((u32)i < len) sums[i] = __fmaf_rn(weight, from[(u64)i * stride + r], sums[i]);
                }
            }
            if (update.rank != 0) {
#pragma unroll
                for (int i = 0; i < TILE; i++) {
                    T* to = out + (u64)(row + i) * rows + col;
                    if ((u32)i < len) *to = from_float<T>(to_float(*to) + sums[i]);
                }
            }
        }
        row += len;
    }
}

#define KERNELS_OF(T, SUFFIX, TILE)                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        lora_shrink##SUFFIX##_##T(float* hidden, const T* x, const T* a, const Update* updates, const u32* adapters,   \
                                  u32 num_rows, u32 num_parts, u32 max_rank, u32 cols) {                               \
        shrink<T, TILE>(hidden, x, a, updates, adapters, num_rows, num_parts, max_rank, cols);                         \
    }                                                                                                                  \
    EXPORT_KERNEL(lora_shrink##SUFFIX##_##T)                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        lora_expand##SUFFIX##_##T(T* out, const float* hidden, const T* b, const Update* updates, const u32* adapters, \
                                  u32 num_rows, u32 num_parts, u32 max_rank, u32 rows, u32 part_end0, u32 part_end1) { \
        expand<T, TILE>(out, hidden, b, updates, adapters, num_rows, num_parts, max_rank, rows, part_end0, part_end1); \
    }                                                                                                                  \
    EXPORT_KERNEL(lora_expand##SUFFIX##_##T)
#define KERNELS(T)                                                                                                     \
    KERNELS_OF(T, , 1)                                                                                                 \
    KERNELS_OF(T, _rows, 8)
KERNELS(bf16)
KERNELS(f16)
