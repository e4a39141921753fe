//! [`Panels`]: quantized weights as vectors of integer products read them.
//!
//! A panel is 16 rows side by side: each 32-bit lane of a 512-bit register, of two of 256 bits, or of four of 128, holds 4 consecutive
//! columns of one row, as unsigned bytes, which is what `vpdpbusd` multiplies with 4 signed bytes of an input. The codes of 32 columns stand
//! together, those of 4 bits two to a byte: columns 0..16 in the low nibbles, 16..32 in the high ones. Of codes of 3, 5 and 6 bits the
//! upper ones stand in lines of their own. Scales keep the file's bits, those of 16 rows side by side. Nothing is rounded, and a panel
//! is about as large as its rows in the file.

use crate::backend::cpu::{Arena, ArenaSlice, SharedSlice, ThreadPool};
use crate::error::Result;
use crate::weights::Dtype;
use crate::weights::quant::{self, BlockScales, Unpacked, f16_to_f32};

/// Rows of a panel.
pub(super) const ROWS: usize = 16;
/// Columns whose codes stand together.
pub(super) const GROUP: usize = 32;

/// 64 bytes that begin at a multiple of 64.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; 64]);

// SAFETY: any bytes are a line, and it has no others.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above; 64 bytes aligned to 64 have no padding.
unsafe impl bytemuck::Pod for Line {}

/// Rows of one quantized type, 16 to a panel. Rows beyond the last are zeros.
#[derive(Debug)]
pub struct Panels {
    dtype: Dtype,
    cols: usize,
    /// [panels, cols / 32, lines of codes].
    codes: ArenaSlice<Line>,
    /// [panels, blocks a row, 16]: bits of f16.
    pub(super) d: ArenaSlice<u16>,
    /// The same of the offsets, or of INT4 the codes of 0; empty without them.
    pub(super) m: ArenaSlice<u16>,
    /// Q4_K: [panels, cols / 32, 2, 16]: factors of d, then of m. Q6_K: [panels, cols / 16, 16]: signed factors of d.
    pub(super) factors: ArenaSlice<u8>,
}

/// How a type's codes and scales stand in a panel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// Bits of a code that stand together, and those above them, which stand apart; so many lines of 32 columns.
    pub(super) low_bits: usize,
    pub(super) upper_bits: usize,
    /// What is added to integers to make them unsigned codes; of INT4 each block says it.
    pub(super) zero_point: i32,
    /// Scales of 32 columns.
    pub(super) parts: usize,
    /// Whether each scale has an offset.
    pub(super) has_offset: bool,
    /// Factors of d and m for 32 columns: of a row, in bytes.
    num_factors: usize,
}

impl Layout {
    pub(super) const fn of(dtype: Dtype) -> Self {
        let (low_bits, upper_bits, zero_point) = match dtype {
            Dtype::Q4_0 => (4, 0, 8),
            Dtype::Q5_0 => (4, 1, 16),
            Dtype::Q5_1 | Dtype::Q5K => (4, 1, 0),
            Dtype::Q8_0 => (8, 0, 128),
            Dtype::Q2K => (2, 0, 0),
            Dtype::Q3K => (2, 1, 4),
            Dtype::Q6K => (4, 2, 32),
            // Codes stand for numbers that a table has.
            Dtype::Mxfp4 => (4, 0, 12),
            _ => (4, 0, 0),
        };
        let parts = GROUP / quant::group_len(dtype);
        let has_factors = matches!(dtype, Dtype::Q2K | Dtype::Q3K | Dtype::Q4K | Dtype::Q5K | Dtype::Q6K);
        let has_offset = quant::has_offset(dtype);
        let num_factors = if has_factors { parts * (1 + has_offset as usize) } else { 0 };
        Self { low_bits, upper_bits, zero_point, parts, has_offset, num_factors }
    }

    /// Lines of codes of 32 columns.
    pub(super) const fn lines(self) -> usize {
        self.low_bits + self.upper_bits
    }

