// The best tokens of a row, as many as reach a goal, by one block of THREADS threads. After lib/token.h.
//
// One pass lists the tokens that take part and counts them in bins. Where the list has room for all, each finds its
// place in it. Otherwise the bin in which the goal is reached is looked at alone, in narrower bins if it is still too
// full.
#pragma once

static constexpr u32 THREADS = 512;
// Bins of a histogram.
static constexpr u32 BINS = 1024;
// Most tokens that are told apart at once, and longest list.
static constexpr u32 MAX_LIST = 1024;
static_assert(MAX_LIST >= BINS, "a bin of more than MAX_LIST keys can be divided");

// Which tokens take part.
struct Filter {
    u64 least_key;
    // At most the least key's: most tokens fail at it.
    float least_logit;
    float least_weight;
};
DEVICE Filter no_filter() { return {0, MIN_LOGIT, 0.0f}; }
DEVICE Filter from_key(const Filter& filter, u64 key) {
    if (key <= filter.least_key) return filter;
    return {key, fmaxf(filter.least_logit, logit_of(key)), filter.least_weight};
}

// A token that was chosen, what filters have left and weighs, and the token's rank in that: 0 where it is not known.
struct Chosen {
    u64 key;
    u32 rank;
    u64 total;
    Filter filter;
};

// What a block works with.
struct Scratch {
    Chosen chosen;
    u64 warps[32];
    u32 warp_counts[32];
    u32 counts[BINS];
    u64 masses[BINS];
    // More than MAX_LIST where there was no room for all.
    u32 num_listed;
    u64 keys[MAX_LIST];
    u64 key_masses[MAX_LIST];
    u64 least, greatest;
    // What one thread has found for all.
    u32 is_found;
    u64 found;
    Sum before, until;
};

// The sums of this thread and those before it.
DEVICE Sum block_scan(Sum x, Scratch& s) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (u32 offset = 1; offset < 32; offset *= 2) {
        const Sum other = {__shfl_up_sync(FULL_WARP, x.count, offset), __shfl_up_sync(FULL_WARP, x.mass, offset)};
        if (lane >= offset) x = x + other;
    }
    __syncthreads();
    if (lane == 31) {
        s.warps[warp] = x.mass;
        s.warp_counts[warp] = x.count;
    }
    __syncthreads();
    for (u32 i = 0; i < warp; i++) x = x + Sum{s.warp_counts[i], s.warps[i]};
    return x;
}

// When the best tokens, taken one after the other, are enough.
struct Goal {
    // So many; 0: `mass` is what counts.
    u32 count;
    // So much; with `whole` above 0 more than so much, or all.
    double mass;
    u64 whole;
};
DEVICE bool is_reached(const Goal& goal, Sum sum) {
    if (goal.count > 0) return sum.count >= goal.count;
    if (goal.whole > 0) return (double)sum.mass > goal.mass || sum.mass >= goal.whole;
    return (double)sum.mass >= goal.mass;
}

// Whether a token takes part, its key, and its mass where that counts.
DEVICE bool take_part(const View& view, const Filter& filter, bool is_weighed, u32 id, u64* key, u64* mass) {
    float logit = view.logits[id];
    // NaN is not.
    if (!(logit >= filter.least_logit)) return false;
    logit = clean(logit);
    *key = key_of(id, logit);
    *mass = 0;
    if (*key < filter.least_key) return false;
    if (is_weighed || filter.least_weight > 0.0f) {
        const float weight = weight_of(view, logit);
        *mass = mass_of(weight);
        return weight >= filter.least_weight;
    }
    return true;
}

// The last token of the best that are enough, and what they sum to with it. Key 0 where all are not enough.
struct Cut {
    u64 key;
    Sum sum;
};

// Ends the search for a cut if this thread has it: what comes before it is not enough, with it there is.
DEVICE void offer(const Goal& goal, Sum before, Sum own, u64 found, Scratch& s) {
    if (own.count == 0 || !is_reached(goal, before + own)) return;
    if (before.count > 0 && is_reached(goal, before)) return;
    // Where it is known already others may be asking still.
    if (s.is_found == 0) s.is_found = 1;
    s.found = found;
    s.before = before;
    s.until = before + own;
}

