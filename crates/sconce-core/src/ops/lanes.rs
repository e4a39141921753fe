//! [`Lanes`]: 16 numbers side by side, for kernels whose registers the compiler does not choose well by itself.
//!
//! What is generic in it is `#[inline(always)]` and called from a function compiled for the instruction set, like the
//! bodies of [`multiversion`](crate::backend::cpu::multiversion). Each lane is computed alike in all of them, but for
//! [`Lanes::fma`], which rounds twice where the machine has no fused operation.

use crate::ops::simd::LANES;

/// 16 numbers.
///
/// # Safety
/// Every function: the machine has the instruction set; pointers are good for as many numbers as are read or written.
pub(super) trait Lanes: Copy {
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
}

/// What every machine has.
impl Lanes for [f32; LANES] {
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
    }

    /// AVX-512: one register.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(__m512);

    impl Lanes for Avx512 {
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
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};
