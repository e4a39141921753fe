//! The kernels against the reference, for every type and odd shapes.

use super::*;
use crate::backend::cpu::Isa;
use crate::config::MatmulPrecision;
use crate::ops::testing::{assert_close, float_matrix, random};

const QUANTIZED: [Dtype; 13] = [
    Dtype::Q4_0,
    Dtype::Q4_1,
    Dtype::Q5_0,
    Dtype::Q5_1,
    Dtype::Q8_0,
    Dtype::Q2K,
    Dtype::Q3K,
    Dtype::Q4K,
    Dtype::Q5K,
    Dtype::Q6K,
    Dtype::Int4G32,
    Dtype::Int4G128,
    Dtype::Mxfp4,
];

const PRECISIONS: [MatmulPrecision; 3] = [MatmulPrecision::Mixed, MatmulPrecision::Exact, MatmulPrecision::Fast];

/// Inputs with an outlier in some rows' groups.
fn inputs(rows: usize, cols: usize) -> Buffer {
    let mut data = random(rows * cols, 9);
    data.iter_mut().step_by(131).for_each(|x| *x *= 40.0);
    Buffer::from_vec(data, cols)
}

fn random_part(dtype: Dtype, rows: usize, cols: usize, seed: u64) -> MatrixPart {
    let data = quant::random_blocks(dtype, rows * cols / dtype.block_len(), seed);
    MatrixPart { dtype, rows, data: PartData::Rows(data.into()), row_scales: None }
}

fn bytes(part: &MatrixPart) -> &[u8] {
    match &part.data {
        PartData::Rows(data) => data,
        _ => panic!("the part is packed"),
    }
}

/// The matrix as it is loaded where the machine has `isa`.
fn loaded(isa: Isa, matrix: Matrix) -> Matrix {
    let Matrix { parts, cols, bias, column_order } = matrix;
    let load = |part: MatrixPart| {
        let view = TensorView::new(part.dtype, vec![part.rows, cols], bytes(&part));
        load_part((&mut ThreadPool::new(2), &mut Arena::default()), isa, view, WeightDtype::Auto).unwrap()
    };
    Matrix { parts: parts.into_iter().map(load).collect(), cols, bias, column_order }
}

/// The kernels against the reference, which gets the inputs as the kernels see them: in 16 or 8 bits, or rounded to bf16.
fn check(isa: Isa, weight: &Matrix, rows: usize) {
    let x = inputs(rows, weight.cols);
    let (mut expected, mut found) = (Buffer::new(rows, weight.rows()), Buffer::new(rows, weight.rows()));
    for precision in PRECISIONS {
        let mut context = Cpu { precision, ..Cpu::new(2, isa) };
        cpu(&mut context, &mut found, &x, weight);
        match &weight.parts[0] {
            MatrixPart { data: PartData::Panels(_), .. } => {
                reference(&mut expected, &context.planes.dequantize(), weight);
            }
            MatrixPart { data: PartData::Rows(_), .. } => {
                reference(&mut expected, &context.quantized.dequantize(), weight);
            }
            #[cfg(target_arch = "x86_64")]
            MatrixPart { dtype: Dtype::BF16, .. } if precision != MatmulPrecision::Exact && isa >= Isa::Avx512Bf16 => {
                reference(&mut expected, &context.bf16.dequantize(weight.cols), weight);
            }
            _ => reference(&mut expected, &x, weight),
        }
        assert_close(found.data(), expected.data(), 1e-5);
    }
}

const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

#[test]
fn float_kernels_equal_the_reference() {
    for isa in Isa::available() {
        for dtype in FLOATS {
            for (n, rows, cols) in [(0, 3, 16), (1, 1, 1), (3, 5, 17), (7, 33, 64), (1, 130, 577), (21, 130, 576)] {
                let mut matrix = float_matrix(dtype, &random(rows * cols, 4), cols);
                matrix.bias = Some(random(rows, 5).into());
                check(isa, &matrix, n);
            }
        }
    }
}

/// Rows of e4m3 with scales, beside rows without.
#[test]
fn rows_with_scales_equal_the_reference() {
    for isa in Isa::available() {
        for (n, rows, cols) in [(0, 3, 16), (1, 1, 1), (1, 70, 32), (3, 5, 17), (7, 33, 64), (21, 130, 96)] {
            let codes: Vec<u8> = (0..rows * cols).map(|i| (i * 151 % 127) as u8 | (i % 3) as u8 >> 1 << 7).collect();
            let scales: Vec<f32> = random(rows, 8).iter().map(|x| 0.01 * x).collect();
            let view = TensorView::new(Dtype::F8E4M3, vec![rows, cols], codes.clone());
            let view = TensorView { row_scales: Some(scales.clone()), ..view };
            let part =
                load_part((&mut ThreadPool::new(2), &mut Arena::default()), isa, view, WeightDtype::Auto).unwrap();
            assert_eq!(part.dtype, Dtype::BF16);
            let mut row = vec![0.0; cols];
            dequantize_row(&part, rows - 1, &mut row);
            let number = |code: &u8| crate::weights::fp8::decode(*code) * scales[rows - 1];
            assert_eq!(row, codes[(rows - 1) * cols..].iter().map(number).collect::<Vec<_>>());
            let mut other = float_matrix(Dtype::BF16, &random(3 * cols, 4), cols);
            other.parts.insert(0, part);
            other.bias = Some(random(rows + 3, 5).into());
            check(isa, &other, n);
        }
    }
}

