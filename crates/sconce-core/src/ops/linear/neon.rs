//! Products of [`Panels`] with [`Planes`] by `sdot`: 16 products an instruction, 4 columns of 4 rows.
//!
//! Four registers hold the codes of 4 columns of a panel, as signed bytes, and meet the same 4 inputs of a token in every lane. A lone
//! token takes codes from the panel as they are multiplied; for more of them those of 32 columns are unpacked once for up to 16 tokens.
//!
//! An output's sum runs over the groups of 32 columns in order, with the operations that [`add_scaled`] has: those of x86-64's
//! kernels, so that all give the same bits.

use std::arch::aarch64::*;
use std::arch::asm;

use super::Target;
use super::panels::format::*;
use super::panels::{GROUP, Line, Panels, ROWS, Scales};
use super::planes::Planes;
use crate::config::MatmulPrecision;
use crate::ops::lanes::f32_of_halves;

/// Bytes of inputs that a pass over a task's panels goes through: they stay in the second cache.
const CHUNK_BYTES: usize = 256 << 10;
/// Tokens that share codes once these are unpacked.
const TOKENS: usize = 16;
/// Quads, 4 columns each, of a group.
const QUADS: usize = GROUP / 4;

/// A number, or a sum, of each row of a panel.
type Floats = [float32x4_t; 4];
type Integers = [int32x4_t; 4];
/// Codes of 4 columns of each row.
type Codes = [int8x16_t; 4];

/// Panels `first..first + count` times the target's tokens.
///
/// # Safety
/// The machine has products of bytes (FEAT_DotProd).
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
struct Task<'a> {
    target: &'a Target<'a>,
    weight: &'a Panels,
    first: usize,
    count: usize,
    x: &'a Planes,
}

/// # Safety
/// The machine has the instructions; the weights have format `F`.
#[target_feature(enable = "neon,dotprod")]
unsafe fn run<const F: u8>(task: &Task<'_>) {
    let Task { target, first, count, x, .. } = *task;
    let chunk_rows = (CHUNK_BYTES / (2 * x.cols)).next_multiple_of(TOKENS).max(TOKENS);
    for start in (target.first_token..target.end_token).step_by(chunk_rows) {
        let end = target.end_token.min(start + chunk_rows);
        for panel in first..first + count {
            for t in (start..end).step_by(TOKENS) {
                let num_tokens = TOKENS.min(end - t);
                // SAFETY: the panel and the tokens exist.
                unsafe {
                    if num_tokens == 1 {
                        lone::<F>(task, panel, t);
                    } else {
                        many::<F>(task, panel, t, num_tokens);
                    }
                }
            }
        }
    }
}

/// A panel times token `t`.
///
/// # Safety
/// The machine has the instructions; the weights have the panel, the inputs the token.
#[target_feature(enable = "neon,dotprod")]
unsafe fn lone<const F: u8>(task: &Task<'_>, panel: usize, t: usize) {
    let (layout, x) = (const { layout_of(F) }, Inputs::new(task.x));
    let scales = Scales::new(task.weight, panel, x.groups);
    let lines = task.weight.codes_of(panel).as_ptr();
    let mut acc = [vdupq_n_f32(0.0); 4];
    for g in 0..x.groups {
        // SAFETY: the panel has lines and scales of every group, the token inputs.
        unsafe {
            let lines = lines.add(g * layout.lines());
            let (scale, offset) = scales.load::<F>(g);
            for part in 0..layout.parts {
                let mut sums = [[vdupq_n_s32(0); 4]];
                let quads = part * layout.quads_a_part()..(part + 1) * layout.quads_a_part();
                x.add_products::<1>(&mut sums, (t, g), quads, |quad| load_codes::<F>(lines, quad));
                acc = x.add_scaled::<F>(acc, sums[0], (scale[part], offset[part]), (t, g, part));
            }
        }
    }
    store(task, panel, t, acc);
}

