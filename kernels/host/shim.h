// The host shim: what kernels need of CUDA, in C++, so that tests run the very same .cu files without a GPU.
//
// The threads of a block are fibers of one thread of the machine. They run one at a time, each until it waits for others: at
// a barrier, in a shuffle, in a matrix product. Blocks (or clusters of them, which run together) follow one another; every other
// one runs its fibers backwards, so that a missing barrier does not go unseen. Dynamic shared memory begins as NaNs. Copies to shared memory happen as late
// as they may: when they are waited for. A block that waits for itself ends the process with a message.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
// One block at a time runs on a thread of the machine. Clusters use dynamic shared memory alone.
#define __shared__ static thread_local
#define DEVICE static inline

#include "check.h"

struct dim3 {
    unsigned x, y, z;
};

template <typename T>
struct Four {
    T x, y, z, w;
};
template <typename T>
struct Two {
    T x, y;
};
// A vector is loaded and stored as a whole: the compiler's own marks would be of what is left of that when it has looked at it.
template <typename N>
struct alignas(sizeof(N)) Vector : N {
    Vector(const N& numbers) : N(numbers) {}
#ifndef SCONCE_CHECKED
    Vector() = default;
#else
    // As constants are, so that nothing is to be written where shared memory has vectors.
    constexpr Vector() : N() {}
    UNCHECKED Vector(const Vector& from) : N((shim::check::vector_reads(&from, sizeof(N), __builtin_return_address(0)), from)) {}
    UNCHECKED Vector& operator=(const Vector& from) {
        shim::check::vector_reads(&from, sizeof(N), __builtin_return_address(0));
        shim::check::vector_writes(this, sizeof(N), __builtin_return_address(0));
        N::operator=(from);
        return *this;
    }
#endif
};
typedef Vector<Four<unsigned>> uint4;
typedef Vector<Two<unsigned>> uint2;
typedef Vector<Four<float>> float4;
typedef Vector<Two<float>> float2;
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return Four<unsigned>{x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return Two<unsigned>{x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return Four<float>{x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return Two<float>{x, y}; }

namespace shim {

// Where the fiber that runs stands, its number within its cluster, and what belongs to that.
struct Place {
    dim3 thread, block, block_dim, grid_dim;
    u8* shared;
    u32 shared_bytes, number;
    struct Cluster* cluster;
    struct Checker* checker;
};
// It lies at the low end of the fiber's stack, to which every address of the stack leads: that is asked for all the time, and
// variables of a thread of the machine take longer to find.
constexpr std::size_t STACK_BYTES = 256 << 10;
static inline Place& place() {
    return *reinterpret_cast<Place*>((uintptr_t)__builtin_frame_address(0) & ~(uintptr_t)(STACK_BYTES - 1));
}

// Ends the process with a message.
[[noreturn]] void give_up(const char* what);
// Lets others run, for the one that runs waits for something; who has done what others may wait for says so.
void yield();
void progressed();
// Counts clusters of blocks, most of them of one; the thread's number within its own, of so many, and within its block.
u64 block_number();
unsigned thread_number();
unsigned num_threads();
unsigned thread_of_block();
// The block's number within its cluster, and the shared memory of one of them.
unsigned cluster_rank();
u8* shared_of(unsigned rank);
// Waits for all threads of the cluster that have not ended.
void cluster_barrier();
// Whether the thread has products of warpgroups under way (hopper.cpp).
bool has_products();
// Waits for all threads of the block that have not ended.
void block_barrier();
// Waits for the warpgroup's threads.
void warpgroup_barrier();
// Barriers that so many threads come to.
void named_barrier_wait(u32 id, u32 num_threads);
void named_barrier_arrive(u32 id, u32 num_threads);
// Waits for the lanes of `mask`. Shuffles and the like order no memory.
void warp_barrier(u32 mask, bool orders_memory = false);
// 64 bytes a lane that a warp exchanges values through at its next barrier; those of the one after it are others.
u64 (*slots())[8];
// Whether all others of the warp have come to its next barrier: who comes last does what is to be done for all of them.
bool is_last_of_warp();
unsigned lane();
void copy_async(void* shared, const void* global, bool is_there);
void copy_commit();
void copy_wait(int num_pending);
// Every thread must wait for the kernel before: here there is none, but one that forgets it ends the process.
void note_wait();
float f16_to_float(u16 bits);
u16 f16_from_float(float x);

// What the lanes have put into slots has been read. Where all meet each time, it is when they meet for the next time.
static inline void slots_read(u32 mask) {
    if (mask != 0xffffffffu) warp_barrier(mask);
}

template <typename T>
T exchange(u32 mask, T value, unsigned from) {
    static_assert(sizeof(T) <= 8, "registers have at most 64 bits");
    u64 (*const own)[8] = slots();
    memcpy(own[lane()], &value, sizeof(T));
    warp_barrier(mask);
    memcpy(&value, own[from], sizeof(T));
    slots_read(mask);
    return value;
}

// A lane's share of a product, d += a * b, as it puts it into its slots; and the product of all of them, of bf16 or of f16.
struct Share {
    u32 a[4], b[2];
    float d[4];
};
static_assert(sizeof(Share) <= 64, "a lane's slots have room for it");
template <typename T>
void multiply(u64 (*shares)[8]);
// Eight numbers in registers that every machine has.
struct Eight {
    typedef double Pair __attribute__((vector_size(16)));
    Pair a, b, c, d;

    static Eight of(const float* x) {
        return {Pair{x[0], x[1]}, Pair{x[2], x[3]}, Pair{x[4], x[5]}, Pair{x[6], x[7]}};
    }
    void add_products(double x, const Eight& y) {
        a += x * y.a;
        b += x * y.b;
        c += x * y.c;
        d += x * y.d;
    }
    // To `to`, rounded once.
    void round(float* to) const {
        const Pair pairs[4] = {a, b, c, d};
        for (unsigned i = 0; i < 8; i++) to[i] = (float)pairs[i / 2][i % 2];
    }
};

template <typename... A, std::size_t... I>
UNCHECKED void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A>*>(args[I])...);
}
template <typename... A>
void call(void (*kernel)(A...), void** args) {
    call(kernel, args, std::index_sequence_for<A...>{});
}

} // namespace shim

