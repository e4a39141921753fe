//! Tests of the block formats, against llama.cpp's own package (`scripts/make_blocks.py`).

#[cfg(feature = "candle")]
mod candle;

use safetensors::SafeTensors;

use super::encode::halves;
use super::*;

const QUANTIZED: [(Dtype, &str); 10] = [
    (Dtype::Q4_0, "Q4_0"),
    (Dtype::Q4_1, "Q4_1"),
    (Dtype::Q5_0, "Q5_0"),
    (Dtype::Q5_1, "Q5_1"),
    (Dtype::Q8_0, "Q8_0"),
    (Dtype::Q2K, "Q2_K"),
    (Dtype::Q3K, "Q3_K"),
    (Dtype::Q4K, "Q4_K"),
    (Dtype::Q5K, "Q5_K"),
    (Dtype::Q6K, "Q6_K"),
];

/// What the package has made.
fn theirs() -> SafeTensors<'static> {
    SafeTensors::deserialize(include_bytes!("../../../../../tests/blocks.safetensors")).unwrap()
}

fn floats(tensors: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let (numbers, rest) = tensors.tensor(name).unwrap().data().as_chunks();
    assert!(rest.is_empty());
    numbers.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

fn ours(dtype: Dtype, data: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::NAN; data.len() / dtype.block_bytes() * dtype.block_len()];
    dequantize(dtype, data, &mut out);
    out
}

/// Every element of arbitrary blocks, and of quantized weights, has the very bits that it has there.
#[test]
fn blocks_are_as_llama_cpp_has_them() {
    let theirs = theirs();
    for (dtype, name) in QUANTIZED {
        let found = ours(dtype, theirs.tensor(&format!("{name}.blocks")).unwrap().data());
        let expected = floats(&theirs, &format!("{name}.numbers"));
        assert!(found.len() == expected.len() && found.len() >= 4096, "{dtype}");
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found, expected, "{dtype}, element {i}");
        }
    }
}

/// A block of `fill` bytes with d = 1 and, where there is one, m or dmin = 0.5.
fn block_of(dtype: Dtype, fill: u8) -> Vec<u8> {
    let mut block = vec![fill; dtype.block_bytes()];
    for (&at, bits) in halves(dtype).iter().zip([0x3c00u16, 0x3800]) {
        block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
    }
    block
}

#[test]
fn extreme_bits() {
    // (type, all elements of a block of zero bits, of one bits)
    let cases = [
        (Dtype::Q4_0, -8.0, 7.0),
        (Dtype::Q4_1, 0.5, 15.5),
        (Dtype::Q5_0, -16.0, 15.0),
        (Dtype::Q5_1, 0.5, 31.5),
        (Dtype::Q8_0, 0.0, -1.0),
        (Dtype::Q2K, 0.0, 15.0 * 3.0 - 0.5 * 15.0),
        (Dtype::Q3K, -32.0 * -4.0, 31.0 * 3.0),
        (Dtype::Q4K, 0.0, 63.0 * 15.0 - 0.5 * 63.0),
        (Dtype::Q5K, 0.0, 63.0 * 31.0 - 0.5 * 63.0),
        (Dtype::Q6K, 0.0, -31.0),
    ];
    for (dtype, zeros, ones) in cases {
        assert_eq!(ours(dtype, &block_of(dtype, 0)), vec![zeros; dtype.block_len()], "{dtype}, zeros");
        assert_eq!(ours(dtype, &block_of(dtype, 0xff)), vec![ones; dtype.block_len()], "{dtype}, ones");
    }
}

#[test]
fn q8_0_keeps_every_byte() {
    let mut block = block_of(Dtype::Q8_0, 0);
    block[2] = 0x80;
    block[33] = 0x7f;
    let values = ours(Dtype::Q8_0, &block);
    assert_eq!((values[0], values[1], values[31]), (-128.0, 0.0, 127.0));
}

