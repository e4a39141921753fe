//! Products of [`Panels`] with inputs in words of 16 bits ([`Planes::words`]) by `vpmaddwd`: 16 products an instruction.
//!
//! Registers hold 8 rows, half a panel: codes of two columns of each become two words of a lane, and meet the same two words of
//! a token. Few tokens take codes from the panel as they are multiplied; for more of them a panel is unpacked once ([`Unpacked`]), and
//! tiles of tokens read that. Inputs of 8 bits meet codes of up to 6 bits as bytes there, by `vpmaddubsw`.
//!
//! An output's sum runs over the groups of 32 columns in order, with the operations that [`vnni`](super::vnni) has in one lane:
//! both give the same bits.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::Target;
use super::avx2_tiles::{self, Unpacked};
use super::panels::format::*;
use super::panels::{GROUP, Layout, Line, Panels, ROWS, Scales};
use super::planes::Planes;
use crate::config::MatmulPrecision;

/// Bytes of inputs that a pass over a task's panels goes through: they stay in the second cache, beside a panel.
const CHUNK_BYTES: usize = 256 << 10;
/// For so many tokens a panel is unpacked first.
const MIN_UNPACKED: usize = 9;
/// Rows of a register.
pub(super) const HALF: usize = 8;
/// Groups that a lone token's weights are asked for ahead of their use.
const AHEAD: usize = 16;

thread_local! {
    static UNPACKED: RefCell<Unpacked> = RefCell::default();
}

/// Panels `first..first + count` times the target's tokens.
///
/// # Safety
/// The machine has AVX2, FMA and F16C.
pub(super) unsafe fn multiply(target: &Target<'_>, weight: &Panels, first: usize, count: usize, x: &Planes) {
    let task = Task { target, weight, first, count, x };
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        match format_of(weight.dtype()) {
            Q4_0 => run::<Q4_0>(&task),
            Q4_1 => run::<Q4_1>(&task),
            Q5_0 => run::<Q5_0>(&task),
            Q5_1 => run::<Q5_1>(&task),
            Q8_0 => run::<Q8_0>(&task),
            Q2_K => run::<Q2_K>(&task),
            Q3_K => run::<Q3_K>(&task),
            Q4_K => run::<Q4_K>(&task),
            Q5_K => run::<Q5_K>(&task),
            Q6_K => run::<Q6_K>(&task),
            INT4_G32 => run::<INT4_G32>(&task),
            INT4_G128 => run::<INT4_G128>(&task),
            _ => run::<MXFP4>(&task),
        }
    }
}

/// What one task multiplies.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    pub(super) target: &'a Target<'a>,
    pub(super) weight: &'a Panels,
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) x: &'a Planes,
}

/// # Safety
/// The machine has the instructions; the weights have format `F`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run<const F: u8>(task: &Task<'_>) {
    let Task { target, first, count, x, .. } = *task;
    let chunk_rows = (CHUNK_BYTES / (2 * x.cols)).next_multiple_of(avx2_tiles::TOKENS).max(avx2_tiles::TOKENS);
    // Products of bytes by those of 8 bits would not be within 16.
    let in_bytes = x.precision == MatmulPrecision::Fast && F != Q8_0;
    for start in (target.first_token..target.end_token).step_by(chunk_rows) {
        let end = target.end_token.min(start + chunk_rows);
        for panel in first..first + count {
            // SAFETY: tokens up to `end` and the panel exist.
            unsafe {
                if end - start >= MIN_UNPACKED {
                    UNPACKED.with_borrow_mut(|unpacked| {
                        unpacked.fill::<F>(in_bytes, task.weight, panel, x.cols);
                        avx2_tiles::multiply::<F>(task, unpacked, panel, [start, end]);
                    });
                    continue;
                }
                let mut t = start;
                while t < end {
                    t += match end - t {
                        4.. => tile::<F, 4>(task, panel, t),
                        2.. => tile::<F, 2>(task, panel, t),
                        _ => tile::<F, 1>(task, panel, t),
                    };
                }
            }
        }
    }
}

