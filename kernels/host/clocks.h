// What the checker's clocks say of each other. check.h says what they are.
#pragma once

#include "check.h"

#ifdef SCONCE_CHECKED
#include <algorithm>

namespace shim {
namespace check {

// The later of two, time by time.
inline Times later(const Times& a, const Times& b) {
    if (!b || a == b) return a;
    if (!a) return b;
    // Threads that know the same learn the same: asked again and again.
    struct Asked {
        Times a, b, both;
    };
    static thread_local Asked recent[8];
    static thread_local unsigned next = 0;
    for (const Asked& asked : recent) {
        if (asked.a == a && asked.b == b) return asked.both;
    }
    std::vector<u32> both = *a;
    for (std::size_t i = 0; i < both.size(); i++) both[i] = std::max(both[i], (*b)[i]);
    Times made = both == *a ? a : both == *b ? b : std::make_shared<const std::vector<u32>>(std::move(both));
    recent[next++ % 8] = {a, b, made};
    return made;
}

inline void learn(Known& known, const Known& more) {
    known.own = later(known.own, more.own);
    if (!more.others || known.others == more.others) return;
    if (!known.others) {
        known.others = more.others;
        return;
    }
    auto all = *known.others;
    for (const auto& [cluster, times] : *more.others) all[cluster] = later(all[cluster], times);
    known.others = std::make_shared<const std::map<u64, Times>>(std::move(all));
}

inline void learn(Order& order, const Order& more) {
    learn(order.known, more.known);
    learn(order.fenced, more.fenced);
    learn(order.read, more.read);
}

// The same with what another has done until a time.
inline Times with(const Times& times, u32 who, u32 time, std::size_t len) {
    std::vector<u32> all = times ? *times : std::vector<u32>(len);
    all[who] = std::max(all[who], time);
    return std::make_shared<const std::vector<u32>>(std::move(all));
}

} // namespace check
} // namespace shim
#endif
