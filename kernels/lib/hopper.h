// What kernels for Hopper (sm_90a) may use beyond platform.h: barriers that count bytes, copies of boxes by the tensor memory
// accelerator, matrix products of warpgroups (four neighbouring warps), clusters of blocks, and registers that pass from one
// warpgroup to another. After platform.h.
#pragma once

// What the driver makes of an array's shape; kernels take it as `const __grid_constant__ TensorMap`.
struct alignas(64) TensorMap {
    u64 opaque[16];
};

// A barrier in shared memory: a phase is over when all have arrived and all bytes that were announced are there.
typedef u64 CopyBarrier;

// A matrix in shared memory whose rows (or, of a matrix that is given column after column, columns) of 64 numbers, 128 bytes,
// follow one another, swizzled: of each row's eight pieces of 16 bytes, piece i of row r lies where i ^ r % 8 would, as copies of
// boxes leave them. Eight rows, 1024 bytes, begin at a multiple of as many; `next` bytes further are the 64 numbers that follow
// in each row. This is the lower half of its descriptor; the upper one is the same for all.
DEVICE u32 matrix_at(u32 address, u32 next) { return (address & 0x3ffff) >> 4 | next >> 4 << 16; }
// The same so many bytes further.
DEVICE u32 matrix_further(u32 matrix, u32 bytes) { return matrix + (bytes >> 4); }

#ifdef SCONCE_HOST
#include "../host/hopper.h"
#else

// By one thread, before a barrier of the block; `barrier_init_done` after the last.
DEVICE void barrier_init(CopyBarrier* barrier, u32 num_arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(num_arrivals) : "memory");
}
DEVICE void barrier_init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

