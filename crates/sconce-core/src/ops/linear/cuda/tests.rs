//! All kernels against sums in f64, and against each other, bit by bit.

pub(in crate::ops::linear) mod fp8;
mod gated;

use std::sync::Arc;

use super::*;
use crate::backend::cuda::host::HostDevice;
use crate::ops::testing::{assert_device_close, devices, on_device, random, round};

const KERNELS: [Kernel; 5] =
    [Kernel::Rows(8), Kernel::Rows(16), Kernel::Tile(TILE_64X32), Kernel::Tile(TILE_64X64), Kernel::Tile(TILE_128X128)];

/// A product's inputs, as a device has them.
pub(in crate::ops::linear) struct Case {
    pub(in crate::ops::linear) tokens: usize,
    pub(in crate::ops::linear) features: usize,
    pub(in crate::ops::linear) cols: usize,
    pub(in crate::ops::linear) elem: ElemType,
    pub(in crate::ops::linear) has_bias: bool,
    pub(in crate::ops::linear) x: Vec<f32>,
    pub(in crate::ops::linear) weight: Vec<f32>,
    pub(in crate::ops::linear) bias: Vec<f32>,
}

impl Case {
    pub(in crate::ops::linear) fn new(
        (tokens, features, cols): (usize, usize, usize),
        elem: ElemType,
        has_bias: bool,
    ) -> Self {
        let [x, weight] = [(tokens, 1), (features, 2)].map(|(rows, seed)| round(&random(rows * cols, seed), elem));
        Self { tokens, features, cols, elem, has_bias, x, weight, bias: random(features, 3) }
    }

    fn matrix(&self, device: &Arc<dyn Device>) -> Matrix {
        on_device::matrix(device, &self.weight, self.cols, self.elem, self.has_bias.then_some(&self.bias))
    }

    pub(in crate::ops::linear) fn expected(&self) -> Vec<f32> {
        let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>();
        let row = |x: &[f32]| -> Vec<f32> {
            let weights = self.weight.chunks_exact(self.cols).zip(&self.bias);
            weights.map(|(w, &bias)| (dot(x, w) + if self.has_bias { f64::from(bias) } else { 0.0 }) as f32).collect()
        };
        self.x.chunks_exact(self.cols).flat_map(row).collect()
    }

    /// What `run` makes of it.
    pub(in crate::ops::linear) fn found(
        &self,
        device: &Arc<dyn Device>,
        out_elem: ElemType,
        run: impl Fn(&mut Buffer, &Buffer, &Matrix) -> Result<()>,
    ) -> Vec<f32> {
        let x = on_device::buffer(device, &self.x, self.cols, self.elem);
        let mut out = Buffer::new(device, self.tokens, self.features, out_elem).unwrap();
        out.set_rows(self.tokens);
        run(&mut out, &x, &self.matrix(device)).unwrap();
        assert_eq!(out.rows(), self.tokens);
        out.to_f32().unwrap()
    }

    fn by_kernel(&self, device: &Arc<dyn Device>, kernel: Kernel) -> Vec<f32> {
        self.found(device, ElemType::F32, |out, x, weight| launch(&**device, kernel, out, x, weight))
    }
}

pub(in crate::ops::linear) fn tolerance(elem: ElemType) -> f32 {
    match elem {
        ElemType::F32 => 1e-6,
        ElemType::Bf16 => 4e-3,
        ElemType::F16 => 5e-4,
    }
}

/// Tokens, features, columns.
const SHAPES: [(usize, usize, usize); 14] = [
    (0, 16, 64),
    (1, 1, 8),
    (2, 7, 40),
    (7, 48, 64),
    (8, 130, 576),
    (9, 33, 1536),
    (16, 16, 40),
    (17, 16, 8),
    (33, 130, 64),
    (40, 7, 576),
    (70, 130, 40),
    (130, 129, 96),
    (65, 48, 576),
    (3, 40, 2056),
];

#[test]
fn products_equal_the_reference() {
    for device in devices() {
        for (i, shape) in SHAPES.into_iter().enumerate() {
            let case = Case::new(shape, [ElemType::Bf16, ElemType::F16][i % 2], i % 3 != 0);
            let expected = case.expected();
            for out_elem in [ElemType::F32, case.elem] {
                for products in [Products::Portable, Products::Library] {
                    let found = case.found(&device, out_elem, |out, x, weight| {
                        cuda(&*device, out, x, weight, Options::new(products))
                    });
                    // A product by a library is rounded twice where there is a bias.
                    assert_device_close(&found, &expected, 2.0 * tolerance(out_elem));
                }
            }
        }
    }
}