/// A panel times tokens `t0..t0 + num_tokens`, of 16 at most.
///
/// # Safety
/// The machine has the instructions; the weights have the panel, the inputs the tokens.
#[target_feature(enable = "neon,dotprod")]
unsafe fn many<const F: u8>(task: &Task<'_>, panel: usize, t0: usize, num_tokens: usize) {
    let (layout, x) = (const { layout_of(F) }, Inputs::new(task.x));
    let scales = Scales::new(task.weight, panel, x.groups);
    let lines = task.weight.codes_of(panel).as_ptr();
    let mut acc = [[vdupq_n_f32(0.0); 4]; TOKENS];
    let acc = &mut acc[..num_tokens];
    for g in 0..x.groups {
        // SAFETY: the panel has lines and scales of every group, each token inputs.
        unsafe {
            let lines = lines.add(g * layout.lines());
            let mut codes = [[vdupq_n_s8(0); 4]; QUADS];
            for (quad, codes) in codes.iter_mut().enumerate() {
                *codes = load_codes::<F>(lines, quad);
            }
            let (scale, offset) = scales.load::<F>(g);
            for part in 0..layout.parts {
                let quads = part * layout.quads_a_part()..(part + 1) * layout.quads_a_part();
                let of_weights = (scale[part], offset[part]);
                let (pairs, last) = acc.as_chunks_mut::<2>();
                for (pair, acc) in pairs.iter_mut().enumerate() {
                    let t = t0 + 2 * pair;
                    let mut sums = [[vdupq_n_s32(0); 4]; 2];
                    x.add_products::<2>(&mut sums, (t, g), quads.clone(), |quad| codes[quad]);
                    acc[0] = x.add_scaled::<F>(acc[0], sums[0], of_weights, (t, g, part));
                    acc[1] = x.add_scaled::<F>(acc[1], sums[1], of_weights, (t + 1, g, part));
                }
                for acc in last {
                    let t = t0 + num_tokens - 1;
                    let mut sums = [[vdupq_n_s32(0); 4]];
                    x.add_products::<1>(&mut sums, (t, g), quads.clone(), |quad| codes[quad]);
                    *acc = x.add_scaled::<F>(*acc, sums[0], of_weights, (t, g, part));
                }
            }
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        store(task, panel, t0 + i, *acc);
    }
}

/// Inputs, and how many groups of 32 columns they have.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    planes: &'a Planes,
    groups: usize,
}

impl<'a> Inputs<'a> {
    fn new(planes: &'a Planes) -> Self {
        Self { planes, groups: planes.cols / GROUP }
    }

