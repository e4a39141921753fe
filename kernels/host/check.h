// The checker: what compute-sanitizer would find on a GPU, found on the host shim. Kernels are compiled with the compiler's own
// marks at loads and stores (-fsanitize=thread), which come here in place of its library. Found are
// - races: two threads at one place in shared or device memory, one of them writing, and no barrier, copy or fence between them. It is
//   not asked what did happen, but what orders the two: a mistake is found in whatever order fibers run;
// - what a thread wrote and did not publish, read by a product of a warpgroup or overwritten by a copy of a box;
// - loads and stores beyond a block's shared memory, and beyond every allocation;
// - what is read ahead of the wait for the kernel before and may be written by kernels that have not ended (`let_next_begin`);
// - addresses that are not aligned to what is loaded, shifts by too much, and other things that a GPU does differently.
//
// Order is that of vector clocks: each thread has a time, and knows a time of every other one. Shuffles, votes and products of warps
// order no memory; `__syncwarp` does.
#pragma once

#ifdef SCONCE_CHECKED
#include <map>
#include <memory>
#include <vector>
// Without marks, and never inlined: `__builtin_return_address(0)` is its caller's place in the program.
#define UNCHECKED __attribute__((no_sanitize("thread"), noinline))
#else
#define UNCHECKED
#endif

namespace shim {
struct Checker;
namespace check {

#ifdef SCONCE_CHECKED

// Of each of a cluster's threads, and of what copies for it, a time: all that it did until then comes before.
using Times = std::shared_ptr<const std::vector<u32>>;

// What comes before something.
struct Known {
    Times own;
    // Of clusters that ran earlier, by number: what fences and atomics tell of them.
    std::shared_ptr<const std::map<u64, Times>> others;
};

// What a thread knows to come before it; what it has fenced, which others may learn of by an atomic; what it has read of atomics,
// which it knows once it has fenced again.
struct Order {
    Known known, fenced, read;
};

// Threads that meet at a barrier: each knows afterwards what any of them knew.
class Meeting {
  public:
    // One comes, one may go, and all are there.
    void arrive();
    void leave() const;
    void all_there();

  private:
    Order pending, done;
    // The threads that came, each with its time.
    std::vector<std::pair<u32, u32>> times;
};

// A launch, and each of its clusters: blocks of so many threads whose shared memory has so many bytes, at `first` and every `pitch`.
void begin_launch();
// Whether no fault was found.
bool end_launch();
Checker* begin_cluster(u64 number, unsigned num_threads, unsigned block_threads, u8* first, std::size_t pitch, u32 shared_bytes);
// Memory that threads may use and that is nobody else's matter.
void ignore(const void* at, std::size_t bytes, unsigned which);

// The thread that runs waits for the kernel before, or lets the next one begin.
void waited();
void let_next();
// __threadfence; and what a thread wrote is published to copies and products.
void fence();
void publish();
void atomic(void* at, u32 len);
// A store of what others store there too.
void alike(void* at, u32 len, const void* pc);
// A load or a store of a vector as a whole, by an instruction at `pc`.
void vector_reads(const void* at, u32 len, const void* pc);
void vector_writes(const void* at, u32 len, const void* pc);
// A copy of 16 bytes is asked for, and is there.
void copy_asked(void* shared, const void* global, bool is_there, const void* pc);
void copy_done(void* shared);
// A barrier that counts bytes is made; a thread arrives; its phase is over; a thread has waited for that.
void barrier_made(const void* barrier);
void barriers_published();
void barrier_arrived(const void* barrier);
void barrier_flipped(const void* barrier);
void barrier_passed(const void* barrier);
// A box's piece is asked for, which that barrier counts. `global` is null where it is zeros.
void begin_box(const void* barrier);
void box_piece(const void* barrier, void* shared, const void* global, u32 global_bytes);
// `ldmatrix`: the address that a thread gives, and what it gets.
void matrix_row(const void* row, const void* pc);
void matrix_reads(const void* at, u32 len, const void* pc);
// A product of warpgroups reads.
void product_reads(const void* shared, u32 len);
// A thread reads another block's shared memory.
void remote_reads(const void* at, u32 len, const void* pc);

#else

struct Meeting {
    void arrive() {}
    void leave() const {}
    void all_there() {}
};
inline void begin_launch() {}
inline bool end_launch() { return true; }
inline Checker* begin_cluster(u64, unsigned, unsigned, u8*, std::size_t, u32) { return nullptr; }
inline void ignore(const void*, std::size_t, unsigned) {}
inline void waited() {}
inline void let_next() {}
inline void fence() {}
inline void publish() {}
inline void atomic(void*, u32) {}
inline void alike(void*, u32, const void*) {}
inline void copy_asked(void*, const void*, bool, const void*) {}
inline void copy_done(void*) {}
inline void barrier_made(const void*) {}
inline void barriers_published() {}
inline void barrier_arrived(const void*) {}
inline void barrier_flipped(const void*) {}
inline void barrier_passed(const void*) {}
inline void begin_box(const void*) {}
inline void box_piece(const void*, void*, const void*, u32) {}
inline void matrix_row(const void*, const void*) {}
inline void matrix_reads(const void*, u32, const void*) {}
inline void product_reads(const void*, u32) {}
inline void remote_reads(const void*, u32, const void*) {}

#endif

} // namespace check
} // namespace shim
