//! Kernels for Hopper against the portable ones, bit by bit. A GPU whose products do not add alike is asked for close results.
#![allow(clippy::print_stdout)]

use super::super::algorithm::{Algorithm, Product};
use super::super::cuda::tests::fp8;
use super::super::cuda::{self, Options, Products};
use super::*;
use crate::backend::cuda::host::HostDevice;
use crate::backend::cuda::storage::floats_of;
use crate::ops::testing::{assert_close, assert_device_close, devices, on_device, random, round};
use crate::weights::fp8 as weights_fp8;

/// Devices that have the kernels, and whether bits are to be equal there. The host shim does, and they are.
fn hopper_devices(elem: ElemType) -> Vec<(Arc<dyn Device>, bool)> {
    let mut found = Vec::new();
    for device in devices() {
        let has = device.has_kernel(Kernel::Split64.name(elem));
        let adds_alike = adds_alike(&device, elem).unwrap();
        println!("linear_hopper: {}: has it: {has}; {elem:?} adds alike: {adds_alike}", device.name());
        assert!(device.name() != HostDevice::NAME || (has && adds_alike), "the host shim has all kernels");
        if has {
            found.push((device, adds_alike));
        }
    }
    found
}

struct Case {
    x: Buffer,
    weight: Matrix,
}

impl Case {
    /// `x`: behind the rows in use there is something.
    fn new(device: &Arc<dyn Device>, [tokens, features, cols]: [usize; 3], elem: ElemType, has_bias: bool) -> Self {
        let mut x = on_device::buffer(device, &round(&random((tokens + 3) * cols, 1), elem), cols, elem);
        x.set_rows(tokens);
        let bias = has_bias.then(|| random(features, 3));
        let weight = on_device::matrix(device, &round(&random(features * cols, 2), elem), cols, elem, bias.as_deref());
        Self { x, weight }
    }

    fn out(&self, device: &Arc<dyn Device>, cols: usize, elem: ElemType) -> Buffer {
        let mut out = Buffer::new(device, self.x.rows(), cols, elem).unwrap();
        out.set_rows(self.x.rows());
        out
    }

    fn portable(&self, device: &Arc<dyn Device>, out_elem: ElemType) -> Vec<f32> {
        let mut out = self.out(device, self.weight.rows, out_elem);
        cuda::cuda(&**device, &mut out, &self.x, &self.weight, Options::new(Products::Portable)).unwrap();
        out.to_f32().unwrap()
    }

    fn by_kernel(&self, device: &Arc<dyn Device>, kernel: Kernel, out_elem: ElemType) -> Vec<f32> {
        let mut out = self.out(device, self.weight.rows, out_elem);
        let call = Call::new(&**device, kernel, &self.x, &self.weight).unwrap();
        call.launch(&mut out).unwrap();
        out.to_f32().unwrap()
    }
}

fn assert_bits(found: &[f32], expected: &[f32], are_equal: bool, what: &str) {
    if are_equal {
        let differ = found.iter().zip(expected).filter(|(found, expected)| found.to_bits() != expected.to_bits());
        assert_eq!(differ.count(), 0, "{what}");
    } else {
        assert_close(found, expected, 1e-2);
    }
}

#[test]
fn all_kernels_have_the_portable_bits() {
    // One segment, two, four and eight; tokens, features and columns that end within a tile, a box and a product.
    let shapes = [[17, 136, 72], [130, 264, 200], [200, 520, 328], [65, 200, 552], [129, 136, 1096], [300, 16, 2056]];
    for (i, shape) in shapes.into_iter().enumerate() {
        let elem = [ElemType::Bf16, ElemType::F16][i % 2];
        for (device, are_equal) in hopper_devices(elem) {
            let case = Case::new(&device, shape, elem, i % 3 != 0);
            for out_elem in [ElemType::F32, elem] {
                let expected = case.portable(&device, out_elem);
                let is_one_segment = Segments::of(&case.weight).splits == 1;
                for kernel in Kernel::all().filter(|kernel| !kernel.is_fp8() && (!kernel.is_whole() || is_one_segment))
                {
                    let found = case.by_kernel(&device, kernel, out_elem);
                    assert_bits(&found, &expected, are_equal, &format!("{kernel:?} {shape:?} {elem:?} {out_elem:?}"));
                }
            }
        }
    }
}