#define EXPORT_KERNEL(name)                                                                                            \
    extern "C" void name##__host(void** args) { shim::call(&name, args); }
#define DYNAMIC_SHARED(name) u8* name = shim::place().shared

#define threadIdx (shim::place().thread)
#define blockIdx (shim::place().block)
#define blockDim (shim::place().block_dim)
#define gridDim (shim::place().grid_dim)

static inline void __syncthreads() { shim::block_barrier(); }
static inline void __syncwarp(u32 mask = 0xffffffffu) { shim::warp_barrier(mask, true); }
static inline void __threadfence() { shim::check::fence(); }

template <typename T>
T __shfl_sync(u32 mask, T value, int from, int width = 32) {
    return shim::exchange(mask, value, shim::lane() / width * width + from % width);
}
template <typename T>
T __shfl_xor_sync(u32 mask, T value, int lane_mask, int width = 32) {
    unsigned from = shim::lane() ^ lane_mask;
    return shim::exchange(mask, value, from / width == shim::lane() / width ? from : shim::lane());
}
template <typename T>
T __shfl_up_sync(u32 mask, T value, unsigned delta, int width = 32) {
    unsigned at = shim::lane();
    return shim::exchange(mask, value, at % width >= delta ? at - delta : at);
}
static inline u32 __ballot_sync(u32 mask, int predicate) {
    u64 (*const slots)[8] = shim::slots();
    *slots[shim::lane()] = predicate != 0;
    shim::warp_barrier(mask);
    u32 votes = 0;
    for (unsigned i = 0; i < 32; i++) votes |= (mask >> i & 1) && *slots[i] ? 1u << i : 0;
    shim::slots_read(mask);
    return votes;
}
static inline u32 __reduce_min_sync(u32 mask, u32 value) {
    for (int i = 1; i < 32; i *= 2) value = std::min(value, __shfl_xor_sync(mask, value, i));
    return value;
}
static inline u32 __reduce_max_sync(u32 mask, u32 value) {
    for (int i = 1; i < 32; i *= 2) value = std::max(value, __shfl_xor_sync(mask, value, i));
    return value;
}
static inline int __all_sync(u32 mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

// Fibers do not interrupt one another.
template <typename T>
UNCHECKED T atomicAdd(T* at, T value) {
    shim::check::atomic(at, sizeof(T));
    T old = *at;
    *at += value;
    return old;
}
template <typename T>
UNCHECKED T atomicMax(T* at, T value) {
    shim::check::atomic(at, sizeof(T));
    T old = *at;
    *at = old < value ? value : old;
    return old;
}
template <typename T>
UNCHECKED T atomicMin(T* at, T value) {
    shim::check::atomic(at, sizeof(T));
    T old = *at;
    *at = value < old ? value : old;
    return old;
}
template <typename T>
UNCHECKED T atomicExch(T* at, T value) {
    shim::check::atomic(at, sizeof(T));
    T old = *at;
    *at = value;
    return old;
}

static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a < b ? b : a; }
static inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
static inline unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
static inline u64 min(u64 a, u64 b) { return a < b ? a : b; }
static inline u64 max(u64 a, u64 b) { return a < b ? b : a; }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float fast_exp(float x) { return expf(x); }
static inline float fast_exp2(float x) { return exp2f(x); }
static inline float fast_log(float x) { return logf(x); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
// Rounded one by one, and fused with nothing around them: the compiler is told so (-ffp-contract=off).
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline double __longlong_as_double(i64 bits) {
    double x;
    memcpy(&x, &bits, 8);
    return x;
}
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline u32 __float_as_uint(float x) {
    u32 bits;
    memcpy(&bits, &x, 4);
    return bits;
}
static inline float __uint_as_float(u32 bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
static inline float __int_as_float(i32 bits) { return __uint_as_float((u32)bits); }
static inline int __popc(u32 x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline u32 __byte_perm(u32 low, u32 high, u32 selector) {
    const u64 bytes = low | (u64)high << 32;
    u32 y = 0;
    for (int i = 0; i < 4; i++) y |= (u32)(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return y;
}

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
DEVICE float to_float(f16 x) { return shim::f16_to_float(x.bits); }
template <typename T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
    return x;
}
template <>
inline bf16 from_float<bf16>(float x) {
    const u32 bits = __float_as_uint(x);
    return {std::isnan(x) ? (u16)0x7fff : (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline f16 from_float<f16>(float x) {
    return {shim::f16_from_float(x)};
}
template <typename T>
u32 pack(float low, float high) {
    return from_float<T>(low).bits | (u32)from_float<T>(high).bits << 16;
}

static inline u32 and_or(u32 a, u32 b, u32 c) { return (a & b) | c; }
template <typename T>
u32 fma_pairs(u32 a, u32 b, u32 c) {
    auto half_of = [](u32 pair, int shift) { return to_float(T{(u16)(pair >> shift)}); };
    auto sum = [&](int shift) { return __builtin_fmaf(half_of(a, shift), half_of(b, shift), half_of(c, shift)); };
    return pack<T>(sum(0), sum(16));
}

template <typename T>
void mma_16x8x16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    u64 (*const shares)[8] = shim::slots();
    shim::Share& own = *(shim::Share*)shares[shim::lane()];
    memcpy(own.a, a, sizeof a);
    memcpy(own.b, b, sizeof b);
    memcpy(own.d, d, sizeof d);
    if (shim::is_last_of_warp()) shim::multiply<T>(shares);
    shim::warp_barrier(0xffffffffu);
    memcpy(d, own.d, sizeof d);
}

template <unsigned N>
UNCHECKED void load_matrices(u32 (&out)[N], const void* row, bool trans) {
    const unsigned l = shim::lane(), r = l / 4, c = 2 * (l % 4);
    const void* pc = __builtin_return_address(0);
    if (l < 8 * N) shim::check::matrix_row(row, pc);
    u64 (*const rows)[8] = shim::slots();
    *rows[l] = (u64)(uintptr_t)row;
    shim::warp_barrier(0xffffffffu);
    for (unsigned i = 0; i < N; i++) {
        auto at = [&](unsigned row, unsigned col) UNCHECKED {
            const u16* number = (const u16*)(uintptr_t)*rows[8 * i + row] + col;
            shim::check::matrix_reads(number, sizeof(u16), pc);
            return (u32)*number;
        };
        out[i] = trans ? at(c, r) | at(c + 1, r) << 16 : at(r, c) | at(r, c + 1) << 16;
    }
    shim::warp_barrier(0xffffffffu);
}
DEVICE void load_matrix_x4(u32 (&out)[4], const void* row) { load_matrices(out, row, false); }
DEVICE void load_matrix_x4_trans(u32 (&out)[4], const void* row) { load_matrices(out, row, true); }
DEVICE void load_matrix_x2(u32 (&out)[2], const void* row) { load_matrices(out, row, false); }
DEVICE void load_matrix_x2_trans(u32 (&out)[2], const void* row) { load_matrices(out, row, true); }

DEVICE void copy_async(void* shared, const void* global, bool is_there = true) {
    shim::copy_async(shared, global, is_there);
}
DEVICE void copy_commit() { shim::copy_commit(); }
template <int NUM_PENDING>
void copy_wait() {
    shim::copy_wait(NUM_PENDING);
}
DEVICE void prefetch_line(const void*) {}
DEVICE void wait_for_writes() { shim::note_wait(); }
DEVICE void let_next_begin() { shim::check::let_next(); }
UNCHECKED DEVICE u32 load_relaxed(const u32* at) {
    shim::check::atomic(const_cast<u32*>(at), sizeof(u32));
    return *at;
}
template <typename T>
UNCHECKED DEVICE void store_alike(T* at, T value) {
    shim::check::alike(at, sizeof(T), __builtin_return_address(0));
    memcpy(at, &value, sizeof(T));
}