#[test]
fn a_row_is_unpacked_as_its_blocks_are() {
    for (dtype, _) in QUANTIZED {
        // More than eight blocks and no multiple of eight.
        let row = encode::random_blocks(dtype, 21, 4);
        let len = 21 * dtype.block_len();
        let groups = len / group_len(dtype);
        let (mut q, mut scale, mut offset) = (vec![0; len], vec![0.0; groups], vec![0.0; groups]);
        unpack_row(dtype, &row, Unpacked { q: &mut q, scale: &mut scale, offset: &mut offset });
        let found: Vec<f32> = q
            .iter()
            .enumerate()
            .map(|(i, &q)| scale[i / group_len(dtype)] * f32::from(q) + offset[i / group_len(dtype)])
            .collect();
        let expected: Vec<f32> = row.chunks(dtype.block_bytes()).flat_map(|block| ours(dtype, block)).collect();
        assert_eq!(found, expected, "{dtype}");
    }
}

#[test]
fn an_offset_is_there_where_it_is_promised() {
    for (dtype, _) in QUANTIZED {
        let row = block_of(dtype, 0x55);
        let groups = dtype.block_len() / group_len(dtype);
        let (mut q, mut scale, mut offset) = (vec![0; dtype.block_len()], vec![0.0; groups], vec![7.0; groups]);
        unpack_row(dtype, &row, Unpacked { q: &mut q, scale: &mut scale, offset: &mut offset });
        assert_eq!(offset.iter().all(|o| *o != 7.0), has_offset(dtype), "{dtype}");
        if !has_offset(dtype) {
            let mut again = vec![0; dtype.block_len()];
            unpack_row(dtype, &row, Unpacked { q: &mut again, scale: &mut scale, offset: &mut [] });
            assert_eq!(again, q, "{dtype}: without room for offsets");
        }
    }
}

#[test]
fn lengths_that_disagree_are_cut_to_the_shorter() {
    for (dtype, _) in QUANTIZED {
        let data = block_of(dtype, 0x11).repeat(9);
        let whole = ours(dtype, &data);
        for (num_bytes, num_elements) in [(data.len(), 5), (data.len() - 1, whole.len()), (3, 300), (0, 0)] {
            let mut out = vec![f32::NAN; num_elements];
            dequantize(dtype, &data[..num_bytes], &mut out);
            let written = (num_bytes / dtype.block_bytes() * dtype.block_len()).min(num_elements);
            assert_eq!(out[..written], whole[..written], "{dtype}, {num_bytes} bytes, {num_elements} elements");
            assert!(out[written..].iter().all(|x| x.is_nan()), "{dtype}, {num_bytes} bytes, {num_elements} elements");
        }
    }
}

#[test]
fn floats_come_back() {
    let values = [0.0, -1.5, 65504.0, 2f32.powi(-14)];
    for dtype in [Dtype::F32, Dtype::F16] {
        assert_eq!(ours(dtype, &encode(dtype, &values).unwrap()), values, "{dtype}");
    }
    assert_eq!(ours(Dtype::BF16, &encode(Dtype::BF16, &values).unwrap()), [0.0, -1.5, 65536.0, 2f32.powi(-14)]);
}

#[test]
fn every_half_is_converted_exactly() {
    for bits in 0..=u16::MAX {
        let (found, expected) = (f16_to_f32(bits), half::f16::from_bits(bits).to_f32());
        let same = found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan());
        assert!(same, "{bits:#06x}: expected {expected}, found {found}");
    }
}

#[test]
fn encoded_blocks_are_as_llama_cpp_has_them() {
    let theirs = theirs();
    let values = floats(&theirs, "values");
    for (dtype, name) in [QUANTIZED[0], QUANTIZED[1], QUANTIZED[4]] {
        let expected = theirs.tensor(&format!("{name}.encoded")).unwrap();
        assert!(encode(dtype, &values).unwrap() == expected.data(), "{dtype}");
    }
}

#[test]
fn what_cannot_be_encoded_is_refused() {
    assert!(encode(Dtype::Q8_0, &[0.0; 33]).is_none());
    assert!(encode(Dtype::Q4K, &[0.0; 256]).is_none());
}

