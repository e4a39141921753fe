//! Weights in block formats: the bits are those of 16-bit weights with the numbers that they are expanded to.

use super::super::cuda::tests::{Case, tolerance};
use super::super::cuda::{self, Kernel as Plain, Options, Products};
use super::*;
use crate::backend::KvDtype;
use crate::backend::cuda::storage::floats_of;
use crate::backend::cuda::weights;
use crate::config::Activation;
use crate::ops::gate_act_mul;
use crate::ops::testing::{assert_device_close, devices, on_device, random, round};
use crate::weights::{TensorView, convert, quant};

pub(in crate::ops) const FORMATS: [Dtype; 11] = [
    Dtype::Q4_0,
    Dtype::Q4_1,
    Dtype::Q5_0,
    Dtype::Q5_1,
    Dtype::Q8_0,
    Dtype::Q4K,
    Dtype::Q5K,
    Dtype::Q6K,
    Dtype::Int4G32,
    Dtype::Int4G128,
    Dtype::Mxfp4,
];

/// Random rows of parts, (format, rows), over each other.
struct Weights {
    parts: Vec<TensorView<'static>>,
    cols: usize,
}

impl Weights {
    fn new(parts: &[(Dtype, usize)], cols: usize) -> Self {
        let part = |(i, &(dtype, rows)): (usize, &(Dtype, usize))| {
            let data = quant::random_blocks(dtype, rows * cols / dtype.block_len(), i as u64 + 1);
            TensorView::new(dtype, vec![rows, cols], data)
        };
        Self { parts: parts.iter().enumerate().map(part).collect(), cols }
    }

    fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.shape[0]).sum()
    }

    /// The same in bf16, as loading would expand them.
    fn expanded(&self) -> Vec<f32> {
        let mut bytes = Vec::new();
        self.parts.iter().for_each(|part| convert(part.dtype, &part.data, Dtype::BF16, &mut bytes));
        floats_of(&bytes, ElemType::Bf16)
    }

    fn matrix(&self, device: &Arc<dyn Device>, bias: Option<&[f32]>) -> Matrix {
        weights::load(device, self.parts.clone(), bias, ElemType::Bf16, true).unwrap()
    }

    /// The same numbers in 16 bits, and random tokens.
    fn case(&self, tokens: usize) -> Case {
        let case = Case::new((tokens, self.rows(), self.cols), ElemType::Bf16, false);
        Case { weight: self.expanded(), ..case }
    }
}

#[test]
fn every_kernel_has_the_bits_of_expanded_weights() {
    for device in devices() {
        for (i, dtype) in FORMATS.into_iter().enumerate() {
            let block = dtype.block_len();
            // Columns that end within a tile where blocks do, and all numbers of segments.
            for (j, (tokens, rows, cols)) in
                [(1, 1, block), (11, 40, 576), (3, 17, 1088), (16, 37, 2304), (70, 70, 800)].into_iter().enumerate()
            {
                let weights = Weights::new(&[(dtype, rows)], cols.next_multiple_of(block));
                let bias = ((i + j) % 2 == 0).then(|| random(rows, 3));
                let matrix = weights.matrix(&device, bias.as_deref());
                assert!(matrix.is_quantized());
                let case = weights.case(tokens);
                let plain = on_device::matrix(&device, &case.weight, weights.cols, ElemType::Bf16, bias.as_deref());
                for out_elem in [ElemType::F32, ElemType::Bf16] {
                    let kernel = if tokens <= MAX_ROWS { Plain::Rows(16) } else { Plain::Tile(cuda::TILE_64X64) };
                    let expected =
                        case.found(&device, out_elem, |out, x, _| cuda::launch(&*device, kernel, out, x, &plain));
                    for kernel in Kernel::all(tokens) {
                        let found =
                            case.found(&device, out_elem, |out, x, _| launch(&*device, kernel, out, x, &matrix));
                        assert_eq!(found, expected, "{dtype} {kernel:?} {tokens} {rows} {cols}");
                    }
                    if bias.is_none() && out_elem == ElemType::F32 {
                        assert_device_close(&expected, &case.expected(), tolerance(out_elem));
                    }
                }
            }
        }
    }
}

#[test]
fn parts_of_several_formats_fill_a_row_side_by_side() {
    for device in devices() {
        let parts = [(Dtype::Q4K, 32), (Dtype::Q4K, 16), (Dtype::Q6K, 20)];
        let weights = Weights::new(&parts, 512);
        let bias = random(68, 4);
        let matrix = weights.matrix(&device, Some(&bias));
        let rows: Vec<_> = matrix.quant_parts().iter().map(|part| (part.dtype, part.first_row, part.rows)).collect();
        assert_eq!(rows, [(Dtype::Q4K, 0, 48), (Dtype::Q6K, 48, 20)]);
        for tokens in [5, 13, 40] {
            let case = weights.case(tokens);
            let plain = on_device::matrix(&device, &case.weight, 512, ElemType::Bf16, Some(&bias));
            let run = |matrix: &Matrix| {
                case.found(&device, ElemType::Bf16, |out, x, _| {
                    cuda::cuda(&*device, out, x, matrix, Options::new(Products::Portable))
                })
            };
            assert_eq!(run(&matrix), run(&plain), "{tokens}");
        }
        // Where a part does not begin with a tile, or has no kernels, all have 16 bits.
        for parts in [[(Dtype::Q4_0, 20), (Dtype::Q4_0, 12)], [(Dtype::Q4_0, 16), (Dtype::Q2K, 16)]] {
            assert!(!Weights::new(&parts, 256).matrix(&device, None).is_quantized());
        }
        let weights = Weights::new(&[(Dtype::Q4_0, 16)], 256);
        for (elem, keeps_blocks) in [(ElemType::F16, true), (ElemType::Bf16, false)] {
            assert!(!weights::load(&device, weights.parts.clone(), None, elem, keeps_blocks).unwrap().is_quantized());
        }
    }
}

