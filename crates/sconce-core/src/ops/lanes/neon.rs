//! [`Lanes`] of aarch64: four registers of NEON, which every such machine has.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{EXP2, LANES, LEAST_NORMAL_EXPONENT, Lanes};

/// NEON: four registers.
#[derive(Clone, Copy)]
pub(crate) struct Neon([float32x4_t; 4]);

impl Neon {
    /// `f` of each register with that of `other`.
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

/// The greater; `a` where it is NaN.
#[inline(always)]
fn greater(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: every aarch64 has NEON, here and below.
    unsafe { vbslq_f32(vcltq_f32(a, b), b, a) }
}

/// 4 halves as f32. (The intrinsic needs a type that Rust has only from 1.94 on.)
#[inline(always)]
pub(crate) fn f32_of_halves(halves: uint16x4_t) -> float32x4_t {
    let out: float32x4_t;
    // SAFETY: as above; the instruction reads and writes registers alone.
    unsafe {
        asm!("fcvtl {out:v}.4s, {halves:v}.4h", out = out(vreg) out, halves = in(vreg) halves, options(pure, nomem, nostack, preserves_flags));
    }
    out
}

impl Lanes for Neon {
    const NUM_REGISTERS: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: every aarch64 has NEON.
        Self([unsafe { vdupq_n_f32(x) }; 4])
    }

    #[inline(always)]
    unsafe fn load(src: *const f32) -> Self {
        // SAFETY: the caller vouches for 16 numbers.
        Self(std::array::from_fn(|i| unsafe { vld1q_f32(src.add(4 * i)) }))
    }

    #[inline(always)]
    unsafe fn load_some(src: *const f32, n: usize) -> Self {
        let mut lanes = [0.0; LANES];
        // SAFETY: the caller vouches for n numbers, below 16.
        unsafe {
            std::ptr::copy_nonoverlapping(src, lanes.as_mut_ptr(), n);
            Self::load(lanes.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn store(self, dst: *mut f32) {
        for (i, x) in self.0.into_iter().enumerate() {
            // SAFETY: the caller vouches for 16 numbers.
            unsafe { vst1q_f32(dst.add(4 * i), x) };
        }
    }

    #[inline(always)]
    unsafe fn store_some(self, dst: *mut f32, n: usize) {
        let mut lanes = [0.0; LANES];
        // SAFETY: the caller vouches for n numbers, below 16.
        unsafe {
            self.store(lanes.as_mut_ptr());
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), dst, n);
        }
    }

    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        // SAFETY: every aarch64 has NEON, here and below.
        Self(std::array::from_fn(|i| unsafe { vfmaq_f32(self.0[i], a.0[i], b.0[i]) }))
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: as above.
        self.zip(other, |a, b| unsafe { vmulq_f32(a, b) })
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        self.zip(other, |a, b| unsafe { vaddq_f32(a, b) })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, greater)
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: as above.
        self.zip(other, |a, b| unsafe { vsubq_f32(a, b) })
    }

    #[inline(always)]
    unsafe fn greatest(self) -> f32 {
        let [a, b, c, d] = self.0;
        let x = greater(greater(a, c), greater(b, d));
        // SAFETY: as above.
        unsafe {
            let x = greater(x, vextq_f32::<2>(x, x));
            vgetq_lane_f32::<0>(greater(x, vextq_f32::<1>(x, x)))
        }
    }

    #[inline(always)]
    unsafe fn exp2(self) -> Self {
        Self(self.0.map(|x| {
            // SAFETY: as above.
            unsafe {
                let x = greater(x, vdupq_n_f32(LEAST_NORMAL_EXPONENT));
                let n = vrndnq_f32(x);
                let f = vsubq_f32(x, n);
                let mut p = vdupq_n_f32(EXP2[0]);
                for &c in &EXP2[1..] {
                    p = vfmaq_f32(vdupq_n_f32(c), p, f);
                }
                let exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
                vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent)))
            }
        }))
    }

    #[inline(always)]
    unsafe fn load_bf16(src: *const u16) -> Self {
        Self(std::array::from_fn(|i| {
            // SAFETY: the caller vouches for 16 numbers.
            unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(src.add(4 * i)))) }
        }))
    }

    #[inline(always)]
    unsafe fn load_f16(src: *const u16) -> Self {
        // SAFETY: the caller vouches for 16 numbers.
        Self(std::array::from_fn(|i| f32_of_halves(unsafe { vld1_u16(src.add(4 * i)) })))
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(src: *const u32) -> (Self, Self) {
        // SAFETY: as above.
        let (mut first, mut second) = unsafe { ([vdupq_n_f32(0.0); 4], [vdupq_n_f32(0.0); 4]) };
        for i in 0..4 {
            // SAFETY: the caller vouches for 16 pairs.
            unsafe {
                let pairs = vld1q_u32(src.add(4 * i));
                first[i] = vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs));
                second[i] = vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff_0000)));
            }
        }
        (Self(first), Self(second))
    }

    #[inline(always)]
    fn prefetch(src: *const u8) {
        // SAFETY: every aarch64 has the instruction, which no address is wrong for.
        unsafe { asm!("prfm pldl1keep, [{src}]", src = in(reg) src, options(readonly, nostack, preserves_flags)) };
    }
}
