// Kernels that only the shim's own tests run: each does one thing of lib/platform.h whose result is known.
#include "../lib/platform.h"

// out[0], out[1]: a . b^T, 16 x 8, of a [16, 32] and b [8, 32], b given row after row and, in `b_trans` [32, 8], column after
// column. All bf16, by way of asynchronous copies, shared memory and matrix products. One warp; 3 KB of shared memory.
extern "C" __global__ void shim_test_mma(float* out, const bf16* a, const bf16* b, const bf16* b_trans) {
    wait_for_kernel_before();
    DYNAMIC_SHARED(shared);
    bf16* sa = (bf16*)shared;
    bf16* sb = sa + 16 * 32;
    bf16* st = sb + 8 * 32;
    const u32 lane = threadIdx.x;
    for (u32 i = lane; i < 64; i += 32) copy_async(sa + 8 * i, a + 8 * i);
    copy_commit();
    copy_async(sb + 8 * lane, b + 8 * lane);
    copy_async(st + 8 * lane, b_trans + 8 * lane);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    u32 b_rows[4], b_cols[4];
    load_matrix_x4(b_rows, sb + lane % 8 * 32 + lane / 8 * 8);
    load_matrix_x4_trans(b_cols, st + lane * 8);
    float by_rows[4] = {}, by_cols[4] = {};
    for (u32 step = 0; step < 2; step++) {
        u32 x[4];
        load_matrix_x4(x, sa + (lane / 8 % 2 * 8 + lane % 8) * 32 + step * 16 + lane / 16 * 8);
        const u32 rows[2] = {b_rows[2 * step], b_rows[2 * step + 1]}, cols[2] = {b_cols[2 * step], b_cols[2 * step + 1]};
        mma_16x8x16<bf16>(by_rows, x, rows);
        mma_16x8x16<bf16>(by_cols, x, cols);
    }
    for (u32 i = 0; i < 4; i++) {
        const u32 at = (lane / 4 + i / 2 * 8) * 8 + 2 * (lane % 4) + i % 2;
        out[at] = by_rows[i];
        out[16 * 8 + at] = by_cols[i];
    }
}
EXPORT_KERNEL(shim_test_mma)

// out[i]: the bits of x[i] as bf16, and above them as f16; back[i] and back[n + i]: these in f32 again.
extern "C" __global__ void shim_test_convert(u32* out, float* back, const float* x, u32 n) {
    wait_for_kernel_before();
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const bf16 b = from_float<bf16>(x[i]);
    const f16 h = from_float<f16>(x[i]);
    out[i] = b.bits | (u32)h.bits << 16;
    back[i] = to_float(b);
    back[n + i] = to_float(h);
}
EXPORT_KERNEL(shim_test_convert)

// Of a block's threads, by thread: the sum of all, the lane before it, the votes of odd lanes of its warp.
extern "C" __global__ void shim_test_warp(float* sum, u32* before, u32* votes) {
    __shared__ float scratch[32];
    wait_for_kernel_before();
    const u32 thread = threadIdx.x;
    sum[thread] = block_sum((float)thread, scratch);
    before[thread] = __shfl_up_sync(FULL_WARP, thread, 1);
    votes[thread] = __ballot_sync(FULL_WARP, thread % 2);
}
EXPORT_KERNEL(shim_test_warp)
