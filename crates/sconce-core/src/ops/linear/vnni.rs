//! Products of [`Panels`] with [`Planes`] by `vpdpbusd`: 64 products an instruction.
//!
//! An output's sum runs over the groups of 32 columns in order, one fused multiply-add each (and one more for offsets),
//! in a lane of its own: it is the same bits whatever number of tokens is computed beside it.

use std::arch::x86_64::*;

use super::Target;
use super::panels::{GROUP, Line, Panels, ROWS, factors_of, lines_of, zero_point};
use super::planes::Planes;
use crate::config::MatmulPrecision;
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
        match (weight.dtype(), x.precision) {
            (Dtype::Q4_0, MatmulPrecision::Exact) => run::<Q4_0, 2>(&task),
            (Dtype::Q4_0, MatmulPrecision::Fast) => run::<Q4_0, 1>(&task),
            (Dtype::Q4_1, MatmulPrecision::Exact) => run::<Q4_1, 2>(&task),
            (Dtype::Q4_1, MatmulPrecision::Fast) => run::<Q4_1, 1>(&task),
            (Dtype::Q8_0, MatmulPrecision::Exact) => run::<Q8_0, 2>(&task),
            (Dtype::Q8_0, MatmulPrecision::Fast) => run::<Q8_0, 1>(&task),
            (Dtype::Q4K, MatmulPrecision::Exact) => run::<Q4_K, 2>(&task),
            (Dtype::Q4K, MatmulPrecision::Fast) => run::<Q4_K, 1>(&task),
            (Dtype::Q6K, MatmulPrecision::Exact) => run::<Q6_K, 2>(&task),
            (Dtype::Q6K, MatmulPrecision::Fast) => run::<Q6_K, 1>(&task),
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
        let (mut panel, panels_end) = (task.first, task.first + task.count);
        while panel < panels_end {
            // SAFETY: tokens up to `end` and the panels exist.
            unsafe {
                if panel + 2 <= panels_end && end - start >= 4 {
                    panels::<F, PLANES, 2>(task, panel, start, end);
                    panel += 2;
                } else {
                    panels::<F, PLANES, 1>(task, panel, start, end);
                    panel += 1;
                }
            }
        }
    }
}

/// `P` panels times tokens `t..end`.
///
/// # Safety
/// The machine has the instructions; the weights have the panels, the inputs the tokens.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn panels<const F: u8, const PLANES: usize, const P: usize>(
    task: &Task<'_>,
    panel: usize,
    mut t: usize,
    end: usize,
) {
    // SAFETY: as the caller's.
    unsafe {
        if P == 1 {
            while t + 8 <= end {
                tile::<F, PLANES, P, 8>(task, panel, t);
                t += 8;
            }
        }
        while t + 4 <= end {
            tile::<F, PLANES, P, 4>(task, panel, t);
            t += 4;
        }
        if t + 2 <= end {
            tile::<F, PLANES, P, 2>(task, panel, t);
            t += 2;
        }
        if t < end {
            tile::<F, PLANES, P, 1>(task, panel, t);
        }
    }
}

