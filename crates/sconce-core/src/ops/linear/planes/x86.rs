//! Inputs become integers by AVX-512 with VNNI, or in words by AVX2.

use std::arch::x86_64::*;

use super::{Form, GROUP, LEAST, MAX_8, MAX_16, MatmulPrecision, RowMut};

/// Groups that are quantized together, so that what is one number a group is found for all of them at once.
const GROUPS: usize = 4;

/// The same, by vectors.
///
/// # Safety
/// The machine has AVX-512 F, BW, DQ, VL and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn quantize(precision: MatmulPrecision, limit: f32, out: &mut RowMut<'_>, x: &[f32]) {
    let num_groups = x.len() / GROUP;
    if num_groups < GROUPS {
        return super::quantize(precision, limit, out, x);
    }
    for first in (0..num_groups).step_by(GROUPS) {
        // SAFETY: the groups are there. The last ones may be quantized twice, to the same.
        unsafe { groups(precision, limit, out, x, first.min(num_groups - GROUPS)) };
    }
}

/// Groups `first..first + GROUPS`.
///
/// # Safety
/// The machine has the instructions; the row has the groups.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn groups(precision: MatmulPrecision, limit: f32, out: &mut RowMut<'_>, x: &[f32], first: usize) {
    let (x, at) = (x[first * GROUP..].as_ptr(), first * GROUP);
    let mut max = [_mm256_setzero_ps(); GROUPS];
    for (g, max) in max.iter_mut().enumerate() {
        // SAFETY: a group has 32 inputs.
        let (a, b) = unsafe { (_mm512_loadu_ps(x.add(g * GROUP)), _mm512_loadu_ps(x.add(g * GROUP + 16))) };
        let both = _mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b));
        *max = _mm256_max_ps(_mm512_castps512_ps256(both), _mm512_extractf32x8_ps::<1>(both));
    }
    let max = max_of_each(max);
    // As `Form::of` has them.
    let has_low = _mm_cmp_ps_mask::<_CMP_GT_OQ>(max, _mm_set1_ps(limit));
    let greatest = _mm_mask_blend_ps(has_low, _mm_set1_ps(MAX_8), _mm_set1_ps(MAX_16));
    let is_any = _mm_cmp_ps_mask::<_CMP_GT_OQ>(max, _mm_set1_ps(LEAST));
    let (mut scale, inverse) = (_mm_maskz_div_ps(is_any, max, greatest), _mm_maskz_div_ps(is_any, greatest, max));
    let is_shifted = if precision == MatmulPrecision::Fast { 0 } else { !has_low };
    scale = _mm_mask_mul_ps(scale, is_shifted, scale, _mm_set1_ps(1.0 / 256.0));
    let shift = _mm_maskz_set1_epi32(is_shifted, 8);
    let (mut inverses, mut shifts) = ([0.0; GROUPS], [0; GROUPS]);
    let (mut hi_sums, mut lo_sums) = ([_mm256_setzero_si256(); GROUPS], [_mm256_setzero_si256(); GROUPS]);
    let (ones, zero) = (_mm256_set1_epi8(1), _mm256_setzero_si256());
    // SAFETY: places for 4 numbers, and for the 32 of each group in each plane.
    unsafe {
        _mm_storeu_ps(inverses.as_mut_ptr(), inverse);
        _mm_storeu_si128(shifts.as_mut_ptr().cast(), shift);
        for g in 0..GROUPS {
            let (inverse, shift) = (_mm512_set1_ps(inverses[g]), _mm512_set1_epi32(shifts[g]));
            let (mut hi, mut lo) = ([_mm_setzero_si128(); 2], [_mm_setzero_si128(); 2]);
            for half in 0..2 {
                // Rounds to the nearest, halves to the even.
                let x = _mm512_loadu_ps(x.add(g * GROUP + 16 * half));
                let q = _mm512_sllv_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)), shift);
                if precision == MatmulPrecision::Fast {
                    hi[half] = _mm512_cvtepi32_epi8(q);
                } else {
                    let high = _mm512_srai_epi32::<8>(_mm512_add_epi32(q, _mm512_set1_epi32(128)));
                    (hi[half], lo[half]) = (_mm512_cvtepi32_epi8(high), _mm512_cvtepi32_epi8(q));
                }
            }
            let (hi, lo) = (_mm256_set_m128i(hi[1], hi[0]), _mm256_set_m128i(lo[1], lo[0]));
            _mm256_storeu_si256(out.hi.as_mut_ptr().add(at + g * GROUP).cast(), hi);
            hi_sums[g] = _mm256_dpbusd_epi32(zero, ones, hi);
            if precision != MatmulPrecision::Fast {
                _mm256_storeu_si256(out.lo.as_mut_ptr().add(at + g * GROUP).cast(), lo);
                lo_sums[g] = _mm256_dpbusd_epi32(zero, ones, lo);
            }
        }
        // Of each half: [sums of the first halves, sums of the second ones].
        let sums = match precision {
            MatmulPrecision::Fast => sum_of_each(hi_sums),
            _ => _mm256_add_epi32(_mm256_slli_epi32::<8>(sum_of_each(hi_sums)), sum_of_each(lo_sums)),
        };
        let of_halves = _mm256_permutevar8x32_epi32(sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        let of_groups = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
        let scaled = _mm_mul_ps(scale, _mm_cvtepi32_ps(of_groups));
        _mm256_storeu_si256(out.sum16[2 * first..2 * (first + GROUPS)].as_mut_ptr().cast(), of_halves);
        _mm_storeu_si128(out.sum32[first..first + GROUPS].as_mut_ptr().cast(), of_groups);
        _mm_storeu_ps(out.scale[first..first + GROUPS].as_mut_ptr(), scale);
        _mm_storeu_ps(out.scaled_sum[first..first + GROUPS].as_mut_ptr(), scaled);
    }
    for (g, has) in out.has_low[first..first + GROUPS].iter_mut().enumerate() {
        *has = has_low >> g & 1 == 1;
    }
}

