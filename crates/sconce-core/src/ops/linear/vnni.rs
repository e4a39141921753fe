//! Products of [`Panels`] with [`Planes`] by `vpdpbusd`: 64 products an instruction.
//!
//! A tile is some panels times some tokens: for every 4 columns a register of codes meets each token's inputs, so that as
//! many sums run side by side as the tile has outputs. Sums of 32 columns are integers, hence exact: the low plane is added
//! where any token of the tile needs it, and adds 0 to the others.
//!
//! An output's sum runs over the groups of 32 columns in order, one fused multiply-add each (and one more for offsets),
//! in a lane of its own: it is the same bits whatever number of tokens is computed beside it.

use std::arch::x86_64::*;

use super::Target;
use super::panels::format::*;
use super::panels::{GROUP, Line, Panels, ROWS};
use super::planes::Planes;
use crate::config::MatmulPrecision;
use crate::weights::Dtype;

/// Bytes of inputs that a pass over a task's panels goes through: they stay in the second cache, beside the panels at hand
/// and the next ones.
const CHUNK_BYTES: usize = 512 << 10;

/// Groups that a lone token's weights are asked for ahead of their use: short tasks leave the machine's own guesses
/// no time to settle.
const AHEAD: usize = 16;

/// Where inputs have a low plane, as const parameters.
const NO_LOW: u8 = 0;
const SOME_LOW: u8 = 1;
const ALL_LOW: u8 = 2;

/// Whether there is a kernel for the type; [`avx2`](super::avx2) has the others.
pub(super) fn supports(dtype: Dtype) -> bool {
    use Dtype::*;
    matches!(dtype, Q4_0 | Q4_1 | Q8_0 | Q4K | Q6K | Int4G32 | Int4G128)
}

/// Panels `first..first + count` times the target's tokens.
///
/// # Safety
/// The machine has AVX-512 F, BW, DQ, VL and VNNI.
pub(super) unsafe fn multiply(target: &Target<'_>, weight: &Panels, first: usize, count: usize, x: &Planes) {
    let task = Task { target, weight, first, count, x };
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        match format_of(weight.dtype()) {
            Q4_0 => with_planes::<Q4_0>(&task),
            Q4_1 => with_planes::<Q4_1>(&task),
            Q8_0 => with_planes::<Q8_0>(&task),
            Q4_K => with_planes::<Q4_K>(&task),
            Q6_K => with_planes::<Q6_K>(&task),
            INT4_G32 => with_planes::<INT4_G32>(&task),
            INT4_G128 => with_planes::<INT4_G128>(&task),
            _ => unreachable!("{} has no kernel here", weight.dtype()),
        }
    }
}