#[test]
fn quantized_kernels_equal_the_reference() {
    for isa in Isa::available() {
        for dtype in QUANTIZED {
            for (n, rows, blocks) in [(0, 3, 1), (1, 1, 1), (3, 5, 3), (9, 33, 2), (6, 130, 5)] {
                let cols = blocks * dtype.block_len();
                let part = random_part(dtype, rows, cols, 6);
                let matrix = Matrix { parts: vec![part], cols, bias: Some(random(rows, 7).into()), column_order: None };
                check(isa, &loaded(isa, matrix), n);
            }
        }
    }
}

#[test]
fn inputs_keep_16_bits_of_their_group() {
    let mut data = random(3 * 64, 9);
    data[64..96].fill(0.0);
    let (x, mut quantized) = (Buffer::from_vec(data, 64), QuantizedRows::default());
    quantized.fill(&x);
    let found = quantized.dequantize();
    for (x, found) in x.data().chunks_exact(32).zip(found.data().chunks_exact(32)) {
        let max = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        assert!(x.iter().zip(found).all(|(x, f)| (x - f).abs() <= max / 65534.0 * 1.01));
    }
}

#[test]
fn parts_of_different_types_stand_over_each_other() {
    let parts = vec![
        random_part(Dtype::Q4K, 24, 512, 1),
        random_part(Dtype::Q6K, 9, 512, 2),
        random_part(Dtype::Q8_0, 1, 512, 3),
    ];
    check(Isa::detect(), &loaded(Isa::detect(), Matrix { parts, cols: 512, bias: None, column_order: None }), 5);
}

