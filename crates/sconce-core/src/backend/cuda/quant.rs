//! [`pack`]: block formats as `kernels/lib/quant.h` has them: tiles of 16 rows by 128 columns, first the codes in the order in
//! which lanes take them, then the scales of each row as the file has them.

use crate::weights::Dtype;
use crate::weights::quant::{self, BlockScales, Unpacked, f16_to_f32};

/// Rows and columns of a tile.
pub(crate) const ROWS: usize = 16;
pub(crate) const COLUMNS: usize = 128;
/// Columns of two products.
const CHUNK: usize = 32;

/// What a row's scales are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scaling {
    /// d of each 32 columns.
    D,
    /// d and m of each 32 columns; or for m the code of 0.
    Dm,
    /// The same of all columns of a tile.
    DmTile,
    /// d and m, and factors of both of each 32 columns.
    K,
    /// d, and factors of each 16 columns.
    K16,
    /// The exponent byte of each 32 columns.
    Exponent,
}

/// A format of which there are kernels.
#[derive(Debug, Clone, Copy)]
struct Form {
    bits: usize,
    /// The code of 0, where blocks do not say it.
    zero: i16,
    scaling: Scaling,
}

impl Form {
    fn of(dtype: Dtype) -> Option<Self> {
        let (bits, zero, scaling) = match dtype {
            Dtype::Q4_0 => (4, 8, Scaling::D),
            Dtype::Q4_1 => (4, 0, Scaling::Dm),
            Dtype::Q5_0 => (5, 16, Scaling::D),
            Dtype::Q5_1 => (5, 0, Scaling::Dm),
            Dtype::Q8_0 => (8, 128, Scaling::D),
            Dtype::Q4K => (4, 0, Scaling::K),
            Dtype::Q5K => (5, 0, Scaling::K),
            Dtype::Q6K => (6, 32, Scaling::K16),
            Dtype::Int4G32 => (4, 0, Scaling::Dm),
            Dtype::Int4G128 => (4, 0, Scaling::DmTile),
            Dtype::Mxfp4 => (4, 0, Scaling::Exponent),
            Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8E4M3 | Dtype::Q2K | Dtype::Q3K => return None,
        };
        Some(Self { bits, zero, scaling })
    }

    fn expect(dtype: Dtype) -> Self {
        Self::of(dtype).expect("invariant: formats without kernels are expanded")
    }

    fn code_bytes(self) -> usize {
        ROWS * COLUMNS / 8 * self.bits
    }

    fn scale_bytes(self) -> usize {
        match self.scaling {
            Scaling::D => 8,
            Scaling::Dm => 16,
            Scaling::DmTile | Scaling::Exponent => 4,
            Scaling::K | Scaling::K16 => 12,
        }
    }

    /// Puts the codes of 4 neighbouring columns of row `row` at their place: those from column 4 * `quad` of the tile on.
    fn put(self, tile: &mut [u8], row: usize, quad: usize, codes: [u8; 4]) {
        // Of 16 columns lane l % 4 has the 4 from 8 * (l % 2) + 4 * (l % 4 / 2) on.
        let (product, own) = (quad / 4, [0, 2, 1, 3][quad % 4]);
        let (chunk, lane) = (product / 2, row % 8 * 4 + own);
        let place = |plane: usize| (plane * 2 + row / 8) * 32 + lane;
        if self.bits == 8 {
            let [a, b, c, d] = codes;
            tile[place(chunk) * 8 + product % 2 * 4..][..4].copy_from_slice(&[a, c, b, d]);
            return;
        }
        let mut set = |word: usize, bit: usize, value: u8| tile[word * 4 + bit / 8] |= value << (bit % 8);
        for (i, code) in codes.into_iter().enumerate() {
            let (pair, half) = (product % 2 * 2 + i / 2, 16 * (i % 2));
            set(place(chunk), 4 * pair + half, code & 0x0f);
            /// The first word of upper bits.
            const UPPER: usize = ROWS * COLUMNS / 8;
            match self.bits {
                5 => set(UPPER + place(0), upper_bit(1, chunk / 2, pair, chunk % 2 * 2) + half, code >> 4),
                6 => set(UPPER + place(chunk / 2), upper_bit(2, chunk % 2, pair, 0) + half, code >> 4),
                _ => {}
            }
        }
    }

