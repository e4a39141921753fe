//! f32 to bytes: plain floats, and reference quantizers of the simplest blocks.
//!
//! They round as ggml's own do. The other formats are read only: their quantizers search for scales,
//! which is the work of a conversion tool.

use half::{bf16, f16};

use super::Dtype;

/// `values` as `dtype`; `None` if `dtype` has no quantizer here (F32, F16, BF16, Q4_0, Q4_1 and Q8_0
/// have one) or `values` is not a whole number of blocks.
pub fn encode(dtype: Dtype, values: &[f32]) -> Option<Vec<u8>> {
    if !values.len().is_multiple_of(dtype.block_len()) {
        return None;
    }
    Some(match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        Dtype::Q4_0 => blocks(values, quantize_q4_0),
        Dtype::Q4_1 => blocks(values, quantize_q4_1),
        Dtype::Q8_0 => blocks(values, quantize_q8_0),
        _ => return None,
    })
}

fn blocks<const BYTES: usize>(values: &[f32], quantize: fn(&[f32; 32]) -> [u8; BYTES]) -> Vec<u8> {
    values.as_chunks().0.iter().flat_map(quantize).collect()
}

/// A Q4_0 block: the value of greatest magnitude becomes -8 exactly.
pub fn quantize_q4_0(values: &[f32; 32]) -> [u8; 18] {
    let extreme = values.iter().fold(0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
    let d = extreme / -8.0;
    let mut block = [0; 18];
    block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    let inverse = inverse(d);
    for (byte, q) in block[2..].iter_mut().zip(nibbles(values, |v| v * inverse + 8.5)) {
        *byte = q;
    }
    block
}

/// A Q4_1 block: the least value becomes 0, the greatest 15.
pub fn quantize_q4_1(values: &[f32; 32]) -> [u8; 20] {
    let min = values.iter().copied().fold(f32::INFINITY, f32::min);
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let d = (max - min) / 15.0;
    let mut block = [0; 20];
    block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    block[2..4].copy_from_slice(&f16::from_f32(min).to_le_bytes());
    let inverse = inverse(d);
    for (byte, q) in block[4..].iter_mut().zip(nibbles(values, |v| (v - min) * inverse + 0.5)) {
        *byte = q;
    }
    block
}

/// A Q8_0 block: the greatest magnitude becomes 127.
pub fn quantize_q8_0(values: &[f32; 32]) -> [u8; 34] {
    let d = values.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
    let mut block = [0; 34];
    block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    let inverse = inverse(d);
    for (byte, v) in block[2..].iter_mut().zip(values) {
        *byte = (v * inverse).round() as i8 as u8;
    }
    block
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Elements l and l + 16 in one byte, each at most 15.
fn nibbles(values: &[f32; 32], level: impl Fn(f32) -> f32) -> [u8; 16] {
    std::array::from_fn(|l| {
        let q = |v: f32| (level(v) as u8).min(15);
        q(values[l]) | (q(values[l + 16]) << 4)
    })
}
