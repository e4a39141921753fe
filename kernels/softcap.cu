// softcap: x = cap * tanh(x / cap), in place (Gemma 2's logits).
//
// x [len] f32: all rows as one.
// Blocks of 256 threads, 4 elements a thread. No shared memory.
// Bounded by memory: 8 bytes an element, mostly of the second cache, and some 20 instructions for a hyperbolic tangent that is
// good in the last places: logits are compared with one another.
#include "lib/platform.h"
#include "lib/vector.h"

extern "C" __global__ void __launch_bounds__(256) softcap_f32(float* x, u64 len, float cap) {
    constexpr int WIDTH = 4;
    wait_for_kernel_before();
    const u64 start = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * WIDTH;
    // The last thread alone may find fewer than WIDTH.
    const bool is_aligned = start + WIDTH <= len;
    float values[WIDTH];
    load_part<float, WIDTH>(values, x, start, len, is_aligned);
#pragma unroll
    for (int i = 0; i < WIDTH; i++) values[i] = cap * tanhf(values[i] / cap);
    store_part<float, WIDTH>(x, values, start, len, is_aligned);
}
EXPORT_KERNEL(softcap_f32)
