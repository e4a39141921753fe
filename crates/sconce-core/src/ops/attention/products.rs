//! The two products of attention, q . K^T and weights . V, in registers: some rows (query heads) at a time.

use half::{bf16, f16};

use crate::backend::cpu::KvElem;
use crate::ops::lanes::Lanes;
use crate::ops::simd::LANES;

/// Elements of the cache that vectors are read from.
///
/// # Safety
/// Both functions: the machine has the instructions of `V`; pointers are good for as many elements as are read.
pub(super) trait Element: KvElem {
    unsafe fn load<V: Lanes>(src: *const Self) -> V;
    /// The first `n`, below 16; zeros in the other lanes.
    unsafe fn load_some<V: Lanes>(src: *const Self, n: usize) -> V;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<V: Lanes>(src: *const Self) -> V {
        // SAFETY: as the caller's.
        unsafe { V::load(src) }
    }

    #[inline(always)]
    unsafe fn load_some<V: Lanes>(src: *const Self, n: usize) -> V {
        // SAFETY: as the caller's.
        unsafe { V::load_some(src, n) }
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<V: Lanes>(src: *const Self) -> V {
        // SAFETY: as the caller's.
        unsafe { V::load_f16(src.cast()) }
    }

    #[inline(always)]
    unsafe fn load_some<V: Lanes>(src: *const Self, n: usize) -> V {
        // SAFETY: as the caller's.
        unsafe { V::load_f16(first(src, n).as_ptr().cast()) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<V: Lanes>(src: *const Self) -> V {
        // SAFETY: as the caller's.
        unsafe { V::load_bf16(src.cast()) }
    }

    #[inline(always)]
    unsafe fn load_some<V: Lanes>(src: *const Self, n: usize) -> V {
        // SAFETY: as the caller's.
        unsafe { V::load_bf16(first(src, n).as_ptr().cast()) }
    }
}

/// # Safety
/// There are `n` elements, below 16.
#[inline(always)]
unsafe fn first<E: KvElem>(src: *const E, n: usize) -> [E; LANES] {
    let mut lanes = [E::zeroed(); LANES];
    // SAFETY: as the caller's.
    unsafe { std::ptr::copy_nonoverlapping(src, lanes.as_mut_ptr(), n) };
    lanes
}

/// Keys whose scores are computed before their values are read.
pub(super) const SPAN: usize = 64;
/// Rows whose scores, or weighted sums of values, are kept in registers.
pub(super) const MOST_ROWS: usize = 6;
/// Registers that rows times 4 vectors need. Where there are fewer, rows take one vector at a time.
const MANY_REGISTERS: usize = 32;

/// Vectors of keys: dimension d of `lanes` keys stands at `k[i] + d * stride`.
pub(super) struct Keys<E> {
    pub(super) k: [*const E; 4],
    pub(super) dim: usize,
    pub(super) stride: usize,
    pub(super) lanes: usize,
}

/// Scores of `n` rows and `count` vectors (1 or 4): row r's go to `dst + r * SPAN`.
///
/// # Safety
/// The machine has the instructions of `V`; there are as many rows, keys, and places in `dst`.
#[inline(always)]
pub(super) unsafe fn score_rows<V: Lanes, E: Element>(
    n: usize,
    count: usize,
    q: &[*const f32],
    keys: &Keys<E>,
    scale: f32,
    dst: *mut f32,
) {
    macro_rules! call {
        ($($rows:literal)*) => {
            match (n, count) {
                $(
                    // SAFETY: as the caller's.
                    ($rows, 4) if V::NUM_REGISTERS >= MANY_REGISTERS && keys.lanes == LANES => unsafe {
                        scores::<V, E, $rows, 4, true>(q, keys, scale, dst)
                    },
                    ($rows, _) if keys.lanes == LANES => for i in 0..count {
                        let one = Keys { k: [keys.k[i]; 4], ..*keys };
                        // SAFETY: as the caller's.
                        unsafe { scores::<V, E, $rows, 1, true>(q, &one, scale, dst.add(i * LANES)) };
                    },
                )*
                _ => for (row, i) in (0..n).flat_map(|row| (0..count).map(move |i| (row, i))) {
                    let one = Keys { k: [keys.k[i]; 4], ..*keys };
                    // SAFETY: as the caller's.
                    unsafe { scores::<V, E, 1, 1, false>(&q[row..], &one, scale, dst.add(row * SPAN + i * keys.lanes)) };
                },
            }
        };
    }
    call!(1 2 3 4 5 6);
}

/// # Safety
/// As [`score_rows`].
#[inline(always)]
unsafe fn scores<V: Lanes, E: Element, const R: usize, const K: usize, const FULL: bool>(
    q: &[*const f32],
    keys: &Keys<E>,
    scale: f32,
    dst: *mut f32,
) {
    // SAFETY: the caller vouches for the instructions, rows and keys.
    unsafe {
        let mut acc = [[V::splat(0.0); K]; R];
        for d in 0..keys.dim {
            let mut k = [V::splat(0.0); K];
            for i in 0..K {
                let src = keys.k[i].add(d * keys.stride);
                k[i] = if FULL { E::load(src) } else { E::load_some(src, keys.lanes) };
            }
            for r in 0..R {
                let q = V::splat(*q.get_unchecked(r).add(d));
                for i in 0..K {
                    acc[r][i] = acc[r][i].fma(q, k[i]);
                }
            }
        }
        for r in 0..R {
            for i in 0..K {
                let scaled = acc[r][i].mul(V::splat(scale));
                let dst = dst.add(r * SPAN + i * keys.lanes);
                if FULL { scaled.store(dst) } else { scaled.store_some(dst, keys.lanes) }
            }
        }
    }
}

/// Of some rows: what their sums are multiplied with, and the weights of the values, row r's at `weights + r * SPAN`.
pub(super) struct Weights<'a> {
    pub(super) shrink: &'a [f32],
    pub(super) weights: *const f32,
    pub(super) num_keys: usize,
    pub(super) block_size: usize,
    pub(super) dim: usize,
}

/// out = out * shrink + weights . values, for `n` rows.
///
/// # Safety
/// The machine has the instructions of `V`; there are as many rows in `out`, and the blocks hold the keys' values.
#[inline(always)]
pub(super) unsafe fn add_values<V: Lanes, E: Element>(n: usize, w: &Weights<'_>, blocks: &[*const E], out: *mut f32) {
    macro_rules! call {
        ($($rows:literal)*) => {
            match n {
                // SAFETY: as the caller's.
                $($rows => unsafe { values_of_rows::<V, E, $rows>(w, blocks, out) },)*
                _ => unreachable!("a tile's rows go six at a time"),
            }
        };
    }
    call!(1 2 3 4 5 6);
}

/// # Safety
/// As [`add_values`].
#[inline(always)]
unsafe fn values_of_rows<V: Lanes, E: Element, const R: usize>(w: &Weights<'_>, blocks: &[*const E], out: *mut f32) {
    let mut d = 0;
    // SAFETY: the caller vouches for the instructions, rows and values.
    unsafe {
        if V::NUM_REGISTERS >= MANY_REGISTERS {
            while d + 4 * LANES <= w.dim {
                values::<V, E, R, 4, true>(w, blocks, out, d);
                d += 4 * LANES;
            }
        }
        while d + LANES <= w.dim {
            values::<V, E, R, 1, true>(w, blocks, out, d);
            d += LANES;
        }
        if d < w.dim {
            values::<V, E, R, 1, false>(w, blocks, out, d);
        }
    }
}

/// Dimensions `d..d + 16 * D`, or the rest after `d`.
///
/// # Safety
/// As [`add_values`].
#[inline(always)]
unsafe fn values<V: Lanes, E: Element, const R: usize, const D: usize, const FULL: bool>(
    w: &Weights<'_>,
    blocks: &[*const E],
    out: *mut f32,
    d: usize,
) {
    let rest = w.dim - d;
    // SAFETY: the caller vouches for the instructions, rows and values.
    unsafe {
        let mut acc = [[V::splat(0.0); D]; R];
        for r in 0..R {
            let shrink = V::splat(*w.shrink.get_unchecked(r));
            for i in 0..D {
                let src = out.add(r * w.dim + d + i * LANES);
                acc[r][i] = if FULL { V::load(src) } else { V::load_some(src, rest) }.mul(shrink);
            }
        }
        let mut key = 0;
        for &block in blocks {
            let count = w.block_size.min(w.num_keys - key);
            for j in 0..count {
                let mut value = [V::splat(0.0); D];
                for i in 0..D {
                    let src = block.add(j * w.dim + d + i * LANES);
                    value[i] = if FULL { E::load(src) } else { E::load_some(src, rest) };
                }
                for r in 0..R {
                    let weight = V::splat(*w.weights.add(r * SPAN + key + j));
                    for i in 0..D {
                        acc[r][i] = acc[r][i].fma(weight, value[i]);
                    }
                }
            }
            key += count;
        }
        for r in 0..R {
            for i in 0..D {
                let dst = out.add(r * w.dim + d + i * LANES);
                if FULL { acc[r][i].store(dst) } else { acc[r][i].store_some(dst, rest) }
            }
        }
    }
}

/// Converts `num` elements from `src`, whole vectors of them, to `dst`.
///
/// # Safety
/// The machine has the instructions of `V`; there are as many elements and places.
#[inline(always)]
pub(super) unsafe fn convert<V: Lanes, E: Element>(src: *const E, num: usize, dst: *mut f32) {
    for i in (0..num).step_by(LANES) {
        // SAFETY: as the caller's.
        unsafe { E::load::<V>(src.add(i)).store(dst.add(i)) };
    }
}
