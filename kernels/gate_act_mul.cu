// gate_act_mul: out = act(gate) * up, the middle of a gated MLP (LlamaMLP, Gemma2MLP).
//
// gate_up [rows, 2 * cols], of a row the gate, then up; out [rows, cols]; both in 16 bits. `kind`: see lib/activation.h.
// Grid (rows, cols / (8 * threads)), at most 256 threads of 8 elements. No shared memory.
// Bounded by memory: 6 bytes an element of out.
#include "lib/platform.h"
#include "lib/vector.h"
#include "lib/activation.h"

template <typename T>
DEVICE void gate_act_mul(T* out, const T* gate_up, u32 cols, u32 kind) {
    constexpr int WIDTH = 8;
    wait_for_kernel_before();
    const u64 start = (u64)(blockIdx.y * blockDim.x + threadIdx.x) * WIDTH;
    const T* row = gate_up + (u64)blockIdx.x * 2 * cols;
    const bool is_aligned = cols % WIDTH == 0;
    float gate[WIDTH], up[WIDTH];
    load_part<T, WIDTH>(gate, row, start, cols, is_aligned);
    load_part<T, WIDTH>(up, row + cols, start, cols, is_aligned);
#pragma unroll
    for (int i = 0; i < WIDTH; i++) gate[i] = gated(gate[i], up[i], kind);
    store_part<T, WIDTH>(out + (u64)blockIdx.x * cols, gate, start, cols, is_aligned);
}

#define KERNELS(T)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        gate_act_mul_##T(T* out, const T* gate_up, u32 cols, u32 kind) {                                               \
        gate_act_mul<T>(out, gate_up, cols, kind);                                                                     \
    }                                                                                                                  \
    EXPORT_KERNEL(gate_act_mul_##T)
KERNELS(bf16)
KERNELS(f16)
