// The checker's threads, and what they do: check.h.
#include "../lib/platform.h"
#include "checker.h"

#ifdef SCONCE_CHECKED
#include <dlfcn.h>

namespace shim {
namespace check {
namespace {

// Of this thread of the machine, and of the fiber that runs.
Checker& of_thread() {
    static thread_local Checker checker;
    return checker;
}
Checker& checker() { return *place().checker; }

Thread& self() { return checker().threads[thread_number()]; }

std::size_t num_clocks() { return checker().threads.size() + MAX_COPIERS; }

// The line of the program, as far as the machine has the tools to tell.
std::string line_of(const void* pc) {
    Dl_info info;
    if (pc == nullptr || dladdr(pc, &info) == 0) return "?";
    char command[512], text[1024] = "";
    const std::size_t offset = (std::size_t)((const char*)pc - (const char*)info.dli_fbase) - 1;
    snprintf(command, sizeof command, "addr2line -Cpife '%s' 0x%zx 2>/dev/null", info.dli_fname, offset);
    FILE* pipe = popen(command, "r");
    if (pipe == nullptr) return "?";
    text[fread(text, 1, sizeof text - 1, pipe)] = 0;
    pclose(pipe);
    return text;
}

// A fault, told once a launch for each pair of places.
void tell(Checker& own, const std::string& what, const void* pc, const void* other) {
    if (!own.told.insert({pc, other}).second) return;
    std::string text = what + "\n  at " + line_of(pc);
    if (other != nullptr) text += "  and " + line_of(other);
    fprintf(stderr, "checker: %s: %s\n", own.kernel.c_str(), text.c_str());
    own.faults += text;
}

// The same of the thread that runs.
void report(const std::string& what, const void* pc, const void* other = nullptr) {
    const dim3 block = place().block;
    char thread[64];
    snprintf(thread, sizeof thread, "block (%u, %u, %u), thread %u: ", block.x, block.y, block.z, thread_of_block());
    tell(checker(), thread + what, pc, other);
}

const char* name_of(u8 use) {
    if (use & ASYNC) return use & WRITE ? "a copy of a box" : "a product's read";
    return (use & ATOMIC) == ATOMIC ? "an atomic" : use & WRITE ? "a write" : "a read";
}

// Whether what a thread knows comes after a use.
bool comes_after(const Order& order, const Slot& slot) {
    if (slot.cluster == checker().cluster) return order.known.own && (*order.known.own)[slot.who] >= slot.time;
    if (!order.known.others) return false;
    const auto found = order.known.others->find(slot.cluster);
    return found != order.known.others->end() && (*found->second)[slot.who] >= slot.time;
}

// Notes the use of some bytes of a word, and reports what it is in a race with. `who`: the thread that runs, or a copier for it.
void use_word(Word& word, const Slot& use, const char* memory) {
    const Checker& own = checker();
    const Order& order = self().order;
    Slot* room = nullptr;
    // As it did before, since it has waited for nothing: who came between has been compared with that.
    for (const Slot& slot : word.slots) {
        if (slot.time == use.time && slot.who == use.who && slot.cluster == use.cluster && slot.bytes == use.bytes &&
            slot.use == use.use) {
            return;
        }
    }
    for (Slot& slot : word.slots) {
        if (slot.bytes == 0) {
            if (room == nullptr) room = &slot;
            continue;
        }
        const bool is_same_cluster = slot.cluster == own.cluster;
        if (!(slot.bytes & use.bytes)) continue;
        if ((use.use & ASYNC) && (slot.use & WRITE) && !(slot.use & ASYNC) && is_same_cluster &&
            own.threads[slot.who].published < slot.time) {
            report(std::string(name_of(use.use)) + " of what was written and not published", use.pc, slot.pc);
        }
        const bool is_own = is_same_cluster && slot.who == use.who;
        if (is_own || comes_after(order, slot)) {
            // What comes after both comes after this one; what is in a race with the other is in one with this, unless it only reads.
            if ((slot.bytes & ~use.bytes) == 0 && ((use.use & WRITE) || !(slot.use & WRITE))) room = &slot;
            continue;
        }
        if ((slot.use & use.use & ATOMIC) == ATOMIC && slot.bytes == use.bytes) {
            // Atomics at one place come one after another, and what this thread does there now after both.
            room = &slot;
            continue;
        }
        const bool is_race = ((slot.use | use.use) & WRITE) && !((slot.use & use.use & ATOMIC) == ATOMIC);
        const auto can_be_alike = [](u8 use) { return (use & ALIKE) || !(use & WRITE); };
        const bool is_alike = ((slot.use | use.use) & ALIKE) && can_be_alike(slot.use) && can_be_alike(use.use);
        if (is_race && !is_alike) {
            std::string who = is_same_cluster ? "thread " + std::to_string(slot.who % own.block_threads) : "another block";
            if (slot.who >= own.threads.size()) who = "a copy";
            report(std::string(name_of(use.use)) + " of " + memory + " memory, and " + name_of(slot.use) + " by " + who +
                       " that nothing orders",
                   use.pc, slot.pc);
        }
    }
    static thread_local u32 chance = 1;
    chance = chance * 1664525 + 1013904223;
    if (room == nullptr) room = &word.slots[chance >> 30];
    *room = use;
}

bool is_in(u64 address, std::pair<u64, u64> bounds) { return address >= bounds.first && address < bounds.second; }

// A use of `len` bytes, by the thread that runs or by a copier for it.
void use(u64 address, u64 len, u8 how, const void* pc, u32 who, u32 time, bool is_remote = false) {
    Checker& own = checker();
    if (len == 0 || own.counts) return;
    for (const auto& bounds : own.ignored) {
        if (is_in(address, bounds)) return;
    }
    Shadow* shadow = &own.of_blocks;
    const char* memory = "shared";
    const u64 first = (u64)(uintptr_t)own.first;
    if (is_in(address, {first, first + own.num_blocks * own.pitch})) {
        const u64 start = is_remote ? first + (address - first) / own.pitch * own.pitch : (u64)(uintptr_t)place().shared;
        if (address < start || address + len > start + own.shared_bytes) {
            return report(std::string(name_of(how)) + " beyond the block's shared memory", pc);
        }
    } else if (!is_in(address, own.thread_locals)) {
        const auto allocation = allocation_of(address);
        if (allocation.second == 0) {
            if (is_constant(address) && !(how & WRITE)) return;
            char text[64];
            snprintf(text, sizeof text, " of no allocation, %#llx", address);
            return report(name_of(how) + std::string(text), pc);
        }
        if (address + len > allocation.second) {
            return report(name_of(how) + (" of " + std::to_string(len) + " bytes, " +
                                          std::to_string(address + len - allocation.second) + " beyond an allocation of " +
                                          std::to_string(allocation.second - allocation.first)),
                          pc);
        }
        shadow = &own.of_device;
        memory = "device";
    }
    for (u64 at = address & ~7ull; at < address + len; at += 8) {
        const u64 low = std::max(at, address) - at, high = std::min(at + 8, address + len) - at;
        const u8 bytes = (u8)((1u << high) - (1u << low));
        Word& word = shadow->at(at);
        if (shadow == &own.of_device) {
            if (how & WRITE) {
                if (word.written_bytes == 0) own.written.push_back(at);
                word.written_bytes |= bytes;
                if (!self().has_waited) report("a write ahead of the wait for the kernel before", pc);
            } else if (!self().has_waited) {
                if (word.early_bytes == 0) own.early.push_back(at);
                word.early_bytes |= bytes;
                word.early_pc = pc;
            }
        }
        use_word(word, {own.cluster, pc, time, (u16)who, bytes, how}, memory);
    }
}

void use(const void* at, u64 len, u8 how, const void* pc) {
    use((u64)(uintptr_t)at, len, how, pc, thread_number(), self().time);
}

// Where accesses are counted: those of shared and of device memory.
void count(u64 address, u64 len, bool is_write, const void* pc) {
    Checker& own = checker();
    for (const auto& bounds : own.ignored) {
        if (is_in(address, bounds)) return;
    }
    const u64 first = (u64)(uintptr_t)own.first;
    const bool is_shared = is_in(address, {first, first + own.num_blocks * own.pitch}) || is_in(address, own.thread_locals);
    if (!is_shared && allocation_of(address).second == 0) return;
    for (u64 done = 0; done < len; done += 16) {
        const Instruction at = {pc, is_shared, is_write, (u8)(done / 16)};
        own.accesses.count(address + done, (u32)std::min<u64>(len - done, 16), at, thread_number());
    }
}

// A load or a store of the thread that runs, as a program has them.
void load_or_store(const void* address, u64 len, u8 how, const void* pc) {
    if (!checker().counts) return use(address, len, how, pc);
    count((u64)(uintptr_t)address, len, how & WRITE, pc);
}

CopyOrder& order_of(const void* barrier, const void* pc) {
    const auto found = checker().copies.find(barrier);
    if (found == checker().copies.end()) give_up("the checker does not know the barrier");
    CopyOrder& order = found->second;
    const Slot made = {checker().cluster, nullptr, order.made, (u16)order.maker, 0, WRITE};
    if (order.maker != thread_number() && !comes_after(self().order, made)) {
        report("a barrier is used, and nothing orders that it was made before", pc);
    }
    return order;
}

} // namespace

void Meeting::arrive() {
    Thread& thread = self();
    learn(pending, thread.order);
    times.push_back({thread_number(), thread.time++});
}

void Meeting::all_there() {
    std::vector<u32> own = pending.known.own ? *pending.known.own : std::vector<u32>(num_clocks());
    for (const auto& [who, time] : times) own[who] = std::max(own[who], time);
    pending.known.own = std::make_shared<const std::vector<u32>>(std::move(own));
    done = std::exchange(pending, {});
    times.clear();
}

void Meeting::leave() const { learn(self().order, done); }

void begin_launch() {
    Checker& own = of_thread();
    own.faults.clear();
    own.counts = counts_accesses();
    own.told.clear();
    own.is_early = false;
    own.of_device.forget();
    own.written.clear();
    own.early.clear();
    own.atomics.clear();
    own.thread_locals = thread_locals();
}

bool end_launch() {
    Checker& own = of_thread();
    if (own.counts) own.accesses.end_launch(own.kernel);
    if (own.stream == nullptr) return own.faults.empty();
    const std::lock_guard<std::mutex> lock(own.stream->lock);
    auto& ran = own.stream->ran;
    if (!own.overlaps) ran.clear();
    // Those that may run when this one begins: the one before it, and as long as they let the next one begin at once the ones before.
    std::size_t first = ran.size();
    while (first > 0 && (first == ran.size() || ran[first].is_early)) first--;
    ran.erase(ran.begin(), ran.begin() + first);
    for (u64 address : own.early) {
        const Word& word = own.of_device.at(address);
        for (const Ran& before : ran) {
            const auto found = before.written.find(address);
            if (found == before.written.end() || !(found->second & word.early_bytes)) continue;
            const std::string what = "a read ahead of the wait of what " + before.kernel + " writes, which may not have ended";
            tell(own, what, word.early_pc, nullptr);
        }
    }
    Ran now = {own.kernel, {}, own.is_early};
    for (u64 address : own.written) now.written[address] = own.of_device.at(address).written_bytes;
    ran.push_back(std::move(now));
    return own.faults.empty();
}

Checker* begin_cluster(u64 number, unsigned num_threads, unsigned block_threads, u8* first, std::size_t pitch, u32 shared_bytes) {
    Checker& own = of_thread();
    own.accesses.end_cluster();
    own.cluster = number;
    own.block_threads = block_threads;
    own.num_blocks = num_threads / block_threads;
    own.first = first;
    own.pitch = pitch;
    own.shared_bytes = shared_bytes;
    own.threads.assign(num_threads, {});
    own.copies.clear();
    own.of_blocks.forget();
    return &own;
}

void ignore(const void* at, std::size_t bytes, unsigned which) {
    const u64 first = (u64)(uintptr_t)at;
    of_thread().ignored[which] = {first, first + bytes};
}

void waited() { self().has_waited = true; }

void let_next() { checker().is_early |= !self().has_waited; }

void fence() {
    Thread& thread = self();
    learn(thread.order.known, thread.order.read);
    thread.order.fenced = thread.order.known;
    thread.order.fenced.own = with(thread.order.known.own, thread_number(), thread.time++, num_clocks());
}

void publish() {
    Thread& thread = self();
    thread.published = thread.time++;
}

void atomic(void* at, u32 len) {
    const void* pc = __builtin_return_address(0);
    use((u64)(uintptr_t)at, len, ATOMIC, pc, thread_number(), self().time);
    Order& order = self().order;
    // Under this cluster's number, for others to find.
    const auto mine = [](const Times& times) {
        return times ? std::make_shared<const std::map<u64, Times>>(std::map<u64, Times>{{checker().cluster, times}}) : nullptr;
    };
    Known& told = checker().atomics[at];
    learn(order.read, told);
    if (told.others && told.others->count(checker().cluster) != 0) {
        learn(order.read, {told.others->at(checker().cluster), nullptr});
    }
    learn(told, {nullptr, mine(order.fenced.own)});
    learn(told, {nullptr, order.fenced.others});
}

void alike(void* at, u32 len, const void* pc) { load_or_store(at, len, WRITE | ALIKE, pc); }

void copy_asked(void* shared, const void* global, bool is_there, const void* pc) {
    if (is_there) load_or_store(global, 16, READ, pc);
    load_or_store(shared, 16, WRITE, pc);
}

void matrix_row(const void* row, const void* pc) {
    if (checker().counts) count((u64)(uintptr_t)row, 16, false, pc);
}

void matrix_reads(const void* at, u32 len, const void* pc) { use(at, len, READ, pc); }

void vector_reads(const void* at, u32 len, const void* pc) { load_or_store(at, len, READ, pc); }

void vector_writes(const void* at, u32 len, const void* pc) { load_or_store(at, len, WRITE, pc); }

void copy_done(void* shared) { use(shared, 16, WRITE, __builtin_return_address(0)); }

void barrier_made(const void* barrier) {
    const void* pc = __builtin_return_address(0);
    use(barrier, 8, WRITE, pc);
    if (checker().copies.size() == MAX_COPIERS) give_up("the checker has no room for so many barriers");
    CopyOrder order;
    order.maker = thread_number();
    order.made = self().time++;
    order.copier = (u32)(checker().threads.size() + checker().copies.size());
    checker().copies[barrier] = order;
}

void barriers_published() {
    for (auto& [barrier, order] : checker().copies) order.is_published |= order.maker == thread_number();
}

void barrier_arrived(const void* barrier) {
    CopyOrder& order = order_of(barrier, __builtin_return_address(0));
    order.pending = later(order.pending, with(self().order.known.own, thread_number(), self().time++, num_clocks()));
}

void barrier_flipped(const void* barrier) { checker().copies.at(barrier).done = checker().copies.at(barrier).pending; }

void barrier_passed(const void* barrier) {
    CopyOrder& order = order_of(barrier, __builtin_return_address(0));
    self().order.known.own = later(self().order.known.own, order.done);
}

void begin_box(const void* barrier) {
    const void* pc = __builtin_return_address(0);
    CopyOrder& order = order_of(barrier, pc);
    if (!order.is_published) report("a copy of a box to a barrier that was not published", pc);
    order.pending = later(order.pending, with(nullptr, order.copier, ++order.copier_time, num_clocks()));
}

void box_piece(const void* barrier, void* shared, const void* global, u32 global_bytes) {
    const void* pc = __builtin_return_address(0);
    const CopyOrder& order = checker().copies.at(barrier);
    if (global != nullptr) use(global, global_bytes, READ, pc);
    use((u64)(uintptr_t)shared, 16, WRITE | ASYNC, pc, order.copier, order.copier_time);
}

// The whole warp's, which has left once its first lane says so.
void product_reads(const void* shared, u32 len) {
    const u32 who = thread_number() / 32 * 32;
    use((u64)(uintptr_t)shared, len, READ | ASYNC, __builtin_return_address(0), who, checker().threads[who].time);
}

void remote_reads(const void* at, u32 len, const void* pc) {
    if (checker().counts) return count((u64)(uintptr_t)at, len, false, pc);
    use((u64)(uintptr_t)at, len, READ, pc, thread_number(), self().time, true);
}

namespace {

// Where the compiler saw something, as its library gets it.
struct SourcePlace {
    const char* file;
    u32 line, column;
};

void report_undefined(const SourcePlace* at, const char* what) {
    report(std::string(what) + ", " + at->file + ":" + std::to_string(at->line), at);
}

} // namespace

} // namespace check
} // namespace shim

