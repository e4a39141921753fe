// sample: tokens, beam candidates and logprobs of rows of logits, bit for bit what the CPU's sampler gives: ops/sample
// and sample/sampler.rs say what that is.
//
// A token's weight, exp((logit - max) / temperature), is rounded to a multiple of 2^-34 in the CPU's own operations,
// and kept as an integer: sums are exact whatever their order, so that atomics and blocks change nothing. Logarithms of
// sums are left to the host.
//
// logits [num_logits, vocab_size] f32. rows [num_rows]: what is wanted (struct Row). A row has two views: its logits as
// they are at temperature 1, and edited (in edited [num_edited, vocab_size] where the request edits them) at its
// temperature. best [num_rows, 2, num_chunks * MAXIMA] u64: of each view the greatest keys of disjoint parts, MAXIMA in
// each CHUNK of tokens. mass [num_rows, 2, num_chunks] u64: of each view the sums of the chunks' weights.
// results: of each row a struct Head and its lists, where the row says. sampled [num_logits]: of each row of logits the
// token that was sampled from it (of several any one), for a step that begins before results are read.
//
// sample_scan    grid (num_chunks, num_rows), 256 threads: edits a copy of the row, finds the best of its parts.
// sample_weigh   the same grid: sums the chunk's weights.
// sample_choose  a block of 512 threads a row: chooses. Nothing of a row depends on other rows.
// Shared memory: at most 30 KiB, static.
//
// Bounded by memory: two passes over the logits, 4 bytes a token each, and two more (a read, a write) of what is
// edited. A filter, a list, a rank take a pass each by one block, mostly from the second cache, and two to four where
// more than MAX_LIST tokens have to be told apart; a greedy token takes none, a draw without filters one chunk.
//
// Source of the selection: histograms of ever narrower intervals, as radix selection has them (Alabi and others 2012).
#include "lib/platform.h"
#include "lib/token.h"
#include "lib/select.h"

static constexpr u32 CHUNK = 4096;
static constexpr u32 SCAN_THREADS = 256;
// A warp of sample_scan finds the best of its tokens.
static constexpr u32 MAXIMA = SCAN_THREADS / 32;
enum Kind { TOKEN = 0, BEAM_CANDIDATES = 1, PROMPT_LOGPROBS = 2 };
enum Flag { EDITS = 1, GREEDY = 2, PROCESSED = 4, REPORTS = 8 };

// One row to be sampled: ops/sample/encode.rs writes it.
struct Row {
    u32 kind;
    u32 flags;
    u32 logits_row;
    u32 edited_row;
    // 1 where greedy.
    float temperature;
    float top_p;
    float min_p;
    // 0: none.
    u32 top_k;
    // The token of a prompt.
    u32 chosen;
    // Tokens that are listed of the report's view; with beams, of the view that candidates come from.
    u32 num_listed;
    // With beams, tokens that are listed of the logits as they were, where those are reported on and others decide.
    u32 num_raw_listed;
    // With beams, the candidates whose own reports follow then.
    u32 num_reports;
    // The random number, an f64 in [0, 1).
    u32 uniform_low, uniform_high;
    // Where results begin, in u32.
    u32 result_start;
    // Edits, in u32 from their beginning: ids; (id, bias), ascending; ids; (id, count and whether it is in the prompt); a
    // grammar's mask, a bit a token, those beyond it being forbidden: without words there is none.
    u32 masked_start, num_masked;
    u32 bias_start, num_biases;
    u32 prompt_start, num_prompt;
    u32 generated_start, num_generated;
    u32 allowed_start, num_allowed_words;
    float repetition_penalty, frequency_penalty, presence_penalty;
};

// What is said of a row, before its lists of (id, logit).
struct Head {
    u32 token_id;
    // Of the token, in the report's view.
    float logit;
    u32 rank;
    u32 num_listed;
    u32 num_raw_listed;
    // 1: the edits left no token, and the row's own logits were taken.
    u32 is_unedited;
    // The report's view: its greatest logit, and its mass (of what filters leave).
    float max;
    u32 mass_low, mass_high;
    // The logits as they were, at temperature 1.
    float raw_max;
    u32 raw_mass_low, raw_mass_high;
};
static constexpr u32 HEAD_LEN = sizeof(Head) / 4;

