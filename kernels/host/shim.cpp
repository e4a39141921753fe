// The host shim's engine: clusters of blocks, fibers, barriers. shim.h says what it is for.
#include "../lib/platform.h"

#include <sys/mman.h>

#include <vector>

namespace shim {

namespace {

constexpr unsigned MAX_THREADS = 1024, MAX_CLUSTER = 8, MAX_FIBERS = MAX_CLUSTER * MAX_THREADS;

struct Barrier {
    unsigned arrived = 0, generation = 0;
    check::Meeting meeting;
};

struct Copy {
    void* shared;
    const void* global;
    bool is_there;
};

struct Fiber {
    void* stack_pointer = nullptr;
    // Those that have not ended stand in a ring.
    unsigned next = 0, previous = 0;
    bool has_waited = false;
    // Copies to be carried out, and how many of them the groups that are closed end with.
    std::vector<Copy> copies;
    std::vector<std::size_t> groups;
};

struct Warp {
    // A barrier a mask would be exact; kernels that wait for parts of a warp do it one part at a time.
    Barrier barrier;
    // By turns. Who comes to a barrier has read what the last but one was for.
    u64 slots[2][32][8];
};

struct Block {
    unsigned num_alive;
    Barrier barrier, named[16], warpgroups[MAX_THREADS / 128];
};


} // namespace

// Blocks that run together; mostly one.
struct Cluster {
    ~Cluster() {
        if (memory != MAP_FAILED) munmap(memory, (MAX_FIBERS + 1) * STACK_BYTES);
    }
    void (*kernel)(void**) = nullptr;
    void** args = nullptr;
    // Of all blocks, and of one.
    unsigned num_threads = 0, block_threads = 0;
    unsigned num_alive = 0, num_stalled = 0;
    bool backwards = false;
    // Counts clusters, so that what belongs to one is not taken for another's.
    u64 number = 0;
    Barrier barrier;
    std::vector<Block> blocks;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    void* main = nullptr;
    void* memory = MAP_FAILED;
    u8* stacks = nullptr;

    Place& place_of(unsigned number) { return *reinterpret_cast<Place*>(stacks + number * STACK_BYTES); }
};

namespace {

Cluster& cluster() { return *place().cluster; }

Block& own_block() { return cluster().blocks[place().number / cluster().block_threads]; }

extern "C" void shim_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.globl shim_switch
.hidden shim_switch
.type shim_switch, @function
shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size shim_switch, .-shim_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl shim_switch
.hidden shim_switch
.type shim_switch, %function
shim_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size shim_switch, .-shim_switch
)");
#else
#error "the host shim switches fibers on x86-64 and AArch64"
#endif

void switch_to(void** from, unsigned next) { shim_switch(from, cluster().fibers[next].stack_pointer); }

void release(Barrier& barrier, bool orders_memory = true) {
    barrier.arrived = 0;
    barrier.generation++;
    if (orders_memory) barrier.meeting.all_there();
    progressed();
}

void wait(Barrier& barrier, unsigned expected, bool orders_memory = true) {
    const unsigned generation = barrier.generation;
    if (orders_memory) barrier.meeting.arrive();
    if (++barrier.arrived >= expected) release(barrier, orders_memory);
    while (barrier.generation == generation) yield();
    if (orders_memory) barrier.meeting.leave();
}

void fiber_main() {
    cluster().kernel(cluster().args);
    Fiber& self = cluster().fibers[place().number];
    // Legal, but what nobody waits for is a mistake.
    if (!self.copies.empty() || !self.groups.empty()) give_up("the thread ends and has not waited for its copies");
    if (has_products()) give_up("the thread ends and has not waited for its products");
    if (!self.has_waited) give_up("the thread ends and has not waited for the kernel before");
    cluster().fibers[self.previous].next = self.next;
    cluster().fibers[self.next].previous = self.previous;
    progressed();
    Block& block = own_block();
    if (--block.num_alive > 0 && block.barrier.arrived >= block.num_alive) release(block.barrier);
    if (--cluster().num_alive > 0 && cluster().barrier.arrived >= cluster().num_alive) release(cluster().barrier);
    void* dead;
    if (cluster().num_alive == 0) {
        shim_switch(&dead, cluster().main);
    } else {
        switch_to(&dead, self.next);
    }
    give_up("a thread that has ended went on");
}

void* new_stack(u8* low) {
    u64* top = reinterpret_cast<u64*>(low + STACK_BYTES);
#if defined(__x86_64__)
    *--top = 0;
    *--top = reinterpret_cast<u64>(&fiber_main);
    top -= 6;
#else
    top -= 20;
    top[11] = reinterpret_cast<u64>(&fiber_main);
#endif
    return top;
}

// The blocks from `first.block` on, each with its own of `memories`.
void run_cluster(Cluster& own, const Place& first, unsigned num_blocks, u8* const* memories) {
    const dim3 dim = first.block_dim;
    own.num_threads = num_blocks * own.block_threads;
    own.num_alive = own.num_threads;
    own.num_stalled = 0;
    own.number++;
    own.barrier = {};
    own.blocks.assign(num_blocks, Block{});
    for (Block& block : own.blocks) block.num_alive = own.block_threads;
    own.warps.assign(own.num_threads / 32, Warp{});
    const std::size_t pitch = num_blocks > 1 ? memories[1] - memories[0] : first.shared_bytes + 1;
    Checker* checker = check::begin_cluster(own.number, own.num_threads, own.block_threads, memories[0], pitch, first.shared_bytes);
    check::ignore(own.stacks, MAX_FIBERS * STACK_BYTES, 0);
    check::ignore(own.warps.data(), own.warps.size() * sizeof(Warp), 1);
    for (unsigned i = 0; i < own.num_threads; i++) {
        Fiber& fiber = own.fibers[i];
        const unsigned block = i / own.block_threads, thread = i % own.block_threads;
        fiber.has_waited = false;
        fiber.next = (i + (own.backwards ? own.num_threads - 1 : 1)) % own.num_threads;
        fiber.previous = (i + (own.backwards ? 1 : own.num_threads - 1)) % own.num_threads;
        fiber.copies.clear();
        fiber.groups.clear();
        fiber.stack_pointer = new_stack(own.stacks + i * STACK_BYTES);
        Place& place = own.place_of(i);
        place = first;
        place.block.x += block;
        place.shared = memories[block];
        place.thread = {thread % dim.x, thread / dim.x % dim.y, thread / dim.x / dim.y};
        place.number = i;
        place.cluster = &own;
        place.checker = checker;
    }
    shim_switch(&own.main, own.fibers[own.backwards ? own.num_threads - 1 : 0].stack_pointer);
}

} // namespace

