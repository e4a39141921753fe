//! Products of [`Panels`] with [`Planes`] by `vpdpbusd`: 64 products an instruction.
//!
//! An output's sum runs over the groups of 32 columns in order, one fused multiply-add each (and one more for offsets),
//! in a lane of its own: it is the same bits whatever number of tokens is computed beside it.

use std::arch::x86_64::*;

use super::Target;
use super::panels::{GROUP, Line, Panels, ROWS, factors_of, lines_of, zero_point};
use super::planes::Planes;
use crate::backend::cpu::InputBits;
use crate::weights::Dtype;

/// Bytes of inputs that a pass over a task's panels goes through: they stay in the second cache.
const CHUNK_BYTES: usize = 256 << 10;

/// Groups that a lone token's weights are asked for ahead of their use: short tasks leave the machine's own guesses
/// no time to settle.
const AHEAD: usize = 16;

/// Formats as const parameters.
const Q4_0: u8 = 0;
const Q4_1: u8 = 1;
const Q8_0: u8 = 2;
const Q4_K: u8 = 3;
const Q6_K: u8 = 4;

const fn dtype_of(format: u8) -> Dtype {
    match format {
        Q4_0 => Dtype::Q4_0,
        Q4_1 => Dtype::Q4_1,
        Q8_0 => Dtype::Q8_0,
        Q4_K => Dtype::Q4K,
        _ => Dtype::Q6K,
    }
}

/// Panels `first..first + count` times all tokens.
///
/// # Safety
/// The machine has AVX-512 F, BW, DQ, VL and VNNI.
pub(super) unsafe fn multiply(target: &Target<'_>, weight: &Panels, first: usize, count: usize, x: &Planes) {
    let task = Task { target, weight, first, count, x };
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        match (weight.dtype(), x.bits) {
            (Dtype::Q4_0, InputBits::Sixteen) => run::<Q4_0, 2>(&task),
            (Dtype::Q4_0, InputBits::Eight) => run::<Q4_0, 1>(&task),
            (Dtype::Q4_1, InputBits::Sixteen) => run::<Q4_1, 2>(&task),
            (Dtype::Q4_1, InputBits::Eight) => run::<Q4_1, 1>(&task),
            (Dtype::Q8_0, InputBits::Sixteen) => run::<Q8_0, 2>(&task),
            (Dtype::Q8_0, InputBits::Eight) => run::<Q8_0, 1>(&task),
            (Dtype::Q4K, InputBits::Sixteen) => run::<Q4_K, 2>(&task),
            (Dtype::Q4K, InputBits::Eight) => run::<Q4_K, 1>(&task),
            (Dtype::Q6K, InputBits::Sixteen) => run::<Q6_K, 2>(&task),
            (Dtype::Q6K, InputBits::Eight) => run::<Q6_K, 1>(&task),
            (dtype, _) => unreachable!("{dtype} is not packed"),
        }
    }
}

/// What one task multiplies.
struct Task<'a> {
    target: &'a Target<'a>,
    weight: &'a Panels,
    first: usize,
    count: usize,
    x: &'a Planes,
}

/// # Safety
/// The machine has the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn run<const F: u8, const PLANES: usize>(task: &Task<'_>) {
    let chunk_rows = (CHUNK_BYTES / (PLANES * task.x.cols)).next_multiple_of(8).max(8);
    for start in (0..task.x.rows).step_by(chunk_rows) {
        let end = task.x.rows.min(start + chunk_rows);
        for panel in task.first..task.first + task.count {
            let mut t = start;
            // SAFETY: tokens up to `end` and the panel exist.
            unsafe {
                while t + 8 <= end {
                    tile::<F, PLANES, 8>(task, panel, t);
                    t += 8;
                }
                if t + 4 <= end {
                    tile::<F, PLANES, 4>(task, panel, t);
                    t += 4;
                }
                if t + 2 <= end {
                    tile::<F, PLANES, 2>(task, panel, t);
                    t += 2;
                }
                if t < end {
                    tile::<F, PLANES, 1>(task, panel, t);
                }
            }
        }
    }
}