#[test]
fn inputs_follow_the_order_of_columns() {
    let order: Vec<u32> = (0..96).map(|i| i * 5 % 96).collect();
    for isa in Isa::available() {
        for dtype in [Dtype::Q4_1, Dtype::Q5_0] {
            let mut matrix = loaded(
                isa,
                Matrix { parts: vec![random_part(dtype, 40, 96, 6)], cols: 96, bias: None, column_order: None },
            );
            let x = inputs(3, 96);
            let [mut ordered, mut expected, mut exact] = [96, 40, 40].map(|cols| Buffer::new(3, cols));
            gather_columns::reference(&mut ordered, &x, &order);
            cpu(&mut Cpu::new(2, isa), &mut expected, &ordered, &matrix);
            reference(&mut exact, &ordered, &matrix);
            matrix.column_order = Some(order.clone().into());
            let mut found = Buffer::new(3, 40);
            cpu(&mut Cpu::new(2, isa), &mut found, &x, &matrix);
            assert_eq!(found.data(), expected.data(), "{dtype} {isa:?}");
            reference(&mut found, &x, &matrix);
            assert_eq!(found.data(), exact.data(), "{dtype}");
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_rows_beside_it() {
    let quantized = |dtype: Dtype| {
        let cols = 3 * dtype.block_len();
        Matrix { parts: vec![random_part(dtype, 40, cols, 6)], cols, bias: None, column_order: None }
    };
    for isa in Isa::available() {
        let floats = FLOATS.map(|dtype| float_matrix(dtype, &random(40 * 96, 4), 96));
        for matrix in floats.into_iter().chain(QUANTIZED.map(|dtype| loaded(isa, quantized(dtype)))) {
            for precision in PRECISIONS {
                let mut context = Cpu { precision, ..Cpu::new(2, isa) };
                let x = inputs(31, matrix.cols);
                let mut together = Buffer::new(31, 40);
                cpu(&mut context, &mut together, &x, &matrix);
                for t in 0..31 {
                    let mut alone = Buffer::new(1, 40);
                    cpu(&mut context, &mut alone, &Buffer::from_vec(x.row(t).to_vec(), matrix.cols), &matrix);
                    assert_eq!(alone.row(0), together.row(t), "{:?} {isa:?}", matrix.parts[0].dtype);
                }
            }
        }
    }
}

/// What the kernels of panels compute, in plain code: the integers of a group, or of half of it where that has a scale of its own,
/// and then the groups in order, fused.
fn plain(part: &MatrixPart, x: &Planes, out: &mut Buffer) {
    out.set_rows(x.rows);
    let (cols, len) = (x.cols, quant::group_len(part.dtype));
    let (integers, row_bytes) = (x.integers(), part.dtype.row_bytes(cols));
    let (mut q, mut scale, mut offset) = (vec![0; cols], vec![0.0; cols / len], vec![0.0; cols / len]);
    for (r, row) in bytes(part).chunks_exact(row_bytes).enumerate() {
        quant::unpack_row(part.dtype, row, quant::Unpacked { q: &mut q, scale: &mut scale, offset: &mut offset });
        for t in 0..x.rows {
            let mut acc = 0.0f32;
            for (g, q) in q.chunks_exact(len).enumerate() {
                let x_scale = x.scale[(t * cols + g * len) / 32];
                let inputs = &integers[t * cols + g * len..][..len];
                let sum: i32 = q.iter().zip(inputs).map(|(&q, x)| i32::from(q) * x).sum();
                acc = (sum as f32).mul_add(scale[g] * x_scale, acc);
                if quant::has_offset(part.dtype) {
                    acc = offset[g].mul_add(x_scale * inputs.iter().sum::<i32>() as f32, acc);
                }
            }
            out.data_mut()[t * part.rows + r] = acc;
        }
    }
}

/// By words or by planes of bytes, on x86-64 as on Arm: products are the same integers, scaled in the same order.
#[test]
fn all_kernels_of_panels_have_the_bits_of_plain_code() {
    for dtype in QUANTIZED {
        for (n, rows, blocks) in [(1, 33, 3), (5, 48, 2), (23, 130, 2)] {
            let cols = blocks * dtype.block_len();
            let x = inputs(n, cols);
            for precision in PRECISIONS {
                for isa in Isa::available().into_iter().filter(|&isa| isa > Isa::Baseline) {
                    let parts = vec![random_part(dtype, rows, cols, 6)];
                    let matrix = loaded(isa, Matrix { parts, cols, bias: None, column_order: None });
                    let (mut found, mut expected) = (Buffer::new(n, rows), Buffer::new(n, rows));
                    let mut context = Cpu { precision, ..Cpu::new(2, isa) };
                    cpu(&mut context, &mut found, &x, &matrix);
                    plain(&random_part(dtype, rows, cols, 6), &context.planes, &mut expected);
                    assert_eq!(found.data(), expected.data(), "{dtype}, {isa:?}, {precision:?}");
                }
            }
        }
    }
}

#[test]
fn packed_floats_come_back_bit_by_bit() {
    for (dtype, cols) in FLOATS.into_iter().flat_map(|dtype| [(dtype, 34), (dtype, 33)]) {
        let data: Vec<f32> = random(37 * cols, 8).into_iter().map(|x| half::bf16::from_f32(x).to_f32()).collect();
        let matrix = float_matrix(dtype, &data, cols);
        for (r, expected) in data.chunks_exact(cols).enumerate() {
            let mut found = vec![0.0; cols];
            dequantize_row(&matrix.parts[0], r, &mut found);
            let exact = expected.iter().zip(&found).all(|(e, f)| e == f || dtype == Dtype::F16 && (e - f).abs() < 1e-6);
            assert!(exact, "{dtype} row {r}");
        }
    }
}

/// Packed or not: what the embedding looks up.
#[test]
fn packed_rows_come_back_bit_by_bit() {
    for dtype in QUANTIZED {
        let (rows, cols) = (37, 3 * dtype.block_len());
        let part = random_part(dtype, rows, cols, 8);
        let mut expected = vec![0.0; rows * cols];
        quant::dequantize(dtype, bytes(&part), &mut expected);
        let matrix = loaded(Isa::detect(), Matrix { parts: vec![part], cols, bias: None, column_order: None });
        for (r, expected) in expected.chunks_exact(cols).enumerate() {
            let mut found = vec![0.0; cols];
            dequantize_row(&matrix.parts[0], r, &mut found);
            assert_eq!(found, expected, "{dtype} row {r}");
        }
    }
}

#[test]
fn conversion_at_load_keeps_the_values() {
    let part = random_part(Dtype::Q5K, 3, 256, 1);
    let view = TensorView::new(Dtype::Q5K, vec![3, 256], bytes(&part));
    let mut expected = vec![0.0; 3 * 256];
    quant::dequantize(Dtype::Q5K, bytes(&part), &mut expected);
    for (asked, tolerance) in [(WeightDtype::F32, 0.0), (WeightDtype::Bf16, 4e-3), (WeightDtype::F16, 5e-4)] {
        let converted =
            load_part((&mut ThreadPool::new(1), &mut Arena::default()), Isa::Baseline, view.clone(), asked).unwrap();
        for (r, expected) in expected.chunks_exact(256).enumerate() {
            let mut found = vec![0.0; 256];
            dequantize_row(&converted, r, &mut found);
            assert_close(&found, expected, tolerance);
        }
    }
}
