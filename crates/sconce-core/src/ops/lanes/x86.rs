//! [`Lanes`] of x86-64: two registers of AVX2, or one of AVX-512.

use std::arch::x86_64::*;

use super::{EXP2, LEAST_NORMAL_EXPONENT, Lanes};

/// The least exponent that AVX-512 looks at: from it on 2^x is less than the least f32.
const LEAST_EXPONENT: f32 = -200.0;

/// AVX2 with FMA: two registers.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

/// Lanes below `n` of 8.
#[inline(always)]
unsafe fn mask_256(n: usize) -> __m256i {
    // SAFETY: the caller vouches for AVX2.
    unsafe {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), lanes)
    }
}

impl Lanes for Avx2 {
    const NUM_REGISTERS: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller vouches for the instructions, here and below.
        unsafe { Self(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }

    #[inline(always)]
    unsafe fn load(src: *const f32) -> Self {
        // SAFETY: and for 16 numbers.
        unsafe { Self(_mm256_loadu_ps(src), _mm256_loadu_ps(src.add(8))) }
    }

    #[inline(always)]
    unsafe fn load_some(src: *const f32, n: usize) -> Self {
        // SAFETY: and for n numbers: lanes that are masked out are not read.
        unsafe {
            let low = _mm256_maskload_ps(src, mask_256(n.min(8)));
            Self(low, _mm256_maskload_ps(src.wrapping_add(8), mask_256(n.saturating_sub(8))))
        }
    }

    #[inline(always)]
    unsafe fn store(self, dst: *mut f32) {
        // SAFETY: and for 16 numbers.
        unsafe {
            _mm256_storeu_ps(dst, self.0);
            _mm256_storeu_ps(dst.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn store_some(self, dst: *mut f32, n: usize) {
        // SAFETY: and for n numbers: lanes that are masked out are not written.
        unsafe {
            _mm256_maskstore_ps(dst, mask_256(n.min(8)), self.0);
            _mm256_maskstore_ps(dst.wrapping_add(8), mask_256(n.saturating_sub(8)), self.1);
        }
    }

    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm256_max_ps(other.0, self.0), _mm256_max_ps(other.1, self.1)) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn greatest(self) -> f32 {
        // SAFETY: as above.
        unsafe {
            let x = _mm256_max_ps(self.1, self.0);
            let x = _mm_max_ps(_mm256_extractf128_ps::<1>(x), _mm256_castps256_ps128(x));
            let x = _mm_max_ps(_mm_movehl_ps(x, x), x);
            _mm_cvtss_f32(_mm_max_ss(_mm_shuffle_ps::<1>(x, x), x))
        }
    }

    #[inline(always)]
    unsafe fn exp2(self) -> Self {
        // SAFETY: as above.
        unsafe {
            let mut halves = [self.0, self.1];
            for half in &mut halves {
                let x = _mm256_max_ps(_mm256_set1_ps(LEAST_NORMAL_EXPONENT), *half);
                let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
                let f = _mm256_sub_ps(x, n);
                let mut p = _mm256_set1_ps(EXP2[0]);
                for &c in &EXP2[1..] {
                    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(c));
                }
                let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                *half = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)));
            }
            Self(halves[0], halves[1])
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(src: *const u16) -> Self {
        // SAFETY: and for 16 numbers.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(src.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(src.add(8).cast()));
            let (low, high) = (_mm256_slli_epi32::<16>(low), _mm256_slli_epi32::<16>(high));
            Self(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(src: *const u16) -> Self {
        // SAFETY: and for 16 numbers.
        unsafe {
            let (low, high) = (_mm_loadu_si128(src.cast()), _mm_loadu_si128(src.add(8).cast()));
            Self(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(src: *const u32) -> (Self, Self) {
        // SAFETY: and for 16 pairs.
        unsafe {
            let (low, high) = (_mm256_loadu_si256(src.cast()), _mm256_loadu_si256(src.add(8).cast()));
            let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let first = (_mm256_slli_epi32::<16>(low), _mm256_slli_epi32::<16>(high));
            let second = (_mm256_and_si256(low, upper), _mm256_and_si256(high, upper));
            (
                Self(_mm256_castsi256_ps(first.0), _mm256_castsi256_ps(first.1)),
                Self(_mm256_castsi256_ps(second.0), _mm256_castsi256_ps(second.1)),
            )
        }
    }

    #[inline(always)]
    fn prefetch(src: *const u8) {
        // SAFETY: every x86-64 has it, and no address is wrong.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(src.cast()) }
    }
}

/// AVX-512: one register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(pub(crate) __m512);

impl Lanes for Avx512 {
    const NUM_REGISTERS: usize = 32;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller vouches for the instructions, here and below.
        unsafe { Self(_mm512_set1_ps(x)) }
    }

    #[inline(always)]
    unsafe fn load(src: *const f32) -> Self {
        // SAFETY: and for 16 numbers.
        unsafe { Self(_mm512_loadu_ps(src)) }
    }

    #[inline(always)]
    unsafe fn load_some(src: *const f32, n: usize) -> Self {
        // SAFETY: and for n numbers: lanes that are masked out are not read.
        unsafe { Self(_mm512_maskz_loadu_ps(((1u32 << n) - 1) as u16, src)) }
    }

    #[inline(always)]
    unsafe fn store(self, dst: *mut f32) {
        // SAFETY: and for 16 numbers.
        unsafe { _mm512_storeu_ps(dst, self.0) }
    }

    #[inline(always)]
    unsafe fn store_some(self, dst: *mut f32, n: usize) {
        // SAFETY: and for n numbers: lanes that are masked out are not written.
        unsafe { _mm512_mask_storeu_ps(dst, ((1u32 << n) - 1) as u16, self.0) }
    }

    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm512_fmadd_ps(a.0, b.0, self.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm512_max_ps(other.0, self.0)) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm512_sub_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn greatest(self) -> f32 {
        // SAFETY: as above.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn exp2(self) -> Self {
        // SAFETY: as above.
        unsafe {
            let x = _mm512_max_ps(_mm512_set1_ps(LEAST_EXPONENT), self.0);
            let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            let f = _mm512_sub_ps(x, n);
            let mut p = _mm512_set1_ps(EXP2[0]);
            for &c in &EXP2[1..] {
                p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
            }
            Self(_mm512_scalef_ps(p, n))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(src: *const u16) -> Self {
        // SAFETY: and for 16 numbers.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(src.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(src: *const u16) -> Self {
        // SAFETY: and for 16 numbers.
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(src.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(src: *const u32) -> (Self, Self) {
        // SAFETY: and for 16 pairs.
        unsafe {
            let pairs = _mm512_loadu_si512(src.cast());
            let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            (Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs))), Self(_mm512_castsi512_ps(second)))
        }
    }

    #[inline(always)]
    fn prefetch(src: *const u8) {
        // SAFETY: every x86-64 has it, and no address is wrong.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(src.cast()) }
    }
}
