// Kernels that only the shim's own tests run: each does one thing of lib/platform.h whose result is known.
#include "../lib/platform.h"
#include "../lib/hopper.h"

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

// out[0..64 * 64]: a . b^T; out[64 * 64..]: a's first 64 columns . c, 64 x 128. `map`: a, b and c, [3][64][128] bf16, by boxes of
// 32 rows; c's second ones begin at its row 40. A warpgroup, and a warp that brings boxes; 49 KB and 512 bytes of shared memory.
extern "C" __global__ void shim_test_warpgroup(float* out, const bf16* a, const __grid_constant__ TensorMap map) {
    wait_for_kernel_before();
    DYNAMIC_SHARED(memory);
    u8* shared = memory + (0 - shared_address(memory)) % 1024;
    CopyBarrier* has_boxes = (CopyBarrier*)(shared + 3 * 16384);
    if (threadIdx.x == 0) barrier_init(has_boxes, 1);
    barrier_init_done();
    __syncthreads();
    if (threadIdx.x >= 128) {
        give_registers<24>();
        const u32 i = threadIdx.x - 128, matrix = i / 4, col = i % 2 * 64, row = i / 2 % 2 * 32;
        if (i == 0) barrier_arrive_expecting(has_boxes, 3 * 16384);
        __syncwarp();
        u8* to = shared + matrix * 16384 + i % 2 * 8192 + row * 128;
        if (i < 12) copy_box(to, &map, has_boxes, col, i / 2 == 5 ? 40 : row, matrix);
        return;
    }
    take_registers<240>();
    barrier_wait(has_boxes, 0);
    const u32 at = matrix_at(shared_address(shared), 8192), thread = threadIdx.x, first_row = thread / 32 * 16 + thread % 32 / 4;
    float ab[32], ac[64] = {};
    u32 of_a[4][4];
    for (u32 k = 0; k < 16; k++) {
        const u32 row = first_row + k % 2 * 8, col = k / 4 * 16 + k % 4 / 2 * 8 + thread % 4 * 2;
        of_a[k / 4][k % 4] = *(const u32*)(a + row * 128 + col);
    }
    products_begin();
    for (u32 k = 0; k < 8; k++) {
        const u32 step = k / 4 * 8192 + k % 4 * 32;
        product_shared<bf16, 64>(ab, matrix_further(at, step), matrix_further(at, 16384 + step), k > 0);
    }
    products_commit();
    for (u32 k = 0; k < 4; k++) product_registers<bf16, 128>(ac, of_a[k], matrix_further(at, 2 * 16384 + k * 16 * 128));
    products_commit();
    products_wait<1>();
    keep(ab);
    for (u32 i = 0; i < 32; i++) out[(first_row + i / 2 % 2 * 8) * 64 + i / 4 * 8 + thread % 4 * 2 + i % 2] = ab[i];
    products_wait<0>();
    keep(ac);
    for (u32 i = 0; i < 64; i++) {
        out[64 * 64 + (first_row + i / 2 % 2 * 8) * 128 + i / 4 * 8 + thread % 4 * 2 + i % 2] = ac[i];
    }
}
EXPORT_KERNEL(shim_test_warpgroup)

// One fault a number, for the checker to find; 0 has none. Two warps of two blocks.
extern "C" __global__ void shim_test_fault(u32* out, u32* arrivals, u32 fault) {
    __shared__ u32 words[64];
    __shared__ bool is_last;
    DYNAMIC_SHARED(shared);
    const u32 thread = threadIdx.x, other = (thread + 32) % 64, neighbour = thread ^ 1, own = blockIdx.x * 64 + thread;
    const u32 early = fault == 1 ? out[own] : 0;
    if (fault == 2) out[own] = 1;
    if (fault == 12) let_next_begin();
    wait_for_writes();
    words[thread] = thread;
    if (fault != 3) __syncthreads();
    u32 sum = words[other];
    __syncthreads();
    words[thread] = sum;
    if (fault == 4) sum += __shfl_xor_sync(FULL_WARP, sum, 1);
    if (fault != 4) __syncwarp();
    sum += words[neighbour];
    out[fault == 5 ? thread : own] = sum + early;
    if (fault == 6) sum += *(volatile u32*)(shared + 512);
    if (fault == 7) sum += *(volatile u32*)(out + 128 + thread);
    if (fault == 8) sum += ((const uint4*)(out + 1))->x;
    if (fault == 9) sum = sum << (thread + 32 - thread % 2);
    // The last block adds what the others have left.
    if (fault != 10) __threadfence();
    __syncthreads();
    if (thread == 0) is_last = atomicAdd(arrivals, 1u) == gridDim.x - 1;
    __syncthreads();
    if (is_last) {
        if (fault != 11) __threadfence();
        if (fault != 5) sum += out[(own + 64) % 128];
        out[own] = sum;
    }
    if (fault != 12) let_next_begin();
}
EXPORT_KERNEL(shim_test_fault)