// The bin in which the goal is reached, after what is `above` all bins, to s.found. Bins are ordered from the best.
DEVICE void find_bin(const Goal& goal, Sum above, Scratch& s) {
    constexpr u32 per_thread = BINS / THREADS;
    const u32 first = threadIdx.x * per_thread;
    Sum own = {0, 0};
#pragma unroll
    for (u32 i = 0; i < per_thread; i++) own = own + Sum{s.counts[first + i], s.masses[first + i]};
    const Sum until = above + block_scan(own, s);
    Sum before = {until.count - own.count, until.mass - own.mass};
#pragma unroll
    for (u32 i = 0; i < per_thread; i++) {
        const Sum bin = {s.counts[first + i], s.masses[first + i]};
        offer(goal, before, bin, first + i, s);
        before = before + bin;
    }
    if (threadIdx.x == THREADS - 1 && !is_reached(goal, until)) s.until = until;
    __syncthreads();
}

// The same among at most MAX_LIST tokens that have been listed: the key.
DEVICE Cut find_in_list(const Goal& goal, Sum above, Scratch& s) {
    const u32 num_listed = s.num_listed;
    for (u32 slot = threadIdx.x; slot < num_listed; slot += THREADS) {
        const u64 key = s.keys[slot];
        Sum before = above;
        for (u32 i = 0; i < num_listed; i++) {
            if (s.keys[i] > key) before = before + Sum{1, s.key_masses[i]};
        }
        offer(goal, before, {1, s.key_masses[slot]}, key, s);
    }
    __syncthreads();
    return {s.found, s.until};
}

// Bins of equal width below the greatest logit; the last has all that is farther.
struct Bins {
    float max, scale;
};
DEVICE u32 bin_of(const Bins& bins, u64 key) {
    // Rounding keeps order, so that better tokens are in earlier bins.
    return (u32)fminf(__fmul_rn(__fsub_rn(bins.max, logit_of(key)), bins.scale), (float)(BINS - 1));
}

DEVICE void clear_bins(Scratch& s) {
    __syncthreads();
    for (u32 bin = threadIdx.x; bin < BINS; bin += THREADS) {
        s.counts[bin] = 0;
        s.masses[bin] = 0;
    }
    if (threadIdx.x == 0) {
        s.num_listed = 0;
        s.least = ~0ull;
        s.greatest = 0;
        s.is_found = 0;
    }
    __syncthreads();
}

DEVICE void add_to_bin(u32 bin, u64 mass, Scratch& s) {
    atomicAdd(&s.counts[bin], 1u);
    if (mass > 0) atomicAdd(&s.masses[bin], mass);
}

DEVICE void list(u64 key, u64 mass, Scratch& s) {
    // Once it is full nobody need wait for a number.
    if (load_relaxed(&s.num_listed) > MAX_LIST) return;
    const u32 slot = atomicAdd(&s.num_listed, 1u);
    if (slot >= MAX_LIST) return;
    s.keys[slot] = key;
    s.key_masses[slot] = mass;
}

// Goes on among keys low..=high, after what is above them: bins of keys, ever narrower. They are too many for a list,
// and so for bins of one key each: it goes on until a list has room for them.
DEVICE Cut cut_keys(const View& view, const Filter& filter, const Goal& goal, u64 low, u64 high, Sum above,
                    Scratch& s) {
    u64 key, mass;
    for (;;) {
        u32 shift = 1;
        while ((high - low) >> shift >= BINS) shift++;
        clear_bins(s);
        for (u32 id = threadIdx.x; id < view.len; id += THREADS) {
            if (take_part(view, filter, goal.count == 0, id, &key, &mass) && low <= key && key <= high) {
                add_to_bin((u32)((high - key) >> shift), mass, s);
            }
        }
        __syncthreads();
        find_bin(goal, above, s);
        const u64 bin = s.found;
        above = s.before;
        const u32 count = s.until.count - above.count;
        high = high - (bin << shift);
        low = max(low, high - ((1ull << shift) - 1));
        if (count > MAX_LIST) continue;
        clear_bins(s);
        for (u32 id = threadIdx.x; id < view.len; id += THREADS) {
            if (!take_part(view, filter, goal.count == 0, id, &key, &mass)) continue;
            if (low <= key && key <= high) list(key, mass, s);
        }
        __syncthreads();
        return find_in_list(goal, above, s);
    }
}

