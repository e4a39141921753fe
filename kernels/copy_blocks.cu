// copy_blocks: copies KV blocks in all layers, in order: a block can be the source of one copy and the destination of a later
// one.
//
// kv [num_layers * 2 (keys, values), num_blocks, block_bytes], block_bytes a multiple of 16; copies [num_copies, 2 (source,
// destination)].
//
// Each thread goes through all copies with 16 bytes of a block that are its own: what it has written it reads, and no thread
// waits for another. One launch a step in place of a driver's call for each layer, keys and values, and copy. Grid
// (block_bytes / 16 / 128, num_layers * 2), 128 threads; no shared memory.
//
// Bounded by memory: 2 * block_bytes a copy and layer, for keys and for values; few copies by the time of one after another.
#include "lib/platform.h"

extern "C" __global__ void __launch_bounds__(256)
    copy_blocks(u8* kv, const u32* copies, u32 num_copies, u64 block_bytes, u64 layer_bytes) {
    wait_for_kernel_before();
    const u64 offset = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * 16;
    if (offset < block_bytes) {
        u8* own = kv + blockIdx.y * layer_bytes + offset;
        for (u32 i = 0; i < num_copies; i++) {
            const u64 source = copies[2 * i], destination = copies[2 * i + 1];
            *(uint4*)(own + destination * block_bytes) = *(const uint4*)(own + source * block_bytes);
        }
    }
}
EXPORT_KERNEL(copy_blocks)