// The greatest key, or the mass, of a whole view, from those of its parts.
DEVICE u64 best_of_parts(const u64* best, u32 num_best, u64* scratch) {
    u64 key = 0;
    for (u32 i = threadIdx.x; i < num_best; i += blockDim.x) key = max(key, best[i]);
    return block_max(key, scratch);
}
DEVICE u64 mass_of_chunks(const u64* mass, u32 num_chunks, u64* scratch) {
    u64 sum = 0;
    for (u32 i = threadIdx.x; i < num_chunks; i += blockDim.x) sum += mass[i];
    return block_total(sum, scratch);
}

// sample_scan

DEVICE bool is_within(u32 id, u32 start, u32 end) { return start <= id && id < end; }

DEVICE void penalize_repetition(float* logit, float penalty) {
    *logit = *logit > 0.0f ? __fdiv_rn(*logit, penalty) : __fmul_rn(*logit, penalty);
}

// Edits tokens start..end of a row that has its grammar's mask: min_tokens mask, biases, penalties, each after the one before.
DEVICE void apply_edits(float* logits, const Row& row, const u32* edits, u32 start, u32 end) {
    const u32* masked = edits + row.masked_start;
    // A token may be among them twice.
    for (u32 i = threadIdx.x; i < row.num_masked; i += blockDim.x) {
        if (is_within(masked[i], start, end)) store_alike(&logits[masked[i]], -__int_as_float(0x7f800000));
    }
    __syncthreads();
    const u32* biases = edits + row.bias_start;
    for (u32 i = threadIdx.x; i < row.num_biases; i += blockDim.x) {
        const u32 id = biases[2 * i];
        // Biases of the same token are added one by one, by the thread that has the first.
        if (!is_within(id, start, end) || (i > 0 && biases[2 * i - 2] == id)) continue;
        float logit = logits[id];
        for (u32 j = i; j < row.num_biases && biases[2 * j] == id; j++) {
            logit = __fadd_rn(logit, __uint_as_float(biases[2 * j + 1]));
        }
        logits[id] = logit;
    }
    __syncthreads();
    const u32* prompt = edits + row.prompt_start;
    for (u32 i = threadIdx.x; i < row.num_prompt; i += blockDim.x) {
        if (is_within(prompt[i], start, end)) penalize_repetition(&logits[prompt[i]], row.repetition_penalty);
    }
    __syncthreads();
    const u32* generated = edits + row.generated_start;
    const bool has_others = row.frequency_penalty != 0.0f || row.presence_penalty != 0.0f;
    for (u32 i = threadIdx.x; i < row.num_generated; i += blockDim.x) {
        const u32 id = generated[2 * i], count = generated[2 * i + 1] >> 1, is_in_prompt = generated[2 * i + 1] & 1;
        if (!is_within(id, start, end)) continue;
        if (!is_in_prompt && row.repetition_penalty != 1.0f) penalize_repetition(&logits[id], row.repetition_penalty);
        if (has_others) {
            const float penalty = __fadd_rn(__fmul_rn(row.frequency_penalty, (float)count), row.presence_penalty);
            logits[id] = __fsub_rn(logits[id], penalty);
        }
    }
    __syncthreads();
}

// The best key of a warp's share of tokens start..end.
DEVICE u64 best_of_share(const float* logits, u32 start, u32 end) {
    // All is asked for before the first of it is there.
    float values[CHUNK / SCAN_THREADS];
#pragma unroll
    for (u32 i = 0; i < CHUNK / SCAN_THREADS; i++) {
        const u32 id = start + threadIdx.x + i * SCAN_THREADS;
        values[i] = id < end ? logits[id] : 0.0f;
    }
    u64 key = 0;
#pragma unroll
    for (u32 i = 0; i < CHUNK / SCAN_THREADS; i++) {
        const u32 id = start + threadIdx.x + i * SCAN_THREADS;
        if (id < end) key = max(key, key_of(id, clean(values[i])));
    }
    return warp_reduce(key, true);
}

// Whether a row's grammar, if it has one, allows a token.
DEVICE bool is_allowed(const Row& row, const u32* edits, u32 id) {
    if (row.num_allowed_words == 0) return true;
    return id / 32 < row.num_allowed_words && edits[row.allowed_start + id / 32] >> id % 32 & 1;
}

