//! [`convert`]: rows of packed integers as blocks.

use half::f16;

use super::{Packed, PackedLayout, StDtype};
use crate::error::Result;
use crate::weights::bytes::{as_bf16, as_f16, as_f32};
use crate::weights::quant;
use crate::weights::{Dtype, Packing};

/// Rows that are unpacked together: where neighbours of a column lie side by side, so many fill lines of memory.
const STRIP: usize = 128;
/// Where AWQ has the code of each row of 8.
const AWQ_PLACE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Scales and zero points of each group of each row, [rows, groups].
struct Groups {
    scales: Vec<f32>,
    zeros: Vec<u8>,
}

/// The rows of `packed` as its blocks. By as many threads as the machine has.
pub(super) fn convert(packed: &Packed<'_>) -> Result<Vec<u8>> {
    let groups = Groups { scales: scales(packed)?, zeros: zeros(packed)? };
    let codes = Codes {
        packing: packed.packing,
        data: packed.files.data(&packed.names[0]),
        rows: packed.rows,
        cols: packed.cols,
    };
    let row_bytes = packed.blocks.row_bytes(packed.cols);
    let mut out = vec![0; packed.rows * row_bytes];
    let num_threads = std::thread::available_parallelism().map_or(1, Into::into);
    let share = packed.rows.div_ceil(num_threads).next_multiple_of(STRIP);
    std::thread::scope(|scope| {
        for (idx, out) in out.chunks_mut((share * row_bytes).max(1)).enumerate() {
            let (codes, groups) = (&codes, &groups);
            scope.spawn(move || {
                let mut strip = vec![0; STRIP * packed.cols];
                for (i, out) in out.chunks_mut(STRIP * row_bytes).enumerate() {
                    let first = idx * share + i * STRIP;
                    let strip = &mut strip[..out.len() / row_bytes * packed.cols];
                    codes.unpack(first, strip);
                    for (r, (codes, out)) in
                        strip.chunks_exact(packed.cols).zip(out.chunks_exact_mut(row_bytes)).enumerate()
                    {
                        convert_row(packed, groups, (first + r, codes), out);
                    }
                }
            });
        }
    });
    Ok(out)
}

/// One row of codes.
fn convert_row(packed: &Packed<'_>, groups: &Groups, (row, codes): (usize, &[u8]), out: &mut [u8]) {
    let (dtype, num_groups) = (packed.blocks, packed.num_groups());
    let range = row * num_groups..(row + 1) * num_groups;
    let (scales, zeros) = (&groups.scales[range.clone()], &groups.zeros[range]);
    let ordered: Option<Vec<u8>> =
        packed.column_order.as_ref().map(|order| order.iter().map(|&col| codes[col as usize]).collect());
    let codes = ordered.as_deref().unwrap_or(codes);
    let block_len = dtype.block_len();
    for (idx, (out, codes)) in out.chunks_exact_mut(dtype.block_bytes()).zip(codes.chunks_exact(block_len)).enumerate()
    {
        let group = idx * block_len / packed.group_len;
        let (d, mut out) = out.split_at_mut(2);
        d.copy_from_slice(&f16::from_f32(scales[group]).to_le_bytes());
        if dtype == Dtype::Q8_0 {
            out.iter_mut().zip(codes).for_each(|(out, code)| *out = code.wrapping_sub(128));
            continue;
        }
        if quant::has_zero_point(dtype) {
            let (zero, rest) = out.split_at_mut(2);
            zero.copy_from_slice(&f16::from_f32(f32::from(zeros[group])).to_le_bytes());
            out = rest;
        }
        for (out, codes) in out.as_chunks_mut().0.iter_mut().zip(codes.as_chunks().0) {
            *out = quant::pack_nibbles(codes);
        }
    }
}

/// The codes of a matrix.
struct Codes<'a> {
    packing: Packing,
    data: &'a [u8],
    rows: usize,
    cols: usize,
}

