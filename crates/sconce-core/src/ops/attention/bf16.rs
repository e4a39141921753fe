//! The two products of attention by `vdpbf16ps`, 32 products an instruction: queries, keys, weights and values rounded to
//! bf16, sums in f32.
//!
//! A span's keys and values are rounded once for all rows, two of a sum side by side: a row's bits do not depend on how many
//! others there are.

use std::arch::x86_64::*;

use super::products::{Element, MOST_ROWS, SPAN};
use super::scratch::Floats;
use crate::backend::KvDtype;
use crate::ops::lanes::Avx512;
use crate::ops::simd::LANES;

/// Whether heads of so many numbers can be multiplied here, in blocks of so many keys.
pub(super) fn suits(head_dim: usize, block_size: usize) -> bool {
    head_dim.is_multiple_of(LANES) && block_size.is_multiple_of(LANES)
}

/// Rounds `len` numbers to pairs of neighbours, which may come to stand where the numbers do.
///
/// # Safety
/// The machine has AVX-512 F, BW and BF16; there are as many numbers, whole vectors, and places for half as many pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn round(src: *const f32, len: usize, dst: *mut f32) {
    for i in (0..len).step_by(LANES) {
        // SAFETY: the caller vouches for numbers and places.
        unsafe {
            let rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(src.add(i)));
            let bits = std::mem::transmute::<__m256bh, __m256i>(rounded);
            _mm256_storeu_si256(dst.add(i / 2).cast(), bits);
        }
    }
}

/// 16 pairs of numbers, of `first` and of `second`, rounded to bf16.
///
/// # Safety
/// The machine has the instructions; there are 16 elements at each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn pairs_of<E: Element>(first: *const E, second: *const E) -> __m512i {
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = (i / 2 + i % 2 * LANES) as u16;
            i += 1;
        }
        order
    };
    // SAFETY: the caller vouches for the elements; the order is one vector; all are plain bits.
    unsafe {
        if E::DTYPE == KvDtype::Bf16 {
            let [first, second] = [first, second].map(|src| src.cast::<__m256i>().read_unaligned());
            return _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
        }
        let (first, second) = (E::load::<Avx512>(first).0, E::load::<Avx512>(second).0);
        let rounded = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
        _mm512_permutexvar_epi16(_mm512_loadu_si512(ORDER.as_ptr().cast()), rounded)
    }
}

/// A span's keys to `dst`, [dim / 2, SPAN] pairs of dimensions: dimension d of 16 keys stands at `keys[i] + d * stride`.
///
/// # Safety
/// The machine has the instructions; there are as many keys, and places in `dst`; `dim` is even.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn round_keys<E: Element>(dst: &mut Floats, keys: &[*const E], dim: usize, stride: usize) {
    for (i, &key) in keys.iter().enumerate() {
        for d in (0..dim).step_by(2) {
            // SAFETY: the caller vouches for keys and places.
            unsafe {
                let pairs = pairs_of(key.add(d * stride), key.add((d + 1) * stride));
                _mm512_storeu_si512(dst.as_mut_ptr().add(d / 2 * SPAN + i * LANES).cast(), pairs);
            }
        }
    }
}

/// A span's `num_keys` values to `dst`, [SPAN / 2, dim] pairs of keys; a last one without its pair has a zero beside it. They
/// stand `stretch` after one another, from `values[i]` on.
///
/// # Safety
/// The machine has the instructions; there are as many values, and places in `dst`; `dim` is whole vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn round_values<E: Element>(
    dst: &mut Floats,
    values: &[*const E],
    num_keys: usize,
    dim: usize,
    stretch: usize,
) {
    let zeros = [E::zeroed(); LANES];
    for key in (0..num_keys).step_by(2) {
        // SAFETY: stretches are even, so that both are in one; the caller vouches for values and places.
        unsafe {
            let src = values.get_unchecked(key / stretch).add(key % stretch * dim);
            for d in (0..dim).step_by(LANES) {
                let second = if key + 1 < num_keys { src.add(dim + d) } else { zeros.as_ptr() };
                let pairs = pairs_of(src.add(d), second);
                _mm512_storeu_si512(dst.as_mut_ptr().add(key / 2 * dim + d).cast(), pairs);
            }
        }
    }
}

/// A function of [`Tile`] for so many rows (1 to 6) and vectors (4 or 1).
macro_rules! for_size {
    ($tile:expr, $rows:expr, $is_whole:expr, $function:ident($($arg:expr),*)) => {
        for_size!(@ $tile, $rows, $is_whole, $function($($arg),*), 1 2 3 4 5 6)
    };
    (@ $tile:expr, $rows:expr, $is_whole:expr, $function:ident $args:tt, $($n:literal)*) => {
        match ($rows, $is_whole) {
            $(
                ($n, true) => $tile.$function::<$n, 4> $args,
                ($n, false) => $tile.$function::<$n, 1> $args,
            )*
            _ => unreachable!("a tile's rows go six at a time"),
        }
    };
}

/// Some rows times some vectors of 16 columns: sums over `num_pairs` pairs, row r's at `left + r * left_stride`, the columns'
/// at `right + pair * right_stride`. Results are `out_stride` apart.
struct Tile {
    left: *const f32,
    left_stride: usize,
    right: *const f32,
    right_stride: usize,
    num_pairs: usize,
    out: *mut f32,
    out_stride: usize,
}

