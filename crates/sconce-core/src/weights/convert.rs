//! [`convert`]: weights of any type as floats of another.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::{Dtype, quant};

/// Elements that are converted at a time: a multiple of every block's length.
const CHUNK_LEN: usize = 4096;

/// Appends the whole blocks of `from` in `data` to `out`, as `to`, which is F32, F16 or BF16. A number beyond the range of f16
/// becomes its greatest.
pub fn convert(from: Dtype, data: &[u8], to: Dtype, out: &mut Vec<u8>) {
    assert!(!to.is_quantized(), "invariant: weights are converted to floats");
    let (mut floats, mut halves) = ([0.0f32; CHUNK_LEN], [0u16; CHUNK_LEN]);
    let num_elements = data.len() / from.block_bytes() * from.block_len();
    out.reserve(to.row_bytes(num_elements));
    for chunk in data.chunks(from.row_bytes(CHUNK_LEN)) {
        let len = chunk.len() / from.block_bytes() * from.block_len();
        let floats = &mut floats[..len];
        quant::dequantize(from, &chunk[..from.row_bytes(len)], floats);
        let halves = &mut halves[..len];
        match to {
            Dtype::F32 => {
                out.extend_from_slice(bytemuck::cast_slice(floats));
                continue;
            }
            Dtype::F16 => {
                let greatest = f16::MAX.to_f32();
                floats.iter_mut().for_each(|x| *x = x.clamp(-greatest, greatest));
                bytemuck::cast_slice_mut::<u16, f16>(halves).convert_from_f32_slice(floats);
            }
            _ => bytemuck::cast_slice_mut::<u16, bf16>(halves).convert_from_f32_slice(floats),
        }
        out.extend_from_slice(bytemuck::cast_slice(halves));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_to_the_precision_of_the_target() {
        let values: Vec<f32> = (0..5000).map(|i| (i as f32 - 2500.0) * 31.7).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        for (to, tolerance) in [(Dtype::F32, 0.0), (Dtype::BF16, 1.0 / 256.0), (Dtype::F16, 1.0 / 2048.0)] {
            let (mut converted, mut back) = (Vec::new(), Vec::new());
            convert(Dtype::F32, &bytes, to, &mut converted);
            assert_eq!(converted.len(), to.row_bytes(values.len()));
            convert(to, &converted, Dtype::F32, &mut back);
            for (found, &value) in back.as_chunks::<4>().0.iter().zip(&values) {
                let expected = if to == Dtype::F16 { value.clamp(-65504.0, 65504.0) } else { value };
                let found = f32::from_le_bytes(*found);
                assert!((found - expected).abs() <= tolerance * expected.abs(), "{to}: {found} for {value}");
            }
        }
    }
}