void give_up(const char* what) {
    const dim3 block = place().block;
    fprintf(stderr, "host shim: block (%u, %u, %u), thread %u: %s\n", block.x, block.y, block.z, thread_of_block(), what);
    abort();
}

void progressed() { cluster().num_stalled = 0; }

void yield() {
    if (++cluster().num_stalled > 4 * cluster().num_threads) give_up("the block waits for threads that do not come");
    Fiber& self = cluster().fibers[place().number];
    if (self.next != place().number) switch_to(&self.stack_pointer, self.next);
}

u64 block_number() { return cluster().number; }

unsigned thread_number() { return place().number; }

unsigned num_threads() { return cluster().num_threads; }

unsigned thread_of_block() { return place().number % cluster().block_threads; }

u8* shared_of(unsigned rank) {
    if (rank >= cluster().blocks.size()) give_up("the cluster has no such block");
    if (cluster().blocks[rank].num_alive == 0) give_up("the block whose shared memory is read has ended");
    return cluster().place_of(rank * cluster().block_threads).shared;
}

unsigned cluster_rank() { return place().number / cluster().block_threads; }

void cluster_barrier() { wait(cluster().barrier, cluster().num_alive); }

void warpgroup_barrier() { wait(own_block().warpgroups[thread_of_block() / 128], 128); }

void named_barrier_wait(u32 id, u32 num_threads) { wait(own_block().named[id], num_threads); }

void named_barrier_arrive(u32 id, u32 num_threads) {
    Barrier& barrier = own_block().named[id];
    barrier.meeting.arrive();
    if (++barrier.arrived >= num_threads) release(barrier);
}

void block_barrier() { wait(own_block().barrier, own_block().num_alive); }

void warp_barrier(u32 mask, bool orders_memory) {
    if (!(mask >> lane() & 1)) give_up("a lane waits for others and is not in the mask");
    wait(cluster().warps[place().number / 32].barrier, (unsigned)__builtin_popcount(mask), orders_memory);
}

unsigned lane() { return place().number % 32; }

u64 (*slots())[8] {
    Warp& warp = cluster().warps[place().number / 32];
    return warp.slots[warp.barrier.generation % 2];
}

bool is_last_of_warp() { return cluster().warps[place().number / 32].barrier.arrived == 31; }

// The sum of a product is rounded once, as if it had been taken in no order, which is how tensor cores are thought to add. Which
// lane has what: lib/platform.h.
template <typename T>
void multiply(u64 (*shares)[8]) {
    const auto share = [shares](unsigned lane) -> Share& { return *(Share*)shares[lane]; };
    const auto low = [](u32 pair) { return to_float(T{(u16)pair}); };
    const auto high = [](u32 pair) { return to_float(T{(u16)(pair >> 16)}); };
    Eight b[16];
    for (unsigned k = 0; k < 16; k += 2) {
        float rows[2][8];
        for (unsigned col = 0; col < 8; col++) {
            const u32 pair = share(col * 4 + k % 8 / 2).b[k / 8];
            rows[0][col] = low(pair);
            rows[1][col] = high(pair);
        }
        b[k] = Eight::of(rows[0]);
        b[k + 1] = Eight::of(rows[1]);
    }
    for (unsigned row = 0; row < 16; row++) {
        float d[8];
        for (unsigned col = 0; col < 8; col++) d[col] = share(row % 8 * 4 + col / 2).d[row / 8 * 2 + col % 2];
        Eight sums = Eight::of(d);
        for (unsigned k = 0; k < 16; k += 2) {
            const u32 pair = share(row % 8 * 4 + k % 8 / 2).a[k / 8 * 2 + row / 8];
            sums.add_products(low(pair), b[k]);
            sums.add_products(high(pair), b[k + 1]);
        }
        sums.round(d);
        for (unsigned col = 0; col < 8; col++) share(row % 8 * 4 + col / 2).d[row / 8 * 2 + col % 2] = d[col];
    }
}
template void multiply<bf16>(u64 (*)[8]);
template void multiply<f16>(u64 (*)[8]);

