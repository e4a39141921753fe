//! Products of one unpacked row of 8-bit weights with inputs in 16 bits, for each instruction set.
//!
//! In every one a token's sum is taken in the same order whatever the number of tokens beside it: two accumulators
//! take the groups in turn.

use super::quantized::{GROUP, QuantizedRows, Row};

/// One instruction set's products.
pub(super) trait Int8 {
    /// Products of `w` with tokens `t..t + T`. `G`: weights that share a scale, 16 or 32.
    ///
    /// # Safety
    /// The machine has the instruction set; `w` and `x` have the same number of columns, a multiple of 32, and `x` has
    /// the tokens.
    unsafe fn dots<const G: usize, const T: usize>(w: &Row<'_>, x: &QuantizedRows, t: usize) -> [f32; T];
}

/// What every machine has: the reference of the others.
pub(super) struct Baseline;

impl Int8 for Baseline {
    #[inline(always)]
    unsafe fn dots<const G: usize, const T: usize>(w: &Row<'_>, x: &QuantizedRows, t: usize) -> [f32; T] {
        let mut sums = [0.0; T];
        for (i, sum) in sums.iter_mut().enumerate() {
            let mut acc = [0.0f32; 2];
            for (g, q) in w.q.chunks_exact(G).enumerate() {
                let start = (t + i) * x.cols + g * G;
                let mut product = 0i32;
                for (&q, &p) in q.iter().zip(&x.q[start..start + G]) {
                    product += i32::from(q) * i32::from(p);
                }
                acc[g % 2] += product as f32 * (w.scale[g] * x.scale[start / GROUP]);
            }
            *sum = acc[0] + acc[1];
        }
        sums
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{GROUP, Int8, QuantizedRows, Row};

    /// 16 products an instruction, `vpmaddwd` on 256 bits.
    pub(crate) struct Avx2;

    impl Int8 for Avx2 {
        #[inline(always)]
        unsafe fn dots<const G: usize, const T: usize>(w: &Row<'_>, x: &QuantizedRows, t: usize) -> [f32; T] {
            // SAFETY: the caller vouches for the instructions, and that all groups lie within the rows.
            unsafe {
                // Even and odd groups have accumulators of their own, so that neither waits for the other's sum.
                let (mut even, mut odd) = ([_mm256_setzero_ps(); T], [_mm256_setzero_ps(); T]);
                let (num_groups, mut g) = (w.scale.len(), 0);
                while g + 2 <= num_groups {
                    add_group_256::<G, T>(&mut even, w, x, t, g);
                    add_group_256::<G, T>(&mut odd, w, x, t, g + 1);
                    g += 2;
                }
                if g < num_groups {
                    add_group_256::<G, T>(&mut even, w, x, t, g);
                }
                let mut sums = [0.0; T];
                for i in 0..T {
                    let sum = _mm256_add_ps(even[i], odd[i]);
                    let four = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
                    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                    sums[i] = _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
                }
                sums
            }
        }
    }

    /// Adds the products of group `g`, `G` columns.
    ///
    /// # Safety
    /// As [`Int8::dots`]; the row has the group.
    #[inline(always)]
    unsafe fn add_group_256<const G: usize, const T: usize>(
        acc: &mut [__m256; T],
        w: &Row<'_>,
        x: &QuantizedRows,
        t: usize,
        g: usize,
    ) {
        // SAFETY: group g has weights g * G..(g + 1) * G, and inputs at the same columns of each token.
        unsafe {
            let q = w.q.as_ptr().add(g * G);
            let scale = *w.scale.get_unchecked(g);
            let low = _mm256_cvtepi8_epi16(_mm_loadu_si128(q.cast()));
            let high = if G == 32 { _mm256_cvtepi8_epi16(_mm_loadu_si128(q.add(16).cast())) } else { low };
            for i in 0..T {
                let start = (t + i) * x.cols + g * G;
                let p = x.q.as_ptr().add(start);
                let mut sums = _mm256_madd_epi16(low, _mm256_loadu_si256(p.cast()));
                if G == 32 {
                    let more = _mm256_madd_epi16(high, _mm256_loadu_si256(p.add(16).cast()));
                    sums = _mm256_add_epi32(sums, more);
                }
                let factor = _mm256_set1_ps(scale * *x.scale.get_unchecked(start / GROUP));
                acc[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), factor, acc[i]);
            }
        }
    }

    /// 32 products an instruction, `vpmaddwd` on 512 bits; groups of 16 go two at a time.
    pub(crate) struct Avx512;

    impl Int8 for Avx512 {
        #[inline(always)]
        unsafe fn dots<const G: usize, const T: usize>(w: &Row<'_>, x: &QuantizedRows, t: usize) -> [f32; T] {
            // SAFETY: the caller vouches for the instructions, and that all columns lie within the rows.
            unsafe {
                let (mut even, mut odd) = ([_mm512_setzero_ps(); T], [_mm512_setzero_ps(); T]);
                let (num_groups, mut g) = (w.q.len() / GROUP, 0);
                while g + 2 <= num_groups {
                    add_group_512::<G, T>(&mut even, w, x, t, g);
                    add_group_512::<G, T>(&mut odd, w, x, t, g + 1);
                    g += 2;
                }
                if g < num_groups {
                    add_group_512::<G, T>(&mut even, w, x, t, g);
                }
                let mut sums = [0.0; T];
                for i in 0..T {
                    sums[i] = _mm512_reduce_add_ps(_mm512_add_ps(even[i], odd[i]));
                }
                sums
            }
        }
    }

    /// Adds the products of columns `g * 32..(g + 1) * 32`.
    ///
    /// # Safety
    /// As [`Int8::dots`]; the row has the columns.
    #[inline(always)]
    unsafe fn add_group_512<const G: usize, const T: usize>(
        acc: &mut [__m512; T],
        w: &Row<'_>,
        x: &QuantizedRows,
        t: usize,
        g: usize,
    ) {
        // SAFETY: the row and each token have the columns; a row has a scale for every G of them.
        unsafe {
            let q = _mm512_cvtepi8_epi16(_mm256_loadu_si256(w.q.as_ptr().add(g * GROUP).cast()));
            let scale = if G == 32 {
                _mm512_set1_ps(*w.scale.get_unchecked(g))
            } else {
                let low = _mm512_set1_ps(*w.scale.get_unchecked(2 * g));
                _mm512_mask_mov_ps(low, 0xff00, _mm512_set1_ps(*w.scale.get_unchecked(2 * g + 1)))
            };
            for i in 0..T {
                let start = (t + i) * x.cols + g * GROUP;
                let p = _mm512_loadu_si512(x.q.as_ptr().add(start).cast());
                let sums = _mm512_cvtepi32_ps(_mm512_madd_epi16(q, p));
                let factor = _mm512_mul_ps(scale, _mm512_set1_ps(*x.scale.get_unchecked(start / GROUP)));
                acc[i] = _mm512_fmadd_ps(sums, factor, acc[i]);
            }
        }
    }
}
