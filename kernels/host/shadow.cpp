// The checker's memory of memory: shadow.h.
#include "../lib/platform.h"
#include "shadow.h"

#ifdef SCONCE_CHECKED
#include <link.h>

#include <atomic>
#include <mutex>
#include <shared_mutex>

namespace shim {
namespace check {

namespace {

// Allocations by address, of all devices.
std::shared_mutex allocations_lock;
std::map<u64, u64> allocations;
std::atomic<u64> num_changes{1};

// The library's segments, and its variables of this thread.
struct Bounds {
    std::vector<std::pair<u64, u64>> segments;
    std::pair<u64, u64> thread_locals;
};

int find_own(dl_phdr_info* info, std::size_t, void* data) {
    const u64 own = (u64)(uintptr_t)&find_own;
    Bounds bounds;
    bool is_own = false;
    const u64 variables = (u64)(uintptr_t)info->dlpi_tls_data;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto& header = info->dlpi_phdr[i];
        const u64 first = info->dlpi_addr + header.p_vaddr, end = first + header.p_memsz;
        if (header.p_type == PT_LOAD) bounds.segments.push_back({first, end});
        if (header.p_type == PT_LOAD && own >= first && own < end) is_own = true;
        if (header.p_type == PT_TLS) bounds.thread_locals = {variables, variables + header.p_memsz};
    }
    if (is_own) *static_cast<Bounds*>(data) = bounds;
    return is_own;
}

Bounds own_bounds() {
    Bounds bounds;
    dl_iterate_phdr(find_own, &bounds);
    return bounds;
}

} // namespace

Shadow::Entry& Shadow::entry_of(u64 number) {
    const std::size_t mask = entries.size() - 1;
    std::size_t i = number * 0x9e3779b97f4a7c15ull >> 20 & mask;
    while (entries[i].stamp == now && entries[i].number != number) i = (i + 1) & mask;
    return entries[i];
}

void Shadow::find(u64 number) {
    if (2 * (num_pages + 1) > entries.size()) {
        std::vector<Entry> old(std::max<std::size_t>(1 << 8, 2 * entries.size()));
        old.swap(entries);
        for (const Entry& entry : old) {
            if (entry.stamp == now) entry_of(entry.number) = entry;
        }
    }
    Entry& entry = entry_of(number);
    if (entry.stamp != now) {
        if (num_pages == pages.size()) pages.emplace_back(new Word[PAGE_WORDS]);
        entry = {number, now, pages[num_pages++].get()};
    }
    last_number = number;
    last_stamp = now;
    last_page = entry.page;
}

std::pair<u64, u64> allocation_of(u64 address) {
    static thread_local std::pair<u64, u64> last;
    static thread_local u64 last_change = 0;
    if (last_change == num_changes.load(std::memory_order_acquire) && address >= last.first && address < last.second) {
        return last;
    }
    std::shared_lock<std::shared_mutex> lock(allocations_lock);
    last_change = num_changes.load(std::memory_order_acquire);
    auto next = allocations.upper_bound(address);
    last = next == allocations.begin() ? std::pair<u64, u64>() : std::pair<u64, u64>(*std::prev(next));
    return address < last.second ? last : std::pair<u64, u64>();
}

bool is_constant(u64 address) {
    static const auto segments = own_bounds().segments;
    return std::any_of(segments.begin(), segments.end(),
                       [&](const auto& s) { return address >= s.first && address < s.second; });
}

std::pair<u64, u64> thread_locals() {
    static thread_local const auto bounds = own_bounds().thread_locals;
    return bounds;
}

} // namespace check
} // namespace shim

// The tests' device has allocated memory, or given it back.
extern "C" void shim_check_allocated(u64 address, u64 bytes) {
    std::unique_lock<std::shared_mutex> lock(shim::check::allocations_lock);
    shim::check::allocations[address] = address + bytes;
    shim::check::num_changes++;
}
extern "C" void shim_check_freed(u64 address) {
    std::unique_lock<std::shared_mutex> lock(shim::check::allocations_lock);
    shim::check::allocations.erase(address);
    shim::check::num_changes++;
}
#endif