/// A panel times tokens `t0..t0 + T`. Returns `T`.
///
/// # Safety
/// The machine has the instructions; the weights have the panel, the inputs the tokens.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const F: u8, const T: usize>(task: &Task<'_>, panel: usize, t0: usize) -> usize {
    let Task { weight, x, target, first, .. } = *task;
    let (layout, groups) = (const { layout_of(F) }, x.cols / GROUP);
    let codes = weight.codes_of(panel).as_ptr();
    let scales = Scales::new(weight, panel, groups);
    // The compiler does not know how many they are: unrolled, the sums would be taken in an order that needs more registers than there are.
    let num_quads = Layout::of(weight.dtype()).quads_a_part();
    let mut acc = [[_mm256_setzero_ps(); T]; 2];
    for g in 0..groups {
        if T == 1 {
            prefetch::<F>(codes, &scales, g + AHEAD);
        }
        // SAFETY: the panel has codes and scales of every group, and each token has inputs, scales and sums of it.
        unsafe {
            let lines = codes.add(g * layout.lines());
            let words = x.words.as_ptr().add(t0 * x.cols + g * GROUP);
            for part in 0..layout.parts {
                for (half, acc) in acc.iter_mut().enumerate() {
                    let mut sums = [_mm256_setzero_si256(); T];
                    add_products::<F, T>(&mut sums, (lines, [half, part]), num_quads, words, x.cols);
                    let (scale, offset) = scales.load::<F>(g, half);
                    for i in 0..T {
                        let at = (t0 + i) * groups + g;
                        acc[i] = add_scaled::<F>(acc[i], sums[i], scale[part], offset[part], x, [at, part]);
                    }
                }
            }
        }
    }
    for i in 0..T {
        for (half, acc) in acc.iter().enumerate() {
            // SAFETY: the task's own cells, of which no others are held here.
            unsafe { store(target, t0 + i, (panel - first) * ROWS + half * HALF, acc[i]) };
        }
    }
    T
}

/// `acc` and what a group's integers, by codes with their zero point, stand for: of group `at` of the inputs, of formats with two scales
/// a group in half `part` of its columns.
///
/// # Safety
/// The machine has the instructions; the inputs have the group.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn add_scaled<const F: u8>(
    acc: __m256,
    sum: __m256i,
    scale: __m256,
    offset: __m256,
    x: &Planes,
    [at, part]: [usize; 2],
) -> __m256 {
    let layout = const { layout_of(F) };
    // SAFETY: the caller vouches for the group.
    unsafe {
        let x_sum = if layout.parts == 2 { *x.sum16.get_unchecked(2 * at + part) } else { *x.sum32.get_unchecked(at) };
        let x_sum = _mm256_set1_epi32(x_sum);
        let sum = match layout.zero_point {
            0 => sum,
            4 => _mm256_sub_epi32(sum, _mm256_slli_epi32::<2>(x_sum)),
            8 => _mm256_sub_epi32(sum, _mm256_slli_epi32::<3>(x_sum)),
            16 => _mm256_sub_epi32(sum, _mm256_slli_epi32::<4>(x_sum)),
            32 => _mm256_sub_epi32(sum, _mm256_slli_epi32::<5>(x_sum)),
            128 => _mm256_sub_epi32(sum, _mm256_slli_epi32::<7>(x_sum)),
            zero_point => _mm256_sub_epi32(sum, _mm256_mullo_epi32(x_sum, _mm256_set1_epi32(zero_point))),
        };
        let mut sum = _mm256_cvtepi32_ps(sum);
        if F == INT4_G32 || F == INT4_G128 {
            sum = _mm256_fnmadd_ps(offset, _mm256_cvtepi32_ps(x_sum), sum);
        }
        let x_scale = _mm256_set1_ps(*x.scale.get_unchecked(at));
        let acc = _mm256_fmadd_ps(sum, _mm256_mul_ps(scale, x_scale), acc);
        if layout.has_offset { _mm256_fmadd_ps(offset, scaled_sum(x, layout.parts, [at, part]), acc) } else { acc }
    }
}

