// Counting what warps' accesses take: accesses.h.
#include "../lib/platform.h"
#include "accesses.h"

#ifdef SCONCE_CHECKED
#include <dlfcn.h>
#include <mutex>

namespace shim {
namespace check {
namespace {

constexpr u32 NUM_BANKS = 32, WORD = 4, SECTOR = 32;

// Kernels' tallies, of all threads of the machine.
struct Kernels {
    std::mutex lock;
    std::map<std::string, std::map<Instruction, Tally>> tallies;
};
Kernels& kernels() {
    static Kernels all;
    return all;
}

// Sorts numbers, and leaves each of them once.
void keep_once(std::vector<u64>& numbers) {
    std::sort(numbers.begin(), numbers.end());
    numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
}

// The words that the lanes of a group ask for, and the most that are in one bank.
std::vector<u64> words_of(const u64* addresses, u32 lanes, u32 len, u32 first, u32 group, u32* most) {
    std::vector<u64> words;
    for (u32 lane = first; lane < std::min(first + group, 32u); lane++) {
        if (!(lanes >> lane & 1)) continue;
        for (u64 at = addresses[lane] / WORD; at * WORD < addresses[lane] + len; at++) words.push_back(at);
    }
    keep_once(words);
    u32 of_bank[NUM_BANKS] = {};
    *most = 0;
    for (u64 word : words) *most = std::max(*most, ++of_bank[word % NUM_BANKS]);
    return words;
}

// Lanes go together whose bytes can be one wavefront's, 8 of 16 bytes each; all of them where their words have a bank each, as
// they have where all ask for the same ones.
void count_wavefronts(const u64* addresses, u32 lanes, u32 len, Tally& tally) {
    u32 most;
    const auto words = words_of(addresses, lanes, len, 0, 32, &most);
    tally.needed += (words.size() + NUM_BANKS - 1) / NUM_BANKS;
    const u32 group = most <= 1 || len <= WORD ? 32 : 32 * WORD / len;
    for (u32 first = 0; first < 32; first += group) {
        words_of(addresses, lanes, len, first, group, &most);
        tally.taken += most;
    }
}

void count_sectors(const u64* addresses, u32 lanes, u32 len, Tally& tally) {
    std::vector<u64> bytes, sectors;
    for (u32 lane = 0; lane < 32; lane++) {
        if (!(lanes >> lane & 1)) continue;
        for (u64 at = addresses[lane]; at < addresses[lane] + len; at++) bytes.push_back(at);
    }
    keep_once(bytes);
    for (u64 at : bytes) sectors.push_back(at / SECTOR);
    keep_once(sectors);
    tally.taken += sectors.size();
    tally.needed += (bytes.size() + SECTOR - 1) / SECTOR;
}

// At the end of the process: where SCONCE_HOST_ACCESSES says, the library, then a line of each kernel's instructions. Other libraries
// may do the same.
void write_all() {
    const char* path = getenv("SCONCE_HOST_ACCESSES");
    FILE* file = path == nullptr || kernels().tallies.empty() ? nullptr : fopen(path, "a");
    if (file == nullptr) return;
    Dl_info own;
    if (dladdr((const void*)&write_all, &own) != 0) {
        fprintf(file, "library %s\n", own.dli_fname);
        for (const auto& [kernel, tallies] : kernels().tallies) {
            for (const auto& [at, tally] : tallies) {
                // The address behind a call is the next line's, mostly.
                const std::size_t offset = (const char*)at.pc - (const char*)own.dli_fbase - 1;
                fprintf(file, "%s %s %s %#zx %llu %llu %llu\n", kernel.c_str(), at.is_shared ? "shared" : "device",
                        at.is_write ? "write" : "read", offset, tally.requests, tally.taken, tally.needed);
            }
        }
    }
    fclose(file);
}

// Whether all launches are counted.
bool counts_all() {
    static const bool counts = [] {
        const char* how = getenv("SCONCE_HOST_CHECK");
        const bool counts = how != nullptr && strcmp(how, "accesses") == 0;
        // What is made before it is asked for ends after it.
        kernels();
        if (counts) atexit(write_all);
        return counts;
    }();
    return counts;
}

bool& counts_of_thread() {
    static thread_local bool counts = counts_all();
    return counts;
}

} // namespace

bool counts_accesses() { return counts_of_thread(); }

void Accesses::count(u64 address, u32 len, const Instruction& at, u32 thread) {
    const u32 warp = thread / 32, lane = thread % 32;
    if (warp >= warps.size()) warps.resize(warp + 1);
    Site& site = warps[warp][at];
    const u32 number = site.made[lane]++;
    if (number - site.num_closed >= site.open.size()) site.open.resize(number - site.num_closed + 1);
    Request& request = site.open[number - site.num_closed];
    request.addresses[lane] = address;
    request.lanes |= 1u << lane;
    request.len = (u8)len;
    std::size_t whole = 0;
    while (whole < site.open.size() && site.open[whole].lanes == FULL_WARP) close(at, site.open[whole++]);
    site.open.erase(site.open.begin(), site.open.begin() + whole);
    site.num_closed += whole;
}

void Accesses::close(const Instruction& at, const Request& request) {
    Tally& tally = tallies[at];
    tally.requests++;
    if (at.is_shared) {
        count_wavefronts(request.addresses, request.lanes, request.len, tally);
    } else {
        count_sectors(request.addresses, request.lanes, request.len, tally);
    }
}

void Accesses::end_cluster() {
    for (const auto& sites : warps) {
        for (const auto& [at, site] : sites) {
            for (const Request& request : site.open) close(at, request);
        }
    }
    warps.clear();
}

void Accesses::end_launch(const std::string& kernel) {
    end_cluster();
    const std::lock_guard<std::mutex> lock(kernels().lock);
    for (const auto& [at, tally] : tallies) {
        Tally& all = kernels().tallies[kernel][at];
        all.requests += tally.requests;
        all.taken += tally.taken;
        all.needed += tally.needed;
    }
    tallies.clear();
}

} // namespace check
} // namespace shim

// Whether this thread's launches are counted from now on.
extern "C" void shim_count_accesses(u32 counts) { shim::check::counts_of_thread() = counts != 0; }
// What was counted of a kernel: requests, and what they took and needed.
extern "C" void shim_accesses(const char* kernel, u32 is_shared, u32 is_write, u64* counts) {
    using namespace shim::check;
    const std::lock_guard<std::mutex> lock(kernels().lock);
    counts[0] = counts[1] = counts[2] = 0;
    for (const auto& [at, tally] : kernels().tallies[kernel]) {
        if (at.is_shared != (is_shared != 0) || at.is_write != (is_write != 0)) continue;
        counts[0] += tally.requests, counts[1] += tally.taken, counts[2] += tally.needed;
    }
}
#endif
