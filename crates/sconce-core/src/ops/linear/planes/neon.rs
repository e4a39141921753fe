//! Inputs become planes by NEON.

use std::arch::aarch64::*;

use super::{Form, GROUP, MatmulPrecision, RowMut};

/// The same, by vectors.
pub(super) fn quantize(precision: MatmulPrecision, limit: f32, out: &mut RowMut<'_>, x: &[f32]) {
    for (g, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
        // SAFETY: every aarch64 has NEON; a group has 32 inputs, and places for as many.
        unsafe {
            let x: [float32x4_t; 8] = std::array::from_fn(|i| vld1q_f32(x[4 * i..].as_ptr()));
            let max = x[1..].iter().fold(vabsq_f32(x[0]), |max, &x| vmaxnmq_f32(max, vabsq_f32(x)));
            let form = Form::of(precision, limit, vmaxnmvq_f32(max));
            let shift = vdupq_n_s32(form.shift as i32);
            // Rounds to the nearest, halves to the even.
            let q = x.map(|x| vshlq_s32(vcvtnq_s32_f32(vmulq_n_f32(x, form.inverse)), shift));
            if precision == MatmulPrecision::Fast {
                store(&mut out.hi[g * GROUP..], q);
            } else {
                store(&mut out.hi[g * GROUP..], q.map(|q| vshrq_n_s32::<8>(vaddq_s32(q, vdupq_n_s32(128)))));
                store(&mut out.lo[g * GROUP..], q);
            }
            for half in 0..2 {
                let [a, b, c, d] = [q[4 * half], q[4 * half + 1], q[4 * half + 2], q[4 * half + 3]];
                out.sum16[2 * g + half] = vaddvq_s32(vaddq_s32(vaddq_s32(a, b), vaddq_s32(c, d)));
            }
            out.sum32[g] = out.sum16[2 * g] + out.sum16[2 * g + 1];
            out.has_low[g] = form.has_low;
            out.scale[g] = form.scale;
            out.scaled_sum[g] = form.scale * out.sum32[g] as f32;
        }
    }
}

/// The low bytes of a group.
#[inline(always)]
fn store(out: &mut [i8], q: [int32x4_t; 8]) {
    for (i, out) in out[..GROUP].as_chunks_mut::<8>().0.iter_mut().enumerate() {
        // SAFETY: every aarch64 has NEON; there are 8 places.
        unsafe {
            let words = vcombine_s16(vmovn_s32(q[2 * i]), vmovn_s32(q[2 * i + 1]));
            vst1_s8(out.as_mut_ptr(), vmovn_s16(words));
        }
    }
}