#[test]
fn all_kernels_give_the_same_bits() {
    for device in devices() {
        // One segment, two, four and eight, and columns that end within a chunk.
        for (i, shape) in [(16, 40, 72), (9, 130, 552), (16, 17, 1096), (11, 16, 2056)].into_iter().enumerate() {
            let case = Case::new(shape, [ElemType::Bf16, ElemType::F16][i % 2], i % 2 == 0);
            assert_eq!(Segments::of(&case.matrix(&device)).splits, 1 << i);
            let expected = case.by_kernel(&device, Kernel::Rows(16));
            assert_device_close(&expected, &case.expected(), 1e-6);
            for kernel in &KERNELS[2..] {
                assert_eq!(case.by_kernel(&device, *kernel), expected, "{kernel:?}, {shape:?}");
            }
        }
    }
}

#[test]
fn a_token_does_not_depend_on_the_tokens_beside_it() {
    for device in devices() {
        let (tokens, features, cols) = (67, 24, 552);
        let case = Case::new((tokens, features, cols), ElemType::Bf16, true);
        let of_step = |x: Vec<f32>| {
            let case = Case { tokens: x.len() / cols, x, ..Case::new((0, features, cols), ElemType::Bf16, true) };
            case.found(&device, ElemType::Bf16, |out, x, weight| {
                cuda(&*device, out, x, weight, Options::new(Products::Portable))
            })
        };
        let all = of_step(case.x.clone());
        let (row, expected) = (|t: usize| &case.x[t * cols..][..cols], |t: usize| &all[t * features..][..features]);
        // Alone, in another place among few, and in another place among as many.
        for t in [0, 9, 66] {
            assert_eq!(of_step(row(t).to_vec()), expected(t), "token {t} alone");
            for len in [3, 8, 12, 16, 20, 40] {
                let step = of_step((0..len).rev().flat_map(|i| row((t + i) % tokens)).copied().collect());
                assert_eq!(&step[(len - 1) * features..], expected(t), "token {t} after {} others", len - 1);
            }
        }
        let turned = of_step((0..tokens).rev().flat_map(|t| row(t).to_vec()).collect());
        assert_eq!(turned, (0..tokens).rev().flat_map(|t| expected(t).to_vec()).collect::<Vec<_>>());
    }
}

#[test]
fn segments_depend_on_the_shape_and_cover_it() {
    let device = devices().remove(0);
    let of = |rows, cols| {
        use crate::backend::cuda::storage::{Form, Memory};
        let memory = Memory::new(&device, 0).unwrap();
        Segments::of(&Matrix::new(memory, [rows, cols], ElemType::Bf16, Form::Floats, None).unwrap())
    };
    // Attention's output and the MLP's matrices of Llama 3 8B, and its head.
    assert_eq!(of(4096, 4096), Segments { splits: 4, len: 1024 });
    assert_eq!(of(4096, 14336), Segments { splits: 4, len: 3584 });
    assert_eq!(of(28672, 4096), Segments { splits: 1, len: 4096 });
    assert_eq!(of(128_256, 4096), Segments { splits: 1, len: 4096 });
    for cols in (8..5000).step_by(8) {
        let Segments { splits, len } = of(48, cols);
        assert!(splits.is_power_of_two() && splits <= WARPS && splits * len >= cols && len.is_multiple_of(CHUNK));
    }
}

#[test]
fn the_kernel_goes_by_the_tokens_and_the_device() {
    let device = HostDevice::open();
    let matrix = |rows: usize| on_device::matrix(&device, &vec![0.0; rows * 8], 8, ElemType::Bf16, None);
    let choose = |tokens, rows| Kernel::choose(&*device, tokens, &matrix(rows));
    assert_eq!([1, 8, 9, 16].map(|tokens| choose(tokens, 640)), [8, 8, 16, 16].map(Kernel::Rows));
    assert_eq!(choose(17, 640), Kernel::Tile(TILE_64X32));
    assert_eq!(choose(64, 640), Kernel::Tile(TILE_64X64));
    assert_eq!(choose(65, 640), Kernel::Tile(TILE_128X128));
    // Three large tiles are not enough for the shim's four multiprocessors.
    assert_eq!(choose(65, 384), Kernel::Tile(TILE_64X64));
}
