//! e4m3: 8 bits a number, with a scale a row beside them.
//!
//! A code is a sign, 4 bits of exponent and 3 of mantissa; there is no infinity, and one NaN of each sign (Micikevicius et
//! al. 2022, "FP8 formats for deep learning"). bf16 and f16 have all of its numbers.

use super::{Dtype, TensorView, quant};

/// The greatest number.
pub const MAX: f32 = 448.0;
/// The code of the greatest number; one more is NaN.
const MAX_CODE: u32 = 0x7e;

const NUMBERS: [f32; 256] = {
    let (mut numbers, mut code) = ([0.0; 256], 0);
    while code < 256 {
        numbers[code] = number(code as u32);
        code += 1;
    }
    numbers
};

const fn number(code: u32) -> f32 {
    let (sign, exponent, mantissa) = (code >> 7 << 31, code >> 3 & 15, code & 7);
    if code & 0x7f > MAX_CODE {
        return f32::NAN;
    }
    if exponent == 0 {
        // Below the least exponent numbers are multiples of 2^-9.
        let magnitude = mantissa as f32 / 512.0;
        return if sign == 0 { magnitude } else { -magnitude };
    }
    f32::from_bits(sign | (exponent + 120) << 23 | mantissa << 20)
}

/// The number of a code.
#[inline(always)]
pub fn decode(code: u8) -> f32 {
    NUMBERS[usize::from(code)]
}

/// The nearest code, the even one of two; beyond the range, the greatest.
#[inline(always)]
pub fn encode(x: f32) -> u8 {
    /// Below it codes are subnormal.
    const LEAST_NORMAL: f32 = 1.0 / 64.0;
    /// Added to a number it rounds it to a multiple of 2^-9.
    const ROUNDER: f32 = 16384.0;
    let (sign, magnitude) = (x.to_bits() >> 24 & 0x80, x.abs());
    let bits = magnitude.to_bits();
    let normal = ((bits + 0x7_ffff + (bits >> 20 & 1)) >> 20).wrapping_sub(120 << 3);
    let subnormal = (magnitude + ROUNDER).to_bits().wrapping_sub(ROUNDER.to_bits());
    let code = if magnitude < LEAST_NORMAL { subnormal } else { normal.min(MAX_CODE) };
    (sign | code) as u8
}

/// Whether there is a NaN among codes.
pub(super) fn has_nan(codes: &[u8]) -> bool {
    // Without an exit from the loop, which would keep it from being vectors.
    codes.iter().fold(0, |found, &code| found | u8::from(code & 0x7f > MAX_CODE as u8)) != 0
}

/// Rows of `cols` codes in bf16, of which each `block` rows and columns have a scale: [blocks of rows, blocks of columns]. By as many
/// threads as the machine has.
pub(super) fn blocks_to_bf16(codes: &[u8], cols: usize, scales: &[f32], block: [usize; 2]) -> Vec<u8> {
    let mut data = vec![0; 2 * codes.len()];
    if codes.is_empty() {
        return data;
    }
    let num_blocks = codes.len() / cols / block[0] + 1;
    let share = num_blocks.div_ceil(std::thread::available_parallelism().map_or(1, Into::into)) * block[0];
    let to_bf16 = |row: usize, codes: &[u8], out: &mut [u8]| {
        let scales = scales[row / block[0] * cols.div_ceil(block[1])..].iter();
        for ((codes, out), scale) in codes.chunks(block[1]).zip(out.chunks_mut(2 * block[1])).zip(scales) {
            for (&code, out) in codes.iter().zip(out.as_chunks_mut().0) {
                *out = half::bf16::from_f32(decode(code) * scale).to_le_bytes();
            }
        }
    };
    std::thread::scope(|scope| {
        let shares = codes.chunks(share * cols).zip(data.chunks_mut(2 * share * cols));
        for (idx, (codes, out)) in shares.enumerate() {
            let to_bf16 = &to_bf16;
            scope.spawn(move || {
                let rows = codes.chunks(cols).zip(out.chunks_mut(2 * cols)).enumerate();
                rows.for_each(|(row, (codes, out))| to_bf16(idx * share + row, codes, out));
            });
        }
    });
    data
}