void copy_async(void* shared, const void* global, bool is_there) {
    if (((uintptr_t)shared | (is_there ? (uintptr_t)global : 0)) % 16 != 0) give_up("a copy is not aligned to 16 bytes");
    check::copy_asked(shared, global, is_there, __builtin_return_address(0));
    cluster().fibers[place().number].copies.push_back({shared, global, is_there});
}

void copy_commit() {
    Fiber& self = cluster().fibers[place().number];
    self.groups.push_back(self.copies.size());
}

void copy_wait(int num_pending) {
    Fiber& self = cluster().fibers[place().number];
    if ((int)self.groups.size() <= num_pending) return;
    const auto pending = self.groups.end() - num_pending;
    const std::size_t num_copies = pending[-1];
    for (std::size_t i = 0; i < num_copies; i++) {
        const Copy& copy = self.copies[i];
        check::copy_done(copy.shared);
        if (copy.is_there) {
            memcpy(copy.shared, copy.global, 16);
        } else {
            memset(copy.shared, 0, 16);
        }
    }
    self.copies.erase(self.copies.begin(), self.copies.begin() + num_copies);
    self.groups.erase(self.groups.begin(), pending);
    for (std::size_t& end : self.groups) end -= num_copies;
}

void note_wait() {
    cluster().fibers[place().number].has_waited = true;
    check::waited();
}

float f16_to_float(u16 bits) {
    const u32 sign = (u32)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000 | fraction << 13);
    if (exponent != 0) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
    const float magnitude = (float)fraction * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

// To the nearest, halves to the even; beyond the greatest finite number: that one.
u16 f16_from_float(float x) {
    if (std::isnan(x)) return 0x7fff;
    const u16 sign = (u16)(__float_as_uint(x) >> 16 & 0x8000);
    const float magnitude = fabsf(x);
    if (magnitude >= 65504.0f) return sign | 0x7bff;
    if (magnitude < 6.103515625e-5f) return sign | (u16)lrintf(magnitude * 16777216.0f);
    const u32 bits = __float_as_uint(magnitude);
    return sign | (u16)((bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13);
}

} // namespace shim

// Runs a kernel, cluster after cluster of `cluster_size` blocks. Returns 1, 0 if it could not be laid out, or 2 if the checker has
// found faults.
extern "C" int shim_launch(void (*kernel)(void**), const u32* grid, const u32* dim, u32 cluster_size, u32 shared_bytes,
                           void** args) {
    using namespace shim;
    static thread_local Cluster own;
    const unsigned num_threads = dim[0] * dim[1] * dim[2];
    if (num_threads == 0 || num_threads > MAX_THREADS || num_threads % 32 != 0) return 0;
    if (grid[0] > 0x7fffffff || grid[1] > 0xffff || grid[2] > 0xffff || dim[2] > 64) return 0;
    if (cluster_size == 0 || cluster_size > MAX_CLUSTER || grid[0] % cluster_size != 0) return 0;
    if (shared_bytes > (227u << 10)) return 0;
    if (own.memory == MAP_FAILED) {
        // Pages are there once they are touched. Stacks begin at multiples of their size.
        own.memory = mmap(nullptr, (MAX_FIBERS + 1) * STACK_BYTES, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (own.memory == MAP_FAILED) return 0;
        own.stacks = static_cast<u8*>(own.memory) + (STACK_BYTES - (uintptr_t)own.memory % STACK_BYTES);
        own.fibers.resize(MAX_FIBERS);
    }
    own.kernel = kernel;
    own.args = args;
    own.block_threads = num_threads;
    const std::size_t pitch = (shared_bytes + 127) / 128 * 128;
    std::vector<u8> memory(cluster_size * pitch + 128);
    u8* first = memory.data() + (128 - (uintptr_t)memory.data() % 128) % 128;
    std::vector<u8*> memories;
    for (u32 rank = 0; rank < cluster_size; rank++) memories.push_back(first + rank * pitch);
    Place place = {};
    place.shared_bytes = shared_bytes;
    place.grid_dim = {grid[0], grid[1], grid[2]};
    place.block_dim = {dim[0], dim[1], dim[2]};
    check::begin_launch();
    for (unsigned z = 0; z < grid[2]; z++) {
        for (unsigned y = 0; y < grid[1]; y++) {
            for (unsigned x = 0; x < grid[0]; x += cluster_size) {
                memset(first, 0xff, cluster_size * pitch);
                place.block = {x, y, z};
                run_cluster(own, place, cluster_size, memories.data());
                own.backwards = !own.backwards;
            }
        }
    }
    return check::end_launch() ? 1 : 2;
}
