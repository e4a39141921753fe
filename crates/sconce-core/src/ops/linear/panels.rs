//! [`Panels`]: quantized weights as the widest integer product reads them.
//!
//! A panel is 16 rows side by side: each 32-bit lane of a 512-bit register holds 4 consecutive columns of one row, as
//! unsigned bytes, which is what `vpdpbusd` multiplies with 4 signed bytes of an input. The codes of 32 columns stand
//! together, those of 4 bits two to a byte: columns 0..16 in the low nibbles, 16..32 in the high ones. Scales keep the
//! file's bits, those of 16 rows side by side. Nothing is rounded, and a panel is as large as its rows in the file, but
//! for 2 bytes in 144 of Q4_K.

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

/// What is added to a type's integers to make them unsigned codes; of INT4 each block says it.
pub(super) const fn zero_point(dtype: Dtype) -> i32 {
    match dtype {
        Dtype::Q4_0 => 8,
        Dtype::Q6K => 32,
        Dtype::Q8_0 => 128,
        _ => 0,
    }
}

/// Lines of codes of 32 columns.
pub(super) const fn lines_of(dtype: Dtype) -> usize {
    match dtype {
        Dtype::Q8_0 => 8,
        Dtype::Q6K => 6,
        _ => 4,
    }
}

/// Bytes of factors of 32 columns.
pub(super) const fn factors_of(dtype: Dtype) -> usize {
    if matches!(dtype, Dtype::Q4K | Dtype::Q6K) { 2 * ROWS } else { 0 }
}

impl Panels {
    /// Whether there is a kernel for the type.
    pub(crate) fn supports(dtype: Dtype) -> bool {
        use Dtype::*;
        matches!(dtype, Q4_0 | Q4_1 | Q8_0 | Q4K | Q6K | Int4G32 | Int4G128)
    }

    /// Packs `rows` rows of whole blocks.
    pub(crate) fn pack(
        (pool, arena): (&mut ThreadPool, &mut Arena),
        dtype: Dtype,
        rows: usize,
        cols: usize,
        data: &[u8],
    ) -> Result<Self> {
        let (num_panels, groups, blocks) = (rows.div_ceil(ROWS), cols / GROUP, cols / dtype.block_len());
        let num_m =
            if quant::has_offset(dtype) || quant::has_zero_point(dtype) { num_panels * blocks * ROWS } else { 0 };
        let mut panels = Self {
            dtype,
            cols,
            codes: arena.zeroed(num_panels * groups * lines_of(dtype))?,
            d: arena.zeroed(num_panels * blocks * ROWS)?,
            m: arena.zeroed(num_m)?,
            factors: arena.zeroed(num_panels * groups * factors_of(dtype))?,
        };
        let (codes_len, d_len, m_len) = (groups * lines_of(dtype), blocks * ROWS, num_m / num_panels.max(1));
        let factors_len = groups * factors_of(dtype);
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
        let len = self.cols / GROUP * lines_of(self.dtype);
        &self.codes[panel * len..(panel + 1) * len]
    }

    /// Where the codes begin.
    pub(super) fn codes_ptr(&self) -> *const u8 {
        self.codes.as_ptr().cast()
    }

    /// Scales of a panel; offsets are as many where there are any.
    pub(super) fn num_d(&self) -> usize {
        self.cols / self.dtype.block_len() * ROWS
    }

    /// Bytes of factors of a panel.
    pub(super) fn num_factors(&self) -> usize {
        self.cols / GROUP * factors_of(self.dtype)
    }