    /// Adds the products of some quads of group `g` with tokens `t..t + T`.
    ///
    /// # Safety
    /// The machine has the instructions; the inputs have the tokens and the group.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn add_products<const T: usize>(
        self,
        sums: &mut [Integers; T],
        (t, g): (usize, usize),
        quads: std::ops::Range<usize>,
        codes: impl Fn(usize) -> Codes,
    ) {
        let Planes { hi, lo, has_low, precision, cols, .. } = self.planes;
        // SAFETY: the caller vouches for the group, of each token.
        unsafe {
            let at = t * cols + g * GROUP;
            let (hi, lo) = (hi.as_ptr().add(at), lo.as_ptr().wrapping_add(at));
            if *precision == MatmulPrecision::Fast {
                for quad in quads {
                    let codes = codes(quad);
                    for (i, sums) in sums.iter_mut().enumerate() {
                        add_quad(sums, codes, hi.add(i * cols + 4 * quad));
                    }
                }
                return;
            }
            let mut low_sums = [[vdupq_n_s32(0); 4]; T];
            // Where none of these tokens has a low plane in the group, it is 0.
            let is_low = (0..T).any(|i| *has_low.get_unchecked((t + i) * self.groups + g));
            for quad in quads {
                let codes = codes(quad);
                for i in 0..T {
                    add_quad(&mut sums[i], codes, hi.add(i * cols + 4 * quad));
                    if is_low {
                        add_quad(&mut low_sums[i], codes, lo.add(i * cols + 4 * quad));
                    }
                }
            }
            for (sums, low_sums) in sums.iter_mut().zip(low_sums) {
                for (sum, low_sum) in sums.iter_mut().zip(low_sums) {
                    *sum = vaddq_s32(vshlq_n_s32::<8>(*sum), low_sum);
                }
            }
        }
    }

    /// `acc` and what the integers `sums` of group `g` of token `t` stand for, of formats with two scales a group of half `part` of its
    /// columns. `of_weights`: scales, and offsets, or for INT4 the codes of 0.
    ///
    /// # Safety
    /// The machine has the instructions; the inputs have the token and the group.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn add_scaled<const F: u8>(
        self,
        mut acc: Floats,
        sums: Integers,
        (scale, offset): (Floats, Floats),
        (t, g, part): (usize, usize, usize),
    ) -> Floats {
        let (layout, at, x) = (const { layout_of(F) }, t * self.groups + g, self.planes);
        // SAFETY: the caller vouches for the group.
        let (x_scale, scaled_sum, x_sum) = unsafe {
            let x_scale = *x.scale.get_unchecked(at);
            if layout.parts == 2 {
                let x_sum = *x.sum16.get_unchecked(2 * at + part);
                (x_scale, x_scale * x_sum as f32, x_sum)
            } else {
                (x_scale, *x.scaled_sum.get_unchecked(at), *x.sum32.get_unchecked(at))
            }
        };
        let of_zero = vdupq_n_s32(x_sum * const { zero_point(F) });
        for row in 0..4 {
            let mut sum = vcvtq_f32_s32(vsubq_s32(sums[row], of_zero));
            if F == INT4_G32 || F == INT4_G128 {
                sum = vfmsq_f32(sum, offset[row], vdupq_n_f32(x_sum as f32));
            }
            acc[row] = vfmaq_f32(acc[row], sum, vmulq_n_f32(scale[row], x_scale));
            if layout.has_offset {
                acc[row] = vfmaq_f32(acc[row], offset[row], vdupq_n_f32(scaled_sum));
            }
        }
        acc
    }
}

/// Adds the products of codes with 4 inputs.
///
/// # Safety
/// The machine has the instructions; there are 4 inputs.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn add_quad(sums: &mut Integers, codes: Codes, x: *const i8) {
    // SAFETY: the caller vouches for the inputs. The instruction, whose intrinsic is unstable, reads and writes registers alone.
    unsafe {
        let x = vreinterpretq_s8_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned()));
        for (sum, codes) in sums.iter_mut().zip(codes) {
            asm!("sdot {sum:v}.4s, {codes:v}.16b, {x:v}.16b", sum = inout(vreg) *sum, codes = in(vreg) codes,
                x = in(vreg) x, options(pure, nomem, nostack, preserves_flags));
        }
    }
}

/// What is to be subtracted from codes as [`load_codes`] gives them.
const fn zero_point(format: u8) -> i32 {
    match format {
        Q8_0 | MXFP4 => 0,
        _ => layout_of(format).zero_point,
    }
}

/// Codes of 4 columns as signed bytes: as they are stored where they have up to 6 bits, else with the sign of what they stand for.
///
/// # Safety
/// The machine has the instructions; `lines` are those of a group, which has the quad.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn load_codes<const F: u8>(lines: *const Line, quad: usize) -> Codes {
    let layout = const { layout_of(F) };
    std::array::from_fn(|rows| {
        // SAFETY: the caller vouches for the lines, and every aarch64 has NEON.
        unsafe {
            let shifted = |line: usize, shift: usize| {
                let line = vld1q_u8(lines.add(line).cast::<u8>().add(16 * rows));
                vshlq_u8(line, vdupq_n_s8(-(shift as i8)))
            };
            let low = match layout.low_bits {
                8 => return vreinterpretq_s8_u8(veorq_u8(shifted(quad, 0), vdupq_n_u8(0x80))),
                4 => vandq_u8(shifted(quad % 4, quad / 4 * 4), vdupq_n_u8(0x0f)),
                _ => vandq_u8(shifted(quad / 4, quad % 4 * 2), vdupq_n_u8(3)),
            };
            if F == MXFP4 {
                const NUMBERS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
                return vqtbl1q_s8(vld1q_s8(NUMBERS.as_ptr()), low);
            }
            let upper = match layout.upper_bits {
                0 => return vreinterpretq_s8_u8(low),
                1 => vandq_u8(shifted(layout.low_bits, quad), vdupq_n_u8(1)),
                _ => vandq_u8(shifted(layout.low_bits + quad / 4, quad % 4 * 2), vdupq_n_u8(3)),
            };
            let upper = if layout.low_bits == 4 { vshlq_n_u8::<4>(upper) } else { vshlq_n_u8::<2>(upper) };
            vreinterpretq_s8_u8(vorrq_u8(low, upper))
        }
    })
}