DEVICE void barrier_arrive(CopyBarrier* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives, and announces bytes of copies.
DEVICE void barrier_arrive_expecting(CopyBarrier* barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

// Waits for the end of the phase of that parity: the first has 0, and the one before it, 1, is over from the beginning.
DEVICE void barrier_wait(CopyBarrier* barrier, u32 parity) {
    u32 is_over;
    do {
        asm volatile("{\n\t.reg .pred over;\n\t"
                     "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n\t"
                     "selp.u32 %0, 1, 0, over;\n\t}"
                     : "=r"(is_over)
                     : "r"(shared_address(barrier)), "r"(parity)
                     : "memory");
    } while (is_over == 0);
}

DEVICE void prefetch_map(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"((u64)map) : "memory");
}

// Starts the copy of the map's box at (x, y, z), x counting neighbours in memory. What lies beyond the array becomes zeros.
DEVICE void copy_box(void* shared, const TensorMap* map, CopyBarrier* barrier, u32 x, u32 y, u32 z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(shared)),
                 "l"((u64)map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

// What this thread has written to shared memory is seen by copies of boxes and products of warpgroups that come after a barrier.
DEVICE void publish_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Barriers of some of a block's warps, by number (0 is __syncthreads'): `num_threads` come, those that arrive without waiting.
DEVICE void named_barrier_wait(u32 id, u32 num_threads) {
    asm volatile("barrier.cta.sync.aligned %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}
DEVICE void named_barrier_arrive(u32 id, u32 num_threads) {
    asm volatile("barrier.cta.arrive.aligned %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}

// Blocks of a cluster run together: the block's number among them; a barrier of all their threads; and what lies in the shared
// memory of one of them, where `at` is in the block's own.
DEVICE u32 cluster_rank() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
DEVICE void cluster_barrier() {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
DEVICE float4 load_of_cluster(const float4* at, u32 rank) {
    float4 v;
    asm volatile("{\n\t.reg .b32 there;\n\t"
                 "mapa.shared::cluster.u32 there, %4, %5;\n\t"
                 "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n\t}"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(shared_address(at)), "r"(rank)
                 : "memory");
    return v;
}

// A warpgroup's share of registers, for each of its threads: given back, or taken once they are there.
template <int NUM>
DEVICE void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(NUM));
}
template <int NUM>
DEVICE void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(NUM));
}

// Products run on their own. `products_begin` comes before the first and after every write to registers that they use,
// `products_commit` closes a group, and `products_wait` waits until at most NUM_PENDING groups are under way. Their registers,
// accumulators and a, must be left alone until then, and `keep` of the accumulators is where their values become known.
DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int NUM_PENDING>
DEVICE void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(NUM_PENDING) : "memory");
}
template <int LEN>
DEVICE void keep(float (&d)[LEN]) {
#pragma unroll
    for (int i = 0; i < LEN; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// The whole of a matrix's descriptor: eight rows' bytes, and the swizzle of 128 bytes.
DEVICE u64 descriptor_of(u32 matrix) { return (u64)(1024 >> 4 | 1u << 30) << 32 | matrix; }

// d (+)= a * b of a warpgroup: a 64 x 16, b 16 x N, d 64 x N in f32. Warp w of the group has rows 16 * w.. of d, and of a in
// registers, as mma_16x8x16 has them, d's columns eight by eight. Others are matrices in shared memory.
//   product_shared: a given row after row, b column after column; d = a * b where `adds` is false. Of e4m3 a is 64 x 32, b 32 x N: rows
//   of matrices have 128 numbers then.
//   product_registers: b row after row; d += a * b.
template <typename T, int N>
__device__ __forceinline__ void product_shared(float* d, u32 a, u32 b, bool adds);
template <typename T, int N>
__device__ __forceinline__ void product_registers(float* d, const u32* a, u32 b);

#define OWN_4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define OWN_8(i) OWN_4(i), OWN_4((i) + 4)
#define OWN_16(i) OWN_8(i), OWN_8((i) + 8)
#define OWN_32(i) OWN_16(i), OWN_16((i) + 16)
#define OWN_64(i) OWN_32(i), OWN_32((i) + 32)
#define OWN_96(i) OWN_64(i), OWN_32((i) + 64)
#define OWN_128(i) OWN_64(i), OWN_64((i) + 64)
#define NAMES_4 "%0, %1, %2, %3"
#define NAMES_8 NAMES_4 ", %4, %5, %6, %7"
#define NAMES_16 NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define NAMES_32 NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64 \
    NAMES_32 \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_96 \
    NAMES_64 \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
    ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define NAMES_128 \
    NAMES_96 \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
    ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// What follows d's registers is numbered from their number on.
#define PRODUCT_SHARED(TYPE, NAME, N, LEN, A, B, ADDS)                                                                 \
    template <>                                                                                                        \
    __device__ __forceinline__ void product_shared<TYPE, N>(float* d, u32 a, u32 b, bool adds) {                       \
        asm volatile("{\n\t.reg .pred adds;\n\tsetp.ne.u32 adds, " ADDS ", 0;\n\t"                                     \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" NAMES_##LEN "}, " A ", " B   \
                     ", adds, 1, 1, 0, 0;\n\t}"                                                                        \
                     : OWN_##LEN(0)                                                                                    \
                     : "l"(descriptor_of(a)), "l"(descriptor_of(b)), "r"((u32)adds));                                  \
    }
#define PRODUCT_SHARED_E4M3(N, LEN, A, B, ADDS)                                                                        \
    template <>                                                                                                        \
    __device__ __forceinline__ void product_shared<e4m3, N>(float* d, u32 a, u32 b, bool adds) {                       \
        asm volatile("{\n\t.reg .pred adds;\n\tsetp.ne.u32 adds, " ADDS ", 0;\n\t"                                     \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" NAMES_##LEN "}, " A ", " B           \
                     ", adds, 1, 1;\n\t}"                                                                              \
                     : OWN_##LEN(0)                                                                                    \
                     : "l"(descriptor_of(a)), "l"(descriptor_of(b)), "r"((u32)adds));                                  \
    }
#define PRODUCT_REGISTERS(TYPE, NAME, N, LEN, A, B)                                                                    \
    template <>                                                                                                        \
    __device__ __forceinline__ void product_registers<TYPE, N>(float* d, const u32* a, u32 b) {                        \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" NAMES_##LEN "}, {" A "}, " B \
                     ", 1, 1, 1, 1;"                                                                                   \
                     : OWN_##LEN(0)                                                                                    \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor_of(b)));                             \
    }
#define PRODUCTS(TYPE, NAME)                                                                                           \
    PRODUCT_SHARED(TYPE, NAME, 64, 32, "%32", "%33", "%34")                                                            \
    PRODUCT_SHARED(TYPE, NAME, 128, 64, "%64", "%65", "%66")                                                           \
    PRODUCT_SHARED(TYPE, NAME, 192, 96, "%96", "%97", "%98")                                                           \
    PRODUCT_SHARED(TYPE, NAME, 256, 128, "%128", "%129", "%130")                                                       \
    PRODUCT_REGISTERS(TYPE, NAME, 8, 4, "%4, %5, %6, %7", "%8")                                                        \
    PRODUCT_REGISTERS(TYPE, NAME, 16, 8, "%8, %9, %10, %11", "%12")                                                    \
    PRODUCT_REGISTERS(TYPE, NAME, 32, 16, "%16, %17, %18, %19", "%20")                                                 \
    PRODUCT_REGISTERS(TYPE, NAME, 64, 32, "%32, %33, %34, %35", "%36")                                                 \
    PRODUCT_REGISTERS(TYPE, NAME, 128, 64, "%64, %65, %66, %67", "%68")
PRODUCTS(bf16, "bf16")
PRODUCTS(f16, "f16")
PRODUCT_SHARED_E4M3(128, 64, "%64", "%65", "%66")
PRODUCT_SHARED_E4M3(256, 128, "%128", "%129", "%130")
#undef PRODUCTS
#undef PRODUCT_REGISTERS
#undef PRODUCT_SHARED_E4M3
#undef PRODUCT_SHARED

#endif // SCONCE_HOST

// What follows is the same everywhere.

// A number that a warp's lanes all have: said to the compiler, which keeps it where products want it, once for a warp.
DEVICE u32 of_warp(u32 x) { return __shfl_sync(FULL_WARP, x, 0); }

// A pass through stages of shared memory: which is next, and the parity of its phase.
template <u32 STAGES>
struct Pass {
    u32 stage = 0, parity = 0;
    __device__ __forceinline__ void advance() {
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        parity ^= stage == 0;
    }
};
