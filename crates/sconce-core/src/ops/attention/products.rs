//! The two products of attention, q . K^T and weights . V, in registers: some rows (query heads) at a time.

use crate::ops::lanes::Lanes;
use crate::ops::simd::LANES;

/// Keys whose scores are computed before their values are read.
pub(super) const SPAN: usize = 64;
/// Rows whose weighted sums of values are kept in registers.
pub(super) const MOST_ROWS: usize = 8;
/// Rows whose scores for 4 vectors of keys are.
pub(super) const MOST_SCORE_ROWS: usize = 4;

/// Vectors of keys: dimension d of `lanes` keys stands at `k[i] + d * stride`.
pub(super) struct Keys {
    pub(super) k: [*const f32; 4],
    pub(super) dim: usize,
    pub(super) stride: usize,
    pub(super) lanes: usize,
}

/// Scores of `n` rows and `count` vectors (1 or 4): row r's go to `dst + r * SPAN`.
///
/// # Safety
/// The machine has the instructions of `V`; there are as many rows, keys, and places in `dst`.
#[inline(always)]
pub(super) unsafe fn score_rows<V: Lanes>(
    n: usize,
    count: usize,
    q: &[*const f32],
    keys: &Keys,
    scale: f32,
    dst: *mut f32,
) {
    macro_rules! call {
        ($($rows:literal)*) => {
            match (n, count, keys.lanes == LANES) {
                $(
                    // SAFETY: as the caller's.
                    ($rows, 4, true) => unsafe { scores::<V, $rows, 4, true>(q, keys, scale, dst) },
                    // SAFETY: as the caller's.
                    ($rows, _, true) => unsafe { scores::<V, $rows, 1, true>(q, keys, scale, dst) },
                )*
                _ => {
                    for row in 0..n {
                        for vector in 0..count {
                            let one = Keys { k: [keys.k[vector]; 4], ..*keys };
                            // SAFETY: as the caller's.
                            unsafe {
                                let dst = dst.add(row * SPAN + vector * keys.lanes);
                                if keys.lanes == LANES {
                                    scores::<V, 1, 1, true>(&q[row..], &one, scale, dst);
                                } else {
                                    scores::<V, 1, 1, false>(&q[row..], &one, scale, dst);
                                }
                            }
                        }
                    }
                }
            }
        };
    }
    call!(1 2 3 4);
}

/// # Safety
/// As [`score_rows`].
#[inline(always)]
unsafe fn scores<V: Lanes, const R: usize, const K: usize, const FULL: bool>(
    q: &[*const f32],
    keys: &Keys,
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
                k[i] = if FULL { V::load(src) } else { V::load_some(src, keys.lanes) };
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
pub(super) unsafe fn add_values<V: Lanes>(n: usize, w: &Weights<'_>, blocks: &[*const f32], out: *mut f32) {
    macro_rules! call {
        ($($rows:literal)*) => {
            match n {
                // SAFETY: as the caller's.
                $($rows => unsafe { values_of_rows::<V, $rows>(w, blocks, out) },)*
                _ => unreachable!("a tile's rows go eight at a time"),
            }
        };
    }
    call!(1 2 3 4 5 6 7 8);
}

/// # Safety
/// As [`add_values`].
#[inline(always)]
unsafe fn values_of_rows<V: Lanes, const R: usize>(w: &Weights<'_>, blocks: &[*const f32], out: *mut f32) {
    let mut d = 0;
    // SAFETY: the caller vouches for the instructions, rows and values.
    unsafe {
        if R <= 4 {
            while d + 4 * LANES <= w.dim {
                values::<V, R, 4, true>(w, blocks, out, d);
                d += 4 * LANES;
            }
        }
        while d + 2 * LANES <= w.dim {
            values::<V, R, 2, true>(w, blocks, out, d);
            d += 2 * LANES;
        }
        while d + LANES <= w.dim {
            values::<V, R, 1, true>(w, blocks, out, d);
            d += LANES;
        }
        if d < w.dim {
            values::<V, R, 1, false>(w, blocks, out, d);
        }
    }
}

/// Dimensions `d..d + 16 * D`, or the rest after `d`.
///
/// # Safety
/// As [`add_values`].
#[inline(always)]
unsafe fn values<V: Lanes, const R: usize, const D: usize, const FULL: bool>(
    w: &Weights<'_>,
    blocks: &[*const f32],
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
                    value[i] = if FULL { V::load(src) } else { V::load_some(src, rest) };
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