/// One panel times tokens `t0..t0 + T`.
///
/// # Safety
/// The machine has the instructions; the weights have the panel, the inputs the tokens.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn tile<const F: u8, const PLANES: usize, const T: usize>(task: &Task<'_>, panel: usize, t0: usize) {
    let Task { weight, x, target, first, .. } = *task;
    let (dtype, groups) = (const { dtype_of(F) }, x.cols / GROUP);
    let groups_a_block = dtype.block_len() / GROUP;
    let blocks = groups / groups_a_block;
    let codes = weight.codes_of(panel).as_ptr();
    let scales = Scales {
        d: weight.d[panel * blocks * ROWS..].as_ptr(),
        m: weight.m.as_ptr().wrapping_add(panel * blocks * ROWS),
        factors: weight.factors.as_ptr().wrapping_add(panel * groups * factors_of(dtype)),
    };
    let mut acc = [_mm512_setzero_ps(); T];
    for g in 0..groups {
        // SAFETY: the panel has codes and scales of every group, and each token has inputs, scales and sums of it.
        unsafe {
            if T == 1 {
                for j in 0..lines_of(dtype) {
                    _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add((g + AHEAD) * lines_of(dtype) + j).cast());
                }
                let ahead = (g + AHEAD) / groups_a_block * ROWS;
                _mm_prefetch::<_MM_HINT_T0>(scales.d.wrapping_add(ahead).cast());
                if F == Q4_1 || F == Q4_K {
                    _mm_prefetch::<_MM_HINT_T0>(scales.m.wrapping_add(ahead).cast());
                }
            }
            let codes = load_codes::<F>(codes.add(g * lines_of(dtype)));
            let (scale, offset) = scales.load::<F>(g, g / groups_a_block);
            for i in 0..T {
                let (at, col) = ((t0 + i) * groups + g, (t0 + i) * x.cols + g * GROUP);
                let (hi, lo) = (x.hi.as_ptr().add(col), x.lo.as_ptr().add(col));
                let x_scale = _mm512_set1_ps(*x.scale.get_unchecked(at));
                if F == Q6_K {
                    for half in 0..2 {
                        let sum = *x.sum16.get_unchecked(2 * at + half);
                        let dots = dots::<F, PLANES, 4>(&codes[4 * half..], hi.add(16 * half), lo.add(16 * half), sum);
                        acc[i] = _mm512_fmadd_ps(dots, _mm512_mul_ps(scale[half], x_scale), acc[i]);
                    }
                } else {
                    let dots = dots::<F, PLANES, 8>(&codes, hi, lo, *x.sum32.get_unchecked(at));
                    acc[i] = _mm512_fmadd_ps(dots, _mm512_mul_ps(scale[0], x_scale), acc[i]);
                }
                if F == Q4_1 || F == Q4_K {
                    let x_sum = _mm512_set1_ps(*x.scaled_sum.get_unchecked(at));
                    acc[i] = _mm512_fmadd_ps(offset, x_sum, acc[i]);
                }
            }
        }
    }
    for (i, acc) in acc.into_iter().enumerate() {
        let (out, bias) = target.cells(t0 + i, (panel - first) * ROWS);
        let mask = ((1u32 << out.len().min(ROWS)) - 1) as u16;
        // SAFETY: the mask has no more lanes than `out`, and than the bias.
        unsafe {
            let bias = bias.map_or(_mm512_setzero_ps(), |b| _mm512_maskz_loadu_ps(mask, b.as_ptr()));
            _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, _mm512_add_ps(acc, bias));
        }
    }
}