#[test]
fn gate_and_up_have_the_bits_of_two_launches() {
    for device in devices() {
        for (i, dtype) in FORMATS.into_iter().enumerate() {
            let (tokens, inter, cols) = [(1, 48, 256), (16, 16, 512), (8, 80, 1280)][i % 3];
            let act = [Activation::Silu, Activation::GeluTanh][i % 2];
            let weights = Weights::new(&[(dtype, inter), (dtype, inter)], cols);
            let bias = (i % 2 == 0).then(|| random(2 * inter, 3));
            let matrix = weights.matrix(&device, bias.as_deref());
            let case = Case { features: inter, ..weights.case(tokens) };
            let expected = case.found(&device, ElemType::Bf16, |out, x, _| {
                let mut both = Buffer::new(&device, tokens, 2 * inter, ElemType::Bf16)?;
                cuda::cuda(&*device, &mut both, x, &matrix, Options::new(Products::Portable))?;
                gate_act_mul::cuda(&*device, out, &both, act)
            });
            let found = case.found(&device, ElemType::Bf16, |out, x, _| {
                assert!(cuda::gated(&*device, out, x, &matrix, act, Options::new(Products::Portable))?);
                Ok(())
            });
            assert_eq!(found, expected, "{dtype} {tokens} {inter} {cols}");
        }
        let refused = |parts: &[(Dtype, usize)]| {
            let matrix = Weights::new(parts, 256).matrix(&device, None);
            let x = on_device::buffer(&device, &random(256, 1), 256, ElemType::Bf16);
            let mut out = Buffer::new(&device, 1, matrix.rows / 2, ElemType::Bf16).unwrap();
            !cuda::gated(&*device, &mut out, &x, &matrix, Activation::Silu, Options::new(Products::Portable)).unwrap()
        };
        assert!(refused(&[(Dtype::Q4_0, 16), (Dtype::Q4_1, 16)]) && refused(&[(Dtype::Q4_0, 40)]));
    }
}

#[test]
fn there_is_room_for_what_many_tokens_are_multiplied_with() {
    for device in devices() {
        let shapes = |shapes: &[[usize; 2]], max_tokens, max_logits| -> Vec<[usize; 2]> {
            let limits = StepLimits {
                max_tokens,
                max_logits,
                max_seqs: 8,
                max_model_len: 64,
                block_size: 16,
                num_groups: 1,
                kv_dtype: KvDtype::Bf16,
            };
            let needed = Expansion::needed(&device, shapes.to_vec(), 1000, &limits).unwrap();
            needed.map_or(Vec::new(), |found| found.matrices.iter().map(|matrix| [matrix.rows, matrix.cols]).collect())
        };
        let all = [[64, 8], [32, 16], [1000, 8], [64, 8]];
        assert_eq!(shapes(&all, 2048, 264), [[32, 16], [64, 8]]);
        assert_eq!(shapes(&all, 2048, 512), [[32, 16], [64, 8], [1000, 8]]);
        assert!(shapes(&all, 511, 264).is_empty() && shapes(&[], 2048, 512).is_empty());
    }
}

#[test]
fn many_tokens_find_weights_expanded() {
    for device in devices() {
        let weights = Weights::new(&[(Dtype::Q4K, 32), (Dtype::Q6K, 24)], 256);
        let matrix = weights.matrix(&device, None);
        let expansion = Expansion::new(&device, &[[56, 256]]).unwrap();
        let expanded = expansion.matrix(&matrix).unwrap();
        assert!(expanded.is_scratch() && !expanded.is_quantized());
        expansion.fill(&*device, &matrix).unwrap();
        let mut bytes = vec![0; 56 * 256 * 2];
        expanded.memory.read(0, &mut bytes).unwrap();
        assert_eq!(floats_of(&bytes, ElemType::Bf16), weights.expanded());

        let case = weights.case(MIN_EXPANDED_TOKENS);
        let run = |products, expansion: Option<&Expansion>| {
            case.found(&device, ElemType::Bf16, |out, x, _| {
                cuda::cuda(&*device, out, x, &matrix, Options { expansion, ..Options::new(products) })
            })
        };
        let expected = run(Products::Portable, None);
        for products in [Products::Portable, Products::Hopper] {
            expansion.memory.clear().unwrap();
            assert_eq!(run(products, Some(&expansion)), expected, "{products:?}");
            expansion.memory.read(0, &mut bytes).unwrap();
            assert!(bytes.iter().any(|&byte| byte != 0), "{products:?}");
        }
        // Without room for it, as without an expansion.
        let small = Expansion::new(&device, &[[55, 256]]).unwrap();
        assert_eq!(run(Products::Portable, Some(&small)), expected);
        let expected = round(&case.expected(), ElemType::Bf16);
        assert_device_close(&run(Products::Library, Some(&expansion)), &expected, tolerance(ElemType::Bf16));
    }
}
