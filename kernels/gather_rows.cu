// gather_rows: out[i] = x[rows[i]], whatever the elements are.
//
// rows [num_rows]; x [.., row_bytes], out [num_rows, row_bytes]: bytes, a multiple of 2 a row.
// Grid (num_rows, pieces / threads), at most 256 threads of a piece each: 16 bytes, or 2 where rows are no multiple of 16. No
// shared memory.
// Bounded by memory: each byte is read and written once.
#include "lib/platform.h"

extern "C" __global__ void __launch_bounds__(256) gather_rows(u8* out, const u8* x, const u32* rows, u32 row_bytes) {
    wait_for_kernel_before();
    const u8* from = x + (u64)rows[blockIdx.x] * row_bytes;
    u8* to = out + (u64)blockIdx.x * row_bytes;
    const u32 piece = blockIdx.y * blockDim.x + threadIdx.x;
    if (row_bytes % 16 == 0) {
        if (piece < row_bytes / 16) ((uint4*)to)[piece] = ((const uint4*)from)[piece];
    } else {
        if (piece < row_bytes / 2) ((u16*)to)[piece] = ((const u16*)from)[piece];
    }
}
EXPORT_KERNEL(gather_rows)