/// Every code with every scale that is read.
#[test]
fn mxfp4_is_its_numbers() {
    const NUMBERS: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let codes: [u8; 32] = std::array::from_fn(|i| (i * 5 % 16) as u8);
    for e in 0..=252u8 {
        let block = [&[e][..], &pack_nibbles(&codes)].concat();
        let number = |&code: &u8| {
            let magnitude = f64::from(NUMBERS[usize::from(code & 7)]) * 2f64.powi(i32::from(e) - 127);
            (if code < 8 { magnitude } else { -magnitude }) as f32
        };
        let expected: Vec<f32> = codes.iter().map(number).collect();
        assert_eq!(ours(Dtype::Mxfp4, &block.repeat(3)), expected.repeat(3), "{e}");
        assert_eq!(bad_scale(&block.repeat(3)), None);
        // Numbers that it has come back, if not the same codes.
        let again = encode(Dtype::Mxfp4, &expected).unwrap();
        assert_eq!(ours(Dtype::Mxfp4, &again), expected, "{e}");
    }
    for e in [253, 255] {
        let block = [&[e][..], &pack_nibbles(&codes)].concat();
        assert_eq!(bad_scale(&[vec![3; 17], block].concat()), Some(e));
    }
    for code in 0..16u8 {
        let (mut q, mut scale) = ([0; 32], [0.0]);
        let block = [&[127][..], &pack_nibbles(&[code; 32])].concat();
        unpack_row(Dtype::Mxfp4, &block, Unpacked { q: &mut q, scale: &mut scale, offset: &mut [] });
        assert_eq!((mxfp4_code_of(q[0]), scale), (if code == 8 { 0 } else { code }, [0.5]));
    }
    let neighbours: [u8; 16] = std::array::from_fn(|i| codes[2 * i] | codes[2 * i + 1] << 4);
    assert_eq!(from_neighbours(&neighbours), pack_nibbles(&codes));
}

#[test]
fn mxfp4_takes_the_nearest_number() {
    let values: Vec<f32> = (0..32).map(|i| (i as f32 - 15.5) * 0.37).collect();
    let found = ours(Dtype::Mxfp4, &encode(Dtype::Mxfp4, &values).unwrap());
    // Up to 5.7: the scale is 1.
    let numbers: Vec<f32> = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0].into_iter().flat_map(|x: f32| [x, -x]).collect();
    for (value, found) in values.iter().zip(found) {
        let least = numbers.iter().map(|number| (number - value).abs()).fold(f32::INFINITY, f32::min);
        assert!((found - value).abs() <= least + 1e-6, "{found} for {value}");
    }
    let (zeros, ties) = ([0.0; 32], [[4.0, 2.5, 3.5, 5.0], [-0.25, 0.75, 1.25, -1.75]].concat().repeat(4));
    assert_eq!(ours(Dtype::Mxfp4, &encode(Dtype::Mxfp4, &zeros).unwrap()), zeros);
    let expected = [4.0, 2.0, 4.0, 4.0, 0.0, 1.0, 1.0, -2.0].repeat(4);
    assert_eq!(ours(Dtype::Mxfp4, &encode(Dtype::Mxfp4, &ties).unwrap()), expected);
}

#[test]
fn integers_have_a_zero_point() {
    for (dtype, len) in [(Dtype::Int4G32, 32), (Dtype::Int4G128, 128)] {
        for zero in [0.0, 7.0, 16.0] {
            let codes: Vec<u8> = (0..len).map(|i| (i * 7 % 16 + i / 32) as u8 % 16).collect();
            let mut block = [0.75, zero].map(|x| half::f16::from_f32(x).to_le_bytes()).concat();
            block.extend(codes.as_chunks().0.iter().flat_map(encode::pack_nibbles));
            let expected: Vec<f32> = codes.iter().map(|&code| 0.75 * (f32::from(code) - zero)).collect();
            assert_eq!(ours(dtype, &block.repeat(3)), expected.repeat(3), "{dtype} {zero}");
        }
    }
}