// Loads and stores of a block of 64 threads, of which is known what they take. 4 KB of shared memory.
extern "C" __global__ void shim_test_accesses(float* out, const float* x) {
    __shared__ uint4 words[256];
    wait_for_kernel_before();
    const u32 thread = threadIdx.x, lane = thread % 32;
    // A warp's 512 bytes, of 16 sectors, at 4 wavefronts; then their words once more.
    for (u32 i = 0; i < 4; i++) copy_async(words + i * 64 + thread, x + 4 * (i * 64 + thread));
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    const float* floats = (const float*)words;
    // One wavefront; 2 in place of 1, and 8.
    float sum = floats[thread] + floats[2 * thread] + floats[8 * lane];
    // 4; 8 in place of 4; one that all lanes have.
    const float4* vectors = (const float4*)words;
    const float4 next = vectors[thread], other = vectors[2 * thread], same = vectors[0];
    sum += next.x + other.x + same.x;
    // Rows that are 64 bytes apart: 4 matrices at 4 in place of 1.
    u32 matrices[4];
    load_matrix_x4(matrices, words + 4 * lane);
    sum += __uint_as_float(matrices[0] ^ matrices[1] ^ matrices[2] ^ matrices[3]);
    // 32 sectors in place of 4, and then 4; of the second warp a half.
    if (thread < 48) out[thread] = sum + x[8 * lane];
}
EXPORT_KERNEL(shim_test_accesses)

// The same of copies to shared memory and of products of warpgroups. `map`: [1][64][64] bf16, in boxes of 64 rows. A warpgroup.
extern "C" __global__ void shim_test_copy_fault(float* out, const bf16* a, const __grid_constant__ TensorMap map, u32 fault) {
    DYNAMIC_SHARED(memory);
    u8* shared = memory + (0 - shared_address(memory)) % 1024;
    u8 *boxes = shared, *written = shared + 8192, *copied = shared + 16384;
    CopyBarrier* has_boxes = (CopyBarrier*)(shared + 24576);
    wait_for_kernel_before();
    const u32 thread = threadIdx.x;
    if (thread == 0) {
        barrier_init(has_boxes, 1);
        if (fault != 1) barrier_init_done();
    }
    __syncthreads();
    if (thread == 0) {
        barrier_arrive_expecting(has_boxes, 8192);
        copy_box(boxes, &map, has_boxes, 0, 0, 0);
    }
    for (u32 i = 0; i < 4; i++) {
        copy_async(copied + (thread * 4 + i) * 16, a + (thread * 4 + i) * 8);
        *(uint4*)(written + (thread * 4 + i) * 16) = make_uint4(0, 0, 0, 0);
    }
    copy_commit();
    copy_wait<0>();
    if (fault != 2) publish_shared();
    if (fault != 3) __syncthreads();
    const u32 other = *(const u32*)(copied + (thread + 64) % 128 * 64);
    if (fault != 4) barrier_wait(has_boxes, 0);
    float d[32] = {};
    products_begin();
    const u32 x = matrix_at(shared_address(boxes), 0), y = matrix_at(shared_address(written), 0);
    product_shared<bf16, 64>(d, x, y, false);
    products_commit();
    if (fault != 5) products_wait<0>();
    // Another copy to the place that products have read.
    if (fault != 6) __syncthreads();
    if (thread == 0) {
        barrier_arrive_expecting(has_boxes, 8192);
        copy_box(boxes, &map, has_boxes, 0, 0, 0);
    }
    products_wait<0>();
    keep(d);
    barrier_wait(has_boxes, 1);
    out[blockIdx.x * 128 + thread] = d[0] + (float)other;
}
EXPORT_KERNEL(shim_test_copy_fault)