    /// Quads, 4 columns each, that share a scale.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub(super) const fn quads_a_part(self) -> usize {
        GROUP / 4 / self.parts
    }

    /// Bytes of factors of 32 columns of a panel: those of d of each half, then those of m.
    pub(super) const fn factors(self) -> usize {
        self.num_factors * ROWS
    }
}

/// Formats as const parameters.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) mod format {
    use super::Layout;
    use crate::weights::Dtype;

    pub(in super::super) const Q4_0: u8 = 0;
    pub(in super::super) const Q4_1: u8 = 1;
    pub(in super::super) const Q5_0: u8 = 2;
    pub(in super::super) const Q5_1: u8 = 3;
    pub(in super::super) const Q8_0: u8 = 4;
    pub(in super::super) const Q2_K: u8 = 5;
    pub(in super::super) const Q3_K: u8 = 6;
    pub(in super::super) const Q4_K: u8 = 7;
    pub(in super::super) const Q5_K: u8 = 8;
    pub(in super::super) const Q6_K: u8 = 9;
    pub(in super::super) const INT4_G32: u8 = 10;
    pub(in super::super) const INT4_G128: u8 = 11;
    pub(in super::super) const MXFP4: u8 = 12;

    /// Of a block format.
    pub(in super::super) fn format_of(dtype: Dtype) -> u8 {
        match dtype {
            Dtype::Q4_0 => Q4_0,
            Dtype::Q4_1 => Q4_1,
            Dtype::Q5_0 => Q5_0,
            Dtype::Q5_1 => Q5_1,
            Dtype::Q8_0 => Q8_0,
            Dtype::Q2K => Q2_K,
            Dtype::Q3K => Q3_K,
            Dtype::Q4K => Q4_K,
            Dtype::Q5K => Q5_K,
            Dtype::Q6K => Q6_K,
            Dtype::Int4G32 => INT4_G32,
            Dtype::Int4G128 => INT4_G128,
            Dtype::Mxfp4 => MXFP4,
            Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8E4M3 => unreachable!("{dtype} has no blocks"),
        }
    }

    pub(in super::super) const fn dtype_of(format: u8) -> Dtype {
        match format {
            Q4_0 => Dtype::Q4_0,
            Q4_1 => Dtype::Q4_1,
            Q5_0 => Dtype::Q5_0,
            Q5_1 => Dtype::Q5_1,
            Q8_0 => Dtype::Q8_0,
            Q2_K => Dtype::Q2K,
            Q3_K => Dtype::Q3K,
            Q4_K => Dtype::Q4K,
            Q5_K => Dtype::Q5K,
            Q6_K => Dtype::Q6K,
            INT4_G32 => Dtype::Int4G32,
            INT4_G128 => Dtype::Int4G128,
            _ => Dtype::Mxfp4,
        }
    }

    pub(in super::super) const fn layout_of(format: u8) -> Layout {
        Layout::of(dtype_of(format))
    }
}

impl Panels {
    /// Packs `rows` rows of whole blocks.
    pub(crate) fn pack(
        (pool, arena): (&mut ThreadPool, &mut Arena),
        dtype: Dtype,
        rows: usize,
        cols: usize,
        data: &[u8],
    ) -> Result<Self> {
        let (num_panels, groups, blocks) = (rows.div_ceil(ROWS), cols / GROUP, cols / dtype.block_len());
        let layout = Layout::of(dtype);
        let num_m =
            if quant::has_offset(dtype) || quant::has_zero_point(dtype) { num_panels * blocks * ROWS } else { 0 };
        let mut panels = Self {
            dtype,
            cols,
            codes: arena.zeroed(num_panels * groups * layout.lines())?,
            d: arena.zeroed(num_panels * blocks * ROWS)?,
            m: arena.zeroed(num_m)?,
            factors: arena.zeroed(num_panels * groups * layout.factors())?,
        };
        let (codes_len, d_len, m_len) = (groups * layout.lines(), blocks * ROWS, num_m / num_panels.max(1));
        let factors_len = groups * layout.factors();
        let (codes, d) = (SharedSlice::new(&mut panels.codes), SharedSlice::new(&mut panels.d));
        let (m, factors) = (SharedSlice::new(&mut panels.m), SharedSlice::new(&mut panels.factors));
        pool.run(num_panels, &|panel| {
            // SAFETY: each task has a panel of its own.
            let mut out = unsafe {
                PanelMut {
                    codes: bytemuck::cast_slice_mut(codes.range(panel * codes_len, codes_len)),
                    d: d.range(panel * d_len, d_len),
                    m: m.range(panel * m_len, m_len),
                    factors: factors.range(panel * factors_len, factors_len),
                }
            };
            let row_bytes = dtype.row_bytes(cols);
            for (lane, row) in data[panel * ROWS * row_bytes..].chunks_exact(row_bytes).take(ROWS).enumerate() {
                for (block, bytes) in row.chunks_exact(dtype.block_bytes()).enumerate() {
                    out.set_block(dtype, lane, block, bytes);
                }
            }
        });
        Ok(panels)
    }