    /// One row in f32: the bits that [`quant::dequantize`] gives for what was packed.
    pub(crate) fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let (dtype, panel, lane) = (self.dtype, row / ROWS, row % ROWS);
        let codes: &[u8] = bytemuck::cast_slice(self.codes_of(panel));
        let blocks = self.cols / dtype.block_len();
        for (g, out) in out[..self.cols].chunks_exact_mut(GROUP).enumerate() {
            let codes = &codes[g * lines_of(dtype) * 64..][..lines_of(dtype) * 64];
            let block = (panel * blocks + g * GROUP / dtype.block_len()) * ROWS + lane;
            let d = f16_to_f32(self.d[block]);
            let factors = &self.factors[(panel * self.cols / GROUP + g) * factors_of(dtype)..];
            for (k, out) in out.iter_mut().enumerate() {
                let q = (i32::from(code(dtype, codes, lane, k)) - zero_point(dtype)) as f32;
                *out = match dtype {
                    Dtype::Int4G32 | Dtype::Int4G128 => d * (q - f16_to_f32(self.m[block])),
                    Dtype::Q4_1 => d * q + f16_to_f32(self.m[block]),
                    Dtype::Q4K => {
                        let offset = -(f16_to_f32(self.m[block]) * f32::from(factors[ROWS + lane]));
                        d * f32::from(factors[lane]) * q + offset
                    }
                    Dtype::Q6K => d * f32::from(factors[k / 16 * ROWS + lane] as i8) * q,
                    _ => d * q,
                };
            }
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
        self.d[block * ROWS + lane] = d;
        if let Some(place) = self.m.get_mut(block * ROWS + lane) {
            *place = m;
        }
        let (len, line_bytes) = (dtype.block_len(), lines_of(dtype) * 64);
        let zero = if quant::has_zero_point(dtype) { f16_to_f32(m) as i32 } else { zero_point(dtype) };
        for (g, q) in q[..len].chunks_exact(GROUP).enumerate() {
            let group = block * (len / GROUP) + g;
            let codes = &mut self.codes[group * line_bytes..(group + 1) * line_bytes];
            for (k, &q) in q.iter().enumerate() {
                set_code(dtype, codes, lane, k, (i32::from(q) + zero) as u8);
            }
            let factors = &mut self.factors[group * factors_of(dtype)..];
            match dtype {
                Dtype::Q4K => (factors[lane], factors[ROWS + lane]) = (scale[g], offset[g]),
                Dtype::Q6K => (factors[lane], factors[ROWS + lane]) = (scale[2 * g], scale[2 * g + 1]),
                _ => {}
            }
        }
    }
}

/// Where in a group's lines the code of a row's column stands: the byte, and the shift of its low 4 or 8 bits.
fn place(dtype: Dtype, lane: usize, k: usize) -> (usize, usize) {
    let (quad, byte) = (k / 4, lane * 4 + k % 4);
    if dtype == Dtype::Q8_0 { (quad * 64 + byte, 0) } else { (quad % 4 * 64 + byte, quad / 4 * 4) }
}

/// Of Q6_K: where the upper 2 bits stand.
fn upper_place(lane: usize, k: usize) -> (usize, usize) {
    let (quad, byte) = (k / 4, lane * 4 + k % 4);
    ((4 + quad / 4) * 64 + byte, quad % 4 * 2)
}

/// `codes` are zeros at this place.
fn set_code(dtype: Dtype, codes: &mut [u8], lane: usize, k: usize, code: u8) {
    let (at, shift) = place(dtype, lane, k);
    if dtype == Dtype::Q8_0 {
        codes[at] = code;
        return;
    }
    codes[at] |= (code & 0x0f) << shift;
    if dtype == Dtype::Q6K {
        let (at, shift) = upper_place(lane, k);
        codes[at] |= (code >> 4) << shift;
    }
}

fn code(dtype: Dtype, codes: &[u8], lane: usize, k: usize) -> u8 {
    let (at, shift) = place(dtype, lane, k);
    match dtype {
        Dtype::Q8_0 => codes[at],
        Dtype::Q6K => {
            let (upper_at, upper_shift) = upper_place(lane, k);
            (codes[at] >> shift & 0x0f) | (codes[upper_at] >> upper_shift & 3) << 4
        }
        _ => codes[at] >> shift & 0x0f,
    }
}
