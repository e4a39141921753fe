//! [`Fused`]: one expert's matrix, or bias, among those of all experts of a layer, as gpt-oss has them in one tensor.
//!
//! `X.experts.E.gate_proj.weight`, `up_proj` and `down_proj`, [rows, cols], are in
//!
//! | stored | gate, up | down |
//! |---|---|---|
//! | MXFP4 | `X.experts.gate_up_proj_blocks` [experts, 2 * rows, cols / 32, 16] bytes, `.._scales` [experts, 2 * rows, cols / 32] | `down_proj_..`, with one times the rows |
//! | floats | `X.experts.gate_up_proj` [experts, cols, 2 * rows] | `X.experts.down_proj` [experts, cols, rows] |
//!
//! and biases in `X.experts.gate_up_proj_bias` [experts, 2 * rows] and `down_proj_bias`. Rows of gate and up take turns. Of two neighbours
//! in a byte the first has the low nibble.

use ::safetensors::Dtype as StDtype;

use super::{Raw, Safetensors};
use crate::error::{Error, Result};
use crate::weights::{Dtype, TensorInfo, TensorView, quant};

/// What follows a tensor's name in those of its codes and of their scales.
const BLOCKS: &str = "_blocks";
const SCALES: &str = "_scales";
const BIAS: &str = "_bias";
/// Elements and bytes of a block's codes.
const BLOCK_LEN: usize = 32;
const CODE_BYTES: usize = 16;

/// Which rows of a tensor of all experts: of one expert's every `step`th, from row `first` of them on.
#[derive(Debug, Clone, Copy)]
struct Part {
    expert: usize,
    first: usize,
    step: usize,
}

/// How the numbers are stored.
#[derive(Debug, Clone, Copy)]
enum Stored {
    Mxfp4,
    Floats(Dtype),
    Bias(Dtype),
}

/// One expert's matrix or bias, whose tensors fit each other.
pub(super) struct Fused<'a> {
    files: &'a Safetensors,
    /// Of the tensor without what follows it.
    name: String,
    part: Part,
    stored: Stored,
    rows: usize,
    /// 1 of a bias.
    cols: usize,
}

/// Whether a tensor of this name holds codes.
pub(super) fn are_blocks(name: &str) -> bool {
    name.ends_with(&format!("_proj{BLOCKS}"))
}

/// The tensor that would have `name`, without what follows it; which part; whether it is a bias.
fn place_of(name: &str) -> Option<(String, Part, bool)> {
    let (layer, rest) = name.split_once(".experts.")?;
    let (expert, rest) = rest.split_once('.')?;
    let (part, kind) = rest.split_once('.')?;
    let (fused, first, step) = match part {
        "gate_proj" => ("gate_up_proj", 0, 2),
        "up_proj" => ("gate_up_proj", 1, 2),
        "down_proj" => ("down_proj", 0, 1),
        _ => return None,
    };
    let part = Part { expert: expert.parse().ok()?, first, step };
    matches!(kind, "weight" | "bias").then(|| (format!("{layer}.experts.{fused}"), part, kind == "bias"))
}

impl<'a> Fused<'a> {
    /// Whether there is a tensor that `name` would be in.
    pub(super) fn is_there(files: &Safetensors, name: &str) -> bool {
        place_of(name).is_some_and(|(fused, ..)| files.tensors.contains_key(&(fused + BIAS)))
    }

    /// The matrix or bias `name`, if that is where it is. Other models' experts in one tensor lie in it in another way; they have no biases.
    pub(super) fn find(files: &'a Safetensors, name: &str) -> Result<Option<Self>> {
        let Some((fused, part, is_bias)) = place_of(name).filter(|_| Self::is_there(files, name)) else {
            return Ok(None);
        };
        let blocks = files.raw(&format!("{fused}{BLOCKS}"));
        let (stored, [num_experts, all_rows], cols) = match (is_bias, blocks, files.raw(&fused)) {
            (true, ..) => {
                let (dtype, [num_experts, rows]) = floats(files, &format!("{fused}{BIAS}"))?;
                (Stored::Bias(dtype), [num_experts, rows], 1)
            }
            (false, Some(_), _) => {
                let [num_experts, rows, groups] = mxfp4_shape(files, &fused)?;
                (Stored::Mxfp4, [num_experts, rows], groups.saturating_mul(BLOCK_LEN))
            }
            (false, None, Some(_)) => {
                let (dtype, [num_experts, cols, rows]) = floats(files, &fused)?;
                (Stored::Floats(dtype), [num_experts, rows], cols)
            }
            (false, None, None) => return Ok(None),
        };
        if part.expert >= num_experts || !all_rows.is_multiple_of(part.step) {
            let message = format!("expected {name} in it, found {num_experts} experts of {all_rows} rows");
            return Err(Error::tensor(files.path_of(&fused), fused, message));
        }
        Ok(Some(Self { files, name: fused, part, stored, rows: all_rows / part.step, cols }))
    }

