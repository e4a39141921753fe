// What the checker knows of a launch: check.h.
#pragma once

#include "accesses.h"
#include "clocks.h"
#include "shadow.h"

#ifdef SCONCE_CHECKED
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>

namespace shim {
namespace check {

// Barriers that count bytes in a cluster, each with a clock.
constexpr std::size_t MAX_COPIERS = 512;

struct Thread {
    Order order;
    // From 1 on; what it published until then.
    u32 time = 1, published = 0;
    bool has_waited = false;
};

// A barrier that counts bytes, and the copies that it counts, as if one thread made them.
struct CopyOrder {
    u32 maker = 0, made = 0, copier = 0, copier_time = 0;
    bool is_published = false;
    Times pending, done;
};

// A kernel that may not have ended when the next one begins: the bytes of words that it wrote, and whether it let the next one begin
// ahead of its own wait.
struct Ran {
    std::string kernel;
    std::unordered_map<u64, u8> written;
    bool is_early;
};

// Kernels in order, the latest last. Whichever thread carries out a call takes the lock.
struct Stream {
    std::mutex lock;
    std::vector<Ran> ran;
};

} // namespace check

// A launch, and the cluster that runs.
struct Checker {
    std::string kernel = "a kernel";
    check::Stream* stream = nullptr;
    bool overlaps = false;
    // Whether accesses are counted, and nothing is checked.
    bool counts = false;
    // Whether some thread let the next kernel begin ahead of its wait.
    bool is_early = false;
    unsigned block_threads = 0, num_blocks = 0;
    // In words, and the places where they are.
    std::string faults;
    std::set<std::pair<const void*, const void*>> told;
    u64 cluster = 0;
    u8* first = nullptr;
    std::size_t pitch = 0;
    u32 shared_bytes = 0;
    std::vector<check::Thread> threads;
    // By the barriers' addresses.
    std::map<const void*, check::CopyOrder> copies;
    // What is known by an atomic of who has written it.
    std::map<const void*, check::Known> atomics;
    std::pair<u64, u64> ignored[2], thread_locals;
    // What is in shared memory, and in the device's.
    check::Shadow of_blocks, of_device;
    // Words of device memory that were written, and that were read ahead of a wait.
    std::vector<u64> written, early;
    check::Accesses accesses;
};

} // namespace shim
#endif