using namespace shim::check;

// The launch that follows on this thread: its kernel, its stream, and whether it may begin while the kernel before it ends.
extern "C" void shim_check_launch(const char* kernel, void* stream, u32 overlaps) {
    shim::Checker& own = of_thread();
    own.kernel = kernel;
    own.stream = static_cast<Stream*>(stream);
    own.overlaps = overlaps != 0;
}
// What was found in this thread's latest launch, in words.
extern "C" const char* shim_check_faults() { return of_thread().faults.c_str(); }
extern "C" void* shim_check_stream() { return new Stream; }
// Something that is no kernel is next on a stream: it waits for all before it, and is waited for.
extern "C" void shim_check_no_kernel(void* stream) {
    Stream& own = *static_cast<Stream*>(stream);
    const std::lock_guard<std::mutex> lock(own.lock);
    own.ran.clear();
}
extern "C" void shim_check_stream_ended(void* stream) { delete static_cast<Stream*>(stream); }

// What the compiler puts before loads and stores.
#define USES(LEN)                                                                                                         \
    extern "C" void __tsan_read##LEN(void* at) { load_or_store(at, LEN, READ, __builtin_return_address(0)); }             \
    extern "C" void __tsan_write##LEN(void* at) { load_or_store(at, LEN, WRITE, __builtin_return_address(0)); }           \
    extern "C" void __tsan_unaligned_read##LEN(void* at) { load_or_store(at, LEN, READ, __builtin_return_address(0)); }   \
    extern "C" void __tsan_unaligned_write##LEN(void* at) { load_or_store(at, LEN, WRITE, __builtin_return_address(0)); }
USES(1)
USES(2)
USES(4)
USES(8)
USES(16)
extern "C" void __tsan_read_range(void* at, std::size_t len) { load_or_store(at, len, READ, __builtin_return_address(0)); }
extern "C" void __tsan_write_range(void* at, std::size_t len) { load_or_store(at, len, WRITE, __builtin_return_address(0)); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}

// And where something is undefined (-fsanitize=alignment,shift,bounds,...).
#define UNDEFINED(NAME, WHAT)                                                                                          \
    extern "C" void __ubsan_handle_##NAME(const SourcePlace* at, ...) { report_undefined(at, WHAT); }
UNDEFINED(type_mismatch_v1, "an address is not aligned to what is there")
UNDEFINED(shift_out_of_bounds, "a shift by too much")
UNDEFINED(out_of_bounds, "an index is out of bounds")
UNDEFINED(float_cast_overflow, "a float is no integer of that type")
UNDEFINED(divrem_overflow, "a division by zero")
UNDEFINED(add_overflow, "a sum overflows")
UNDEFINED(sub_overflow, "a difference overflows")
UNDEFINED(mul_overflow, "a product overflows")
UNDEFINED(negate_overflow, "a negation overflows")
#endif