    pub(super) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The lines of codes of a panel.
    pub(super) fn codes_of(&self, panel: usize) -> &[Line] {
        let len = self.cols / GROUP * Layout::of(self.dtype).lines();
        &self.codes[panel * len..(panel + 1) * len]
    }

    /// Where the codes begin.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn codes_ptr(&self) -> *const u8 {
        self.codes.as_ptr().cast()
    }

    /// Scales of a panel; offsets are as many where there are any.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn num_d(&self) -> usize {
        self.cols / self.dtype.block_len() * ROWS
    }

    /// Bytes of factors of a panel.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn num_factors(&self) -> usize {
        self.cols / GROUP * Layout::of(self.dtype).factors()
    }

    /// One row in f32: the bits that [`quant::dequantize`] gives for what was packed.
    pub(crate) fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let (dtype, layout, panel, lane) = (self.dtype, Layout::of(self.dtype), row / ROWS, row % ROWS);
        let codes: &[u8] = bytemuck::cast_slice(self.codes_of(panel));
        let blocks = self.cols / dtype.block_len();
        for (g, out) in out[..self.cols].chunks_exact_mut(GROUP).enumerate() {
            let codes = &codes[g * layout.lines() * 64..][..layout.lines() * 64];
            let block = (panel * blocks + g * GROUP / dtype.block_len()) * ROWS + lane;
            let d = match dtype {
                Dtype::Mxfp4 => f32::from_bits(u32::from(self.d[block]) << 16),
                _ => f16_to_f32(self.d[block]),
            };
            let m = self.m.get(block).map_or(0.0, |&m| f16_to_f32(m));
            let factors = &self.factors[(panel * self.cols / GROUP + g) * layout.factors()..];
            for (k, out) in out.iter_mut().enumerate() {
                let q = (i32::from(code(dtype, codes, lane, k)) - layout.zero_point) as f32;
                let part = k * layout.parts / GROUP;
                let factor = |at: usize| factors[at * ROWS + lane];
                *out = match dtype {
                    Dtype::Int4G32 | Dtype::Int4G128 => d * (q - m),
                    Dtype::Q4_1 | Dtype::Q5_1 => d * q + m,
                    Dtype::Q2K | Dtype::Q4K | Dtype::Q5K => {
                        d * f32::from(factor(part)) * q + -(m * f32::from(factor(layout.parts + part)))
                    }
                    Dtype::Q3K | Dtype::Q6K => d * f32::from(factor(part) as i8) * q,
                    _ => d * q,
                };
            }
        }
    }
}

/// Where a panel's scales begin.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[derive(Clone, Copy)]
pub(super) struct Scales {
    pub(super) d: *const u16,
    pub(super) m: *const u16,
    pub(super) factors: *const u8,
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
impl Scales {
    /// `groups`: of 32 columns in a row.
    pub(super) fn new(weight: &Panels, panel: usize, groups: usize) -> Self {
        let blocks = groups / (weight.dtype().block_len() / GROUP);
        Self {
            d: weight.d.as_ptr().wrapping_add(panel * blocks * ROWS),
            m: weight.m.as_ptr().wrapping_add(panel * blocks * ROWS),
            factors: weight.factors.as_ptr().wrapping_add(panel * groups * Layout::of(weight.dtype()).factors()),
        }
    }
}

/// One panel, to be filled.
struct PanelMut<'a> {
    codes: &'a mut [u8],
    d: &'a mut [u16],
    m: &'a mut [u16],
    factors: &'a mut [u8],
}