// Copies tokens start..end of a row that is to be edited, of beams as logprobs, but for those that its grammar forbids.
DEVICE void copy_row(float* copy, const float* raw, const Row& row, const u32* edits, const u64* best, const u64* mass,
                     u32 num_chunks, u32 start, u32 end, u64* scratch) {
    const bool is_beam = row.kind == BEAM_CANDIDATES;
    float max_logit = 0.0f;
    double log_total = 0.0;
    if (is_beam) {
        max_logit = logit_of(best_of_parts(best, num_chunks * MAXIMA, scratch));
        log_total = log((double)mass_of_chunks(mass, num_chunks, scratch) * (1.0 / 17179869184.0));
    }
    for (u32 id = start + threadIdx.x; id < end; id += blockDim.x) {
        float value = raw[id];
        if (is_beam) {
            const double logprob = (double)__fsub_rn(clean(value), max_logit) - log_total;
            // A row without a number has no probabilities.
            value = max_logit < MIN_LOGIT ? max_logit : (float)logprob;
        }
        copy[id] = is_allowed(row, edits, id) ? value : -__int_as_float(0x7f800000);
    }
    __syncthreads();
}

// Beams are edited when their logits have been weighed: a second launch, with `of_beams`.
extern "C" __global__ void __launch_bounds__(SCAN_THREADS)
    sample_scan(u64* best, float* edited, const float* logits, const Row* rows, const u32* edits, const u64* mass,
                u32 vocab_size, u32 of_beams) {
    __shared__ u64 scratch[32];
    wait_for_kernel_before();
    const Row& row = rows[blockIdx.y];
    const u32 num_chunks = gridDim.x, chunk = blockIdx.x;
    const u32 start = chunk * CHUNK, end = min(start + CHUNK, vocab_size);
    const bool has_edits = row.flags & EDITS, is_beam = row.kind == BEAM_CANDIDATES;
    const u64 at = (u64)blockIdx.y * 2 * num_chunks;
    u64 *raw_best = best + at * MAXIMA, *edited_best = raw_best + num_chunks * MAXIMA;
    const bool writes = threadIdx.x % 32 == 0;
    const u32 own = chunk * MAXIMA + threadIdx.x / 32;
    const float* raw = logits + (u64)row.logits_row * vocab_size;
    if (!of_beams) {
        const u64 key = best_of_share(raw, start, end);
        if (writes) raw_best[own] = key;
        if (writes && !has_edits) edited_best[own] = key;
    }
    if (has_edits && is_beam == (of_beams != 0)) {
        float* copy = edited + (u64)row.edited_row * vocab_size;
        copy_row(copy, raw, row, edits, raw_best, mass + at, num_chunks, start, end, scratch);
        apply_edits(copy, row, edits, start, end);
        const u64 key = best_of_share(copy, start, end);
        if (writes) edited_best[own] = key;
    }
}
EXPORT_KERNEL(sample_scan)

// sample_weigh

DEVICE u64 mass_between(const View& view, u32 start, u32 end, u64* scratch) {
    u64 sum = 0;
    if (view.max >= MIN_LOGIT) {
        // All is asked for before the first of it is there.
        float values[CHUNK / SCAN_THREADS];
#pragma unroll
        for (u32 i = 0; i < CHUNK / SCAN_THREADS; i++) {
            const u32 id = start + threadIdx.x + i * SCAN_THREADS;
            values[i] = id < end ? view.logits[id] : 0.0f;
        }
#pragma unroll
        for (u32 i = 0; i < CHUNK / SCAN_THREADS; i++) {
            const u32 id = start + threadIdx.x + i * SCAN_THREADS;
            if (id < end) sum += mass_of(weight_of(view, clean(values[i])));
        }
    }
    return block_total(sum, scratch);
}

