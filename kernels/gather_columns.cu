// gather_columns: out[t][i] = x[t][order[i]], of elements of 16 bits: inputs of weights whose columns are not stored in order.
//
// x, out [num_rows, cols]; order [cols].
// Grid (num_rows, cols / threads), at most 256 threads of an element each. No shared memory.
// Bounded by memory: 8 bytes an element, of which rows share the order's.
#include "lib/platform.h"

extern "C" __global__ void __launch_bounds__(256) gather_columns(u16* out, const u16* x, const u32* order, u32 cols) {
    wait_for_kernel_before();
    const u32 col = blockIdx.y * blockDim.x + threadIdx.x;
    const u64 row = (u64)blockIdx.x * cols;
    if (col < cols) out[row + col] = x[row + order[col]];
}
EXPORT_KERNEL(gather_columns)