/// The matrix with each row as e4m3 and the scale that brings its greatest magnitude to 448; `None` where a number is not
/// finite.
pub(super) fn quantize(matrix: &TensorView<'_>) -> Option<TensorView<'static>> {
    let (codes, scales) = quant::quantize_rows(matrix, matrix.shape[1], quantize_row)?;
    Some(TensorView { row_scales: Some(scales), ..TensorView::new(Dtype::F8E4M3, matrix.shape.clone(), codes) })
}

/// Returns the scale; it is not finite where a number is not.
fn quantize_row(row: &[f32], codes: &mut [u8]) -> f32 {
    // In integers the order is that of magnitudes, with infinity and NaN above all numbers.
    let greatest = f32::from_bits(row.iter().fold(0, |max, x| max.max(x.abs().to_bits())));
    let scale = if greatest.is_finite() { (greatest / MAX).max(f32::MIN_POSITIVE) } else { f32::INFINITY };
    codes.iter_mut().zip(row).for_each(|(code, x)| *code = encode(x / scale));
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_their_numbers_and_numbers_get_the_nearest_code() {
        assert_eq!(
            [0x00, 0x01, 0x07, 0x08, 0x38, 0x7e, 0xfe].map(decode),
            [0.0, 1.0 / 512.0, 7.0 / 512.0, 1.0 / 64.0, 1.0, 448.0, -448.0]
        );
        assert!(decode(0x7f).is_nan() && decode(0xff).is_nan() && has_nan(&[0, 0xff]) && !has_nan(&[0x7e, 0xfe]));
        for code in (0..=255u8).filter(|code| !has_nan(&[*code])) {
            assert_eq!(encode(decode(code)), code);
            assert_eq!(half::bf16::from_f32(decode(code)).to_f32(), decode(code));
            assert_eq!(half::f16::from_f32(decode(code)).to_f32(), decode(code));
        }
        // Between neighbours, and at the middle, where the even code is taken.
        for code in 0..0x7e_u8 {
            let (low, high) = (decode(code), decode(code + 1));
            let middle = (low + high) / 2.0;
            assert_eq!(encode(middle), code + code % 2, "{middle}");
            assert_eq!(encode(-middle.next_down()), code | 0x80, "{middle}");
            assert_eq!(encode(middle.next_up()), code + 1, "{middle}");
        }
        assert_eq!([449.0, 1e30, f32::INFINITY].map(encode), [0x7e; 3]);
    }

    fn matrix(values: &[f32], cols: usize) -> TensorView<'static> {
        let data: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        TensorView::new(Dtype::F32, vec![values.len() / cols, cols], data)
    }

    #[test]
    fn rows_keep_three_bits_of_mantissa() {
        // More than a share, and a row of zeros.
        let (rows, cols) = (150, 24);
        let mut values: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
        values.chunks_exact_mut(cols).enumerate().for_each(|(r, row)| row.iter_mut().for_each(|x| *x *= r as f32));
        let quantized = quantize(&matrix(&values, cols)).unwrap();
        assert_eq!((quantized.dtype, &quantized.shape), (Dtype::F8E4M3, &vec![rows, cols]));
        let found = quantized.to_f32();
        for (row, found) in values.chunks_exact(cols).zip(found.chunks_exact(cols)) {
            let greatest = row.iter().fold(0f32, |max, x| max.max(x.abs()));
            for (x, found) in row.iter().zip(found) {
                let bound = (x.abs() / 16.0).max(greatest / 448.0 / 1024.0) * 1.001;
                assert!((x - found).abs() <= bound, "{found} for {x}");
            }
            let kept = found.iter().fold(0f32, |max, x| max.max(x.abs()));
            assert!((kept - greatest).abs() <= 1e-6 * greatest);
        }
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(quantize(&matrix(&[1.0, bad, 1.0, 1.0], 2)).is_none());
        }
    }
}