    pub(super) fn info(&self) -> TensorInfo {
        let (rows, cols) = (self.rows, self.cols);
        match self.stored {
            Stored::Mxfp4 => TensorInfo { dtype: Dtype::Mxfp4, shape: vec![rows, cols] },
            Stored::Floats(dtype) => TensorInfo { dtype, shape: vec![rows, cols] },
            Stored::Bias(dtype) => TensorInfo { dtype, shape: vec![rows] },
        }
    }

    /// The same, with its data.
    pub(super) fn read(&self) -> TensorView<'static> {
        let TensorInfo { dtype, shape } = self.info();
        let data = match self.stored {
            // However many rows of nothing there are.
            _ if self.rows == 0 || self.cols == 0 => Vec::new(),
            Stored::Mxfp4 => self.blocks(),
            Stored::Floats(_) => self.transposed(&self.name, dtype.block_bytes()),
            Stored::Bias(_) => self.transposed(&format!("{}{BIAS}", self.name), dtype.block_bytes()),
        };
        TensorView::new(dtype, shape, data)
    }

    /// The bytes of this expert, of all of whose rows and columns the tensor `name` has so many.
    fn own(&self, name: &str, num_bytes: usize) -> &'a [u8] {
        self.files.part(name, self.part.expert * num_bytes..(self.part.expert + 1) * num_bytes)
    }

    fn blocks(&self) -> Vec<u8> {
        let (Part { first, step, .. }, groups) = (self.part, self.cols / BLOCK_LEN);
        let own = |suffix: &str, bytes: usize| {
            self.own(&format!("{}{suffix}", self.name), self.rows * step * groups * bytes).chunks_exact(groups * bytes)
        };
        let rows = own(BLOCKS, CODE_BYTES).zip(own(SCALES, 1)).skip(first).step_by(step);
        let mut out = Vec::with_capacity(self.rows * Dtype::Mxfp4.row_bytes(self.cols));
        for (codes, scales) in rows {
            for (codes, scale) in codes.as_chunks::<CODE_BYTES>().0.iter().zip(scales) {
                out.push(*scale);
                out.extend_from_slice(&quant::from_neighbours(codes));
            }
        }
        out
    }

    /// Of [experts, cols, rows] this expert's [rows, cols], of elements of so many bytes.
    fn transposed(&self, name: &str, bytes: usize) -> Vec<u8> {
        let Part { first, step, .. } = self.part;
        let row_bytes = self.rows * step * bytes;
        let own = self.own(name, self.cols * row_bytes);
        let mut out = vec![0; self.rows * self.cols * bytes];
        // Some rows at a time: their lines of memory stay in the cache from column to column.
        const STRIP: usize = 32;
        for strip in (0..self.rows).step_by(STRIP) {
            for (col, numbers) in own.chunks_exact(row_bytes).enumerate() {
                for row in strip..self.rows.min(strip + STRIP) {
                    let to = (row * self.cols + col) * bytes;
                    out[to..to + bytes].copy_from_slice(&numbers[(first + row * step) * bytes..][..bytes]);
                }
            }
        }
        out
    }
}

/// The type and the shape of a tensor of floats of `N` dimensions, which is there.
fn floats<const N: usize>(files: &Safetensors, name: &str) -> Result<(Dtype, [usize; N])> {
    let error = |message: String| Error::tensor(files.path_of(name), name, message);
    let Raw { dtype, shape } = files.raw(name).ok_or_else(|| error("there is no such tensor".into()))?;
    let found = match dtype {
        StDtype::F32 => Some(Dtype::F32),
        StDtype::F16 => Some(Dtype::F16),
        StDtype::BF16 => Some(Dtype::BF16),
        _ => None,
    };
    let fits = found.zip(<[usize; N]>::try_from(shape).ok());
    fits.ok_or_else(|| {
        error(format!("expected F32, F16 or BF16 of {N} dimensions, found {dtype:?} of the shape {shape:?}"))
    })
}

