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
    /// The greater; `self` where it is NaN.
    unsafe fn max(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    /// The greatest lane.
    unsafe fn greatest(self) -> f32;
    /// 2^x within 2 units in the last place for x from -125 to 126; below -151 it is 0, and NaN stays NaN.
    unsafe fn exp2(self) -> Self;
    /// 16 bf16.
    unsafe fn load_bf16(src: *const u16) -> Self;
    /// 16 halves.
    unsafe fn load_f16(src: *const u16) -> Self;
    /// 16 pairs of bf16: the firsts and the seconds.
    unsafe fn load_bf16_pairs(src: *const u32) -> (Self, Self);
    /// Asks for a line of memory, which need not exist.
    fn prefetch(_src: *const u8) {}
}

/// 2^x for x from -0.5 to 0.5 within 3e-9, relatively (interpolated at Chebyshev's nodes): factors of x^6 to x, and 1.
const EXP2: [f32; 7] =
    [1.546_144_5e-4, 1.340_042_8e-3, 9.618_057e-3, 5.550_327e-2, 0.240_226_5, std::f32::consts::LN_2, 1.0];
/// The least exponent that is looked at where 2^n is put together from bits: those of 2^-127 are 0.
const LEAST_NORMAL_EXPONENT: f32 = -127.0;

/// Plain code.
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
            self[i] = if self[i] < other[i] { other[i] } else { self[i] };
        }
        self
    }

    #[inline(always)]
    unsafe fn sub(mut self, other: Self) -> Self {
        for i in 0..LANES {
            self[i] -= other[i];
        }
        self
    }

    #[inline(always)]
    unsafe fn greatest(mut self) -> f32 {
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                self[i] = if self[i] < self[i + width] { self[i + width] } else { self[i] };
            }
            width /= 2;
        }
        self[0]
    }

    #[inline(always)]
    unsafe fn exp2(mut self) -> Self {
        /// Adding it leaves an integer in the low bits.
        const ROUND: f32 = 12_582_912.0;
        for x in &mut self {
            let clamped = if *x < LEAST_NORMAL_EXPONENT { LEAST_NORMAL_EXPONENT } else { *x };
            let shifted = clamped + ROUND;
            let f = clamped - (shifted - ROUND);
            let mut p = EXP2[0];
            for c in &EXP2[1..] {
                p = p * f + c;
            }
            *x = p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
        }
        self
    }

    #[inline(always)]
    unsafe fn load_bf16(src: *const u16) -> Self {
        // SAFETY: the caller vouches for 16 numbers.
        unsafe { src.cast::<[u16; LANES]>().read_unaligned() }.map(|bits| f32::from_bits(u32::from(bits) << 16))
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

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
pub(super) use neon::{Neon, f32_of_halves};
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

/// What every machine of the architecture has.
#[cfg(target_arch = "aarch64")]
pub(super) type Baseline = Neon;
/// What every machine of the architecture has.
#[cfg(not(target_arch = "aarch64"))]
pub(super) type Baseline = [f32; LANES];

#[cfg(test)]
mod tests;