// A key that at least `count` tokens reach, 0 where that is not known: so many parts have a token that does.
DEVICE u64 key_of_parts(const View& view, u32 count, Scratch& s) {
    __syncthreads();
    if (threadIdx.x == 0) s.found = 0;
    for (u32 part = threadIdx.x; part < view.num_best; part += THREADS) s.keys[part] = view.best[part];
    __syncthreads();
    for (u32 part = threadIdx.x; part < view.num_best; part += THREADS) {
        const u64 key = s.keys[part];
        u32 num_better = 0;
        for (u32 i = 0; i < view.num_best; i++) num_better += s.keys[i] > key;
        if (num_better == count - 1 && key > 0) s.found = key;
    }
    __syncthreads();
    return s.found;
}

// Lists the tokens of one bin, and goes on among them, after what is `above` them.
DEVICE Cut cut_bin(const View& view, const Filter& filter, const Goal& goal, const Bins& bins, u32 bin, u32 count,
                   Sum above, Scratch& s) {
    u64 key, mass;
    clear_bins(s);
    for (u32 id = threadIdx.x; id < view.len; id += THREADS) {
        if (!take_part(view, filter, goal.count == 0, id, &key, &mass) || bin_of(bins, key) != bin) continue;
        list(key, mass, s);
        if (count > MAX_LIST) {
            atomicMin(&s.least, key);
            atomicMax(&s.greatest, key);
        }
    }
    __syncthreads();
    if (count > MAX_LIST) return cut_keys(view, filter, goal, s.least, s.greatest, above, s);
    return find_in_list(goal, above, s);
}

// The least number of best tokens that reach a goal. Where `*is_whole` comes back true, the list has all that take
// part, or where a number is the goal at least so many of the best.
DEVICE Cut find_cut(const View& view, const Filter& all, const Goal& goal, bool* is_whole, Scratch& s) {
    const bool is_weighed = goal.count == 0;
    Filter filter = all;
    if (!is_weighed && goal.count <= view.num_best && all.least_weight == 0.0f) {
        filter = from_key(all, key_of_parts(view, goal.count, s));
    }
    // Beyond 25 temperatures tokens weigh nothing. What has the most tokens is mostly within 32.
    const float span = is_weighed ? 25.0f * view.temperature : 32.0f;
    const Bins bins = {view.max, fminf((float)(BINS - 1) / span, 1e30f)};
    u64 key, mass;
    clear_bins(s);
#pragma unroll 2
    for (u32 id = threadIdx.x; id < view.len; id += THREADS) {
        if (!take_part(view, filter, is_weighed, id, &key, &mass)) continue;
        list(key, mass, s);
        add_to_bin(bin_of(bins, key), mass, s);
    }
    __syncthreads();
    find_bin(goal, {0, 0}, s);
    *is_whole = s.num_listed <= MAX_LIST;
    if (!s.is_found) return {0, s.until};
    if (*is_whole) return find_in_list(goal, {0, 0}, s);
    return cut_bin(view, filter, goal, bins, (u32)s.found, s.until.count - s.before.count, s.before, s);
}

// The mass of the tokens that take part.
DEVICE u64 filtered_mass(const View& view, const Filter& filter, Scratch& s) {
    u64 key, mass, sum = 0;
#pragma unroll 2
    for (u32 id = threadIdx.x; id < view.len; id += THREADS) {
        if (take_part(view, filter, true, id, &key, &mass)) sum += mass;
    }
    return block_total(sum, s.warps);
}

// One more than the number of better tokens in the row.
DEVICE u32 rank_of(const View& view, u64 key, Scratch& s) {
    const float logit = logit_of(key);
    const u32 token_id = id_of(key);
    u64 num_better = 0;
#pragma unroll 4
    for (u32 id = threadIdx.x; id < view.len; id += THREADS) {
        const float other = clean(view.logits[id]);
        num_better += other > logit || (other == logit && id < token_id);
    }
    return 1 + (u32)block_total(num_better, s.warps);
}

// The key of a token that may lie outside the row.
DEVICE u64 key_at(const View& view, u32 id) {
    return key_of(id, id < view.len ? clean(view.logits[id]) : -__int_as_float(0x7f800000));
}