/// The sum of a group's inputs, or of half `part` of it.
///
/// # Safety
/// The machine has the instructions; the inputs have the group.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn scaled_sum(x: &Planes, parts: usize, [at, part]: [usize; 2]) -> __m256 {
    // SAFETY: the caller vouches for the group.
    unsafe {
        if parts == 1 {
            return _mm256_set1_ps(*x.scaled_sum.get_unchecked(at));
        }
        let sum = _mm256_cvtepi32_ps(_mm256_set1_epi32(*x.sum16.get_unchecked(2 * at + part)));
        _mm256_mul_ps(_mm256_set1_ps(*x.scale.get_unchecked(at)), sum)
    }
}

/// Writes the sums of half a panel, from the task's row `row` on, as far as there are rows.
///
/// # Safety
/// The machine has the instructions; nobody else holds these cells.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn store(target: &Target<'_>, t: usize, row: usize, sums: __m256) {
    if row >= target.num_rows {
        return;
    }
    // SAFETY: the caller vouches for the cells.
    let (out, bias) = unsafe { target.cells(t, row) };
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(out.len() as i32), lanes);
    // SAFETY: the mask has no more of 8 lanes than there are cells, and numbers of the bias.
    unsafe {
        let bias = bias.map_or(_mm256_setzero_ps(), |bias| _mm256_maskload_ps(bias.as_ptr(), mask));
        _mm256_maskstore_ps(out.as_mut_ptr(), mask, _mm256_add_ps(sums, bias));
    }
}

/// Adds the products of codes of half a panel, in part `part` of a group's quads of 4 columns, with each token's words. `words`: the first
/// token's, `cols` before the next one's.
///
/// # Safety
/// The machine has the instructions; `lines` are those of a group, and every token has inputs of it.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_products<const F: u8, const T: usize>(
    sums: &mut [__m256i; T],
    (lines, [half, part]): (*const Line, [usize; 2]),
    num_quads: usize,
    words: *const i16,
    cols: usize,
) {
    // SAFETY: the caller vouches for the lines and the inputs.
    unsafe {
        if const { layout_of(F).lines() != 4 } || F == MXFP4 {
            // A lone token's sums are few: unrolled, shifts are known.
            let num_quads = if T == 1 { const { layout_of(F).quads_a_part() } } else { num_quads };
            for quad in part * num_quads..(part + 1) * num_quads {
                let codes = words_of_bytes(load_codes::<F>(lines, half, quad));
                add_quad(sums, codes, words.add(4 * quad), cols);
            }
            return;
        }
        // Of 4 bits a line has two quads, whose nibbles become words at once.
        let low = _mm256_set1_epi16(0x0f);
        for k in 0..num_quads / 2 {
            let line = _mm256_load_si256(lines.add(k).cast::<__m256i>().add(half));
            let first = [_mm256_and_si256(line, low), _mm256_and_si256(_mm256_srli_epi16::<8>(line), low)];
            let second = [_mm256_and_si256(_mm256_srli_epi16::<4>(line), low), _mm256_srli_epi16::<12>(line)];
            add_quad(sums, first, words.add(4 * k), cols);
            add_quad(sums, second, words.add(16 + 4 * k), cols);
        }
    }
}

/// Adds the products of 4 columns' codes with each token's.
///
/// # Safety
/// The machine has the instructions; every token has the columns.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_quad<const T: usize>(sums: &mut [__m256i; T], codes: [__m256i; 2], words: *const i16, cols: usize) {
    for (i, sum) in sums.iter_mut().enumerate() {
        for (pair, codes) in codes.into_iter().enumerate() {
            // SAFETY: the caller vouches for the inputs.
            let two = unsafe { words.add(i * cols + 2 * pair).cast::<i32>().read_unaligned() };
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(codes, _mm256_set1_epi32(two)));
        }
    }
}

/// Unsigned bytes of 4 columns as words: those of the first and third in each lane, and of the second and fourth.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn words_of_bytes(codes: __m256i) -> [__m256i; 2] {
    [_mm256_and_si256(codes, _mm256_set1_epi16(0xff)), _mm256_srli_epi16::<8>(codes)]
}