/// Codes of 32 columns as unsigned bytes, 4 columns to a register.
///
/// # Safety
/// The machine has the instructions; `lines` are those of a group.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn load_codes<const F: u8>(lines: *const Line) -> [__m512i; 8] {
    let mut codes = [_mm512_setzero_si512(); 8];
    // SAFETY: the caller vouches for the lines.
    unsafe {
        if F == Q8_0 {
            for (j, codes) in codes.iter_mut().enumerate() {
                *codes = _mm512_load_si512(lines.add(j).cast());
            }
            return codes;
        }
        let nibble = _mm512_set1_epi8(0x0f);
        for j in 0..4 {
            let line = _mm512_load_si512(lines.add(j).cast());
            codes[j] = _mm512_and_si512(line, nibble);
            codes[j + 4] = _mm512_and_si512(_mm512_srli_epi16(line, 4), nibble);
        }
        if F == Q6_K {
            let two_bits = _mm512_set1_epi8(0x30);
            for half in 0..2 {
                let line = _mm512_load_si512(lines.add(4 + half).cast());
                let shifted =
                    [_mm512_slli_epi16(line, 4), _mm512_slli_epi16(line, 2), line, _mm512_srli_epi16(line, 2)];
                for (j, upper) in shifted.into_iter().enumerate() {
                    let upper = _mm512_and_si512(upper, two_bits);
                    codes[4 * half + j] = _mm512_or_si512(codes[4 * half + j], upper);
                }
            }
        }
    }
    codes
}

/// A panel's scales.
struct Scales {
    d: *const u16,
    m: *const u16,
    factors: *const u8,
}

impl Scales {
    /// The scales of group `g`, of each half for Q6_K, and its offsets.
    ///
    /// # Safety
    /// The machine has the instructions; the panel has the group, in block `block`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn load<const F: u8>(&self, g: usize, block: usize) -> ([__m512; 2], __m512) {
        let zero = _mm512_setzero_ps();
        // SAFETY: the caller vouches for the group; formats without offsets or factors do not read them.
        unsafe {
            let d = _mm512_cvtph_ps(_mm256_loadu_si256(self.d.add(block * ROWS).cast()));
            let m = || _mm512_cvtph_ps(_mm256_loadu_si256(self.m.add(block * ROWS).cast()));
            let factors = self.factors.add(g * 2 * ROWS);
            match F {
                Q4_1 => ([d, zero], m()),
                Q4_K => {
                    let scale = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(factors.cast())));
                    let offset = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(factors.add(ROWS).cast())));
                    ([_mm512_mul_ps(d, scale), zero], _mm512_sub_ps(zero, _mm512_mul_ps(m(), offset)))
                }
                Q6_K => {
                    let low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(factors.cast())));
                    let high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(factors.add(ROWS).cast())));
                    ([_mm512_mul_ps(d, low), _mm512_mul_ps(d, high)], zero)
                }
                _ => ([d, zero], zero),
            }
        }
    }
}

/// Sums of (code - zero point) * q over 4 * `QUADS` columns. `x_sum`: the sum of q there.
///
/// # Safety
/// The machine has the instructions; the planes have the columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn dots<const F: u8, const PLANES: usize, const QUADS: usize>(
    codes: &[__m512i],
    hi: *const i8,
    lo: *const i8,
    x_sum: i32,
) -> __m512 {
    let (mut high, mut low) = (_mm512_setzero_si512(), _mm512_setzero_si512());
    for j in 0..QUADS {
        // SAFETY: the caller vouches for the columns.
        unsafe {
            let four = _mm512_set1_epi32(hi.add(4 * j).cast::<i32>().read_unaligned());
            high = _mm512_dpbusd_epi32(high, codes[j], four);
            if PLANES == 2 {
                let four = _mm512_set1_epi32(lo.add(4 * j).cast::<i32>().read_unaligned());
                low = _mm512_dpbusd_epi32(low, codes[j], four);
            }
        }
    }
    let mut sum = if PLANES == 2 { _mm512_add_epi32(_mm512_slli_epi32(high, 8), low) } else { high };
    let zero_point = const { zero_point(dtype_of(F)) };
    if zero_point > 0 {
        // |q| * 128 * 32 is within an i32.
        sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(x_sum * zero_point));
    }
    _mm512_cvtepi32_ps(sum)
}
