// The host shim's barriers that count bytes, copies of boxes, and products of warpgroups. hopper.h says when what happens.
#include "../lib/platform.h"
#include "../lib/hopper.h"

#include <vector>

namespace shim {

namespace {

// A map as the tests' device makes it: backend/cuda/host.rs.
struct Map {
    u64 address, dims[3], strides[2], box[3];
};
static_assert(sizeof(Map) <= sizeof(TensorMap), "a map has room for its shape");

// To the shared memory of a block, from an address on.
struct BoxCopy {
    u8* memory;
    u32 shared;
    Map map;
    CopyBarrier* barrier;
    i32 at[3];
};

struct Queue {
    std::vector<Product> open;
    std::vector<std::vector<Product>> groups;
};

struct State {
    u64 block = 0;
    std::vector<BoxCopy> copies;
    std::vector<Queue> queues;
};

State& state() {
    thread_local State state;
    if (state.block != block_number()) {
        state = {};
        state.block = block_number();
        state.queues.resize(num_threads());
    }
    return state;
}

// The bytes at an address of a block's shared memory.
u8* at_address(u8* memory, u32 address, u32 len) {
    const u32 offset = address - SHARED_START;
    if (offset > place().shared_bytes || len > place().shared_bytes - offset) give_up("an address is beyond shared memory");
    return memory + offset;
}

// Where the 128-byte swizzle puts the byte of that address: pieces of 16 change places within 128, by the address's own bits.
u32 swizzled(u32 address) { return address ^ (address >> 7 & 7) << 4; }

// A barrier: the parity of the phase that goes on; arrivals that each awaits, and those that this one still does; bytes that are
// announced and not there, which may be fewer than none for a moment.
struct Phase {
    u64 parity : 1;
    u64 num_arrivals : 15;
    u64 num_missing : 16;
    i64 bytes : 32;
};
static_assert(sizeof(Phase) == sizeof(CopyBarrier), "a barrier has 64 bits");

Phase load(const CopyBarrier* barrier) {
    Phase phase;
    memcpy(&phase, barrier, sizeof phase);
    if (phase.num_arrivals == 0) give_up("a barrier was not made");
    return phase;
}

void store(CopyBarrier* barrier, Phase phase) {
    if (phase.num_missing == 0 && phase.bytes == 0) {
        phase.parity ^= 1;
        phase.num_missing = phase.num_arrivals;
        check::barrier_flipped(barrier);
        progressed();
    }
    memcpy(barrier, &phase, sizeof phase);
}

// Calls f(to, from, len) for each piece of 16 bytes: where it goes, where it comes from, and how many of its numbers lie within the
// array. The others are zeros.
template <typename F>
void for_pieces(const BoxCopy& copy, F f) {
    const Map& map = copy.map;
    u32 to = copy.shared;
    for (u32 dz = 0; dz < map.box[2]; dz++) {
        for (u32 dy = 0; dy < map.box[1]; dy++) {
            for (u32 dx = 0; dx < map.box[0]; dx += 8, to += 16) {
                const i64 x = copy.at[0] + (i64)dx, y = copy.at[1] + (i64)dy, z = copy.at[2] + (i64)dz;
                const bool has_row = y >= 0 && (u64)y < map.dims[1] && z >= 0 && (u64)z < map.dims[2];
                const i64 len = has_row && x >= 0 ? std::clamp((i64)map.dims[0] - x, (i64)0, (i64)8) : 0;
                const u64 from = map.address + (u64)y * map.strides[0] + (u64)z * map.strides[1] + 2 * (u64)x;
                f(at_address(copy.memory, swizzled(to), 16), (const u16*)(uintptr_t)from, (u32)len);
            }
        }
    }
}

void carry_out(const BoxCopy& copy) {
    u32 bytes = 0;
    for_pieces(copy, [&](u8* to, const u16* from, u32 len) {
        memset(to, 0, 16);
        memcpy(to, from, 2 * len);
        bytes += 16;
    });
    Phase phase = load(copy.barrier);
    phase.bytes -= bytes;
    store(copy.barrier, phase);
}

// A number of a matrix as lib/hopper.h gives it: rows of 128 bytes, and the next 64 numbers of each `next` bytes further.
u16 at_matrix(u32 matrix, u32 row, u32 col) {
    const u32 start = (matrix & 0x3fff) << 4, next = (matrix >> 16 & 0x3fff) << 4;
    const u32 address = start + row / 8 * 1024 + row % 8 * 128 + col / 64 * next + col % 64 * 2;
    return *(const u16*)at_address(place().shared, swizzled(address), 2);
}

// The neighbours of a row from column 0 on that a product takes: two pieces of 16 bytes, which lie together.
void row_of_matrix(double (&out)[32], const Product& product, u32 matrix, u32 row) {
    for (u32 piece = 0; piece < 2; piece++) {
        const u32 address = ((matrix & 0x3fff) << 4) + row / 8 * 1024 + row % 8 * 128 + piece * 16;
        const u8* at = at_address(place().shared, swizzled(address), 16);
        if (product.is_e4m3) {
            for (u32 k = 0; k < 16; k++) out[16 * piece + k] = product.widen(at[k]);
        } else {
            for (u32 k = 0; k < 8; k++) out[8 * piece + k] = product.widen(((const u16*)at)[k]);
        }
    }
}

// Tells the checker of what a product reads. Each thread does so of its share, as all of a warpgroup's do the same.
void note_reads(const Product& product) {
    const unsigned thread = thread_of_block() % 128;
    const auto note = [](u32 matrix, u32 row, u32 bytes) {
        const u32 address = ((matrix & 0x3fff) << 4) + row / 8 * 1024 + row % 8 * 128 + bytes;
        check::product_reads(at_address(place().shared, swizzled(address), 16), 16);
    };
    if (product.a_registers == nullptr) note(product.a, thread / 2, thread % 2 * 16);
    for (u32 piece = thread; piece < 2 * (u32)product.num_cols; piece += 128) {
        if (product.b_is_row_after_row) {
            const u32 row = piece % 16, col = piece / 16 * 8, next = (product.b >> 16 & 0x3fff) << 4;
            note(product.b, row, col / 64 * next + col % 64 * 2);
        } else {
            note(product.b, piece / 2, piece % 2 * 16);
        }
    }
}

// This thread's share of a product. Its warp's threads come here together.
void carry_out(const Product& product) {
    const unsigned lane = thread_of_block() % 32, warp = thread_of_block() % 128 / 32, len = product.is_e4m3 ? 32 : 16;
    *slots()[lane] = (u64)(uintptr_t)product.a_registers;
    warp_barrier(0xffffffffu);
    double a[2][32];
    for (unsigned r = 0; r < 2; r++) {
        if (product.a_registers == nullptr) {
            row_of_matrix(a[r], product, product.a, warp * 16 + lane / 4 + 8 * r);
            continue;
        }
        for (unsigned k = 0; k < 16; k++) {
            const u32* of = (const u32*)(uintptr_t)*slots()[lane / 4 * 4 + k % 8 / 2];
            a[r][k] = product.widen((u16)(of[k / 8 * 2 + r] >> (k % 2 * 16)));
        }
    }
    for (int i = 0; i < product.num_cols / 2; i += 4) {
        for (unsigned j = 0; j < 2; j++) {
            const unsigned col = i / 4 * 8 + lane % 4 * 2 + j;
            double b[32];
            if (product.b_is_row_after_row) {
                for (unsigned k = 0; k < 16; k++) b[k] = product.widen(at_matrix(product.b, k, col));
            } else {
                row_of_matrix(b, product, product.b, col);
            }
            for (unsigned r = 0; r < 2; r++) {
                // As mma_16x8x16 adds.
                float& d = product.d[i + 2 * r + j];
                double sum = product.adds ? d : 0.0f;
                for (unsigned k = 0; k < len; k++) sum += a[r][k] * b[k];
                d = (float)sum;
            }
        }
    }
    // Others have read this lane's registers.
    warp_barrier(0xffffffffu);
}

} // namespace

void barrier_init(CopyBarrier* barrier, u32 num_arrivals) {
    const Phase phase = {0, num_arrivals, num_arrivals, 0};
    memcpy(barrier, &phase, sizeof phase);
    check::barrier_made(barrier);
}

void barrier_arrive(CopyBarrier* barrier, u32 bytes) {
    Phase phase = load(barrier);
    check::barrier_arrived(barrier);
    phase.num_missing--;
    phase.bytes += bytes;
    store(barrier, phase);
}

void barrier_wait(CopyBarrier* barrier, u32 parity) {
    while (load(barrier).parity == parity) {
        std::vector<BoxCopy>& copies = state().copies;
        std::vector<BoxCopy> others;
        for (const BoxCopy& copy : copies) {
            if (copy.barrier == barrier) {
                carry_out(copy);
            } else {
                others.push_back(copy);
            }
        }
        const bool has_copied = others.size() < copies.size();
        copies = std::move(others);
        if (!has_copied) yield();
    }
    check::barrier_passed(barrier);
}

void copy_box(void* shared, const TensorMap* map, CopyBarrier* barrier, const i32 (&at)[3]) {
    BoxCopy copy = {place().shared, shared_address(shared), {}, barrier, {at[0], at[1], at[2]}};
    memcpy(&copy.map, map, sizeof copy.map);
    if (copy.shared % 128 != 0) give_up("a box does not go to a multiple of 128 bytes");
    if (copy.map.box[0] != 64) give_up("a box that is swizzled has rows of 128 bytes");
    check::begin_box(barrier);
    for_pieces(copy, [&](u8* to, const u16* from, u32 len) { check::box_piece(barrier, to, len > 0 ? from : nullptr, 2 * len); });
    if (block_number() / 2 % 2 == 0) {
        carry_out(copy);
    } else {
        state().copies.push_back(copy);
    }
}

void start_product(const Product& product) {
    note_reads(product);
    state().queues[thread_number()].open.push_back(product);
}

void products_commit() {
    Queue& own = state().queues[thread_number()];
    own.groups.push_back(std::move(own.open));
    own.open.clear();
}

void products_wait(unsigned num_pending) {
    // All four warps of a warpgroup do the same.
    warpgroup_barrier();
    while (state().queues[thread_number()].groups.size() > num_pending) {
        std::vector<Product> group = std::move(state().queues[thread_number()].groups.front());
        state().queues[thread_number()].groups.erase(state().queues[thread_number()].groups.begin());
        for (const Product& product : group) {
            note_reads(product);
            carry_out(product);
        }
    }
}

bool has_products() {
    const Queue& own = state().queues[thread_number()];
    return !own.open.empty() || !own.groups.empty();
}

} // namespace shim
