//! [`DummyWeights`]: random weights of a real shape, for benchmarks and tests without model files.

use std::sync::OnceLock;

use super::packed::StoredForm;
use super::quant::encode;
use super::store::{is_of_expert, is_of_layer};
use super::{Dtype, TensorInfo, TensorView, fp8, quant};
use crate::error::{Error, Result};

/// Standard deviation of a matrix's elements.
const STD: f32 = 0.02;
/// Elements of the longest block that can be made here.
const BLOCK_LEN: usize = 32;
/// Bytes of the widest element.
const MAX_ELEMENT_BYTES: usize = 4;
/// Blocks before the random numbers repeat. A prime: rows of any usual length begin at a different
/// block each, for more rows than vocabularies have, so that no two rows are equal.
const PAGE_BLOCKS: usize = 262_147;
/// Tensors of fewer blocks are made without the page.
const SMALL_BLOCKS: usize = PAGE_BLOCKS / 16;

/// Random matrices, norms of ones, biases and sinks of zeros, the same for the same seed, name and shape.
///
/// A large matrix is cut from one page of random numbers that is made once and repeats, from a place
/// that the name decides: memory is filled as fast as it can be copied.
#[derive(Debug)]
pub(super) struct DummyWeights {
    seed: u64,
    dtype: Dtype,
    /// Of the layers' matrices, which are quantized where it is not plain.
    form: StoredForm,
    page: OnceLock<Vec<u8>>,
}

impl DummyWeights {
    /// What makes the random numbers of the matrix `name`.
    pub(super) fn seed_of(&self, name: &str) -> u64 {
        mix(self.seed ^ hash(name))
    }

    pub(super) fn new(seed: u64, dtype: Dtype, form: StoredForm) -> Self {
        Self { seed, dtype, form, page: OnceLock::new() }
    }

    /// The type of the matrix `name`, if it is made of random numbers of its type; `None`: it is in blocks that are quantized.
    pub(super) fn random_dtype(&self, name: &str) -> Option<Dtype> {
        match self.form {
            StoredForm::Fp8 if is_of_layer(name) => Some(Dtype::F8E4M3),
            StoredForm::Packed(_) if is_of_layer(name) => None,
            StoredForm::Mxfp4 if is_of_expert(name) => None,
            _ => Some(self.dtype),
        }
    }

