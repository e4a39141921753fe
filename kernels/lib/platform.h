// What every kernel may use, whatever compiles it: nvcc, NVRTC (which brings no headers, so that none are asked for), or the
// host's C++ compiler by way of host/shim.h. Kernels name no compiler and no header of CUDA's.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char i8;
typedef int i32;
typedef long long i64;

// 16 bits of a float, as they lie in memory.
struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};
// The same in 8 bits: 4 of exponent, 3 of mantissa.
struct e4m3 {
    u8 bits;
};

#ifdef SCONCE_HOST
#include "../host/shim.h"
#else

// Makes a kernel known to the host shim; nothing on a device.
#define EXPORT_KERNEL(name)

// The block's dynamic shared memory.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) u8 name[]

#define DEVICE static __device__ __forceinline__

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
DEVICE float to_float(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <>
__device__ __forceinline__ f16 from_float<f16>(float x) {
    f16 y;
    asm("cvt.rn.satfinite.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// Two numbers in one register, `low` in the lower half.
template <typename T>
__device__ __forceinline__ u32 pack(float low, float high);
template <>
__device__ __forceinline__ u32 pack<bf16>(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
template <>
__device__ __forceinline__ u32 pack<f16>(float low, float high) {
    u32 y;
    asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// (a & b) | c, in one instruction.
DEVICE u32 and_or(u32 a, u32 b, u32 c) {
    u32 y;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
    return y;
}

// Two numbers at once: a * b + c, rounded once, subnormal ones too. The host shim rounds sums that f32 does not hold twice.
template <typename T>
__device__ __forceinline__ u32 fma_pairs(u32 a, u32 b, u32 c);
template <>
__device__ __forceinline__ u32 fma_pairs<bf16>(u32 a, u32 b, u32 c) {
    u32 y;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
    return y;
}
template <>
__device__ __forceinline__ u32 fma_pairs<f16>(u32 a, u32 b, u32 c) {
    u32 y;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
    return y;
}

// Within some units in the last place, in one or two instructions.
DEVICE float fast_exp(float x) { return __expf(x); }
DEVICE float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float fast_log(float x) { return __logf(x); }

// d += a * b for one warp: a is 16 x 16, row after row; b 16 x 8, column after column; d 16 x 8 in f32. In lane l, with
// g = l / 4 and c = 2 * (l % 4), two numbers a register:
//   a[0]: row g, columns c..; a[1]: row g + 8; a[2]: row g, columns c + 8..; a[3]: row g + 8, columns c + 8..
//   b[0]: rows c.. of column g; b[1]: rows c + 8..
//   d[0], d[1]: row g, columns c, c + 1; d[2], d[3]: row g + 8.
template <typename T>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]);
#define MMA_16X8X16(TYPE, NAME)                                                                                        \
    template <>                                                                                                        \
    __device__ __forceinline__ void mma_16x8x16<TYPE>(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {          \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 {%0, %1, %2, %3}, "                  \
                     "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                                   \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                  \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                              \
    }
MMA_16X8X16(bf16, "bf16")
MMA_16X8X16(f16, "f16")
#undef MMA_16X8X16

// The address of shared memory as instructions want it.
DEVICE u32 shared_address(const void* at) { return (u32)__cvta_generic_to_shared(at); }

// Four 8 x 8 tiles of 16-bit numbers from shared memory: lane l gives the address of row l % 8 of tile l / 8, and gets of
// tile i in out[i] two neighbours, row l / 4, columns 2 * (l % 4).. . TRANS: columns for rows.
DEVICE void load_matrix_x4(u32 (&out)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}
DEVICE void load_matrix_x4_trans(u32 (&out)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The first two alone, whose rows the first 16 lanes have.
DEVICE void load_matrix_x2(u32 (&out)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(shared_address(row))
                 : "memory");
}
DEVICE void load_matrix_x2_trans(u32 (&out)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// Starts a copy of 16 bytes to shared memory, of zeros where `is_there` is false. Copies are there for this thread once
// `copy_wait` has returned, for others after a barrier too.
DEVICE void copy_async(void* shared, const void* global, bool is_there = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(is_there ? 16 : 0)
                 : "memory");
}
// Closes a group of copies.
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most NUM_PENDING of this thread's groups are under way.
template <int NUM_PENDING>
__device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(NUM_PENDING) : "memory");
}

// Brings the 128 bytes around an address to the second cache.
DEVICE void prefetch_line(const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at) : "memory"); }

// What atomics write meanwhile, as it is now.
DEVICE u32 load_relaxed(const u32* at) { return *(const volatile u32*)at; }

// Writes what others write there too, with no barrier between: said to the host shim's checker.
template <typename T>
DEVICE void store_alike(T* at, T value) {
    *at = value;
}

// Programmatic dependent launch (nothing before Hopper, nor where a launch does not ask for it). `wait_for_writes` waits until the
// kernel before this one has ended and what it has written can be read. Every thread of every kernel waits, also one that has
// nothing to do, and lets the next one begin no earlier: so all that came before the kernel before has ended when this one begins.
// Until it has waited it may read what the kernel before has not written, such as weights, what was uploaded for the step, and keys
// of steps before; and it may write nothing.
// `let_next_begin` lets the next kernel begin, once a thread of each of this one's blocks has called it, or the block has ended.
DEVICE void wait_for_writes() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEVICE void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#endif // SCONCE_HOST

// What follows is the same everywhere.

// Both, for short kernels. Those that stream weights let the next one in when theirs are there: its blocks would crowd on the few
// multiprocessors that have room before, and what they ask for ahead of time would be gone from the second cache when it is needed.
DEVICE void wait_for_kernel_before() {
    wait_for_writes();
    let_next_begin();
}

// Norms, RoPE and decode attention let the next one in at once where the launch says so (`Device::lets_next`): its weights are on their
// way while they wait, and memory would be idle. What comes behind them reads, ahead of its wait, weights and keys of steps before alone,
// which nothing writes from the kernel before them on.
DEVICE void let_next_begin_if(u32 lets_next) {
    if (lets_next != 0) let_next_begin();
}

#define FULL_WARP 0xffffffffu

template <typename T>
static constexpr bool IS_F16 = false;
template <>
constexpr bool IS_F16<f16> = true;

// The two numbers of a register.
template <typename T>
DEVICE float low_float(u32 pair) {
    return to_float(T{(u16)(pair & 0xffff)});
}
template <typename T>
DEVICE float high_float(u32 pair) {
    return to_float(T{(u16)(pair >> 16)});
}

// The sum over a warp, in every lane.
DEVICE float warp_sum(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(FULL_WARP, x, offset);
    return x;
}

// The greatest of a warp, in every lane.
DEVICE float warp_max(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, offset));
    return x;
}

// The sum over a block of at most 1024 threads, whole warps, in every thread. `scratch`: 32 floats of shared memory. All
// threads must have left what used `scratch` before.
DEVICE float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, num_warps = blockDim.x / 32;
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = warp_sum(lane < num_warps ? scratch[lane] : 0.0f);
    return x;
}