/// [experts, rows, groups] of codes, which are there, and their scales.
fn mxfp4_shape(files: &Safetensors, fused: &str) -> Result<[usize; 3]> {
    let [codes, scales] = [BLOCKS, SCALES].map(|suffix| format!("{fused}{suffix}"));
    let error = |name: &str, message: String| Error::tensor(files.path_of(name), name, message);
    let bytes = |name: &str| {
        let raw = files.raw(name).ok_or_else(|| error(name, "there is no such tensor".into()))?;
        if raw.dtype == StDtype::U8 {
            Ok(raw.shape)
        } else {
            Err(error(name, format!("expected U8, found {:?}", raw.dtype)))
        }
    };
    let (of_codes, of_scales) = (bytes(&codes)?, bytes(&scales)?);
    let &[num_experts, rows, groups, CODE_BYTES] = of_codes else {
        let message = format!("expected the shape [experts, rows, columns / 32, {CODE_BYTES}], found {of_codes:?}");
        return Err(error(&codes, message));
    };
    let expected = [num_experts, rows, groups];
    if of_scales != expected {
        return Err(error(&scales, format!("expected the shape {expected:?}, found {of_scales:?}")));
    }
    Ok(expected)
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView as StView;

    use super::*;
    use crate::weights::{StoredForm, WeightStore};

    const EXPERTS: usize = 2;
    const ROWS: usize = 3;
    const COLS: usize = 64;

    fn store(tensors: &[(&str, StDtype, Vec<usize>, Vec<u8>)]) -> WeightStore {
        let dir = tempfile::tempdir().unwrap();
        let views =
            tensors.iter().map(|(name, dtype, shape, data)| (*name, StView::new(*dtype, shape.clone(), data).unwrap()));
        std::fs::write(dir.path().join("model.safetensors"), ::safetensors::serialize(views, None).unwrap()).unwrap();
        WeightStore::open_safetensors(dir.path(), StoredForm::Mxfp4).unwrap()
    }

    fn f32_bytes(numbers: impl Iterator<Item = f32>) -> Vec<u8> {
        numbers.flat_map(f32::to_le_bytes).collect()
    }

    fn biases() -> Vec<u8> {
        f32_bytes((0..EXPERTS * 2 * ROWS).map(|i| i as f32))
    }

    #[test]
    fn rows_of_gate_and_up_take_turns() {
        let codes: Vec<u8> = (0..EXPERTS * 2 * ROWS * COLS / 2).map(|i| (i * 37 % 256) as u8).collect();
        let scales: Vec<u8> = (0..EXPERTS * 2 * ROWS * COLS / 32).map(|i| 120 + (i % 9) as u8).collect();
        let blocks = vec![EXPERTS, 2 * ROWS, COLS / 32, 16];
        let store = store(&[
            ("a.experts.gate_up_proj_blocks", StDtype::U8, blocks.clone(), codes.clone()),
            ("a.experts.gate_up_proj_scales", StDtype::U8, blocks[..3].to_vec(), scales.clone()),
            ("a.experts.gate_up_proj_bias", StDtype::F32, vec![EXPERTS, 2 * ROWS], biases()),
        ]);
        const NUMBERS: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        for (expert, part, first) in [(0, "gate_proj", 0), (1, "gate_proj", 0), (1, "up_proj", 1)] {
            let name = format!("a.experts.{expert}.{part}.weight");
            let found = store.get(&name, &[ROWS, COLS]).unwrap();
            assert_eq!(
                (found.dtype, store.describe(&name, &[ROWS, COLS]).unwrap().dtype),
                (Dtype::Mxfp4, Dtype::Mxfp4)
            );
            assert!(store.contains(&name));
            let row_of = |row: usize| expert * 2 * ROWS + first + 2 * row;
            let number = |i: usize| {
                let at = row_of(i / COLS) * COLS + i % COLS;
                let code = codes[at / 2] >> (4 * (at % 2)) & 15;
                let sign = if code < 8 { 1.0 } else { -1.0 };
                sign * NUMBERS[usize::from(code & 7)] * 2f32.powi(i32::from(scales[at / 32]) - 127)
            };
            assert_eq!(found.to_f32(), (0..ROWS * COLS).map(number).collect::<Vec<_>>(), "{name}");
            let bias = store.get(&format!("a.experts.{expert}.{part}.bias"), &[ROWS]).unwrap().to_f32();
            assert_eq!(bias, (0..ROWS).map(|row| row_of(row) as f32).collect::<Vec<_>>());
        }
        assert_eq!(store.block_format(), Some(Dtype::Mxfp4));
    }

    #[test]
    fn floats_have_columns_first() {
        let rows = 70;
        let number = |expert: usize, row: usize, col: usize| ((expert * 5 + col) * 100 + row) as f32;
        let all = |expert| (0..COLS).flat_map(move |col| (0..rows).map(move |row| number(expert, row, col)));
        let data = f32_bytes((0..EXPERTS).flat_map(all));
        let bias = f32_bytes((0..EXPERTS * rows).map(|i| i as f32));
        for (stored, parts) in [("gate_up_proj", vec!["gate_proj", "up_proj"]), ("down_proj", vec!["down_proj"])] {
            let bias_name = format!("a.experts.{stored}_bias");
            let store = store(&[
                (&*format!("a.experts.{stored}"), StDtype::F32, vec![EXPERTS, COLS, rows], data.clone()),
                (&*bias_name, StDtype::F32, vec![EXPERTS, rows], bias.clone()),
            ]);
            for (first, part) in parts.iter().enumerate() {
                let (own, step) = (rows / parts.len(), parts.len());
                let found = store.get(&format!("a.experts.1.{part}.weight"), &[own, COLS]).unwrap();
                let expected = (0..own * COLS).map(|i| number(1, first + i / COLS * step, i % COLS));
                assert_eq!((found.dtype, found.to_f32()), (Dtype::F32, expected.collect::<Vec<_>>()), "{part}");
            }
        }
    }

    #[test]
    fn tensors_that_do_not_fit_are_named() {
        let blocks = |name: &'static str, dtype, shape: &[usize]| {
            let len: usize = shape.iter().product();
            (name, dtype, shape.to_vec(), vec![120; len])
        };
        let (codes, scales) = ("a.experts.down_proj_blocks", "a.experts.down_proj_scales");
        let bias = |len: usize| ("a.experts.down_proj_bias", StDtype::F32, vec![len, 4], vec![0; 16 * len]);
        let good = [blocks(codes, StDtype::U8, &[2, 4, 2, 16]), blocks(scales, StDtype::U8, &[2, 4, 2]), bias(2)];
        let name = "a.experts.1.down_proj.weight";
        let refused = |name: &str, tensors: &[_], words: &[&str]| {
            let store = store(tensors);
            let message = store.get(name, &[4, 64]).unwrap_err().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
            message
        };
        assert!(store(&good).get(name, &[4, 64]).is_ok());
        refused(name, &[good[0].clone(), good[2].clone()], &[scales, "no such tensor"]);
        let other = blocks(scales, StDtype::U8, &[2, 4, 3]);
        refused(name, &[good[0].clone(), other, good[2].clone()], &[scales, "[2, 4, 2]", "[2, 4, 3]"]);
        let other = blocks(codes, StDtype::U8, &[2, 4, 32]);
        refused(name, &[other, good[1].clone(), good[2].clone()], &[codes, "found [2, 4, 32]"]);
        let other = blocks(codes, StDtype::I8, &[2, 4, 2, 16]);
        refused(name, &[other, good[1].clone(), good[2].clone()], &[codes, "expected U8, found I8"]);
        refused("a.experts.2.down_proj.weight", &good, &["a.experts.down_proj", "2 experts of 4 rows"]);
        refused("a.experts.2.down_proj.bias", &good, &["2 experts"]);
        let nan = ("a.experts.down_proj_scales", StDtype::U8, vec![2, 4, 2], [vec![120; 15], vec![255]].concat());
        refused(name, &[good[0].clone(), nan.clone(), good[2].clone()], &[name, "exponent byte 255"]);
        // Of another expert.
        assert!(store(&[good[0].clone(), nan, good[2].clone()]).get("a.experts.0.down_proj.weight", &[4, 64]).is_ok());
        // However many rows there are of nothing.
        let none =
            [blocks(codes, StDtype::U8, &[2, 1 << 60, 0, 16]), blocks(scales, StDtype::U8, &[2, 1 << 60, 0]), bias(2)];
        refused(name, &none, &["expected the shape [4, 64]"]);
        // Other models' lie in another way: nothing is known of them.
        let fused = ("a.experts.down_proj", StDtype::F32, vec![1, 4, 64], vec![0; 1024]);
        refused("a.experts.0.down_proj.weight", &[fused], &["there is no such tensor"]);
        let odd = [("a.experts.gate_up_proj_bias", StDtype::F32, vec![1, 3], vec![0; 12])];
        refused("a.experts.0.up_proj.bias", &odd, &["1 experts of 3 rows"]);
    }
}