    /// Puts the scales of group `group` (32 columns) of row `row` at their place among a tile's.
    fn put_scales(self, scales: &mut [u8], row: usize, group: usize, block: &BlockScales, group_of_block: usize) {
        let own = &mut scales[row * self.scale_bytes()..][..self.scale_bytes()];
        let [d, m] = [block.d, block.m].map(u16::to_le_bytes);
        match self.scaling {
            Scaling::D => own[2 * group..][..2].copy_from_slice(&d),
            Scaling::Dm => own[4 * group..][..4].copy_from_slice(&[d, m].concat()),
            Scaling::DmTile => own.copy_from_slice(&[d, m].concat()),
            Scaling::Exponent => own[group] = d[0],
            Scaling::K => {
                own[..4].copy_from_slice(&[d, m].concat());
                (own[4 + group], own[8 + group]) = (block.scale[group_of_block], block.offset[group_of_block]);
            }
            Scaling::K16 => {
                own[2 * group..][..2].copy_from_slice(&block.scale[2 * group_of_block..][..2]);
                own[8..10].copy_from_slice(&d);
            }
        }
    }
}

/// Where the upper bits of a pair's codes begin in the halves of their word, `unit` of each, `upper_of` in `kernels/lib/quant.h`.
fn upper_bit(unit: usize, outer: usize, pair: usize, further: usize) -> usize {
    [[4, 8], [12, 0]][outer][pair % 2] + pair / 2 * unit + further
}

/// Whether there are kernels for it.
pub(crate) fn has_kernels(dtype: Dtype) -> bool {
    Form::of(dtype).is_some()
}

/// Bytes of a tile.
pub(crate) fn tile_bytes(dtype: Dtype) -> usize {
    let form = Form::expect(dtype);
    form.code_bytes() + ROWS * form.scale_bytes()
}

/// Bytes of `rows` rows of `cols` columns.
pub(crate) fn packed_bytes(dtype: Dtype, rows: usize, cols: usize) -> usize {
    rows.div_ceil(ROWS) * cols.div_ceil(COLUMNS) * tile_bytes(dtype)
}

/// At most 16 rows of `cols` columns, as a file has them, as tiles; `out`: so many bytes, zeros.
pub(crate) fn pack(dtype: Dtype, cols: usize, rows: &[u8], out: &mut [u8]) {
    let (form, tile_bytes) = (Form::expect(dtype), tile_bytes(dtype));
    let groups = cols / quant::group_len(dtype);
    let (mut q, mut scale, mut offset) = (vec![0; cols], vec![0.0; groups], vec![0.0; groups]);
    let groups_of_block = dtype.block_len() / CHUNK;
    for (row, bytes) in rows.chunks_exact(dtype.row_bytes(cols)).enumerate() {
        quant::unpack_row(dtype, bytes, Unpacked { q: &mut q, scale: &mut scale, offset: &mut offset });
        for (idx, block) in bytes.chunks_exact(dtype.block_bytes()).enumerate() {
            let scales = quant::block_scales(dtype, block);
            let zero = if quant::has_zero_point(dtype) { f16_to_f32(scales.m) as i16 } else { form.zero };
            for of_block in 0..groups_of_block {
                let group = idx * groups_of_block + of_block;
                let (tile, of_tile) = (group / (COLUMNS / CHUNK), group % (COLUMNS / CHUNK));
                let tile = &mut out[tile * tile_bytes..][..tile_bytes];
                for (quad, q) in q[group * CHUNK..][..CHUNK].as_chunks::<4>().0.iter().enumerate() {
                    let code = |q: i8| match form.scaling {
                        Scaling::Exponent => quant::mxfp4_code_of(q),
                        _ => (i16::from(q) + zero) as u8,
                    };
                    form.put(tile, row, of_tile * (CHUNK / 4) + quad, q.map(code));
                }
                form.put_scales(&mut tile[form.code_bytes()..], row, of_tile, &scales, of_block);
            }
        }
    }
}
