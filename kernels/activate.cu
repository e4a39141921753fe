// activate: x = act(x), in place: the middle of an MLP without a gate (Phi-2's NewGELUActivation).
//
// x [len] in 16 bits: all rows as one. `kind`: see lib/activation.h.
// Blocks of 256 threads, 8 elements a thread. No shared memory.
// Bounded by memory: 4 bytes an element.
#include "lib/platform.h"
#include "lib/vector.h"
#include "lib/activation.h"

template <typename T>
DEVICE void activate(T* x, u64 len, u32 kind) {
    constexpr int WIDTH = 8;
    wait_for_kernel_before();
    const u64 start = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * WIDTH;
    // The last thread alone may find fewer than WIDTH.
    const bool is_aligned = start + WIDTH <= len;
    float values[WIDTH];
    load_part<T, WIDTH>(values, x, start, len, is_aligned);
#pragma unroll
    for (int i = 0; i < WIDTH; i++) values[i] = activation(values[i], kind);
    store_part<T, WIDTH>(x, values, start, len, is_aligned);
}

#define KERNELS(T)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        activate_##T(T* x, u64 len, u32 kind) { activate<T>(x, len, kind); }                                           \
    EXPORT_KERNEL(activate_##T)
KERNELS(bf16)
KERNELS(f16)