/// Tile after tile by the same blocks: of tokens one group and more, in an order that has them all.
#[test]
fn blocks_go_on_to_further_tiles() {
    for (device, are_equal) in hopper_devices(ElemType::Bf16) {
        let case = Case::new(&device, [128 * 17 + 1, 264, 64], ElemType::Bf16, true);
        let expected = case.portable(&device, ElemType::Bf16);
        for kernel in [Kernel::Large(Rows::R256), Kernel::Large(Rows::R192), Kernel::Split64] {
            let found = case.by_kernel(&device, kernel, ElemType::Bf16);
            assert_bits(&found, &expected, are_equal, &format!("{kernel:?}"));
        }
    }
}

/// Columns that end within a step and after the first of two; one segment and several; more tiles than blocks.
#[test]
fn weights_in_e4m3_have_the_portable_bits() {
    let shapes = [[65, 136, 136], [130, 264, 200], [200, 392, 712], [129, 136, 1096], [300, 16, 2056]];
    for (i, [tokens, features, cols]) in shapes.into_iter().enumerate() {
        let elem = [ElemType::Bf16, ElemType::F16][i % 2];
        for (device, are_equal) in hopper_devices(elem) {
            let case = Case::new(&device, [tokens, features, cols], elem, false);
            let scales: Vec<f32> = random(features, 6).iter().map(|x| x * 0.037).collect();
            let bias = (i % 3 != 0).then(|| random(features, 7));
            let weight = fp8::matrix(&device, &fp8::codes(features * cols, 5), &scales, elem, bias.as_deref());
            let case = Case { weight, ..case };
            for out_elem in [ElemType::F32, elem] {
                let expected = case.portable(&device, out_elem);
                for kernel in Kernel::all().filter(|kernel| kernel.is_fp8()) {
                    let found = case.by_kernel(&device, kernel, out_elem);
                    let what = format!("{kernel:?} {tokens} {features} {cols} {elem:?} {out_elem:?}");
                    assert_bits(&found, &expected, are_equal, &what);
                }
            }
            assert!(Kernel::all_gated().all(|kernel| Call::new(&*device, kernel, &case.x, &case.weight).is_none()));
        }
    }
}

/// What `Codes` makes of a row: codes in the row's order, and their scale.
fn quantized(row: &[f32]) -> (Vec<u8>, f32) {
    let greatest = row.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let scale = (greatest * (1.0 / weights_fp8::MAX)).max(f32::MIN_POSITIVE);
    let inverse = 1.0 / scale;
    (row.iter().map(|x| weights_fp8::encode((x * inverse).clamp(-weights_fp8::MAX, weights_fp8::MAX))).collect(), scale)
}