/// # Safety
/// The machine has the instructions; the weights have format `F`.
unsafe fn with_planes<const F: u8>(task: &Task<'_>) {
    // SAFETY: as the caller's.
    unsafe {
        match task.x.precision {
            MatmulPrecision::Mixed => run::<F, SOME_LOW>(task),
            MatmulPrecision::Exact => run::<F, ALL_LOW>(task),
            MatmulPrecision::Fast => run::<F, NO_LOW>(task),
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
unsafe fn run<const F: u8, const LOW: u8>(task: &Task<'_>) {
    let num_planes = const { if LOW == NO_LOW { 1 } else { 2 } };
    let chunk_rows = (CHUNK_BYTES / (num_planes * task.x.cols)).next_multiple_of(12).max(12);
    for start in (task.target.first_token..task.target.end_token).step_by(chunk_rows) {
        let end = task.target.end_token.min(start + chunk_rows);
        let (mut panel, panels_end) = (task.first, task.first + task.count);
        while panel < panels_end {
            // SAFETY: tokens up to `end` and the panels exist.
            unsafe {
                if panel + 2 <= panels_end && end - start >= 2 {
                    panels::<F, LOW, 2>(task, panel, start, end);
                    panel += 2;
                } else {
                    panels::<F, LOW, 1>(task, panel, start, end);
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
unsafe fn panels<const F: u8, const LOW: u8, const P: usize>(task: &Task<'_>, panel: usize, mut t: usize, end: usize) {
    let num_passes = task.x.cols / GROUP * (end - t).div_ceil(6);
    let mut next = Next::new(task.weight, panel + P, P, num_passes);
    while t < end {
        // SAFETY: as the caller's.
        unsafe {
            // Two tiles of 4 read weights as often as one of 6 and one of 2, and waste less on the second.
            t += match end - t {
                8 | 4 | 5 => tile::<F, LOW, P, 4>(task, panel, t, &mut next),
                6.. => tile::<F, LOW, P, 6>(task, panel, t, &mut next),
                2.. => tile::<F, LOW, P, 2>(task, panel, t, &mut next),
                _ => tile::<F, LOW, P, 1>(task, panel, t, &mut next),
            };
        }
    }
}

/// What the task's next panels consist of, as far as it is not yet asked for: the tiles of the panels at hand bring it to the
/// second cache, some lines with every group. It need not exist.
struct Next {
    /// Codes, d, m and factors: where they are, and bytes that are left.
    ranges: [(*const u8, usize); 4],
    at: usize,
    /// Bytes with every group.
    each: usize,
}

impl Next {
    /// Of `count` panels from `panel` on, in so many passes over a group.
    #[inline(always)]
    fn new(weight: &Panels, panel: usize, count: usize, num_passes: usize) -> Self {
        let len = weight.codes_of(0).len() * 64;
        let (d_len, m_len) = (2 * weight.num_d(), if weight.m.is_empty() { 0 } else { 2 * weight.num_d() });
        let factors_len = weight.num_factors();
        let range = |start: *const u8, len: usize| (start.wrapping_add(panel * len), count * len);
        let ranges = [
            range(weight.codes_ptr(), len),
            range(weight.d.as_ptr().cast(), d_len),
            range(weight.m.as_ptr().cast(), m_len),
            range(weight.factors.as_ptr(), factors_len),
        ];
        let num_bytes = ranges.iter().map(|range| range.1).sum::<usize>();
        Self { ranges, at: 0, each: num_bytes.div_ceil(num_passes).next_multiple_of(64) }
    }

    #[inline(always)]
    fn prefetch(&mut self) {
        let Some((start, rest)) = self.ranges.get_mut(self.at) else { return };
        for line in 0..self.each / 64 {
            // SAFETY: every x86-64 has the instruction, which reads nothing and takes any address.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(64 * line).cast()) };
        }
        *start = start.wrapping_add(self.each);
        *rest = rest.saturating_sub(self.each);
        if *rest == 0 {
            self.at += 1;
        }
    }
}

/// `P` panels times tokens `t0..t0 + T`. Returns `T`.
///
/// # Safety
/// The machine has the instructions; the weights have the panels, the inputs the tokens.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn tile<const F: u8, const LOW: u8, const P: usize, const T: usize>(
    task: &Task<'_>,
    panel: usize,
    t0: usize,
    next: &mut Next,
) -> usize {
    let Task { weight, x, target, first, .. } = *task;
    let (dtype, layout, groups) = (const { dtype_of(F) }, const { layout_of(F) }, x.cols / GROUP);
    let groups_a_block = dtype.block_len() / GROUP;
    let blocks = groups / groups_a_block;
    let mut codes = [std::ptr::null(); P];
    let mut scales = [Scales::default(); P];
    for p in 0..P {
        codes[p] = weight.codes_of(panel + p).as_ptr();
        scales[p] = Scales {
            d: weight.d[(panel + p) * blocks * ROWS..].as_ptr(),
            m: weight.m.as_ptr().wrapping_add((panel + p) * blocks * ROWS),
            factors: weight.factors.as_ptr().wrapping_add((panel + p) * groups * layout.factors()),
        };
    }
    for p in 0..P {
        for i in 0..T {
            _mm_prefetch::<_MM_HINT_T0>(target.address(t0 + i, (panel + p - first) * ROWS).cast());
        }
    }
    let mut acc = [[_mm512_setzero_ps(); T]; P];
    for g in 0..groups {
        // SAFETY: the panels have codes and scales of every group, and each token has inputs, scales and sums of it.
        unsafe {
            if T == 1 && P == 1 {
                prefetch::<F>(codes[0], &scales[0], g + AHEAD);
            } else {
                next.prefetch();
            }
            let mut has_low = LOW == ALL_LOW;
            if LOW == SOME_LOW {
                for i in 0..T {
                    has_low |= *x.has_low.get_unchecked((t0 + i) * groups + g);
                }
            }
            let mut lines = [std::ptr::null(); P];
            for p in 0..P {
                lines[p] = codes[p].add(g * layout.lines());
            }
            let inputs = t0 * x.cols + g * GROUP;
            let (hi, lo) = (x.hi.as_ptr().add(inputs), x.lo.as_ptr().add(inputs));
            for part in 0..const { if F == Q6_K { 2 } else { 1 } } {
                let mut sums = [[_mm512_setzero_si512(); T]; P];
                add_products::<F, P, T>(&mut sums, &lines, part, hi, x.cols);
                if LOW != NO_LOW {
                    for sums in &mut sums {
                        for sum in sums {
                            *sum = _mm512_slli_epi32(*sum, 8);
                        }
                    }
                    if has_low {
                        add_products::<F, P, T>(&mut sums, &lines, part, lo, x.cols);
                    }
                }
                for p in 0..P {
                    let (scale, offset) = scales[p].load::<F>(g, g / groups_a_block);
                    for i in 0..T {
                        let at = (t0 + i) * groups + g;
                        let mut sum = sums[p][i];
                        let zero_point = const { layout_of(F).zero_point };
                        if zero_point > 0 {
                            let x_sums = if F == Q6_K { &x.sum16 } else { &x.sum32 };
                            let x_sum = if F == Q6_K { 2 * at + part } else { at };
                            // |q| * 128 * 32 is within an i32.
                            let x_sum = _mm512_set1_epi32(*x_sums.get_unchecked(x_sum) * zero_point);
                            sum = _mm512_sub_epi32(sum, x_sum);
                        }
                        let mut sum = _mm512_cvtepi32_ps(sum);
                        if F == INT4_G32 || F == INT4_G128 {
                            // Integers within 2^24 that f32 has all: what stands in for an offset is the code of 0.
                            let x_sum = _mm512_cvtepi32_ps(_mm512_set1_epi32(*x.sum32.get_unchecked(at)));
                            sum = _mm512_fnmadd_ps(offset, x_sum, sum);
                        }
                        let scale = _mm512_mul_ps(scale[part], _mm512_set1_ps(*x.scale.get_unchecked(at)));
                        acc[p][i] = _mm512_fmadd_ps(sum, scale, acc[p][i]);
                        if F == Q4_1 || F == Q4_K {
                            let x_sum = _mm512_set1_ps(*x.scaled_sum.get_unchecked(at));
                            acc[p][i] = _mm512_fmadd_ps(offset, x_sum, acc[p][i]);
                        }
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
    T
}

/// Adds the products of a group's codes with one plane; of Q6_K, those of half `part`. `x`: the first token's inputs,
/// `cols` before the next one's.
///
/// # Safety
/// The machine has the instructions; `lines` are those of a group, and every token has inputs of it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn add_products<const F: u8, const P: usize, const T: usize>(
    sums: &mut [[__m512i; T]; P],
    lines: &[*const Line; P],
    part: usize,
    x: *const i8,
    cols: usize,
) {
    let num_quads = const { if F == Q6_K { 4 } else { 8 } };
    for j in 0..num_quads {
        let quad = part * 4 + j;
        // SAFETY: the caller vouches for the lines and the inputs.
        unsafe {
            let mut codes = [_mm512_setzero_si512(); P];
            for p in 0..P {
                codes[p] = load_codes::<F>(lines[p], quad);
            }
            for i in 0..T {
                let four = _mm512_set1_epi32(x.add(i * cols + 4 * quad).cast::<i32>().read_unaligned());
                for p in 0..P {
                    sums[p][i] = _mm512_dpbusd_epi32(sums[p][i], codes[p], four);
                }
            }
        }
    }
}

/// Asks for the weights of a group, which need not exist.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn prefetch<const F: u8>(codes: *const Line, scales: &Scales, g: usize) {
    let (dtype, layout) = (const { dtype_of(F) }, const { layout_of(F) });
    let block = g / (dtype.block_len() / GROUP) * ROWS;
    for j in 0..layout.lines() {
        _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(g * layout.lines() + j).cast());
    }
    _mm_prefetch::<_MM_HINT_T0>(scales.d.wrapping_add(block).cast());
    if F != Q4_0 && F != Q8_0 && F != Q6_K {
        _mm_prefetch::<_MM_HINT_T0>(scales.m.wrapping_add(block).cast());
    }
    if F == Q4_K || F == Q6_K {
        _mm_prefetch::<_MM_HINT_T0>(scales.factors.wrapping_add(g * layout.factors()).cast());
    }
}

/// Codes of 4 columns as unsigned bytes.
///
/// # Safety
/// The machine has the instructions; `lines` are those of a group, which has the quad.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn load_codes<const F: u8>(lines: *const Line, quad: usize) -> __m512i {
    // SAFETY: the caller vouches for the lines.
    unsafe {
        if F == Q8_0 {
            return _mm512_load_si512(lines.add(quad).cast());
        }
        let line = _mm512_load_si512(lines.add(quad % 4).cast());
        let line = if quad < 4 { line } else { _mm512_srli_epi16(line, 4) };
        let codes = _mm512_and_si512(line, _mm512_set1_epi8(0x0f));
        if F != Q6_K {
            return codes;
        }
        let line = _mm512_load_si512(lines.add(4 + quad / 4).cast());
        let upper = match quad % 4 {
            0 => _mm512_slli_epi16(line, 4),
            1 => _mm512_slli_epi16(line, 2),
            2 => line,
            _ => _mm512_srli_epi16(line, 2),
        };
        _mm512_or_si512(codes, _mm512_and_si512(upper, _mm512_set1_epi8(0x30)))
    }
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
    /// The scales of group `g`, of each half for Q6_K, and its offsets, or for INT4 its codes of 0.
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
                Q4_1 | INT4_G32 | INT4_G128 => ([d, zero], m()),
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
