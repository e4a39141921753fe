// What a profiler would count of the loads and stores of warps: the wavefronts that a request takes in shared memory, whose 32 banks
// give a word of 4 bytes each, and the sectors of 32 bytes that it takes of device memory; and how many it would need if none of
// its banks had two words to give, none of its sectors bytes that no lane asked for.
//
// Lanes' accesses are one request if they come from one instruction, and are each lane's n-th there: where lanes pass an instruction by
// that others carry out, some are put together that are not. Not counted are copies of boxes, products of warpgroups, and atomics.
#pragma once

#include "check.h"

#ifdef SCONCE_CHECKED
#include <map>
#include <string>

namespace shim {
namespace check {

// An instruction, and what it does there: a copy to shared memory does both.
struct Instruction {
    const void* pc;
    bool is_shared, is_write;
    // Of what is longer than the longest instruction.
    u8 piece;
    bool operator<(const Instruction& other) const {
        return std::tie(pc, is_shared, is_write, piece) < std::tie(other.pc, other.is_shared, other.is_write, other.piece);
    }
};

// Of an instruction's requests: wavefronts or sectors.
struct Tally {
    u64 requests = 0, taken = 0, needed = 0;
};

// Of what one thread of the machine runs.
class Accesses {
  public:
    // A thread of the cluster has an access of `len` bytes, at most 16.
    void count(u64 address, u32 len, const Instruction& at, u32 thread);
    // A cluster's warps have ended.
    void end_cluster();
    // And all of a launch: all threads' tallies have them.
    void end_launch(const std::string& kernel);

  private:
    struct Request {
        u64 addresses[32];
        u32 lanes = 0;
        u8 len = 0;
    };
    // Of a warp: requests that some lane is still to make, and how many each lane has made.
    struct Site {
        std::vector<Request> open;
        u32 num_closed = 0, made[32] = {};
    };
    void close(const Instruction& at, const Request& request);

    std::vector<std::map<Instruction, Site>> warps;
    std::map<Instruction, Tally> tallies;
};

// Whether this thread of the machine's launches have their accesses counted, and nothing checked: with SCONCE_HOST_CHECK=accesses, or
// where `shim_count_accesses` says so.
bool counts_accesses();

} // namespace check
} // namespace shim
#endif