// A row's views. Those of beams that are edited differ only once sample_scan has been there a second time.
DEVICE View raw_view(const Row& row, const float* logits, const u64* best, u32 num_chunks, u32 vocab_size,
                     u64* scratch) {
    const u32 num_best = num_chunks * MAXIMA;
    const float max_logit = logit_of(best_of_parts(best, num_best, scratch));
    return {logits + (u64)row.logits_row * vocab_size, best, num_best, vocab_size, 1.0f, max_logit};
}
DEVICE View edited_view(const View& raw, const Row& row, const float* edited, u64* scratch) {
    const u64* best = raw.best + raw.num_best;
    const float max_logit = logit_of(best_of_parts(best, raw.num_best, scratch));
    const float* logits = row.flags & EDITS ? edited + (u64)row.edited_row * raw.len : raw.logits;
    return {logits, best, raw.num_best, raw.len, row.temperature, max_logit};
}

extern "C" __global__ void __launch_bounds__(SCAN_THREADS)
    sample_weigh(u64* mass, const u64* best, const float* edited, const float* logits, const Row* rows,
                 u32 vocab_size) {
    __shared__ u64 scratch[32];
    wait_for_kernel_before();
    const Row row = rows[blockIdx.y];
    const u32 num_chunks = gridDim.x, chunk = blockIdx.x;
    const u32 start = chunk * CHUNK, end = min(start + CHUNK, vocab_size);
    const u64 at = (u64)blockIdx.y * 2 * num_chunks;
    const View raw = raw_view(row, logits, best + at * MAXIMA, num_chunks, vocab_size, scratch);
    const u64 raw_mass = mass_between(raw, start, end, scratch);
    u64 edited_mass = raw_mass;
    if (row.kind == TOKEN && (row.flags & EDITS || row.temperature != 1.0f)) {
        const View view = edited_view(raw, row, edited, scratch);
        edited_mass = mass_between(view, start, end, scratch);
    }
    if (threadIdx.x == 0) {
        mass[at + chunk] = raw_mass;
        mass[at + num_chunks + chunk] = edited_mass;
    }
}
EXPORT_KERNEL(sample_weigh)

// sample_choose

// Writes the best `num` tokens, best first: (id, logit) each. Returns how many there are.
DEVICE u32 write_best(u32* out, const View& view, const Filter& filter, u32 num, Scratch& s) {
    if (num == 0) return 0;
    bool is_whole;
    const Cut cut = find_cut(view, filter, {num, 0.0, 0}, &is_whole, s);
    if (!is_whole) {
        const Filter best = from_key(filter, cut.key);
        u64 key, mass;
        clear_bins(s);
        for (u32 id = threadIdx.x; id < view.len; id += THREADS) {
            if (take_part(view, best, false, id, &key, &mass)) list(key, 0, s);
        }
        __syncthreads();
    }
    const u32 num_listed = s.num_listed;
    for (u32 slot = threadIdx.x; slot < num_listed; slot += THREADS) {
        const u64 key = s.keys[slot];
        u32 place = 0;
        for (u32 i = 0; i < num_listed; i++) place += s.keys[i] > key;
        if (place < num) {
            out[2 * place] = id_of(key);
            out[2 * place + 1] = __float_as_uint(logit_of(key));
        }
    }
    return min(num, num_listed);
}

// The token at `uniform` of the cumulative distribution of a whole row, by ascending id.
DEVICE u32 draw_by_id(const View& view, const u64* chunk_masses, u32 num_chunks, const Goal& goal, Scratch& s) {
    clear_bins(s);
    if (threadIdx.x < num_chunks) {
        s.counts[threadIdx.x] = 1;
        s.masses[threadIdx.x] = chunk_masses[threadIdx.x];
    }
    __syncthreads();
    find_bin(goal, {0, 0}, s);
    const u32 per_thread = CHUNK / THREADS, start = (u32)s.found * CHUNK + threadIdx.x * per_thread;
    const Sum above = s.before;
    u64 masses[per_thread];
    Sum own = {0, 0};
#pragma unroll
    for (u32 i = 0; i < per_thread; i++) {
        const bool is_there = start + i < view.len;
        masses[i] = is_there ? mass_of(weight_of(view, clean(view.logits[start + i]))) : 0;
        own = own + Sum{is_there, masses[i]};
    }
    Sum before = above + block_scan(own, s);
    before = {before.count - own.count, before.mass - own.mass};
#pragma unroll
    for (u32 i = 0; i < per_thread; i++) {
        if (masses[i] > 0) offer(goal, before, {1, masses[i]}, start + i, s);
        before = before + Sum{1, masses[i]};
    }
    __syncthreads();
    return (u32)s.found;
}