/// Tokens, features and columns that end within a tile, a step and a box; one segment and several; zeros and what is no number.
#[test]
fn inputs_in_e4m3_are_the_nearest_and_products_those_of_them() {
    let shapes = [[17, 136, 136], [130, 264, 200], [65, 392, 712], [129, 136, 1096], [300, 16, 2056]];
    for (i, [tokens, features, cols]) in shapes.into_iter().enumerate() {
        let elem = [ElemType::Bf16, ElemType::F16][i % 2];
        for (device, _) in hopper_devices(elem) {
            let mut inputs = round(&random(tokens * cols, 1), elem);
            inputs.iter_mut().enumerate().for_each(|(i, x)| *x *= (1 << (i % 5 * 3)) as f32);
            let mut inputs = round(&inputs, elem);
            inputs[cols..2 * cols].fill(0.0);
            let x = on_device::buffer(&device, &inputs, cols, elem);
            let codes_of_weights = fp8::codes(features * cols, 5);
            let scales: Vec<f32> = random(features, 6).iter().map(|x| x * 0.037).collect();
            let bias = (i % 3 != 0).then(|| random(features, 7));
            let weight = fp8::matrix(&device, &codes_of_weights, &scales, elem, bias.as_deref());
            let codes = Codes::new(&device, tokens, vec![64, cols, cols]).unwrap().unwrap();

            codes.fill(&*device, &x).unwrap();
            let mut bytes = vec![0; 4 * tokens];
            codes.scales.read(0, &mut bytes).unwrap();
            let rows: Vec<_> = inputs.chunks(cols).map(quantized).collect();
            assert_eq!(floats_of(&bytes, ElemType::F32), rows.iter().map(|(_, scale)| *scale).collect::<Vec<_>>());
            // As weights of the same codes are stored.
            let all: Vec<u8> = rows.iter().flat_map(|(codes, _)| codes).copied().collect();
            let stored = fp8::matrix(&device, &all, &vec![1.0; tokens], elem, None);
            let (mut expected, mut found) = (vec![0; stored.memory.bytes()], vec![0; stored.memory.bytes()]);
            stored.memory.read(0, &mut expected).unwrap();
            codes.memory.read(0, &mut found).unwrap();
            assert!(found == expected, "{tokens} x {cols}, {elem:?}");

            let numbers: Vec<f64> = codes_of_weights.iter().map(|&code| f64::from(weights_fp8::decode(code))).collect();
            let expected: Vec<f32> = rows
                .iter()
                .flat_map(|(codes, scale)| {
                    let codes: Vec<f64> = codes.iter().map(|&code| f64::from(weights_fp8::decode(code))).collect();
                    let dot = |row: &[f64]| row.iter().zip(&codes).map(|(w, x)| w * x).sum::<f64>() * f64::from(*scale);
                    let products: Vec<f64> = numbers.chunks(cols).map(dot).collect();
                    let bias = |row: usize| bias.as_ref().map_or(0.0, |bias| bias[row]);
                    (0..features)
                        .map(|row| (products[row] * f64::from(scales[row])) as f32 + bias(row))
                        .collect::<Vec<f32>>()
                })
                .collect();
            // A device keeps some 14 bits of a sum.
            let tolerance = if device.name() == HostDevice::NAME { 1e-5 } else { 1e-2 };
            for kernel in Kernel::all_of_codes() {
                let mut out = Buffer::new(&device, tokens, features, ElemType::F32).unwrap();
                out.set_rows(tokens);
                Call::of_codes(&*device, kernel, &x, &weight, &codes).unwrap().launch(&mut out).unwrap();
                assert_device_close(&out.to_f32().unwrap(), &expected, tolerance);
            }

            // Gate and up, in one launch and in two.
            let act = [Activation::Silu, Activation::GeluTanh][i % 2];
            let buffer = |cols: usize| {
                let mut buffer = Buffer::new(&device, tokens, cols, elem).unwrap();
                buffer.set_rows(tokens);
                buffer
            };
            let [mut gate_up, mut expected] = [features, features / 2].map(buffer);
            let call = |kernel| Call::of_codes(&*device, kernel, &x, &weight, &codes);
            call(Kernel::Large(Rows::R256)).unwrap().launch(&mut gate_up).unwrap();
            gate_act_mul::cuda(&*device, &mut expected, &gate_up, act).unwrap();
            for kernel in Kernel::all_gated() {
                // Halves begin with whole pieces of 16 bytes.
                let Some(call) = call(kernel) else { continue };
                let mut found = buffer(features / 2);
                call.launch_gated(&mut found, act).unwrap();
                assert_bits(
                    &found.to_f32().unwrap(),
                    &expected.to_f32().unwrap(),
                    true,
                    &format!("{kernel:?} {tokens}"),
                );
            }
            assert_eq!(call(Kernel::SplitGated64).is_some(), features % 16 == 0);

            // Beside a token that has no numbers others have theirs.
            inputs[3] = f32::NAN;
            let x = on_device::buffer(&device, &inputs, cols, elem);
            let mut out = Buffer::new(&device, tokens, features, ElemType::F32).unwrap();
            out.set_rows(tokens);
            Call::of_codes(&*device, Kernel::Split64, &x, &weight, &codes).unwrap().launch(&mut out).unwrap();
            let is_number: Vec<bool> = out.to_f32().unwrap().iter().map(|x| x.is_finite()).collect();
            assert!(is_number[..features].iter().all(|is| !is) && is_number[features..].iter().all(|is| *is));
        }
    }
}

