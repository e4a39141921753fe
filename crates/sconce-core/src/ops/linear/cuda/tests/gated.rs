//! Gate and up with their product in one launch: the bits are those of two.

use super::*;

/// Of `weight`'s product with `tokens` tokens; `false` where one launch does not suit.
fn check(device: &Arc<dyn Device>, tokens: usize, weight: &Matrix, act: Activation) -> bool {
    let (elem, inter) = (weight.elem, weight.rows / 2);
    let buffer = |cols: usize| {
        let mut buffer = Buffer::new(device, tokens, cols, elem).unwrap();
        buffer.set_rows(tokens);
        buffer
    };
    let x = on_device::buffer(device, &round(&random(tokens * weight.cols, 1), elem), weight.cols, elem);
    let [mut gate_up, mut expected, mut found] = [2 * inter, inter, inter].map(buffer);
    cuda(&**device, &mut gate_up, &x, weight, Options::new(Products::Portable)).unwrap();
    gate_act_mul::cuda(&**device, &mut expected, &gate_up, act).unwrap();
    if !gated(&**device, &mut found, &x, weight, act, Options::new(Products::Portable)).unwrap() {
        return false;
    }
    let (found, expected) = (found.to_f32().unwrap(), expected.to_f32().unwrap());
    assert_eq!(found, expected, "{tokens} tokens, {inter} x {}, {elem:?}, {act:?}", weight.cols);
    true
}

#[test]
fn bits_are_those_of_two_launches() {
    for device in devices() {
        // One segment, two and four; features that end within a tile and within a block.
        let shapes = [(1, 68, 72), (8, 40, 552), (9, 17, 1096), (16, 8, 200), (3, 130, 328)];
        for (i, (tokens, inter, cols)) in shapes.into_iter().enumerate() {
            let elem = [ElemType::Bf16, ElemType::F16][i % 2];
            let act = [Activation::Silu, Activation::GeluTanh][i / 2 % 2];
            let bias = (i % 2 == 0).then(|| random(2 * inter, 3));
            let weight = round(&random(2 * inter * cols, 2), elem);
            let weight = on_device::matrix(&device, &weight, cols, elem, bias.as_deref());
            assert!(check(&device, tokens, &weight, act));
            let scales: Vec<f32> = random(2 * inter, 6).iter().map(|x| x * 0.037).collect();
            let weight = fp8::matrix(&device, &fp8::codes(2 * inter * cols, 5), &scales, elem, bias.as_deref());
            assert!(check(&device, tokens, &weight, act));
        }
        // Eight segments, and more tokens than those kernels take.
        let weight =
            |rows: usize, cols: usize| on_device::matrix(&device, &random(rows * cols, 2), cols, ElemType::Bf16, None);
        assert!(!check(&device, 2, &weight(16, 2056), Activation::Silu));
        assert!(!check(&device, 17, &weight(16, 64), Activation::Silu));
    }
}