impl PanelMut<'_> {
    /// Puts a block of row `lane` in its places.
    fn set_block(&mut self, dtype: Dtype, lane: usize, block: usize, bytes: &[u8]) {
        const LEN: usize = 256;
        let (mut q, mut scale, mut offset) = ([0; LEN], [0.0; LEN / 16], [0.0; LEN / 16]);
        quant::unpack_row(dtype, bytes, Unpacked { q: &mut q, scale: &mut scale, offset: &mut offset });
        let BlockScales { d, m, scale, offset } = quant::block_scales(dtype, bytes);
        let layout = Layout::of(dtype);
        self.d[block * ROWS + lane] = match dtype {
            // The upper half of an f32, whose lower is 0.
            Dtype::Mxfp4 => (quant::mxfp4_half_scale(d as u8).to_bits() >> 16) as u16,
            _ => d,
        };
        if let Some(place) = self.m.get_mut(block * ROWS + lane) {
            *place = m;
        }
        let len = dtype.block_len();
        let (line_bytes, parts) = (layout.lines() * 64, layout.parts);
        let zero = if quant::has_zero_point(dtype) { f16_to_f32(m) as i32 } else { layout.zero_point };
        for (g, q) in q[..len].chunks_exact(GROUP).enumerate() {
            let group = block * (len / GROUP) + g;
            let codes = &mut self.codes[group * line_bytes..(group + 1) * line_bytes];
            for (k, &q) in q.iter().enumerate() {
                let code = if dtype == Dtype::Mxfp4 { quant::mxfp4_code_of(q) } else { (i32::from(q) + zero) as u8 };
                set_code(layout, codes, lane, k, code);
            }
            let factors = &mut self.factors[group * layout.factors()..];
            for at in 0..layout.num_factors {
                let of_group = if at < parts { &scale } else { &offset };
                factors[at * ROWS + lane] = of_group[parts * g + at % parts];
            }
        }
    }
}

/// Of a row's column: the byte of its line.
fn byte_of(lane: usize, k: usize) -> usize {
    lane * 4 + k % 4
}

/// Where, of so many bits, those of 4 columns stand: the line, and their shift within its bytes.
fn place(bits: usize, quad: usize) -> (usize, usize) {
    match bits {
        8 => (quad, 0),
        4 => (quad % 4, quad / 4 * 4),
        2 => (quad / 4, quad % 4 * 2),
        _ => (0, quad),
    }
}

/// `codes` are zeros at this place.
fn set_code(layout: Layout, codes: &mut [u8], lane: usize, k: usize, code: u8) {
    let (line, shift) = place(layout.low_bits, k / 4);
    codes[line * 64 + byte_of(lane, k)] |= (code & low_mask(layout)) << shift;
    if layout.upper_bits > 0 {
        let (line, shift) = place(layout.upper_bits, k / 4);
        codes[(layout.low_bits + line) * 64 + byte_of(lane, k)] |= code >> layout.low_bits << shift;
    }
}

/// An integer and its zero point.
fn code(dtype: Dtype, codes: &[u8], lane: usize, k: usize) -> u8 {
    let layout = Layout::of(dtype);
    let (line, shift) = place(layout.low_bits, k / 4);
    let low = codes[line * 64 + byte_of(lane, k)] >> shift & low_mask(layout);
    if dtype == Dtype::Mxfp4 {
        return (i32::from(quant::mxfp4_doubled(low)) + layout.zero_point) as u8;
    }
    if layout.upper_bits == 0 {
        return low;
    }
    let (line, shift) = place(layout.upper_bits, k / 4);
    let upper = codes[(layout.low_bits + line) * 64 + byte_of(lane, k)] >> shift & ((1 << layout.upper_bits) - 1);
    low | upper << layout.low_bits
}

fn low_mask(layout: Layout) -> u8 {
    (0xff_u32 >> (8 - layout.low_bits)) as u8
}