/// Codes of 4 columns of half a panel as unsigned bytes.
///
/// # Safety
/// The machine has the instructions; `lines` are those of a group, which has the quad.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn load_codes<const F: u8>(lines: *const Line, half: usize, quad: usize) -> __m256i {
    let layout = const { layout_of(F) };
    // SAFETY: the caller vouches for the lines.
    let load = |line: usize| unsafe { _mm256_load_si256(lines.add(line).cast::<__m256i>().add(half)) };
    // Within 16 bits: what comes of the byte beside it is masked off.
    let shifted = |line: __m256i, shift: usize| _mm256_srl_epi16(line, _mm_cvtsi32_si128(shift as i32));
    let low = match layout.low_bits {
        8 => return load(quad),
        4 => _mm256_and_si256(shifted(load(quad % 4), quad / 4 * 4), _mm256_set1_epi8(0x0f)),
        _ => _mm256_and_si256(shifted(load(quad / 4), quad % 4 * 2), _mm256_set1_epi8(3)),
    };
    if F == MXFP4 {
        let numbers = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(numbers), low);
    }
    let upper = match layout.upper_bits {
        0 => return low,
        1 => _mm256_and_si256(shifted(load(layout.low_bits), quad), _mm256_set1_epi8(1)),
        _ => _mm256_and_si256(shifted(load(layout.low_bits + quad / 4), quad % 4 * 2), _mm256_set1_epi8(3)),
    };
    let upper = if layout.low_bits == 4 { _mm256_slli_epi16::<4>(upper) } else { _mm256_slli_epi16::<2>(upper) };
    _mm256_or_si256(low, upper)
}

/// Asks for the weights of a group, which need not exist.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn prefetch<const F: u8>(codes: *const Line, scales: &Scales, g: usize) {
    let (dtype, layout) = (const { dtype_of(F) }, const { layout_of(F) });
    let block = g / (dtype.block_len() / GROUP) * ROWS;
    for j in 0..layout.lines() {
        _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(g * layout.lines() + j).cast());
    }
    _mm_prefetch::<_MM_HINT_T0>(scales.d.wrapping_add(block).cast());
    if layout.has_offset || F == INT4_G32 || F == INT4_G128 {
        _mm_prefetch::<_MM_HINT_T0>(scales.m.wrapping_add(block).cast());
    }
    if layout.factors() > 0 {
        _mm_prefetch::<_MM_HINT_T0>(scales.factors.wrapping_add(g * layout.factors()).cast());
    }
}

impl Scales {
    /// The scales of half a panel in group `g`, of formats with two of each half of the columns, and its offsets, or for INT4 its codes
    /// of 0.
    ///
    /// # Safety
    /// The machine has the instructions; the panel has the group.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn load<const F: u8>(&self, g: usize, half: usize) -> ([__m256; 2], [__m256; 2]) {
        let (zero, at, layout) = (_mm256_setzero_ps(), half * HALF, const { layout_of(F) });
        let block = g / const { dtype_of(F).block_len() / GROUP } * ROWS + at;
        // SAFETY: the caller vouches for the group; formats without offsets or factors do not read them.
        unsafe {
            let bits = _mm_loadu_si128(self.d.add(block).cast());
            let d = if F == MXFP4 {
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
            } else {
                _mm256_cvtph_ps(bits)
            };
            let m = || _mm256_cvtph_ps(_mm_loadu_si128(self.m.add(block).cast()));
            let factors = self.factors.wrapping_add(g * layout.factors() + at);
            let eight = |idx: usize| _mm_loadl_epi64(factors.add(idx * ROWS).cast());
            let scaled = |idx: usize| _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight(idx))));
            let signed = |idx: usize| _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight(idx))));
            let offset = |idx: usize| {
                let factor = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight(idx)));
                _mm256_sub_ps(zero, _mm256_mul_ps(m(), factor))
            };
            match F {
                Q4_1 | Q5_1 | INT4_G32 | INT4_G128 => ([d, zero], [m(), zero]),
                Q4_K | Q5_K => ([scaled(0), zero], [offset(1), zero]),
                Q2_K => ([scaled(0), scaled(1)], [offset(2), offset(3)]),
                Q3_K | Q6_K => ([signed(0), signed(1)], [zero; 2]),
                _ => ([d, zero], [zero; 2]),
            }
        }
    }
}