impl Tile {
    /// out = scale * sum.
    ///
    /// # Safety
    /// The machine has the instructions; there are as many rows, columns and places.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    unsafe fn scaled<const R: usize, const D: usize>(&self, scale: f32) {
        // SAFETY: as the caller's.
        unsafe {
            let acc = self.add([[_mm512_setzero_ps(); D]; R]);
            for (r, acc) in acc.into_iter().enumerate() {
                for (i, acc) in acc.into_iter().enumerate() {
                    let out = self.out.add(r * self.out_stride + i * LANES);
                    _mm512_storeu_ps(out, _mm512_mul_ps(acc, _mm512_set1_ps(scale)));
                }
            }
        }
    }

    /// out = out * shrink + sum.
    ///
    /// # Safety
    /// As [`Tile::scaled`]; a factor for each row.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    unsafe fn shrunk<const R: usize, const D: usize>(&self, shrink: &[f32]) {
        // SAFETY: as the caller's.
        unsafe {
            let mut acc = [[_mm512_setzero_ps(); D]; R];
            for r in 0..R {
                for i in 0..D {
                    let before = _mm512_loadu_ps(self.out.add(r * self.out_stride + i * LANES));
                    acc[r][i] = _mm512_mul_ps(before, _mm512_set1_ps(shrink[r]));
                }
            }
            for (r, acc) in self.add(acc).into_iter().enumerate() {
                for (i, acc) in acc.into_iter().enumerate() {
                    _mm512_storeu_ps(self.out.add(r * self.out_stride + i * LANES), acc);
                }
            }
        }
    }

    /// # Safety
    /// As [`Tile::scaled`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    unsafe fn add<const R: usize, const D: usize>(&self, mut acc: [[__m512; D]; R]) -> [[__m512; D]; R] {
        for pair in 0..self.num_pairs {
            // SAFETY: as the caller's; all are plain bits.
            unsafe {
                let mut right = [_mm512_setzero_si512(); D];
                for i in 0..D {
                    right[i] = _mm512_loadu_si512(self.right.add(pair * self.right_stride + i * LANES).cast());
                }
                for r in 0..R {
                    let left = _mm512_set1_epi32(self.left.add(r * self.left_stride + pair).cast::<i32>().read());
                    for i in 0..D {
                        acc[r][i] = _mm512_dpbf16_ps(
                            acc[r][i],
                            std::mem::transmute::<__m512i, __m512bh>(left),
                            std::mem::transmute::<__m512i, __m512bh>(right[i]),
                        );
                    }
                }
            }
        }
        acc
    }
}

/// Scores of `num_rows` rows, of which pairs of dimensions stand at `q`, [rows, dim / 2]: row r's go to `dst + r * SPAN`.
///
/// # Safety
/// The machine has the instructions; there are as many rows, keys (as [`round_keys`] leaves them), and places.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn score(
    dst: *mut f32,
    (q, num_rows): (*const f32, usize),
    keys: &Floats,
    num_vectors: usize,
    dim: usize,
    scale: f32,
) {
    let mut vector = 0;
    while vector < num_vectors {
        let is_whole = vector + 4 <= num_vectors;
        for row in (0..num_rows).step_by(MOST_ROWS) {
            // SAFETY: the caller vouches for rows, keys and places.
            unsafe {
                let tile = Tile {
                    left: q.add(row * (dim / 2)),
                    left_stride: dim / 2,
                    right: keys.as_ptr().add(vector * LANES),
                    right_stride: SPAN,
                    num_pairs: dim / 2,
                    out: dst.add(row * SPAN + vector * LANES),
                    out_stride: SPAN,
                };
                for_size!(tile, MOST_ROWS.min(num_rows - row), is_whole, scaled(scale));
            }
        }
        vector += if is_whole { 4 } else { 1 };
    }
}

/// out = out * shrink + weights . values for as many rows of `dim` numbers as `shrink` has; pairs of weights stand at
/// `weights + r * SPAN`.
///
/// # Safety
/// The machine has the instructions; there are as many rows, weights, and values (as [`round_values`] leaves them).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn add_values(
    out: *mut f32,
    shrink: &[f32],
    weights: *const f32,
    values: &Floats,
    num_keys: usize,
    dim: usize,
) {
    for (at, shrink) in shrink.chunks(MOST_ROWS).enumerate() {
        let (row, mut d) = (at * MOST_ROWS, 0);
        while d < dim {
            let is_whole = d + 4 * LANES <= dim;
            // SAFETY: the caller vouches for rows, weights and values.
            unsafe {
                let tile = Tile {
                    left: weights.add(row * SPAN),
                    left_stride: SPAN,
                    right: values.as_ptr().add(d),
                    right_stride: dim,
                    num_pairs: num_keys.div_ceil(2),
                    out: out.add(row * dim + d),
                    out_stride: dim,
                };
                for_size!(tile, shrink.len(), is_whole, shrunk(shrink));
            }
            d += if is_whole { 4 * LANES } else { LANES };
        }
    }
}