/// `P` panels times tokens `t0..t0 + T`.
///
/// # Safety
/// The machine has the instructions; the weights have the panels, the inputs the tokens.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn tile<const F: u8, const PLANES: usize, const P: usize, const T: usize>(
    task: &Task<'_>,
    panel: usize,
    t0: usize,
) {
    let Task { weight, x, target, first, .. } = *task;
    let (dtype, groups) = (const { dtype_of(F) }, x.cols / GROUP);
    let groups_a_block = dtype.block_len() / GROUP;
    let blocks = groups / groups_a_block;
    let mut codes = [std::ptr::null(); P];
    let mut scales = [Scales::default(); P];
    for p in 0..P {
        codes[p] = weight.codes_of(panel + p).as_ptr();
        scales[p] = Scales {
            d: weight.d[(panel + p) * blocks * ROWS..].as_ptr(),
            m: weight.m.as_ptr().wrapping_add((panel + p) * blocks * ROWS),
            factors: weight.factors.as_ptr().wrapping_add((panel + p) * groups * factors_of(dtype)),
        };
    }
    let mut acc = [[_mm512_setzero_ps(); T]; P];
    for g in 0..groups {
        // SAFETY: the panels have codes and scales of every group, and each token has inputs, scales and sums of it.
        unsafe {
            if T == 1 && P == 1 {
                prefetch::<F>(codes[0], &scales[0], g + AHEAD);
            }
            let mut code = [[_mm512_setzero_si512(); 8]; P];
            let mut scale = [([_mm512_setzero_ps(); 2], _mm512_setzero_ps()); P];
            for p in 0..P {
                code[p] = load_codes::<F>(codes[p].add(g * lines_of(dtype)));
                scale[p] = scales[p].load::<F>(g, g / groups_a_block);
            }
            for i in 0..T {
                let (at, col) = ((t0 + i) * groups + g, (t0 + i) * x.cols + g * GROUP);
                let (hi, lo) = (x.hi.as_ptr().add(col), x.lo.as_ptr().add(col));
                let x_scale = _mm512_set1_ps(*x.scale.get_unchecked(at));
                if F == Q6_K {
                    for half in 0..2 {
                        let sum = *x.sum16.get_unchecked(2 * at + half);
                        let (hi, lo) = (hi.add(16 * half), lo.add(16 * half));
                        let dots = dots::<F, PLANES, P, 4>(&code, 4 * half, hi, lo, sum);
                        for p in 0..P {
                            let scale = _mm512_mul_ps(scale[p].0[half], x_scale);
                            acc[p][i] = _mm512_fmadd_ps(dots[p], scale, acc[p][i]);
                        }
                    }
                } else {
                    let dots = dots::<F, PLANES, P, 8>(&code, 0, hi, lo, *x.sum32.get_unchecked(at));
                    for p in 0..P {
                        let scale = _mm512_mul_ps(scale[p].0[0], x_scale);
                        acc[p][i] = _mm512_fmadd_ps(dots[p], scale, acc[p][i]);
                    }
                }
                if F == Q4_1 || F == Q4_K {
                    let x_sum = _mm512_set1_ps(*x.scaled_sum.get_unchecked(at));
                    for p in 0..P {
                        acc[p][i] = _mm512_fmadd_ps(scale[p].1, x_sum, acc[p][i]);
                    }
                }
            }
        }
    }
    for (p, acc) in acc.into_iter().enumerate() {
        for (i, acc) in acc.into_iter().enumerate() {
            // SAFETY: the task's own cells, of which no others are held here; the mask has no more lanes than there are.
            unsafe {
                let (out, bias) = target.cells(t0 + i, (panel + p - first) * ROWS);
                let mask = ((1u32 << out.len().min(ROWS)) - 1) as u16;
                let bias = bias.map_or(_mm512_setzero_ps(), |b| _mm512_maskz_loadu_ps(mask, b.as_ptr()));
                _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, _mm512_add_ps(acc, bias));
            }
        }
    }
}

/// Asks for the weights of a group, which need not exist.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn prefetch<const F: u8>(codes: *const Line, scales: &Scales, g: usize) {
    let dtype = const { dtype_of(F) };
    let block = g / (dtype.block_len() / GROUP) * ROWS;
    for j in 0..lines_of(dtype) {
        _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(g * lines_of(dtype) + j).cast());
    }
    _mm_prefetch::<_MM_HINT_T0>(scales.d.wrapping_add(block).cast());
    if F == Q4_1 || F == Q4_K {
        _mm_prefetch::<_MM_HINT_T0>(scales.m.wrapping_add(block).cast());
    }
    if F == Q4_K || F == Q6_K {
        _mm_prefetch::<_MM_HINT_T0>(scales.factors.wrapping_add(g * factors_of(dtype)).cast());
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
#[derive(Clone, Copy)]
struct Scales {
    d: *const u16,
    m: *const u16,
    factors: *const u8,
}

impl Default for Scales {
    fn default() -> Self {
        Self { d: std::ptr::null(), m: std::ptr::null(), factors: std::ptr::null() }
    }
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

/// Sums of (code - zero point) * q over 4 * `QUADS` columns from quad `first` on. `x_sum`: the sum of q there.
///
/// # Safety
/// The machine has the instructions; the planes have the columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn dots<const F: u8, const PLANES: usize, const P: usize, const QUADS: usize>(
    codes: &[[__m512i; 8]; P],
    first: usize,
    hi: *const i8,
    lo: *const i8,
    x_sum: i32,
) -> [__m512; P] {
    let (mut high, mut low) = ([_mm512_setzero_si512(); P], [_mm512_setzero_si512(); P]);
    for j in 0..QUADS {
        // SAFETY: the caller vouches for the columns.
        unsafe {
            let four = _mm512_set1_epi32(hi.add(4 * j).cast::<i32>().read_unaligned());
            for p in 0..P {
                high[p] = _mm512_dpbusd_epi32(high[p], codes[p][first + j], four);
            }
            if PLANES == 2 {
                let four = _mm512_set1_epi32(lo.add(4 * j).cast::<i32>().read_unaligned());
                for p in 0..P {
                    low[p] = _mm512_dpbusd_epi32(low[p], codes[p][first + j], four);
                }
            }
        }
    }
    let zero_point = const { zero_point(dtype_of(F)) };
    let mut dots = [_mm512_setzero_ps(); P];
    for p in 0..P {
        let mut sum = if PLANES == 2 { _mm512_add_epi32(_mm512_slli_epi32(high[p], 8), low[p]) } else { high[p] };
        if zero_point > 0 {
            // |q| * 128 * 32 is within an i32.
            sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(x_sum * zero_point));
        }
        dots[p] = _mm512_cvtepi32_ps(sum);
    }
    dots
}