DEVICE void set_chosen(const Chosen& chosen, Scratch& s) {
    __syncthreads();
    if (threadIdx.x == 0) s.chosen = chosen;
    __syncthreads();
}

// A logit below which no token can pass top-p and min-p, of which one at least is at work. All tokens of less weight
// than `share` together have less mass than top-p leaves out.
DEVICE float logit_floor(const View& view, const Row& row, u64 total) {
    const float share = (1.0f - row.top_p) * ((float)total / WEIGHT_ONE) / (float)view.len;
    // A quarter, to be clear of every rounding.
    const float floor = view.max + view.temperature * fast_log(0.25f * fmaxf(share, row.min_p));
    return fmaxf(MIN_LOGIT, floor - 1e-6f * fabsf(floor));
}

// Draws what becomes s.chosen: the token at `uniform` of the cumulative distribution of what filters leave.
DEVICE void draw(const View& view, const Row& row, const u64* chunk_masses, u32 num_chunks, Scratch& s) {
    enum Step { TOP_K, TOP_P, DRAW };
    u64 total = mass_of_chunks(chunk_masses, num_chunks, s.warps);
    const double uniform = __longlong_as_double((i64)((u64)row.uniform_high << 32 | row.uniform_low));
    Filter filter = no_filter();
    const bool has_top_k = row.top_k > 0 && row.top_k < view.len;
    if (!has_top_k && row.top_p >= 1.0f && row.min_p <= 0.0f) {
        const u32 id = draw_by_id(view, chunk_masses, num_chunks, {0, uniform * (double)total, total}, s);
        return set_chosen({key_at(view, id), 0, total, filter}, s);
    }
    if (!has_top_k) filter.least_logit = logit_floor(view, row, total);
    for (u32 step = has_top_k ? TOP_K : TOP_P; step <= DRAW; step++) {
        if (step == TOP_P && row.top_p >= 1.0f) continue;
        if (step == DRAW && row.min_p > 0.0f) {
            filter.least_weight = row.min_p;
            total = filtered_mass(view, filter, s);
        }
        Goal goal = {0, uniform * (double)total, total};
        if (step == TOP_K) goal = {row.top_k, 0.0, 0};
        if (step == TOP_P) goal = {0, (double)row.top_p * (double)total, 0};
        bool is_whole;
        const Cut cut = find_cut(view, filter, goal, &is_whole, s);
        if (step == TOP_K) {
            // Those that are equal to the last stay too.
            filter = from_key(filter, cut.key >> ID_BITS << ID_BITS);
            total = filtered_mass(view, filter, s);
        } else if (step == TOP_P) {
            filter = from_key(filter, cut.key);
            total = cut.sum.mass;
        } else {
            set_chosen({cut.key, cut.sum.count, total, filter}, s);
        }
    }
}

DEVICE void set_mass(u32* low, u32* high, u64 mass) {
    *low = (u32)mass;
    *high = (u32)(mass >> 32);
}

// Chooses the token of a row to s.chosen. Returns whether its report is of the edited view.
DEVICE bool choose_token(Head& head, const View& raw, const View& view, const Row& row, const u64* mass, u32 num_chunks,
                         Scratch& s) {
    const bool is_unedited = view.max < MIN_LOGIT;
    if (is_unedited) {
        // The edits left nothing.
        if (threadIdx.x == 0) head.is_unedited = 1;
        set_chosen({best_of_parts(raw.best, raw.num_best, s.warps), 0, 0, no_filter()}, s);
    } else if (row.flags & GREEDY) {
        const u64 total = mass_of_chunks(mass + num_chunks, num_chunks, s.warps);
        set_chosen({best_of_parts(view.best, view.num_best, s.warps), 0, total, no_filter()}, s);
    } else {
        draw(view, row, mass + num_chunks, num_chunks, s);
    }
    return !is_unedited && row.flags & PROCESSED;
}

// (logit, rank) of each candidate in the logits as they were.
DEVICE void write_ranks(u32* out, const u32* candidates, u32 num, const View& raw, Scratch& s) {
    __syncthreads();
    for (u32 i = 0; i < num; i++) {
        const u64 key = key_at(raw, candidates[2 * i]);
        const u32 rank = rank_of(raw, key, s);
        if (threadIdx.x != 0) continue;
        out[2 * i] = __float_as_uint(logit_of(key));
        out[2 * i + 1] = rank;
    }
}

