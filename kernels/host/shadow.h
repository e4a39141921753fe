// What the checker remembers of memory: who used each word of 8 bytes last. check.h says what for.
#pragma once

#include "check.h"

#ifdef SCONCE_CHECKED
namespace shim {
namespace check {

// What a use of memory is.
enum Use : u8 {
    READ = 0,
    WRITE = 1,
    ATOMIC = 2 | WRITE,
    // By a copy of a box or a product of a warpgroup: what a thread wrote must have been published.
    ASYNC = 4,
    // With a value that all write who write there (`store_alike`).
    ALIKE = 8,
};

// One use of some bytes of a word: by which thread, or copy, of which cluster, when, and where in the program.
struct Slot {
    u64 cluster = 0;
    const void* pc = nullptr;
    u32 time = 0;
    u16 who = 0;
    u8 bytes = 0, use = 0;
};

// The latest uses that do not follow one from another; where there is no room for all, some are forgotten. And which bytes were
// read ahead of a wait for the kernel before, where, and which were written.
struct Word {
    Slot slots[4];
    u64 stamp = 0;
    const void* early_pc = nullptr;
    u8 early_bytes = 0, written_bytes = 0;
};

// Words that are found by their address, as long as a launch takes: pages of neighbours, as threads use those together.
class Shadow {
  public:
    // All that was remembered is forgotten.
    void forget() { now++, num_pages = 0; }
    // The word of an address that is a multiple of 8, empty if it was not used since.
    Word& at(u64 address) {
        const u64 number = address / 8 / PAGE_WORDS;
        if (number != last_number || last_stamp != now) find(number);
        Word& word = last_page[address / 8 % PAGE_WORDS];
        if (word.stamp != now) word = Word(), word.stamp = now;
        return word;
    }

  private:
    static constexpr u64 PAGE_WORDS = 64;
    struct Entry {
        u64 number = 0, stamp = 0;
        Word* page = nullptr;
    };
    void find(u64 number);
    Entry& entry_of(u64 number);

    // Those of this stamp are in use; pages are used again.
    std::vector<Entry> entries;
    std::vector<std::unique_ptr<Word[]>> pages;
    std::size_t num_pages = 0;
    u64 now = 1, last_number = 0, last_stamp = 0;
    Word* last_page = nullptr;
};

// The allocation that an address is in: the first byte and the one behind the last. Both 0 where there is none.
std::pair<u64, u64> allocation_of(u64 address);
// The bounds of the library's own constants, and of its variables of this thread.
bool is_constant(u64 address);
std::pair<u64, u64> thread_locals();

} // namespace check
} // namespace shim
#endif
