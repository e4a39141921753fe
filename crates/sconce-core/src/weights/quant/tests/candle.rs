//! The block formats against candle, where the feature is on.

use std::borrow::Cow;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Tensor};

use super::{QUANTIZED, floats, ours, theirs};
use crate::weights::Dtype;

fn type_of(dtype: Dtype) -> GgmlDType {
    match dtype {
        Dtype::Q4_0 => GgmlDType::Q4_0,
        Dtype::Q4_1 => GgmlDType::Q4_1,
        Dtype::Q5_0 => GgmlDType::Q5_0,
        Dtype::Q5_1 => GgmlDType::Q5_1,
        Dtype::Q8_0 => GgmlDType::Q8_0,
        Dtype::Q2K => GgmlDType::Q2K,
        Dtype::Q3K => GgmlDType::Q3K,
        Dtype::Q4K => GgmlDType::Q4K,
        Dtype::Q5K => GgmlDType::Q5K,
        Dtype::Q6K => GgmlDType::Q6K,
        dtype => unreachable!("candle has no {dtype}"),
    }
}

/// Every element has the very bits that candle gives it.
#[track_caller]
fn check(dtype: Dtype, data: &[u8]) {
    let found = ours(dtype, data);
    let storage = QStorage::from_data(Cow::Borrowed(data), &Device::Cpu, type_of(dtype)).unwrap();
    let tensor = QTensor::new(storage, found.len()).unwrap();
    let expected: Vec<f32> = tensor.dequantize(&Device::Cpu).unwrap().to_vec1().unwrap();
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found, expected, "{dtype}, element {i}");
    }
}

#[test]
fn kept_blocks_are_as_candle_has_them() {
    for (dtype, name) in QUANTIZED {
        check(dtype, theirs().tensor(&format!("{name}.blocks")).unwrap().data());
    }
}

#[test]
fn weights_that_candle_quantizes_are_as_it_has_them() {
    let values = floats(&theirs(), "values");
    let values = &values[..values.len() / 256 * 256];
    let tensor = Tensor::new(values, &Device::Cpu).unwrap();
    for (dtype, _) in QUANTIZED {
        check(dtype, &QTensor::quantize(&tensor, type_of(dtype)).unwrap().data().unwrap());
    }
}
