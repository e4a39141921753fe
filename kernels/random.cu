// random: weights for measuring: nearly normal numbers with a standard deviation of 0.02, the sum of four uniform ones, of a
// counter-based generator (SplitMix64, Steele, Lea, Flood 2014).
//
// out [len] in 16 bits, len a multiple of 8. Element i is that of counter i. random_fp8: out [len] in e4m3, of the numbers times
// `inverse_scale`, 8 a thread.
// Grid: len / 8 / 256 blocks of 256 threads, each with 16 bytes. No shared memory.
// Bounded by integer arithmetic: some 20 operations an element; two bytes are written.
#include "lib/platform.h"
#include "lib/e4m3.h"

DEVICE float weight_of(u64 seed, u64 counter) {
    const u64 state = seed + counter * 0x9e3779b97f4a7c15ull;
    u64 z = (state ^ state >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    const i32 sum = (i32)((z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48));
    // Each of the four has the mean 65535 / 2 and, in units of 65536, the variance 1/12.
    return __fmul_rn((float)(sum - 2 * 65535), 0.02f * 1.7320508f / 65536.0f);
}

template <typename T>
DEVICE void fill(T* out, u64 len, u64 seed) {
    wait_for_kernel_before();
    const u64 first = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (first >= len) return;
    u32 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        pairs[i] = pack<T>(weight_of(seed, first + 2 * i), weight_of(seed, first + 2 * i + 1));
    }
    *(uint4*)(out + first) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

extern "C" __global__ void __launch_bounds__(256) random_fp8(u8* out, u64 len, u64 seed, float inverse_scale) {
    wait_for_kernel_before();
    const u64 first = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (first >= len) return;
    u32 words[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        words[i / 4] |= e4m3_of(__fmul_rn(weight_of(seed, first + i), inverse_scale)) << i % 4 * 8;
    }
    *(uint2*)(out + first) = make_uint2(words[0], words[1]);
}
EXPORT_KERNEL(random_fp8)

#define KERNEL(T)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(256) random_##T(T* out, u64 len, u64 seed) { fill(out, len, seed); }  \
    EXPORT_KERNEL(random_##T)
KERNEL(bf16)
KERNEL(f16)
