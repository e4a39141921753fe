// add: out += x, element by element.
//
// out [len] f32 (add_to_f32_*) or in 16 bits; x [len] in 16 bits: all rows as one.
// Blocks of 256 threads, 8 elements a thread. No shared memory.
// Bounded by memory: 10 bytes an element to f32, 6 to 16 bits.
#include "lib/platform.h"
#include "lib/vector.h"

template <typename Out, typename T>
DEVICE void add(Out* out, const T* x, u64 len) {
    constexpr int WIDTH = 8;
    wait_for_kernel_before();
    const u64 start = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * WIDTH;
    // The last thread alone may find fewer than WIDTH.
    const bool is_aligned = start + WIDTH <= len;
    float sum[WIDTH], more[WIDTH];
    load_part<Out, WIDTH>(sum, out, start, len, is_aligned);
    load_part<T, WIDTH>(more, x, start, len, is_aligned);
#pragma unroll
    for (int i = 0; i < WIDTH; i++) sum[i] += more[i];
    store_part<Out, WIDTH>(out, sum, start, len, is_aligned);
}

#define KERNELS(T)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        add_##T(T* out, const T* x, u64 len) { add<T, T>(out, x, len); }                                               \
    EXPORT_KERNEL(add_##T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        add_to_f32_##T(float* out, const T* x, u64 len) { add<float, T>(out, x, len); }                                \
    EXPORT_KERNEL(add_to_f32_##T)
KERNELS(bf16)
KERNELS(f16)