impl Scales {
    /// The scales of group `g`, of formats with two of each half of the columns, and its offsets, or for INT4 its codes of 0.
    ///
    /// # Safety
    /// The machine has the instructions; the panel has the group.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn load<const F: u8>(&self, g: usize) -> ([Floats; 2], [Floats; 2]) {
        let (zero, layout) = ([vdupq_n_f32(0.0); 4], const { layout_of(F) });
        let block = g / const { dtype_of(F).block_len() / GROUP } * ROWS;
        let factors = self.factors.wrapping_add(g * layout.factors());
        // SAFETY: the caller vouches for the group, and every aarch64 has NEON; formats without offsets or factors do not read them.
        unsafe {
            let halves = |src: *const u16| std::array::from_fn(|i| f32_of_halves(vld1_u16(src.add(block + 4 * i))));
            let d: Floats = match F {
                MXFP4 => std::array::from_fn(|i| {
                    vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(self.d.add(block + 4 * i))))
                }),
                _ => halves(self.d),
            };
            let m = || -> Floats { halves(self.m) };
            let factor = |idx: usize| factors_of(factors.add(idx * ROWS), F == Q3_K || F == Q6_K);
            let scaled = |idx: usize| zip(d, factor(idx));
            let offset = |idx: usize| zip(m(), factor(idx)).map(|x| vsubq_f32(vdupq_n_f32(0.0), x));
            match F {
                Q4_1 | Q5_1 | INT4_G32 | INT4_G128 => ([d, zero], [m(), zero]),
                Q4_K | Q5_K => ([scaled(0), zero], [offset(1), zero]),
                Q2_K => ([scaled(0), scaled(1)], [offset(2), offset(3)]),
                Q3_K | Q6_K => ([scaled(0), scaled(1)], [zero; 2]),
                _ => ([d, zero], [zero; 2]),
            }
        }
    }
}

/// Products of each row.
#[inline(always)]
fn zip(a: Floats, b: Floats) -> Floats {
    // SAFETY: every aarch64 has NEON.
    std::array::from_fn(|i| unsafe { vmulq_f32(a[i], b[i]) })
}

/// A factor of each row.
///
/// # Safety
/// There are 16.
#[inline(always)]
unsafe fn factors_of(src: *const u8, is_signed: bool) -> Floats {
    std::array::from_fn(|i| {
        // SAFETY: the caller vouches for 16, and every aarch64 has NEON.
        unsafe {
            let four = src.add(4 * i).cast::<u32>().read_unaligned();
            let bytes = vreinterpret_u8_u32(vdup_n_u32(four));
            if is_signed {
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(bytes)))))
            } else {
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))))
            }
        }
    })
}

/// Writes the sums of token `t`, as far as the panel has rows.
#[inline(always)]
fn store(task: &Task<'_>, panel: usize, t: usize, acc: Floats) {
    let mut sums = [0.0; ROWS];
    for (i, acc) in acc.into_iter().enumerate() {
        // SAFETY: every aarch64 has NEON; there are 16 places.
        unsafe { vst1q_f32(sums[4 * i..].as_mut_ptr(), acc) };
    }
    // SAFETY: the task's own cells, of which no others are held here.
    let (out, bias) = unsafe { task.target.cells(t, (panel - task.first) * ROWS) };
    for (i, (out, sum)) in out.iter_mut().zip(sums).enumerate() {
        *out = sum + bias.map_or(0.0, |bias| bias[i]);
    }
}