#[test]
fn there_are_codes_where_inputs_have_room_and_boxes() {
    for (device, _) in hopper_devices(ElemType::Bf16) {
        assert!(Codes::new(&device, 8, Vec::new()).unwrap().is_none());
        let weight = |cols: usize, is_fp8: bool| match is_fp8 {
            true => fp8::matrix(&device, &fp8::codes(64 * cols, 5), &[1.0; 64], ElemType::Bf16, None),
            false => on_device::matrix(&device, &vec![0.0; 64 * cols], cols, ElemType::Bf16, None),
        };
        let codes = Codes::new(&device, 20, vec![128, 72]).unwrap().unwrap();
        let has = |tokens, weight: &Matrix, kernel| {
            let mut x = Buffer::new(&device, tokens, weight.cols, ElemType::Bf16).unwrap();
            x.set_rows(tokens);
            Call::of_codes(&*device, kernel, &x, weight, &codes).is_some()
        };
        assert!(has(20, &weight(128, true), Kernel::Split64) && has(20, &weight(72, true), Kernel::Split64));
        assert!(!has(21, &weight(128, true), Kernel::Split64) && !has(20, &weight(136, true), Kernel::Split64));
        assert!(!has(20, &weight(128, false), Kernel::Split64) && !has(20, &weight(128, true), Kernel::Split256));
    }
}

#[test]
fn gate_and_up_have_the_bits_of_two_launches() {
    for (i, [tokens, inter, cols]) in
        [[65, 8, 64], [130, 136, 200], [257, 264, 72], [17, 200, 136]].into_iter().enumerate()
    {
        let elem = [ElemType::Bf16, ElemType::F16][i % 2];
        let act = [Activation::Silu, Activation::GeluTanh][i / 2 % 2];
        for (device, are_equal) in hopper_devices(elem) {
            let case = Case::new(&device, [tokens, 2 * inter, cols], elem, i % 2 == 0);
            let mut gate_up = case.out(&device, 2 * inter, elem);
            let mut expected = case.out(&device, inter, elem);
            cuda::cuda(&*device, &mut gate_up, &case.x, &case.weight, Options::new(Products::Portable)).unwrap();
            gate_act_mul::cuda(&*device, &mut expected, &gate_up, act).unwrap();
            for kernel in Kernel::all_gated() {
                let mut found = case.out(&device, inter, elem);
                let call = Call::new(&*device, kernel, &case.x, &case.weight).unwrap();
                call.launch_gated(&mut found, act).unwrap();
                let what = format!("{kernel:?} {tokens} {inter} {cols} {elem:?} {act:?}");
                assert_bits(&found.to_f32().unwrap(), &expected.to_f32().unwrap(), are_equal, &what);
            }
        }
    }
}

#[test]
fn the_kernel_goes_by_tokens_segments_and_device() {
    for (device, _) in hopper_devices(ElemType::Bf16) {
        if device.name() != HostDevice::NAME {
            continue;
        }
        let choose = |tokens, features: usize, cols: usize| {
            let weight = on_device::matrix(&device, &vec![0.0; features * cols], cols, ElemType::Bf16, None);
            let mut x = Buffer::new(&device, tokens, cols, ElemType::Bf16).unwrap();
            x.set_rows(tokens);
            let options = Options::new(Products::Hopper);
            match Algorithm::of(Product { device: &*device, x: &x, weight: &weight, options }) {
                Algorithm::Hopper(kernel) => Some(kernel),
                _ => None,
            }
        };
        assert_eq!(choose(16, 2048, 64), None);
        assert_eq!([17, 64].map(|tokens| choose(tokens, 2048, 64)), [Some(Kernel::Split64); 2]);
        assert_eq!([17, 64].map(|tokens| choose(tokens, 512, 64)), [Some(Kernel::Deep64); 2]);
        assert_eq!(choose(65, 1024, 64), Some(Kernel::Large(Rows::R256)));
        // Tiles of 256 rows would leave the shim's four multiprocessors one more to wait for.
        assert_eq!(choose(65, 1280, 64), Some(Kernel::Large(Rows::R192)));
        assert_eq!(choose(65, 512, 64), Some(Kernel::Large(Rows::R128)));
        // In several segments.
        assert_eq!(choose(129, 384, 512), Some(Kernel::Large(Rows::R192)));
        assert_eq!(choose(257, 512, 512), Some(Kernel::Large(Rows::R128)));
        // One tile: a cluster of four is worth it, one of two is not.
        assert_eq!(choose(65, 128, 1024), Some(Kernel::Deep128));
        assert_eq!(choose(65, 128, 512), Some(Kernel::Large(Rows::R128)));
        assert_eq!(choose(256, 128, 1024), Some(Kernel::Split256));
        assert_eq!(choose(65, 644, 64), None, "rows of results are not whole pieces of 16 bytes");
        assert_eq!(choose(65, 640, 56), None, "rows narrower than a box");
    }
}