// Chooses, and writes the lists: of the view that is reported on, with beams of the view that candidates come from.
// Where beams' reports are of the logits as they were, those come second, then what they say of each candidate.
DEVICE void choose(u32* out, Head& head, const View* views, const Row& row, const u64* mass, u32 num_chunks,
                   Scratch& s) {
    const View& raw = views[0];
    const bool is_beam = row.kind == BEAM_CANDIDATES;
    bool is_edited = is_beam;
    if (row.kind == TOKEN) is_edited = choose_token(head, raw, views[1], row, mass, num_chunks, s);
    const View& reported = views[is_edited];
    if (!is_edited) {
        const u64 total = mass_of_chunks(mass, num_chunks, s.warps);
        const u32 token_id = row.kind == TOKEN ? id_of(s.chosen.key) : row.chosen;
        set_chosen({key_at(raw, token_id), 0, total, no_filter()}, s);
    }
    if (is_beam) set_chosen({0, 0, 0, no_filter()}, s);
    u32 *list = out + HEAD_LEN, num_listed = 0;
    for (u32 i = 0; i < 2; i++) {
        const u32 num_wanted = i == 0 ? row.num_listed : row.num_raw_listed;
        const u32 num = write_best(list, i == 0 ? reported : raw, s.chosen.filter, num_wanted, s);
        if (threadIdx.x == 0) (i == 0 ? head.num_listed : head.num_raw_listed) = num;
        if (i == 0) num_listed = num;
        list += 2 * num_wanted;
    }
    if (is_beam) return write_ranks(list, out + HEAD_LEN, min(row.num_reports, num_listed), raw, s);
    u32 rank = s.chosen.rank;
    if (rank == 0 && row.flags & REPORTS) rank = rank_of(reported, s.chosen.key, s);
    if (threadIdx.x != 0) return;
    head.token_id = id_of(s.chosen.key);
    head.logit = logit_of(s.chosen.key);
    head.rank = rank;
    head.max = reported.max;
    set_mass(&head.mass_low, &head.mass_high, s.chosen.total);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    sample_choose(u32* results, u32* sampled, const u64* best, const u64* mass, const float* edited,
                  const float* logits, const Row* rows, u32 vocab_size, u32 num_chunks) {
    __shared__ Scratch s;
    wait_for_kernel_before();
    // In shared memory, for registers are few.
    __shared__ Row row;
    __shared__ Head head;
    __shared__ View views[2];
    if (threadIdx.x < sizeof(Row) / 4) {
        reinterpret_cast<u32*>(&row)[threadIdx.x] = reinterpret_cast<const u32*>(rows + blockIdx.x)[threadIdx.x];
    }
    if (threadIdx.x < HEAD_LEN) reinterpret_cast<u32*>(&head)[threadIdx.x] = 0;
    __syncthreads();
    const u64 at = (u64)blockIdx.x * 2 * num_chunks;
    u32* out = results + row.result_start;
    const u64 raw_total = mass_of_chunks(mass + at, num_chunks, s.warps);
    const View raw = raw_view(row, logits, best + at * MAXIMA, num_chunks, vocab_size, s.warps);
    const View view = edited_view(raw, row, edited, s.warps);
    if (threadIdx.x == 0) {
        views[0] = raw;
        views[1] = view;
        head.raw_max = head.max = raw.max;
        set_mass(&head.raw_mass_low, &head.raw_mass_high, raw_total);
        set_mass(&head.mass_low, &head.mass_high, raw_total);
    }
    __syncthreads();
    choose(out, head, views, row, mass + at, num_chunks, s);
    __syncthreads();
    if (threadIdx.x < HEAD_LEN) out[threadIdx.x] = reinterpret_cast<const u32*>(&head)[threadIdx.x];
    // Where a row of logits is sampled several times, any one is left: nobody runs ahead of it.
    if (threadIdx.x == 0 && row.kind == TOKEN) atomicExch(&sampled[row.logits_row], head.token_id);
}
EXPORT_KERNEL(sample_choose)
