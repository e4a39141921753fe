// N numbers that stand side by side in memory, in f32 registers: moved 16 bytes at a time (8 where there are no more) where they
// are aligned to that, and one by one elsewhere.
#pragma once

template <typename T>
DEVICE void unpack_word(float* out, u32 word) {
    if constexpr (sizeof(T) == 4) {
        out[0] = __uint_as_float(word);
    } else {
        out[0] = low_float<T>(word);
        out[1] = high_float<T>(word);
    }
}

template <typename T>
DEVICE u32 pack_word(const float* x) {
    if constexpr (sizeof(T) == 4) {
        return __float_as_uint(x[0]);
    } else {
        return pack<T>(x[0], x[1]);
    }
}

template <typename T, int N>
DEVICE void load_vector(float (&out)[N], const T* at) {
    constexpr int WORDS = N * (int)sizeof(T) / 4, PER_WORD = 4 / (int)sizeof(T);
    static_assert(WORDS == 2 || WORDS % 4 == 0, "8 bytes, or a multiple of 16");
    if constexpr (WORDS == 2) {
        const uint2 v = *(const uint2*)at;
        unpack_word<T>(out, v.x);
        unpack_word<T>(out + PER_WORD, v.y);
    } else {
#pragma unroll
        for (int i = 0; i < WORDS / 4; i++) {
            const uint4 v = ((const uint4*)at)[i];
            unpack_word<T>(out + (4 * i) * PER_WORD, v.x);
            unpack_word<T>(out + (4 * i + 1) * PER_WORD, v.y);
            unpack_word<T>(out + (4 * i + 2) * PER_WORD, v.z);
            unpack_word<T>(out + (4 * i + 3) * PER_WORD, v.w);
        }
    }
}

// Eight floats of each thread side by side in shared memory: were all threads to ask for their first 16 bytes at once, those of two would
// lie in the same banks. Every other four threads ask for their second ones first.
DEVICE u32 first_half() { return threadIdx.x / 4 % 2; }

// Puts the eight in order that came so.
DEVICE void order_halves(float (&x)[8]) {
    const bool is_turned = first_half() != 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float came_first = x[i];
        x[i] = is_turned ? x[i + 4] : came_first;
        x[i + 4] = is_turned ? came_first : x[i + 4];
    }
}

template <typename T, int N>
DEVICE void store_vector(T* at, const float (&x)[N]) {
    constexpr int WORDS = N * (int)sizeof(T) / 4, PER_WORD = 4 / (int)sizeof(T);
    static_assert(WORDS == 2 || WORDS % 4 == 0, "8 bytes, or a multiple of 16");
    if constexpr (WORDS == 2) {
        *(uint2*)at = make_uint2(pack_word<T>(x), pack_word<T>(x + PER_WORD));
    } else {
#pragma unroll
        for (int i = 0; i < WORDS / 4; i++) {
            ((uint4*)at)[i] = make_uint4(pack_word<T>(x + (4 * i) * PER_WORD), pack_word<T>(x + (4 * i + 1) * PER_WORD),
                                         pack_word<T>(x + (4 * i + 2) * PER_WORD), pack_word<T>(x + (4 * i + 3) * PER_WORD));
        }
    }
}

// Elements `start`.. of the `len` at `from`, zeros behind them. `is_aligned`: `from` is aligned, `start` and `len` are
// multiples of N.
template <typename T, int N>
DEVICE void load_part(float (&out)[N], const T* from, u64 start, u64 len, bool is_aligned) {
#pragma unroll
    for (int i = 0; i < N; i++) out[i] = 0.0f;
    if (is_aligned) {
        if (start < len) load_vector<T, N>(out, from + start);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (start + i < len) out[i] = to_float(from[start + i]);
        }
    }
}

// Writes them, as far as there are so many.
template <typename T, int N>
DEVICE void store_part(T* to, const float (&x)[N], u64 start, u64 len, bool is_aligned) {
    if (is_aligned) {
        if (start < len) store_vector<T, N>(to + start, x);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (start + i < len) to[start + i] = from_float<T>(x[i]);
        }
    }
}