    /// The tensor `name`, made to the shape that is asked for.
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorView<'static>> {
        let TensorInfo { dtype, shape } = self.describe(name, shape)?;
        let num_elements = shape.iter().product();
        let data = match Kind::of(name) {
            Kind::Norm => self.constant(dtype, 1.0, num_elements)?,
            Kind::Bias => self.constant(dtype, 0.0, num_elements)?,
            Kind::Matrix => {
                let matrix = TensorView::new(self.dtype, shape.clone(), self.random(name, &shape, num_elements)?);
                let quantized = match dtype {
                    _ if dtype == self.dtype => return Ok(matrix),
                    Dtype::F8E4M3 => fp8::quantize(&matrix),
                    _ => quant::quantize(&matrix, dtype),
                };
                return Ok(quantized.expect("invariant: random numbers are finite"));
            }
        };
        Ok(TensorView::new(dtype, shape, data))
    }

    /// The same without its data.
    pub(super) fn describe(&self, name: &str, shape: &[usize]) -> Result<TensorInfo> {
        let num_elements = shape.iter().try_fold(1usize, |product, &len| product.checked_mul(len));
        if num_elements.is_none_or(|len| len > isize::MAX as usize / MAX_ELEMENT_BYTES) {
            let message = format!("the shape {shape:?} is too large");
            return Err(Error::tensor(super::store::DUMMY_PATH, name, message));
        }
        let dtype = match Kind::of(name) {
            // Vectors are not quantized in any file.
            Kind::Norm | Kind::Bias if self.dtype.is_quantized() => Dtype::F32,
            Kind::Matrix if is_of_layer(name) && shape.len() == 2 => match self.form {
                StoredForm::Plain | StoredForm::Fp8Blocks(_) => self.dtype,
                StoredForm::Fp8 => Dtype::F8E4M3,
                StoredForm::Mxfp4 if !is_of_expert(name) => self.dtype,
                StoredForm::Mxfp4 if shape[1].is_multiple_of(Dtype::Mxfp4.block_len()) => Dtype::Mxfp4,
                StoredForm::Mxfp4 => {
                    let message = format!("rows of {} elements are not whole blocks of {}", shape[1], Dtype::Mxfp4);
                    return Err(Error::tensor(super::store::DUMMY_PATH, name, message));
                }
                StoredForm::Packed(packing) => packing
                    .group_len(shape[1])
                    .map(|group_len| packing.block_dtype(group_len))
                    .map_err(|message| Error::tensor(super::store::DUMMY_PATH, name, message))?,
            },
            _ => self.dtype,
        };
        Ok(TensorInfo { dtype, shape: shape.to_vec() })
    }

    fn constant(&self, dtype: Dtype, value: f32, num_elements: usize) -> Result<Vec<u8>> {
        Ok(self.encode(dtype, &[value])?.repeat(num_elements))
    }

    fn random(&self, name: &str, shape: &[usize], num_elements: usize) -> Result<Vec<u8>> {
        let row_len = shape.last().copied().unwrap_or(1);
        if !row_len.is_multiple_of(self.dtype.block_len()) {
            let message = format!("rows of {row_len} elements are not whole blocks of {}", self.dtype);
            return Err(Error::tensor(super::store::DUMMY_PATH, name, message));
        }
        let first_block = (self.seed_of(name) % PAGE_BLOCKS as u64) as usize;
        let num_bytes = self.dtype.row_bytes(num_elements);
        if num_elements < SMALL_BLOCKS * BLOCK_LEN {
            let mut data = self.blocks(first_block..first_block + num_elements.div_ceil(BLOCK_LEN))?;
            data.truncate(num_bytes);
            return Ok(data);
        }
        let page = match self.page.get() {
            Some(page) => page,
            None => {
                let page = self.blocks(0..PAGE_BLOCKS)?;
                self.page.get_or_init(|| page)
            }
        };
        let mut data = Vec::with_capacity(num_bytes);
        let mut rest = &page[self.dtype.row_bytes(first_block * BLOCK_LEN)..];
        while data.len() < num_bytes {
            data.extend_from_slice(&rest[..rest.len().min(num_bytes - data.len())]);
            rest = page;
        }
        Ok(data)
    }

    /// The bytes of `range` of the endlessly repeated page.
    fn blocks(&self, range: std::ops::Range<usize>) -> Result<Vec<u8>> {
        let mut data = Vec::with_capacity(self.dtype.row_bytes(range.len() * BLOCK_LEN));
        for block in range {
            let first = block % PAGE_BLOCKS * BLOCK_LEN;
            let values: [f32; BLOCK_LEN] = std::array::from_fn(|i| random_weight(self.seed, (first + i) as u64));
            data.extend(self.encode(self.dtype, &values)?);
        }
        Ok(data)
    }

    fn encode(&self, dtype: Dtype, values: &[f32]) -> Result<Vec<u8>> {
        let refused = || Error::config("dtype", format!("dummy weights cannot be made as {dtype}"));
        encode(dtype, values).ok_or_else(refused)
    }
}

/// What a tensor is, by its name.
enum Kind {
    Norm,
    Bias,
    Matrix,
}

impl Kind {
    fn of(name: &str) -> Self {
        match name {
            _ if name.ends_with(".bias") || name.ends_with(".sinks") => Self::Bias,
            _ if name.contains("norm") && name.ends_with(".weight") => Self::Norm,
            _ => Self::Matrix,
        }
    }
}

/// Nearly normal: the sum of four uniform numbers, scaled to a standard deviation of 0.02.
pub fn random_weight(seed: u64, counter: u64) -> f32 {
    let bits = random_bits(seed, counter);
    let sum: i32 = (0..4).map(|i| (bits >> (16 * i)) as i32 & 0xffff).sum();
    // Each of the four has the mean 65535 / 2 and, in units of 65536, the variance 1/12.
    (sum - 2 * 65535) as f32 * (STD * 3f32.sqrt() / 65536.0)
}

/// The bits of a counter.
pub(super) fn random_bits(seed: u64, counter: u64) -> u64 {
    mix(seed.wrapping_add(counter.wrapping_mul(GOLDEN)))
}

/// 2^64 over the golden ratio, odd: steps of it visit every state.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's output function (Steele, Lea, Flood 2014).
fn mix(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests;