impl Codes<'_> {
    /// Rows `first..` as bytes, [rows of `out`, cols].
    fn unpack(&self, first: usize, out: &mut [u8]) {
        let (cols, num_rows, n) = (self.cols, out.len() / self.cols, self.packing.codes_a_word());
        let words = self.data.as_chunks::<4>().0;
        match self.packing.layout {
            PackedLayout::Gptq | PackedLayout::GptqV2 => {
                for (at, words) in words.chunks_exact(self.rows).enumerate() {
                    for (r, &word) in words[first..first + num_rows].iter().enumerate() {
                        out[r * cols + at * n..][..n].copy_from_slice(&self.bytes(word)[..n]);
                    }
                }
            }
            PackedLayout::Awq => {
                // Eight rows of eight columns at a time: single bytes would be written far apart.
                let stride = self.rows / n;
                for (eight, words) in words.chunks_exact(8 * stride).enumerate() {
                    for at in 0..num_rows / n {
                        let bytes: [_; 8] = std::array::from_fn(|col| self.bytes(words[col * stride + first / n + at]));
                        for (k, place) in AWQ_PLACE.into_iter().enumerate() {
                            let row: [u8; 8] = std::array::from_fn(|col| bytes[col][place]);
                            out[(at * n + k) * cols + 8 * eight..][..8].copy_from_slice(&row);
                        }
                    }
                }
            }
            PackedLayout::PackQuantized => {
                let words = &words[first * cols / n..];
                for (out, &word) in out.chunks_exact_mut(n).zip(words) {
                    out.copy_from_slice(&self.bytes(word)[..n]);
                }
            }
            PackedLayout::IntQuantized => {
                let bytes = &self.data[first * cols..];
                out.iter_mut().zip(bytes).for_each(|(out, byte)| *out = byte.wrapping_add(128));
            }
        }
    }

    /// The codes of a word, the first from the lowest bits: 8 of 4 bits, or 4 of 8.
    fn bytes(&self, word: [u8; 4]) -> [u8; 8] {
        unpack_word(self.packing.bits, word)
    }
}

fn unpack_word(bits: usize, word: [u8; 4]) -> [u8; 8] {
    let word = u64::from(u32::from_le_bytes(word));
    if bits == 8 {
        return word.to_le_bytes();
    }
    let word = (word | word << 16) & 0x0000_ffff_0000_ffff;
    let word = (word | word << 8) & 0x00ff_00ff_00ff_00ff;
    ((word | word << 4) & 0x0f0f_0f0f_0f0f_0f0f).to_le_bytes()
}

/// Scales, [rows, groups]. Errors: one that is not finite, or beyond what a block's has room for.
fn scales(packed: &Packed<'_>) -> Result<Vec<f32>> {
    let data = packed.files.data(&packed.names[1]);
    let values: Vec<f32> = match packed.scales {
        StDtype::F32 => as_f32(data).to_vec(),
        StDtype::BF16 => as_bf16(data).iter().map(|x| x.to_f32()).collect(),
        _ => as_f16(data).iter().map(|x| x.to_f32()).collect(),
    };
    let limit = f16::MAX.to_f32();
    if let Some(found) = values.iter().find(|x| x.is_nan() || x.abs() > limit) {
        return Err(packed.error(1, format!("expected finite scales up to {limit:e}, found {found}")));
    }
    Ok(rows_first(packed, values))
}

/// Zero points, [rows, groups]. Errors: one that is not the middle, where weights are to be symmetric.
fn zeros(packed: &Packed<'_>) -> Result<Vec<u8>> {
    let (packing, rows, groups) = (&packed.packing, packed.rows, packed.num_groups());
    let middle = 1 << (packing.bits - 1);
    if !packed.has_zeros() {
        return Ok(vec![middle; rows * groups]);
    }
    let (n, bits) = (packing.codes_a_word(), packing.bits);
    let words = packed.files.data(&packed.names[2]).as_chunks::<4>().0;
    let zeros: Vec<u8> = match packing.layout {
        PackedLayout::Awq => {
            words.iter().flat_map(|&word| AWQ_PLACE.map(|place| unpack_word(bits, word)[place])).collect()
        }
        PackedLayout::Gptq => {
            // What was subtracted from each was subtracted from the word, borrowing included.
            let one_each = u32::MAX / ((1 << bits) - 1);
            let word = |&word: &[u8; 4]| u32::from_le_bytes(word).wrapping_add(one_each).to_le_bytes();
            words.iter().flat_map(|w| unpack_word(bits, word(w)).into_iter().take(n)).collect()
        }
        PackedLayout::GptqV2 => words.iter().flat_map(|&word| unpack_word(bits, word).into_iter().take(n)).collect(),
        PackedLayout::PackQuantized | PackedLayout::IntQuantized => {
            let at = |row: usize, group: usize| unpack_word(bits, words[row / n * groups + group])[row % n];
            return Ok((0..rows).flat_map(|row| (0..groups).map(move |group| at(row, group))).collect());
        }
    };
    let zeros = rows_first(packed, zeros);
    if let Some(zero) = zeros.iter().find(|&&zero| packing.is_symmetric && zero != middle) {
        let message =
            format!("quantization_config says that weights are symmetric, and here is a zero point of {zero}");
        return Err(packed.error(2, message));
    }
    Ok(zeros)
}

/// [groups, rows] as [rows, groups], where a layout has groups first.
fn rows_first<T: Copy>(packed: &Packed<'_>, values: Vec<T>) -> Vec<T> {
    if !packed.packing.layout.has_groups_first() {
        return values;
    }
    let rows = packed.rows;
    (0..rows).flat_map(|row| values.iter().skip(row).step_by(rows).copied()).collect()
}
