//! [`Lanes`]: 16 numbers side by side, for kernels whose registers the compiler does not choose well by itself.
//!
//! What is generic in it is `#[inline(always)]` and called from a function compiled for the instruction set, like the
//! bodies of [`multiversion`](crate::backend::cpu::multiversion). Each lane is computed alike in all of them, but for
//! [`Lanes::fma`], which rounds twice where the machine has no fused operation.

use crate::ops::simd::LANES;
use crate::weights::quant::f16_to_f32;

/// 16 numbers.
///
/// # Safety
/// Every function: the machine has the instruction set; pointers are good for as many numbers as are read or written.
pub(super) trait Lanes: Copy {
    /// How many registers of 16 numbers the machine has.
    const NUM_REGISTERS: usize;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(src: *const f32) -> Self;
    /// The first `n`, below 16; zeros in the other lanes.
    unsafe fn load_some(src: *const f32, n: usize) -> Self;
    unsafe fn store(self, dst: *mut f32);
    /// The first `n`, below 16.
    unsafe fn store_some(self, dst: *mut f32, n: usize);
    /// a * b + self.
    unsafe fn fma(self, a: Self, b: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn max(self, other: Self) -> Self;
    /// 16 halves.
    unsafe fn load_f16(src: *const u16) -> Self;
    /// 16 pairs of bf16: the firsts and the seconds.
    unsafe fn load_bf16_pairs(src: *const u32) -> (Self, Self);
    /// Asks for a line of memory, which need not exist.
    fn prefetch(_src: *const u8) {}
}

/// What every machine has.
impl Lanes for [f32; LANES] {
    const NUM_REGISTERS: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load(src: *const f32) -> Self {
        // SAFETY: the caller vouches for 16 numbers.
        unsafe { src.cast::<Self>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_some(src: *const f32, n: usize) -> Self {
        let mut lanes = [0.0; LANES];
        for (i, lane) in lanes.iter_mut().enumerate().take(n) {
            // SAFETY: the caller vouches for n numbers.
            *lane = unsafe { *src.add(i) };
        }
        lanes
    }

    #[inline(always)]
    unsafe fn store(self, dst: *mut f32) {
        // SAFETY: the caller vouches for 16 numbers.
        unsafe { dst.cast::<Self>().write_unaligned(self) }
    }

    #[inline(always)]
    unsafe fn store_some(self, dst: *mut f32, n: usize) {
        for (i, lane) in self.into_iter().enumerate().take(n) {
            // SAFETY: the caller vouches for n numbers.
            unsafe { *dst.add(i) = lane };
        }
    }

    #[inline(always)]
    unsafe fn fma(mut self, a: Self, b: Self) -> Self {
        for i in 0..LANES {
            self[i] += a[i] * b[i];
        }
        self
    }

    #[inline(always)]
    unsafe fn mul(mut self, other: Self) -> Self {
        for i in 0..LANES {
            self[i] *= other[i];
        }
        self
    }

    #[inline(always)]
    unsafe fn add(mut self, other: Self) -> Self {
        for i in 0..LANES {
            self[i] += other[i];
        }
        self
    }

    #[inline(always)]
    unsafe fn max(mut self, other: Self) -> Self {
        for i in 0..LANES {
            self[i] = self[i].max(other[i]);
        }
        self
    }

    #[inline(always)]
    unsafe fn load_f16(src: *const u16) -> Self {
        // SAFETY: the caller vouches for 16 numbers.
        unsafe { src.cast::<[u16; LANES]>().read_unaligned() }.map(f16_to_f32)
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(src: *const u32) -> (Self, Self) {
        // SAFETY: the caller vouches for 16 pairs.
        let pairs = unsafe { src.cast::<[u32; LANES]>().read_unaligned() };
        (pairs.map(|pair| f32::from_bits(pair << 16)), pairs.map(|pair| f32::from_bits(pair & 0xffff_0000)))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Lanes;

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
            unsafe { Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
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
    pub(crate) struct Avx512(__m512);

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
            unsafe { Self(_mm512_max_ps(self.0, other.0)) }
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
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};
