//! Tensors of e4m3 and the scales beside them: one for all, one a row, or one for each block of some rows and columns.

use super::Safetensors;
use crate::error::{Error, Result};
use crate::weights::{Dtype, StoredForm, TensorInfo, TensorView, fp8};

/// What follows an e4m3 tensor's name in that of its scales. Numbers are multiplied with either.
const SUFFIXES: [&str; 2] = ["_scale", "_scale_inv"];

/// What each of a tensor's scales is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scales {
    /// All of it, or a row.
    Rows,
    /// So many rows and columns, or what is left of them at its edges.
    Blocks([usize; 2]),
}

impl Safetensors {
    /// The name of an e4m3 tensor's scales, and what they are for.
    pub(super) fn scales(&self, name: &str, shape: &[usize]) -> Result<(String, Scales)> {
        let path = self.path_of(name);
        let names = SUFFIXES.map(|suffix| format!("{name}{suffix}"));
        let Some(scale) = names.iter().find(|name| self.contains(name)) else {
            let message = format!("F8_E4M3 needs scales, and there is neither {} nor {}", names[0], names[1]);
            return Err(Error::tensor(path, name, message));
        };
        let found = &self.tensors[scale].info.shape;
        let (rows, num_scales) = (shape.first().copied().unwrap_or(1), found.iter().product::<usize>());
        if num_scales == 1 || (num_scales == rows && found[0] == rows) {
            return Ok((scale.clone(), Scales::Rows));
        }
        let mut message = format!("expected one scale, or one for each of {rows} rows");
        if let (StoredForm::Fp8Blocks(block), &[rows, cols]) = (self.form, shape) {
            let expected = [rows.div_ceil(block[0]), cols.div_ceil(block[1])];
            if *found == expected {
                return Ok((scale.clone(), Scales::Blocks(block)));
            }
            message += &format!(", or the shape {expected:?} for blocks of {block:?}");
        }
        Err(Error::tensor(path, scale, format!("{message}, found the shape {found:?}")))
    }

    /// The e4m3 tensor `name`, which is there; in bf16 where blocks have scales.
    pub(super) fn fp8_tensor(&self, name: &str, shape: Vec<usize>) -> Result<TensorView<'_>> {
        let (path, codes) = (self.path_of(name), self.data(name));
        if fp8::has_nan(codes) {
            return Err(Error::tensor(path, name, "there is a NaN among its elements"));
        }
        let (scale_name, of) = self.scales(name, &shape)?;
        let scales = match self.describe(&scale_name)? {
            Some(TensorInfo { dtype: Dtype::F32 | Dtype::F16 | Dtype::BF16, .. }) => self.tensor(&scale_name)?,
            _ => None,
        };
        let scales = scales.map(|scales| scales.to_f32()).filter(|scales| scales.iter().all(|x| x.is_finite()));
        let Some(scales) = scales else {
            return Err(Error::tensor(path, scale_name, "expected finite scales of F32, F16 or BF16"));
        };
        if let Scales::Blocks(block) = of {
            let data = fp8::blocks_to_bf16(codes, shape[1], &scales, block);
            return Ok(TensorView::new(Dtype::BF16, shape, data));
        }
        let scales = match scales[..] {
            [one] => vec![one; shape.first().copied().unwrap_or(1)],
            _ => scales,
        };
        Ok(TensorView { row_scales: Some(scales), ..TensorView::new(Dtype::F8E4M3, shape, codes) })
    }
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype as StDtype;
    use safetensors::tensor::TensorView as StView;

    use super::*;
    use crate::weights::WeightStore;

    /// Of some rows and columns: blocks are cut off at a matrix's edges. In place of the scales of blocks there may be one, or one a row.
    #[test]
    fn scales_of_blocks_make_bf16() {
        let bytes_of = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let (rows, cols, block) = (300, 20, [128, 8]);
        let codes: Vec<u8> =
            (0..rows * cols).map(|i| (i * 7 % 254) as u8).map(|c| if c & 0x7f == 0x7f { 0 } else { c }).collect();
        let scales: Vec<f32> = (0..9).map(|i| 0.5 + i as f32 / 3.0).collect();
        let (of_rows, bf16) = (bytes_of(&vec![2.0; rows]), vec![0x80, 0x3f]);
        let bytes = bytes_of(&scales);
        let tensors = [
            ("blocks", StDtype::F8_E4M3, vec![rows, cols], &codes),
            ("blocks_scale_inv", StDtype::F32, vec![3, 3], &bytes),
            ("rows", StDtype::F8_E4M3, vec![rows, cols], &codes),
            ("rows_scale", StDtype::F32, vec![rows, 1], &of_rows),
            ("whole", StDtype::F8_E4M3, vec![rows, cols], &codes),
            ("whole_scale", StDtype::BF16, vec![], &bf16),
            ("wrong", StDtype::F8_E4M3, vec![rows, cols], &codes),
            ("wrong_scale", StDtype::F32, vec![9], &bytes),
            ("vector", StDtype::F8_E4M3, vec![rows * cols], &codes),
            ("vector_scale", StDtype::F32, vec![9, 1], &bytes),
        ];
        let dir = tempfile::tempdir().unwrap();
        let views =
            tensors.iter().map(|(name, dtype, shape, data)| (*name, StView::new(*dtype, shape.clone(), data).unwrap()));
        std::fs::write(dir.path().join("model.safetensors"), ::safetensors::serialize(views, None).unwrap()).unwrap();
        let open = |form| WeightStore::open_safetensors(dir.path(), form).unwrap();
        let store = open(StoredForm::Fp8Blocks(block));
        let found = store.get("blocks", &[rows, cols]).unwrap();
        assert_eq!((found.dtype, &found.row_scales), (Dtype::BF16, &None));
        assert_eq!(store.describe("blocks", &[rows, cols]).unwrap().dtype, Dtype::BF16);
        let expected = |i: usize| {
            let scale = scales[i / cols / block[0] * 3 + i % cols / block[1]];
            half::bf16::from_f32(fp8::decode(codes[i]) * scale).to_f32()
        };
        assert_eq!(found.to_f32(), (0..rows * cols).map(expected).collect::<Vec<_>>());
        for (name, scale) in [("rows", 2.0), ("whole", 1.0)] {
            let found = store.get(name, &[rows, cols]).unwrap();
            assert_eq!((found.dtype, found.row_scales), (Dtype::F8E4M3, Some(vec![scale; rows])), "{name}");
        }
        let refused = |store: &WeightStore, name: &str, shape: &[usize], words: &[&str]| {
            let described = store.describe(name, shape).unwrap_err().to_string();
            let message = store.get(name, shape).unwrap_err().to_string();
            assert!(described == message && words.iter().all(|word| message.contains(word)), "{message}");
        };
        refused(
            &store,
            "wrong",
            &[rows, cols],
            &["wrong_scale", "[3, 3]", "blocks of [128, 8]", "found the shape [9]"],
        );
        refused(&store, "vector", &[rows * cols], &["vector_scale", "found the shape [9, 1]"]);
        refused(&open(StoredForm::Fp8), "blocks", &[rows, cols], &["blocks_scale_inv", "found the shape [3, 3]"]);
    }
}
