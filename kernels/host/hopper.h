// lib/hopper.h in C++, after the layouts that the PTX ISA documents. What runs on its own happens as late as it may, or in some
// blocks as early: copies of boxes when their barrier is waited for, or at once; products when they are waited for, reading
// registers and shared memory then.
#pragma once

namespace shim {

void barrier_init(CopyBarrier* barrier, u32 num_arrivals);
void barrier_arrive(CopyBarrier* barrier, u32 bytes);
void barrier_wait(CopyBarrier* barrier, u32 parity);
void copy_box(void* shared, const TensorMap* map, CopyBarrier* barrier, const i32 (&at)[3]);
void products_commit();
void products_wait(unsigned num_pending);

// A product of a warpgroup of which this thread has a share: 64 x 16 by 16 x num_cols; of e4m3 64 x 32 by 32 x num_cols.
struct Product {
    float* d;
    const u32* a_registers;
    u32 a, b;
    int num_cols;
    bool adds, b_is_row_after_row;
    // Numbers in 16 bytes, and what makes floats of these.
    unsigned piece_len;
    void (*widen)(float* out, const void* piece);
};
void start_product(const Product& product);

static inline float to_float(e4m3 x) {
    const u32 magnitude = x.bits & 0x7f;
    const float y = magnitude < 8 ? (float)magnitude / 512.0f : __uint_as_float((magnitude + (120 << 3)) << 20);
    if (magnitude == 0x7f) return NAN;
    return x.bits & 0x80 ? -y : y;
}

// The reads are a product's, which tells the checker of them itself.
template <typename T>
UNCHECKED void widen(float* out, const void* piece) {
    T numbers[16 / sizeof(T)];
    memcpy(numbers, piece, 16);
    for (T number : numbers) *out++ = to_float(number);
}

} // namespace shim

// Addresses of the block's dynamic shared memory, which begins as no kernel may rely on: at no multiple of 1024.
static constexpr u32 SHARED_START = 512;
DEVICE u32 shared_address(const void* at) { return (u32)((const u8*)at - shim::place().shared) + SHARED_START; }

DEVICE void barrier_init(CopyBarrier* barrier, u32 num_arrivals) { shim::barrier_init(barrier, num_arrivals); }
DEVICE void barrier_init_done() { shim::check::barriers_published(); }
DEVICE void barrier_arrive(CopyBarrier* barrier) { shim::barrier_arrive(barrier, 0); }
DEVICE void barrier_arrive_expecting(CopyBarrier* barrier, u32 bytes) { shim::barrier_arrive(barrier, bytes); }
DEVICE void barrier_wait(CopyBarrier* barrier, u32 parity) { shim::barrier_wait(barrier, parity); }

DEVICE void prefetch_map(const TensorMap*) {}
DEVICE void copy_box(void* shared, const TensorMap* map, CopyBarrier* barrier, u32 x, u32 y, u32 z) {
    shim::copy_box(shared, map, barrier, {(i32)x, (i32)y, (i32)z});
}
DEVICE void publish_shared() { shim::check::publish(); }

DEVICE u32 cluster_rank() { return shim::cluster_rank(); }
DEVICE void cluster_barrier() { shim::cluster_barrier(); }
UNCHECKED DEVICE float4 load_of_cluster(const float4* at, u32 rank) {
    const u8* there = shim::shared_of(rank) + ((const u8*)at - shim::place().shared);
    shim::check::remote_reads(there, sizeof(float4), __builtin_return_address(0));
    float4 value;
    memcpy(&value, there, sizeof(float4));
    return value;
}

DEVICE void named_barrier_wait(u32 id, u32 num_threads) { shim::named_barrier_wait(id, num_threads); }
DEVICE void named_barrier_arrive(u32 id, u32 num_threads) { shim::named_barrier_arrive(id, num_threads); }

template <int NUM>
void give_registers() {}
template <int NUM>
void take_registers() {}

DEVICE void products_begin() {}
DEVICE void products_commit() { shim::products_commit(); }
template <int NUM_PENDING>
void products_wait() {
    shim::products_wait(NUM_PENDING);
}
template <int LEN>
void keep(float (&)[LEN]) {}

template <typename T, int N>
void product_shared(float* d, u32 a, u32 b, bool adds) {
    shim::start_product({d, nullptr, a, b, N, adds, false, 16 / sizeof(T), &shim::widen<T>});
}
template <typename T, int N>
void product_registers(float* d, const u32* a, u32 b) {
    shim::start_product({d, a, 0, b, N, true, true, 16 / sizeof(T), &shim::widen<T>});
}