/// One row in words.
///
/// # Safety
/// The machine has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn quantize_words(precision: MatmulPrecision, limit: f32, out: &mut RowMut<'_>, x: &[f32]) {
    let sign = _mm256_set1_ps(-0.0);
    for (g, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
        // SAFETY: a group has 32 inputs, and as many words.
        unsafe {
            let x: [__m256; 4] = std::array::from_fn(|i| _mm256_loadu_ps(x[8 * i..].as_ptr()));
            let [a, b, c, d] = x.map(|x| _mm256_andnot_ps(sign, x));
            let max = _mm256_max_ps(_mm256_max_ps(a, b), _mm256_max_ps(c, d));
            let max = _mm_max_ps(_mm256_castps256_ps128(max), _mm256_extractf128_ps::<1>(max));
            let max = _mm_max_ps(max, _mm_movehl_ps(max, max));
            let max = _mm_cvtss_f32(_mm_max_ss(max, _mm_movehdup_ps(max)));
            let form = Form::of(precision, limit, max);
            let (inverse, shift) = (_mm256_set1_ps(form.inverse), _mm_cvtsi32_si128(form.shift as i32));
            let q = x.map(|x| _mm256_sll_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(x, inverse)), shift));
            if precision == MatmulPrecision::Fast {
                let (first, last) = (_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
                let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
                let bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(first, last), order);
                _mm256_storeu_si256(out.hi[g * GROUP..][..GROUP].as_mut_ptr().cast(), bytes);
            }
            for half in 0..2 {
                let both = _mm256_packs_epi32(q[2 * half], q[2 * half + 1]);
                let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(both);
                let words = _mm256_shufflehi_epi16::<0b11_01_10_00>(words);
                let words = _mm256_shufflelo_epi16::<0b11_01_10_00>(words);
                _mm256_storeu_si256(out.words[g * GROUP + 16 * half..][..16].as_mut_ptr().cast(), words);
                out.sum16[2 * g + half] = sum(_mm256_add_epi32(q[2 * half], q[2 * half + 1]));
            }
            out.sum32[g] = out.sum16[2 * g] + out.sum16[2 * g + 1];
            out.has_low[g] = form.has_low;
            out.scale[g] = form.scale;
            out.scaled_sum[g] = form.scale * out.sum32[g] as f32;
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn sum(x: __m256i) -> i32 {
    let four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b11_10>(four));
    _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
}

/// The greatest of each vector's numbers.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx2")]
fn max_of_each([a, b, c, d]: [__m256; GROUPS]) -> __m128 {
    let ab = _mm256_max_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    let cd = _mm256_max_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    let all = _mm256_max_ps(_mm256_shuffle_ps::<0x44>(ab, cd), _mm256_shuffle_ps::<0xee>(ab, cd));
    _mm_max_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps::<1>(all))
}

/// The sums of each vector's first four numbers, then those of the last four.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx2")]
fn sum_of_each([a, b, c, d]: [__m256i; GROUPS]) -> __m256i {
    _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d))
}
