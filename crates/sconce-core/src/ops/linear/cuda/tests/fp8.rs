//! Weights of e4m3: the bits are those of 16-bit weights with the same numbers, with the scale applied after.

use super::*;
use crate::backend::cuda::weights;
use crate::weights::{Dtype, TensorView, fp8};

/// Codes of all kinds but NaN.
pub(in crate::ops::linear) fn codes(len: usize, seed: u64) -> Vec<u8> {
    let code = |x: &f32| ((x + 1.0) * 128.0) as u8;
    random(len, seed).iter().map(code).map(|code| if code & 0x7f == 0x7f { code & 0xf0 } else { code }).collect()
}

pub(in crate::ops::linear) fn matrix(
    device: &Arc<dyn Device>,
    codes: &[u8],
    scales: &[f32],
    elem: ElemType,
    bias: Option<&[f32]>,
) -> Matrix {
    let (rows, cols) = (scales.len(), codes.len() / scales.len());
    // Two parts, as several projections are.
    let part = |rows: std::ops::Range<usize>| {
        let codes = &codes[rows.start * cols..rows.end * cols];
        let view = TensorView::new(Dtype::F8E4M3, vec![rows.len(), cols], codes);
        TensorView { row_scales: Some(scales[rows].to_vec()), ..view }
    };
    weights::load(device, vec![part(0..rows / 3), part(rows / 3..rows)], bias, elem, false).unwrap()
}

#[test]
fn bits_are_those_of_expanded_weights() {
    for device in devices() {
        let shapes = [(1, 1, 8), (16, 40, 72), (9, 130, 552), (8, 17, 1096), (11, 16, 2056), (3, 24, 64), (2, 33, 96)];
        for (i, (tokens, features, cols)) in shapes.into_iter().enumerate() {
            let elem = [ElemType::Bf16, ElemType::F16][i % 2];
            let codes = codes(features * cols, 5);
            let weight = codes.iter().map(|&code| fp8::decode(code)).collect();
            let plain = Case { weight, ..Case::new((tokens, features, cols), elem, false) };
            let scales: Vec<f32> = random(features, 6).iter().map(|x| x * 0.037).collect();
            let bias = (i % 3 != 0).then(|| random(features, 7));
            let weight = matrix(&device, &codes, &scales, elem, bias.as_deref());
            let expected = plain.by_kernel(&device, Kernel::Rows(16));
            let expected: Vec<f32> = expected
                .iter()
                .enumerate()
                .map(|(at, sum)| sum * scales[at % features] + bias.as_ref().map_or(0.0, |bias| bias[at % features]))
                .collect();
            for kernel in KERNELS.into_iter().filter(|kernel| *kernel != Kernel::Rows(8) || tokens <= 8) {
                for out_elem in [ElemType::F32, elem] {
                    let found = plain.found(&device, out_elem, |out, x, _| launch(&*device, kernel, out, x, &weight));
                    assert_eq!(found, round(&expected, out_elem), "{kernel:?} {elem:?} {tokens} {features} {cols}");
                }
            }
            // The library has no such weights.
            let found = plain.found(&device, ElemType::F32, |out, x, _| {
                cuda(&*device, out, x, &weight, Options::new(Products::Library))
            });
            assert_eq!(found, expected);
        }
    }
}

#[test]
fn every_code_is_its_number() {
    for device in devices() {
        for elem in [ElemType::Bf16, ElemType::F16] {
            // A row of all codes, and tokens that each look at one.
            let codes: Vec<u8> = (0..=255).map(|code| if code & 0x7f == 0x7f { 0 } else { code }).collect();
            let expected: Vec<f32> = codes.iter().map(|&code| fp8::decode(code)).collect();
            let x: Vec<f32> = (0..256 * 256).map(|i| if i % 257 == 0 { 1.0 } else { 0.0 }).collect();
            let weight = matrix(&device, &codes, &[1.0], elem, None);
            for kernel in &KERNELS[2..] {
                let case = Case { x: x.clone(), ..Case::new((256, 1, 256), elem, false) };
                let run = |out: &mut Buffer, x: &Buffer, _: &Matrix| launch(&*device, *kernel, out, x, &weight);
                assert_eq!(case.found(&device, ElemType::F32, run), expected, "{kernel:?} {elem:?}");
            }
            for (x, expected) in x.chunks(8 * 256).zip(expected.chunks(8)) {
                let case = Case { x: x.to_vec(), ..Case::new((8, 1, 256), elem, false) };
                let run = |out: &mut Buffer, x: &Buffer, _: &Matrix| launch(&*device, Kernel::Rows(8), out, x, &weight);
                assert_eq!(case.found(&device, ElemType::F32, run), expected, "{elem:?}");
            }
        }
    }
}
