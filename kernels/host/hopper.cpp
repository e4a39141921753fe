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

// Where a matrix as lib/hopper.h gives it has a piece of 16 bytes: rows of 128 bytes, and the next 128 of each `next` bytes further.
const u8* piece_of_matrix(u32 matrix, u32 row, u32 byte) {
    const u32 start = (matrix & 0x3fff) << 4, next = (matrix >> 16 & 0x3fff) << 4;
    const u32 address = start + row / 8 * 1024 + row % 8 * 128 + byte / 128 * next + byte % 128;
    return at_address(place().shared, swizzled(address), 16);
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

// A row of a's, from registers or from shared memory. `all`: the warp's threads.
void row_of_a(float* out, const Product* const* all, unsigned warp, unsigned row) {
    const Product& product = *all[0];
    u16 numbers[16];
    for (unsigned i = 0; i < 8; i++) {
        if (product.a_registers == nullptr) break;
        const u32 pair = all[row % 8 * 4 + i % 4]->a_registers[i / 4 * 2 + row / 8];
        memcpy(numbers + 2 * i, &pair, 4);
    }
    for (unsigned piece = 0; piece < 2; piece++) {
        const bool is_shared = product.a_registers == nullptr;
        const void* from = is_shared ? piece_of_matrix(product.a, warp * 16 + row, piece * 16) : (const void*)(numbers + 8 * piece);
        product.widen(out + piece * product.piece_len, from);
    }
}

// Eight columns of b's from one on.
void columns_of_b(float (&out)[32][8], const Product& product, unsigned first) {
    if (product.b_is_row_after_row) {
        for (unsigned k = 0; k < 16; k++) product.widen(out[k], piece_of_matrix(product.b, k, 2 * first));
        return;
    }
    for (unsigned col = 0; col < 8; col++) {
        float numbers[32];
        for (unsigned piece = 0; piece < 2; piece++) {
            product.widen(numbers + piece * product.piece_len, piece_of_matrix(product.b, first + col, piece * 16));
        }
        for (unsigned k = 0; k < 2 * product.piece_len; k++) out[k][col] = numbers[k];
    }
}

// A warp's share of a product, of all its threads.
void multiply(const Product* const* all, unsigned warp) {
    const Product& product = *all[0];
    float a[16][32], columns[32][8];
    Eight b[32];
    for (unsigned row = 0; row < 16; row++) row_of_a(a[row], all, warp, row);
    for (unsigned first = 0; first < (unsigned)product.num_cols; first += 8) {
        columns_of_b(columns, product, first);
        for (unsigned k = 0; k < 2 * product.piece_len; k++) b[k] = Eight::of(columns[k]);
        for (unsigned row = 0; row < 16; row++) {
            const auto at = [&](unsigned col) -> float& {
                return all[row % 8 * 4 + col / 2]->d[first / 2 + row / 8 * 2 + col % 2];
            };
            // As mma_16x8x16 adds.
            float d[8];
            for (unsigned col = 0; col < 8; col++) d[col] = product.adds ? at(col) : 0.0f;
            Eight sums = Eight::of(d);
            for (unsigned k = 0; k < 2 * product.piece_len; k++) sums.add_products(a[row][k], b[k]);
            sums.round(d);
            for (unsigned col = 0; col < 8; col++) at(col) = d[col];
        }
    }
}

// This thread's share of a product. Its warp's threads come here together, and the last does it for all.
void carry_out(const Product& product) {
    u64 (*const own)[8] = slots();
    *own[lane()] = (u64)(uintptr_t)&product;
    if (is_last_of_warp()) {
        const Product* all[32];
        for (unsigned i = 0; i < 32; i++) all[i] = (const Product*)(uintptr_t)*own[i];
        multiply(all, thread_of_block() % 128 / 32);
    }
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
